import pytest
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import ReadonlyConfigError

from prune_lab.errors import BadInput
from prune_lab.run.config import RunConfig
from prune_lab.run.parts import make_parts
from prune_lab.run.vetting import vet


def check(cfg):
    """Checks a composed configuration as a run does, and returns its settings."""
    config = RunConfig.of(cfg)
    vet(config)
    return config


@pytest.fixture
def changed(composed):
    """``changed({"method.dampnig": 0.1})`` sets keys as an experiment file does, whether they exist or not."""

    def change(values, *overrides):
        cfg = composed(*overrides)
        with open_dict(cfg):
            for key, value in values.items():
                OmegaConf.update(cfg, key, value, force_add=True)
        return cfg

    return change


def test_the_default_job_is_in_order(composed):
    plain = check(composed()).plain
    assert plain["method"]["_target_"] == "prune_lab.pruning.methods.sparsegpt.SparseGPT"
    assert plain["training"]["seed"] == plain["seed"] == 0  # resolved


def test_an_unknown_key_of_an_experiment_file_is_told_with_those_allowed(changed):
    with pytest.raises(BadInput, match=r"method\.dampnig is unknown; allowed: block_size, damping"):
        check(changed({"method.dampnig": 0.1}))


def test_an_unknown_section_is_told_with_those_allowed(changed):
    with pytest.raises(BadInput, match=r"methd is unknown; allowed: seed, device, .*method"):
        check(changed({"methd.damping": 0.1}))


def test_an_unknown_key_of_a_nested_section_is_told(changed):
    with pytest.raises(BadInput, match=r"evaluate\.zero_shot\.taks is unknown"):
        check(changed({"evaluate.zero_shot.taks": ["a"]}))


@pytest.mark.parametrize("target", ["prune_lab.pruning.methods.wanda.Vanda", "prune_lab.nowhere.X"])
def test_an_unknown_target_is_told(changed, target):
    with pytest.raises(BadInput, match=rf"method\._target_={target} cannot be imported"):
        check(changed({"method._target_": target}))


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "builtins.eval",
        "prune_lab_evil.X",
        "prune_lab.run.environment.subprocess.run",
        "prune_lab.run.runner.random.seed",
    ],
)
def test_a_target_outside_the_package_is_not_trusted(changed, target):
    with pytest.raises(BadInput, match=rf"method\._target_={target} is not trusted"):
        check(changed({"method": {"_target_": target}}))


@pytest.mark.parametrize("section", ["stages.save", "data.calibration", "stages.prune.target"])
def test_a_target_that_is_hidden_deeper_is_not_trusted(changed, section):
    with pytest.raises(BadInput, match=rf"{section}\._target_=os\.getcwd is not trusted"):
        check(changed({section: {"_target_": "os.getcwd"}}))


def test_an_unknown_key_of_a_stage_is_told(changed):
    with pytest.raises(BadInput, match=r"stages\.save\.enable is unknown; allowed: none"):
        check(changed({"stages.save.enable": False}))


def test_all_mistakes_are_told_at_once(changed):
    cfg = changed(
        {"method.dampnig": 0.1, "data.smaples": 3, "stages.prune.propagate": "dense", "evaluate._target_": "os.system"}
    )
    with pytest.raises(BadInput) as caught:
        check(cfg)
    lines = str(caught.value).splitlines()
    assert len(lines) == 4
    for word in ("method.dampnig", "data.smaples", "stages.prune.propagate", "evaluate._target_"):
        assert sum(word in line for line in lines) == 1, word


@pytest.mark.parametrize("seed", ["zero", 0.5, None, True])
def test_a_seed_is_a_whole_number(changed, seed):
    with pytest.raises(BadInput, match=r"seed="):
        check(changed({"seed": seed}))


@pytest.mark.parametrize("stages", [{}, None, "prune"])
def test_stages_are_choices(composed, stages):
    cfg = composed()
    cfg.stages = stages
    with pytest.raises(BadInput, match=r"stages=.*allowed: dense, evaluate, finetune, iterate, prune, save, shrink"):
        check(cfg)


