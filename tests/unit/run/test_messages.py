"""What a person reads who has mistyped something: in process, by way of Hydra's own errors."""

import shlex

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from prune_lab.run.choices import no_key
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.messages import message_of, mistakes_in
from prune_lab.run.resolvers import register_resolvers
from prune_lab.run.trust import trust_typed

INTERNAL = (
    "full_key",
    "object_type",
    "Lexer",
    "mismatched",
    "EQUAL",
    "hydra.cc",
    "search path",
    "Available",
    "NoneType",
)


def said(*overrides: str) -> str:
    """The message about overrides that cannot be composed or resolved."""
    register_resolvers()  # as the command does
    trust_typed(overrides)
    with pytest.raises(Exception) as raised, initialize_config_dir(str(conf_folder()), version_base="1.3"):
        OmegaConf.to_container(compose("config", overrides=list(overrides)), resolve=True, throw_on_missing=True)
    text = message_of(raised.value, overrides)
    assert not [word for word in INTERNAL if word in text] and len(text) < 900, text
    return text


def test_of_a_choice_without_settings_none_is_proposed():
    assert said("method=wanda", "method.foo=1") == "method.foo is unknown; method has no settings as it was chosen"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("method=wnada", ["method=wnada is not a choice; did you mean method=wanda?", "sparsegpt"]),
        ("method=../../etc/passwd", ["method=../../etc/passwd is not a choice", "wanda"]),
        ("model=opt-125m", ["did you mean model=opt_125m"]),
        ("model=.", ["did you mean model=local model.path=.?"]),
        ("data=calib.txt", ["did you mean data=files data.calibration=calib.txt data.evaluation=...?"]),
        ("data=calib.npy", ["did you mean data=tokens data.calibration=calib.npy data.evaluation=...?"]),
        ("evaluate=mmlu", ["did you mean evaluate=zero_shot evaluate.tasks=[mmlu]?"]),
        ("experiment=nosuch", ["experiment=nosuch is not a choice; choices: ", "gum_stdlib"]),
        ("hydra/launcher=slrum", ["did you mean hydra/launcher=slurm?"]),
        ("stages=[prune,evalute]", ["stages: 'evalute' is unknown; allowed: dense, evaluate"]),
        ("sparsity=0.7", ["sparsity=0.7 is not allowed", "sparsity.level=0.7", "unstructured"]),
        ("evaluate=null", ["evaluate=null is not allowed; allowed: all, classification", "stages=[prune,save]"]),
        ("stages=[[prune]]", ["stages=[[prune]] is not allowed; allowed: dense", "stages=[prune,evaluate]"]),
        ("+method=wanda", ["without a plus sign: method=wanda"]),
        ("=5", ["=5: there is no key"]),
        ("seed", ["seed has no value; give seed=VALUE"]),
        ("method", ["method has no value", "wanda"]),
        ("wanda", ["did you mean method=wanda?"]),
        ("'seed=1'", ["quotes stand around the value"]),
        ("model.path=[a", ["model.path=[a cannot be read; brackets"]),
        ("seed=" + "x#" * 3000, ["seed=x#x#", "because of #"]),
        ("nokey=1", ["nokey is unknown; allowed: seed, device"]),
        ("lr=1", ["lr is unknown; did you mean training.lr?"]),
        ("method.dampnig=1", ["did you mean method.damping? allowed: method.block_size, method.damping"]),
        ("model.trust_remote_code=true", ["takes a plus sign: write +model.trust_remote_code=true"]),
        ("+seed=1", ["there is seed already; leave out the plus sign"]),
        ("finetune.steps=3", ["finetune.steps is called training.steps now"]),
        (
            "method@method.inner=ria",
            ["method@method.inner=ria: nothing that is chosen", "method@method.inner (of method=d"],
        ),
        (
            "evaluate@evaluate.zero_shot=size",  # a part of evaluate=all, which Hydra lets nobody choose again
            [
                "evaluate@evaluate.zero_shot=size: nothing that is chosen",
                "allowed: evaluate=CHOICE, evaluate@evaluate.continuation (of experiment=demo); +evaluate",
                "evaluate.PART=null leaves one out",
            ],
        ),
        (
            "hydra.job.env_set={A: b}",
            ["what is new below hydra.job.env_set takes a plus sign: +hydra.job.env_set.NAME"],
        ),
        ("hydra.job.chdir=abc", ["hydra.job.chdir=abc is not allowed: Value 'abc' is not a valid bool"]),
        ("~method.nosuch", ["~method.nosuch: there is no method.nosuch"]),
        ("seed=1,2", ["seed=1,2 is several values", "prune-lab -m", "seed=[1,2]", "'seed=\"1,2\"'"]),
        ("sparsity.level=choice(0.5,0.6)", ["is several values, and one run takes one; prune-lab -m"]),
        ("sparsity.level=interval(0.3,0.5)", ["is a search space", "hydra/sweeper=optuna"]),
        ("seed=${seed}", ["seed=${seed}: this leads back to itself"]),
        ("seed=${nosuch}", ["seed=${nosuch}: there is no key nosuch"]),
        ("data.samples=${oc.env:NOSUCH}", ["data.samples=${oc.env:NOSUCH}: ", "NOSUCH"]),
        ("seed=${nosuch:1}", ["${nosuch:...} is unknown"]),
        ("hydra.run.dirr=x", ["hydra.run.dirr is unknown; did you mean hydra.run.dir", "allowed: hydra.run.dir"]),
        ("seed='???'", ["seed is missing; give seed=VALUE"]),
    ],
)
def test_a_mistake_is_named_with_its_remedy(override, words):
    message = said(override)
    for word in words:
        assert word in message, message


