"""Puts small faults into sources, one at a time, and looks whether a test fails.

Third-party packages are imported once; every fault is tried in a fork, which gets the faulty module by an import hook,
so that nothing is written into the tree. One run without faults notes the time of each test and the functions that it
calls; a fault in a function is shown to the tests that call it, the quickest first, one outside of functions to all
tests of its file, up to the first failure or a number of seconds. Tests of a file are those of the same place in
`tests/unit`, all of `tests/unit` and `tests/reference` that name its module, or a module that imports it, those of
defaults, and those of what every method promises.

Results are lines of JSON in a file outside of the tree. What was found before in the same source is not tried again;
what survived is, when its tests have changed. Mutation testers on PyPI copy the tree or start a process for every
fault, which costs seconds of imports here.

Example:
    python scripts/mutate.py prune_lab/pruning/solvers/*.py --results /tmp/mutants.jsonl --sample 40 --seed 0
    python scripts/mutate.py --results /tmp/mutants.jsonl --survivors
"""

import argparse
import contextlib
import gc
import hashlib
import importlib
import importlib.abc
import importlib.util
import json
import os
import random
import resource
import select
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.machinery import ModuleSpec, SourceFileLoader
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from mutants import Mutant, count_of, mutants_of

ROOT = Path(__file__).resolve().parents[1]
PRELOADED = (
    "torch", "numpy", "scipy", "transformers", "hypothesis", "omegaconf", "hydra", "safetensors", "tokenizers",
    "huggingface_hub", "accelerate", "peft", "yaml", "xxhash", "filelock", "rich", "tqdm", "_pytest",
)  # fmt: skip
PYTEST = (
    "-q", "-x", "--no-header", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist",
    "-W", "ignore::pytest.PytestAssertRewriteWarning",  # packages were imported before pytest began
)  # fmt: skip
DEFAULTS = ("tests/conf/test_defaults.py",)  # looks at every class that has a YAML
PROMISES = ("tests/contract/test_methods.py", "tests/contract/test_zeros.py")  # of every method that has one
MEMORY = 12 << 30  # bytes of addresses a fork may take


