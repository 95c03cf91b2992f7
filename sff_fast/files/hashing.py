"""Hashes of files."""

from __future__ import annotations

import hashlib
import os

from sff_fast.errors import DataError, SffFastError

from .disk import CHUNK, reason


def sha256(path: str | os.PathLike[str], error: type[SffFastError] = DataError) -> str:
    """Hash the contents of a file.

    Args:
        path: The file to read.
        error: The exception to raise when it cannot be read.

    Returns:
        The SHA-256 as 64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while chunk := file.read(CHUNK):
                digest.update(chunk)
    except (OSError, ValueError) as cause:
        raise error(f"cannot read the file {os.fspath(path)!r}: {reason(cause)}") from cause
    return digest.hexdigest()
