"""Tasks of the harness, on a tiny model and with local data."""

import logging
import math
import random

import pytest
import torch

from prune_lab.errors import BadInput, RunFailed
from prune_lab.evaluation import harness_context, harness_model
from prune_lab.evaluation.harness import ZeroShot
from prune_lab.evaluation.stdlib_tasks import TASKS
from tests.unit.evaluation.conftest import QUESTIONS


@pytest.fixture
def subject(tiny_model, make_subject, letters):
    model = tiny_model("llama")
    model.tokenizer = letters
    return make_subject(model)


def log_probability(hf, tokenizer, context, continuation):
    ids = torch.tensor([tokenizer.encode(context + continuation)])
    log_probs = hf(input_ids=ids).logits[0].log_softmax(-1)
    length = len(tokenizer.encode(continuation))
    return sum(log_probs[t - 1, ids[0, t]].item() for t in range(ids.shape[1] - length, ids.shape[1]))


def expected_accuracy(subject, questions, normalised=False):
    right = 0
    for question, choices, gold in questions:
        scores = [
            log_probability(subject.model.hf, subject.model.tokenizer, question, f" {choice}")
            / (len(choice) if normalised else 1)
            for choice in choices
        ]
        right += scores.index(max(scores)) == gold
    return right / len(questions)


def test_a_local_task_gives_what_a_plain_loop_gives(subject, task_folder):
    folder = task_folder("proverbs", QUESTIONS)
    scores = ZeroShot(tasks=["proverbs"], include_path=str(folder))(subject)
    accuracy = expected_accuracy(subject, QUESTIONS)
    assert scores.metrics["proverbs/acc"] == scores.metrics["accuracy"] == pytest.approx(accuracy)
    assert scores.metrics["proverbs/acc_norm"] == pytest.approx(expected_accuracy(subject, QUESTIONS, normalised=True))
    assert scores.metrics["proverbs/acc_stderr"] == pytest.approx(math.sqrt(accuracy * (1 - accuracy) / 4))


def test_a_model_that_knows_the_answers_gets_them(subject, task_folder):
    head = subject.model.hf.lm_head.weight
    head.zero_()
    head[subject.model.tokenizer.convert_tokens_to_ids("x")] = 1
    subject.model.hf.model.norm.weight.fill_(0)  # every logit is 0: all letters are equally likely
    questions = [("say", ["no", "yes"], 0), ("say", ["yes", "no"], 1), ("say", ["yes", "no"], 0)]
    scores = ZeroShot(tasks=["short"], include_path=str(task_folder("short", questions)))(subject)
    assert scores.metrics["short/acc"] == pytest.approx(2 / 3)  # the shorter answer is the likelier


def test_the_protocol_says_what_ran(subject, task_folder):
    folder = task_folder("proverbs", QUESTIONS)
    protocol = ZeroShot(tasks=["proverbs"], include_path=str(folder), limit=3)(subject).protocol
    assert protocol["tasks"] == {
        "proverbs": {
            "version": 3,
            "num_fewshot": 0,
            "samples": 3,
            "samples_in_all": 5,
            "data": "json",
            "data_name": None,
        }
    }
    assert str(protocol["harness"]).startswith("lm_eval 0.")
    assert protocol["accuracy"] == "unweighted mean of acc over proverbs"
    assert (protocol["limit"], protocol["max_length"], protocol["truncated_requests"]) == (3, 64, 0)


def test_accuracy_is_the_unweighted_mean_over_tasks(subject, task_folder):
    task_folder("one", QUESTIONS[:1])
    folder = task_folder("four", QUESTIONS[1:])
    metrics = ZeroShot(tasks=["one", "four"], include_path=str(folder))(subject).metrics
    assert metrics["accuracy"] == pytest.approx((metrics["one/acc"] + metrics["four/acc"]) / 2)
    assert metrics["accuracy"] == pytest.approx(
        (expected_accuracy(subject, QUESTIONS[:1]) + expected_accuracy(subject, QUESTIONS[1:])) / 2
    )
    assert "accuracy_stderr" not in metrics  # a single question has none


def test_the_standard_error_of_the_mean_over_tasks(subject, task_folder):
    task_folder("two", QUESTIONS[:2])
    folder = task_folder("three", QUESTIONS[2:])
    metrics = ZeroShot(tasks=["two", "three"], include_path=str(folder))(subject).metrics
    variances = [metrics[f"{name}/acc_stderr"] ** 2 for name in ("two", "three")]
    assert metrics["accuracy_stderr"] == pytest.approx(math.sqrt(sum(variances)) / 2)


