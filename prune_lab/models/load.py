"""Loads a causal language model, or an encoder that classifies, from a Hugging Face folder or from the hub."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
import transformers  # its parts are imported when they are used: a mistake in the settings costs no seconds

from prune_lab.errors import BadInput, Reported, owned_by
from prune_lab.models import fit
from prune_lab.models.attention import Attention, attention_of, check_attention, set_flash_attention
from prune_lab.models.config_file import check_sizes, read_config, refuse_own_classes
from prune_lab.models.families import family_of
from prune_lab.models.folder import GGUF, model_name
from prune_lab.models.gguf import GgufFile
from prune_lab.models.heads import Labels, drawing_head, fit_head
from prune_lab.models.hub import Repository
from prune_lab.models.local import REFERENCE, LocalFolder, Shipped
from prune_lab.models.mapped import MappedWeights, map_tensors
from prune_lab.models.model import PrunableModel
from prune_lab.models.origin import ORIGIN, Origin, is_changed, read_origin
from prune_lab.models.shrink import unequal_config
from prune_lab.models.smollm2 import SmolLM2
from prune_lab.models.source import Source
from prune_lab.models.tokenizer_files import mistake_in
from prune_lab.models.weight_files import WeightFiles, find_weights
from prune_lab.utils.checks import check_choice, check_flag, check_text
from prune_lab.utils.memory import available_memory, gigabytes

logger = logging.getLogger(__name__)

DTypeName = Literal["float32", "bfloat16", "float16", "auto"]
Kind = Literal["local", "reference", "hub", "gguf", "smollm2"]
DTYPES: dict[DTypeName, "torch.dtype | Literal['auto']"] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


@dataclass
class Checkpoint:
    """A model to load.

    Args:
        path: a folder in the Hugging Face format, or what ``kind`` says.
        kind: ``local`` (a folder, checked before anything is loaded), ``reference`` (a folder shipped with prune_lab),
            ``hub`` (the name of a repository, which is downloaded, or taken from the hub's local cache when offline),
            ``gguf`` (a file, which is converted once) or ``smollm2`` (that model: without a path it is looked for).
        revision: a branch, tag or commit on the hub.
        dtype: type of the weights in memory; ``auto`` is that of the checkpoint, and bfloat16 for a GGUF file.
        attn_implementation: how attention is computed, by transformers' name; by default ``sdpa``, or ``eager`` where
            the model has no other.
        trust_remote_code: whether code that comes with the checkpoint may run.
        name: what tables call the model; by default what its folder says that it is, or the end of the path.
        stream: whether the weights stay in their files, mapped into memory, instead of being read into it; by default
            where they would not fit.

    Attributes:
        folder: where the checkpoint is.
        origin: what an earlier run did to the model, where its folder says so.
    """

    input_files: ClassVar = {"path": "kind=local|gguf|smollm2"}
    path: str | None
    kind: Kind = "local"
    revision: str | None = None
    dtype: DTypeName = "auto"
    attn_implementation: Attention | None = None
    trust_remote_code: bool = False
    name: str | None = None
    stream: bool | None = None

    def __post_init__(self) -> None:
        check_choice(self, "dtype", DTYPES)
        check_attention(self)
        check_choice(self, "kind", get_args(Kind))
        check_text(self, "path", optional=self.kind == "smollm2")
        check_text(self, "revision", "name", optional=True)
        check_flag(self, "trust_remote_code")
        if self.stream is not None:
            check_flag(self, "stream")
        if self.kind == "reference":
            shipped = sorted(folder.name for folder in REFERENCE.iterdir() if folder.is_dir())
            hint = "models that are shipped; any other: model=local model.path=DIR, or model=hub model.path=ORG/NAME"
            check_choice(self, "path", shipped, hint=hint)
        self._source = self._source_of_kind()
        with self._about_itself():
            self._source.check()
        self.origin = self._read_origin() if type(self._source) is LocalFolder else None
        self._is_named = self.name is not None
        if not self._is_named:
            self.name = self.origin.name if self.origin else model_name({"path": self.path, "kind": self.kind})

    @classmethod
    def needs_trust(cls, settings: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yields the keys of settings that run code of others, each with what it does."""
        if settings.get("trust_remote_code") is True:
            yield "trust_remote_code", "runs code that comes with the checkpoint"

    @property
    def folder(self) -> Path:
        """Where the checkpoint is: its own folder, its snapshot in the hub's cache, or what it was converted to.

        Raises:
            BadInput: it cannot be had.
        """
        with self._about_itself():
            return self._source.folder

    @property
    def weights(self) -> dict[str, Any]:
        """Which weights they are, where the name does not say it; for the protocol, once there is a folder."""
        return self._source.told()

    def load_config(self) -> "transformers.PretrainedConfig":
        """Loads the configuration, which tells vocabulary and positions, and checks it against the weights' headers.

        The weights of a hub model, which may have to be downloaded, are checked by `load` only.

        Raises:
            BadInput: it cannot be read or does not fit the weights, or the family is unknown.
        """
        with self._about_itself():
            raw = read_config(self.folder)
            if not self._is_named:
                self.name = self._source.name or self.name
            config = self._config(raw)
            if self._source.complete:
                fit.check_fit(config, find_weights(self.folder).headers(), self.folder, raw)
        return config

    def load_tokenizer(self) -> "transformers.PreTrainedTokenizerBase | None":
        """Loads the tokenizer; ``None`` for a folder without one, which is enough for ``data=tokens``.

        Raises:
            BadInput: it cannot be read, or has no words.
        """
        found = [file for file in _TOKENIZER_FILES if (self.folder / file).is_file()]
        if not found:
            return None
        if mistake := mistake_in(self.folder, loads=True):
            raise fit.no_tokenizer(self, found, mistake)
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, **self._trusting)
            words, special = len(tokenizer), len(tokenizer.all_special_ids)
            tokenizer("a")  # it looks at settings that loading does not, such as the length of the model
        except Exception as error:  # the loaders raise a dozen kinds
            raise fit.no_tokenizer(self, found, mistake_in(self.folder, loads=False) or fit.in_short(error)) from error
        if words <= special:
            raise fit.no_tokenizer(self, found, f"its vocabulary has {words} tokens, and no file gives more")
        return tokenizer

    def load(
        self, tokenizer: "transformers.PreTrainedTokenizerBase | None" = None, labels: Labels | None = None
    ) -> PrunableModel:
        """Loads the model onto the host.

        Args:
            tokenizer: of the model, if it has one.
            labels: of an encoder's task; it gets a new head, by the seed of torch, where it has none.

        Raises:
            BadInput: the checkpoint cannot be read, is incomplete, or its family is unknown or not covered.
            RunFailed: a weight is not finite.
        """
        with self._about_itself():
            self._source.fetch_weights()
            raw, weights = read_config(self.folder), find_weights(self.folder)
            headers = weights.headers()
            check_sizes(raw, {name: tuple(tensor.shape) for name, tensor in headers.items()}, self.folder)
            config = self._config(raw)
            fit.check_fit(config, headers, self.folder, raw)
            fit_head(config, headers, labels, str(self.name))
            streamed = self._streams(weights, headers, config)
            hf = self._load(config, weights, map_tensors(weights.files, headers) if streamed else None)
            if self.origin and is_changed(self.folder):
                self._note_change(self.origin)
            model = PrunableModel(hf, tokenizer, str(self.name), MappedWeights(hf) if streamed else None)
            _ = model.blocks  # a model that the family table does not cover stops here
            fit.check_finite(model.tensors, self.folder)
            fit.check_pass(hf, self.folder, raw)
        set_flash_attention(self, hf)
        return model

    @contextmanager
    def _about_itself(self) -> Iterator[None]:
        """Errors of a folder are about ``path``, as it was typed."""
        with owned_by(self):
            try:
                yield
            except Reported as error:
                made = vars(self._source).get("folder")  # of a cached property
                if made is not None:
                    error.args = (error.args[0].replace(f"path={made}:", f"path={self.path}:"),)
                raise

    def _note_change(self, origin: Origin) -> None:
        """The file beside the weights was written for other ones: they were trained since, say."""
        logger.warning(
            "model.path=%s: the weights or config.json were changed after %s said that they are %s",
            self.path, ORIGIN, origin.name,
        )  # fmt: skip
        self.origin = origin.after("changed since")
        if not self._is_named:
            self.name = self.origin.name

    def _source_of_kind(self) -> Source:
        if self.path is None:
            return SmolLM2()
        if self.kind == "hub":
            return Repository(self.path, self.revision, self.trust_remote_code)
        if self.kind == "gguf" or (self.kind == "smollm2" and self.path.endswith(GGUF)):
            dtype = DTYPES[self.dtype]
            return GgufFile(self.path, dtype if isinstance(dtype, torch.dtype) else torch.bfloat16)
        return Shipped(self.path) if self.kind == "reference" else LocalFolder(self.path)

    def _read_origin(self) -> Origin | None:
        with owned_by(self):
            return read_origin(self.folder)

    def _config(self, raw: dict[str, Any]) -> "transformers.PretrainedConfig":
        refuse_own_classes(raw, self)
        try:
            config: transformers.PretrainedConfig = unequal_config(raw) or transformers.AutoConfig.from_pretrained(
                self.folder, **self._trusting
            )
        except Exception as error:  # the loaders raise a dozen kinds
            raise fit.bad_config(self.folder, raw, error) from error
        family_of(config.model_type)
        return config

    def _load(
        self, config: "transformers.PretrainedConfig", weights: WeightFiles, mapped: dict[str, torch.Tensor] | None
    ) -> "transformers.PreTrainedModel":
        """Loads the model; with ``mapped``, its parameters are these tensors themselves."""
        model_class = fit.model_class_of(config)
        source: dict[str, Any] = {"dtype": DTYPES[self.dtype], "use_safetensors": not weights.pickled}
        if mapped is not None:
            source = {"dtype": next(each.dtype for each in mapped.values() if each.ndim > 1), "state_dict": mapped}
        source |= attention_of(self, model_class)
        try:
            # declared as the model alone, which is what it is without output_loading_info
            with drawing_head(config):
                loaded: Any = model_class.from_pretrained(
                    self.folder if mapped is None else None,
                    config=config,
                    output_loading_info=True,
                    weights_only=True,
                    **source,
                )
        except Exception as error:  # from OSError to SafetensorError
            raise BadInput(
                f"{{at}}.path={self.path}: cannot load the weights: {fit.in_short(error)}. Copy the folder again, with "
                "complete weights as save_pretrained writes them."
            ) from error
        hf, report = loaded
        fit.refuse_misfit(report, self.folder, config, weights.headers())
        if mapped is not None:
            fit.give_generation_config(hf, self.folder)
        return hf  # type: ignore[no-any-return]

    def _streams(
        self, weights: WeightFiles, headers: Mapping[str, torch.Tensor], config: "transformers.PretrainedConfig"
    ) -> bool:
        """Whether the weights stay in their files, which they can as they are there only."""
        if self.stream is False:
            return False
        wanted = self.dtype if self.dtype != "auto" else fit.type_in(config)  # as transformers loads them otherwise
        types = {str(tensor.dtype).removeprefix("torch.") for tensor in headers.values() if tensor.ndim > 1}
        lacks = None
        if weights.pickled:
            lacks = f"{weights.files[0].name} is no safetensors file; save the model again with save_pretrained"
        elif wanted is not None and types != {wanted}:
            lacks = fit.other_type(types, wanted, asked=self.dtype)
        if self.stream:
            if lacks:
                raise BadInput(f"model.stream=true maps weights as they are stored, and {lacks}", self)
            return True
        available = available_memory()
        size = sum(tensor.nbytes for tensor in headers.values())
        if lacks or available is None or size <= available:
            return False
        logger.info(
            "the weights take %s and %s are free in memory, so they stay in their files (model.stream=true)",
            gigabytes(size), gigabytes(available),
        )  # fmt: skip
        return True

    @property
    def _trusting(self) -> dict[str, Any]:
        return {"trust_remote_code": self.trust_remote_code}
