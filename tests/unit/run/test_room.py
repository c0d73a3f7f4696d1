"""Full disks: looked at before the work, told at its end, and the model kept in another place."""

import errno
import json
import shutil
from collections import namedtuple

import pytest
from safetensors import SafetensorError
from transformers import PreTrainedModel

import prune_lab
from prune_lab.errors import BadInput, RunFailed
from prune_lab.models.load import Checkpoint
from prune_lab.run import artifacts, masks_file
from prune_lab.run.runner import execute
from prune_lab.run.stages.prune import Prune
from prune_lab.utils import files

_Usage = namedtuple("_Usage", "total used free")


def test_a_model_that_does_not_fit_is_told_before_the_work(configured, local_overrides, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Usage(10**6, 10**6, 1000))
    monkeypatch.setattr(Prune, "__call__", lambda *_: pytest.fail("the work has begun"))
    with pytest.raises(BadInput, match=r"has room for 1e-06 GB.*hydra\.run\.dir=DIR.*save_model=false"):
        execute(configured(*local_overrides, "stages=[prune,save]"), tmp_path / "run")


def test_what_is_changed_of_a_streamed_model_takes_room(configured, local_overrides, tmp_path, monkeypatch):
    """The masks of a block, and its changed weights, in float32; not the blocks that are left as they are."""
    asked = [*local_overrides, "stages=[prune,evaluate]", "method=magnitude", "sparsity.layers=[0,1]"]
    model = Checkpoint(local_overrides[1].removeprefix("model.path=")).load()
    weights = sum(linear.weight.numel() for linear in model.blocks[0].linears)
    for stream, needed in (("false", weights), ("true", 5 * weights)):
        for free in (needed - 1, needed):
            monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: _Usage(free, 0, free))
            monkeypatch.setattr(Prune, "__call__", lambda *_: pytest.fail("begun"))
            with pytest.raises(BadInput if free < needed else pytest.fail.Exception):
                execute(configured(*asked, f"model.stream={stream}"), tmp_path / f"{stream}-{free}")


@pytest.mark.parametrize("where", ["model", "masks", "everywhere"])
def test_the_model_is_kept_elsewhere_when_the_run_folder_is_full(
    configured, local_overrides, tmp_path, monkeypatch, where
):
    """Every file of the model or of the masks that is written below the run folder fails, as safetensors fails."""
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    cache = tmp_path / "cache"
    monkeypatch.setenv("PRUNE_LAB_CACHE", str(cache))
    run = tmp_path / "run"

    def is_full(path: object) -> bool:
        return where == "everywhere" or str(path).startswith(str(run))

    save_pretrained, write_masks = PreTrainedModel.save_pretrained, masks_file._write

    def save(model: PreTrainedModel, folder: object, **options: object) -> None:
        if where != "masks" and is_full(folder):
            raise full
        save_pretrained(model, folder, **options)

    def write(masks: object, orders: object, path: object) -> None:
        if where == "masks" and is_full(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write_masks(masks, orders, path)

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", save)
    monkeypatch.setattr(masks_file, "_write", write)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(RunFailed, match=r"No space left on device.*hydra\.run\.dir=DIR") as told:
        execute(configured(*local_overrides, "method=magnitude"), run)
    record = json.loads((run / artifacts.RECORD).read_text())
    assert record["status"] == "failed" and "No space left" in record["error"]
    if where == "everywhere":
        assert "no other place" in str(told.value) and not list((cache / "rescued").iterdir())
        return
    [place] = (cache / "rescued").iterdir()
    assert str(place) in str(told.value)
    model = prune_lab.load(str(place / artifacts.MODEL))
    assert all((linear.weight == 0).float().mean() > 0.4 for linear in model.linears)
    assert (place / artifacts.MASKS).is_file()


def test_a_record_fits_on_a_full_disk(configured, local_overrides, tmp_path, monkeypatch):
    """Nothing can be written once a stage has failed, unless the room that was kept is given away."""
    room, write = tmp_path / "run" / ".prune_lab" / "room", files.write_atomically

    def full(*_: object) -> None:
        def fails(path: object, *_: object) -> None:
            if room.exists():
                raise OSError(errno.ENOSPC, "No space left on device", str(path))
            write(path, *_)

        assert room.stat().st_size > 100_000
        monkeypatch.setattr(files, "write_atomically", fails)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Prune, "__call__", full)
    with pytest.raises(RunFailed, match="No space left on device"):
        execute(configured(*local_overrides, "save_model=false", "stages=[prune]"), tmp_path / "run")
    assert json.loads((tmp_path / "run" / artifacts.RECORD).read_text())["status"] == "failed"
