"""Weights that are divided among processes while they are trained, by PyTorch's FSDP2.

Every process holds its rows of each weight, and of all that is as large: the gradient, the optimizer's state, the mask,
a teacher's weights. A block is whole on the device only while it is computed. The model that is trained is a copy whose
modules are divided; the model itself stays on the host as it was, and gets the trained weights in the end.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from prune_lab.models.families import family_of
from prune_lab.models.twin import twin_of
from prune_lab.training.masters import in_float32
from prune_lab.training.settings import Training


class Shards:
    """A copy of a model of which this process holds its rows of every weight.

    Args:
        whole: on the host; left as it is until `write_back`.
        training: says in what types weights are held and computed with.
        mesh: the processes, and the kind of their devices.

    Attributes:
        model: the copy. Its parameters are `DTensor`s, divided by rows.
    """

    def __init__(self, whole: nn.Module, training: Training, mesh: DeviceMesh):
        self.mesh = mesh
        self._whole = dict(whole.named_parameters())
        widened = set(in_float32(whole)) if training.master_weights else set()
        self.model = twin_of(whole)  # whose parameters dividing moves and replaces
        names = (name for name, each in self._whole.items() if each in widened)
        _divide(self.model, training, mesh, {self.model.get_parameter(name) for name in names})
        shards = dict(self.model.named_parameters())
        self._shards = {id(parameter): cast(DTensor, shards[name]) for name, parameter in self._whole.items()}

    def of(self, parameter: Tensor) -> DTensor:
        """The divided parameter that is trained in the place of one of the model."""
        return self._shards[id(parameter)]

    def like(self, parameter: Tensor, values: Tensor) -> DTensor:
        """Divides values of a parameter's shape, which every process has whole on the host, as the parameter is."""
        shard, values = self.of(parameter), values.contiguous()
        rows = -(-len(values) // self.mesh.size())
        first = rows * self.mesh.get_local_rank()
        part = values[first : first + rows].to(shard.device, copy=True)
        return DTensor.from_local(part, self.mesh, shard.placements, shape=values.shape, stride=values.stride())

    @torch.no_grad()
    def write_back(self) -> None:
        """Puts the trained weights into the model, in every process and in the types that it had."""
        for parameter in self._whole.values():
            if parameter.requires_grad:
                parameter.copy_(self.of(parameter).full_tensor())

    def state_dict(self) -> dict[str, Any]:
        """The trained weights by name, divided."""
        return {name: self.of(each).detach() for name, each in self._whole.items() if each.requires_grad}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Puts them back."""
        for name, weight in state.items():
            self.of(self._whole[name]).copy_(weight)


@contextmanager
def sharded(model: nn.Module, training: Training, teacher: nn.Module | None, device: torch.device) -> Iterator[Shards]:
    """Divides a model for the time of a training, and gives it the trained weights if that comes to its end.

    Args:
        model: on the host.
        training: how.
        teacher: of whose weights every process keeps its rows only, from now on.
        device: of this process.
    """
    with _group(device), warnings.catch_warnings():
        # of blocks that return a view: nothing here changes what a block returns
        warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
        mesh = init_device_mesh(device.type, (distributed.get_world_size(),))
        shards = Shards(model, training, mesh)
        if teacher is not None:
            _divide(teacher, training, mesh, set())
        try:
            yield shards
            shards.write_back()
        finally:
            _release(shards.model, teacher)


@contextmanager
def _group(device: torch.device) -> Iterator[None]:
    """The processes of the run; or this one by itself, where no launcher has started it."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if distributed.is_initialized():
        yield
        return
    backend = "nccl" if device.type == "cuda" else "gloo"
    alone = distributed.HashStore()  # type: ignore[attr-defined]  # missing from its __all__
    distributed.init_process_group(backend, store=alone, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _divide(model: nn.Module, training: Training, mesh: DeviceMesh, widened: set[nn.Parameter]) -> None:
    """Replaces the parameters of a causal language model by this process' rows of them.

    Args:
        model: on the host.
        training: says in what type is computed.
        mesh: the processes.
        widened: parameters that are held in float32.
    """
    mixed = training.precision == "bf16"
    types = MixedPrecisionPolicy(torch.bfloat16, torch.float32) if mixed else MixedPrecisionPolicy()
    # What is left after a forward pass is a part everywhere: what looks at weights between steps sees nothing else.
    divide = partial(fully_shard, mesh=mesh, mp_policy=types, reshard_after_forward=True)
    for part in _parts(model):
        whole = [parameter for parameter in part.parameters() if not isinstance(parameter, DTensor)]
        for parameter in whole:
            if parameter in widened:
                parameter.data = parameter.data.float()
        divide(part)
        for parameter in whole:  # whoever still knows it must not keep it on the device
            parameter.data = parameter.data.new_empty(0)


def _parts(model: Any) -> list[nn.Module]:
    """What is whole at a time: each block, embedding and head unless they share a weight, and all that is left."""
    blocks = model.get_submodule(family_of(model.config.model_type).blocks)
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    return [*blocks, *(ends if ends[0].weight is not ends[1].weight else ()), model]


@torch.no_grad()
def _release(*models: nn.Module | None) -> None:
    """Gives back the memory of parts, which nobody uses any more.

    Divided modules refer to each other in circles, so that they would hold it until Python looks for those.
    """
    for parameter in (each for model in models if model is not None for each in model.parameters()):
        if isinstance(parameter, DTensor):
            parameter.to_local().untyped_storage().resize_(0)
