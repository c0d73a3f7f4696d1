"""Saved states of a training, from which an interrupted one goes on."""

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from prune_lab.errors import BadInput
from prune_lab.utils.files import write_json

logger = logging.getLogger(__name__)

_LATEST = "latest.json"


@dataclass
class SavedStates:
    """The states of one training in a folder; a state counts once ``latest.json`` names it.

    Args:
        accelerator: that has everything registered which belongs to a state.
        folder: of the states; ``None``: nothing is saved.
        every: steps between two states.
        settings: that a state depends on, in words.
    """

    accelerator: Accelerator
    folder: Path | None
    every: int
    settings: str

    def __post_init__(self) -> None:
        if not self.every:
            self.folder = None
        elif self.accelerator.num_processes > 1:  # all use the first process' folder
            self.folder = broadcast_object_list([self.folder])[0]

    def resume(self) -> int:
        """Loads the latest state and returns the step at which training goes on; 0 where there is none.

        Raises:
            BadInput: the folder has states of a training with other settings.
        """
        if self.folder is None or not (self.folder / _LATEST).is_file():
            return 0
        latest = json.loads((self.folder / _LATEST).read_text(encoding="utf-8"))
        if latest["settings"] != self.settings:
            raise BadInput(
                f"{self.folder} holds the state of a training with other settings ({latest['settings']}); remove it to "
                "start anew, or use the same settings to go on"
            )
        step = int(latest["step"])
        self.accelerator.load_state(str(self.folder / f"step-{step}"))
        logger.info("training goes on at step %d", step)
        return step

    def is_due(self, step: int, steps: int) -> bool:
        """Returns whether a state is saved once ``step`` of ``steps`` are done; the last needs none."""
        return self.folder is not None and step % self.every == 0 and step < steps

    def save(self, step: int) -> None:
        """Saves the state after so many steps, and removes the one before."""
        assert self.folder is not None
        state = self.folder / f"step-{step}"
        self.accelerator.save_state(str(state))
        self.accelerator.wait_for_everyone()
        if not self.accelerator.is_main_process:
            return
        write_json(self.folder / _LATEST, {"step": step, "settings": self.settings})
        for other in self.folder.glob("step-*"):
            if other != state:
                shutil.rmtree(other, ignore_errors=True)

    def remove(self) -> None:
        """Removes all states of a training that is done."""
        self.accelerator.wait_for_everyone()
        if self.folder is not None and self.accelerator.is_main_process:
            shutil.rmtree(self.folder, ignore_errors=True)
