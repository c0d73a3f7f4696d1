"""``data.shares`` on the command line also makes the sources that it names."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from prune_lab.api.settings import compose
from prune_lab.data.mix import Mix
from prune_lab.errors import BadInput
from prune_lab.run.mixed_sources import sources_named
from prune_lab.run.parts import make_parts

CHOICES = ("c4", "files", "ptb", "stdlib")


def named(*lines):
    return sources_named(OverridesParser.create().parse_overrides(list(lines)), lambda name: name in CHOICES)


@pytest.mark.parametrize(
    ("lines", "sources"),
    [
        (["data=mix", "data.shares={c4: 0.7, ptb: 0.3}"], ["c4", "ptb"]),
        (["data='mix'", "data.shares={c4: 1}", "data.evaluate_on=ptb"], ["c4", "ptb"]),
        (["data=mix", "data.shares={c4: 1, mine: 2}"], ["c4"]),  # what is no choice has to be placed
        (["data=mix", "data.shares={c4: 1}", "+data@data.sources.c4=files"], []),  # placed already
        (["data=mix", "data.shares={c4: 1},{c4: 1, ptb: 1}"], ["c4", "ptb"]),  # a sweep
        (["experiment=mine", "data.shares.c4=2"], ["c4"]),  # an experiment may have chosen the mix
        (["experiment=mine", "data=files", "data.shares={c4: 1}"], []),
        (["data.shares={c4: 1}"], []),
        (["data=mix", "data.shares=0.5", "data.evaluate_on=null"], []),
    ],
)
def test_sources_that_are_choices_are_placed(lines, sources):
    assert named(*lines) == [f"+data@data.sources.{name}={name}" for name in sources]


def test_the_samples_of_a_source_are_decided_by_its_share():
    with pytest.raises(BadInput, match=r"data\.sources\.c4\.samples=9 is not allowed: its share decides it"):
        named("data=mix", "data.shares={c4: 1}", "data.sources.c4.samples=9")


@pytest.fixture
def parts(tmp_path):
    def make(*overrides):
        return make_parts(compose(["data=mix", *overrides]))

    (tmp_path / "a.txt").write_text("some words")
    make.file = str(tmp_path / "a.txt")
    return make


def test_the_command_makes_a_mix_of_choices_and_files(parts):
    data = parts("data.shares={stdlib: 3, files: 1}", f"data.sources.files.calibration={parts.file}", "seed=5").data
    assert isinstance(data, Mix) and data.evaluate_on == "stdlib"
    assert {name: (source.samples, source.seed) for name, source in data.sources.items()} == {
        "stdlib": (96, 5),
        "files": (32, 5),
    }


def test_two_sources_of_one_choice_have_names_of_their_own(parts):
    data = parts(
        "data.shares={one: 1, two: 1, stdlib: 1}",
        "+data@data.sources.one=files",
        "+data@data.sources.two=files",
        f"data.sources.one.calibration={parts.file}",
        f"data.sources.two.calibration={parts.file}",
        "data.sources.two.sampling=documents",
        "data.evaluate_on=stdlib",
    ).data
    assert [data.sources[name].sampling for name in ("one", "two")] == ["stream", "documents"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.shares={stdlib: 1, c5: 1}"],
            r"^data\.shares\.c5=1: there is no source c5; sources: stdlib; on the com",
        ),
        (["data.shares={stdlib: 0}"], r"^data\.shares\.stdlib=0 is not allowed"),
        (["data.shares={stdlib: 1}", "data.sources.stdlib.bos=none"], r"^data\.sources\.stdlib\.bos='none' is not all"),
        (
            ["data.shares={files: 1}", "data.sources.files.calibration=FILE"],
            r"^data\.sources\.files has no text to eval",
        ),
        (
            ["data.shares={files: 1}", "data.sources.files.calibration=no.txt"],
            r"^data\.sources\.files\.calibration=no\.",
        ),
    ],
)
def test_messages_name_the_keys_that_were_typed(parts, overrides, message):
    with pytest.raises(BadInput, match=message):
        parts(*(each.replace("FILE", parts.file) for each in overrides))


def test_an_error_of_a_source_while_it_is_read_names_its_key(parts):
    made = parts("data.shares={stdlib: 2, files: 1}", f"data.sources.files.calibration={parts.file}", "data.seqlen=64")
    with pytest.raises(BadInput, match=r"^data\.sources\.files\.calibration: the text has"), made.addresses.naming():
        made.data.load(made.model.load_tokenizer(), vocab_size=10**6, seqlen_limit=64)
