"""What the page is given: compact JSON, in parts, of which the page reads those that are large only when asked."""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from prune_lab.evaluation.metric import MEASURED
from prune_lab.report.page.collect import Collection
from prune_lab.report.page.comparable import comparable
from prune_lab.report.page.flat import metrics_of
from prune_lab.report.page.metrics import axes_of, columns_of, infos_of_runs, label_of, qualities_of
from prune_lab.report.page.run import ATTRIBUTES, Layers, ReportRun, block_and_kind


def payload_of(collection: Collection, watch: float) -> dict[str, Any]:
    """The parts of the page's data by their names.

    Args:
        collection: the runs.
        watch: seconds after which the page loads itself again; 0: never.
    """
    runs, infos = collection.runs, infos_of_runs(collection.runs)
    main = {
        "runs": len(runs),
        "watch": watch,
        "attributes": {name: _encoded([run.attributes[name] for run in runs]) for name in ATTRIBUTES},
        "metrics": {name: [_short(run.metrics.get(name)) for run in runs] for name in metrics_of(runs)},
        "described": {name: [label_of(name, info), info.kind, info.better] for name, info in infos.items()},
        "shown": columns_of(infos),
        "qualities": qualities_of(infos),
        "comparable": comparable(runs, infos),
        "axes": [[title, choices] for title, choices in axes_of(infos)],
        "folders": [run.folder for run in runs],
        "commands": [run.command for run in runs],
        "messages": {number: run.message for number, run in enumerate(runs) if run.message},
        "unreadable": collection.unreadable,
        "open": collection.open,
        "heldOut": {number: _pairs(run.held_out) for number, run in enumerate(runs) if run.held_out},
        "rounds": {number: _pairs(run.rounds) for number, run in enumerate(runs) if run.rounds},
    }
    return {
        "runs": main,
        "settings": _sections([run.settings for run in runs]),
        "protocols": _sections([run.protocol for run in runs]),
        "layers": _layers(runs),
        "continuations": _continuations(runs),
    }


def embedded(value: Any) -> str:
    """JSON that can stand in a ``script`` element: nothing in it ends the element or begins another."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    return text.encode("utf-8", "replace").decode("utf-8")  # half of a surrogate pair has no place in UTF-8


def _short(value: float | None, digits: int = 6) -> float | int | str | None:
    """A number as short as the page needs it; JSON has none for those that are not finite."""
    if value is None:
        return None
    if not math.isfinite(value):
        return str(value)
    if value.is_integer() and abs(value) < 2**53:
        return int(value)
    rounded = float(f"{value:.{digits}g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 2**53 else rounded


def _encoded(values: Sequence[Any]) -> dict[str, Any]:
    """A column as its different values and the place of each in them."""
    different = list(dict.fromkeys(values))
    places = {value: place for place, value in enumerate(different)}
    return {"values": [_plain(value) for value in different], "of": [places[value] for value in values]}


def _pairs(rows: Sequence[Sequence[float]]) -> list[list[Any]]:
    return [[_short(value) for value in row] for row in rows]


def _sections(values: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Runs share most of their protocols and settings, so that each section is kept once."""
    pool = _Pool()
    of = [{key: pool.place(_finite(part)) for key, part in value.items()} for value in values]
    return {"of": of, "pool": pool.values}


def _layers(runs: Sequence[ReportRun]) -> dict[str, Any]:
    """Each run's measures, and once the names that runs of a model share."""
    pool = _Pool()
    return {"of": [_layers_of(run.layers, pool) for run in runs], "pool": pool.values}


def _continuations(runs: Sequence[ReportRun]) -> dict[str, Any]:
    """Each run's prompts with the texts of the stages that wrote; the dense model's are those of many runs."""
    pool = _Pool()
    of = []
    for run in runs:
        found = [(each.prompt, *map(each.texts.get, MEASURED)) for each in run.continuations]
        of.append([[None if text is None else pool.place(text) for text in texts] for texts in found])
    return {"of": of, "pool": pool.values}


def _layers_of(layers: Layers | None, pool: "_Pool") -> list[Any] | None:
    if layers is None:
        return None
    places = [block_and_kind(name) or (-1, name) for name in layers.names]
    return [pool.place(places), *([_short(value, 4) for value in values] for values in layers.measures.values())]


class _Pool:
    """Different values in the order in which they came."""

    def __init__(self) -> None:
        self.values: list[Any] = []
        self._places: dict[str, int] = {}

    def place(self, value: Any) -> int:
        """Where a value is; equal ones are in the same place."""
        key = json.dumps(value, sort_keys=True)
        if key not in self._places:
            self._places[key] = len(self.values)
            self.values.append(value)
        return self._places[key]


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _finite(value: Any) -> Any:
    """Nested values with numbers that JSON has not as texts."""
    return json.loads(json.dumps(value), parse_constant=str)
