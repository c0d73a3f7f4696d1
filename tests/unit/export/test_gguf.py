"""``--gguf`` calls a converter as a program, and reads again what it has written. The converter here is a stand-in."""

import stat
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.unit.export.conftest import export

COPIES = """
import shutil, sys
from pathlib import Path
folder, option, file, of_type, kind = sys.argv[1:]
assert (option, of_type) == ("--outfile", "--outtype") and (Path(folder) / "config.json").is_file()
Path(__file__).with_name("asked.txt").write_text(kind)
shutil.copyfile({source!r}, file)
"""


@pytest.fixture
def model_and_converter(write_gguf, tmp_path):
    """A model folder, and a script that writes the GGUF file of the same model."""
    file, original = write_gguf()
    original.save_pretrained(tmp_path / "model")
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin/convert_hf_to_gguf.py"
    script.write_text(COPIES.format(source=str(file)))
    return tmp_path / "model", script


def test_the_file_lies_beside_and_was_read_again(model_and_converter, tmp_path, capsys):
    model, script = model_and_converter
    assert export(model, tmp_path / "export", "--gguf", "--converter", script) == 0
    assert (tmp_path / "export/export.gguf").read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    assert "tensors are the same number by number" in capsys.readouterr().out
    assert (tmp_path / "bin/asked.txt").read_text() == "f32"
    assert not [path for path in (tmp_path / "export").rglob("*") if path.name.startswith(".")]
    assert export(model, tmp_path / "export") == 0  # the file is one of the export's, and goes with it
    assert not (tmp_path / "export/export.gguf").exists()


def test_a_converter_on_the_path_is_found(model_and_converter, tmp_path, monkeypatch):
    model, script = model_and_converter
    script.write_text(f"#!{sys.executable}\n{script.read_text()}")
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(script.parent))
    assert export(model, tmp_path / "export", "--gguf") == 0
    assert (tmp_path / "export/export.gguf").is_file()


@pytest.mark.parametrize("kind", ["other numbers", "zeros that came back"])
def test_a_file_with_other_numbers_is_refused(model_and_converter, tmp_path, kind, capsys):
    model, script = model_and_converter
    tensors = load_file(model / "model.safetensors")
    weight = tensors["model.layers.1.mlp.up_proj.weight"]
    weight[0, 0] = 0.0 if kind == "zeros that came back" else weight[0, 0] + 1
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert export(model, tmp_path / "new/export", "--gguf", "--converter", script) == 1
    told = (
        "1 zeros came back as other numbers" if kind == "zeros that came back" else "holds other numbers than the model"
    )
    assert told in capsys.readouterr().err and not any((tmp_path / "new").iterdir())


@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("import sys; sys.exit('Model Foo is not supported')", "Model Foo is not supported"),
        ("pass", "ended with status 0 and wrote no file"),
        ("import sys; open(sys.argv[3], 'w').write('no GGUF')", "has written a file that does not open"),
    ],
)
def test_a_converter_that_fails_leaves_nothing(model_and_converter, tmp_path, script, told, capsys):
    model, converter = model_and_converter
    converter.write_text(script)
    assert export(model, tmp_path / "new/export", "--gguf", "--converter", converter) == 1
    assert told in capsys.readouterr().err and not any((tmp_path / "new").iterdir())


def test_a_family_that_is_not_read_from_gguf_is_said_to_be_unchecked(model_folder, tmp_path, capsys):
    script = tmp_path / "converter.py"
    script.write_text("import sys; open(sys.argv[3], 'w').write('anything')")
    assert export(model_folder("opt", torch.bfloat16), tmp_path / "export", "--gguf", "--converter", script) == 0
    assert "was not checked: the lab reads no GGUF files of the family opt" in capsys.readouterr().out


def test_a_converter_that_is_no_program_is_told(model_folder, tmp_path, capsys):
    (tmp_path / "converter").write_text("text")
    assert export(model_folder(), tmp_path / "export", "--gguf", "--converter", tmp_path / "converter") == 2
    assert "is no program (chmod +x makes it one)" in capsys.readouterr().err
