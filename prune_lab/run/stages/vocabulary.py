"""Removes the tokens that a text does not need, from the model and from its tokenizer."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from prune_lab.data.spec import DataSpec
from prune_lab.errors import BadInput, BadSetting, RunFailed
from prune_lab.evaluation.metric import MetricInfo
from prune_lab.models.families import family_of
from prune_lab.models.vocabulary import check_vocabulary_parts, cut_vocabulary, named_ids, tokenizer_file
from prune_lab.run.state import RunState, Stage, training_samples
from prune_lab.utils.checks import check_choice, check_text, check_texts, check_whole
from prune_lab.utils.paths import named_paths

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)
COUNTED = ("training", "calibration")
NOTE = (
    "perplexity is per token, and not to be compared with that before vocabulary pruning, which has other tokens: "
    "compare bits per byte"
)


@dataclass
class Vocabulary(Stage):
    """Removes tokens that a text hardly has: rows of the embedding and of the output layer, and their names.

    What stays are tokens that occur ``min_count`` times, added tokens and those that configurations name, all single
    bytes (or characters, in a tokenizer without bytes), the tokens of ``keep``, and all that these are merged of. Any
    text can still be encoded, if by more tokens. The data of the run are tokenised anew for the stages behind.

    Args:
        data: of the run.
        min_count: how often a token has to occur.
        text: where: ``training``, what the run trains on, or ``calibration``, its samples.
        file: a text file in UTF-8 to count in the place of these; a pattern may name several.
        keep: words or texts whose tokens stay in any case.

    Source: TextPruner (Yang, Cui and Chen, 2022, arXiv:2203.15996), whose cut tokenizers of byte-pair encoding keep
    merges of tokens that are gone, and lack bytes.
    """

    metric_info: ClassVar[Mapping[str, MetricInfo]] = {
        "tokens_before": MetricInfo("tokens of the vocabulary, before", "count", better="lower"),
        "tokens": MetricInfo("tokens of the vocabulary", "count", better="lower", in_summary=True),
        "parameters_before": MetricInfo("parameters, before", "count", better="lower"),
        "parameters": MetricInfo("parameters after cutting the vocabulary", "count", better="lower", in_summary=True),
    }
    needs: ClassVar = {"data": "data"}
    input_files: ClassVar = ("file",)
    data: DataSpec
    min_count: int = 1
    text: str = "training"
    file: str | None = None
    keep: Sequence[str] = ()

    def __post_init__(self) -> None:
        check_whole(self, "min_count")
        check_choice(self, "text", COUNTED)
        check_texts(self, "keep")
        check_text(self, "file", optional=True)

    def prepare(self) -> None:
        """Reads the file, if there is one, and looks whether the data can be tokenised anew."""
        self._texts()
        if not self.data.is_text:
            raise BadInput(
                "stages lists vocabulary, behind which texts are tokenised anew, and this data is of token ids "
                "(data=tokens) or of samples that the model writes (data=generated); use text, such as data=files"
            )

    def check_tokenizer(self, tokenizer: "PreTrainedTokenizerBase | None", name: str) -> None:
        """Whether its tokens can be removed one by one."""
        try:
            tokenizer_file(tokenizer)
        except BadInput as error:
            raise BadInput(f"stages lists vocabulary, and of the model {name} {error}; leave the stage out") from error

    def check(self, run: RunState) -> None:
        """Whether nothing else of the model has a row for each token."""
        check_vocabulary_parts(run.model, tokenizer_file(run.model.tokenizer))
        run.fewer_tokens = True

    def __call__(self, run: RunState) -> dict[str, float]:
        """Cuts the model's vocabulary in place, and tokenises the run's data anew."""
        model = run.model
        whole: Any = model.tokenizer
        file = tokenizer_file(whole)
        rows, before = model.vocab_size, _parameters(run)
        samples = None if self.file is not None else self._samples(run)
        counts = self._counts(run, samples)
        ids = file.required() | named_ids(model)
        occurring = set((counts >= self.min_count).nonzero().flatten().tolist())
        ids |= occurring | self._kept(model.tokenizer)
        closed = file.close(ids)
        if len(closed) == rows:
            logger.warning(
                "vocabulary: every token occurs %d times or is needed by one that does, so none goes; raise "
                "stages.vocabulary.min_count",
                self.min_count,
            )
            return {}
        order = cut_vocabulary(model, file, closed)
        dropped = set(counts.nonzero().flatten().tolist()) - closed
        texts = self._texts() if samples is None else whole.batch_decode(samples, skip_special_tokens=True)
        _check_same(whole, model.tokenizer, order, texts)
        self._retokenise(run)
        logger.info("vocabulary: %d of %d tokens stay; %s", len(order), rows, NOTE)
        run.protocol["vocabulary"] = {
            "min_count": self.min_count,
            "counted": "file" if self.file is not None else self.text,
            "counted_tokens": int(counts.sum()),
            "occurring": len(occurring),
            "of_merges": len(closed) - len(ids),
            "occurring_but_dropped": len(dropped),
            "data": run.data.protocol,
            "note": NOTE,
        }
        return {
            "tokens_before": float(rows),
            "tokens": float(len(order)),
            "parameters_before": before,
            "parameters": _parameters(run),
        }

    def _samples(self, run: RunState) -> Tensor:
        return run.data.calibration if self.text == "calibration" else training_samples(run).tokens

    def _counts(self, run: RunState, samples: Tensor | None) -> Tensor:
        """How often each id occurs, ``(ids,)`` int64."""
        if samples is not None:
            return torch.bincount(samples.flatten(), minlength=run.model.vocab_size)
        tokenizer: Any = run.model.tokenizer
        total = torch.zeros(run.model.vocab_size, dtype=torch.int64)
        for text in self._texts():
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            total += torch.bincount(torch.tensor(ids, dtype=torch.int64), minlength=len(total))
        return total

    def _texts(self) -> list[str]:
        if self.file is None:
            return []
        paths, texts = [path for path in named_paths(self.file) if path.is_file()], []
        if not paths:
            raise BadSetting(self, "file", "names no file; give a text file in UTF-8, or a pattern of some")
        for path in paths:
            try:
                texts.append(path.read_text(encoding="utf-8"))
            except (OSError, UnicodeDecodeError) as error:
                raise BadSetting(self, "file", f": {path} cannot be read as text in UTF-8 ({error})") from error
        return texts

    def _kept(self, tokenizer: Any) -> set[int]:
        """The tokens of ``keep``, of each text as it stands and behind a blank."""
        spelled = [form for text in self.keep for form in (text, f" {text}")]
        return {each for text in spelled for each in tokenizer(text, add_special_tokens=False)["input_ids"]}

    def _retokenise(self, run: RunState) -> None:
        model = run.model
        bos = family_of(model.hf.config.model_type).bos
        run.data = self.data.load(
            model.tokenizer, vocab_size=model.vocab_size, seqlen_limit=model.seqlen_limit, default_bos=bos
        )


def _check_same(whole: Any, cut: Any, order: Sequence[int], texts: Sequence[str]) -> None:
    """Checks that texts whose tokens all stay are encoded as before, up to the numbers.

    It is texts that are compared, and not the run's samples: these are drawn at places in the tokens of the whole data
    set, which are others when some of its words come in more pieces.
    """
    new = {old: at for at, old in enumerate(order)}
    for text in texts:
        before, after = (each(text, add_special_tokens=False, verbose=False)["input_ids"] for each in (whole, cut))
        if all(token in new for token in before) and [new[token] for token in before] != after:
            raise RunFailed(
                "the cut tokenizer encodes a text that was counted otherwise than the whole one; that is a fault of "
                "prune_lab or of an unusual tokenizer, not of the settings"
            )


def _parameters(run: RunState) -> float:
    return float(sum(parameter.numel() for parameter in run.model.hf.parameters()))
