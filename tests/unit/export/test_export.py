"""``prune-lab-export`` writes what was saved, says what it is, and nothing else; mistakes leave nothing behind."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import prune_lab
from prune_lab.errors import BadInput
from prune_lab.export import folder as of_folder
from prune_lab.export import weights
from prune_lab.export.gguf import check_convertible
from tests.unit.export.conftest import export


def weights_of(folder):
    found = {}
    for file in folder.glob("*.safetensors"):
        found |= load_file(file)
    return found


def left_in(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("shards", ["2GB", "10kB"])
def test_the_folder_holds_the_same_bits_and_opens(saved_run, tmp_path, shards, capsys):
    run, target = saved_run(), tmp_path / "new/export"
    (run / "model/private notes.txt").write_text("mine")
    assert export(run, target, "--max-shard-size", shards) == 0
    before, after = weights_of(run / "model"), weights_of(target)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].view(torch.int32), after[name].view(torch.int32)) for name in before)
    files = len(list(target.glob("*.safetensors")))
    assert (files > 3) == (shards == "10kB") == (target / "model.safetensors.index.json").is_file()
    one, other = (AutoModelForCausalLM.from_pretrained(folder) for folder in (run / "model", target))
    assert torch.equal(one.lm_head.weight, other.lm_head.weight)
    assert prune_lab.load(target).name == prune_lab.load(run / "model").name  # what was done is still known
    said = capsys.readouterr().out
    assert "left out, as they are no parts of the model: private notes.txt" in said
    assert not (target / "private notes.txt").exists()


def test_another_type_keeps_zeros_and_says_what_rounding_changed(saved_run, tmp_path, capsys):
    run, target = saved_run(), tmp_path / "export"
    assert export(run, target, "--dtype", "bfloat16") == 0
    before, after = weights_of(run / "model"), weights_of(target)
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor.to(torch.bfloat16))
        assert not after[name][tensor == 0].any()
    assert AutoModelForCausalLM.from_pretrained(target).dtype == torch.bfloat16
    numbers = sum(tensor.numel() for tensor in before.values())
    zeros = sum(int((tensor == 0).sum()) for tensor in before.values())
    said = capsys.readouterr().out
    assert f"{numbers:,} numbers, bfloat16; {zeros:,} are zero" in said
    assert "numbers were rounded" in said and "every zero is still zero" in said
    assert (
        "Measured with weights in float32; this copy in bfloat16 was not measured" in (target / "README.md").read_text()
    )


def test_small_numbers_that_become_zero_are_counted(model_folder, tmp_path, capsys):
    folder, target = model_folder(), tmp_path / "export"
    tensors = load_file(folder / "model.safetensors")
    name = "model.decoder.layers.0.fc1.weight"
    tensors[name].view(-1)[:3] = torch.tensor([1e-12, 0.0, 1.0 + 2**-11])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert export(folder, target, "--dtype", "float16") == 0
    assert weights_of(target)[name].view(-1)[:2].tolist() == [0.0, 0.0]
    assert "and 1 small numbers became zero" in capsys.readouterr().out


def test_numbers_beyond_a_type_are_refused_and_nothing_is_left(model_folder, tmp_path, capsys):
    folder, target = model_folder(), tmp_path / "new/export"
    tensors = load_file(folder / "model.safetensors")
    tensors["model.decoder.layers.0.fc1.weight"][0, 0] = 1e6
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert export(folder, target, "--dtype", "float16") == 2
    assert "1 numbers of model.decoder.layers.0.fc1.weight are beyond the range of float16" in capsys.readouterr().err
    assert left_in(tmp_path / "new") == []


def test_a_file_that_does_not_read_as_it_was_written_is_found(model_folder, tmp_path, monkeypatch, capsys):
    def damage(tensors, path, metadata):
        changed = {name: tensor.clone() for name, tensor in tensors.items()}
        next(iter(changed.values())).view(-1)[0] += 1
        save_file(changed, path, metadata=metadata)

    monkeypatch.setattr("safetensors.torch.save_file", damage)
    assert export(model_folder(), tmp_path / "new/export") == 1
    assert "does not read as it was written" in capsys.readouterr().err
    assert left_in(tmp_path / "new") == []


def test_only_an_earlier_export_is_replaced(model_folder, tmp_path, capsys):
    folder, target = model_folder(), tmp_path / "export"
    assert export(folder, target) == 0 and export(folder, target, "--max-shard-size", "10kB") == 0
    assert not (target / "model.safetensors").exists()
    (target / "README.md").write_text("what I wrote about it")
    assert export(folder, target) == 2
    assert "is no earlier export as it was written; give another DESTINATION" in capsys.readouterr().err
    assert (target / "README.md").read_text() == "what I wrote about it"


@pytest.mark.parametrize("kind", ["others", "file", "link", "model", "below the model"])
def test_foreign_destinations_are_refused(model_folder, tmp_path, kind, capsys):
    folder, target = model_folder(), tmp_path / "there"
    if kind == "others":
        target.mkdir()
        (target / "mine.txt").write_text("mine")
    elif kind == "file":
        target.write_text("mine")
    elif kind == "link":
        target.symlink_to(tmp_path / "elsewhere")
    else:
        target = folder if kind == "model" else folder / "new"
    before = left_in(folder)
    assert export(folder, target) == 2
    assert "DESTINATION" in capsys.readouterr().err and left_in(folder) == before
    assert kind != "others" or (target / "mine.txt").read_text() == "mine"


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(model_folder, tmp_path, monkeypatch, capsys):
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(of_folder.shutil, "disk_usage", lambda place: full)
    assert export(model_folder(), tmp_path / "new/export") == 2
    assert "its disk has 1.0 kB left" in capsys.readouterr().err and not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--max-shard-size", "2"], "--max-shard-size 2 is not allowed"),
        (["--converter", "x.py"], "--converter says what --gguf runs"),
        (["--private"], "--private is about the repository of --push-to-hub"),
        (["--gguf", "--converter", "none.py"], "git clone https://github.com/ggml-org/llama.cpp"),
        (["--gguf"], "--gguf needs convert_hf_to_gguf.py, which is not on PATH; it comes with llama.cpp"),
        (["--push-to-hub", "a b/c"], "--push-to-hub a b/c is no name on the hub"),
        (["--push-to-hub", "name"], "does not say whose it is"),
        (["--push-to-hub", "me/name"], "HF_HUB_OFFLINE is set"),
    ],
)
def test_mistakes_are_told_before_anything_is_written(model_folder, tmp_path, arguments, told, capsys, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("PATH", "/bin:/usr/bin")
    assert export(model_folder(), tmp_path / "new/export", *arguments) == 2
    assert told in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_a_run_that_left_updates_beside_its_weights_is_told(tmp_path, saved_run, capsys):
    run = saved_run()
    (run / "adapter").mkdir()
    assert export(run, tmp_path / "export") == 2
    assert "has left updates beside the weights (adapter/)" in capsys.readouterr().err
    assert not (tmp_path / "export").exists()


def test_what_is_no_saved_model_is_told(tmp_path, saved_run, capsys):
    assert export(tmp_path / "nowhere", tmp_path / "export") == 2
    run = saved_run()
    record = json.loads((run / "record.json").read_text())
    (run / "record.json").write_text(json.dumps(record | {"status": "failed"}))
    assert export(run, tmp_path / "export") == 2
    shutil.rmtree(run / "model")
    (run / "record.json").write_text(json.dumps(record))
    assert export(run, tmp_path / "export") == 2
    missing, failed, unsaved = capsys.readouterr().err.splitlines()
    assert "RUN_OR_MODEL_DIR=" in missing and "there is no such folder" in missing
    assert "is failed; give the same command again" in failed and "has no saved model" in unsaved
    assert not (tmp_path / "export").exists()


def test_a_model_whose_blocks_differ_is_exported_as_it_is(tmp_path, tiny_model, capsys):
    from prune_lab.models.model_units import all_neurons
    from prune_lab.models.origin import Origin
    from prune_lab.models.shrink import shrink
    from prune_lab.run.stages.save import save_model

    model = tiny_model("llama")
    first = next(iter(all_neurons(model)))
    shrink(model, {first.name: torch.arange(first.count) > 3})
    save_model(model, Origin("tiny", ("L1Neurons, 10% neurons", "shrunk")), tmp_path / "model")
    assert export(tmp_path / "model", tmp_path / "export") == 0
    again = prune_lab.load(tmp_path / "export")
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(model.tensors, again.tensors, strict=True))
    card = (tmp_path / "export/README.md").read_text()
    assert "from_pretrained(DIR, trust_remote_code=True)" in card and "library_name: transformers" in card
    assert (tmp_path / "export/modeling_prune_lab_llama.py").is_file()
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "export")) is type(model.hf)
    assert export(tmp_path / "model", tmp_path / "other", "--gguf", "--converter", __file__) == 2
    assert capsys.readouterr().err.endswith(  # progress bars of transformers may be before
        "prune-lab-export: --gguf: the blocks of this model have sizes that its family's configuration, and so a GGUF "
        "file, cannot say; leave --gguf out, or prune every block alike before shrinking (method.scope=layer)\n"
    )
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ({"values_per_block": [[3, 4]]}, "prune neurons and whole heads"),
        ({"keys_per_block": [[[0], [1]]]}, "prune neurons and whole heads"),
        ({"heads_per_block": [3, 3]}, "prune neurons alone"),
        ({"heads_per_block": [3, 2]}, "prune every block alike"),
        ({"heads_per_block": [3, 3], "neurons_per_block": [3, 2]}, "prune every block alike"),
        ({"experts_passed_over": True}, "take them out first, with the stage shrink"),
    ],
)
def test_what_a_gguf_file_cannot_say_is_told_with_what_helps(tmp_path, sizes, said):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "prune_lab_opt", **sizes}))
    with pytest.raises(BadInput, match=said):
        check_convertible(tmp_path)


def test_a_model_rotated_between_its_blocks_is_exported_as_it_is(tmp_path, tiny_model, capsys):
    from prune_lab.models.origin import Origin
    from prune_lab.models.residual import rotate_stream
    from prune_lab.run.stages.save import save_model

    model = tiny_model("llama")
    rotate_stream(model, [torch.eye(32), torch.eye(32), torch.eye(32)])
    save_model(model, Origin("tiny", ("Rotated, 2:4",)), tmp_path / "model")
    assert export(tmp_path / "model", tmp_path / "export") == 0
    again = prune_lab.load(tmp_path / "export")
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(model.tensors, again.tensors, strict=True))
    assert "or that they are rotated" in (tmp_path / "export/README.md").read_text()
    assert export(tmp_path / "model", tmp_path / "other", "--gguf", "--converter", __file__) == 2
    assert "rotations_before" in (told := capsys.readouterr().err) and "method.matrices=folded" in told
    assert not (tmp_path / "other").exists()


def test_the_command_runs_by_itself(model_folder, tmp_path):
    command = [sys.executable, "-m", "prune_lab.export.command", model_folder(), tmp_path / "export"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 file with weights, read again and compared" in done.stdout


def test_rounding_is_measured_beside_both_types():
    written = weights.Written()
    exact = torch.tensor([0.0, 1.5], dtype=torch.bfloat16)
    weights._count(written, "x", exact, exact)
    assert len(written.told()) == 1
    weights._count(written, "x", exact, exact.float())
    assert written.told()[1] == "the conversion has rounded no number"
    written = weights.Written()
    before = torch.tensor([0.0, 1.0, 1.0 + 2**-9], dtype=torch.float16)
    weights._count(written, "x", before, before.to(torch.bfloat16))
    assert (written.numbers, written.zeros, written.new_zeros, written.rounded) == (3, 1, 0, 1)
    assert written.largest == pytest.approx(2**-9 / (1 + 2**-9))
