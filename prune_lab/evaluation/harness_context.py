"""What the harness needs around it: silence in logs, seeds, and a quick answer about the network."""

import contextlib
import functools
import io
import logging
import os
import random
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

PROBE_SECONDS = 5.0
BOOTSTRAPS = 1000
"""For standard errors that have no formula, such as those of perplexities; the harness' own front end makes 100,000."""
_IN_PROCESS = "DISABLE_MULTIPROC"
LOUD = ("lm_eval", "datasets", "huggingface_hub", "evaluate", "transformers")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Lets only errors of the harness and its libraries through, and progress bars only onto a terminal."""
    levels = {name: logging.getLogger(name).level for name in LOUD}
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        for module in ("lm_eval", "datasets", "evaluate", "multiprocess", "dill"):
            warnings.filterwarnings("ignore", module=rf"{module}(\.|$)")
        if not sys.stderr.isatty():  # some of the harness' bars have no switch
            stack.enter_context(
                contextlib.redirect_stderr(stack.enter_context(open(os.devnull, "w", encoding="utf-8")))
            )
        try:
            for name in LOUD:
                logging.getLogger(name).setLevel(logging.ERROR)
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@contextlib.contextmanager
def seeded(python_seed: int, numpy_seed: int, torch_seed: int) -> Iterator[None]:
    """Seeds the random numbers of Python, numpy and torch, which tasks draw from, and puts them back afterwards.

    Tasks draw on the host, and GPUs are left alone: asking each for its numbers would start every one of the machine.
    """
    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(python_seed)
            np.random.seed(numpy_seed)
            torch.default_generator.manual_seed(torch_seed)
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


@contextlib.contextmanager
def standard_errors(wanted: bool) -> Iterator[dict[str, Any]]:
    """Gives the arguments by which the harness estimates standard errors, in this process and in silence, or does not.

    Args:
        wanted: whether it does.
    """
    before = os.environ.get(_IN_PROCESS)
    os.environ[_IN_PROCESS] = "1"
    try:
        with contextlib.redirect_stdout(io.StringIO()) if wanted else contextlib.nullcontext():
            yield {"bootstrap_iters": BOOTSTRAPS if wanted else 0}
    finally:
        if before is None:
            del os.environ[_IN_PROCESS]
        else:
            os.environ[_IN_PROCESS] = before


@contextlib.contextmanager
def offline_if_unreachable(*, needed: bool) -> Iterator[None]:
    """Turns the hub's clients to their caches if the hub does not answer: by themselves they retry for half a minute.

    Args:
        needed: whether anything inside may ask the hub at all; without, nothing is asked or changed.
    """
    if not needed:
        yield
        return
    import datasets
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    try:
        if not any(before) and not _answers(constants.ENDPOINT):
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


@functools.cache
def _answers(address: str) -> bool:
    """Whether a server answers at all, be it with an error."""
    try:
        with urllib.request.urlopen(urllib.request.Request(address, method="HEAD"), timeout=PROBE_SECONDS):
            return True
    except urllib.error.HTTPError:
        return True
    except OSError as error:
        return "SSL" in str(error)  # the clients bring their own certificates, and say more about what is wrong
