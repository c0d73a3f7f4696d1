"""Runs the tests with the oldest and the newest release of each main dependency that pyproject.toml allows.

    python scripts/versions.py                          # all packages of PARTS below, the quick part of the tests
    python scripts/versions.py transformers accelerate  # these packages; any dependency of pyproject.toml is one
    python scripts/versions.py transformers==5.20.0     # one release
    python scripts/versions.py --all transformers       # the whole suite, instead of the quick part

The ranges are read from pyproject.toml, and the releases from the index that pip is configured to use. The quick part
is CORE, and what PARTS names for the package. It is run with the versions that are installed, too, before any other: a
test that fails there fails for another reason than a release.

Each release gets an environment of its own, on top of the one that runs this script and without changing it: pip
installs the release there, and whatever else it needs in another version; all other packages are those installed
below. What pip says and the output of the tests are in the folder `--output`, one log each. An environment is removed
after its tests.

PyTorch is installed without its dependencies, because most of its builds for Linux ask for gigabytes of CUDA libraries.
Such builds cannot be imported without them, and the table says so; `--torch-dependencies` installs them. An index of
builds for CPUs can be given to pip as always (`PIP_EXTRA_INDEX_URL`).

The exit status is 1 if tests failed or a release cannot be installed.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import distributions, version
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).absolute().parents[1]
PYPROJECT = ROOT / "pyproject.toml"
CORE = (  # every family of models, reading models, and runs that go on from a pruned one
    "tests/unit/models/test_families.py",
    "tests/unit/models/test_view.py",
    "tests/unit/models/test_load.py",
    "tests/end_to_end/test_sparse_model.py",
)
TRAINING = (
    "tests/unit/training/test_loop.py",
    "tests/unit/training/test_states.py",
    "tests/end_to_end/test_finetune.py",
)
COMMAND = (
    "tests/unit/sweep/test_compose.py",
    "tests/unit/run/test_hydra_vetting.py",
    "tests/end_to_end/test_command.py",
)
HARNESS = ("tests/unit/evaluation/test_harness.py", "tests/unit/evaluation/test_task_copies.py")
PARTS = {  # the main dependencies, and the tests of what is built on them
    "torch": ("tests/unit/pruning/calibration/test_blocks.py", "tests/unit/pruning/test_live_mask.py", *TRAINING),
    "transformers": ("tests/unit/models", "tests/unit/evaluation/test_decoding.py"),
    "tokenizers": ("tests/unit/models/test_gguf.py", "tests/unit/data/test_text.py", "tests/unit/data/test_bos.py"),
    "huggingface-hub": (
        "tests/unit/models/test_hub.py",
        "tests/unit/export/test_hub.py",
        "tests/unit/export/test_card.py",
    ),
    "safetensors": ("tests/unit/models/test_weight_files.py", "tests/unit/export/test_export.py"),
    "accelerate": ("tests/unit/training/test_accelerator.py", *TRAINING),
    "peft": ("tests/unit/pruning/test_finetune.py", "tests/end_to_end/test_finetune.py"),
    "hydra-core": COMMAND,
    "omegaconf": COMMAND,
    "optuna": ("tests/unit/sweep/search",),
    "lm-eval": (*HARNESS, "tests/unit/evaluation/test_harness_agreement.py", "tests/end_to_end/test_tasks.py"),
    "datasets": (*HARNESS, "tests/unit/data/test_hub_dataset.py", "tests/unit/data/test_documents.py"),
    "gguf": ("tests/unit/models/test_gguf.py", "tests/unit/export/test_gguf.py"),
    "numpy": ("tests/unit/data/test_arrays.py", "tests/unit/data/test_tokens.py"),
}
ENDS = ("oldest", "newest")
INSTALLED = "what is installed"


@dataclass(frozen=True)
class Trial:
    """One release, and what the tests said of it."""

    package: str
    end: str
    version: str
    result: str
    others: str = ""
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Nothing failed."""
        return re.fullmatch(r"\d+ passed", self.result) is not None


