"""What a path that should be a model folder is, told without reading a weight or importing a library."""

import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prune_lab.errors import BadInput
from prune_lab.utils.files import write_json
from prune_lab.utils.paths import local_path, shown_path, why_missing

ADAPTER_CONFIG = "adapter_config.json"
GGUF = ".gguf"
"""How the name of a model in the format of llama.cpp ends."""
SMOLLM2 = "SmolLM2-135M-Instruct"
"""What the model without a path is called before it is known which of its weights are there."""

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_CACHED_REPOSITORY = re.compile(r"models--([^/]+?)--([^/]+)")
_QUANTISED = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")  # of AutoGPTQ, AutoAWQ, ModelOpt
_DATA_SET = ("dataset_dict.json", "dataset_info.json", "state.json")  # of datasets.save_to_disk
_OTHER_FORMATS = {
    "tf_model.h5": "TensorFlow's weights",
    "flax_model.msgpack": "Flax's weights",
    "*.onnx": "an ONNX graph",
    "consolidated.*.pth": "weights in Meta's own format",
    "*.ckpt": "a training checkpoint of another library",
}
_CONVERTED = "convert them with transformers and save_pretrained(NEW_DIR)"


def check_folder(path: str) -> Path:
    """Returns the folder that a path names, ``~`` included.

    Raises:
        BadInput: there is none, it cannot be read, or it holds something other than a model.
    """
    folder = local_path(path)
    try:
        names = set(os.listdir(folder))
        os.stat(folder / "config.json") if "config.json" in names else None
    except (OSError, ValueError) as error:
        raise BadInput(f"{{at}}.path={shown_path(path)}: {_why_not(path, folder, error)}") from error
    problem = _other_content(folder, names)
    if problem:
        raise BadInput(f"{{at}}.path={shown_path(path)}: {problem}")
    return folder


def read_json(folder: Path, file: str) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        BadInput: there is none, it is damaged, or it gives a key twice.
    """
    at = f"{{at}}.path={folder}"
    try:
        if not stat.S_ISREG((folder / file).stat().st_mode):  # a pipe would never end
            raise BadInput(f"{at}: {file} is no file; copy the folder again")
        value = json.loads((folder / file).read_bytes().decode("utf-8"), object_pairs_hook=_without_twins)
    except BadInput:
        raise
    except OSError as error:
        raise BadInput(f"{at}: there is no readable {file} ({error.strerror}); give a folder that has one") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{at}: {file} is not valid JSON: it is not UTF-8 ({error}); save it as UTF-8") from error
    except RecursionError as error:
        raise BadInput(f"{at}: {file} is not valid JSON: it is nested too deeply; copy the file again") from error
    except ValueError as error:
        raise BadInput(f"{at}: {file} is not valid JSON ({error}); copy the file again") from error
    if not isinstance(value, dict):
        raise BadInput(f"{at}: {file} holds no JSON object; copy the folder again")
    return value


def name_base(adapter: Path, base: Path) -> None:
    """Writes into the folder of a PEFT adapter which model it belongs to, where both have been copied.

    Args:
        adapter: the folder.
        base: the model's folder, which peft finds by its absolute path only.
    """
    config = read_json(adapter, ADAPTER_CONFIG)
    write_json(adapter / ADAPTER_CONFIG, config | {"base_model_name_or_path": str(base.resolve())})


def shown_name(path: str) -> str:
    """What to call a model whose folder says nothing of itself: the end of its path that tells models apart.

    >>> shown_name("runs/wanda/model"), shown_name("facebook/opt-125m"), shown_name("files/small.Q8_0.gguf")
    ('wanda/model', 'opt-125m', 'small.Q8_0')
    """
    parts = [part for part in local_path(path).parts if part != os.sep]
    cached = next((found for part in parts if (found := _CACHED_REPOSITORY.fullmatch(part))), None)
    if cached:
        return cached[2]
    if len(parts) > 1 and re.fullmatch(r"model|checkpoint|final|best|output|merged|checkpoint-\d+", parts[-1]):
        return "/".join(parts[-2:])
    return parts[-1].removesuffix(GGUF) if parts else path


def model_name(settings: Mapping[str, Any]) -> str:
    """What the section ``model`` alone tells of the model's name: the one that was typed, or the end of the path."""
    if settings.get("name"):
        return str(settings["name"])
    if settings["path"] is None:
        return SMOLLM2
    path = str(settings["path"])
    return f"reference_{path}" if settings.get("kind") == "reference" else shown_name(path)


def _why_not(path: str, folder: Path, error: Exception) -> str:
    if not isinstance(error, OSError):
        return f"{why_missing(path, 'folder')}; give a folder in the Hugging Face format"
    if isinstance(error, FileNotFoundError):
        hub = _REPOSITORY.fullmatch(path) and f"; model=hub model.path={path} takes that model from the hub"
        return f"there is no such folder{hub or '; give one in the Hugging Face format'}"
    if isinstance(error, NotADirectoryError):
        if folder.suffix == GGUF:
            return f"is a GGUF file; use model=gguf model.path={shown_path(path)}"
        return "is a file, or lies below one; give the folder that holds config.json and the weights"
    return f"the folder cannot be read ({error.strerror}); give one that exists and that you may read"


def _other_content(folder: Path, names: set[str]) -> str | None:
    """What a folder is that cannot be loaded as a model, and what to do about it."""
    if ADAPTER_CONFIG in names:
        return _adapter(folder, with_model="config.json" in names)
    for file in _QUANTISED:
        if file in names:
            return quantised(f"{file} says so")
    if "config.json" in names:
        return None
    cached = _CACHED_REPOSITORY.fullmatch(folder.name)
    if cached:
        return f"is a folder of the hub's cache; use model=hub model.path={cached[1]}/{cached[2]}"
    if (folder / "model" / "config.json").is_file():
        return f"is the folder of a run, not of a model; use model.path={folder / 'model'}"
    if names & set(_DATA_SET):
        return "is a data set of datasets.save_to_disk, not a model; give the folder of a model (data sets: data=files)"
    if files := sorted(name for name in names if name.endswith(GGUF)):
        return f"holds a GGUF file; use model=gguf model.path={shown_path(str(folder / files[0]))}"
    other = [text for pattern, text in _OTHER_FORMATS.items() if next(folder.glob(pattern), None)]
    return f"holds {other[0]}, which are not read yet; {_CONVERTED}" if other else None


def quantised(how: str) -> str:
    """What to tell of a quantised checkpoint."""
    return (
        f"the weights are quantised ({how}), and pruning needs them as numbers; give a dequantised copy: load it with "
        "transformers and the package of its format, model.dequantize(), model.save_pretrained(NEW_DIR)"
    )


def _adapter(folder: Path, *, with_model: bool) -> str:
    if with_model:
        return f"holds a model and {ADAPTER_CONFIG}, and it is not clear which is meant; move one of them away"
    try:
        base = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError):
        base = None
    return (
        f"is a PEFT adapter{f' of {base}' if base else ''}, not a model; merge it first: "
        "peft.AutoPeftModelForCausalLM.from_pretrained(DIR).merge_and_unload().save_pretrained(NEW_DIR)"
    )


def _without_twins(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"it gives {next(name for name in names if names.count(name) > 1)!r} twice")
    return found
