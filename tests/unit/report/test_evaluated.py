"""Which numbers may be compared."""

import pytest

from prune_lab.evaluation.metric import MetricInfo
from prune_lab.report.evaluated import evaluation_of, evaluation_text

TEXT = {"source": "stdlib", "split": "evaluation", "windows": 8, "seqlen": 512, "sha256": "a"}
TIMES = {
    "prefill": "1 x 64",
    "macs": "all",
    "seqlen": 64,
    "repeats": 5,
    "macs_of_a_prompt": {"blocks": 1},
    "sparse": "no",
}
PERPLEXITY = {"windows": 8, "text": TEXT}
TASKS = {"limit": 200, "tasks": {"piqa": {"samples": 200}}, "accuracy": "mean"}


def protocol(device="cpu", **parts):
    evaluate = {"perplexity": PERPLEXITY, "efficiency": TIMES, "zero_shot": TASKS} | parts
    return {"model": {"name": "m"}, "device": device, "data": {"evaluation": TEXT}, "evaluate": evaluate}


PLAIN, SIZE = MetricInfo("x"), MetricInfo("bytes", axis="size")
FLOPS, TIME = MetricInfo("flops", axis="FLOPs"), MetricInfo("seconds", "seconds", axis="latency")
FEWER = PERPLEXITY | {"windows": 3}


@pytest.mark.parametrize(
    ("name", "info", "other", "same"),
    [
        ("evaluate/perplexity", PLAIN, protocol(perplexity=FEWER), False),
        ("evaluate/bits_per_byte", PLAIN, protocol(perplexity=FEWER), False),
        ("dense/perplexity", PLAIN, protocol(perplexity=FEWER), False),
        ("evaluate/accuracy", PLAIN, protocol(perplexity=FEWER), True),
        ("evaluate/piqa/acc", PLAIN, protocol(zero_shot=TASKS | {"limit": 10}), False),
        ("evaluate/accuracy", PLAIN, protocol(zero_shot=TASKS | {"limit": 10}), False),
        ("evaluate/perplexity", PLAIN, protocol(zero_shot=TASKS | {"limit": 10}), True),
        ("evaluate/perplexity", PLAIN, protocol(efficiency=TIMES | {"seqlen": 8}), True),
        ("evaluate/c4/perplexity", PLAIN, protocol(c4=FEWER), False),
        ("evaluate/prefill_flops", FLOPS, protocol(efficiency=TIMES | {"seqlen": 8}), False),
        ("evaluate/prefill_flops", FLOPS, protocol("cuda", efficiency=TIMES | {"repeats": 9}), True),
        ("evaluate/prefill_seconds", TIME, protocol("cuda"), False),
        ("evaluate/prefill_seconds", TIME, protocol(efficiency=TIMES | {"repeats": 9}), False),
        ("evaluate/smallest_bytes", SIZE, protocol("cuda", efficiency=TIMES | {"seqlen": 8}), True),
        ("prune/seconds", MetricInfo("s", "seconds"), protocol("cuda"), False),
        ("prune/sparsity", PLAIN, protocol("cuda", perplexity=FEWER), True),
    ],
)
def test_a_metric_is_compared_by_what_it_depends_on(name, info, other, same):
    assert (evaluation_of(protocol(), name, info) == evaluation_of(other, name, info)) is same


def test_what_follows_from_the_pruned_model_tells_no_runs_apart():
    smaller = TIMES | {"macs_of_a_prompt": {"blocks": 0.5}, "sparse": "not timed: blocks are smaller"}
    name = "evaluate/prefill_seconds"
    assert evaluation_of(protocol(), name, TIME) == evaluation_of(protocol(efficiency=smaller), name, TIME)


def test_seeds_tell_no_runs_apart():
    drawn = [{"text": {"source": "c4", "seed": seed, "sha256": str(seed)}} for seed in (0, 1)]
    one, other = (evaluation_of(protocol(training=each), "evaluate/training/loss", PLAIN) for each in drawn)
    assert one == other
    other_text = evaluation_of(
        protocol(training={"text": {"source": "c4", "sha256": "1"}}), "evaluate/training/loss", PLAIN
    )
    assert one != other_text


def test_a_single_evaluation_agrees_with_the_same_one_among_others():
    alone = protocol() | {"evaluate": PERPLEXITY}
    assert evaluation_of(alone, "evaluate/perplexity", PLAIN) == evaluation_of(protocol(), "evaluate/perplexity", PLAIN)


@pytest.mark.parametrize(
    "bad", [{}, {"data": 3, "evaluate": [1]}, {"evaluate": {"perplexity": 7}, "data": {"bos": []}}]
)
def test_damaged_protocols_are_read_as_far_as_they_go(bad):
    assert evaluation_of(bad, "evaluate/perplexity") == evaluation_of(bad, "evaluate/perplexity")
    assert evaluation_text(bad) is None


def test_the_text_is_told_in_a_few_words():
    assert evaluation_text(protocol()) == "stdlib evaluation, 8 x 512"
    assert evaluation_text({"data": {"evaluation": {"source": "c4"}}}) == "c4"
