"""Writes what the steps found as Markdown."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SAME_TYPE, OTHER_TYPE = 0.02, 0.05
"""By how much perplexities may differ from the CPU's in the same type, and from its float32: shares of the latter."""

Line = Mapping[str, Any]


def compare(lines: Sequence[Line], carried: Iterable[Line]) -> list[dict[str, Any]]:
    """Puts the CPU's numbers beside those of the device.

    Args:
        lines: of this machine; those of steps ``on the CPU`` are compared with.
        carried: of an earlier run on a CPU; they count where model and tokens are the same.

    Returns:
        A row for each pruning on the device: the line with ``reference`` (the CPU's line, or None), ``difference`` and
        ``agrees`` (None without a reference).
    """
    ours = [line for line in lines if "perplexity" in line and "method" in line and not _is_reference(line)]
    known = [line for line in lines if _is_reference(line) and "perplexity" in line]
    known += [line for line in carried if "method" in line and line.get("device") == "cpu" and "perplexity" in line]
    rows = []
    for line in ours:
        alike = [
            other for other in known if all(other[key] == line[key] for key in ("method", "known_by")) and other != line
        ]
        same = [other for other in alike if other["dtype"] == line["dtype"]]
        float32 = [other for other in alike if other["dtype"] == "float32"]
        reference = next(iter([*same, *float32]), None)
        difference = None if reference is None else line["perplexity"] / reference["perplexity"] - 1
        agrees = None if difference is None else abs(difference) <= (SAME_TYPE if same else OTHER_TYPE)
        rows.append({**line, "reference": reference, "difference": difference, "agrees": agrees})
    return rows


def _is_reference(line: Line) -> bool:
    return str(line["step"]).startswith("on the CPU: ")


def markdown(lines: Sequence[Line], rows: Sequence[Mapping[str, Any]], settings: str) -> str:
    """All of it."""
    parts = [_machine(lines, settings), _methods(rows), _others(lines), _problems(lines, rows)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _machine(lines: Sequence[Line], settings: str) -> str:
    about = next((line for line in lines if "versions" in line), None)
    if about is None:
        return f"The machine could not be described. {settings}"
    versions = ", ".join(f"{name} {number}" for name, number in about["versions"].items())
    card = about["device"]
    if "driver" in about:
        card += f" ({about['memory_gb']} GB), driver {about['driver']}, CUDA {about['cuda']}"
    rates = ", ".join(f"{rate:g} in {name}" for name, rate in about["tflops"].items())
    machine = f"{card}; {about['cores']} cores; {versions}; commit {about['commit'] or 'unknown'}."
    return f"{machine} Matrix products: {rates} TFLOP/s. {settings}"


def _methods(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return ""
    head = ["method", "type", "perplexity", "CPU's", "CPU's type", "difference", "s", "CPU's s", "peak MB"]
    body = []
    for row in rows:
        reference = row["reference"] or {}
        body.append(
            [
                row["method"],
                row["dtype"],
                f"{row['perplexity']:.4g}",
                f"{reference['perplexity']:.4g}" if reference else "",
                reference.get("dtype", ""),
                "" if row["difference"] is None else f"{row['difference']:+.2%}" + ("" if row["agrees"] else " (!)"),
                f"{row['prune_seconds']:.2f}",
                f"{reference['prune_seconds']:.1f}" if reference else "",
                f"{row['peak_mb']:.0f}",
            ]
        )
    return _grid(head, body)


def _others(lines: Sequence[Line]) -> str:
    hidden = {"step", "status", "seconds", "error", "versions", "known_by"}
    body = []
    for line in lines:
        if line["status"] != "ok" or "versions" in line or ("method" in line and "perplexity" in line):
            continue
        found = ", ".join(f"{name} {_short(value)}" for name, value in line.items() if name not in hidden)
        body.append([str(line["step"]), f"{line['seconds']:.0f}", found])
    return _grid(["step", "s", "found"], body) if body else ""


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "(" + ", ".join(f"{name} {_short(each)}" for name, each in value.items()) + ")"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _problems(lines: Sequence[Line], rows: Sequence[Mapping[str, Any]]) -> str:
    ended = [line for line in lines if line["status"] not in ("ok", "skipped")]
    told = [f"- {line['step']}: {line['status']}. {line.get('error', '')}" for line in ended]
    if left_out := [str(line["step"]) for line in lines if line["status"] == "skipped"]:
        told.append(f"- left out for want of time: {', '.join(left_out)}")
    told += [
        f"- {row['method']} in {row['dtype']}: perplexity differs by {row['difference']:+.2%} from the CPU's"
        for row in rows
        if row["agrees"] is False
    ]
    return "What did not go well:\n\n" + "\n".join(told) if told else "All steps went well."


def _grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    numbers = {"perplexity", "CPU's", "difference", "s", "CPU's s", "peak MB"}
    rule = ["---:" if name in numbers else "---" for name in head]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rule, *body])
