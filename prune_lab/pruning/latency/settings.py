"""For what a speed is asked, and where the table comes from that predicts it."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import torch

from prune_lab.cache.store import Store, open_store
from prune_lab.errors import BadInput, BadSetting
from prune_lab.models.model import PrunableModel
from prune_lab.models.timing import PARTS, Workload
from prune_lab.pruning.latency.measure import measure, shapes_of
from prune_lab.pruning.latency.table import FORMAT, Conditions, LatencyTable, differences, read_table
from prune_lab.utils.checks import check_choice, check_text, check_whole
from prune_lab.utils.device import hardware_name
from prune_lab.utils.digests import json_digest
from prune_lab.utils.files import write_json
from prune_lab.utils.paths import local_path

logger = logging.getLogger(__name__)

_FILE = "latency.json"
_DECIDE = ("model", "machine", "workload")


@dataclass(frozen=True)
class Latency:
    """What ``sparsity.speedup`` is about: a phase of a workload, by a latency table of the machine at hand.

    Args:
        phase: ``prefill``: a pass over the prompts; ``decode``: a token after them, with their cache.
        batch_size: prompts at once.
        seqlen: tokens a prompt, at most the model's positions.
        new_tokens: that follow one by one; as far as the positions reach.
        repeats: timed passes of each width after one that is not counted.
        steps: widths of each attention and feed-forward network that are timed, at most; linear between them.
        path: of a table of ``prune-lab-latency``; null: the store's, measured where it has none.
    """

    input_files: ClassVar = ("path",)
    phase: str = "prefill"
    batch_size: int = 1
    seqlen: int = 512
    new_tokens: int = 16
    repeats: int = 5
    steps: int = 16
    path: str | None = None

    def __post_init__(self) -> None:
        check_choice(self, "phase", PARTS)
        self.workload.check(self)
        check_whole(self, "steps")
        check_text(self, "path", optional=True, hint="a file of prune-lab-latency; null: measured, and kept")
        if self.path is not None and not local_path(self.path).is_file():
            raise BadSetting(self, "path", "is no file; make a table with prune-lab-latency, or leave it null")

    @property
    def workload(self) -> Workload:
        """What is timed."""
        return Workload(*(getattr(self, field.name) for field in fields(Workload)))

    def conditions(self, model: PrunableModel, device: torch.device) -> Conditions:
        """What the times of a model depend on here."""
        config, shapes = model.hf.config, shapes_of(model)
        sizes: dict[str, list[str]] = {}
        for name, of_block in shapes.items():
            sizes.setdefault(" and ".join(of_block), []).append(name.rpartition(".")[2])
        workload = self.workload.fit(model)
        return {
            "model": {
                "family": str(config.model_type),
                "hidden_size": int(config.hidden_size),
                "vocab_size": model.vocab_size,
                "dtype": str(model.dtype).removeprefix("torch."),
                "attention": str(config._attn_implementation),
                "blocks": {shape: _ranges(indices) for shape, indices in sizes.items()},
            },
            "machine": {
                "device": hardware_name(device),
                "threads": torch.get_num_threads() if device.type == "cpu" else None,
            },
            "workload": {
                **{field.name: getattr(workload, field.name) for field in fields(workload)},
                "steps": self.steps,
            },
            "versions": {"torch": torch.__version__, "transformers": version("transformers")},
        }

    def table(
        self,
        model: PrunableModel,
        device: torch.device,
        store: Store | None = None,
        make: Callable[..., LatencyTable] = measure,
        again: bool = False,
    ) -> LatencyTable:
        """The table of a model: that of ``path``, the store's, or measured now and kept there.

        Args:
            model: on the host.
            device: where it is timed.
            store: by default that of the cache folder.
            make: measures.
            again: also where the store has the table, which goes.

        Raises:
            BadInput: the file is no table, or one of something else.
        """
        here = self.conditions(model, device)
        if self.path is not None:
            return self._given(here)
        workload = self.workload.fit(model)
        store, key = store or open_store(), json_digest({"latency": FORMAT, **here})
        if again:
            store.remove(store.entry_of(key))
        return store.obtain(
            key,
            "latency table",
            read=lambda folder: read_table(folder / _FILE),
            make=lambda: make(model, device, workload, here, self.steps),
            write=lambda folder, table: write_json(folder / _FILE, table.to_json()),
        )

    def _given(self, here: Conditions) -> LatencyTable:
        assert self.path is not None
        try:
            table = read_table(Path(local_path(self.path)))
        except BadInput as error:
            raise BadSetting(self, "path", str(error)) from error
        if wrong := differences(table.conditions, here, _DECIDE):
            raise BadSetting(
                self,
                "path",
                f"is a table of something else: {'; '.join(wrong)}; give the settings of the table, or make another "
                "one with prune-lab-latency on this machine",
            )
        for change in differences(table.conditions, here, ("versions",)):
            logger.warning("the latency table was measured with another version: %s", change)
        return table


def _ranges(indices: list[str]) -> str:
    """Indices as text, those of consecutive blocks together: ``0-29``, ``0-3, 5``."""
    found: list[list[int]] = []
    for index in map(int, indices):
        if found and found[-1][-1] == index - 1:
            found[-1][-1] = index
        else:
            found.append([index, index])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in found)


def told(table: LatencyTable) -> Mapping[str, object]:
    """What a protocol says of a table."""
    return {"table": table.digest, **{name: dict(each) for name, each in table.conditions.items()}}
