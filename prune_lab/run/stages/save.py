"""Saves the pruned model as a Hugging Face folder."""

import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from prune_lab.evaluation.metric import MetricInfo
from prune_lab.models.shrink import finish_folder
from prune_lab.run import artifacts
from prune_lab.run.state import RunState, Stage
from prune_lab.utils.checks import check_flag


@dataclass
class Save(Stage):
    """Writes ``model/``, with its zeros, as ``from_pretrained`` reads it; the folder appears whole or not at all.

    Args:
        enabled: whether to save at all.
    """

    measures: ClassVar[bool] = True
    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "bytes": MetricInfo("bytes of the saved weights", "bytes", better="lower")
    }
    needs: ClassVar = {"enabled": "save_model"}
    enabled: bool = True

    def __post_init__(self) -> None:
        check_flag(self, "enabled")

    def __call__(self, run: RunState) -> dict[str, float]:
        """Saves."""
        if not self.enabled:
            return {}
        temporary = Path(tempfile.mkdtemp(dir=run.folder, prefix=".model."))
        try:
            run.model.hf.config.use_cache = True  # switched off for calibration only; users generate from what is saved
            with run.model.adapter.off() if run.model.adapter else nullcontext():
                run.model.hf.save_pretrained(temporary)
            finish_folder(temporary, run.model.hf.config)
            if run.model.tokenizer is not None:
                run.model.tokenizer.save_pretrained(temporary)
            temporary.chmod(0o755)
            _flush(temporary)
            shutil.rmtree(run.folder / artifacts.MODEL, ignore_errors=True)
            temporary.rename(run.folder / artifacts.MODEL)
        finally:
            run.model.hf.config.use_cache = False
            shutil.rmtree(temporary, ignore_errors=True)
        written = (run.folder / artifacts.MODEL).glob("*.safetensors")
        return {"bytes": float(sum(file.stat().st_size for file in written))}


def _flush(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
