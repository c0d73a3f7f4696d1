"""Encoders have a head of their own, or get one for the labels of the data."""

import logging

import pytest
from transformers import AutoModel, BertConfig, BertForSequenceClassification, BertLMHeadModel

from prune_lab.api.inputs import as_given
from prune_lab.errors import BadInput
from prune_lab.models.heads import Labels
from prune_lab.models.in_memory import InMemory
from prune_lab.models.load import Checkpoint
from prune_lab.models.model import seqlen_limit_of

THREE = Labels(("a", "b", "c"))


def test_a_checkpoint_without_a_head_gets_one(encoder_folder, encoder_family, caplog):
    checkpoint = Checkpoint(str(encoder_folder(encoder_family)))
    with caplog.at_level(logging.INFO):
        model = checkpoint.load(None, THREE)
    assert model.hf.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert "has no head that classifies; a new one starts at random, for the classes a, b, c" in caplog.text
    again = Checkpoint(str(encoder_folder(encoder_family))).load(None, THREE)
    assert model.fingerprint() == again.fingerprint()
    with pytest.raises(BadInput, match=r"has no head that classifies, and only data=classification says"):
        checkpoint.load()


def test_values_have_one_output(encoder_folder):
    config = Checkpoint(str(encoder_folder())).load(None, Labels(("value",), values=True)).hf.config
    assert (config.num_labels, config.problem_type) == (1, "regression")


def test_a_head_for_other_classes_is_refused(encoder_folder, encoder_family):
    checkpoint = Checkpoint(str(encoder_folder(encoder_family, classes=2)))
    with pytest.raises(BadInput, match=r"has 2 outputs \(LABEL_0, LABEL_1\), and the data the classes a, b, c"):
        checkpoint.load(None, THREE)
    model = checkpoint.load(None, Labels(("a", "b")))
    assert model.is_encoder and len(model.head) == (2 if encoder_family == "bert" else 1)


def named(*names: str) -> InMemory:
    config = BertConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        id2label=dict(enumerate(names)),
    )  # fmt: skip
    return InMemory(BertForSequenceClassification(config))


def test_the_order_of_classes_has_to_be_that_of_the_head(caplog):
    named("A", "b", "C").load(None, THREE)
    with pytest.raises(BadInput, match=r"in the order b, a, c, and the data in the order a, b, c; .*labels=\[b,a,c\]"):
        named("b", "a", "c").load(None, THREE)
    assert not caplog.records
    named("x", "y", "z").load(None, THREE)
    assert "calls its classes x, y, z, and the data a, b, c; they are taken to be the same" in caplog.text


def test_a_decoder_of_the_family_is_refused():
    config = BertConfig(
        vocab_size=16, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, is_decoder=True
    )
    with pytest.raises(BadInput, match="without a head that classifies; load it with AutoModelForSequenceClass"):
        as_given(BertLMHeadModel(config), None)
    with pytest.raises(BadInput, match="is_decoder=true"):
        InMemory(BertLMHeadModel(config)).load(None, THREE)


def test_a_model_in_memory_without_a_head_is_refused(encoder_folder):
    with pytest.raises(BadInput, match="BertModel is an encoder without a head that classifies"):
        as_given(AutoModel.from_pretrained(encoder_folder()), None)


def test_positions_of_roberta_begin_behind_its_padding(tiny_model):
    assert seqlen_limit_of(tiny_model("roberta").hf.config) == seqlen_limit_of(tiny_model("bert").hf.config) == 64


def test_a_part_of_a_head_is_no_head(encoder_folder, tmp_path):
    from safetensors.torch import load_file, save_file

    file = encoder_folder("roberta", classes=3) / "model.safetensors"
    weights = {name: each for name, each in load_file(file).items() if name != "classifier.dense.weight"}
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(BadInput, match=r"incomplete: classifier\.dense\.weight missing"):
        Checkpoint(str(file.parent)).load_config()
