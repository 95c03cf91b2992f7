"""Constants that are written to some elements only: at indices, under a mask, beside a diagonal."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from sff_fast.boxes import Box
from sff_fast.tracing.memory import uniform_piece
from sff_fast.tracing.ops.copies import copied
from sff_fast.tracing.ops.registry import handles, number_of, ordinary, rounded
from sff_fast.tracing.values import Const

MOST_RUNS = 4096
"""An indexed write of a constant becomes boxes where it touches at most this many runs of elements."""


def _fixed(tracer: Any, *tensors: torch.Tensor) -> bool:
    """Make index or mask tensors concrete, and tell whether they are the same for every seed as far as is known."""
    for tensor in tensors:
        taint = tracer.memory.taint(tensor)
        if taint.draws or taint.uninitialised or tensor.device.type == "meta":
            return False
        tracer.memory.force(tensor)
        tracer.read_external |= taint.external
    return True


def _write_where(tracer: Any, target: torch.Tensor, mask: torch.Tensor, value: Any) -> torch.Tensor:
    """Write one value where a mask of the target's shape is true."""
    number = number_of(tracer, value)
    if number is None or not ordinary(target) or target.numel() == 0:
        return NotImplemented
    edges = torch.diff(mask.reshape(-1).to(torch.int8), prepend=torch.zeros(1, dtype=torch.int8))
    begins = torch.nonzero(edges == 1).reshape(-1).tolist()
    ends = torch.nonzero(edges == -1).reshape(-1).tolist() + [mask.numel()]
    if len(begins) > MOST_RUNS:
        return NotImplemented
    constant = Const(rounded(number, target.dtype))
    tracer.memory.write(target, [uniform_piece(Box((e - b,), (1,), b), constant) for b, e in zip(begins, ends)])
    return target


@handles("index_put_")
def index_put(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Write one value at fixed indices."""
    target, indices, value = args[:3]
    accumulate = args[3] if len(args) > 3 else kwargs.get("accumulate", False)
    given = [index for index in indices if index is not None]
    if accumulate or not _fixed(tracer, *given) or not target.numel():
        return NotImplemented
    mask = torch.zeros(target.shape, dtype=torch.bool)
    return _write_where(tracer, target, mask.index_put_(list(indices), torch.tensor(True)), value)


@handles("index_fill_")
def index_fill(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Write one value into fixed rows."""
    target, dim, index, value = args[:4]
    if not _fixed(tracer, index):
        return NotImplemented
    mask = torch.zeros(target.shape, dtype=torch.bool).index_fill_(dim, index, True)
    return _write_where(tracer, target, mask, value)


@handles("masked_fill_", "masked_fill")
def masked_fill(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Write one value where a fixed mask is true."""
    target, mask, value = args[:3]
    if not _fixed(tracer, mask):
        return NotImplemented
    if func._schema.name == "aten::masked_fill_":
        return _write_where(tracer, target, mask.expand(target.shape), value)
    return _copy_where(tracer, target, mask, value)


@handles("where")
def where(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Choose between a tensor and one value by a fixed mask."""
    if len(args) != 3 or "out" in kwargs:
        return NotImplemented
    mask, first, second = args
    if mask.dtype != torch.bool or not _fixed(tracer, mask):
        return NotImplemented
    source, value, written = first, second, ~mask
    if number_of(tracer, first) is not None:
        source, value, written = second, first, mask
    if value.dtype != source.dtype:
        return NotImplemented
    return _copy_where(tracer, source, written, value)


@handles("tril_", "triu_", "tril", "triu")
def triangle(tracer: Any, func: Any, args: tuple, kwargs: dict) -> Any:
    """Zeros on one side of a diagonal."""
    name = func._schema.name.removeprefix("aten::")
    source, diagonal = args[0], args[1] if len(args) > 1 else kwargs.get("diagonal", 0)
    if "out" in kwargs:
        return NotImplemented
    kept = getattr(torch.ones(source.shape[-2:], dtype=torch.bool), name.removesuffix("_"))(diagonal)
    mask = (~kept).expand(source.shape)
    return _write_where(tracer, source, mask, 0.0) if name.endswith("_") else _copy_where(tracer, source, mask, 0.0)


def _copy_where(tracer: Any, source: torch.Tensor, mask: torch.Tensor, value: Any) -> torch.Tensor:
    """A copy of a tensor that holds one value where a mask is true."""
    shape = np.broadcast_shapes(source.shape, mask.shape, value.shape if isinstance(value, torch.Tensor) else ())
    if not ordinary(source) or source.device.type != "cpu" or number_of(tracer, value) is None:
        return NotImplemented
    return _write_where(tracer, copied(tracer, source.expand(shape)), mask.expand(shape), value)
