"""A GGUF file as a Hugging Face folder: its numbers dequantised by transformers once, and kept in the store.

Three things are mended that the library leaves as they are: keys of the configuration that it does not read from the
metadata, positions that are scaled, and the rule by which some vocabularies split digits.
"""

import contextlib
import copy
import io
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from prune_lab.cache.store import NoRoom, open_store
from prune_lab.errors import BadInput
from prune_lab.models.config_file import read_config
from prune_lab.models.fit import model_class_of
from prune_lab.models.gguf_header import ABOUT, FORM, ROPE_FACTORS, GgufHeader, gguf_file, read_header
from prune_lab.utils.digests import json_digest
from prune_lab.utils.manifest import checksum

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_TOKENIZER_BYTES = 50_000_000  # at most, roughly

_NOT_READ: dict[str, dict[str, str]] = {  # keys of the metadata by those of the configuration
    "llama": {"attention.key_length": "head_dim"},
    "qwen3": {"attention.key_length": "head_dim"},
    "gpt2": {"context_length": "n_positions", "feed_forward_length": "n_inner"},
}
_DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
"""Values of ``tokenizer.ggml.pre`` that mean GPT-2's rule on a text whose digits stand alone."""


@dataclass(frozen=True)
class GgufFile:
    """A file in the format of llama.cpp.

    Args:
        path: of the file.
        dtype: of the numbers in the folder that it becomes.
    """

    path: str
    dtype: torch.dtype = torch.bfloat16

    complete = True
    name = None

    def check(self) -> None:
        """Looks at all but the weights; see `prune_lab.models.gguf_header.read_header`."""
        _ = self._header

    @cached_property
    def folder(self) -> Path:
        """The converted model, in the store under the checksum of the file."""
        file = gguf_file(self.path)
        key = json_digest(["gguf", FORM, str(self.dtype), checksum(file, "xxh3")])
        what = f"conversion of {file.name}"
        expected = self._header.parameters * self.dtype.itemsize + _TOKENIZER_BYTES
        try:
            return open_store().obtain_folder(key, what, lambda new: self.convert(file, new), expected=expected)
        except NoRoom as error:
            raise BadInput(f"{{at}}.path={file}: the converted model is kept, and {error}") from error

    def fetch_weights(self) -> None:
        """They are there."""

    def told(self) -> dict[str, Any]:
        """The file, its checksum, and what its numbers were."""
        told: dict[str, Any] = json.loads((self.folder / ABOUT).read_text(encoding="utf-8"))
        return told

    def convert(self, file: Path, folder: Path) -> None:
        """Writes a Hugging Face folder.

        Raises:
            BadInput: the library cannot make a model or a tokenizer of the file.
        """
        logger.info("%s is brought to %s once, and kept", file.name, _named(self.dtype))
        header = self._header
        try:
            config = _config(file, header)
            _check_count(config, header)
            hf = _dequantised(file, config, self.dtype)
            tokenizer = _tokenizer(file, header)
        except BadInput:
            raise
        except MemoryError:
            raise
        except Exception as error:  # the loaders raise a dozen kinds
            reason = (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
            raise BadInput(
                f"{{at}}.path={file}: no model can be made of this file: {reason}; try another one"
            ) from error
        hf.save_pretrained(folder)
        try:
            read_config(folder)
        except BadInput as error:
            raise BadInput(
                error.args[0].replace(f"path={folder}: config.json", f"path={file}: its metadata")
            ) from error
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        about = {
            "file": file.name,
            "sha256": checksum(file, "sha256"),
            "types": header.types,
            "brought_to": _named(self.dtype),
        }
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")

    @cached_property
    def _header(self) -> GgufHeader:
        return read_header(gguf_file(self.path))


def _config(file: Path, header: GgufHeader) -> "PretrainedConfig":
    from transformers import AutoConfig

    config: PretrainedConfig = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
    for key, name in _NOT_READ.get(header.architecture, {}).items():
        value = header.of_family(key)
        if value is not None:
            setattr(config, name, value)
    _scale_positions(config, file, header)
    return config


def _scale_positions(config: "PretrainedConfig", file: Path, header: GgufHeader) -> None:
    """Positions that are scaled, which the library would leave unscaled without a word."""
    kind = header.of_family("rope.scaling.type")
    if kind not in (None, "none"):
        raise BadInput(
            f"{{at}}.path={file}: positions of the model are scaled ({header.architecture}.rope.scaling.type={kind}), "
            "which is not read from GGUF files; give a Hugging Face folder of the model"
        )
    if ROPE_FACTORS not in header.tensors:
        return
    found = _factors(file, header)
    rope: dict[str, Any] = {
        "rope_type": "llama3",
        "rope_theta": float(header.of_family("rope.freq_base") or 10_000.0),
        "factor": round(float(found.max()), 4),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    if not torch.allclose(_llama3_factors(rope, 2 * len(found)), found, rtol=1e-3):
        raise BadInput(
            f"{{at}}.path={file}: positions of the model are scaled ({ROPE_FACTORS}) in another way than in Llama 3.1, "
            "which is not read from GGUF files; give a Hugging Face folder of the model"
        )
    config.rope_parameters = rope


def _factors(file: Path, header: GgufHeader) -> torch.Tensor:
    tensor = header.tensors[ROPE_FACTORS]
    with file.open("rb") as opened:
        opened.seek(tensor.start)
        return torch.frombuffer(bytearray(opened.read(tensor.size)), dtype=torch.float32)


def _llama3_factors(rope: Mapping[str, Any], head_dim: int) -> torch.Tensor:
    """What each frequency is divided by, as Llama 3.1 has it: all beyond the original context, none far below."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim
    wavelengths = 2 * torch.pi * rope["rope_theta"] ** exponents
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    smooth = (rope["original_max_position_embeddings"] / wavelengths - low) / (high - low)
    smooth = smooth.clamp(0, 1)
    factors: torch.Tensor = 1 / ((1 - smooth) / rope["factor"] + smooth)
    return factors.float()


def _check_count(config: "PretrainedConfig", header: GgufHeader) -> None:
    """Every number of the file has a place: the library leaves out tensors that it does not know without a word."""
    with torch.device("meta"):
        wanted = model_class_of(config)(config).num_parameters()
    if wanted != header.parameters:
        raise ValueError(f"its tensors hold {header.parameters} numbers, and the model of its metadata {wanted}")


def _dequantised(file: Path, config: "PretrainedConfig", dtype: torch.dtype) -> "PreTrainedModel":
    """The model, without what would keep it from being saved."""
    import transformers

    how: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # newer versions may keep weights packed
        how["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model_class = model_class_of(config)
    with contextlib.redirect_stderr(io.StringIO()):  # a bar that no setting switches off
        found: Any = model_class.from_pretrained(  # declared as the model alone
            file.parent,
            gguf_file=file.name,
            config=copy.deepcopy(config),  # the library notes there how the weights were quantised
            dtype=dtype,
            output_loading_info=True,
            **how,
        )
    loaded, report = found
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"it lacks {missing[0]}")
    with torch.device("meta"):
        hf = model_class(config)
    hf.load_state_dict(loaded.state_dict(), assign=True)
    hf.tie_weights()
    return hf


def _tokenizer(file: Path, header: GgufHeader) -> "PreTrainedTokenizerBase | None":
    """The tokenizer that is rebuilt from the metadata; ``None`` where there is none."""
    from tokenizers import pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    if "tokenizer.ggml.model" not in header.metadata:
        return None
    # The library's AutoTokenizer would read all metadata once more, to find this class.
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(file.parent, gguf_file=file.name)
    if header.metadata.get("tokenizer.ggml.pre") in _DIGITS_APART:
        rule = tokenizer.backend_tokenizer
        rule.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), rule.pre_tokenizer]
        )
    return tokenizer


def _named(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