def test_a_list_of_stages_of_an_earlier_version_is_told_how_it_is_written_now(composed):
    cfg = composed()
    cfg.stages = ["prune", "evaluate"]
    with pytest.raises(BadInput, match=r"write 'override /stages: \[prune, evaluate\]' in the file's defaults list"):
        check(cfg)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("pipeline.iterate.rounds", "pipeline is called stages now"),
        ("finetune.steps", "finetune.steps is called training.steps now"),
        ("finetune.holdout", "finetune.holdout is called training.eval_samples now"),
        ("finetune.lora.rank", "finetune.lora is called finetune now"),
        ("reuse", "reuse is called skip_finished now"),
        ("share", "share is called stage_cache_min_seconds now"),
        ("method.floor", "method.floor is called method.min_units now"),
        ("evaluate.redundancy.bar", "evaluate.redundancy.bar is called evaluate.redundancy.threshold now"),
    ],
)
def test_a_key_of_an_earlier_version_is_told_with_its_new_name(changed, old, new):
    with pytest.raises(BadInput) as caught:
        check(changed({old: 1}, "finetune=full", "evaluate=structured"))
    assert new in str(caught.value).splitlines()


def test_a_target_of_an_earlier_version_is_told_with_its_new_place(changed):
    with pytest.raises(BadInput, match=r"; it is prune_lab\.pruning\.methods\.wanda\.Wanda now"):
        check(changed({"method": {"_target_": "prune_lab.methods.wanda.Wanda"}}))


def test_settings_are_frozen_and_redacted(composed):
    config = RunConfig.of(composed("tracker=wandb", "+tracker.api_key=hunter2"))
    with pytest.raises(ReadonlyConfigError):
        config.resolved.seed = 3
    assert (config.redacted["tracker"]["api_key"], config.plain["tracker"]["api_key"]) == ("***", "hunter2")


def test_choices_are_those_of_hydra_without_its_own_and_with_all_stages(composed):
    groups = (
        "model",
        "data",
        "sparsity",
        "method",
        "allocation",
        "schedule",
        "training",
        "finetune",
        "evaluate",
        "tracker",
    )
    chosen = dict.fromkeys(groups, "some")
    config = RunConfig.of(composed("stages=[prune,evaluate]"), {**chosen, "hydra/launcher": "basic"}, ["a=1"])
    assert config.choices == {**chosen, "stages": ["prune", "evaluate"]}
    assert config.overrides == ("a=1",)


def test_a_value_that_the_user_has_to_give_is_asked_for(composed):
    with pytest.raises(BadInput, match=r"model\.path is missing; give model\.path=VALUE"):
        check(composed("model=local"))


def test_a_required_key_that_was_removed_is_asked_for(composed):
    with pytest.raises(BadInput, match=r"model\.path is missing"):
        check(composed("~model.path"))


def test_the_key_of_a_run_tells_settings_apart_that_change_its_numbers(composed):
    def key(*overrides):
        return check(composed(*overrides)).key

    default = key()
    assert default == key()
    assert default == key("tracker=jsonl") == key("save_model=false")
    assert default == key("training.save_every=5") == key("stages.prune.save_every=null")
    assert default == key("training.log_every=3")
    others = [
        key("seed=1"),
        key("method=wanda"),
        key("sparsity.level=0.6"),
        key("data.samples=3"),
        key("model.dtype=auto"),
    ]
    assert len({default, *others}) == 6


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"propagate": "abc"}, "propagate='abc' is not allowed; allowed: pruned, dense"),
        ({"sequential": 3}, "sequential=3 is not allowed; allowed: block, layer"),
        ({"sparsity.level": 5}, "sparsity.level=5 is not allowed"),
        ({"method.damping": -5}, "method.damping=-5 is not allowed"),
        ({"training.steps": 0}, "training.steps=0 is not allowed"),
        ({"allocation._target_": None}, "allocation._target_=null is not allowed; allowed: the name of a class"),
        ({"method": None}, "method is missing"),
        ({"stages.dense._target_": {"a": 1}}, "stages.dense._target_={'a': 1} is not allowed"),
        ({"stages.x": {}}, "stages.x._target_ is missing"),
        ({"stages._target_": {"a": 1}}, "stages._target_={'a': 1} is not allowed"),
    ],
)
def test_settings_are_checked_whether_or_not_a_stage_reads_them(changed, values, said):
    with pytest.raises(BadInput) as raised:
        make_parts(check(changed(values, "stages=[dense]", "tracker=jsonl")))
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize("section", ["method", "sparsity", "data", "model", "training", "schedule", "allocation"])
def test_a_section_says_of_which_class_it_is(changed, section):
    cfg = changed({}, "stages=[dense]")
    with open_dict(cfg):
        del cfg[section]["_target_"]
    with pytest.raises(BadInput, match=rf"{section}\._target_ is missing; give {section}\._target_=CLASS, of the kind"):
        check(cfg)
