"""A kept score is known by everything that decides it: a change of any input of any evaluation is another key."""

import dataclasses
import importlib.util
import json
import sys

import pytest
import torch
from omegaconf import OmegaConf

from prune_lab.data.samples import Samples
from prune_lab.data.sources import FileText
from prune_lab.data.tokens import Data, Pair
from prune_lab.evaluation import harness
from prune_lab.evaluation.classification import Classification
from prune_lab.evaluation.continuation import Continuation
from prune_lab.evaluation.efficiency import Efficiency
from prune_lab.evaluation.evaluation import Subject
from prune_lab.evaluation.generation import Generation
from prune_lab.evaluation.harness import ZeroShot
from prune_lab.evaluation.perplexity import Perplexity
from prune_lab.evaluation.redundancy import Redundancy
from prune_lab.evaluation.score_cache import score_key
from prune_lab.evaluation.size import Size
from prune_lab.evaluation.suite import Suite
from prune_lab.evaluation.text_perplexity import TextPerplexity
from prune_lab.evaluation.training_loss import TrainingLoss
from prune_lab.models import identity
from prune_lab.run.conf_folder import conf_folder

QUESTIONS = [("Time", ["flies", "stands still"], 0), ("Still waters", ["run deep", "run"], 0)]
OTHER_VALUES = {  # of each setting
    "batch_size": 3, "windows": 1, "threshold": 0.5, "sensitivity": False, "samples": 2, "beams": 3, "limit": 1,
    "limit_windows": 1, "prompts": ["a"],
    "length_penalty": 0.5, "no_repeat_ngram_size": 2, "max_new_tokens": 3, "max_length": 32, "seed": 7,
    "num_fewshot": 1, "apply_chat_template": True, "fewshot_as_multiturn": False, "system_instruction": "Be brief",
    "chat_template_args": {"a": 1}, "add_bos_token": True, "log_samples": True,
    "task_options": {"a": {"description": "Think. "}},
}  # fmt: skip
ASKED = {"apply_chat_template": True}
NEEDS = {"system_instruction": ASKED, "chat_template_args": ASKED}  # of texts, settings that others need
EVALUATIONS = {
    "perplexity": Perplexity,
    "training_loss": TrainingLoss,
    "redundancy": Redundancy,
    "generation": Generation,
    "continuation": Continuation,
    "text_perplexity": TextPerplexity,
    "zero_shot": ZeroShot,
}


class World:
    """What evaluations look at, and what may change of it."""

    def __init__(self, subject, folder, monkeypatch):
        self.subject, self.folder, self.monkeypatch = subject, folder, monkeypatch

    def make(self, name, **settings):
        own = {
            "zero_shot": {"tasks": ["a"], "include_path": str(self.folder)},
            "text_perplexity": {"text": FileText(str(self.folder.parent / "text.txt"))},
            "training_loss": {"samples": 1},
        }
        return EVALUATIONS[name](**{**own.get(name, {}), **settings})

    def key(self, name):
        return json.dumps(score_key(self.make(name), self.subject), sort_keys=True)


@pytest.fixture
def world(tiny_model, letters, random_tokens, task_folder, tmp_path, monkeypatch):
    model = tiny_model("llama")
    model.tokenizer = letters
    samples = Samples(random_tokens(4, 16, 1), torch.full((4,), 16), torch.full((4,), 2))
    pairs = [
        Pair(prompt="say", tokens=[3, 4, 5], references=["a word"]),
        Pair(prompt="b", tokens=[6], references=["c"]),
    ]
    data = Data(
        random_tokens(4, 16, 2),
        random_tokens(4, 16, 3),
        batch_size=None,
        protocol={},
        evaluation_bytes=100,
        training=lambda: (samples, {"source": "test"}),
        pairs=pairs,
    )
    folder = task_folder("a", QUESTIONS, fewshot_split="test", description="")
    # the questions lie elsewhere, as they may
    (tmp_path / "elsewhere").mkdir()
    (folder / "a.jsonl").rename(tmp_path / "elsewhere" / "a.jsonl")
    text = (folder / "a.yaml").read_text().replace(str(folder / "a.jsonl"), str(tmp_path / "elsewhere" / "a.jsonl"))
    (folder / "a.yaml").write_text(text)
    (tmp_path / "text.txt").write_text("a stitch in time saves nine, and still waters run deep. " * 2)
    found = World(Subject(model, data, torch.device("cpu"), tmp_path), folder, monkeypatch)
    found.samples, found.pairs = samples, pairs
    return found


def remote_class(world, code):
    """Gives the model a class whose code came with its checkpoint."""
    folder = world.folder.parent / "transformers_modules" / "its"
    folder.mkdir(parents=True, exist_ok=True)
    base = next(kind for kind in type(world.subject.model.hf).__mro__ if "transformers_modules" not in kind.__module__)
    (folder / "modeling.py").write_text(f"from {base.__module__} import {base.__name__} as Base\n{code}\n")
    (folder / "helper.py").write_text(code)
    spec = importlib.util.spec_from_file_location("transformers_modules.its.modeling", folder / "modeling.py")
    module = importlib.util.module_from_spec(spec)
    world.monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    world.subject.model.hf.__class__ = type("Model", (module.Base,), {"__module__": spec.name})


