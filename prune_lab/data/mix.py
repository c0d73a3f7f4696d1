"""Several data sets in one: each gives its share of the samples."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import partial
from math import ceil

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prune_lab.data.author import Author
from prune_lab.data.bos import Bos, BosMode, place_bos
from prune_lab.data.samples import Samples
from prune_lab.data.shares import divided, largest_total, percentages, portions
from prune_lab.data.spec import DataSpec, Drawn, Measured, ModelFacts, check_left_to, put_together
from prune_lab.data.tokens import Data, token_digest, tokenizer_protocol, window_length
from prune_lab.errors import BadInput, BadSetting, shown
from prune_lab.utils.checks import check_text, check_whole, is_number

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Mix(DataSpec):
    """Samples of several data sets: ``data=mix 'data.shares={c4: 0.7, wikitext2: 0.3}'``.

    Each source draws its samples as it does alone, with its own seed. A share is one of samples: the numbers of samples
    are rounded by the largest remainder, so that they add up to ``samples``, and the samples stand in a random order.
    Samples to train on have the same shares. They are as many as the source that has the fewest for its share allows;
    of the others, random ones are taken, each once.

    Attributes:
        sources: data sets by name. One without a share is there to be evaluated on.
        shares: by source, positive numbers; divided by their sum.
        evaluate_on: the source whose evaluation text is measured; None: that of the largest share.
        limit_windows: evaluates the first so many windows only; None: as the source has it.
        seed: of the order of the samples, and of which training samples are taken.
    """

    sources: dict[str, DataSpec]
    shares: dict[str, float]
    samples: int = 128
    evaluate_on: str | None = None
    limit_windows: int | None = None

    def __post_init__(self) -> None:
        check_whole(self, "samples")  # before the base class, which allows null
        super().__post_init__()
        check_text(self, "evaluate_on", optional=True, hint="a source; null: that of the largest share")
        check_whole(self, "limit_windows", optional=True, hint="null: as the source has it")
        for field, what in {"sources": "data sets", "shares": "numbers above 0"}.items():
            if not isinstance(getattr(self, field), Mapping):
                raise BadSetting(self, field, f"is not allowed; allowed: {what} by the name of the source")
        self._portions = self._checked_shares()
        if self.evaluate_on is None:  # sorted: mappings of equal content are one and the same setting
            self.evaluate_on = max(sorted(self._portions), key=lambda name: self._portions[name])
        self._check_sources()
        counts = divided(self.samples, self._portions)
        for name in (name for name, count in counts.items() if not count):
            raise BadInput(
                f"{{at}}.shares.{name}={shown(self.shares[name])} of {{at}}.samples={self.samples} is no sample; give "
                f"it a larger share, or use {{at}}.samples={ceil(1 / self._portions[name])} or more",
                self,
            )
        self.sources = {name: self._with_own(name, counts.get(name)) for name in self.sources}

    def check_evaluation(self) -> None:
        """Checks that the source to evaluate on has a text for it."""
        try:
            self._evaluated.check_evaluation()
        except BadInput as error:
            raise BadInput(
                f"{{at}}.sources.{self.evaluate_on} has no text to evaluate on; give it "
                f"{{at}}.sources.{self.evaluate_on}.evaluation, or name another source: {{at}}.evaluate_on=NAME",
                self,
            ) from error

    @property
    def is_text(self) -> bool:
        """Whether all sources are."""
        return all(source.is_text for source in self.sources.values())

    def load(
        self,
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        vocab_size: int,
        seqlen_limit: int,
        default_bos: BosMode = "text",
    ) -> Data:
        """Reads the sources, each as it is read alone.

        Raises:
            BadInput: one of them cannot be used.
        """
        model = self._fitted(ModelFacts(tokenizer, vocab_size, seqlen_limit, default_bos))
        measured = self._evaluated.measure(model)
        parts = self._parts(model)
        told: dict[str, object] = {"tokenizer": None}
        if tokenizer is not None:
            bos = Bos(model.default_bos, tokenizer.bos_token_id)
            told = {"tokenizer": tokenizer_protocol(tokenizer), "bos": bos.to_json()}
        same = any(part.from_text_of(measured) for part in parts.values())
        logger.info("data: %s", ", ".join(f"{len(part.tokens)} samples of {name}" for name, part in parts.items()))
        return put_together(self._mixed(parts), measured, self.batch_size, told, same_text=same)

    def draw(self, model: ModelFacts) -> Drawn:
        """Draws the samples of all sources that have a share."""
        return self._mixed(self._parts(self._fitted(model)))

    def measure(self, model: ModelFacts) -> Measured:
        """Reads the evaluation text of one source."""
        model = self._fitted(model)
        return self._evaluated.measure(model)

    @property
    def _evaluated(self) -> DataSpec:
        assert self.evaluate_on is not None
        return self.sources[self.evaluate_on]

    def _checked_shares(self) -> dict[str, Fraction]:
        """The shares, which add up to one."""
        if not self.shares:
            raise BadInput(
                "{at}.shares is empty; give each source its share: '{at}.shares={c4: 0.7, wikitext2: 0.3}'", self
            )
        for name, share in self.shares.items():
            if not is_number(share, above=0):
                raise BadInput(
                    f"{{at}}.shares.{name}={shown(share)} is not allowed; allowed: numbers above 0, which are divided "
                    "by their sum; leave out a source that is to give nothing",
                    self,
                )
        found, total = portions(self.shares)
        if total != 1:
            logger.info("data.shares add up to %g and are divided by it: %s", total, percentages(found))
        return found

    def _check_sources(self) -> None:
        asked = [(name, f"{{at}}.shares.{name}={shown(share)}") for name, share in self.shares.items()]
        for name, given in [*asked, (self.evaluate_on, f"{{at}}.evaluate_on={shown(self.evaluate_on)}")]:
            if name not in self.sources:
                there = f"; sources: {', '.join(sorted(self.sources))}" if self.sources else ""
                raise BadInput(
                    f"{given}: there is no source {name}{there}; on the command line the name of a choice of data is "
                    f"enough, any other name takes +data@{{at}}.sources.{name}=CHOICE",
                    self,
                )
        for name, source in self.sources.items():
            if name not in self.shares and name != self.evaluate_on:
                logger.info("data.sources.%s has no share and is not used", name)
            check_left_to(self, source, "in a mix")

    def _with_own(self, name: str, samples: int | None) -> DataSpec:
        """A source with what the mix decides for it."""
        source = self.sources[name]
        own: dict[str, object] = {"seqlen": self.seqlen}
        own |= {"samples": samples} if samples else {}
        if self.limit_windows is not None and name == self.evaluate_on:
            if "limit_windows" not in {field.name for field in fields(source)}:
                raise BadSetting(self, "limit_windows", f"is not allowed; {name} cannot be limited")
            own["limit_windows"] = self.limit_windows
        try:
            return replace(source, **own)  # type: ignore[arg-type]
        except BadInput as error:
            error.locate(lambda rest: f"{{at}}.sources.{name}{rest}")
            reason = f"{{at}}.shares.{name} is {samples} of {{at}}.samples={self.samples}, and "
            raise BadInput(f"{reason if samples else ''}{error.args[0]}", self) from error

    def _fitted(self, model: ModelFacts) -> ModelFacts:
        """Decides the length of samples for all sources alike, and where the token that begins a text stands."""
        seqlen, bos = window_length(self.seqlen, model.seqlen_limit), self.bos
        if model.tokenizer is not None:
            bos = place_bos(self, model.tokenizer, model.default_bos).mode
        self.sources = {name: replace(source, seqlen=seqlen) for name, source in self.sources.items()}
        return replace(model, default_bos=bos or model.default_bos)

    def _parts(self, model: ModelFacts) -> dict[str, Drawn]:
        return {name: self.sources[name].draw(model) for name in sorted(self._portions)}

    def _mixed(self, parts: Mapping[str, Drawn]) -> Drawn:
        tokens = self._shuffled(parts)
        told = {name: {"share": float(self._portions[name])} | part.protocol for name, part in parts.items()}
        protocol: dict[str, object] = {
            "source": f"mix of {percentages(self._portions)}",
            "samples": len(tokens),
            "seqlen": tokens.shape[1],
            "seed": self.seed,
            "sha256": token_digest(tokens.numpy()),
            "sources": told,
        }
        mixed = Drawn(tokens, protocol, partial(self._training_samples, parts))
        if any(part.write is not None for part in parts.values()):
            mixed.write = partial(self._write, parts, mixed, told)
        return mixed

    def _shuffled(self, parts: Mapping[str, Drawn]) -> Tensor:
        tokens = torch.cat([part.tokens for part in parts.values()])
        return tokens[torch.from_numpy(np.random.default_rng(self.seed).permutation(len(tokens)))]

    def _write(
        self, parts: Mapping[str, Drawn], mixed: Drawn, told: Mapping[str, dict[str, object]], author: Author
    ) -> None:
        """Lets the model write the samples of sources that want it."""
        for name, part in parts.items():
            if part.write is not None:
                part.write(author)
                told[name].update(part.protocol)
        mixed.tokens.copy_(self._shuffled(parts))
        mixed.protocol["sha256"] = token_digest(mixed.tokens.numpy())

    def _training_samples(self, parts: Mapping[str, Drawn]) -> tuple[Samples, dict[str, object]]:
        """All training samples of the source that has the fewest for its share, and random ones of the others."""
        read = {name: part.training() if part.training else (Samples(part.tokens), {}) for name, part in parts.items()}
        there = {name: len(samples) for name, (samples, _) in read.items()}
        total = largest_total(there, self._portions)
        counts = divided(total, self._portions)
        for name in (name for name, count in counts.items() if not count):
            raise BadInput(
                f"{{at}}.shares.{name}: too few samples to train on for the shares; there are "
                f"{', '.join(f'{there[each]} of {each}' for each in there)}; give longer texts or other shares",
                self,
            )
        generator = np.random.default_rng(self.seed)
        taken = {name: torch.from_numpy(generator.permutation(there[name])[: counts[name]]) for name in counts}
        mixed = _joined([samples.select(taken[name]) for name, (samples, _) in read.items()])
        told = {
            name: {"share": float(self._portions[name]), "taken": counts[name]} | protocol
            for name, (_, protocol) in read.items()
        }
        size = {"samples": total, "seqlen": mixed.tokens.shape[1], "seed": self.seed}
        protocol = {"source": f"mix of {percentages(self._portions)}"} | size
        return mixed.select(torch.from_numpy(generator.permutation(total))), protocol | {"sources": told}


def _joined(parts: list[Samples]) -> Samples:
    """Samples of several sources as one, padded to the longest."""
    width = max(part.tokens.shape[1] for part in parts)
    tokens = torch.cat([torch.nn.functional.pad(part.tokens, (0, width - part.tokens.shape[1])) for part in parts])
    lengths = torch.cat([_or(part.lengths, part, part.tokens.shape[1]) for part in parts])
    prompts = None
    if any(part.prompts is not None for part in parts):
        prompts = torch.cat([_or(part.prompts, part, 0) for part in parts])
    return Samples(tokens, None if bool((lengths == width).all()) else lengths, prompts)


def _or(given: torch.Tensor | None, part: Samples, otherwise: int) -> torch.Tensor:
    return torch.full((len(part),), otherwise) if given is None else given
