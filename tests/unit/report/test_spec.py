from dataclasses import replace

import pytest

from prune_lab.errors import BadInput
from prune_lab.report.read_spec import read_table
from prune_lab.report.spec import TableSpec
from prune_lab.report.table import tables_folder
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.vetting import vet
from prune_lab.sweep.compose import composing

TABLES = sorted(path.stem for path in (tables_folder()).glob("*.yaml"))
PAPERS = ["owl_llama", "sparsellm_llama", "sparsellm_opt", "structured_llama", "wanda_llama"]
YAML = """
title: Toy
reference: toy.csv
overrides: [data=c4_wikitext2, data.samples=64, model.dtype=float16]
miniature: [data=stdlib, data.seqlen=256]
per_model: {half: {big: 24, reference: 3}}
rows:
  model: [big]
  layers: {first half: ["sparsity.layers=[0,{half}]"], all: []}
columns: {"50 %": [sparsity.level=0.5]}
seeds: [0]
metrics: {perplexity: {form: "{:.1f}", title: Perplexity}}
"""


@pytest.fixture
def read(tmp_path):
    (tmp_path / "toy.yaml").write_text(YAML)
    return lambda *overrides: read_table(tmp_path, "toy", overrides)


def test_a_choice_of_a_row_adds_its_overrides_with_the_value_of_the_model(read):
    first, whole = read().cells()
    base = ("data=c4_wikitext2", "data.samples=64", "model.dtype=float16", "model=big")
    assert first.overrides == (*base, "sparsity.layers=[0,24]", "sparsity.level=0.5", "seed=0")
    assert whole.overrides == (*base, "sparsity.level=0.5", "seed=0")


def test_the_command_line_gives_the_value_of_an_unlisted_model(read):
    with pytest.raises(BadInput, match="half of other is unknown; give half=VALUE"):
        list(read("model=other").cells())
    assert "sparsity.layers=[0,12]" in next(read("model=other", "half=12").cells()).overrides
    assert "sparsity.layers=[0,12]" in next(read("half=12", "model=other").cells()).overrides


def test_what_the_command_line_sets_stands_once(read):
    (cell, _) = read("data.samples=8", "data.seqlen=64").cells()
    assert cell.overrides[:4] == ("data=c4_wikitext2", "data.samples=8", "model.dtype=float16", "data.seqlen=64")


def test_choices_of_a_row_are_those_of_the_yaml(read):
    assert [cell.row for cell in read("layers=all").cells()] == [("big", "all")]
    with pytest.raises(BadInput, match="layers=some is unknown; allowed: first half, all"):
        read("layers=some")


def test_a_name_that_no_command_line_could_ask_for_is_refused(tmp_path):
    (tmp_path / "toy.yaml").write_text(YAML.replace("first half:", '"half, the first":'))
    with pytest.raises(BadInput, match=r"toy\.yaml: rows\.layers has the name 'half, the first'.*layers=A,B"):
        read_table(tmp_path, "toy", [])


def test_the_miniature_takes_the_place_of_the_overrides_for_shipped_models_alone(read):
    small = read("model=reference", "data.samples=32")
    assert small.name == "toy_reference"
    assert small.overrides == ("data=stdlib", "data.seqlen=256", "data.samples=32")
    mixed = read("model=reference,big", "data.samples=32")
    assert mixed.name == "toy"
    assert mixed.overrides == ("data=c4_wikitext2", "data.samples=32", "model.dtype=float16")


@pytest.mark.parametrize("override", ["sparsity.level=0.9", "sparsity.layers=[0,1]"])
def test_what_rows_and_columns_are_about_cannot_be_changed_under_their_names(read, override):
    with pytest.raises(BadInput, match="contradicts the table"):
        read(override)


def test_the_papers_tables_are_there():
    assert set(TABLES) >= {"reference", *PAPERS}


@pytest.mark.parametrize("name", TABLES)
def test_every_override_of_every_table_composes(name):
    asked = (
        ["model.path=DIR"] if name in ("gum_e2e", "encoder_miniature", "text_pruner_pawsx") else []
    )  # of a model that is made first
    compose_all(read_table(tables_folder(), name, asked))


@pytest.mark.parametrize("model", ["reference", "reference_llama", "reference_gpt_neo"])
@pytest.mark.parametrize("name", PAPERS)
def test_every_override_of_every_miniature_composes_without_the_hub(name, model):
    spec = read_table(tables_folder(), name, [f"model={model}", "data.samples=32"])
    assert spec.name == f"{name}_reference"
    for plain in compose_all(spec):
        assert plain["model"]["kind"] == "reference" and plain["model"]["dtype"] == "float32"
        assert plain["data"]["calibration"]["_target_"].endswith("StdlibText")
        assert plain["data"]["samples"] == 32


def compose_all(spec: TableSpec) -> list[dict]:
    """The settings of enough cells to have every override of the table in one of them."""
    seen, cells = set(), []
    for cell in spec.cells():
        if not seen.issuperset(cell.overrides):
            seen.update(cell.overrides)
            cells.append(cell)
    with composing(conf_folder()) as compose:
        configs = [compose(cell.overrides) for cell in cells]
    for config in configs:
        vet(config)
    return [config.plain for config in configs]


def test_first_half_of_the_layers():
    spec = read_table(tables_folder(), "sparsellm_opt", ["model=opt_30b,opt_66b,reference", "layers=first half"])
    ranges = {cell.row[0]: o for cell in spec.cells() for o in cell.overrides if o.startswith("sparsity.layers")}
    assert ranges == {
        "opt_30b": "sparsity.layers=[0,24]",
        "opt_66b": "sparsity.layers=[0,32]",
        "reference": "sparsity.layers=[0,3]",
    }


def test_three_of_four_pruned_is_one_of_four_kept():
    spec = read_table(tables_folder(), "sparsellm_llama", ["method=wanda", "seed=0"])
    columns = {name: added for name, added in spec.columns.items() if name.startswith("1:4 kept")}
    assert {plain["sparsity"]["pattern"] for plain in compose_all(replace(spec, columns=columns))} == {"1:4"}
