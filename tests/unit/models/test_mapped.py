"""Weights that stay in their files give what weights in memory give, and take no memory that they need not."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from prune_lab.errors import BadInput
from prune_lab.models import load
from prune_lab.models.load import Checkpoint
from prune_lab.models.mapped import MappedWeights, map_tensors
from prune_lab.pruning.calibration.calibration import Calibration
from prune_lab.pruning.context import PruningContext
from prune_lab.pruning.methods.magnitude import Magnitude
from prune_lab.pruning.methods.sparsegpt import SparseGPT
from prune_lab.pruning.methods.wanda import Wanda
from prune_lab.pruning.target import Target
from prune_lab.run.stages import save


def both(folder: Path, tmp_path: Path):
    """The same model in memory, and mapped."""
    in_memory, mapped = Checkpoint(str(folder), stream=False).load(), Checkpoint(str(folder), stream=True).load()
    assert in_memory.mapped is None
    mapped.mapped.scratch = tmp_path / "scratch"
    mapped.mapped.scratch.mkdir()
    return in_memory, mapped


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


@pytest.mark.parametrize("method", [Wanda(), SparseGPT(), Magnitude()], ids=lambda method: type(method).__name__)
def test_a_mapped_model_is_pruned_to_the_same_bits(family, method, model_folder, random_tokens, tmp_path):
    folder, tokens = model_folder(family, torch.bfloat16), random_tokens(6, 24)
    before = digests(folder)
    models = both(folder, tmp_path)
    assert models[0].fingerprint() == models[1].fingerprint()
    with torch.no_grad():
        dense = [model.hf(tokens).logits for model in models]
    assert torch.equal(*dense)
    for model in models:
        method.prune(PruningContext(model, Target(level=0.5), Calibration(tokens, batch_size=2)))
    assert models[0].fingerprint() == models[1].fingerprint()
    with torch.no_grad():
        pruned = [model.hf(tokens).logits for model in models]
    assert torch.equal(*pruned) and not torch.equal(pruned[0], dense[0])
    assert digests(folder) == before
    assert not list(models[1].mapped.scratch.iterdir())  # the files have no names any more


@pytest.mark.parametrize("shard", ["1GB", "4KB"])
def test_a_mapped_model_is_saved_as_others_are(family, shard, model_folder, random_tokens, tmp_path, monkeypatch):
    monkeypatch.setattr(save, "_SHARD", shard)
    _, model = both(model_folder(family), tmp_path)
    Wanda().prune(PruningContext(model, Target(level=0.5), Calibration(random_tokens(4, 24))))
    (tmp_path / "saved").mkdir()
    save._save_in_turn(model, model.mapped, tmp_path / "saved")
    files = sorted(file.name for file in (tmp_path / "saved").iterdir())
    assert ("model.safetensors.index.json" in files) == (shard != "1GB")
    loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    for name, tensor in model.hf.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    model.hf.save_pretrained(tmp_path / "theirs")
    theirs = load_file(tmp_path / "theirs" / "model.safetensors")
    ours = {name for file in (tmp_path / "saved").glob("*.safetensors") for name in load_file(file)}
    assert ours == theirs.keys()


def test_what_was_changed_in_place_is_not_forgotten(model_folder, tmp_path):
    _, model = both(model_folder("llama"), tmp_path)
    linear = next(model.linears)
    expected = linear.weight * 2
    linear.write(expected)
    model.mapped.release(model.hf)
    assert torch.equal(linear.weight, expected)
    with model.at_work(model.blocks[0], torch.device("cpu")):
        assert torch.equal(linear.weight, expected)
    model.mapped.release(model.hf)
    assert torch.equal(linear.weight, expected)


def test_what_lies_elsewhere_is_not_forgotten(model_folder, tmp_path):
    _, model = both(model_folder("llama"), tmp_path)
    before = model.fingerprint()
    for parameter in model.hf.parameters():
        parameter.data = parameter.data.clone()  # as when it was on a GPU meanwhile
    model.mapped.release(model.hf)
    assert model.fingerprint() == before
    copies = {parameter.data_ptr() for parameter in model.hf.parameters()}
    model.mapped.restore(model.hf)
    assert not copies & {parameter.data_ptr() for parameter in model.hf.parameters()}
    assert model.fingerprint() == before


def test_what_lies_in_no_file_is_left_alone(model_folder, tmp_path):
    model = Checkpoint(str(model_folder("llama")), stream=False).load()
    before, mapped = model.fingerprint(), MappedWeights(model.hf)
    mapped.own(model.hf)
    mapped.settle(model.hf)
    mapped.release(model.hf)
    assert model.fingerprint() == before


def test_weights_of_other_types_are_left_in_memory(model_folder, change_weights, tmp_path):
    folder = model_folder("llama", torch.bfloat16)
    change_weights(
        folder, lambda tensors: tensors.update({name: t.float() for name, t in tensors.items() if "norm" in name})
    )
    models = both(folder, tmp_path)
    models[1].mapped.release(models[1].hf)
    assert models[0].fingerprint() == models[1].fingerprint()


def test_a_block_that_was_left_as_it_was_goes_back_to_its_file(model_folder, tmp_path):
    _, model = both(model_folder("llama"), tmp_path)
    block = model.blocks[1]
    where = [parameter.data_ptr() for parameter in block.module.parameters()]
    with model.at_work(block, torch.device("cpu")):
        assert not set(where) & {parameter.data_ptr() for parameter in block.module.parameters()}
    assert [parameter.data_ptr() for parameter in block.module.parameters()] == where


def resident() -> int:
    """Bytes of mapped files, of a disk or of a file system in memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("RssFile:", "RssShmem:"))) * 1024