def read_requirements(text: str) -> dict[str, Requirement]:
    """All requirements of a pyproject.toml that hold here, with those of its extras, by canonical name.

    Args:
        text: the file's contents.
    """
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    project = tomllib.loads(text)["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    found: dict[str, Requirement] = {}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        holds = requirement.marker is None or requirement.marker.evaluate({**default_environment(), "extra": ""})
        if name == canonicalize_name(project["name"]) or not holds:
            continue
        if name in found and found[name].specifier != requirement.specifier:
            raise SystemExit(
                f"pyproject.toml: {name} has two ranges: {found[name].specifier} and {requirement.specifier}"
            )
        found[name] = requirement
    return found


def releases_of(package: str) -> list[Version]:
    """The releases on the index that this Python can have, oldest first.

    Raises:
        SystemExit: pip found none.
    """
    command = [sys.executable, "-m", "pip", "index", "versions", package]
    answer = subprocess.run(command, capture_output=True, text=True)
    line = re.search(r"^Available versions: (.*)$", answer.stdout, re.MULTILINE)
    if line is None:
        raise SystemExit(f"{package}: pip index found no release.\n{answer.stderr.strip()}")
    return sorted(map(Version, line[1].split(", ")))


def ends_of(requirement: Requirement) -> dict[str, str]:
    """The oldest and the newest release that a requirement allows, and what is newer than it allows, if anything is.

    A build of a release that has a local part (`2.13.0+cpu`) counts as the release.

    Raises:
        SystemExit: no release on the index is within the range.
    """
    releases = sorted({Version(release.public) for release in releases_of(requirement.name)})
    allowed = list(requirement.specifier.filter(releases))
    if not allowed:
        raise SystemExit(f"{requirement}: no such release; the index has {releases[0]} to {releases[-1]}")
    beyond = {"beyond": str(releases[-1])} if releases[-1] > allowed[-1] else {}
    return {"oldest": str(allowed[0]), "newest": str(allowed[-1]), **beyond}


def make_environment(folder: Path) -> Path:
    """An environment that sees the packages of the running one below its own; returns its interpreter."""
    venv.create(folder, clear=True, with_pip=False)
    below = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    [own] = folder.glob("lib/python*/site-packages")
    lines = (f"import site; site.addsitedir({path!r})\n" for path in below)  # .pth files there count, too
    (own / "below.pth").write_text("".join(lines), encoding="utf-8")
    return folder / "bin" / "python"


def install(python: Path, package: str, release: str, log: Path, *, torch_dependencies: bool) -> str:
    """Installs a release, and others where it asks for them; returns what went wrong, or nothing.

    All direct dependencies are named along, so that pip finds versions of them that go together.
    """
    command = [str(python), "-m", "pip", "install", "--disable-pip-version-check", f"{package}=={release}"]
    if package == "torch":
        command += [] if torch_dependencies else ["--no-deps"]
    else:
        requirements = read_requirements(PYPROJECT.read_text(encoding="utf-8"))
        installed = {canonicalize_name(found.metadata["Name"]) for found in distributions()}
        command += [str(requirements[name]) for name in requirements.keys() & installed - {package, "torch"}]
        command.append(f"torch=={Version(version('torch')).public}")
    with log.open("w", encoding="utf-8") as file:
        status = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT).returncode
    errors = re.findall(r"^ERROR: (.*)$", log.read_text(encoding="utf-8"), re.MULTILINE)
    if status:
        return f"not installable: {errors[0] if errors else 'pip failed'}"
    tried = subprocess.run([python, "-c", "import torch"], capture_output=True, text=True)
    return f"not importable: {tried.stderr.strip().splitlines()[-1]}" if tried.returncode else ""


def changed(folder: Path, package: str) -> str:
    """The other packages that came with a release, with their versions."""
    [own] = folder.glob("lib/python*/site-packages")
    found = {canonicalize_name(one.metadata["Name"]): one.version for one in distributions(path=[str(own)])}
    return ", ".join(f"{name} {found[name]}" for name in sorted(found) if name != package)


