"""The standard library as a corpus: its splits share no text, and known text is where it belongs."""

from __future__ import annotations

import hashlib
import inspect
import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from prune_lab.data import stdlib

SPLITS = get_args(stdlib.Split)
LONG = "A sentence that is long enough to count as text of its own, and no shorter."


def _by_name() -> dict[str, stdlib.Document]:
    return {document.name: document for document in stdlib.documents()}


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder that stands in for the standard library's."""
    monkeypatch.setattr(stdlib.sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    stdlib._documents.cache_clear()
    yield tmp_path
    stdlib._documents.cache_clear()


def _write(folder: Path, sources: dict[str, str]) -> None:
    for name, source in sources.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source, encoding="utf-8")


def _module_in(split: str, number: int = 0) -> str:
    """Return the name of a made-up module that falls into a split, another one for each number."""
    names = (f"module{index}" for index in range(1000))
    return [name for name in names if stdlib.split_of(name) == split][number]


def test_documents_are_sorted_unique_and_not_empty() -> None:
    names = [document.name for document in stdlib.documents()]
    assert names == sorted(set(names))
    assert all(document.text.strip() for document in stdlib.documents())


def test_splits_partition_the_documents() -> None:
    names = [document.name for name in SPLITS for document in stdlib.split(name)]
    assert sorted(names) == [document.name for document in stdlib.documents()]


def test_each_split_is_large_enough_to_use() -> None:
    sizes = {name: sum(len(document.text) for document in stdlib.split(name)) for name in SPLITS}
    assert sizes["train"] > 1_000_000
    assert min(sizes["calibration"], sizes["evaluation"]) > 50_000


def test_an_unknown_split_is_refused() -> None:
    with pytest.raises(ValueError, match="train, calibration, evaluation"):
        stdlib.split("testing")  # type: ignore[arg-type]


def test_modules_of_a_package_share_a_split() -> None:
    assert len({stdlib.split_of(name) for name in ("json", "json.decoder", "json.encoder", "json.tool")}) == 1


def test_topics_are_spread_over_the_splits() -> None:
    topics = [document.name for document in stdlib.documents() if document.name.startswith(stdlib.TOPIC_PREFIX)]
    assert {stdlib.split_of(name) for name in topics} == set(SPLITS)


def test_a_function_has_its_header_above_its_docstring() -> None:
    docstring = inspect.getdoc(textwrap.dedent)
    assert f"textwrap.dedent(text)\n{docstring}" in _by_name()["textwrap"].text


def test_methods_carry_their_full_name() -> None:
    assert "json.decoder.JSONDecoder.raw_decode(self, s, idx=0)\n" in _by_name()["json.decoder"].text


def test_builtins_are_documented() -> None:
    text = _by_name()["builtins"].text
    assert inspect.cleandoc(str.join.__doc__ or "") in text
    assert "builtins.len(obj, /)\n" in text


def test_no_long_paragraph_is_in_two_splits() -> None:
    owners: dict[str, str] = {}
    for document in stdlib.documents():
        for paragraph in document.text.split("\n\n"):
            folded = " ".join(paragraph.split())
            if len(folded) >= stdlib.LONG_TEXT:
                owner = owners.setdefault(folded, stdlib.split_of(document.name))
                assert owner == stdlib.split_of(document.name), folded


def test_documents_are_the_same_in_another_process() -> None:
    program = (
        "import hashlib; from prune_lab.data import stdlib; "
        "print(hashlib.sha256(repr(stdlib.documents()).encode()).hexdigest(), end='')"
    )
    digest = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert digest == hashlib.sha256(repr(stdlib.documents()).encode()).hexdigest()


def test_a_module_gives_its_docstrings_in_the_order_of_the_source(library: Path) -> None:
    source = '''
        """The module."""
        if True:
            class Thing:
                """A thing."""
                async def turn(self, by: int = 1, *others, **options):
                    """
                    Turn the thing.

                        Indented.
                    """
                def undocumented(self): ...
        def outer():
            def inner(): "Nested."
    '''
    _write(library, {"shape.py": textwrap.dedent(source)})
    assert _by_name()["shape"].text == (
        "The module.\n\n"
        "shape.Thing\nA thing.\n\n"
        "shape.Thing.turn(self, by: int=1, *others, **options)\nTurn the thing.\n\n    Indented.\n\n"
        "shape.outer.inner()\nNested."
    )


def test_what_is_not_the_library_proper_is_left_out(library: Path) -> None:
    kept = {"good.py", "package/__init__.py", "package/part.py"}
    left_out = {
        "broken.py": "def (:",
        "undecodable.py": "",
        "config-3.11-x86_64/one.py": '"""Text."""',
        "_sysconfigdata__linux_.py": '"""Text."""',
        "email/test/one.py": '"""Text."""',
        "site-packages/other/one.py": '"""Text."""',
        "empty.py": "x = 1",
    }
    _write(library, {**dict.fromkeys(kept, '"""Text."""'), **left_out})
    (library / "undecodable.py").write_bytes(b'"""\xff\xfe"""')
    names = {name for name in _by_name() if not name.startswith(stdlib.TOPIC_PREFIX)}
    assert names == {"good", "package", "package.part", "builtins"}


def test_a_source_file_is_read_in_the_encoding_it_states(library: Path) -> None:
    (library / "old.py").write_bytes('# -*- coding: latin-1 -*-\n"""Café."""'.encode("latin-1"))
    assert _by_name()["old"].text == "Café."


def test_a_copied_docstring_is_kept_once_and_with_training(library: Path) -> None:
    held_out, first, second = _module_in("evaluation"), _module_in("train", 0), _module_in("train", 1)
    source = f'def copied():\n    """{LONG}"""\ndef own():\n    """Short."""\n'
    _write(library, {f"{name}.py": source for name in (held_out, first, second)})
    documents = _by_name()
    assert documents[first].text == f"{first}.copied()\n{LONG}\n\n{first}.own()\nShort."
    assert documents[second].text == f"{second}.own()\nShort."
    assert documents[held_out].text == f"{held_out}.own()\nShort."


def test_a_shared_paragraph_is_kept_only_in_training(library: Path) -> None:
    held_out, trained, other = _module_in("calibration"), _module_in("train", 0), _module_in("train", 1)
    rewrapped = LONG.replace("and no", "\nand no")
    _write(library, {f"{trained}.py": f'"""First.\n\n{LONG}"""', f"{held_out}.py": f'"""Second.\n\n{rewrapped}"""'})
    _write(library, {f"{other}.py": f'"""Third.\n\n{LONG}"""'})
    documents = _by_name()
    assert documents[trained].text == f"First.\n\n{LONG}"
    assert documents[other].text == f"Third.\n\n{LONG}"
    assert documents[held_out].text == "Second."


def test_documents_are_kept_for_other_processes_until_a_source_changes(library, monkeypatch) -> None:
    read, times = stdlib._read_sources, []
    monkeypatch.setattr(stdlib, "_read_sources", lambda: times.append(1) or read())
    _write(library, {"one.py": f'"""{LONG}"""'})
    first = stdlib.documents()
    stdlib._documents.cache_clear()  # as in another process
    assert stdlib.documents() == first and len(times) == 1
    _write(library, {"two.py": f'"""Another one. {LONG}"""'})
    stdlib._documents.cache_clear()
    assert {document.name for document in stdlib.documents()} >= {"one", "two"} and len(times) == 2
