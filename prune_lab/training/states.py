"""Saved states of a training, from which an interrupted one goes on: safetensors and JSON, so that none runs code.

A state is a folder: the model's weights, and what everything else remembers (optimizer, scaler of losses, and the parts
that the training names), by `save_values`; each process adds where its random numbers are. Where weights are divided
among processes, each writes its part of them and of the optimizer's state (`prune_lab.training.sharded_values`). A
training goes on with any number of processes.
"""

import json
import logging
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_model, save_model
from torch import nn

from prune_lab.errors import BadInput
from prune_lab.training.packing import load_values, save_values
from prune_lab.utils.disk import disk_failure
from prune_lab.utils.files import write_json

if TYPE_CHECKING:  # PyTorch's FSDP takes a second to import
    from prune_lab.training.sharded import Shards

logger = logging.getLogger(__name__)

_LATEST = "latest.json"
_WEIGHTS, _SHARDS, _REST = "model.safetensors", "shards", "rest"


class Stateful(Protocol):
    """What a training that goes on has to know of one of its parts: plain values and tensors."""

    def state_dict(self) -> dict[str, Any]:
        """Returns it."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> object:
        """Restores it."""
        ...


@dataclass
class SavedStates:
    """The states of one training in a folder; a state counts once ``latest.json`` names it.

    Args:
        accelerator: of the training.
        model: whose weights are saved, as the accelerator has prepared it.
        parts: what else belongs to a state, by name.
        folder: of the states; ``None``: nothing is saved.
        every: steps between two states.
        settings: that a state depends on, in words.
        shards: of the model, where it is divided among processes.
    """

    accelerator: Accelerator
    model: nn.Module
    parts: Mapping[str, Stateful]
    folder: Path | None
    every: int
    settings: str
    shards: "Shards | None" = None

    def __post_init__(self) -> None:
        if not self.every:
            self.folder = None
        elif self.accelerator.num_processes > 1:  # all use the first process' folder
            self.folder = broadcast_object_list([self.folder])[0]
        self.model = self.accelerator.unwrap_model(self.model)
        if self.accelerator.scaler is not None:
            self.parts = {**self.parts, "scaler": self.accelerator.scaler}
        if self.shards is not None:
            self.parts = {**self.parts, "weights": self.shards}

    def resume(self) -> int:
        """Loads the latest state and returns the step at which training goes on; 0 where there is none.

        Raises:
            BadInput: the folder has states of a training with other settings, or one that cannot be read.
        """
        if self.folder is None or not (self.folder / _LATEST).is_file():
            return 0
        try:
            latest = json.loads((self.folder / _LATEST).read_text(encoding="utf-8"))
            settings, step = latest["settings"], int(latest["step"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise self._unreadable(error) from error
        if settings != self.settings:
            raise BadInput(
                f"{self.folder} holds the state of a training with other settings ({settings}); remove it to start "
                "anew, or use the same settings to go on"
            )
        try:
            self._load(self.folder / f"step-{step}")
        except BadInput:
            raise
        except Exception as error:  # torch and safetensors have kinds of their own for shapes and names that do not fit
            raise self._unreadable(error) from error
        logger.info("training goes on at step %d", step)
        return step

    def is_due(self, step: int, steps: int) -> bool:
        """Returns whether a state is saved once ``step`` of ``steps`` are done; the last needs none."""
        return self.folder is not None and step % self.every == 0 and step < steps

    def save(self, step: int) -> None:
        """Saves the state after so many steps, and removes the one before."""
        assert self.folder is not None
        state = self.folder / f"step-{step}"
        failure: str | None = None
        if self.accelerator.is_main_process:  # parts of it may be left of a process that was killed while it wrote
            shutil.rmtree(state, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            state.mkdir(parents=True, exist_ok=True)
            save_values(_random_state(self.accelerator.device), state / _random(self.accelerator.process_index))
            self._write(state)
        except Exception as error:
            failure = disk_failure(error)
            if failure is None:
                raise
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        try:
            if failure is None:
                write_json(self.folder / _LATEST, {"step": step, "settings": self.settings})
        except OSError as error:
            failure = str(error.strerror)
        if failure is not None:
            logger.warning("the state after step %d cannot be saved, the training goes on: %s", step, failure)
            shutil.rmtree(state, ignore_errors=True)
            return
        for other in self.folder.glob("step-*"):
            if other != state:
                shutil.rmtree(other, ignore_errors=True)

    def remove(self) -> None:
        """Removes all states of a training that is done."""
        self.accelerator.wait_for_everyone()
        if self.folder is not None and self.accelerator.is_main_process:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _write(self, state: Path) -> None:
        main = self.accelerator.is_main_process
        if self.shards is None and not main:
            return
        rest: Any = {name: part.state_dict() for name, part in self.parts.items()}
        if self.shards is None:
            save_model(self.model, str(state / _WEIGHTS))
        else:
            from prune_lab.training.sharded_values import save_shards

            rest = save_shards(rest, state / _SHARDS)
        if main:
            save_values(rest, state / _REST)

    def _load(self, state: Path) -> None:
        own = _random(self.accelerator.process_index)
        if not (state / own).with_suffix(".json").exists():  # there were fewer processes, all with the same numbers
            own = _random(0)
        rest, numbers = load_values(state / _REST), load_values(state / own)
        if self.shards is None:
            load_model(self.model, state / _WEIGHTS)
        else:
            from prune_lab.training.sharded_values import load_shards

            rest = load_shards(rest, state / _SHARDS, self.shards.mesh)
        for name, part in self.parts.items():
            part.load_state_dict(rest[name])
        _set_random_state(numbers, self.accelerator.device)

    def _unreadable(self, error: Exception) -> BadInput:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        return BadInput(
            f"{self.folder} holds the state of an interrupted training that cannot be read ({reason}); remove it to "
            "start anew"
        )


def _random(process: int) -> str:
    """The name of the file that says where the random numbers of a process are."""
    return f"random_{process}"


def _random_state(device: torch.device) -> dict[str, Any]:
    """Where the random numbers of this process are, on the host and on its own device, as plain values."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [name, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": [torch.cuda.get_rng_state(device)] if device.type == "cuda" else [],
    }


def _set_random_state(state: dict[str, Any], device: torch.device) -> None:
    random.setstate(state["python"])
    np.random.set_state(tuple(state["numpy"]))
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and len(state["cuda"]) == 1:  # none: the training goes on elsewhere than it began
        torch.cuda.set_rng_state(state["cuda"][0], device)
