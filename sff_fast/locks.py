"""The right to write into a folder, which one process has at a time.

The folder itself is locked (``flock``), so nothing is written for it and a process that dies, however it does, leaves no lock
behind. Written for POSIX systems.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

from .errors import OutputError

_NO_LOCKS = {errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
_PROCESSES = Path("/proc")
_ATTEMPTS, _PAUSE = 20, 0.01  # seconds; a process that only asks holds the lock for microseconds
_HELD: set[tuple[int, int]] = set()


def check_free(folder: Path) -> None:
    """Refuse a folder that another process, or another run of this one, has the right to.

    What holds it may ask too: it finds its own folder free.

    Raises:
        OutputError: It is taken; the message names the process.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        if _identity(fd) not in _HELD and not _lock(fd):
            raise _taken(folder)
    finally:
        os.close(fd)


def take(folder: Path) -> int | None:
    """Take the right to a folder that exists.

    Returns:
        What :func:`release` takes, or None where the folder was removed meanwhile.

    Raises:
        OutputError: Another process, or another run of this one, has it; the message names the process.
    """
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        for _ in range(_ATTEMPTS):
            if _lock(fd):
                break
            time.sleep(_PAUSE)
        else:
            raise _taken(folder)
        # Between opening and locking the former holder may have removed it, and someone else may have made it again.
        if os.fstat(fd).st_nlink == 0 or not folder.is_dir() or not os.path.samestat(os.fstat(fd), os.stat(folder)):
            os.close(fd)
            return None
        _HELD.add(_identity(fd))
        return fd
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise


def release(fd: int) -> None:
    """Give the right back."""
    _HELD.discard(_identity(fd))
    os.close(fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno == errno.EWOULDBLOCK:
            return False
        if error.errno not in _NO_LOCKS:
            raise
        warnings.warn("the file system of the output folder has no locks: see to it that no other run writes there", stacklevel=4)
    return True


def _identity(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def _taken(folder: Path) -> OutputError:
    pids = list(_holders(folder))
    who = f"process {pids[0]}" if pids else "another process"
    return OutputError(f"the output folder {str(folder)!r} is in use by {who}: wait until it ends, or choose another folder")


def _holders(folder: Path) -> Iterator[int]:
    """The processes that have a folder open and locked, as far as the system tells (Linux, the user's own processes)."""
    name = str(folder)
    for process in sorted(_PROCESSES.glob("[0-9]*"), key=lambda path: int(path.name)):
        # It may end at any time, or be another user's.
        with contextlib.suppress(OSError):
            for link in (process / "fd").iterdir():
                if os.readlink(link) == name and "FLOCK" in (process / "fdinfo" / link.name).read_text():
                    yield int(process.name)
