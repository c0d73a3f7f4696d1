"""A tokenizer whose ids can be read off the text: the word w7 is token 7."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

WORDS, START = 50, 50


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """Splits at blanks; token 50, ``<s>``, stands before every text, as OPT has it. It says its limit is 4 tokens."""
    vocabulary = {f"w{number}": number for number in range(WORDS)} | {"<s>": START, "<unk>": START + 1}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", START)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>", model_max_length=4)
