"""Temporary files and folders: their names, their locks, how they take their target's place, and what dead runs leave.

While it is in use a temporary is locked (``flock``), so a temporary that nobody locks belongs to a dead run and can be
removed. Names: ``.<name>.<token>.sff-tmp`` and, for a folder that was moved aside, ``.<name>.<token>.sff-old``.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
from pathlib import Path

from .disk import LIBC, NOT_SUPPORTED, converted, fsync_directory, remove_folder, resolve, unlink

PATTERN = re.compile(r"^\.(?P<name>.+)\.(?P<token>[0-9a-f]{16})\.sff-(?P<kind>tmp|old)$", re.DOTALL)
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def remove_abandoned(path: str | os.PathLike[str]) -> None:
    """Remove the temporaries of a file or folder that dead runs left beside it, and put back what they had moved aside.

    Raises:
        OutputError: Something cannot be removed.
    """
    target = resolve(path)
    with converted(target):
        recover(target.parent, only=target.name)


def create(target: Path, directory: bool) -> tuple[Path, int]:
    """Make and lock a temporary beside the target; return it with the descriptor that holds the lock."""
    while True:
        temporary = target.parent / (f".{target.name}.{secrets.token_hex(8)}.sff-tmp" if directory else name_for(target))
        if directory:
            os.mkdir(temporary)
            fd = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        else:
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        _lock(fd)
        # Between creation and lock another process may have taken it for a dead run's and removed it.
        if os.fstat(fd).st_nlink > 0 and temporary.exists():
            return temporary, fd
        os.close(fd)


def name_for(target: Path) -> str:
    """A name for a temporary; that of the target in it only helps a reader, so it may be cut to fit into the system's limit."""
    name = target.name.encode("utf-8", "surrogateescape")[:160].decode("utf-8", "ignore")
    return f".{name}.{secrets.token_hex(8)}.sff-tmp"


def _lock(fd: int) -> bool:
    """Lock a temporary; False when another process holds it or the file system has no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NOT_SUPPORTED | {errno.EWOULDBLOCK, errno.ENOLCK, errno.EBADF}:
            return False
        raise
    return True


def is_abandoned(path: Path) -> bool:
    """Whether a temporary can be locked, which means that the process that made it has ended."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP, errno.EACCES, errno.EPERM):
            return False
        raise
    try:
        return _lock(fd)
    finally:
        os.close(fd)


def recover(folder: Path, only: str | None = None) -> None:
    """Remove what dead runs left in a folder (for one target's name or all), and put back what they moved aside."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, PermissionError):
        return
    found = [(folder / name, match) for name in names if (match := PATTERN.match(name))]
    if only is not None:
        found = [(path, match) for path, match in found if match["name"] == only]
    for path, match in found:
        if match["kind"] != "old" or path.is_symlink() or not path.is_dir():
            continue
        partner = folder / f".{match['name']}.{match['token']}.sff-tmp"
        if partner.exists() and not is_abandoned(partner):
            continue
        target = folder / match["name"]
        if target.exists():
            remove_folder(path)
        else:
            os.rename(path, target)
            fsync_directory(folder)
    for path, match in found:
        if match["kind"] == "tmp" and is_abandoned(path):
            if path.is_dir():
                remove_folder(path)
            else:
                unlink(path)


def swap_in(temporary: Path, target: Path) -> None:
    """Give a complete temporary folder its name; what had the name before is removed."""
    if not target.exists():
        os.rename(temporary, target)
        fsync_directory(target.parent)
        return
    if exchange(temporary, target):
        # The temporary name now holds the old folder, which the caller removes.
        fsync_directory(target.parent)
        return
    aside = temporary.with_name(temporary.name.removesuffix(".sff-tmp") + ".sff-old")
    os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(aside, target)
        raise
    fsync_directory(target.parent)
    remove_folder(aside)


def exchange(first: Path, second: Path) -> bool:
    """Swap two folders atomically; False where the system or the file system cannot."""
    renameat2 = getattr(LIBC, "renameat2", None)
    if renameat2 is None:
        return False
    code = renameat2(
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(first)),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(second)),
        ctypes.c_uint(_RENAME_EXCHANGE),
    )
    if code == 0:
        return True
    number = ctypes.get_errno()
    if number in NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(second))