def closing_words(text: str, status: int) -> str:
    """How many tests passed and failed, from the last line of what pytest said."""
    counts = re.findall(r"\d+ (?:passed|failed|errors?)\b", text.rstrip().rpartition("\n")[2])
    return ", ".join(counts) or f"pytest ended with {status}"


def run_tests(python: Path, tests: list[str], log: Path) -> str:
    """Runs them from the top of the checkout, and returns how they ended."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": paths}
    # -W default: a warning of another version is no fault of the tests; the log has them.
    command = [
        str(python),
        "-m",
        "pytest",
        "-q",
        "-n",
        "logical",
        "--maxprocesses",
        "4",
        "--dist",
        "worksteal",
        "-W",
        "default",
    ]
    with log.open("a", encoding="utf-8") as file:
        status = subprocess.run(
            [*command, *tests], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
        ).returncode
    return closing_words(log.read_text(encoding="utf-8"), status)


def try_release(package: str, end: str, release: str, tests: list[str], arguments: argparse.Namespace) -> Trial:
    """Makes the environment, runs the tests in it, and removes it."""
    log = arguments.output / f"{package}-{release}.log".replace(" ", "_")
    folder = Path(tempfile.mkdtemp(prefix="versions-", dir=arguments.environments))
    start = time.perf_counter()
    try:
        python = make_environment(folder)
        fault = ""
        if package != INSTALLED:
            fault = install(python, package, release, log, torch_dependencies=arguments.torch_dependencies)
        result = fault or run_tests(python, tests, log)
        return Trial(package, end, release, result, changed(folder, package), time.perf_counter() - start)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def trials(arguments: argparse.Namespace) -> Iterator[Trial]:
    """What is installed first, then every package's oldest and newest release."""
    requirements = read_requirements(PYPROJECT.read_text(encoding="utf-8"))
    wanted = {canonicalize_name(name): release for name, _, release in (p.partition("==") for p in arguments.packages)}
    unknown = [name for name in wanted if name not in requirements]
    if unknown:
        raise SystemExit(f"no dependency of pyproject.toml: {', '.join(unknown)}; there are {', '.join(requirements)}")
    parts = {name: sorted({*CORE, *PARTS.get(name, ())}) for name in wanted}
    tests = sorted({path for part in parts.values() for path in part})
    if not arguments.skip_installed:
        yield try_release(INSTALLED, "", "", [] if arguments.all else tests, arguments)
    for package, release in wanted.items():
        ends = {"": release} if release else ends_of(requirements[package])
        for end in (end for end in ends if end in ("", *arguments.ends)):
            trial = try_release(package, end, ends[end], [] if arguments.all else parts[package], arguments)
            beyond = f"{ends['beyond']} is out" if end == "newest" and "beyond" in ends else ""
            yield replace(trial, others=", ".join(filter(None, (trial.others, beyond))))


def row(*cells: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Reads the command line, tries the releases, and prints a line for each as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "packages", nargs="*", metavar="PACKAGE[==RELEASE]", default=list(PARTS), help=f"default: {' '.join(PARTS)}"
    )
    parser.add_argument("--all", action="store_true", help="run all tests, instead of the quick part")
    parser.add_argument("--ends", nargs="+", choices=ENDS, default=ENDS, help="default: both")
    parser.add_argument(
        "--skip-installed", action="store_true", help="do not run the tests with what is installed first"
    )
    parser.add_argument("--torch-dependencies", action="store_true", help="install what a build of PyTorch asks for")
    parser.add_argument("--output", type=Path, metavar="DIR", default=ROOT / "build" / "versions", help="for the logs")
    parser.add_argument(
        "--environments", type=Path, metavar="DIR", help="where environments are made (default: TMPDIR)"
    )
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    print(row("package", "", "version", "tests", "seconds", "with"), row(*["---"] * 6), sep="\n", flush=True)
    passed = True
    for trial in trials(arguments):
        cells = (trial.package, trial.end, trial.version, trial.result, f"{trial.seconds:.0f}", trial.others)
        print(row(*cells), flush=True)
        passed &= trial.passed
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