def model_ends(folder: Path):
    return json.loads((folder / "config.json").read_text()).get("eos_token_id", 2)


def test_it_generates_as_its_folder_says(model_folder, tmp_path):
    """Also what is saved of it. Where the folder has no file for that, config.json says it."""
    folder = model_folder("llama")
    settings = {"do_sample": True, "temperature": 0.6, "eos_token_id": [2, 7]}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    told = [model.hf.generation_config.to_dict() for model in both(folder, tmp_path)]
    assert told[0] == told[1] and told[1]["eos_token_id"] == [2, 7] and told[1]["temperature"] == 0.6
    (folder / "generation_config.json").unlink()
    told = [Checkpoint(str(folder), stream=stream).load().hf.generation_config for stream in (False, True)]
    assert [each.eos_token_id for each in told] == [model_ends(folder)] * 2


def test_a_type_that_is_not_the_stored_one_is_loaded_as_elsewhere(model_folder, monkeypatch):
    """By itself a model stays in its files only where it would have the same type in memory."""
    folder = model_folder("llama")
    config = json.loads((folder / "config.json").read_text()) | {"dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr(load, "available_memory", lambda: 1000)
    model = Checkpoint(str(folder)).load()
    assert model.mapped is None and model.dtype == torch.bfloat16
    message = r"stored as float32, where config.json says bfloat16; use model.dtype=float32"
    with pytest.raises(BadInput, match=message):
        Checkpoint(str(folder), stream=True).load()
    assert Checkpoint(str(folder), dtype="float32", stream=True).load().dtype == torch.float32


def test_a_parameter_that_is_gone_is_not_taken_for_a_new_one(model_folder, tmp_path):
    """Python gives the place of one to the next, which must not become the tensor of the file."""
    _, model = both(model_folder("llama"), tmp_path)
    module = model.blocks[0].mlp.down.module
    for _ in range(50):
        module.weight = torch.nn.Parameter(torch.ones(3, 5), requires_grad=False)
        model.mapped.restore(module)
        assert module.weight.shape == (3, 5) and bool((module.weight == 1).all())


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_what_is_released_takes_no_memory(tmp_path):
    size = 64 << 20
    save_file({"weight": torch.ones(size // 4)}, tmp_path / "large.safetensors")
    module = torch.nn.Module()
    tensors = map_tensors([tmp_path / "large.safetensors"], {"weight": torch.empty(0)})
    module.weight = torch.nn.Parameter(tensors["weight"], requires_grad=False)
    mapped, before = MappedWeights(module), resident()
    assert float(module.weight.sum()) == size // 4
    assert resident() - before > 0.9 * size
    mapped.release(module)
    assert resident() - before < 0.1 * size
    assert float(module.weight.sum()) == size // 4


def test_a_model_is_mapped_where_it_does_not_fit(model_folder, monkeypatch):
    folder = str(model_folder("llama"))
    for available, expected in ((10_000, True), (1 << 40, False), (None, False)):
        monkeypatch.setattr(load, "available_memory", lambda available=available: available)
        assert (Checkpoint(folder).load().mapped is not None) == expected
    monkeypatch.setattr(load, "available_memory", lambda: 10_000)
    assert Checkpoint(folder, stream=False).load().mapped is None
    assert Checkpoint(folder, dtype="bfloat16").load().mapped is None  # it cannot be


def test_weights_that_cannot_be_mapped_are_refused(model_folder):
    folder = model_folder("llama")
    with pytest.raises(BadInput, match=r"stored as float32; use model\.dtype=auto"):
        Checkpoint(str(folder), dtype="bfloat16", stream=True).load()
    weights = load_file(folder / "model.safetensors")
    torch.save(weights, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"pytorch_model\.bin is no safetensors file; save the model again"):
        Checkpoint(str(folder), stream=True).load()
