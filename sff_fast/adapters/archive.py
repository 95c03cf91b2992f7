"""Checkpoints of models without a package: ``torch.save`` archives and safetensors, kept as they were found.

Such a file may wrap its tensors in a dictionary, put prefixes before their names and repeat one under several names.
What is read here is written back in the same form.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from sff_fast import files
from sff_fast.adapters.checkpoint import TORCH_SUFFIXES, named_tensors, read_weights, unwrapped
from sff_fast.errors import ArgumentError, CheckpointError

FORMATS = ("ckpt", "safetensors")


@dataclass(frozen=True)
class Layout:
    """How a checkpoint file names its tensors.

    Args:
        format: ``"ckpt"`` (``torch.save``) or ``"safetensors"``.
        prefix: What stands before the model's own names, for those that ``names`` does not list.
        names: Name in the file to name in the model; several may mean one tensor.
        wrapper: The key under which a ``torch.save`` file holds the tensors, or None where it holds nothing else.
        aside: Tensors of the file that the model has no use for.
    """

    format: str
    prefix: str = ""
    names: tuple[tuple[str, str], ...] = ()
    wrapper: str | None = None
    aside: tuple[tuple[str, Tensor], ...] = field(default=(), compare=False)


def check_format(format: str | None) -> None:
    """Refuse what is no format.

    Raises:
        ArgumentError: It is neither None nor one of ``FORMATS``.
    """
    if format not in (None, *FORMATS):
        raise ArgumentError(f"format must be {' or '.join(map(repr, FORMATS))}, got {format!r}")


def read(
    path: Path, wrapper: str, own_name: Callable[[str], str], unused: Callable[[str], bool] = lambda key: False
) -> tuple[dict[str, Tensor], Layout]:
    """Read a file of weights under the model's own names, aliases merged.

    Args:
        path: The file.
        wrapper: The key under which the published file holds its tensors; a file without it holds the tensors alone.
        own_name: The model's name for a tensor of the file; a name that is none of the model's stays as it is.
        unused: Whether a tensor is none of the model's business, by its name in the file.

    Returns:
        Name in the model to tensor, and the layout.

    Raises:
        CheckpointError: The file cannot be read, is damaged, or holds two different tensors under one name.
    """
    content, wrapped = unwrapped(read_weights(path), wrapper)
    found = named_tensors(content, path)
    aside = tuple((key, tensor) for key, tensor in found.items() if unused(key))
    used = {key: tensor for key, tensor in found.items() if not unused(key)}
    state: dict[str, Tensor] = {}
    first: dict[str, str] = {}
    for key, tensor in used.items():
        name = own_name(key)
        if name not in state:
            state[name], first[name] = tensor, key
        elif not _same(state[name], tensor):
            raise CheckpointError(
                f"{str(path)!r}: {first[name]!r} and {key!r} should be one tensor and differ: save the state_dict again"
            )
    prefix = next((key.removesuffix(name) for name, key in first.items() if key.endswith(name)), "")
    format = "ckpt" if path.suffix in TORCH_SUFFIXES else "safetensors"
    names = tuple((key, own_name(key)) for key in used)
    return state, Layout(format, prefix, names, wrapper if wrapped else None, aside)


def write(model: nn.Module, layout: Layout, folder: Path, archive: str) -> None:
    """Write a model's tensors as ``model.safetensors`` or as an archive of ``torch.save``.

    Args:
        model: The model; all tensors of its ``state_dict`` are written.
        layout: Names and form.
        folder: Where to write.
        archive: Name of the file of the ``"ckpt"`` format.
    """
    own = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    listed = {name for _, name in layout.names}
    names = {**dict(layout.names), **{layout.prefix + name: name for name in own if name not in listed}}
    if layout.format == "safetensors":
        tensors = {key: own[name] for key, name in names.items()}
        files.save_safetensors(folder / "model.safetensors", {**tensors, **dict(layout.aside)}, {"format": "pt"})
        return
    # Cloned once a tensor: torch.save writes a whole storage, of which a tensor may be a small part.
    own = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in own.items()}
    state = {**{key: own[name] for key, name in names.items()}, **dict(layout.aside)}
    with files.atomic_write(folder / archive) as file:
        torch.save({layout.wrapper: state} if layout.wrapper else state, file)


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and bool(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True))
