"""The keys of `evaluate` on the command line."""

from hydra.utils import instantiate

from prune_lab.evaluation.harness import ZeroShot
from prune_lab.evaluation.suite import Suite


def test_everything_is_evaluated_by_default(composed):
    suite = instantiate(composed().evaluate)
    assert isinstance(suite, Suite)
    assert list(suite.parts) == ["perplexity", "zero_shot", "size"]


def test_a_part_of_everything_has_its_own_keys(composed):
    config = composed("evaluate.zero_shot.tasks=[piqa,boolq]", "evaluate.size=null", "evaluate.perplexity.batch_size=3")
    suite = instantiate(config.evaluate)
    assert list(suite.parts) == ["perplexity", "zero_shot"]
    assert suite.parts["zero_shot"] == ZeroShot(tasks=["piqa", "boolq"])
    assert suite.parts["perplexity"].batch_size == 3


def test_a_single_evaluation_has_the_same_keys(composed):
    config = composed("evaluate=zero_shot", "evaluate.tasks=[piqa]", "evaluate.task_options={piqa: {num_fewshot: 5}}")
    evaluation = instantiate(config.evaluate)
    assert evaluation == ZeroShot(tasks=["piqa"], task_options={"piqa": {"num_fewshot": 5}})
    assert type(evaluation.tasks) is list
    assert type(evaluation.task_options["piqa"]) is dict
