"""Runs steps, each in a process of its own with a time limit, and writes down what they find as it comes."""

import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OK, FAILED, TIMED_OUT, SKIPPED = "ok", "failed", "timed out", "skipped"
LOG, RESULTS = "log.txt", "results.jsonl"


@dataclass(frozen=True)
class Step:
    """Something to do and to measure.

    Args:
        name: of the step.
        work: does it in a process of its own; returns what it found as JSON.
        limit: seconds after which it is ended.
    """

    name: str
    work: Callable[[], dict[str, Any]]
    limit: float


@dataclass
class _Running:
    step: Step
    process: Any
    answer: Any
    started: float = field(default_factory=time.monotonic)

    @property
    def ends(self) -> float:
        return self.started + self.step.limit


def run_all(steps: Iterable[Step], output: Path, seconds: float) -> list[dict[str, Any]]:
    """Runs the steps in their order; one that fails, or takes too long, keeps no other from running.

    The processes are forks of this one, which has imported what takes long, unless an import has asked for GPUs: forks
    could not use one then, and each process starts anew.

    Args:
        steps: what to do.
        output: a folder for `results.jsonl`, a line for each step at its end, and `log.txt`, what the steps print.
        seconds: in all; steps that would begin later are skipped, and those that are running then are ended.

    Returns:
        The lines of `results.jsonl`: ``step``, ``status``, ``seconds`` and what the step returned, or ``error``.
    """
    end = time.monotonic() + seconds
    context = multiprocessing.get_context("fork" if _forks_can_use_gpus() else "spawn")
    lines: list[dict[str, Any]] = []

    def note(step: Step, status: str, taken: float, found: dict[str, Any]) -> None:
        line = {"step": step.name, "status": status, "seconds": round(taken, 2), **found}
        lines.append(line)
        with (output / RESULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        sys.stdout.write(f"{step.name}: {status} in {taken:.1f} s {found.get('error', '')}\n")
        sys.stdout.flush()

    for step in steps:
        if time.monotonic() >= end:
            note(step, SKIPPED, 0.0, {"error": f"no time was left of {seconds:.0f} s"})
            continue
        running = _start(step, output, context)
        deadline = min(running.ends, end)
        while (finished := _finish(running, deadline)) is None:
            multiprocessing.connection.wait(
                [running.process.sentinel, running.answer], timeout=max(0.0, deadline - time.monotonic())
            )
        note(step, *finished)
    return lines


def _forks_can_use_gpus() -> bool:
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    probe = multiprocessing.get_context("fork").Process(target=_probe, args=(sender,))
    probe.start()
    can: bool = receiver.recv()
    probe.join()
    return can


def _probe(sender: Any) -> None:
    import torch

    sender.send(not torch.cuda._is_in_bad_fork())


def _start(step: Step, output: Path, context: Any) -> _Running:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(step, sender, output / LOG), name=step.name)
    process.start()
    sender.close()
    return _Running(step, process, receiver)


def _child(step: Step, sender: Any, log: Path) -> None:
    """Does the work, with all that it prints in the log."""
    os.setpgid(0, 0)  # so that what it starts ends with it
    sys.stdout = sys.stderr = log.open("a", buffering=1, encoding="utf-8")
    os.dup2(sys.stdout.fileno(), 1)
    os.dup2(sys.stdout.fileno(), 2)
    sys.stdout.write(f"\n===== {step.name} =====\n")
    try:
        answer = (OK, step.work())
    except BaseException as error:
        traceback.print_exc()
        answer = (FAILED, {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"})
    sender.send(answer)
    sys.stdout.flush()
    os._exit(0)  # a GPU that has failed can keep an orderly end from coming


def _finish(each: _Running, deadline: float) -> tuple[str, float, dict[str, Any]] | None:
    """Returns how a step ended, or None while it goes on."""
    taken = time.monotonic() - each.started
    answered = each.answer.poll()
    if not answered and each.process.is_alive() and time.monotonic() < deadline:
        return None
    try:
        status, found = each.answer.recv() if answered else (None, {})
    except EOFError:
        status, found = None, {}
    if status is None and each.process.is_alive():
        status, found = TIMED_OUT, {"error": f"took longer than {deadline - each.started:.0f} s"}
    _end(each.process)
    if status is None:
        status, found = FAILED, {"error": f"the process ended with {each.process.exitcode}"}
    return status, taken, found


def _end(process: Any) -> None:
    """Ends a process and those that it started."""
    process.join(2)
    if process.is_alive():
        try:
            os.killpg(process.pid, 9)
        except (ProcessLookupError, PermissionError):
            process.kill()
        process.join()
