import pytest
from omegaconf import OmegaConf, open_dict

from prune_lab.errors import BadInput
from prune_lab.run.settings import check_settings, run_key


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
    plain = check_settings(composed())
    assert plain["method"]["_target_"] == "prune_lab.pruning.methods.sparsegpt.SparseGPT"
    assert plain["pipeline"]["prune"]["method"] == plain["method"]  # resolved


def test_an_unknown_key_of_an_experiment_file_is_told_with_those_allowed(changed):
    with pytest.raises(BadInput, match=r"method\.dampnig is unknown; allowed: block_size, damping"):
        check_settings(changed({"method.dampnig": 0.1}))


def test_an_unknown_section_is_told_with_those_allowed(changed):
    with pytest.raises(BadInput, match=r"methd is unknown; allowed: seed, device, .*method"):
        check_settings(changed({"methd.damping": 0.1}))


def test_an_unknown_key_of_a_nested_section_is_told(changed):
    with pytest.raises(BadInput, match=r"evaluate\.zero_shot\.taks is unknown"):
        check_settings(changed({"evaluate.zero_shot.taks": ["a"]}))


@pytest.mark.parametrize("target", ["prune_lab.pruning.methods.wanda.Vanda", "prune_lab.nowhere.X"])
def test_an_unknown_target_is_told(changed, target):
    with pytest.raises(BadInput, match=rf"method\._target_={target} cannot be imported"):
        check_settings(changed({"method._target_": target}))


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
        check_settings(changed({"method": {"_target_": target}}))


@pytest.mark.parametrize("section", ["pipeline.save", "data.calibration", "pipeline.prune.target"])
def test_a_target_that_is_hidden_deeper_is_not_trusted(changed, section):
    with pytest.raises(BadInput, match=rf"{section}\._target_=os\.getcwd is not trusted"):
        check_settings(changed({section: {"_target_": "os.getcwd"}}))


def test_an_unknown_key_of_a_stage_is_told(changed):
    with pytest.raises(BadInput, match=r"pipeline\.save\.enable is unknown; allowed: enabled"):
        check_settings(changed({"pipeline.save.enable": False}))


def test_all_mistakes_are_told_at_once(changed):
    cfg = changed(
        {"method.dampnig": 0.1, "data.smaples": 3, "seed": -1, "stages": ["prune", "evalute"], "save_model": "maybe"}
    )
    with pytest.raises(BadInput) as caught:
        check_settings(cfg)
    lines = str(caught.value).splitlines()
    assert len(lines) == 5
    for word in ("method.dampnig", "data.smaples", "seed=-1", "'evalute'", "save_model='maybe'"):
        assert sum(word in line for line in lines) == 1, word


@pytest.mark.parametrize("seed", ["zero", 0.5, None, True])
def test_a_seed_is_a_whole_number(changed, seed):
    with pytest.raises(BadInput, match=r"seed="):
        check_settings(changed({"seed": seed}))


@pytest.mark.parametrize("stages", [[], None, "prune"])
def test_stages_are_a_list(changed, stages):
    with pytest.raises(BadInput, match=r"stages=.*allowed: dense, prune, finetune, iterate, shrink, evaluate, save"):
        check_settings(changed({"stages": stages}))


def test_a_value_that_the_user_has_to_give_is_asked_for(composed):
    with pytest.raises(BadInput, match=r"model\.path is missing; give model\.path=VALUE"):
        check_settings(composed("model=local"))


def test_a_required_key_that_was_removed_is_asked_for(composed):
    with pytest.raises(BadInput, match=r"model\.path is missing"):
        check_settings(composed("~model.path"))


def test_the_key_of_a_run_tells_settings_apart_that_change_its_numbers(composed):
    def key(*overrides):
        return run_key(check_settings(composed(*overrides)))

    default = key()
    assert default == key()
    assert default == key("tracker=jsonl") == key("save_model=false")
    others = [
        key("seed=1"),
        key("method=wanda"),
        key("sparsity.level=0.6"),
        key("data.samples=3"),
        key("model.dtype=auto"),
    ]
    assert len({default, *others}) == 6
