"""Copies of a model's weights: out of the model, into it, and the best ones so far."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..files import atomic_write, save_safetensors
from .state import iterate_safetensors


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name, tied ones once, also the buffers that a state dict leaves out; no copies."""
    tensors = {name: parameter.detach() for name, parameter in model.named_parameters()}
    tensors.update((name, buffer.detach()) for name, buffer in model.named_buffers())
    return tensors


def load_weights(model: torch.nn.Module, tensors: Iterable[tuple[str, torch.Tensor]]) -> None:
    """Write saved weights into a model, in place, so that optimizers keep their parameters.

    Raises:
        CheckpointError: A name or a shape does not fit the model.
    """
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    missing = {*parameters, *buffers}
    with torch.no_grad():
        for name, tensor in tensors:
            target = parameters.get(name, buffers.get(name))
            if target is None and not _is_lazy_buffer(model, name):
                raise CheckpointError(f"the saved weights hold {name!r}, which the model does not have")
            missing.discard(name)
            if target is not None and target.shape == tensor.shape and target.dtype == tensor.dtype:
                target.copy_(tensor)
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

    The file spares a run the memory of a second copy of the model.

    Args:
        path: The file, or None to keep them in memory.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._memory: dict[str, torch.Tensor] = {}

    def store(self, model: torch.nn.Module) -> None:
        """Remember the model's present weights."""
        if self.path is None:
            # Into the memory of the former ones: never a second copy.
            former, self._memory = self._memory, {}
            for name, tensor in weights_of(model).items():
                kept = former.pop(name, None)
                if kept is not None and (kept.shape, kept.dtype) == (tensor.shape, tensor.dtype):
                    self._memory[name] = kept.copy_(tensor)
                else:
                    self._memory[name] = tensor.to("cpu", copy=True)
        else:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            save_safetensors(self.path, weights_of(model))

    def load(self, model: torch.nn.Module) -> None:
        """Write the remembered weights into the model."""
        load_weights(model, self._memory.items() if self.path is None else iterate_safetensors(self.path))

    def restore(self, saved: Path) -> None:
        """Take the best weights of a save; only for weights that are kept in a file."""
        with open(saved, "rb") as source, atomic_write(self.path) as target:
            shutil.copyfileobj(source, target, 1 << 20)
