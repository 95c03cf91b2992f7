"""Overwriting a checkpoint so that a crash at any moment loses nothing.

Before a piece of a file is overwritten, the journal beside it holds the piece's new bytes and what is being done. The journal
is replaced atomically (temporary file, ``fsync``, rename), so there is always exactly one, and it is complete: after a
crash its piece is written again, whatever became of it the first time, and the rest is done from there.
"""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sff_fast import files
from sff_fast.errors import CheckpointError

_MAGIC = b"sff_fast journal 1\n"
_LENGTH = struct.Struct("<Q")


@dataclass(frozen=True)
class Pending:
    """The piece that is being written.

    Args:
        identity: What is being done, as JSON; another task must not go on with it.
        file: Name of the file.
        begin: First byte of the piece.
        data: The new bytes.
    """

    identity: dict[str, Any]
    file: str
    begin: int
    data: bytes


def journal_of(source: Path) -> Path:
    """Where the journal of a checkpoint (a file or folder) lies."""
    return source / ".sff-journal" if source.is_dir() else source.with_name(f".{source.name}.sff-journal")


def interrupted(source: Path) -> str:
    """What is said of a checkpoint with a journal beside it."""
    return (
        f"{str(source)!r} is half smoothed: an overwriting in place was interrupted; finish it by the same call "
        "(`sff-fast smooth … --in-place` with the same options)"
    )


def store(path: Path, identity: dict[str, Any], data: memoryview, file: str, begin: int) -> None:
    """Replace the journal.

    Raises:
        OutputError: It cannot be written; the piece must not be touched then.
    """
    head = {"identity": identity, "file": file, "begin": begin, "sha256": hashlib.sha256(data).hexdigest()}
    encoded = json.dumps(head).encode()
    with files.atomic_write(path) as target:
        target.write(_MAGIC + _LENGTH.pack(len(encoded)) + encoded)
        target.write(data)


def load(path: Path) -> Pending | None:
    """Read the journal, None where there is none.

    Raises:
        CheckpointError: It is damaged.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CheckpointError(f"cannot read the journal {str(path)!r}: {(error.strerror or str(error)).lower()}") from error
    start = len(_MAGIC) + _LENGTH.size
    try:
        if not content.startswith(_MAGIC):
            raise ValueError("it does not begin as one")
        length = _LENGTH.unpack_from(content, len(_MAGIC))[0]
        head = json.loads(content[start : start + length])
        data = content[start + length :]
        if hashlib.sha256(data).hexdigest() != head["sha256"]:
            raise ValueError("its data does not have the recorded sha256")
        return Pending(head["identity"], head["file"], head["begin"], data)
    except (ValueError, KeyError, TypeError, RecursionError, struct.error) as error:
        raise CheckpointError(f"the journal {str(path)!r} is damaged ({error}): restore the checkpoint from a copy") from error
