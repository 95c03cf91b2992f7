"""A safetensors file that comes from a pipe or goes into one.

Both ways pass through a file: what comes in is checked against its own header while it is read, so that neither text nor an
endless stream fills the disk; and the first byte goes out only when the result is whole, so that the reader of the pipe gets
all of a checkpoint or nothing.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import BinaryIO

from sff_fast import files
from sff_fast.checkpoints.header import MAX_HEADER
from sff_fast.errors import CheckpointError, OutputError

_LENGTH = struct.Struct("<Q")
_PIECE = 1 << 20


def spool(stream: BinaryIO, path: Path) -> None:
    """Write what a stream holds into a new file, which has the size that its safetensors header says.

    The header's tensors are checked later, by :func:`sff_fast.checkpoints.header.read_header`.

    Args:
        stream: Where the bytes come from.
        path: The file to make.

    Raises:
        CheckpointError: The stream holds no safetensors file, ends too early or goes on behind its end.
        OutputError: The file cannot be written.
    """
    first = stream.read(_LENGTH.size)
    length = _LENGTH.unpack(first)[0] if len(first) == _LENGTH.size else 0
    if not 2 <= length <= MAX_HEADER:
        raise CheckpointError(
            f"standard input holds no safetensors file: it begins with {first[:8]!r}; pipe one in, for example with `cat`"
        )
    head = _exactly(stream, length)
    left = _bytes_of_data(head)
    with files.atomic_write(path) as file:
        file.write(first)
        file.write(head)
        while left:
            piece = stream.read(min(_PIECE, left))
            if not piece:
                raise CheckpointError(f"standard input ended {left} bytes too early: its writer failed, or the file is cut short")
            file.write(piece)
            left -= len(piece)
    if stream.read(1):
        raise CheckpointError("standard input goes on behind the end of the safetensors file: pipe in one file")


def pour(path: Path, stream: BinaryIO) -> None:
    """Write a file into a stream.

    Args:
        path: The file.
        stream: Where its bytes go.

    Raises:
        OutputError: The stream's reader is gone, or its disk is full.
    """
    try:
        with path.open("rb") as file:
            while piece := file.read(_PIECE):
                stream.write(piece)
        stream.flush()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise OutputError(f"cannot write to standard output: {reason}; what reads the pipe ended too early") from error


def _exactly(stream: BinaryIO, size: int) -> bytes:
    parts, left = [], size
    while left and (piece := stream.read(min(_PIECE, left))):
        parts.append(piece)
        left -= len(piece)
    if left:
        raise CheckpointError("standard input ended within the safetensors header: its writer failed, or the file is cut short")
    return b"".join(parts)


def _bytes_of_data(head: bytes) -> int:
    """Where the last tensor ends, as the header says; whether that is sound is the header reader's to check."""
    try:
        content = json.loads(head.decode("utf-8"))
        ends = [entry["data_offsets"][1] for name, entry in content.items() if name != "__metadata__"]
    except (ValueError, RecursionError, AttributeError, TypeError, LookupError) as error:
        raise CheckpointError("standard input holds no safetensors file: its header does not say where tensors lie") from error
    if not all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in ends):
        raise CheckpointError("standard input holds no safetensors file: its header has offsets that are no positions")
    return max(ends, default=0)
