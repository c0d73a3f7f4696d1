"""Puts template, style, script and data together into one file that needs nothing else."""

import base64
import hashlib
import html
import re
from datetime import datetime, timezone
from functools import cache
from importlib.resources import files

from prune_lab.report.page.collect import Collection
from prune_lab.report.page.payload import embedded, payload_of

_SCRIPTS = (
    "element",
    "format",
    "data",
    "view",
    "compared",
    "scale",
    "plot",
    "scatter",
    "curves",
    "table",
    "heat",
    "details",
    "beside",
    "main",
)
_MARK = re.compile(r"\{\{(\w+)\}\}")


def page_of(collection: Collection, title: str, watch: float = 0) -> str:
    """The page as HTML.

    Args:
        collection: the runs.
        title: of the page.
        watch: seconds after which the page loads itself again; 0: never.
    """
    style, script = _asset("style.css"), _script()
    counts = [f"{count:,} {name}" for name, count in collection.counts.items() if count]
    made = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    parts = {
        "title": html.escape(title),
        "counts": html.escape(", ".join(counts) or "no runs yet"),
        "made": html.escape(f"read {made}" + (f", again every {watch:g} s" if watch else "")),
        "style": style,
        "script": script,
        # Whatever a record might smuggle in, the browser runs this script only and asks no one for anything.
        "policy": f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'",
    }
    parts |= {name: embedded(value) for name, value in payload_of(collection, watch).items()}
    return _MARK.sub(lambda mark: parts[mark[1]], _asset("page.html"))  # at once: marks in the data stay as they are


def _script() -> str:
    """All parts as one function, so that they share names with each other and with nothing else."""
    parts = "\n".join(_asset(f"{name}.js") for name in _SCRIPTS)
    return f'(() => {{\n"use strict";\n{parts}}})();\n'


@cache
def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
