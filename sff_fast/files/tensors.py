"""Tensors in the safetensors format, written whole or not at all, one tensor in memory at a time."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

import torch

from sff_fast.errors import ArgumentError

from .atomic import atomic_write

_SAFETENSORS_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.int16: "I16",
    torch.uint16: "U16",
    torch.int32: "I32",
    torch.uint32: "U32",
    torch.int64: "I64",
    torch.uint64: "U64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


def save_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, torch.Tensor],
    metadata: Mapping[str, str] | None = None,
    fetch: Callable[[torch.Tensor], torch.Tensor] = torch.Tensor.detach,
) -> None:
    """Write tensors in the safetensors format, atomically and one tensor at a time.

    A tensor that is on a device or not contiguous is copied alone, so the extra memory is one tensor, not the file.
    Tensors that share storage are written once for each name. Names and sizes are laid out as the safetensors library
    does: wider dtypes first, then by name.

    Args:
        path: The file to write.
        tensors: Name to dense tensor, any device and strides.
        metadata: Strings to keep in the header.
        fetch: Gives the values of one of the tensors when it is written, in :func:`safetensors_order`; for tensors that are
            not here as a whole. Default: the tensor itself.

    Raises:
        ArgumentError: A name or a tensor that the format cannot hold.
        OutputError: The file cannot be written.

    Source: https://github.com/huggingface/safetensors, section "Format".
    """
    for name, tensor in tensors.items():
        _check_tensor(name, tensor)
    for key, value in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ArgumentError(f"metadata must map strings to strings, got {key!r}: {value!r}")
    order = safetensors_order(tensors)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    encoded = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    encoded += b" " * (-len(encoded) % 8)
    with atomic_write(path) as file:
        file.write(struct.pack("<Q", len(encoded)))
        file.write(encoded)
        for name in order:
            flat = fetch(tensors[name]).to("cpu").contiguous().reshape(-1)
            if flat.numel():
                file.write(memoryview(flat.view(torch.uint8).numpy()))


def safetensors_order(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names in the order in which a safetensors file holds them: wider dtypes first, then by name."""
    return sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))


def _check_tensor(name: Any, tensor: Any) -> None:
    if not isinstance(name, str) or name == "__metadata__":
        raise ArgumentError(f"{name!r} cannot be the name of a tensor in a safetensors file")
    if not isinstance(tensor, torch.Tensor):
        raise ArgumentError(f"{name!r} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise ArgumentError(f"{name!r} must be a dense tensor with data, got {tensor.layout} on {tensor.device}")
    if tensor.dtype not in _SAFETENSORS_NAMES:
        raise ArgumentError(f"{name!r} has the dtype {tensor.dtype}, which safetensors cannot hold")
