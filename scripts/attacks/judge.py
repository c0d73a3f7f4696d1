"""Says whether a command ended as it should: finished, or refused with one message and nothing half-written."""

import hashlib
import json
import math
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from attacks.cases import Case
from attacks.forked import Ended

SECONDS = 10.0
"""In which a command is refused, on a machine that has nothing else to do."""
_WORDS = (
    "NoneType", "object has no attribute", "unexpected keyword", "positional argument", "index out of range",
    "not supported between", "object is not", "must be real number", "unhashable", "not subscriptable", "KeyError",
    "TypeError", "AttributeError", "AssertionError", "RecursionError", "IndexError", "unpack",
    "invalid literal", "UnicodeEncodeError", "<class ", "LexerNoViable", "extraneous input", "mismatched input",
)  # fmt: skip
"""Of messages that a library wrote for programmers."""
_SHOWS = re.compile(r"^(--?(help|h|cfg|c|info|i|version|hydra-help|shell-completion)\b|--?(cfg|info)=)")


def state(folder: Path) -> dict[str, str]:
    """What lies in a folder: digests of files, other kinds by name."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        name = path.relative_to(folder).as_posix()
        if stat.S_ISREG(mode):
            found[name] = hashlib.blake2b(path.read_bytes()).hexdigest()
        elif not stat.S_ISDIR(mode):
            found[name] = f"kind {stat.S_IFMT(mode)}"
    return found


def findings(case: Case, ended: Ended, folder: Path, before: dict[str, str], scale: float) -> tuple[str, list[str]]:
    """Judges one case.

    Args:
        case: that was tried.
        ended: how the command ended.
        folder: of the case, as the command left it.
        before: `state` of the folder before the command.
        scale: how much longer things take on this machine at present than they would if it were idle.

    Returns:
        A word for how it ended, and everything that is wrong.
    """
    after = state(folder)
    word = {0: "finished", 1: "failed", 2: "refused"}.get(ended.status, "broke")  # type: ignore[arg-type]
    wrong = list(_changes(case, before, after))
    if ended.status is None:
        return "at work", [*wrong, f"still at work after {ended.seconds:.0f} s"]
    if word == "broke":
        wrong.append(f"ended with {ended.status}")
    if "Traceback (most recent" in ended.err + ended.out:
        wrong.append(f"traceback: {_last_line(ended.err)}")
        return word, wrong
    records = list(_records(folder, before, after))
    if ended.status == 0:
        wrong += _of_success(case, records)
    else:
        wrong += _of_refusal(case, ended, records, scale)
        models = [name for name in after if re.match(r"(run|sweep/\d+)/model/", name) and name not in before]
        if models and not any(status == "finished" for status, _ in records):
            wrong.append(f"half-written: {models[0]}")
    wrong += [f"left behind: {name}" for name in after if name not in before and re.search(r"\.(tmp|part)\w*$", name)]
    return word, wrong


def _changes(case: Case, before: dict[str, str], after: dict[str, str]) -> Iterator[str]:
    for name, digest in before.items():
        if after.get(name) != digest and not any(name == own or name.startswith(f"{own}/") for own in case.own):
            yield f"a file of the user is {'changed' if name in after else 'gone'}: {name}"


def _records(folder: Path, before: dict[str, str], after: dict[str, str]) -> Iterator[tuple[str, dict]]:  # type: ignore[type-arg]
    """Status and content of each record that is new."""
    for name, digest in after.items():
        if name.rpartition("/")[2] == "record.json" and before.get(name) != digest and not name.startswith("cache/"):
            try:
                record = json.loads((folder / name).read_bytes())
                yield record["status"], record
            except (ValueError, KeyError, TypeError):
                yield "torn", {}


def _of_success(case: Case, records: list[tuple[str, dict]]) -> Iterator[str]:  # type: ignore[type-arg]
    shows = any(_SHOWS.match(word) for word in case.arguments)
    helps = int(case.environment.get("RANK", "0").strip() or 0) if case.environment.get("RANK", "0").isdigit() else 0
    if case.program != "prune-lab" or shows or helps:
        return
    if not records and "hydra.run.dir=done" not in case.arguments and case.kind != "studies":
        yield "status 0, but no record"
    for status, record in records:
        if status != "finished":
            yield f"status 0, and a record that says {status}"
            continue
        odd = [name for name, value in record["metrics"].items() if not math.isfinite(value)]
        if odd:
            yield f"not finite: {', '.join(odd)}"
        if case.kind != "models":  # weights that are zero already count, too
            yield from _of_sparsity(record)


def _of_sparsity(record: dict) -> Iterator[str]:  # type: ignore[type-arg]
    """Compares what was pruned with the level that was asked for, where that alone decides."""
    found, config = record["metrics"].get("prune/sparsity"), record["config"]
    target, plain = config.get("sparsity") or {}, (config.get("method") or {}).get("_target_", "")
    if found is None or target.get("pattern") != "unstructured" or target.get("layers") or "Dense" in plain:
        return
    if (
        plain.endswith(("Magnitude", "Wanda", "SparseGPT", "RIA", "Random"))
        and isinstance(target.get("level"), float | int)
        and abs(found - target["level"]) > 0.02
    ):
        yield f"sparsity {found}, but {target['level']} was asked for"


def _of_refusal(case: Case, ended: Ended, records: list[tuple[str, dict]], scale: float) -> Iterator[str]:  # type: ignore[type-arg]
    if ended.status == 2 and ended.seconds > SECONDS * scale:
        yield f"refused after {ended.seconds:.1f} s"
    many = "-m" in case.arguments or "--multirun" in case.arguments or case.program == "prune-lab-table"
    if not many and any(status != "failed" for status, _ in records):
        yield f"status {ended.status}, and a record that says {records[0][0]}"
    said = re.findall(rf"^{case.program}: (?s:.*)", ended.err, re.MULTILINE)
    usage = case.program != "prune-lab" and "usage: " in ended.err
    if not said and not usage and not (case.program == "prune-lab-table" and ended.status == 1):
        yield f"no message: {_last_line(ended.err)}"
    for message in said:
        if len(re.findall(rf"^{case.program}: ", message, re.MULTILINE)) > 1:
            yield "more than one message"
        if len(message) > 2500:
            yield f"a message of {len(message)} characters"
        yield from (f"{word!r} in the message: {message[:300]}" for word in _WORDS if word in message)


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
