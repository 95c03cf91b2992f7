"""Tensors of several processes in one folder, through ``torch.distributed.checkpoint``: any number of processes can read it."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch

from ..errors import CheckpointError
from ..shards import is_sharded
from .group import Group

Like = Callable[[str], torch.Tensor | None]

_AT_ONCE = 256 << 20
"""Bytes that are read at a time."""


def write_parts(folder: Path, tensors: Mapping[str, Mapping[str, torch.Tensor]], group: Group) -> list[Path]:
    """Write each process's part of sharded tensors, and what all have once; every process must call.

    Args:
        folder: An existing folder, the same for all.
        tensors: Name of a set to its tensors, the same names in every process.
        group: The processes.

    Returns:
        The files that this process has written.
    """
    import torch.distributed.checkpoint as dcp

    flat = {f"{kind}/{name}": tensor.detach() for kind, some in tensors.items() for name, tensor in some.items()}
    dcp.save(flat, checkpoint_id=folder)
    own = sorted(folder.glob(f"__{group.rank}_*.distcp"))
    return [*own, folder / ".metadata"] if group.writes else own


def has_parts(folder: Path) -> bool:
    """Whether a folder was written by :func:`write_parts`."""
    return (folder / ".metadata").exists()


def read_parts(folder: Path, kind: str, like: Like) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of a set, a few at a time; no process needs the others.

    Args:
        folder: What :func:`write_parts` has filled.
        kind: The set.
        like: Gives for a name the tensor that it belongs to, or None. Where that is a DTensor of the same shape, it comes as
            one that is spread alike, and only this process's part is read. Everything else comes whole, on the CPU.

    Raises:
        CheckpointError: The folder cannot be read.
    """
    import torch.distributed.checkpoint as dcp

    prefix = f"{kind}/"
    try:
        metadata = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
        pending: dict[str, torch.Tensor] = {}
        names = sorted(name for name in metadata if name.startswith(prefix))
        for last, name in [(name == names[-1], name) for name in names]:
            entry, model = metadata[name], like(name.removeprefix(prefix))
            dtype = entry.properties.dtype
            if model is not None and is_sharded(model) and tuple(model.shape) == tuple(entry.size):
                pending[name] = torch.zeros_like(model, dtype=dtype, requires_grad=False)
            else:
                pending[name] = torch.zeros(entry.size, dtype=dtype)
            if last or sum(tensor.nbytes for tensor in pending.values()) > _AT_ONCE:
                with warnings.catch_warnings():  # it warns of doing what it is told: to ask nobody else
                    warnings.filterwarnings("ignore", "torch.distributed is disabled")
                    dcp.load(pending, checkpoint_id=folder, no_dist=True)
                yield from ((name.removeprefix(prefix), tensor) for name, tensor in pending.items())
                pending = {}
    except (OSError, pickle.UnpicklingError, EOFError) as error:
        raise CheckpointError(f"cannot read {str(folder)!r}: {' '.join(str(error).split())}") from error
