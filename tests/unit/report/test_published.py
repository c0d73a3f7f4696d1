import pytest

from prune_lab.errors import BadInput
from prune_lab.report.compare import Findings, compare
from prune_lab.report.published import find, read_published
from prune_lab.report.read_spec import read_table
from prune_lab.report.table import tables_folder
from prune_lab.run.conf_folder import conf_folder

REFERENCE = conf_folder().parent / "results" / "reference"
FILES = sorted(path.name for path in REFERENCE.glob("*.csv"))
TABLES = [
    name
    for name in sorted(path.stem for path in (tables_folder()).glob("*.yaml"))
    if read_table(tables_folder(), name, []).reference
]
ORIGINS = ("README", "image of", "text of", "secondary note", "issue thread")


@pytest.mark.parametrize(
    ("file", "keys", "setting", "data", "value"),
    [
        ("wanda.csv", {"model": "llama2_7b", "method": "wanda"}, "50 %", "c4_wikitext2", 6.42),
        ("wanda.csv", {"model": "llama2_70b", "method": "magnitude"}, "2:4", "c4_wikitext2", 6.33),
        ("wanda.csv", {"model": "llama2_13b", "method": "dense"}, "dense", "c4_wikitext2", 4.57),
        ("owl.csv", {"model": "llama_7b", "method": "wanda", "allocation": "owl"}, "70 %", "c4_wikitext2", 24.55),
        ("structured.csv", {"model": "llama2_7b", "method": "flap"}, "25 %", "c4_wikitext2", 8.31),
        ("structured.csv", {"model": "llama2_7b", "method": "ziplm"}, "25 %", "c4_wikitext2", 7.49),
        ("owl.csv", {"model": "llama_7b", "method": "wanda", "allocation": "uniform"}, "70 %", "c4_wikitext2", 85.77),
        ("smp.csv", {"model": "bert_base", "method": "smp"}, "10 % left", "mnli", 0.825),
        ("smp.csv", {"model": "bert_base", "method": "smp"}, "10 % left", "mnli_mismatched", 0.823),
        ("grain.csv", {"model": "bert_base", "method": "grain"}, "5 % left", "mnli", 0.824),
        (
            "text_pruner.csv",
            {"model": "xlm_roberta_base", "method": "cuts_8"},
            "8 heads and 2048 neurons",
            "pawsx",
            0.9385,
        ),
        ("sparsellm.csv", {"model": "opt_30b", "method": "sparsellm", "layers": "first half"}, "80 %", "c4_ptb", 19.64),
        ("sparsellm.csv", {"model": "llama2_7b", "method": "sparsegpt", "layers": "first half"}, "90 %", "c4", 279.77),
    ],
)
def test_numbers_are_found_by_row_setting_and_data(file, keys, setting, data, value):
    metric = "perplexity" if value > 1 else "accuracy"
    assert [each.value for each in find(read_published(REFERENCE / file), keys, setting, data, metric)] == [value]


def test_what_was_published_for_half_of_the_layers_is_not_shown_for_all():
    published = read_published(REFERENCE / "sparsellm.csv")
    keys = {"model": "opt_30b", "method": "sparsegpt", "layers": "all"}
    assert find(published, keys, "80 %", "c4_wikitext2", "perplexity") == []


@pytest.mark.parametrize("file", FILES)
def test_every_number_says_where_it_was_read_and_stands_once(file):
    published = read_published(REFERENCE / file)
    places = [(*number.keys.values(), number.setting, number.dataset, number.metric) for number in published]
    assert len(set(places)) == len(places)
    for number in published:
        assert number.value > 0 and number.source and number.table
        assert number.evidence.startswith(ORIGINS)
        assert number.metric == "perplexity" or 0 < number.value < (2 if number.metric.endswith("_ratio") else 1)


@pytest.mark.parametrize("name", TABLES)
def test_every_number_of_a_tables_models_methods_columns_and_texts_is_used(name):
    spec = read_table(tables_folder(), name, [])
    published = read_published(REFERENCE / spec.reference)
    lines = [line for metric in spec.metrics for line in compare(Findings(spec, [], [], published), metric)]
    used = [line.published for line in lines if line.published]
    texts = {(spec.data_of(row) or "").rpartition("_")[2] for row in spec.row_values}
    belongs = [
        number
        for number in published
        if number.keys["model"] in spec.rows["model"]
        and number.keys["method"] in ("dense", *spec.rows["method"])
        and number.setting in ("dense", *spec.columns)
        and number.dataset in texts
        and number.metric in [metric.name for metric in spec.metrics]
    ]
    assert len(used) == len(belongs) and all(number in used for number in belongs)
    assert {number.keys["model"] for number in used} == set(spec.rows["model"])


def test_a_file_that_is_not_there_or_lacks_a_column_is_refused(tmp_path):
    with pytest.raises(BadInput, match="cannot read the published numbers"):
        read_published(tmp_path / "none.csv")
    (tmp_path / "bad.csv").write_text("model,method,value\na,b,1\n")
    with pytest.raises(BadInput, match="lacks the columns dataset, evidence, metric, setting, source, table"):
        read_published(tmp_path / "bad.csv")
