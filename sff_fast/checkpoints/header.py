"""The header of a safetensors file: where each tensor lies, without reading one.

Source: https://github.com/huggingface/safetensors, section "Format".
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sff_fast.errors import CheckpointError

MAX_HEADER = 100_000_000  # The library's own limit.
_METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")

#: Name of a dtype in the header to bits an element.
_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
#: The dtypes that can be smoothed.
FLOATS = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Args:
        name: Its name.
        dtype: Its dtype as the header spells it, such as ``"BF16"``.
        shape: Its shape.
        begin: First byte, from the start of the file.
        end: One past its last byte.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """A safetensors file without its data.

    Args:
        path: The file.
        metadata: The strings of its header.
        entries: Its tensors in the order of their bytes.
        data: First byte of the data, from the start of the file.
        size: Size of the file in bytes.
    """

    path: Path
    metadata: Mapping[str, str]
    entries: tuple[Entry, ...]
    data: int
    size: int

    def with_metadata(self, metadata: Mapping[str, str]) -> bytes:
        """The first bytes of a file with the same tensors and other metadata; its data begins at a multiple of 64 bytes."""
        content: dict[str, Any] = {_METADATA: dict(metadata)} if metadata else {}
        for entry in self.entries:
            content[entry.name] = {
                "dtype": entry.dtype,
                "shape": list(entry.shape),
                "data_offsets": [entry.begin - self.data, entry.end - self.data],
            }
        encoded = json.dumps(content, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
        encoded += b" " * (-(len(encoded) + _LENGTH.size) % 64)
        return _LENGTH.pack(len(encoded)) + encoded


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; the data is not touched.

    Raises:
        CheckpointError: The file cannot be read, is cut short, or its header is not valid: one line that says what is wrong.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            first = file.read(_LENGTH.size)
            length = _LENGTH.unpack(first)[0] if len(first) == _LENGTH.size else size
            if length > min(MAX_HEADER, size - _LENGTH.size):
                raise _damaged(path, f"its header would take {length} of {size} bytes")
            raw = file.read(length)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise CheckpointError(f"cannot read {str(path)!r}: {reason}; check the path and its permissions") from error
    try:
        content = json.loads(raw.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _damaged(path, f"its header is no JSON: {' '.join(str(error).split())[:120]}") from error
    if not isinstance(content, dict):
        raise _damaged(path, "its header is no JSON object")
    metadata = content.pop(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _damaged(path, "its metadata does not map strings to strings")
    data = _LENGTH.size + length
    entries = sorted(_entries(content, data, path), key=lambda entry: (entry.begin, entry.end))
    at = data
    for entry in entries:
        if entry.begin != at:
            raise _damaged(path, f"the tensor {entry.name!r} begins at byte {entry.begin - data}, expected {at - data}")
        at = entry.end
    if at != size:
        raise _damaged(path, f"its tensors end at byte {at - data} of {size - data} bytes of data")
    return Header(path, metadata, tuple(entries), data, size)


def _entries(content: dict[str, Any], data: int, path: Path) -> Iterator[Entry]:
    for name, item in content.items():
        try:
            dtype, shape, (begin, end) = item["dtype"], item["shape"], item["data_offsets"]
            numbers = [*shape, begin, end]
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(path, f"the tensor {name!r} lacks dtype, shape or data_offsets") from error
        if not all(isinstance(number, int) and not isinstance(number, bool) and number >= 0 for number in numbers):
            raise _damaged(path, f"the tensor {name!r} has a shape or offset that is no whole number of at least 0")
        if not isinstance(dtype, str) or dtype not in _BITS:
            raise _damaged(path, f"the tensor {name!r} has the unknown dtype {dtype!r}")
        bits = math.prod(shape) * _BITS[dtype]
        if bits % 8 or end - begin != bits // 8:
            raise _damaged(path, f"the tensor {name!r}, {dtype} of shape {shape}, takes {-(-bits // 8)} bytes, not {end - begin}")
        yield Entry(name, dtype, tuple(shape), data + begin, data + end)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{str(path)!r} is no valid safetensors file ({reason}): copy or download it again")
