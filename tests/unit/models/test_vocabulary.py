"""Cut vocabularies: any text can be encoded still, kept tokens mean what they meant, and names of ids follow."""

import json
import random
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from prune_lab.errors import BadInput
from prune_lab.models.tokenizer_cut import TokenizerFile, renumbered
from prune_lab.models.vocabulary import check_vocabulary_parts, cut_vocabulary, named_ids, tokenizer_file

CORPUS = [
    "the cat sat on the mat; the hat is red",
    "a cat, a hat, a mat and the other cats",
    "naïve cafés, 日本 and 😀",
] * 4
TRAINED_ON = [
    *CORPUS,
    "quite unrelated words such as pruning, weights and vocabularies",
    "ελληνικά γράμματα και λέξεις",
] * 3
UNSEEN = [
    "Zebra!",
    "\x00\x07\t\n\r",
    "क्षत्रिय",
    "\U0001d518\U0001d52b",
    "e\u0301\u200d\ufeff",
    "<s> the  cat",
    "ελληνικά",
    "",
]


def byte_level(size=420):
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    tokenizer.add_special_tokens(["<late>"])
    template = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))])
    tokenizer.post_processor = template
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>")
    tokenizer.no_padding()
    return tokenizer


def sentencepiece(kind):
    """LLaMA's way: blanks as ▁, and bytes for what has no token."""
    pieces = ["<unk>", "<s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    if kind == "BPE":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=pieces, show_progress=False)
    else:
        tokenizer = Tokenizer(models.Unigram())
        trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=pieces, unk_token="<unk>", show_progress=False)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.train_from_iterator(TRAINED_ON, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = content["added_tokens"][:2]  # bytes are no added tokens
    content["model"]["byte_fallback"] = True
    return Tokenizer.from_str(json.dumps(content))


def unicode_texts(count, seed=0):
    draw = random.Random(seed)
    planes = [(0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    return ["".join(chr(draw.randint(*draw.choice(planes))) for _ in range(draw.randint(1, 30))) for _ in range(count)]


def cut(tokenizer, texts, more=()):
    file = TokenizerFile(json.loads(tokenizer.to_str()))
    ids = file.close(file.required() | {each for text in texts for each in tokenizer.encode(text).ids} | set(more))
    content, order = file.cut(ids)
    return Tokenizer.from_str(json.dumps(content)), order


@pytest.mark.parametrize("make", [byte_level, lambda: sentencepiece("BPE"), lambda: sentencepiece("Unigram")])
def test_the_corpus_is_encoded_as_before_and_any_text_comes_back(make):
    whole = make()
    small, order = cut(whole, CORPUS)
    assert small.get_vocab_size() == len(order) < whole.get_vocab_size()
    assert order == sorted(order)
    for text in CORPUS:
        assert [order[each] for each in small.encode(text).ids] == whole.encode(text).ids
        assert small.encode(text).tokens == whole.encode(text).tokens
    for text in [*UNSEEN, *unicode_texts(200)]:
        assert small.decode(small.encode(text).ids) == whole.decode(whole.encode(text).ids)
        if not text.startswith("<s>"):
            assert small.decode(small.encode(text).ids) == text
    longer = [len(small.encode(text).ids) - len(whole.encode(text).ids) for text in TRAINED_ON]
    assert min(longer) == 0 < max(longer)


def test_no_byte_is_ever_uncovered():
    whole = byte_level()
    small, _ = cut(whole, [])
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    assert alphabet <= set(small.get_vocab())
    assert small.get_vocab_size() == 256 + 4
    assert json.loads(small.to_str())["model"]["merges"] == []


def test_merges_stay_in_their_order_and_only_those_of_tokens_that_stay():
    whole = byte_level()
    small, _ = cut(whole, CORPUS)
    before, after = (json.loads(each.to_str())["model"] for each in (whole, small))
    merges = [tuple(merge) for merge in after["merges"]]
    assert merges == [tuple(merge) for merge in before["merges"] if {*merge, "".join(merge)} <= set(after["vocab"])]
    assert 0 < len(merges) < len(before["merges"])
    made = {"".join(merge) for merge in merges}
    base = set(pre_tokenizers.ByteLevel.alphabet()) | {"<pad>", "<s>", "</s>"}
    assert set(after["vocab"]) == made | base


def test_of_a_token_with_several_merges_all_parts_stay_and_old_files_are_read():
    content = {
        "model": {
            "type": "BPE",
            "vocab": {"a": 0, "b": 1, "c": 2, "ab": 3, "bc": 4, "abc": 5, "ca": 6},
            "merges": ["a b", "b c", "ab c", "a bc", "c a"],
        }
    }
    file = TokenizerFile(content)
    assert file.close({5}) == {0, 1, 2, 3, 4, 5}
    small, order = file.cut(file.close({5}))
    assert (small["model"]["merges"], order) == (["a b", "b c", "ab c", "a bc"], [0, 1, 2, 3, 4, 5])
    assert content["model"]["vocab"]["ca"] == 6
    assert file.required() == {0, 1, 2}  # single characters, where there are no bytes


def test_special_tokens_keep_their_meaning():
    whole = byte_level()
    small, order = cut(whole, CORPUS)
    late = whole.token_to_id("<late>")
    assert order[-1] == late
    assert small.encode("x<late>").ids[0] == small.token_to_id("<s>")
    assert small.encode("x<late>").ids[-1] == small.token_to_id("<late>") == len(order) - 1
    processor = {"type": "RobertaProcessing", "sep": ["</s>", 9], "cls": ["<s>", 7], "ids": [9]}
    content = {"model": {"type": "BPE", "vocab": {"a": 3, "b": 7, "ab": 8, "</s>": 9}, "merges": [["a", "b"]]}}
    content |= {"post_processor": {"processors": [processor]}, "padding": {"pad_id": 9}}
    found, _ = TokenizerFile(content).cut({3, 7, 9})
    assert found["post_processor"]["processors"][0] == processor | {"sep": ["</s>", 2], "cls": ["<s>", 1], "ids": [2]}
    assert found["padding"] == {"pad_id": 2}
    assert renumbered([[9, 3], None, -1, True, "3"], {9: 2, 3: 0}) == [[2, 0], None, -1, True, "3"]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"type": "WordPiece", "vocab": {"a": 0}}, "of the type WordPiece; only those of the types BPE and Unigram"),
        ({"type": "WordLevel", "vocab": {"a": 0}}, "of the type WordLevel"),
        ({"type": "BPE", "vocab": {"a": 0}, "merges": []}, "has no merges"),
    ],
)
def test_a_tokenizer_without_smaller_tokens_is_refused(model, words):
    with pytest.raises(BadInput, match=words):
        TokenizerFile({"model": model})
    with pytest.raises(BadInput, match="has no tokenizer"):
        tokenizer_file(None)


