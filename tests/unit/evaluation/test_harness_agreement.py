"""Prompts, tokens and accuracies are those that the harness' own front end gives with the same options."""

import itertools
import random

import lm_eval
import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import AutoTokenizer

from prune_lab.evaluation.harness import ZeroShot
from prune_lab.evaluation.harness_model import HarnessModel
from tests.unit.evaluation.conftest import QUESTIONS

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message.role }} says {{ message.content }}.\n{% endfor %}"
    "{% if add_generation_prompt %}assistant says {% endif %}{% if shout %}LOUD {% endif %}"
)
SHOTS, CHAT, MULTITURN = (0, 2), (False, True), (None, True, False)
SYSTEM, BOS = (None, "Be brief"), (None, True, False)
OTHER = list(itertools.product(SYSTEM, (False, True), BOS))  # between them: whether the tokenizer adds BOS by itself
COMBINATIONS = [
    (*first, *OTHER[5 * number % len(OTHER)]) for number, first in enumerate(itertools.product(SHOTS, CHAT, MULTITURN))
]


@pytest.fixture
def seen(monkeypatch):
    """The requests of each model, as texts and tokens."""
    found = {}
    for kind in (HFLM, HarnessModel):

        def watch(self, requests, *args, _kind=kind, _plain=kind._loglikelihood_tokens, **kwargs):
            found[_kind] = list(requests)
            return _plain(self, requests, *args, **kwargs)

        monkeypatch.setattr(kind, "_loglikelihood_tokens", watch)
    return found


@pytest.fixture
def chat_folder(tiny_model, letters, tmp_path):
    """A model that chats, with a tokenizer that adds BOS by itself or not."""

    def save(adds_bos):
        folder = tmp_path / "chat"
        model = tiny_model("llama")
        model.hf.config.max_position_embeddings = 512  # rotary: any length will do
        model.hf.save_pretrained(folder)
        letters.chat_template = TEMPLATE
        letters.add_bos_token = adds_bos
        letters.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def both(chat_folder, make_subject, tiny_model, task_folder, monkeypatch):
    """The metrics of the harness and ours."""

    def run(*, adds_bos=False, num_fewshot=None, model=None, **prompting):
        folder = chat_folder(adds_bos)
        tasks = task_folder("proverbs", QUESTIONS, fewshot_split="test", description="Complete. ")
        own = {name: value for name, value in prompting.items() if value is not None}
        theirs = lm_eval.simple_evaluate(
            model=HFLM(pretrained=str(folder), device="cpu", dtype="float32", **(model or {})),
            tasks=["proverbs"],
            task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
            num_fewshot=num_fewshot,
            bootstrap_iters=0,
            **own,
        )
        subject = make_subject(tiny_model("llama"))
        subject.model.hf.config.max_position_embeddings = 512
        subject.model.tokenizer = AutoTokenizer.from_pretrained(folder)
        evaluation = ZeroShot(
            tasks=["proverbs"], include_path=str(tasks), num_fewshot=num_fewshot, **prompting, **(model or {})
        )
        evaluation.check(subject)
        return theirs["results"]["proverbs"], evaluation(subject)

    return run


@pytest.mark.parametrize(("shots", "chat", "multiturn", "system", "adds_bos", "bos"), COMBINATIONS)
def test_every_combination_of_options_agrees(both, seen, shots, chat, multiturn, system, adds_bos, bos):
    theirs, ours = both(
        adds_bos=adds_bos,
        num_fewshot=shots,
        apply_chat_template=chat,
        fewshot_as_multiturn=multiturn,
        system_instruction=system,
        model={"add_bos_token": bos},
    )
    assert seen[HarnessModel] == seen[HFLM]
    assert {name: ours.metrics[f"proverbs/{name}"] for name in ("acc", "acc_norm")} == {
        name: pytest.approx(theirs[f"{name},none"]) for name in ("acc", "acc_norm")
    }
    assert ours.protocol["fewshot_as_multiturn"] == (chat and multiturn is not False)
    asked = {"chat_template": chat, "system_instruction": system, "add_bos_token": bos}
    assert {name: ours.protocol[name] for name in asked} == asked


def test_the_combinations_hold_each_value_of_each_option_with_and_without_the_template():
    for place, values in ((3, SYSTEM), (4, (False, True)), (5, BOS)):
        for chat, value in itertools.product(CHAT, values):
            assert any(each[1] == chat and each[place] == value for each in COMBINATIONS)


def test_the_options_change_what_is_asked(both, seen):
    prompts = []
    for options in (
        {},
        {"apply_chat_template": True},
        {"apply_chat_template": True, "fewshot_as_multiturn": False},
        {"system_instruction": "Be brief"},
        {"model": {"add_bos_token": True}},
        {"apply_chat_template": True, "model": {"chat_template_args": {"shout": True}}},
    ):
        both(num_fewshot=2, **options)
        assert seen[HarnessModel] == seen[HFLM]
        prompts.append(seen[HarnessModel])
    assert all(one != other for one, other in itertools.combinations(prompts, 2))


def test_random_numbers_are_those_of_the_harness(both, monkeypatch):
    """Some tasks shuffle with Python's own generator while they are loaded."""
    drawn, load = [], TaskManager.load

    def watch(self, *args):
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
        return load(self, *args)

    monkeypatch.setattr(TaskManager, "load", watch)
    both()
    assert len(set(drawn)) == 1 and len(drawn) > 1
