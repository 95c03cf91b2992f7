"""Files and folders that are either complete or not there."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sff_fast.errors import CheckpointError, OutputError

from . import temporaries
from .disk import CHUNK, LIBC, check_file_target, converted, fsync_directory, fsync_tree, reason, remove_folder, resolve, unlink

_SYNC_FILE_RANGE_WRITE = 2


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Write a file so that it is either complete or untouched.

    The result has the permissions that a plain ``open(path, "wb")`` would give: an existing file keeps its own, a new one
    follows the umask. A symbolic link is followed: its target is replaced and the link stays.

    Args:
        path: The file to write; its folder must exist.

    Yields:
        A buffered binary file. When the block ends without an exception the file appears under ``path``; otherwise the
        temporary is removed and an older file is untouched.

    Raises:
        OutputError: The folder is missing or read-only, the disk is full, or ``path`` is not a regular file.
    """
    target = resolve(path)
    check_file_target(target)
    with converted(target):
        temporary, fd = temporaries.create(target, directory=False)
    renamed = False
    raw: _RawFile | None = None
    try:
        with converted(target):
            _copy_permissions(target, fd)
            # A copy of the descriptor: a wrapper such as io.TextIOWrapper may close the file that it was given.
            raw = _RawFile(os.dup(fd), target)
        stream = io.BufferedWriter(raw, CHUNK)
        yield stream
        with converted(target):
            if not stream.closed:
                stream.flush()
            os.fsync(fd)
            os.replace(temporary, target)
            renamed = True
            fsync_directory(target.parent)
    finally:
        if raw is not None:
            raw.close()
        os.close(fd)
        if not renamed:
            with converted(target):
                unlink(temporary)


@contextlib.contextmanager
def atomic_directory(path: str | os.PathLike[str], replace: bool = False) -> Iterator[Path]:
    """Write a folder so that it is either complete or not there.

    Args:
        path: The folder to make; the folder above must exist.
        replace: Whether an existing folder may be replaced. Everything in the old one is deleted after the swap.

    Yields:
        The temporary folder to fill.

    Raises:
        OutputError: The folder exists and ``replace`` is False, it is a file, or it cannot be written.
    """
    target = resolve(path)
    if target.exists() and not target.is_dir():
        raise OutputError(f"cannot write the folder {str(target)!r}: it is a file; choose another name")
    if target.exists() and not replace:
        raise OutputError(f"the folder {str(target)!r} exists already: choose another one, or replace it (overwrite=True)")
    with converted(target):
        temporary, fd = temporaries.create(target, directory=True)
    try:
        with converted(target):
            if target.exists():
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        yield temporary
        with converted(target):
            fsync_tree(temporary)
            if target.exists() and not replace:
                raise OutputError(f"the folder {str(target)!r} was made by someone else meanwhile: choose another one")
            temporaries.swap_in(temporary, target)
    finally:
        os.close(fd)
        with converted(target):
            remove_folder(temporary)


def copy_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy the contents of a file, so that the copy is complete or not there.

    Raises:
        CheckpointError: The source cannot be read.
        OutputError: The copy cannot be written.
    """
    try:
        file = open(source, "rb")  # noqa: SIM115  (closed below: only the opening is to be converted)
    except OSError as error:
        raise CheckpointError(f"cannot read {os.fspath(source)!r}: {reason(error)}; check its permissions") from error
    with file, atomic_write(target) as copy:
        shutil.copyfileobj(file, copy, CHUNK)


def begin_writeback(file: BinaryIO, begin: int, end: int) -> None:
    """Let the disk begin with bytes that were written, instead of all of them at the final flush (Linux; elsewhere nothing).

    Args:
        file: A file of :func:`atomic_write`; its buffer must be flushed.
        begin: First byte.
        end: One past the last.
    """
    sync_file_range = getattr(LIBC, "sync_file_range", None)
    if sync_file_range is not None:
        # Only a hint: what it cannot do, the flush at the end does.
        sync_file_range(file.fileno(), ctypes.c_int64(begin), ctypes.c_int64(end - begin), _SYNC_FILE_RANGE_WRITE)


class _RawFile(io.FileIO):
    """A file whose failed writes say which target they were for."""

    def __init__(self, fd: int, target: Path) -> None:
        super().__init__(fd, "wb")
        self._target = target

    def write(self, data: Any) -> int:
        with converted(self._target):
            return super().write(data)


def _copy_permissions(target: Path, fd: int) -> None:
    """Give the temporary the mode, and where that is allowed the owner, of the file that it will replace."""
    try:
        old = target.stat()
    except FileNotFoundError:
        return
    new = os.fstat(fd)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(fd, old.st_uid, old.st_gid)
    os.fchmod(fd, stat.S_IMODE(old.st_mode) & 0o777)