@pytest.fixture
def whole_model(tiny_model):
    def make(family):
        model, tokenizer = tiny_model(family), byte_level()
        model.hf.resize_token_embeddings(tokenizer.get_vocab_size() + 5)  # rows that no token has
        model.tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
        )
        for config in (model.hf.config, model.hf.generation_config):
            config.bos_token_id, config.eos_token_id, config.pad_token_id = 1, [2, tokenizer.token_to_id("<late>")], 0
        return model

    return make


@pytest.mark.parametrize("family", ["opt", "gpt2", "llama", "gpt_neox"])
def test_kept_tokens_have_the_logits_they_had(whole_model, family, tmp_path):
    model = whole_model(family)
    hf, tokenizer = model.hf, model.tokenizer
    tied = hf.get_output_embeddings().weight is hf.get_input_embeddings().weight
    texts = [tokenizer(text)["input_ids"] for text in CORPUS[:3]]
    with torch.no_grad():
        before = [hf(torch.tensor([ids])).logits[0] for ids in texts]
    file = tokenizer_file(tokenizer)
    check_vocabulary_parts(model, file)
    ids = file.close(file.required() | named_ids(model) | {each for text in texts for each in text})
    order = cut_vocabulary(model, file, ids)
    assert order == sorted(ids)
    assert model.vocab_size == hf.config.vocab_size == len(order) == len(model.tokenizer)
    assert (hf.get_output_embeddings().weight is hf.get_input_embeddings().weight) is tied
    for text, logits in zip(CORPUS[:3], before, strict=True):
        with torch.no_grad():
            after = hf(torch.tensor([model.tokenizer(text)["input_ids"]])).logits[0]
        torch.testing.assert_close(after, logits[:, order], rtol=1e-5, atol=1e-5)
    for config in (hf.config, hf.generation_config):
        assert (config.bos_token_id, config.pad_token_id) == (1, 0)
        assert config.eos_token_id == [2, len(order) - 1]
    hf.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    again, loaded = AutoTokenizer.from_pretrained(tmp_path), type(hf).from_pretrained(tmp_path)
    assert again("the cat 😀")["input_ids"] == model.tokenizer("the cat 😀")["input_ids"]
    assert (again.bos_token_id, again.eos_token_id, again.pad_token_id) == (1, 2, 0)
    assert loaded.get_input_embeddings().num_embeddings == len(order)


def test_a_model_that_does_not_fit_is_refused(whole_model, tiny_model):
    model = whole_model("llama")
    file = tokenizer_file(model.tokenizer)
    model.hf.more = torch.nn.Parameter(torch.zeros(model.vocab_size, 2))
    with pytest.raises(BadInput, match="a row for each token in more too"):
        check_vocabulary_parts(model, file)
    with pytest.raises(BadInput, match=r"the tokenizer has the id .* 64 rows"):
        check_vocabulary_parts(tiny_model("llama"), file)


@pytest.mark.smollm2
def test_smollm2s_tokenizer(smollm2_folder):
    """It has no merges of some bytes, which never occur in UTF-8."""
    whole = AutoTokenizer.from_pretrained(smollm2_folder).backend_tokenizer
    texts = [Path(random.__file__).read_text(encoding="utf-8"), *unicode_texts(20, seed=1)]
    small, order = cut(whole, texts)
    assert 1000 < len(order) < whole.get_vocab_size() / 4
    for text in texts:
        assert [order[each] for each in small.encode(text).ids] == whole.encode(text).ids
    for text in [*UNSEEN, *unicode_texts(300)]:
        assert small.decode(small.encode(text).ids, False) == whole.decode(whole.encode(text).ids, False)


def test_a_generation_config_that_is_only_warned_of_is_saved(whole_model, tmp_path):
    """transformers checks what was changed since it was read, and refuses then what it let pass."""
    model = whole_model("llama")
    model.hf.generation_config = GenerationConfig.from_dict({"temperature": 0.6, "eos_token_id": 1})
    file = tokenizer_file(model.tokenizer)
    cut_vocabulary(model, file, file.close(file.required() | named_ids(model)))
    model.hf.save_pretrained(tmp_path / "cut")
    assert json.loads((tmp_path / "cut/generation_config.json").read_text())["temperature"] == 0.6