class FaultyModule(importlib.abc.MetaPathFinder):
    """Gives one module the code of a mutant."""

    def __init__(self, module: str, file: Path, code: CodeType):
        self._module, self._file, self._code = module, file, code

    def find_spec(self, fullname: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Finds that module only."""
        if fullname != self._module:
            return None
        code = self._code

        class Loader(SourceFileLoader):
            def get_code(self, fullname: str) -> CodeType:
                return code

        return importlib.util.spec_from_file_location(fullname, self._file, loader=Loader(fullname, str(self._file)))


class Watch:
    """What one run of tests tells: how each ended, how long it took, which functions of some files it called."""

    def __init__(self, files: Sequence[str] = ()):
        self.failed: str | None = None
        self.tests: dict[str, dict[str, Any]] = {}
        self._files = frozenset(files)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Any:
        """Times a test and notes the functions that it calls."""
        called: set[str] = set()

        def note(frame: FrameType, event: str, _argument: object) -> None:
            if event == "call" and frame.f_code.co_filename in self._files:
                called.add(_place(frame.f_code.co_filename, frame.f_code.co_firstlineno))

        start = time.perf_counter()
        if self._files:
            sys.setprofile(note)
        try:
            return (yield)
        finally:
            sys.setprofile(None)
            self.tests[item.nodeid] = {"seconds": round(time.perf_counter() - start, 3), "called": sorted(called)}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Notes the first failure."""
        if report.failed and self.failed is None:
            self.failed = report.nodeid

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A module that cannot be imported fails, too."""
        if report.failed and self.failed is None:
            self.failed = report.nodeid


def _place(file: str, line: int) -> str:
    return f"{file}:{line}"


def in_fork(work: Callable[[], Any], seconds: float) -> Any:
    """Does work in a fork with a time limit, and returns what it returns.

    Raises:
        TimeoutError: the time is over.
        ChildProcessError: the fork ended without a result.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.setsid()
        os.close(reader)
        silent = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(silent, stream)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        try:
            with os.fdopen(writer, "w") as pipe:
                json.dump(work(), pipe)
        finally:
            os._exit(0)
    os.close(writer)
    end, text = time.monotonic() + seconds, b""
    try:
        while select.select([reader], [], [], max(0.0, end - time.monotonic()))[0]:
            part = os.read(reader, 1 << 16)
            if not part and not text:
                raise ChildProcessError("the fork ended without a result")
            if not part:
                return json.loads(text)
            text += part
        raise TimeoutError(f"the fork took longer than {seconds:.0f} s")
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


def module_of(file: Path) -> str:
    """Returns the dotted name of a source below the root."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts)


def tests_of(file: Path) -> list[Path]:
    """Returns the test files that concern a source."""
    module = module_of(file)
    importers = {
        module_of(each)
        for each in (ROOT / "prune_lab").rglob("*.py")
        if each.is_relative_to(file.parents[1]) and _names(_text(each), module)
    }
    own = ROOT / "tests/unit" / file.relative_to(ROOT / "prune_lab").with_name(f"test_{file.name}")
    found = [own] if own.exists() else []
    for test in sorted([*(ROOT / "tests/reference").rglob("test_*.py"), *(ROOT / "tests/unit").rglob("test_*.py")]):
        if test != own and any(_names(_text(test), name) for name in (module, *importers)):
            found.append(test)
    return [*found, *(ROOT / name for name in (*DEFAULTS, *PROMISES))]


@cache
def _text(file: Path) -> str:
    return file.read_text()


def _names(text: str, module: str) -> bool:
    package, _, name = module.rpartition(".")
    return f"{module} " in text or (f"from {package} import" in text and name in text)


def undisturbed(files: Sequence[Path], tests: Sequence[Path], seconds: float, kept: Path | None) -> dict[str, Any]:
    """Runs the tests without a fault, and imports the packages that they need.

    Returns:
        By test, how long it takes and what it calls; taken from ``kept``, if that is there, or kept there.
    """

    def work() -> dict[str, Any]:
        watch = Watch([str(file) for file in files])
        status = pytest.main([*PYTEST, *map(str, tests)], plugins=[watch])
        packages = [name for name in sys.modules if name.partition(".")[0] in PRELOADED]
        return {"status": int(status), "failed": watch.failed, "tests": watch.tests, "packages": packages}

    found = json.loads(kept.read_text()) if kept and kept.exists() else in_fork(work, seconds)
    if found["status"]:
        sys.exit(f"the tests do not pass without a fault: {found['failed']}")
    if kept:
        kept.write_text(json.dumps(found))
    for package in sorted(found["packages"]):
        with contextlib.suppress(Exception):
            importlib.import_module(package)
    gc.freeze()  # a fork that looks for garbage would copy all of it
    return dict(found["tests"])


def concerned(
    mutant: Mutant, file: Path, own: Sequence[Path], tests: dict[str, dict[str, Any]], seconds: float
) -> list[str]:
    """Returns the tests that are shown a fault: at least one, then those within so many seconds.

    Those of defaults are first, then those in files that name the module itself; among them the quickest.
    """
    names = {str(test.relative_to(ROOT)) for test in own}
    direct = {str(test.relative_to(ROOT)) for test in own if _names(_text(test), module_of(file))}
    rank = {**dict.fromkeys(names, 2), **dict.fromkeys(direct, 1), **dict.fromkeys(DEFAULTS, 0)}
    chosen = sorted(
        (rank.get(name.split("::")[0], 2), test["seconds"], name)
        for name, test in tests.items()
        if (_place(str(file), mutant.function) in test["called"] if mutant.function else name.split("::")[0] in names)
    )
    ends = accumulate(each for _, each, _ in chosen)
    within = [name for (_, _, name), end in zip(chosen, ends, strict=True) if end <= seconds]
    return within or [name for _, _, name in chosen[:1]]


def try_mutant(mutant: Mutant, file: Path, tests: list[str], seconds: float) -> dict[str, Any]:
    """Shows a fault to the tests and says what came of it: ``killed``, ``timeout``, ``crashed`` or ``survived``."""

    def work() -> dict[str, Any]:
        code = compile(mutant.tree, str(file), "exec", dont_inherit=True)
        sys.meta_path.insert(0, FaultyModule(module_of(file), file, code))
        watch = Watch()
        status = pytest.main([*PYTEST, *tests], plugins=[watch])
        return {"outcome": "survived" if status == pytest.ExitCode.OK else "killed", "test": watch.failed}

    start = time.perf_counter()
    if not tests:
        return {"outcome": "survived", "test": None, "tests": 0, "seconds": 0.0}
    try:
        found = in_fork(work, seconds)
    except (TimeoutError, ChildProcessError) as error:
        found = {"outcome": "timeout" if isinstance(error, TimeoutError) else "crashed", "test": None}
    return {**found, "tests": len(tests), "seconds": round(time.perf_counter() - start, 1)}


@dataclass(frozen=True)
class Source:
    """A source with the faults that are to be tried in it."""

    file: Path
    mutants: list[Mutant]
    tests: list[Path]
    digests: dict[str, str]  # of the source, and of its tests

    @classmethod
    def of(cls, file: Path, options: argparse.Namespace, known: dict[str, dict[str, Any]]) -> "Source":
        """Draws the sample, and leaves out what is known."""
        text = file.read_text()
        count = count_of(text)
        order = random.Random(f"{options.seed} {file.name}").sample(range(count), count)
        chosen = sorted(order[: options.sample or count])  # a larger sample contains it
        mutants = list(mutants_of(text, str(file.relative_to(ROOT)), chosen))
        tests = tests_of(file)
        digests = {"source": _digest(text), "shown": _digest(*map(_text, tests))}
        left = [each for each in mutants if not _is_known(known.get(each.name, {}), digests)]
        print(f"{file.relative_to(ROOT)}: {len(mutants)} faults, {len(left)} to try, {len(tests)} files of tests")
        return cls(file, left, tests, digests)


def _digest(*texts: str) -> str:
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:16]


def _is_known(line: dict[str, Any], digests: dict[str, str]) -> bool:
    same = {key for key, digest in digests.items() if line.get(key) == digest}
    return "source" in same and ("shown" in same or line["outcome"] != "survived")


def mutate(source: Source, plain: dict[str, Any], options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Tries the faults of one source, and tells what came of them."""
    for mutant in source.mutants:
        chosen = concerned(mutant, source.file, source.tests, plain, options.test_seconds)
        limit = min(options.most_seconds, 30 + 5 * sum(plain[name]["seconds"] for name in chosen))
        found = try_mutant(mutant, source.file, chosen, limit)
        print(f"  {found['outcome']:9}{mutant.name}  {mutant.before}  ->  {mutant.after}", flush=True)
        yield {"name": mutant.name, "before": mutant.before, "after": mutant.after, **source.digests, **found}


def summary(known: dict[str, dict[str, Any]], survivors: bool) -> str:
    """Counts outcomes by file, and lists the survivors where that is asked for."""
    files: dict[str, Counter[str]] = {}
    for name, line in sorted(known.items()):
        files.setdefault(name.partition(":")[0], Counter())[line["outcome"]] += 1
    rows = [*files.items(), ("all", sum(files.values(), Counter()))]
    kinds = ("killed", "timeout", "crashed", "survived")
    text = [f"{'':56}{'faults':>9}" + "".join(f"{kind:>9}" for kind in kinds) + f"{'share':>8}"]
    for name, counts in rows:
        share = counts["survived"] / max(1, counts.total())
        numbers = "".join(f"{counts[kind]:9}" for kind in kinds)
        text.append(f"{name:56}{counts.total():9}{numbers}{share:8.1%}")
    if survivors:
        left = [line for _, line in sorted(known.items()) if line["outcome"] == "survived"]
        text += [f"{line['name']}  {line['before']}  ->  {line['after']}  ({line['tests']} tests)" for line in left]
    return "\n".join(text)


def main() -> None:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="sources of prune_lab")
    parser.add_argument("--results", type=Path, required=True, help="lines of JSON, outside of the tree")
    parser.add_argument("--sample", type=int, default=0, help="so many faults of each file, drawn at random; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument(
        "--timings", type=Path, help="file in which the run without faults is kept; outside of the tree"
    )
    parser.add_argument("--test-seconds", type=float, default=60.0, help="of tests that a fault is shown")
    parser.add_argument("--most-seconds", type=float, default=180.0, help="after which a fault counts as killed")
    parser.add_argument("--survivors", action="store_true", help="lists them in the end")
    options = parser.parse_args()
    if options.results.resolve().is_relative_to(ROOT):
        parser.error("--results lies in the tree; give a file outside of it")
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # looking for plugins costs a tenth of a second in every fork
    sys.dont_write_bytecode, sys.pycache_prefix = False, f"{options.results.resolve()}.pycache"
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT)]
    known = {}
    if options.results.exists():
        known = {line["name"]: line for line in map(json.loads, options.results.read_text().splitlines())}
    sources = [Source.of(file.resolve(), options, known) for file in options.files]
    sources = [source for source in sources if source.mutants]
    if sources:
        tests = sorted({test for source in sources for test in source.tests})
        plain = undisturbed([source.file for source in sources], tests, options.most_seconds * 20, options.timings)
        print(f"{len(plain)} tests, {sum(test['seconds'] for test in plain.values()):.0f} s undisturbed", flush=True)
        for source in sources:
            for line in mutate(source, plain, options):
                known[line["name"]] = line
                with options.results.open("a") as results:
                    results.write(json.dumps(line) + "\n")
    print(summary(known, options.survivors))


if __name__ == "__main__":
    main()
