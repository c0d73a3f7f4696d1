"""Calibration text that the model itself writes, before anything is done to it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prune_lab.cache.store import open_store
from prune_lab.data.author import Author
from prune_lab.data.bos import BosMode, place_bos
from prune_lab.data.limits import check_room
from prune_lab.data.spec import DataSpec, Drawn, Measured, ModelFacts, check_left_to, put_together
from prune_lab.data.tokens import Data, token_digest, tokenizer_protocol, window_length
from prune_lab.errors import BadInput, BadSetting, RunFailed
from prune_lab.models.decoding import without_recommendations
from prune_lab.models.identity import model_key, place_key
from prune_lab.utils.checks import check_number, check_whole
from prune_lab.utils.digests import json_digest
from prune_lab.utils.progress import track

if TYPE_CHECKING:  # importing model code takes seconds, which a mistake in the settings should not cost
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

_TOKENS = "tokens.safetensors"
_BATCH = 16  # samples at once: the keys and values of 2,048 tokens of LLaMA-7B take 17 GB


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn; see `Generated`."""

    temperature: float
    top_p: float
    seed: int


@dataclass(kw_only=True)
class Generated(DataSpec):
    """Samples that the model draws token by token from its own distribution, as it is before the first stage.

    It begins behind the token that begins a text, or goes on from the first tokens of another data set's samples, which
    stay the beginning of the sample. The end of a text is never drawn, so that all samples are of one length. What was
    written is kept in the store.

    Attributes:
        source: another data set: evaluation text, and the beginnings, if any.
        prefix_tokens: how many tokens of each of its samples the model goes on from; 0: the token that begins a text.
        temperature: by which logits are divided.
        top_p: of the most likely tokens that together have this probability one is drawn; 1: of all.
        seed: of the tokens drawn.

    Source: self-generated calibration text as in Williams et al., 2024, arXiv:2410.17711, without their filter.
    """

    source: DataSpec
    samples: int = 128
    prefix_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        check_whole(self, "samples")  # before the base class, which allows null
        super().__post_init__()
        check_whole(self, "prefix_tokens", least=0, hint="0: the token that begins a text")
        check_number(self, "temperature", above=0)
        check_number(self, "top_p", above=0, most=1, hint="1: any token may be drawn")
        if not isinstance(self.source, DataSpec):
            raise BadSetting(self, "source", "is not allowed; allowed: a data set, data@{at}.source=CHOICE")
        check_left_to(self, self.source, "below generated text")
        if self.bos == "none" and not self.prefix_tokens:
            raise BadSetting(
                self, "bos", "leaves the model nothing to begin with; use {at}.bos=null, or {at}.prefix_tokens=8, say"
            )

    @property
    def is_text(self) -> bool:
        """The samples are tokens that the model has written."""
        return False

    def check_evaluation(self) -> None:
        """Checks that the other data set has a text to evaluate on."""
        self.source.check_evaluation()

    def load(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        vocab_size: int,
        seqlen_limit: int,
        default_bos: BosMode = "text",
    ) -> Data:
        """Reads the other data set; `Data.write` has the samples written.

        Raises:
            BadInput: it cannot be used, or there is nothing to begin with.
        """
        model = self._fitted(ModelFacts(tokenizer, vocab_size, seqlen_limit, default_bos))
        drawn, measured = self.draw(model), self.source.measure(model)
        told: dict[str, object] = {"tokenizer": None}
        if tokenizer is not None:
            told = {"tokenizer": tokenizer_protocol(tokenizer)}
            told["bos"] = place_bos(self, tokenizer, default_bos).to_json()
        logger.info(
            "data: %d samples of %d tokens, which the model will write, and %d evaluation windows",
            *drawn.tokens.shape, len(measured.tokens),
        )  # fmt: skip
        return put_together(drawn, measured, self.batch_size, told, same_text=False)

    def draw(self, model: ModelFacts) -> Drawn:
        """Returns the beginnings of the samples; the rest is zero until the model has written it.

        Raises:
            BadInput: there is nothing to begin with.
        """
        model = self._fitted(model)
        seqlen = window_length(self.seqlen, model.seqlen_limit)
        check_room(self.samples, seqlen)
        prefixes, told = self._prefixes(model, seqlen)
        tokens = torch.zeros(self.samples, seqlen, dtype=torch.int64)
        tokens[:, : prefixes.shape[1]] = prefixes
        protocol: dict[str, object] = {
            "source": "generated by the model",
            "prefix": told,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "samples": self.samples,
            "seqlen": seqlen,
            "seed": self.seed,
        }
        drawn = Drawn(tokens, protocol)
        drawn.write = partial(self._write, drawn, prefixes, model.tokenizer)
        return drawn

    def measure(self, model: ModelFacts) -> Measured:
        """Reads the evaluation text of the other data set."""
        return self.source.measure(self._fitted(model))

    def _fitted(self, model: ModelFacts) -> ModelFacts:
        """Hands length and the place of the token that begins a text on to the other data set."""
        seqlen, bos = window_length(self.seqlen, model.seqlen_limit), self.bos
        if model.tokenizer is not None:
            bos = place_bos(self, model.tokenizer, model.default_bos).mode
        self.source = replace(self.source, seqlen=seqlen)
        return replace(model, default_bos=bos or model.default_bos)

    def _prefixes(self, model: ModelFacts, seqlen: int) -> tuple[Tensor, dict[str, object]]:
        """What the model goes on from, ``(samples, prefix)`` int64, and how that came about."""
        if self.prefix_tokens >= seqlen:
            raise BadSetting(
                self,
                "prefix_tokens",
                f"leaves nothing to write of samples of {seqlen} tokens; allowed: 0 to {seqlen - 1}",
            )
        if not self.prefix_tokens:
            start = None if model.tokenizer is None else model.tokenizer.bos_token_id
            if start is None:
                raise BadInput(
                    "{at}: the model has no tokenizer with a token that begins a text (bos_token), behind which it "
                    "could begin; use {at}.prefix_tokens=8, say, for the first tokens of {at}.source's samples",
                    self,
                )
            return torch.full((self.samples, 1), start), {"tokens": 1, "bos": start}
        drawn = replace(self.source, samples=self.samples).draw(model)
        if len(drawn.tokens) != self.samples:
            raise BadInput(
                f"{{at}}.samples={self.samples}, and {{at}}.source has {len(drawn.tokens)} samples to go on from; use "
                f"{{at}}.samples={len(drawn.tokens)}",
                self,
            )
        return drawn.tokens[:, : self.prefix_tokens], {"tokens": self.prefix_tokens, "from": drawn.protocol}

    def _write(self, drawn: Drawn, prefixes: Tensor, tokenizer: PreTrainedTokenizerBase | None, author: Author) -> None:
        """Puts what the model writes behind the beginnings, or what it wrote in an earlier run."""
        batch_size, seqlen = self.batch_size or _BATCH, drawn.tokens.shape[1]
        ends = _ends(author.model.hf, tokenizer)
        sampling = Sampling(float(self.temperature), float(self.top_p), self.seed)
        key = {
            "generated": {
                **asdict(sampling),
                "prefixes": token_digest(prefixes.numpy()),
                "seqlen": seqlen,
                "ends": ends,
            },
            "batch_size": batch_size,
            **model_key(author.model, author.known_as),
            **place_key(author.device),
        }

        def make() -> Tensor:
            with author.model.placed(author.device) as hf:
                return _continued(hf, prefixes, seqlen, batch_size, ends, sampling)

        def write(folder: Path, tokens: Tensor) -> None:
            save_file({"tokens": tokens}, folder / _TOKENS)

        def read(folder: Path) -> Tensor:
            logger.info("calibration text: written in an earlier run")
            return load_file(folder / _TOKENS)["tokens"]

        drawn.tokens.copy_(
            open_store().obtain(json_digest(key), "text by this model", read=read, make=make, write=write)
        )
        drawn.protocol["sha256"] = token_digest(drawn.tokens.numpy())


