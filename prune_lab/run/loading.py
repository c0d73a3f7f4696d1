"""Loads what a run works on: the text first, which may be too short, and then the weights, which take longer."""

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from prune_lab.data.author import Author
from prune_lab.errors import BadInput
from prune_lab.models.families import family_of
from prune_lab.models.in_memory import InMemory
from prune_lab.models.load import Checkpoint
from prune_lab.models.model import seqlen_limit_of
from prune_lab.models.origin import Origin
from prune_lab.run.agreement import agree_on_input
from prune_lab.run.environment import package_versions
from prune_lab.run.parts import Parts
from prune_lab.run.state import RunState
from prune_lab.utils.device import arithmetic, device_name
from prune_lab.utils.memory import growing

logger = logging.getLogger(__name__)


@growing()  # the classes of a model bring much of transformers
def load(parts: Parts, folder: Path, seed: int) -> RunState:
    """Loads data and model, after the stages have seen the tokenizer, and writes both into the protocol.

    Args:
        parts: of the run.
        folder: of the run.
        seed: of the run.

    Raises:
        BadInput: they cannot be used, or the processes of a run have different ones.
    """
    start = time.perf_counter()
    config, tokenizer = parts.model.load_config(), parts.model.load_tokenizer()
    _check_kind(parts, encoder=family_of(config.model_type).encoder)
    for stage in parts.stages.values():
        stage.check_tokenizer(tokenizer, str(parts.model.name))
    vocab_size, seqlen_limit = config.get_text_config().vocab_size, seqlen_limit_of(config)
    # Before the weights are read: the text may be too short, and a large model takes minutes to load.
    bos = family_of(config.model_type).bos
    data = parts.data.load(tokenizer, vocab_size=vocab_size, seqlen_limit=seqlen_limit, default_bos=bos)
    model = parts.model.load(tokenizer, None if data.labelled is None else data.labelled.labels)
    model.keep_changes_in(folder)
    run = RunState(model, data, parts.device, folder, seed)
    if parts.model.origin:
        run.protocol["parent"] = parts.model.origin.told()
    fingerprint = model.fingerprint()
    run.protocol |= {
        "model": {
            "name": model.name,
            "dtype": str(model.dtype).removeprefix("torch."),
            "sha256": fingerprint,
            **({"weights": weights} if (weights := parts.model.weights) else {}),
        },
        "data": data.protocol,
        "seed": seed,
        "device": device_name(parts.device),
        "arithmetic": arithmetic(),
        "packages": package_versions(),
    }
    if data.write is not None:
        data.write(Author(model, parts.device, fingerprint))
    agree_on_input(run)
    logger.info(
        "%s: %d blocks, %s; %d calibration samples of %d tokens, %d evaluation windows (%.1f s)",
        model.name, len(model.blocks), str(model.dtype).removeprefix("torch."), *data.calibration.shape,
        len(data.evaluation), time.perf_counter() - start,
    )  # fmt: skip
    return run


def _check_kind(parts: Parts, *, encoder: bool) -> None:
    """Whether model, data and stages are about the same: labels of texts, or the next tokens.

    Raises:
        BadInput: they are not.
    """
    if parts.data.for_encoders and not encoder:
        raise BadInput(
            f"data=classification is for encoders (BERT, RoBERTa), and {parts.model.name} predicts tokens; use an "
            "encoder, or a text such as data=files"
        )
    if not encoder:
        return
    if not parts.data.for_encoders:
        raise BadInput(
            f"{parts.model.name} is an encoder, which is trained and measured on texts with labels, and this data has "
            "none; use data=classification"
        )
    for stage in parts.stages.values():
        stage.check_encoder()


def origin_of(checkpoint: Checkpoint | InMemory, record: dict[str, Any]) -> Origin:
    """Returns what the run's model is before its first stage."""
    before = checkpoint.origin
    this = {"key": record["key"], "identity": record["identity"]}
    if before is None or checkpoint.name != before.name:  # a name that was typed is the name of what was loaded
        return Origin(str(checkpoint.name), run=this, parent=before.told() if before else None)
    return replace(before, run=this, parent=before.told())
