"""What tests of checkpoints change in a folder."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor


@pytest.fixture
def change_config() -> Callable[..., None]:
    """``change_config(folder, num_hidden_layers=5)`` sets keys of ``config.json``."""

    def change(folder: Path, **values: Any) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


@pytest.fixture
def change_weights() -> Callable[..., None]:
    """``change_weights(folder, change)`` lets ``change`` alter the weights by name."""

    def change_with(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
        file = folder / "model.safetensors"
        tensors = load_file(file)
        change(tensors)
        save_file(tensors, file, metadata={"format": "pt"})

    return change_with