def test_a_group_with_its_own_accuracy_counts_once(subject, task_folder):
    for name, part in [("a", QUESTIONS[:2]), ("b", QUESTIONS[2:4]), ("c", QUESTIONS[4:])]:
        folder = task_folder(name, part)
    (folder / "group.yaml").write_text(
        '{"group": "ab", "task": ["a", "b"], "aggregate_metric_list": [{"metric": "acc", "weight_by_size": true}]}'
    )
    metrics = ZeroShot(tasks=["ab", "c"], include_path=str(folder))(subject).metrics
    assert metrics["ab/acc"] == pytest.approx((metrics["a/acc"] + metrics["b/acc"]) / 2)
    assert metrics["accuracy"] == pytest.approx((metrics["ab/acc"] + metrics["c/acc"]) / 2)


def test_options_change_a_task(subject, task_folder):
    folder = task_folder("proverbs", QUESTIONS, fewshot_split="test")
    options = {"proverbs": {"num_fewshot": 2, "description": "Complete."}}
    evaluation = ZeroShot(tasks=["proverbs"], include_path=str(folder), num_fewshot=1, task_options=options)
    assert evaluation(subject).protocol["tasks"]["proverbs"]["num_fewshot"] == 2


def test_few_shot_examples_are_drawn_from_the_seed_alone(subject, task_folder):
    folder = task_folder("proverbs", QUESTIONS, fewshot_split="test")
    subject.model.hf.config.max_position_embeddings = 512  # rotary: any length will do
    evaluation = ZeroShot(tasks=["proverbs"], include_path=str(folder), num_fewshot=2)
    first = evaluation(subject)
    random.seed(99)
    assert evaluation(subject) == first
    assert first.protocol["tasks"]["proverbs"]["num_fewshot"] == 2


def test_random_numbers_and_the_tokenizer_are_left_as_they_were(subject, task_folder):
    folder = task_folder("proverbs", QUESTIONS)
    random.seed(5)
    torch.manual_seed(5)
    expected = random.Random(5).random(), torch.rand(1, generator=torch.Generator().manual_seed(5))
    before = subject.model.fingerprint()
    ZeroShot(tasks=["proverbs"], include_path=str(folder))(subject)
    assert (random.random(), torch.rand(1)) == expected
    assert subject.model.tokenizer.pad_token is None
    assert subject.model.fingerprint() == before


def test_nothing_is_written_where_nobody_looks(subject, task_folder, capfd, caplog):
    folder = task_folder("proverbs", QUESTIONS)
    with caplog.at_level(logging.INFO):
        ZeroShot(tasks=["proverbs"], include_path=str(folder))(subject)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name.startswith(("lm_eval", "datasets"))]


def test_long_requests_lose_their_beginning_and_are_counted(subject, task_folder, caplog):
    folder = task_folder("long", [("word " * 30, ["yes", "no"], 0), ("short", ["yes", "no"], 0)])
    scores = ZeroShot(tasks=["long"], include_path=str(folder))(subject)
    assert scores.protocol["truncated_requests"] == 2
    assert "lost their beginning" in caplog.text


def test_an_answer_that_does_not_fit_stops_the_run(subject, task_folder):
    folder = task_folder("long", [("q", ["yes", "no " * 40], 0)])
    with pytest.raises(RunFailed, match="does not fit"):
        ZeroShot(tasks=["long"], include_path=str(folder))(subject)


def test_an_output_that_is_not_finite_stops_the_run(subject, task_folder):
    folder = task_folder("proverbs", QUESTIONS)
    subject.model.hf.lm_head.weight[3] = float("nan")
    with pytest.raises(RunFailed, match=r"model\.dtype"):
        ZeroShot(tasks=["proverbs"], include_path=str(folder))(subject)


def test_a_model_without_a_tokenizer_is_refused(tiny_model, make_subject):
    with pytest.raises(BadInput, match="no tokenizer"):
        ZeroShot()(make_subject(tiny_model("opt")))


def test_missing_data_is_named_with_a_remedy(task_folder, monkeypatch):
    monkeypatch.setattr(harness_context, "_answers", lambda address: False)
    folder = task_folder("remote", QUESTIONS, dataset_path="nobody/nothing", dataset_kwargs=None)
    evaluation = ZeroShot(tasks=["remote"], include_path=str(folder))
    with pytest.raises(
        RunFailed, match=r"task remote: cannot be loaded from nobody/nothing.*ZeroShot\.include_path=DIR"
    ):
        evaluation.prepare()


def test_an_unknown_task_is_refused_with_those_that_are_close():
    with pytest.raises(BadInput, match=r"'piqqa', which is no task.*piqa"):
        ZeroShot(tasks=["piqqa"]).prepare()


def test_a_task_of_the_harness_runs_on_local_data(subject, task_folder):
    data = task_folder("unused", []) / "piqa.jsonl"
    data.write_text('{"goal": "Eat soup", "sol1": "Use a spoon.", "sol2": "Use a comb.", "label": 0}\n' * 2)
    options = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"validation": str(data)}, "cache_dir": str(data.parent / "cache")},
        "training_split": None,
    }
    scores = ZeroShot(tasks=["piqa"], task_options={"piqa": options})(subject)
    own = {"piqa/acc", "piqa/acc_stderr", "piqa/acc_norm", "piqa/acc_norm_stderr"}
    assert set(scores.metrics) == own | {"accuracy", "accuracy_stderr"}


