"""The model that teaches another one while it is trained."""

import copy
from typing import Any

import torch
from torch import nn

from prune_lab.errors import BadSetting, owned_by
from prune_lab.models.load import Checkpoint
from prune_lab.models.model import PrunableModel
from prune_lab.models.rotations import ROTATIONS
from prune_lab.training.losses import Distillation
from prune_lab.training.settings import Training


def check_teacher(
    model: PrunableModel, training: Training, *, fewer_blocks: bool = False, fewer_tokens: bool = False
) -> None:
    """Whether the teacher that is asked for can teach the model; reads no more of it than its configuration.

    Args:
        model: before any stage.
        training: how it is trained.
        fewer_blocks: whether it will have lost blocks by then.
        fewer_tokens: whether it will have lost tokens of its vocabulary.

    Raises:
        BadInput: it cannot be read, or has another vocabulary, other classes, or other layers or another width where
            those matter.
    """
    distill = training.distill
    if distill is None:
        return
    _check_layers(model, distill)
    if distill.hidden and fewer_blocks:
        raise BadSetting(
            distill,
            "hidden",
            "compares the hidden states of every block with the teacher's, and the stage shrink takes blocks out "
            "before; use {at}.hidden=0, or leave the stage shrink out",
        )
    if distill.teacher is None:
        return
    if fewer_tokens:
        raise BadSetting(
            distill,
            "teacher",
            "knows tokens that the stage vocabulary takes from the model; leave it out: the model before it is pruned, "
            "with the same vocabulary, is the teacher then",
        )
    with owned_by(distill, renamed={"path": "teacher"}):
        config = Checkpoint(distill.teacher).load_config()
    _check_fits(config, model, distill)


def _check_fits(config: Any, model: PrunableModel, distill: Distillation) -> None:
    """Compares a teacher's configuration with the model."""
    own = model.hf.config
    vocabulary = config.get_text_config().vocab_size
    if vocabulary != model.vocab_size:
        raise BadSetting(
            distill,
            "teacher",
            f"has a vocabulary of {vocabulary} tokens and the model one of {model.vocab_size}; a teacher must share "
            "the model's tokenizer, or leave it out: the model before it is pruned is the teacher then",
        )
    shapes = [(each.num_hidden_layers, each.hidden_size) for each in (config, own)]
    if model.is_encoder and config.num_labels != own.num_labels:
        raise BadSetting(
            distill,
            "teacher",
            f"tells {config.num_labels} classes apart and the model {own.num_labels}; use one that was trained for the "
            "same task, or leave it out: the model before it is pruned is the teacher then",
        )
    if model.is_encoder and (classes := _in_another_order(config, own)):
        raise BadSetting(
            distill,
            "teacher",
            f"has the classes in the order {classes[0]}, and the model in the order {classes[1]}; use one that was "
            "trained with the same order",
        )
    if distill.hidden and shapes[0] != shapes[1]:
        raise BadSetting(
            distill,
            "teacher",
            f"has {shapes[0][0]} layers of width {shapes[0][1]} and the model {shapes[1][0]} of {shapes[1][1]}; use "
            "{at}.hidden=0, or a teacher of the model's layers and width",
        )
    if distill.hidden and getattr(config, ROTATIONS, None) != getattr(own, ROTATIONS, None):
        raise BadSetting(
            distill,
            "hidden",
            "compares hidden states with those of the teacher, and one of the two has matrices that rotate them "
            f"({ROTATIONS}), the other has none or others; use {{at}}.hidden=0, or a teacher that was rotated alike",
        )


def _check_layers(model: PrunableModel, distill: Distillation) -> None:
    blocks = len(model.blocks)
    if beyond := [number for number in distill.layers or () if number > blocks]:
        raise BadSetting(
            distill,
            "layers",
            f"names hidden state {beyond[0]}, and {model.name} of {blocks} blocks has those from 0 to {blocks}",
        )


def _in_another_order(teacher: Any, own: Any) -> tuple[str, str] | None:
    """The names of two configurations' classes, where they are the same in another order."""
    names = [[str(config.id2label[number]) for number in sorted(config.id2label)] for config in (teacher, own)]
    theirs, mine = ([name.casefold() for name in each] for each in names)
    return (", ".join(names[0]), ", ".join(names[1])) if theirs != mine and sorted(theirs) == sorted(mine) else None


def make_teacher(
    model: PrunableModel, training: Training, unpruned: torch.nn.Module | None = None
) -> torch.nn.Module | None:
    """Returns the teacher that is asked for; ``None`` without distillation.

    Args:
        model: that is to be trained.
        training: how.
        unpruned: the model before it was pruned, which is the teacher where no other is named; by default a copy of the
            model as it is.
    """
    if training.distill is None:
        return None
    if training.distill.teacher is None:
        if unpruned is not None and not training.fsdp:  # which divides the weights of its teacher for good
            return unpruned
        same: torch.nn.Module = copy.deepcopy(model.hf if unpruned is None else unpruned)
        return same
    with owned_by(training.distill, renamed={"path": "teacher"}):
        other: torch.nn.Module = Checkpoint(training.distill.teacher).load().hf.to(model.dtype)
    return other


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module) -> None:
    """Gives a teacher the weights that its student computes with now, in the teacher's own type.

    Args:
        teacher: of the student's layers, and with parameters by the same names.
        student: its weights may be parametrized, as masked ones are.
    """
    for name, parameter in teacher.named_parameters():
        module, _, own = name.rpartition(".")
        parameter.copy_(getattr(student.get_submodule(module), own))
