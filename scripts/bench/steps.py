"""How the seconds of a prune divide into its steps.

The functions that do a step are replaced, for the time of the prune, by ones that tell a timer when they begin and end.
What runs inside another step (a statistic is updated from a hook in a forward pass) counts for the inner one alone, so
that the steps add up to the whole.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial, wraps
from typing import Any

from prune_lab.models.model import PrunableModel
from prune_lab.pruning.calibration.output_error import OutputErrors
from prune_lab.pruning.calibration.statistics import Hessian, InputNorm, Record
from prune_lab.pruning.methods.method import Method
from prune_lab.pruning.solvers import admm, gram, obs

STEPS = ("passes", "statistics", "factorisations", "solving", "rest")
"""Forward passes of blocks; Gram matrices and input norms; Cholesky factors (and inverses, of ALPS and ADMM);
sweeps, selections and updates; and the rest: embeddings, masks, errors of outputs, hidden states that are stored."""
FUNCTIONS = {
    gram.accumulate_upper: "statistics",
    obs.factorize: "factorisations",
    admm.inverse: "factorisations",
    admm.penalised_solver: "factorisations",
    obs.sparsegpt: "solving",
}
METHODS_OF_CLASSES = {
    (Hessian, "update"): "statistics",
    (InputNorm, "update"): "statistics",
    (Record, "update"): "statistics",
    (OutputErrors, "sample"): "rest",  # from the hooks of a forward pass
}


class StepTimer:
    """Seconds of each step, without those of the steps inside it.

    Args:
        clock: gives seconds.

    Attributes:
        seconds: by step, until the last one began or ended; what lies in no other is ``rest``.
    """

    def __init__(self, clock: Callable[[], float]):
        self.seconds = dict.fromkeys(STEPS, 0.0)
        self._clock = clock
        self._running = ["rest"]
        self._since = clock()

    @property
    def running(self) -> str:
        """The innermost step."""
        return self._running[-1]

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """What runs inside belongs to this step."""
        self.stop()
        self._running.append(name)
        try:
            yield
        finally:  # also by the exception that ends a collecting pass
            self.stop()
            self._running.pop()

    def stop(self) -> dict[str, float]:
        """Adds what has passed to the step that is running, and returns the seconds of all."""
        now = self._clock()
        self.seconds[self.running] += now - self._since
        self._since = now
        return self.seconds

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose calls are a step."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self.step(name):
                return function(*args, **kwargs)

        return call


@contextmanager
def watching(timer: StepTimer, model: PrunableModel, method: Method) -> Iterator[None]:
    """What the method does to the model inside is divided into steps."""
    of_classes = dict(METHODS_OF_CLASSES)
    # Of the class: while the arguments of blocks are captured, the objects have another forward pass for a while.
    of_classes |= {(type(block.module), "forward"): "passes" for block in model.blocks}
    statistic = getattr(method, "statistic", None)
    if statistic is not None:
        of_classes[statistic, "update"] = "statistics"
    if hasattr(method, "solve"):
        of_classes[type(method), "solve"] = "solving"
    with ExitStack() as undo:
        for function, step in FUNCTIONS.items():
            _replace_everywhere(undo, function, timer.timed(step, function))
        for (owner, name), step in of_classes.items():
            _replace(undo, owner, name, timer.timed(step, getattr(owner, name)))
        yield


def _replace_everywhere(undo: ExitStack, function: Callable[..., Any], other: Callable[..., Any]) -> None:
    """Under every name that a module has for it: modules import functions by name."""
    undo.callback(_rename, other, function)  # modules that are imported meanwhile have the other one
    _rename(function, other)


def _rename(function: Callable[..., Any], other: Callable[..., Any]) -> None:
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "prune_lab":
            for name in [name for name, value in vars(module).items() if value is function]:
                setattr(module, name, other)


def _replace(undo: ExitStack, owner: type, name: str, other: Callable[..., Any]) -> None:
    """A method of a class, be it the class's own or inherited."""
    own = vars(owner).get(name)
    setattr(owner, name, staticmethod(other) if isinstance(own, classmethod) else other)
    undo.callback(partial(delattr, owner, name) if own is None else partial(setattr, owner, name, own))