def _ends(hf: "PreTrainedModel", tokenizer: PreTrainedTokenizerBase | None) -> list[int]:
    """The tokens that end a text, by the tokenizer and by the model."""
    own = getattr(hf.generation_config, "eos_token_id", None)
    found = [None if tokenizer is None else tokenizer.eos_token_id, *(own if isinstance(own, list) else [own])]
    return sorted({int(each) for each in found if each is not None})


@torch.inference_mode()
def _continued(
    hf: "PreTrainedModel",
    prefixes: Tensor,
    seqlen: int,
    batch_size: int,
    ends: list[int],
    sampling: Sampling,
) -> Tensor:
    """Samples with the prefixes in front, ``(samples, seqlen)`` int64 on the host; none of ``ends`` is drawn."""
    new = seqlen - prefixes.shape[1]
    starts = range(0, len(prefixes), batch_size)
    found = []
    with without_recommendations(hf), _seeded(sampling.seed, hf.device):
        for start in track(starts, len(starts), "writing"):
            tokens = prefixes[start : start + batch_size].to(hf.device)
            try:
                # of GenerationMixin, which all causal language models inherit and their base class does not
                written: Tensor = hf.generate(  # type: ignore[operator]
                    input_ids=tokens,
                    attention_mask=torch.ones_like(tokens),
                    do_sample=True,
                    temperature=sampling.temperature,
                    top_p=sampling.top_p,
                    top_k=0,
                    max_new_tokens=new,
                    min_new_tokens=new,
                    suppress_tokens=ends or None,
                    use_cache=True,
                )
            except RuntimeError as error:
                if "probability tensor" not in str(error):
                    raise
                raise RunFailed(
                    "the model cannot write calibration text: its probabilities are not finite; use model.dtype=float32"
                ) from error
            found.append(written.cpu())
    return torch.cat(found)


@contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Random numbers of torch follow the seed inside, and are as if nothing had been drawn afterwards."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(seed)
        yield
