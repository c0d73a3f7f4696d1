from pathlib import Path

from prune_lab.run.summary import print_summary

RECORD = {
    "config": {
        "model": {"name": None, "path": "models/small"},
        "method": {"_target_": "prune_lab.pruning.methods.wanda.Wanda"},
        "sparsity": {"pattern": "unstructured", "level": 0.7},
    },
    "protocol": {},
    "metrics": {
        "dense/perplexity": 10.0,
        "evaluate/perplexity": 12.3456,
        "dense/stdlib_order/acc": 0.75,
        "evaluate/stdlib_order/acc": 0.5,
        "prune/sparsity": 0.7,
        "prune/seconds": 4.06,
    },
}


def printed(record, capsys) -> list[list[str]]:
    print_summary(record, Path("outputs/x"))
    return [
        [cell.strip() for cell in line.split("│")[1:-1]] or [line.strip()]
        for line in capsys.readouterr().out.splitlines()
    ]


def test_dense_and_pruned_stand_side_by_side(capsys):
    lines = printed(RECORD, capsys)
    assert ["perplexity", "10.000", "12.346"] in lines
    assert ["stdlib_order accuracy", "75.00%", "50.00%"] in lines
    assert ["seconds to prune", "", "4.1"] in lines
    assert lines[0] == ["small, Wanda, 70% unstructured"]
    assert lines[-1] == ["everything about this run: outputs/x"]


def test_what_was_not_measured_has_no_row(capsys):
    lines = printed({**RECORD, "metrics": {"evaluate/perplexity": 5.0}}, capsys)
    assert [line for line in lines if len(line) == 3] == [["perplexity", "", "5.000"]]


def test_what_was_tuned_says_what_it_was_before(capsys):
    tuned = {"finetune/perplexity_before": 21.0, "finetune/sparsity_before": 0.7, "finetune/sparsity_after": 0.7}
    lines = printed({**RECORD, "metrics": {**RECORD["metrics"], **tuned}}, capsys)
    assert ["perplexity before tuning", "", "21.000"] in lines
    assert ["zeros of what was pruned, before tuning", "", "70.0000%"] in lines
    assert ["zeros of what was pruned, after tuning", "", "70.0000%"] in lines


def test_a_pattern_is_named_instead_of_a_level(capsys):
    config = {**RECORD["config"], "sparsity": {"pattern": "2:4", "level": None}}
    assert printed({**RECORD, "config": config}, capsys)[0] == ["small, Wanda, 2:4"]


def test_costs_of_running_have_rows(capsys):
    metrics = {
        "dense/prefill_flops": 4.0734e9,
        "evaluate/prefill_flops": 4.0734e9,
        "dense/prefill_nonzero_flops": 4.0734e9,
        "evaluate/prefill_nonzero_flops": 2.7934e9,
        "evaluate/decode_tokens_per_second": 1234.5,
    }
    lines = printed({**RECORD, "metrics": metrics}, capsys)
    assert ["FLOPs of a prompt, without zeros", "4.073e+09", "2.793e+09"] in lines
    assert ["tokens a second, one by one", "", "1,234"] in lines
