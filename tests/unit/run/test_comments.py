import pytest
import yaml

from prune_lab.run.comments import read_choice, settings_of
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.explained import explained

FILES = sorted(conf_folder().rglob("*.yaml"))
TEXT = """\
# @package stages.x
# What it does,
# in two lines.
defaults:
  - base
  - /method@inner: alps   # the first
  - part@below
  - _self_
a: "x # y"   # behind
b:
  c: [1, 2]
  d: null   # none
e:     # a list
  - {f: 1}
g:
"""


def test_comments_values_and_choices_are_read(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(TEXT)
    file = read_choice(path)
    assert (file.summary, file.package) == ("What it does, in two lines.", "stages.x")
    assert [(".".join(each.keys), each.value, each.comment) for each in file.settings] == [
        ("a", '"x # y"', "behind"), ("b", "", ""), ("b.c", "[1, 2]", ""), ("b.d", "null", "none"),
        ("e", "[{f: 1}]", "a list"), ("g", "", ""),
    ]  # fmt: skip
    assert [(each.keys[1], each.value, each.comment) for each in file.defaults] == [
        ("@", "base", ""), ("/method@inner", "alps", "the first"), ("@below", "part", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_what_is_read_of_a_file_is_what_is_in_it(path):
    plain = yaml.safe_load(path.read_text(encoding="utf-8"))
    for setting in read_choice(path).settings:
        value = plain
        for key in setting.keys:
            value = value[key]
        assert isinstance(value, dict) if setting.value == "" else yaml.safe_load(setting.value) == value
    assert {each.keys[0] for each in read_choice(path).settings} == set(plain) - {"defaults"}


def test_a_number_of_comments_does_not_change_the_settings():
    text = "method:\n  inner:\n    power: 1\n  max_cycles: 9\nstages:\n  prune:\n    save_every: 60\nlong: |\n  a\n"
    shown = explained(text, {"method": "dsnot", "method@method.inner": "ria", "hydra/help": "prune_lab"}, ["prune"])
    assert yaml.safe_load(shown) == yaml.safe_load(text)
    assert "    power: 1  # of the norm of the input\n" in shown
    assert "  max_cycles: 9  # swaps per row, at most\n" in shown
    assert "  # Magnitude relative to row and column" in shown
    assert "    save_every: 60  # seconds after which" in shown
    assert [each.line for each in settings_of(text) if each.keys == ("long",)] == [None]


def test_settings_of_parts_that_are_not_of_the_lab_have_no_comments():
    text = "method:\n  power: 1\nseed: 3\n"
    shown = explained(text, {"method": "mine", "tracker": None}, [])
    assert shown == text.replace("seed: 3", "seed: 3  # of the calibration sample and of every random choice")