def test_an_option_that_tasks_do_not_have_is_refused():
    with pytest.raises(BadInput, match=r"task_options\.piqa\.num_fewshots.*close: num_fewshot"):
        ZeroShot(tasks=["piqa"], task_options={"piqa": {"num_fewshots": 3}}).prepare()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"tasks": []}, r"ZeroShot\.tasks=\[\]"),
        ({"limit": 0}, r"ZeroShot\.limit=0"),
        ({"limit": 2.5}, r"ZeroShot\.limit=2\.5"),
        ({"num_fewshot": -1}, r"ZeroShot\.num_fewshot=-1"),
        ({"batch_size": 0}, r"ZeroShot\.batch_size=0"),
        ({"max_length": "long"}, r"ZeroShot\.max_length='long'"),
        ({"limit": "few"}, r"ZeroShot\.limit='few'"),
        ({"include_path": "nowhere/at/all"}, "no such folder"),
        ({"task_options": {"piqa": {}}}, r"which is not in ZeroShot\.tasks="),
    ],
)
def test_bad_keys_are_refused_at_once(keys, message):
    with pytest.raises(BadInput, match=message):
        ZeroShot(**keys)


def test_more_tokens_than_the_model_has_positions_are_refused(subject):
    with pytest.raises(BadInput, match="64 positions"):
        ZeroShot(max_length=65)(subject)


def test_the_default_suite_runs_offline(subject):
    subject.model.hf.config.max_position_embeddings = 1024  # rotary: any length will do
    scores = ZeroShot(limit=4)(subject)
    accuracies = [scores.metrics[f"{name}/acc"] for name in TASKS]
    assert scores.metrics["accuracy"] == pytest.approx(sum(accuracies) / 3)
    assert scores.protocol["tasks"]["stdlib_order"]["samples"] == 4


def test_the_key_follows_tasks_of_ones_own(subject, task_folder):
    folder = task_folder("proverbs", QUESTIONS)
    evaluation = ZeroShot(tasks=["proverbs"], include_path=str(folder))
    before = evaluation.key(subject)
    assert evaluation.key(subject) == before
    task_folder("proverbs", QUESTIONS[:2])
    assert evaluation.key(subject) != before


@pytest.mark.parametrize("family", ["llama", "opt", "gpt2", "gpt_neo", "gemma3_text"])
def test_scores_are_those_of_the_harness_itself(tiny_model, letters, family):
    model = tiny_model(family)
    requests = [
        (("q", "a"), [3, 4, 5], [6]),
        (("q", "b"), [3, 4, 5], [7]),
        (("q", "c"), [3, 4, 5], [7, 9, 2]),
        (("q", "d"), [3], [4, 5, 6, 7]),
        (("r", "a"), list(range(2, 60)), [6, 7, 8, 9, 10, 11, 12, 13]),
    ]
    ours = harness_model.HarnessModel(model.hf, letters, rows=2, max_length=64)
    plain = super(harness_model.HarnessModel, ours)._loglikelihood_tokens(requests, disable_tqdm=True)
    found = ours._loglikelihood_tokens(requests)
    assert [score for score, _ in found] == pytest.approx([score for score, _ in plain], rel=1e-5)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in plain]
    assert ours.truncated == 1


def test_processes_share_the_passes_and_have_all_scores(tiny_model, letters, monkeypatch):
    requests = [(("q", str(length)), list(range(2, length)), [6, 7]) for length in range(4, 20)]
    ours = harness_model.HarnessModel(tiny_model("llama").hf, letters, rows=2, max_length=64)
    alone = ours._loglikelihood_tokens(requests)
    given = {}  # what each process tells the others
    monkeypatch.setattr(harness_model, "count", lambda: 3)
    for process in (0, 1, 2, 0):
        monkeypatch.setattr(harness_model, "rank", lambda process=process: process)

        def gather(own, process=process):
            given[process] = dict(own)
            return [*given.values(), *([] if len(given) == 3 else [dict.fromkeys(range(len(requests)))])]

        monkeypatch.setattr(harness_model, "gather", gather)
        found = ours._loglikelihood_tokens(requests)
    assert found == alone
    assert sum(map(len, given.values())) == len(requests) and max(map(len, given.values())) < len(requests) / 2


def test_a_sequence_that_begins_another_is_not_run_by_itself():
    rows = [
        harness_model._Row(tokens, [harness_model._Answer(number, 1, tokens[1:])])
        for number, tokens in enumerate([(1, 2), (1, 2, 3), (1, 2), (1, 4), (2,), (1, 2, 3, 4)])
    ]
    shared = {row.tokens: sorted(answer.number for answer in row.answers) for row in harness_model._share(rows)}
    assert shared == {(1, 2, 3, 4): [0, 1, 2, 5], (1, 4): [3], (2,): [4]}
