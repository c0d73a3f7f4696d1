"""Gathers what a machine without network lacks: wheels, the model's file in parts, tokens. Needs a package index."""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# What the lab imports besides what comes with torch and transformers, and what that needs in turn.
PACKAGES = (
    "accelerate", "antlr4-python3-runtime", "chardet", "dataproperty", "datasets", "dill", "evaluate", "gguf",
    "hydra-core", "lm-eval", "mbstrdecoder", "more-itertools", "multiprocess", "nltk", "omegaconf",
    "pathvalidate", "pytablewriter", "rouge-score", "sqlitedict", "tabledata", "tcolorpy", "typepy", "word2number",
)  # fmt: skip
PLATFORMS = ("manylinux2014_x86_64", *(f"manylinux_2_{minor}_x86_64" for minor in (28, 27, 24, 17, 12, 5)))
SUFFIX = ".part"
TRAINING_SAMPLES = 512  # drawn from the text of the calibration set, by another seed


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of ``--prepare``."""
    add = parser.add_argument
    add("--packages", nargs="*", help="for --prepare: which wheels, in the lock's versions (what is usually missing)")
    add("--python", default="3.12", help="for --prepare: Python of the other machine (%(default)s)")
    add("--part-mib", type=float, default=30, help="for --prepare: size of the parts of a file (%(default)s MiB)")


def gather(folder: Path, arguments: argparse.Namespace) -> None:
    """Writes ``wheels/``, ``model/`` (with ``--model-file``) and ``tokens/``."""
    folder.mkdir(parents=True, exist_ok=True)
    packages = PACKAGES if arguments.packages is None else arguments.packages
    for name in packages:
        wheel(name, folder / "wheels", arguments.python)
    if arguments.model_file is not None and arguments.model_file.is_file():
        split(arguments.model_file, folder / "model", int(arguments.part_mib * 2**20))
    write_tokens(folder / "tokens", arguments)
    for part in sorted(path for path in folder.rglob("*") if path.is_file()):
        sys.stdout.write(f"{part.stat().st_size / 2**20:8.2f} MiB  {part.relative_to(folder)}\n")


def wheel(name: str, folder: Path, python: str) -> None:
    """Fetches a wheel for the other machine; where there is none that fits, one is built of pure Python.

    Raises:
        SystemExit: neither is there.
    """
    wanted = f"{name}=={pins()[name]}" if name in pins() else name
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    common = ["--no-deps", "--python-version", python, "--implementation", "cp", "--only-binary=:all:"]
    platforms = [option for platform in (*PLATFORMS, "any") for option in ("--platform", platform)]
    found = subprocess.run([*pip, "download", *common, *platforms, "-d", str(folder), wanted], capture_output=True)
    if found.returncode == 0:
        return
    with tempfile.TemporaryDirectory() as built:
        made = subprocess.run([*pip, "wheel", "--no-deps", "-w", built, wanted], capture_output=True, text=True)
        wheels = list(Path(built).glob("*-none-any.whl"))
        if made.returncode or not wheels:
            reason = (made.stderr.strip() or "its wheel is for this machine alone").splitlines()[-1]
            sys.exit(f"There is no wheel of {wanted} for Python {python}: {reason}")
        folder.mkdir(parents=True, exist_ok=True)
        (folder / wheels[0].name).write_bytes(wheels[0].read_bytes())


def pins() -> dict[str, str]:
    """Versions of the lock by name, those without a condition or the last of several."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    pairs = [
        line.partition(";")[0].strip().split("==") for line in lines if "==" in line.partition("#")[0].split(";")[0]
    ]
    return {name: number for name, number in pairs}


def split(file: Path, folder: Path, size: int) -> None:
    """Cuts a file into numbered parts of at most so many bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    with file.open("rb") as source:
        for number in range(1000):
            data = source.read(size)
            if not data:
                return
            (folder / f"{file.name}{SUFFIX}{number:03}").write_bytes(data)


def joined(path: Path) -> Path:
    """The file of which a folder has the parts, joined beside them; any other path as it is.

    Raises:
        SystemExit: a part is missing.
    """
    parts = sorted(path.glob(f"*{SUFFIX}[0-9][0-9][0-9]")) if path.is_dir() else []
    if not parts:
        return path.resolve()
    if [int(part.name[-3:]) for part in parts] != list(range(len(parts))):
        sys.exit(f"--model-file {path}: parts are missing among {', '.join(part.name for part in parts)}")
    whole = parts[0].with_name(parts[0].name.rpartition(SUFFIX)[0])
    if not whole.is_file() or whole.stat().st_size != sum(part.stat().st_size for part in parts):
        with whole.open("wb") as target:
            for part in parts:
                target.write(part.read_bytes())
    return whole.resolve()


def write_tokens(folder: Path, arguments: argparse.Namespace) -> None:
    """Writes calibration samples, evaluation windows and what is trained on, as the model's tokenizer reads them."""
    import numpy as np
    from hydra.utils import instantiate
    from work import composed

    file = [] if arguments.model_file is None else [f"model.path={joined(arguments.model_file)}"]
    checkpoint = instantiate(composed(f"model={arguments.model}", *file).model)
    tokenizer, config = checkpoint.load_tokenizer(), checkpoint.load_config()

    def load(samples: int, seed: int) -> Any:
        settings = [f"data.seqlen={arguments.seqlen}", f"data.limit_windows={arguments.windows}", f"seed={seed}"]
        spec = instantiate(composed(*arguments.data, *settings, f"data.samples={samples}").data)
        return spec.load(tokenizer, vocab_size=config.vocab_size, seqlen_limit=config.max_position_embeddings)

    data = load(arguments.samples, seed=0)
    found = {"calibration": data.calibration, "evaluation": data.evaluation}
    found["training"] = load(TRAINING_SAMPLES, seed=1).calibration
    folder.mkdir(parents=True, exist_ok=True)
    for name, tokens in found.items():
        np.save(folder / f"{name}.npy", tokens.numpy().astype(np.int32))
