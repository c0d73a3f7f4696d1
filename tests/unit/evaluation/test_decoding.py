"""What a model writes is the likeliest, one prompt at a time or many, and a conversation is the template's."""

import pytest
import torch

from prune_lab.errors import BadInput
from prune_lab.evaluation.decoding import Decoding
from prune_lab.models.load import Checkpoint

PROMPTS = (
    "He",
    " name[Blue Spice], eatType[coffee shop]",
    "Once upon a time there was a man who",
    "The history of the city begins in the year when the first people came to the river and",
)


@pytest.mark.parametrize("family", ["opt", "llama", "gpt_neo"])
@pytest.mark.parametrize("beams", [1, 4])
def test_a_batch_gives_what_each_prompt_gives_alone(family, beams):
    checkpoint = Checkpoint(kind="reference", path=family, dtype="float32")
    tokenizer = checkpoint.load_tokenizer()
    hf = checkpoint.load(tokenizer).hf
    prompts = [[0, *tokenizer.encode(prompt, add_special_tokens=False)] for prompt in PROMPTS]
    decoding = Decoding(beams=beams, no_repeat_ngram_size=4, max_new_tokens=16)
    together = decoding.complete(hf, tokenizer, prompts, 512)
    assert together == [decoding.complete(hf, tokenizer, [prompt], 512)[0] for prompt in prompts]
    assert len(set(map(tuple, together))) == len(PROMPTS)
    assert hf.config.use_cache is False


def test_greedy_search_is_the_likeliest_token_each_time(tiny_model, letters, family):
    model = tiny_model(family)
    prompts = [[0, 5, 9], [0, 5, 9, 20, 31, 12, 7, 40], [0]]
    found = Decoding(max_new_tokens=5).complete(model.hf, letters, prompts, 64)
    for prompt, written in zip(prompts, found, strict=True):
        tokens = list(prompt)
        for _ in range(5):
            tokens.append(int(model.hf(torch.tensor([tokens])).logits[0, -1].argmax()))
            if tokens[-1] == letters.eos_token_id:
                tokens.pop()
                break
        assert written == tokens[len(prompt) :]


@pytest.mark.parametrize("family", ["opt", "llama", "gpt_neo"])
def test_prompts_near_the_last_position_get_what_is_left(tiny_model, letters, family):
    model = tiny_model(family)
    prompts = [[0, *[7, 9, 11, 13, 15] * 12][:length] for length in (60, 3, 61, 60, 58)]
    decoding = Decoding(beams=2, max_new_tokens=6)
    together = decoding.complete(model.hf, letters, prompts, 64)
    assert together == [decoding.complete(model.hf, letters, [prompt], 64)[0] for prompt in prompts]
    batches = list(decoding._batches(prompts, 64, 4))
    assert batches == [([2], 3), ([0, 3], 4), ([4, 1], 6)]


def test_an_end_token_ends_a_text(tiny_model, letters):
    model = tiny_model("opt")
    model.hf.get_input_embeddings().weight.data[:] = 0  # tied: every logit is 0, and the first id, the end, wins
    assert Decoding(max_new_tokens=5).complete(model.hf, letters, [[0, 3]], 64) == [[]]


TEMPLATE = (
    "{% for turn in messages %}<s>{{ turn.role[0] }} {{ turn.content }}<unk>{% endfor %}"
    "{% if add_generation_prompt %}<s>{{ who }}{% endif %}"
)


def test_a_conversation_is_the_templates_with_its_special_tokens_once(letters):
    letters.chat_template = TEMPLATE
    plain = Decoding().tokens(letters, "hi")
    assert plain == letters("hi")["input_ids"]
    decoding = Decoding(apply_chat_template=True, system_instruction="be brief", chat_template_args={"who": "a"})
    expected = letters.convert_tokens_to_ids(["<s>", *"s be brief", "<unk>", "<s>", *"u hi", "<unk>", "<s>", "a"])
    assert decoding.tokens(letters, "hi") == expected
    assert decoding.told(letters)["chat_template"] is True
    assert len(decoding.told(letters)["chat_template_sha256"]) == 64


