"""Training in two processes is training in one."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prune_lab.data.samples import Samples
from prune_lab.models.load import Checkpoint
from prune_lab.target import Target
from prune_lab.training.gum import GUM
from prune_lab.training.loop import Training
from prune_lab.training.prune import prune_while_training
from prune_lab.training.schedule import Cubic


def train(folder: Path, out: Path, states: Path | None = None) -> None:
    """Prunes the folder's model and writes its weights and masks."""
    torch.set_num_threads(1)
    model = Checkpoint(str(folder)).load()
    tokens = torch.randint(64, (12, 16), generator=torch.Generator().manual_seed(0))
    samples = Samples(tokens, torch.tensor([16, 5, 9] * 4), torch.tensor([0, 2, 4, 1] * 3))
    training = Training(steps=12, batch_size=4, lr=1e-3, save_every=5 if states else 0)
    masks, progress = prune_while_training(
        model, GUM(lr=0.1), Target("neurons", 0.5), Cubic(), training, samples, torch.device("cpu"), folder=states
    )
    if os.environ.get("RANK", "0") == "0":
        torch.save({"weights": model.hf.state_dict(), "masks": dict(masks), "losses": progress.losses}, out)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["opt", "llama"])
def test_two_processes_train_as_one(model_folder, tmp_path, family):
    """Samples of many lengths, GUM's averages and the gradients of scores are shared."""
    folder = model_folder(family)
    train(folder, tmp_path / "one.pt")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = os.environ | {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }  # fmt: skip
    command = [sys.executable, __file__, str(folder), str(tmp_path / "two.pt"), str(tmp_path / "states")]
    started = [
        subprocess.Popen(
            command, env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for process in started:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    one, two = torch.load(tmp_path / "one.pt"), torch.load(tmp_path / "two.pt")
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    for name, mask in one["masks"].items():
        assert torch.equal(mask, two["masks"][name])
    for name, weight in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], weight, rtol=1e-3, atol=1e-4)
    assert not (tmp_path / "states").exists()


if __name__ == "__main__":
    train(*map(Path, sys.argv[1:]))
