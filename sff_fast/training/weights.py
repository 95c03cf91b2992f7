"""Copies of a model's weights: out of the model, into it, and the best ones so far."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch

from ..distributed.group import Group
from ..distributed.weights import put, whole
from ..errors import CheckpointError
from ..files import copy_file, make_directory, safetensors_order, save_safetensors
from ..shards import local
from .state import iterate_safetensors


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, tied ones once, also the buffers that a state dict leaves out; no copies."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors.update((name, buffer.detach()) for name, buffer in model.named_buffers())
    return tensors


def load_weights(model: torch.nn.Module, tensors: Iterable[tuple[str, torch.Tensor]], parts: bool = False) -> None:
    """Write saved weights into a model, in place, so that optimizers keep their parameters.

    Args:
        model: The model; of a sharded one each process fills its own part.
        tensors: Name and value, whole or spread as the model's.
        parts: Whether the values are instead this process's parts of what is sharded. Default False.

    Raises:
        CheckpointError: A name or a shape does not fit the model.
    """
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    missing = {*parameters, *buffers}
    with torch.no_grad():
        for name, tensor in tensors:
            target = parameters.get(name, buffers.get(name))
            target = local(target) if parts and target is not None else target
            if target is None and not _is_lazy_buffer(model, name):
                raise CheckpointError(f"the saved weights hold {name!r}, which the model does not have")
            missing.discard(name)
            if target is not None and target.shape == tensor.shape and target.dtype == tensor.dtype:
                put(target, tensor)
            elif name in parameters:
                raise CheckpointError(
                    f"the saved {name!r} is {tensor.dtype} {tuple(tensor.shape)}, the model's is "
                    f"{target.dtype} {tuple(target.shape)}"
                )
            else:
                # Buffers may grow during training, such as tables of rotary positions: they take the saved shape.
                owner, _, leaf = name.rpartition(".")
                device = next(model.parameters()).device if target is None else target.device
                setattr(model.get_submodule(owner), leaf, tensor.to(device, copy=True))
    if missing:
        raise CheckpointError(f"the saved weights lack {', '.join(map(repr, sorted(missing)))}")


def _is_lazy_buffer(model: torch.nn.Module, name: str) -> bool:
    """Whether the name is a buffer that is registered and still None."""
    owner, _, leaf = name.rpartition(".")
    try:
        return leaf in model.get_submodule(owner)._buffers
    except AttributeError:
        return False


class BestWeights:
    """The best weights so far: in a file where the run has an output folder, else in memory on the CPU.

    The file spares a run the memory of a second copy of the model. In memory each process keeps its part of a sharded model.

    Args:
        path: The file, or None to keep them in memory.
        group: The processes; one of them writes the file, which all read. Default: this one alone.
    """

    def __init__(self, path: Path | None, group: Group | None = None) -> None:
        self.path = path
        self.group = Group() if group is None else group
        self._memory: dict[str, torch.Tensor] = {}

    def store(self, model: torch.nn.Module) -> None:
        """Remember the model's present weights; every process must call."""
        tensors = weights_of(model)
        if self.path is None:
            # Into the memory of the former ones: never a second copy.
            former, self._memory = self._memory, {}
            for name, tensor in tensors.items():
                kept, tensor = former.pop(name, None), local(tensor)
                if kept is not None and (kept.shape, kept.dtype) == (tensor.shape, tensor.dtype):
                    self._memory[name] = kept.copy_(tensor)
                else:
                    self._memory[name] = tensor.to("cpu", copy=True)
        elif self.group.writes:
            make_directory(self.path.parent)
            save_safetensors(self.path, tensors, fetch=whole)
        else:
            for name in safetensors_order(tensors):
                whole(tensors[name])  # one at a time, together with the process that writes them
        self.group.barrier()

    def load(self, model: torch.nn.Module) -> None:
        """Write the remembered weights into the model."""
        if self.path is not None:
            load_weights(model, iterate_safetensors(self.path))
        else:
            load_weights(model, self._memory.items(), parts=True)

    def restore(self, saved: Path) -> None:
        """Take the best weights of a save; only for weights that are kept in a file."""
        if self.group.writes:
            copy_file(saved, self.path)
        self.group.barrier()
