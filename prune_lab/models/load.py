"""Loads a causal language model from a Hugging Face folder or from the hub."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import torch
import transformers  # its parts are imported when they are used: a mistake in the settings costs no seconds

from prune_lab.errors import BadInput, RunFailed, owned_by
from prune_lab.models.families import family_of
from prune_lab.models.model import PrunableModel
from prune_lab.models.shrink import family_name, is_unequal, unequal_class, unequal_config
from prune_lab.utils.checks import check_choice, check_flag, check_text
from prune_lab.utils.paths import local_path

DTypeName = Literal["float32", "bfloat16", "float16", "auto"]
Kind = Literal["local", "reference", "hub"]
DTYPES: dict[DTypeName, "torch.dtype | Literal['auto']"] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}
REFERENCE = Path(__file__).parents[1] / "reference"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


@dataclass
class Checkpoint:
    """A model to load.

    Args:
        path: a folder in the Hugging Face format, or with ``kind=hub`` the name of a repository on the hub.
        kind: ``local`` (a folder, checked before anything is loaded), ``reference`` (a folder shipped with prune_lab)
            or ``hub`` (downloaded, or taken from the hub's local cache when offline).
        revision: a branch, tag or commit on the hub.
        dtype: type of the weights in memory; ``auto`` is that of the checkpoint.
        trust_remote_code: whether code that comes with the checkpoint may run.
        name: what tables call the model; by default the last part of the path.
    """

    input_files: ClassVar = {"path": "kind=local|hub"}  # transformers takes a folder of the repository's name first
    path: str
    kind: Kind = "local"
    revision: str | None = None
    dtype: DTypeName = "auto"
    trust_remote_code: bool = False
    name: str | None = None

    def __post_init__(self) -> None:
        check_choice(self, "dtype", DTYPES)
        check_choice(self, "kind", get_args(Kind))
        check_text(self, "path")
        check_text(self, "revision", "name", optional=True)
        check_flag(self, "trust_remote_code")
        if self.kind == "reference":
            check_choice(self, "path", sorted(folder.name for folder in REFERENCE.iterdir() if folder.is_dir()))
            self.path = str(REFERENCE / self.path)
        if self.kind == "local":
            self.path = str(local_path(self.path))
        if self.kind != "hub":
            with owned_by(self):
                _check_folder(Path(self.path))
        self.name = self.name or Path(self.path).name

    def load_config(self) -> "transformers.PretrainedConfig":
        """Loads the configuration alone, which tells vocabulary and positions.

        Raises:
            BadInput: it cannot be read, or the family is unknown.
        """
        try:
            unequal = None if self.kind == "hub" else unequal_config(Path(self.path))
            config = unequal or transformers.AutoConfig.from_pretrained(self.path, **self._where)
        except Exception as error:  # the loaders raise a dozen kinds, from OSError to SafetensorError
            raise self._cannot_load("configuration", error) from error
        family_of(config.model_type)
        return config

    def load_tokenizer(self) -> "transformers.PreTrainedTokenizerBase | None":
        """Loads the tokenizer; ``None`` for a folder without one, which is enough for ``data=tokens``.

        Raises:
            BadInput: it cannot be read.
        """
        if self.kind != "hub" and not any((Path(self.path) / file).is_file() for file in _TOKENIZER_FILES):
            return None
        try:
            return transformers.AutoTokenizer.from_pretrained(self.path, **self._where)
        except Exception as error:
            raise self._cannot_load("tokenizer", error) from error

    def load(self, tokenizer: "transformers.PreTrainedTokenizerBase | None" = None) -> PrunableModel:
        """Loads the model onto the host.

        Raises:
            BadInput: the checkpoint cannot be read, is incomplete, or its family is unknown or not covered.
            RunFailed: a weight is not finite.
        """
        config = self.load_config()
        unequal = unequal_class(config) if is_unequal(config) else None
        try:
            # declared as the model alone, which is what it is without output_loading_info
            loaded: Any = (unequal or transformers.AutoModelForCausalLM).from_pretrained(
                self.path,
                config=config,
                dtype=DTYPES[self.dtype],
                output_loading_info=True,
                use_safetensors=True,
                **self._where,
            )
        except Exception as error:
            raise self._cannot_load("checkpoint", error) from error
        hf, report = loaded
        if unequal is not None:
            hf.__class__ = unequal.__base__
        with owned_by(self):
            _check_weights(hf, report, self.path)
        model = PrunableModel(hf, tokenizer, str(self.name))
        _ = model.blocks  # a model that the family table does not cover stops here
        return model

    @property
    def _where(self) -> dict[str, Any]:
        return {"revision": self.revision, "trust_remote_code": self.trust_remote_code}

    def _cannot_load(self, what: str, error: Exception) -> BadInput:
        reason = f": cannot load the {what}: {_first_line(error)}. {self._remedy()}"
        return BadInput(f"{{at}}.path={self.path}{reason}", self)

    def _remedy(self) -> str:
        if self.kind == "hub":
            return "Check the name and the network, or download the folder and use model=local model.path=DIR."
        return "A folder needs a config.json and complete *.safetensors files, as save_pretrained writes them."


def _check_folder(folder: Path) -> None:
    """What can be told of a folder without reading a weight."""
    if not folder.is_dir():
        raise BadInput(f"{{at}}.path={folder}: there is no such folder; give one in the Hugging Face format")
    config = _read_json(folder, "config.json")
    family_of(family_name(config))
    if not any(folder.glob("*.safetensors")):
        raise BadInput(
            f"{{at}}.path={folder}: there is no *.safetensors file; weights are read as safetensors only. "
            "Convert older checkpoints with AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW_DIR)."
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        wanted = set(_read_json(folder, index.name).get("weight_map", {}).values())
        missing = sorted(file for file in wanted if not (folder / file).is_file())
        if missing:
            raise BadInput(
                f"{{at}}.path={folder}: {', '.join(missing)} named in {index.name} is missing; copy the folder again"
            )


def _read_json(folder: Path, file: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / file).read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{{at}}.path={folder}: there is no readable {file} ({error.strerror})") from error
    except ValueError as error:
        raise BadInput(f"{{at}}.path={folder}: {file} is not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise BadInput(f"{{at}}.path={folder}: {file} holds no JSON object; copy the folder again")
    return value


def _check_weights(hf: torch.nn.Module, report: dict[str, Any], path: str) -> None:
    missing = sorted(report.get("missing_keys", ()))
    mismatched = sorted(str(key[0] if isinstance(key, tuple) else key) for key in report.get("mismatched_keys", ()))
    if missing or mismatched:
        raise BadInput(
            f"{{at}}.path={path}: the checkpoint is incomplete: {_some(missing + mismatched)} missing or of another "
            "shape. Such weights would start at random; copy the folder again."
        )
    for name, tensor in hf.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RunFailed(f"{{at}}.path={path}: {name} holds NaN or infinite values; the checkpoint is damaged")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
