"""What every module that writes asks of the disk: whole paths, flushed names, and errors on one line."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from sff_fast.errors import OutputError

CHUNK = 1 << 20
LIBC = ctypes.CDLL(None, use_errno=True)
NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
_HINTS = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some space or choose another folder",
    errno.EFBIG: "raise the limit on the size of files or choose another folder",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOENT: "create the folder first",
    errno.EEXIST: "a file has that name; choose another folder",
    errno.ENOTDIR: "a part of the path is a file; choose another folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "the path is a loop of symbolic links; choose another one",
}


def resolve(path: str | os.PathLike[str]) -> Path:
    """The whole path of something to write, symbolic links followed; it need not be there."""
    text = os.fsdecode(os.fspath(path))
    if not text or "\0" in text:
        raise OutputError(f"{text!r} is not a path: it is empty or holds a null character")
    resolved = Path(os.path.realpath(text))
    with converted(resolved):
        try:
            mode = os.lstat(resolved).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return resolved
    if stat.S_ISLNK(mode):
        raise OutputError(f"cannot write {text!r}: it is a loop of symbolic links; choose another path")
    return resolved


def check_file_target(target: Path) -> None:
    """Refuse what cannot become a regular file: a folder, a device, a read-only file, a name in a folder that is not there."""
    with converted(target):
        try:
            mode = target.stat().st_mode
        except FileNotFoundError:
            if not target.parent.is_dir():
                raise OutputError(
                    f"cannot write {str(target)!r}: the folder {str(target.parent)!r} does not exist; create it first"
                ) from None
            return
    if stat.S_ISDIR(mode):
        raise OutputError(f"cannot write {str(target)!r}: it is a folder; choose another name")
    if not stat.S_ISREG(mode):
        raise OutputError(f"cannot write {str(target)!r}: it is a device or pipe, not a regular file")
    if not os.access(target, os.W_OK):
        raise OutputError(f"cannot write {str(target)!r}: the file is read-only; change its permissions or its name")


def fsync_directory(folder: Path) -> None:
    """Bring the names in a folder to the disk."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot flush a folder; the rename is then as durable as they make it.
        if error.errno not in NOT_SUPPORTED:
            raise
    finally:
        os.close(fd)


def fsync_tree(folder: Path) -> None:
    """Flush every file and folder below a folder, innermost first."""
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            path = os.path.join(root, name)
            if not stat.S_ISREG(os.lstat(path).st_mode):
                continue
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        fsync_directory(Path(root))


def unlink(path: Path) -> None:
    """Delete a file, or a link; one that is not there is no error."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def remove_folder(path: Path) -> None:
    """Delete a folder that is no longer needed; a process that clears up at the same time may have been faster."""
    while path.exists():
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue


@contextlib.contextmanager
def converted(target: Path) -> Iterator[None]:
    """Turn the operating system's errors into one line that names the target and says what to do."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "choose another folder")
        output = OutputError(f"cannot write {str(target)!r}: {reason(error)}; {hint}")
        output.errno = error.errno
        raise output from error


def reason(error: Exception) -> str:
    """An error's own words on one line, without the path, which messages name themselves."""
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return one_line(error)


def one_line(error: Exception) -> str:
    """What an error says, its line breaks taken out."""
    return " ".join(str(error).split()) or type(error).__name__