def write_yaml(world, old, new):
    path = world.folder / "a.yaml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def write_question(world):
    path = world.folder.parent / "elsewhere" / "a.jsonl"
    path.write_text(path.read_text().replace("flies", "walks"))


def in_data(**fields):
    return lambda world: setattr(world.subject, "data", dataclasses.replace(world.subject.data, **fields))


def hf_config(name, value):
    return lambda world: setattr(world.subject.model.hf.config, name, value)


def generation_config(name, value):
    return lambda world: setattr(world.subject.model.hf.generation_config, name, value)


def patched(owner, name, value):
    return lambda world: world.monkeypatch.setattr(owner, name, value)


TOKENIZED = ("generation", "continuation", "zero_shot")
CHANGES = {  # of what every score depends on, or of what some do
    "weights": (lambda world: next(world.subject.model.linears).weight[0, 0].add_(1), None),
    "configuration": (hf_config("rms_norm_eps", 0.5), None),
    "generation_config.json": (generation_config("repetition_penalty", 1.5), None),
    "attention": (hf_config("_attn_implementation", "eager"), None),
    "dtype": (lambda world: world.subject.model.hf.bfloat16(), None),
    "remote code": (lambda world: remote_class(world, "x = 1"), None),
    "sources": (patched(identity, "source_digest", lambda: "other"), None),
    "versions": (patched(identity, "version", lambda name: "99"), None),
    "instruction set": (patched(torch.backends.cpu, "get_cpu_capability", lambda: "other"), None),
    "threads": (patched(torch, "get_num_threads", lambda: 99), None),
    "device": (lambda world: setattr(world.subject, "device", torch.device("meta")), None),
    "evaluation tokens": (in_data(evaluation=torch.ones(4, 16, dtype=torch.int64)), ("perplexity", "redundancy")),
    "text of its own": (
        lambda world: (world.folder.parent / "text.txt").write_text("all that glitters is not gold. " * 2),
        ("text_perplexity",),
    ),
    "bytes of the text": (in_data(evaluation_bytes=101), ("perplexity",)),
    "training tokens": (lambda world: world.samples.tokens[0].add_(1), ("training_loss",)),
    "ends of samples": (lambda world: world.samples.lengths.sub_(1), ("training_loss",)),
    "prompts in samples": (lambda world: world.samples.prompts.add_(1), ("training_loss",)),
    "prompts": (lambda world: world.pairs[0].tokens.append(3), ("generation",)),
    "references": (lambda world: world.pairs[1].references.append("d"), ("generation",)),
    "tokens added": (lambda world: world.subject.model.tokenizer.add_tokens(["ab"]), TOKENIZED),
    "special tokens": (lambda world: setattr(world.subject.model.tokenizer, "eos_token", "."), TOKENIZED),
    "BOS": (lambda world: setattr(world.subject.model.tokenizer, "add_bos_token", True), TOKENIZED),
    "chat template": (lambda world: setattr(world.subject.model.tokenizer, "chat_template", "{{ x }}"), TOKENIZED),
    "YAML of a task": (lambda world: write_yaml(world, '"description": ""', '"description": "Hm "'), ("zero_shot",)),
    "questions elsewhere": (write_question, ("zero_shot",)),
    "file beside a task": (lambda world: (world.folder / "utils.py").write_text("x = 1"), ("zero_shot",)),
    "version of lm-eval": (patched(harness, "version", lambda name: "99"), ("zero_shot",)),
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "name"), [(change, name) for change, (_, names) in CHANGES.items() for name in names or EVALUATIONS]
)
def test_a_change_of_an_input_is_another_key(world, change, name):
    before = world.key(name)
    assert world.key(name) == before
    CHANGES[change][0](world)
    assert world.key(name) != before


def test_other_remote_code_of_the_same_name_is_another_key(world):
    keys = []
    for code in ("x = 1", "x = 2"):
        remote_class(world, code)
        keys.append(world.key("perplexity"))
    assert keys[0] != keys[1]


SETTINGS = [
    (name, field.name)
    for name, each in EVALUATIONS.items()
    for field in dataclasses.fields(each)
    if field.name not in ("tasks", "include_path", "data_root", "text")  # what is there counts, see above
]


@pytest.mark.parametrize(("name", "setting"), SETTINGS)
def test_another_setting_is_another_key(world, name, setting):
    needed = {} if name == "zero_shot" else NEEDS.get(setting, {})
    plain, other = (world.make(name, **needed, **some) for some in ({}, {setting: OTHER_VALUES[setting]}))
    assert score_key(plain, world.subject) != score_key(other, world.subject)


def test_every_evaluation_of_the_lab_is_looked_at_here():
    targets = {OmegaConf.load(path)["_target_"] for path in (conf_folder() / "evaluate").glob("*.yaml")}
    kinds = {*EVALUATIONS.values(), Classification, Efficiency, Size, Suite}  # the first is looked at beside its tests
    assert targets <= {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}


def test_what_depends_on_other_work_of_the_machine_is_never_kept(world):
    assert score_key(Efficiency(), world.subject) is score_key(Size(), world.subject) is None
