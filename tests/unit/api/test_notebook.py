"""The notebook of the documentation runs from its first cell to its last, on a shipped model."""

import json
from pathlib import Path

import matplotlib
import pytest

NOTEBOOK = Path(__file__).parents[3] / "docs" / "first_steps.ipynb"
MINIATURE = {"MODEL": "reference", "SAMPLES": 4, "SEQLEN": 64, "WINDOWS": 2}


def cells() -> list[dict]:
    return [cell for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"] if cell["cell_type"] == "code"]


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_the_notebook_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    names: dict = {}
    for cell in cells():
        exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
        if "parameters" in cell["metadata"].get("tags", ()):
            assert MINIATURE.keys() <= names.keys()
            names |= MINIATURE
    out = capsys.readouterr().out
    assert "dense" in out and "sparsegpt" in out and "model.safetensors" in out
    assert names["smaller"].model.num_parameters() < names["before"]


def test_its_outputs_are_those_of_a_whole_run_in_order():
    assert [cell["execution_count"] for cell in cells()] == list(range(1, len(cells()) + 1))
    assert not [output for cell in cells() for output in cell["outputs"] if output["output_type"] == "error"]
    assert "/home" not in NOTEBOOK.read_text() and "/tmp" not in NOTEBOOK.read_text()
