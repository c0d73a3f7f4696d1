import json

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from prune_lab.errors import BadInput, RunFailed
from prune_lab.models.load import DTYPES, REFERENCE, Checkpoint
from prune_lab.models.model import seqlen_limit_of


def test_a_saved_model_loads_as_it_was(model_folder, tiny_model, family):
    loaded = Checkpoint(str(model_folder(family))).load()
    assert loaded.name == f"tiny_{family}"
    expected = tiny_model(family).hf.state_dict()
    for name, tensor in loaded.hf.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert len(loaded.blocks) == 3


def test_a_folder_without_a_tokenizer_loads(model_folder):
    checkpoint = Checkpoint(str(model_folder()))
    assert checkpoint.load_tokenizer() is None
    assert checkpoint.load().tokenizer is None


def test_a_tokenizer_is_loaded_when_the_folder_has_one(model_folder):
    folder = model_folder()
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    assert Checkpoint(str(folder)).load_tokenizer()("a")["input_ids"] == [0]


def test_the_configuration_alone_tells_vocabulary_and_positions(model_folder, family):
    config = Checkpoint(str(model_folder(family))).load_config()
    assert (config.get_text_config().vocab_size, seqlen_limit_of(config)) == (64, 64)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "auto"])
def test_the_type_is_the_one_that_is_asked_for(model_folder, dtype):
    folder = model_folder("opt", torch.bfloat16)
    wanted = torch.bfloat16 if dtype == "auto" else DTYPES[dtype]
    assert Checkpoint(str(folder), dtype=dtype).load().dtype == wanted


def test_an_unknown_type_is_refused_before_anything_is_read():
    with pytest.raises(BadInput, match=r"Checkpoint\.dtype='int3'.*float32, bfloat16, float16, auto"):
        Checkpoint("nowhere", kind="hub", dtype="int3")


def test_an_unknown_kind_is_refused():
    with pytest.raises(BadInput, match=r"Checkpoint\.kind='s3'.*local, reference, hub"):
        Checkpoint("x", kind="s3")


def test_the_name_is_the_last_part_of_the_path():
    assert Checkpoint("facebook/opt-125m", kind="hub").name == "opt-125m"
    assert Checkpoint("facebook/opt-125m", kind="hub", name="small").name == "small"


@pytest.mark.parametrize("style", ["opt", "llama", "gpt_neo"])
def test_a_reference_model_is_found_in_the_package(style):
    checkpoint = Checkpoint(style, kind="reference")
    assert (checkpoint.folder, checkpoint.name) == (REFERENCE / style, f"reference_{style}")


def test_a_reference_model_that_is_not_shipped_is_refused():
    with pytest.raises(BadInput, match=r"path='nope' is not allowed; allowed: gpt_neo, llama, opt"):
        Checkpoint("nope", kind="reference")


def test_a_missing_folder_is_refused_before_loading(tmp_path):
    with pytest.raises(BadInput, match=r"Checkpoint\.path=.*nowhere: there is no such folder"):
        Checkpoint(str(tmp_path / "nowhere"))


def test_a_folder_without_a_configuration_is_refused_before_loading(model_folder):
    folder = model_folder()
    (folder / "config.json").unlink()
    with pytest.raises(BadInput, match=r"no readable config\.json"):
        Checkpoint(str(folder))


def test_a_damaged_configuration_is_refused_before_loading(model_folder):
    folder = model_folder()
    (folder / "config.json").write_text('{"model_type": "opt", ')
    with pytest.raises(BadInput, match=r"config\.json is not valid JSON"):
        Checkpoint(str(folder))


@pytest.mark.parametrize("content", ["[]", "3", '"opt"', "null"])
def test_a_configuration_that_is_no_object_is_refused(model_folder, content):
    folder = model_folder()
    (folder / "config.json").write_text(content)
    with pytest.raises(BadInput, match=r"config\.json"):
        Checkpoint(str(folder))


def test_an_unknown_family_is_refused_before_loading(model_folder):
    folder = model_folder()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "bloom"}))
    with pytest.raises(BadInput, match=r"'bloom'.*does not know"):
        Checkpoint(str(folder))


def test_a_missing_shard_is_named_before_loading(tiny_model, tmp_path):
    tiny_model("llama").hf.save_pretrained(tmp_path, max_shard_size="20KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    assert Checkpoint(str(tmp_path)).load().blocks
    shards[1].unlink()
    with pytest.raises(BadInput, match=rf"{shards[1].name} .*is missing"):
        Checkpoint(str(tmp_path))


def test_a_damaged_list_of_shards_is_refused_before_loading(tiny_model, tmp_path):
    tiny_model("llama").hf.save_pretrained(tmp_path, max_shard_size="20KB")
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(index.read_text()[:100])
    with pytest.raises(BadInput, match=r"model\.safetensors\.index\.json is not valid JSON"):
        Checkpoint(str(tmp_path))


def test_a_weight_that_is_missing_is_named(model_folder, change_weights):
    folder = model_folder()
    name = "model.decoder.layers.1.fc1.weight"
    change_weights(folder, lambda tensors: tensors.pop(name))
    with pytest.raises(BadInput, match=rf"incomplete: {name} missing"):
        Checkpoint(str(folder)).load()


def test_a_weight_of_another_shape_is_refused(model_folder, change_weights):
    folder = model_folder()
    change_weights(folder, lambda tensors: tensors.update({"model.decoder.layers.1.fc1.weight": torch.zeros(3, 3)}))
    with pytest.raises(BadInput, match=r"Checkpoint\.path="):
        Checkpoint(str(folder)).load()


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named(model_folder, change_weights, value):
    folder = model_folder()
    change_weights(folder, lambda tensors: tensors["model.decoder.layers.2.fc2.weight"].view(-1)[3].fill_(value))
    with pytest.raises(RunFailed, match=r"layers\.2\.fc2\.weight holds NaN or infinite"):
        Checkpoint(str(folder)).load()
