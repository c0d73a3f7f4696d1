"""The course of a search: what it goes on from, a table, a plot, and lines in the log."""

import json
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prune_lab.pruning.solvers.evolution import Generation, State
from prune_lab.utils.extras import has_plots
from prune_lab.utils.files import write_csv, write_json
from prune_lab.utils.svg import svg_writer
from prune_lab.utils.text import duration

logger = logging.getLogger(__name__)

COLUMNS = ("generation", *Generation._fields[1:], "seconds")
_LINES = 10  # in the log, of a whole search
_STATE = "search.json"  # of the first round; search-2.json of the second, and so on


@dataclass
class Course:
    """Notes every generation; a search that is interrupted goes on behind the last one.

    Args:
        generations: in total, of all rounds.
        measure: what a fitness is called, with its unit.
        folder: for the state; ``None``: none is kept.
        table: a CSV file with a row for each generation; ``None``: none is written.
        plot: an SVG file of it.
    """

    generations: int
    measure: str
    folder: Path | None = None
    table: Path | None = None
    plot: Path | None = None
    _settings: str = field(default="", init=False)  # of the round that is under way, and its file
    _name: str = field(default=_STATE, init=False)
    _seconds: list[float] = field(default_factory=list)  # of each generation
    _last: float = field(default_factory=time.perf_counter)

    def begin(self, start: State, settings: str, number: int = 1) -> State:
        """Where a round of the search stands: at its start, or where an interrupted one was.

        Args:
            start: with the history of the rounds before.
            settings: a digest of all that decides the round but for its length; a state of others is not taken.
            number: of the round, from 1.
        """
        self._settings = settings
        self._name = _STATE if number == 1 else _STATE.replace(".", f"-{number}.")
        found = self._read()
        if found is not None:
            logger.info("the search goes on behind generation %d", found.generation)
        return start if found is None else found

    def start_clock(self) -> None:
        """Is called right before the next generation."""
        self._last = time.perf_counter()

    def note(self, state: State) -> None:
        """Writes down what a generation has given; says so now and then."""
        now = time.perf_counter()
        self._seconds.append(now - self._last)
        self._last = now
        if self.folder is not None:
            write_json(self.folder / self._name, self._plain(state))
        if self.table is not None:
            write_csv(self.table, COLUMNS, self.rows(state))
        number = state.generation
        if number % -(-self.generations // _LINES) == 0 or number == self.generations:
            self._say(state)

    def finish(self, state: State) -> None:
        """Draws the plot."""
        if self.plot is not None and state.history and has_plots():
            draw_course(state.history, self.measure)(self.plot)

    def rows(self, state: State) -> list[Sequence[object]]:
        """A row for each generation, in `COLUMNS`; ``seconds`` are those since the search began, without breaks."""
        rows: list[Sequence[object]] = []
        passed = 0.0
        for each, seconds in zip(state.history, self._seconds, strict=True):
            passed += seconds
            values = [float(f"{value:.6g}") if isinstance(value, float) else value for value in each]
            rows.append((*values, round(passed, 2)))
        return rows

    def _say(self, state: State) -> None:
        last, done = state.history[-1], len(self._seconds)
        left = duration(sum(self._seconds) / done * (self.generations - state.generation))
        logger.info(
            "generation %d of %d: %s %.4f, of its parent %.4f; %d were better than their parent%s",
            *(state.generation, self.generations, self.measure, last.fitness, last.parent_fitness),
            sum(each.improved for each in state.history),
            f"; {left} left" if state.generation < self.generations else "",
        )

    def _plain(self, state: State) -> dict[str, object]:
        return {
            "settings": self._settings,
            "parent": list(state.parent),
            "history": [list(each) for each in state.history],
            "seconds": self._seconds,
        }

    def _read(self) -> State | None:
        if self.folder is None:
            return None
        path = self.folder / self._name
        try:
            plain = json.loads(path.read_text(encoding="utf-8"))
            if plain["settings"] != self._settings:
                return None
            state = State(tuple(plain["parent"]), [Generation(*each) for each in plain["history"]])
            self._seconds = list(plain["seconds"])
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            logger.warning("%s cannot be read, the search begins anew: %s", path, error)
            return None
        return state


def draw_course(history: Sequence[Generation], measure: str) -> Callable[[Path], None]:
    """Draws the fitness of each generation's winner and of its parent, on the same minibatch, over evaluations."""
    from matplotlib.figure import Figure  # an extra

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axis = figure.subplots()
    done = [each.evaluations for each in history]
    axis.plot(done, [each.parent_fitness for each in history], ".", markersize=3, color="grey", label="parent")
    axis.plot(done, [each.fitness for each in history], "-", linewidth=1, label="best of the generation")
    axis.set(xlabel="candidates scored", ylabel=measure)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")
    return svg_writer(figure, "allocation")
