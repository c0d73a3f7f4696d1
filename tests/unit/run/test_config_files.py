"""Files of the configuration that no YAML library reads, as experiments of a user's own folder."""

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from hydra.types import RunMode

from prune_lab.errors import BadInput
from prune_lab.run.conf_folder import conf_folder
from prune_lab.run.config_files import check_lengths
from prune_lab.run.loader import GuardedLoader
from prune_lab.run.messages import message_of


@pytest.fixture
def loader(tmp_path):
    """What the command composes with where the user has a folder of configurations."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        path = GlobalHydra.instance().config_loader().get_search_path()
        path.prepend("user", f"file://{tmp_path}")
        yield GuardedLoader(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"seed: [", "line 1: expected the node content"),
        (b"\t- x", "line 1: found character"),
        (b"seed: 1\nseed: 2", "line 2: found duplicate key seed"),
        (b"seed: !!int x", "invalid literal"),
        (b"seed: !!timestamp 2026-99-99", "month must be in 1..12"),
        (b"a: !!python/object:os.system x", "line 1: could not determine a constructor"),
        pytest.param(b"seed: " + 5000 * b"9", "Exceeds the limit", id="digits"),
        (b"a: &x [*x]", "it is nested too deeply, or a part of it holds itself"),
        pytest.param(b"a: " + 3000 * b"[" + 3000 * b"]", "it is nested too deeply", id="deep"),
        (b'a: "\xe4"', "it is not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_read(loader, tmp_path, content, reason):
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_bytes(content)
    with pytest.raises(BadInput) as raised:
        loader.load_configuration("config", ["experiment=mine"], RunMode.RUN)
    assert str(raised.value).startswith(f"{file} cannot be read as YAML: {reason}")


def test_a_choice_of_one_job_that_cannot_be_read(loader, tmp_path):
    (tmp_path / "method").mkdir()
    (tmp_path / "method" / "mine.yaml").write_text("damping: [")
    master = loader.load_configuration("config", [], RunMode.MULTIRUN)
    with pytest.raises(BadInput, match=r"method/mine\.yaml cannot be read as YAML: line 1"):
        loader.load_sweep_config(master, ["method=mine"])


def test_a_list_in_the_place_of_settings(loader, tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n- a")
    with pytest.raises(HydraException) as raised:
        loader.load_configuration("config", ["experiment=mine"], RunMode.RUN)
    assert (
        message_of(raised.value, []) == "experiment/mine: a list stands there; a file of settings has lines KEY: VALUE"
    )


def test_a_number_that_nobody_can_write_out():
    check_lengths({"a": [10**400, True, "x", 1.5]})
    with pytest.raises(BadInput, match=r"^method\.a\[1\] is a number of thousands of digits"):
        check_lengths({"method": {"a": [0, 16**5000]}})
