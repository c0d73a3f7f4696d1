"""The choices of all groups that make parts, and files for those that read some."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from prune_lab.models.load import REFERENCE
from prune_lab.run.conf_folder import conf_folder

_NOT_PARTS = ("experiment", "debug", "hydra", "stages")  # they set keys of others, or are made by the runner
_ALIKE = ("local", "hub", "reference", "gguf", "smollm2")  # the other models differ in values only
CHOICES = [
    f"{path.parent.name}={path.stem}"
    for path in sorted(conf_folder().glob("*/*.yaml"))
    if path.parent.name not in _NOT_PARTS and (path.parent.name != "model" or path.stem in _ALIKE)
]
GIVEN = {  # values that a user has to give
    "data=hub": ["data.repo=org/name"],
    "model=local": [f"model.path={REFERENCE / 'opt'}"],
    "model=hub": ["model.path=owner/name"],
    "model=gguf": ["model.path=tiny.gguf"],
    "data=classification": ["data.task=sst2"],
    "data=mix": ["data.shares={stdlib: 1}", "+data@data.sources.stdlib=stdlib"],
    "data=files": ["data.calibration=a.txt", "data.evaluation=a.txt"],
    "data=tokens": ["data.calibration=a.npy", "data.evaluation=a.npy"],
    "allocation=from_file": ["allocation.path=a.csv"],
}


@pytest.fixture
def given_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_gguf: Callable[..., object]) -> None:
    """Makes those that `GIVEN` names, in the folder where the test is at work."""
    monkeypatch.chdir(tmp_path)
    write_gguf()
    Path("a.txt").write_text("A text.")
    Path("a.csv").write_text("layer,level\n")
    np.save("a.npy", np.zeros((2, 8), dtype=np.int64))
