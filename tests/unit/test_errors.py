import pickle

import pytest

from prune_lab.errors import BadInput, BadSetting, NotPositiveDefinite, located, owned_by, shortened


class Part:
    """Something with fields, and without a place."""

    damping = -1
    inner = None


def test_without_a_place_the_class_is_named():
    error = BadSetting(Part(), "damping", "is not allowed; see {at}.inner, and {at}")
    assert str(error) == "Part.damping=-1 is not allowed; see Part.inner, and Part"
    assert str(BadInput("raise {at}.damping")) == "raise damping"


def test_a_place_is_filled_in_everywhere():
    with pytest.raises(BadSetting) as raised, located("method.inner"):
        raise BadSetting(Part(), "damping", ": {at}.levels[0], not {this}; use method@{at}.inner=wanda.")
    assert str(raised.value) == "method.inner.damping=-1: method.inner.levels[0], not {this}; use " + (
        "method@method.inner.inner=wanda."
    )


def test_a_helper_speaks_of_its_owner():
    owner = Part()
    with pytest.raises(BadInput) as raised, owned_by(owner, renamed={"path": "teacher"}):
        raise BadInput("{at}.path=x: there is no such folder; see {at}.kind")
    assert raised.value.owner is owner
    assert str(raised.value) == "Part.teacher=x: there is no such folder; see Part.kind"
    with pytest.raises(BadInput) as raised, located("hydra.sweeper"), owned_by(owner, ".stop_early"):
        raise BadInput("{at}.steps=x")
    assert str(raised.value) == "hydra.sweeper.stop_early.steps=x"


def test_a_message_that_is_complete_stays_as_it_is():
    with pytest.raises(BadInput, match=r"^seed=x$") as raised, owned_by(Part()), located("method"):
        raise BadInput("seed=x")
    assert raised.value.owner is None


@pytest.mark.parametrize(
    "error", [BadSetting(Part(), "damping", "is bad"), BadInput("{at}.mode"), NotPositiveDefinite("{at}.x", Part())]
)
def test_errors_travel_between_processes_without_their_owner(error):
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)
    assert again.owner is None
    assert again.is_open == (error.owner is None)  # the caller may know the place


@pytest.mark.parametrize("about", ["a: {}", "a.json is not valid JSON ({}); copy it", "{}. Copy it"])
def test_nobody_reads_thousands_of_digits(about):
    with pytest.raises(ValueError, match="digits") as raised:
        int(5000 * "9")
    assert shortened(about.format(raised.value)) == about.format("a number of thousands of digits stands there")
    long = about.format(f"device=cuda:{5000 * '9'} is unknown")
    assert len(shortened(long)) < 150 and " characters)" in shortened(long)
    assert shortened(about.format("/a/path " * 99)) == about.format("/a/path " * 99)
