"""Models that are named directly: what they stand for, wherever a command is composed."""

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import MissingConfigException

from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.loader import guard_hydra
from prune_lab.run.model_ids import as_typed, readable, spelled_out
from prune_lab.sweep.compose import composing


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """A folder that looks like the name of a repository, and one that is called as a choice is."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "model").mkdir(parents=True)
    (tmp_path / "reference").mkdir()


@pytest.mark.parametrize(
    ("line", "read"),
    [
        ("model=~/a b", "model='~/a b'"), ("model=~", "model='~'"), ("model='~/a'", "model='~/a'"),
        ("model=~/a,reference", "model=~/a,reference"), ("model.path=~/a", "model.path=~/a"), ("~model", "~model"),
    ],
)  # fmt: skip
def test_a_home_folder_needs_no_quotes(line, read):
    assert readable(line) == read


def stands_for(line: str, choices: tuple[str, ...] = ()) -> list[str]:
    return spelled_out(OverridesParser.create().parse_override(line), choices.__contains__)


@pytest.mark.parametrize(
    ("typed", "kind"),
    [
        ("org/name", "hub"),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "hub"),
        ("'org/name'", "hub"),
        ("runs/model", "local"),
        ("runs/model/", "local"),
        ("org/name/", "local"),
        ("a/b/c", "local"),
        ("/abs", "local"),
        ("./here", "local"),
        ("../there", "local"),
        ("'~/model'", "local"),
        ("'~someone/model'", "local"),
        ("${oc.env:HOME}/model", "local"),
        ("'./a=b @ [1] {x}'", "local"),
        ('"/a \\"b\\""', "local"),
        ("small.gguf", "gguf"),
        ("./small.Q4_1.gguf", "gguf"),
        ("org/name.gguf", "gguf"),
        ("'/a=b/x y.gguf'", "gguf"),
    ],
)
def test_a_name_is_the_path_of_its_kind_as_it_was_typed(typed, kind):
    assert stands_for(f"model={typed}") == [f"model={kind}", f"model.path={typed}"]


@pytest.mark.parametrize(
    "line",
    [
        "model=reference", "model=refrence", "model=mine/small", "model=reference,org/name", "model.path=org/name",
        "+model=org/name", "~model", "model@other=org/name", "data=org/name", "model=null", "model=[a/b]", "seed=1",
    ],
)  # fmt: skip
def test_choices_sweeps_and_other_keys_stay_as_they_are(line):
    assert stands_for(line, choices=("mine/small",)) == [line]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["model=a/b"], "model=a/b: no; use model.path=DIR"),
        (["model='a/b'", "seed=1"], "model=a/b: no; use model.path=DIR"),
        (["model=./a/b"], "model=./a/b: no; use model.path=DIR"),
        (["model=reference,a/b"], "model=a/b: no; use model.path=DIR"),
        (["model=hub", "model.path=a/b"], "model.path=a/b: no; use model.path=DIR"),
        (["model=a"], "model.path=a/b: no; use model.path=DIR"),
    ],
)
def test_messages_have_the_key_that_was_typed(typed, said):
    assert as_typed("model.path=a/b: no; use model.path=DIR", typed) == said


def test_jobs_of_sweeps_and_cells_of_tables_are_composed_alike():
    with composing(conf_folder()) as composed:
        for typed, kind in (("org/name", "hub"), ("runs/model", "local"), ("'./a=b [1]'", "local"), ("x.gguf", "gguf")):
            config = composed([f"model={typed}", "seed=3"])
            assert config.plain["model"] == composed([f"model={kind}", f"model.path={typed}", "seed=3"]).plain["model"]
            assert (config.plain["model"]["path"], config.choices["model"]) == (typed.strip("'"), kind)
            assert config.plain["seed"] == 3
        with pytest.raises(MissingConfigException):
            composed(["model=refrence"])


def test_the_command_composes_alike_and_choices_of_the_user_go_first(tmp_path, monkeypatch):
    monkeypatch.setattr("hydra._internal.hydra.ConfigLoaderImpl", None)  # put back after the test
    monkeypatch.setattr("hydra.core.utils._save_config", None)
    guard_hydra()
    choice = tmp_path / "conf" / "model" / "mine" / "small.yaml"
    choice.parent.mkdir(parents=True)
    choice.write_text("_target_: prune_lab.models.load.Checkpoint\npath: DIR\n")
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        searched = f"hydra.searchpath=[file://{tmp_path / 'conf'}]"
        assert compose("config", [searched, "model=mine/small"]).model.path == "DIR"
        hub = compose("config", [searched, "model=mine/other", "model.revision=v2"]).model
        assert (hub.kind, hub.path, hub.revision) == ("hub", "mine/other", "v2")