def test_a_conversation_ends_with_the_models_own_end_of_a_turn_too(tiny_model, letters):
    model = tiny_model("llama")
    letters.chat_template = TEMPLATE
    free = Decoding(max_new_tokens=5).complete(model.hf, letters, [[0, 5, 9]], 64)[0]
    assert len(free) == 5
    model.hf.generation_config.eos_token_id = [letters.eos_token_id, free[2]]
    assert Decoding(max_new_tokens=5).complete(model.hf, letters, [[0, 5, 9]], 64) == [free]
    chat = Decoding(max_new_tokens=5, apply_chat_template=True)
    assert chat.complete(model.hf, letters, [[0, 5, 9]], 64) == [free[: free.index(free[2])]]


def test_recommendations_of_a_checkpoint_are_not_followed_and_are_there_afterwards(tiny_model, letters):
    model = tiny_model("llama")
    free = Decoding(max_new_tokens=8).complete(model.hf, letters, [[0, 5, 9]], 64)
    model.hf.generation_config.update(repetition_penalty=100.0, suppress_tokens=free[0], do_sample=True, top_k=3)
    own = model.hf.generation_config
    assert Decoding(max_new_tokens=8).complete(model.hf, letters, [[0, 5, 9]], 64) == free
    assert model.hf.generation_config is own


def test_a_tokenizer_that_cannot_end_a_text_is_refused_before_the_weights_are_read(letters):
    letters.eos_token = None
    with pytest.raises(BadInput, match=r"tokenizer of tiny has none.*eos_token"):
        Decoding().check_tokenizer(letters, "tiny")


def test_a_chat_template_where_there_is_none_is_one_message(letters):
    with pytest.raises(BadInput) as refused:
        Decoding(apply_chat_template=True).check_tokenizer(letters, "tiny")
    message = str(refused.value)
    assert message.startswith("Decoding.apply_chat_template=true needs a chat template, which the tokenizer of tiny")
    assert "chat_template.jinja" in message and "Decoding.apply_chat_template=false" in message


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no system role here') }}", "no system role here"),
        ("{{ 1 + messages[0].content }}", r"unsupported operand type.*"),
        ("{% if %}", r"Expected an expression.*"),
        ("{{ who.name.first }}", r"'who' is undefined"),
    ],
)
def test_a_template_that_cannot_make_a_prompt_is_told(letters, template, reason):
    letters.chat_template = template
    with pytest.raises(BadInput, match=rf"apply_chat_template=true: .*: {reason}; change Decoding\.system_instruction"):
        Decoding(apply_chat_template=True).check_tokenizer(letters, "tiny")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"beams": 0}, r"Decoding\.beams=0 is not allowed; allowed: whole numbers of at least 1"),
        ({"max_new_tokens": 0}, r"Decoding\.max_new_tokens=0"),
        ({"no_repeat_ngram_size": -1}, r"Decoding\.no_repeat_ngram_size=-1"),
        ({"batch_size": 0}, r"Decoding\.batch_size=0"),
        ({"length_penalty": "x"}, r"Decoding\.length_penalty='x' is not allowed; allowed: numbers"),
        ({"apply_chat_template": "yes"}, r"Decoding\.apply_chat_template='yes' is not allowed; allowed: true, false"),
        (
            {"system_instruction": "x"},
            r"system_instruction='x' is read by the chat template only; set Decoding\.apply_",
        ),
        ({"chat_template_args": {"a": 1}}, r"chat_template_args=.* is read by the chat template only"),
        (
            {"apply_chat_template": True, "chat_template_args": {"tokenize": 1}},
            r"names tokenize, which no chat template",
        ),
    ],
)
def test_bad_settings_are_refused(setting, message):
    with pytest.raises(BadInput, match=message):
        Decoding(**setting)