def test_a_setting_of_a_sweeper_beside_others_that_only_a_sweep_has():
    others = ["hydra/sweeper=optuna", "method=wanda,ria", "sparsity.level=interval(0.1,0.5)"]
    message = no_key("hydra.sweeper.trial", "hydra.sweeper.trial=3", others)
    assert "did you mean hydra.sweeper.n_trials" in message and "hydra.sweeper.sampler" in message


def test_the_choice_of_a_part_inside_another():
    assert said("method=dsnot", "method@method.inner=wnada").startswith(
        "method@method.inner=wnada is not a choice; did"
    )


@pytest.mark.parametrize(
    "text", ["/a=b", "a#b", "~/x", "/a[1]", "a(1)", "it's", "straße", 'a"b', "a b=c", "a;b&c", "`id`"]
)
def test_the_quotes_that_a_message_proposes_are_right(text):
    """What stands in the message is run through a shell's reading and Hydra's."""
    proposed = said(f"model.path={text}").rpartition(": ")[2]
    (argument,) = shlex.split(proposed)
    assert OverridesParser.create().parse_override(argument).value() == text


@pytest.mark.parametrize("override", ["method=wanda,5", "sparsity=0.5,0.7", "stages=[prune],[5]"])
def test_choices_of_a_sweep(override):
    assert "is not allowed; allowed: " in mistakes_in([override], sweep=True)
    assert mistakes_in(["method=wanda,ria", "stages=[prune],[dense,prune]", "seed=1,2"], sweep=True) == ""


@pytest.mark.parametrize(
    "override", ["model=", "model=''", "+experiment=", "method@method.inner=", "stages=['']", "hydra/launcher="]
)
def test_a_choice_without_a_name_says_what_there_is(override):
    key = override.partition("=")[0]
    text = said("method=least_squares", override)
    assert text.startswith(f"{key} has no value; give {key}=VALUE; choices: ") and "--config-name" not in text


def test_errors_that_nothing_is_known_about_keep_their_message_without_noise():
    assert message_of(HydraException("Something\n    full_key: a\n    object_type=dict")) == "Something"


def test_what_a_message_allows_is_allowed():
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        asked = ["experiment=demo", "evaluate@evaluate.continuation=size", "+evaluate@evaluate.more=perplexity"]
        evaluate = compose("config", overrides=asked).evaluate
        assert evaluate.continuation._target_.endswith(".Size") and evaluate.more._target_.endswith(".Perplexity")
