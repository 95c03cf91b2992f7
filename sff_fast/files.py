"""Files that are either complete or not there: the one place of the package that writes to disk.

A file is written to a temporary file in the same folder, flushed to the disk (``fsync``) and renamed over its target;
then the folder itself is flushed. A crash, a full disk or a power cut leaves the old file, or the new one, never half of
one. A folder is filled under a temporary name and renamed when it is complete; an older folder is swapped with it by one
atomic exchange (``renameat2`` on Linux). Where the file system has no exchange, the old folder is renamed aside first and
the new one takes its place after that: a crash between the two renames leaves both complete, and
:func:`check_output_directory` puts the old one back.

While it is in use a temporary is locked (``flock``), so a temporary that nobody locks belongs to a dead run and can be
removed. Names: ``.<name>.<token>.sff-tmp`` and, for a folder that was moved aside, ``.<name>.<token>.sff-old``.
Written for POSIX systems.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from . import locks
from .errors import ArgumentError, CheckpointError, DataError, OutputError, SffFastError

_TEMPORARY = re.compile(r"^\.(?P<name>.+)\.(?P<token>[0-9a-f]{16})\.sff-(?P<kind>tmp|old)$", re.DOTALL)
_CHUNK = 1 << 20
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WRITE = 2
_LIBC = ctypes.CDLL(None, use_errno=True)
_NOT_SUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
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
    target = _resolve(path)
    _check_file_target(target)
    with _converted(target):
        temporary, fd = _create_temporary(target, directory=False)
    renamed = False
    raw: _RawFile | None = None
    try:
        with _converted(target):
            _copy_permissions(target, fd)
            # A copy of the descriptor: a wrapper such as io.TextIOWrapper may close the file that it was given.
            raw = _RawFile(os.dup(fd), target)
        stream = io.BufferedWriter(raw, _CHUNK)
        yield stream
        with _converted(target):
            if not stream.closed:
                stream.flush()
            os.fsync(fd)
            os.replace(temporary, target)
            renamed = True
            _fsync_directory(target.parent)
    finally:
        if raw is not None:
            raw.close()
        os.close(fd)
        if not renamed:
            with _converted(target):
                _unlink(temporary)


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
    target = _resolve(path)
    if target.exists() and not target.is_dir():
        raise OutputError(f"cannot write the folder {str(target)!r}: it is a file; choose another name")
    if target.exists() and not replace:
        raise OutputError(f"the folder {str(target)!r} exists already: choose another one, or replace it (overwrite=True)")
    with _converted(target):
        temporary, fd = _create_temporary(target, directory=True)
    try:
        with _converted(target):
            if target.exists():
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
        yield temporary
        with _converted(target):
            _fsync_tree(temporary)
            if target.exists() and not replace:
                raise OutputError(f"the folder {str(target)!r} was made by someone else meanwhile: choose another one")
            _swap_in(temporary, target)
    finally:
        os.close(fd)
        with _converted(target):
            _remove_tree(temporary)


@contextlib.contextmanager
def claimed_directory(path: str | os.PathLike[str], overwrite: bool = False, resume: bool = False) -> Iterator[None]:
    """Keep other processes from using a folder as their output while the block runs.

    A folder that is not there yet is made, and removed in the end where nothing was put into it.

    Args:
        path: The output folder.
        overwrite: As for :func:`check_output_directory`, which is asked before the folder is made.
        resume: Likewise.

    Raises:
        OutputError: The folder is in use, by the process that the message names, or cannot be made.
    """
    target = _resolve(path)
    made: list[Path] = []
    with _converted(target):
        while True:
            if not target.is_dir():
                check_output_directory(target, overwrite=overwrite, resume=resume)
                made += make_directory(target)
            claim = locks.take(target)
            if claim is not None:
                break
    try:
        yield
    finally:
        for folder in reversed(made):
            # Whatever is in it now is a reason to leave it.
            with contextlib.suppress(OSError):
                os.rmdir(folder)
        locks.release(claim)


def make_directory(path: str | os.PathLike[str]) -> list[Path]:
    """Make a folder, and those above it, so that they outlast a power cut; one that is there is left as it is.

    Returns:
        The folders that were made, outermost first.

    Raises:
        OutputError: It cannot be made.
    """
    target = _resolve(path)
    missing: list[Path] = []
    made: list[Path] = []
    with _converted(target):
        while not target.is_dir() or missing:
            folder = target if not missing else missing[-1].parent
            if folder.is_dir():
                break
            missing.append(folder)
        for folder in reversed(missing):
            try:
                os.mkdir(folder)
            except FileExistsError:
                if not folder.is_dir():
                    raise
            else:
                made.append(folder)
                _fsync_directory(folder.parent)
    return made


class AppendedFile:
    """A file that only grows, such as a log; what was written before may be cut off once, when it is opened.

    Args:
        path: The file; its folder must exist.
        length: Bytes of an existing file that are kept. Default 0: it begins anew.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str], length: int = 0) -> None:
        self._target = _resolve(path)
        _check_file_target(self._target)
        with _converted(self._target):
            known = self._target.exists()
            self._fd = os.open(self._target, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
            try:
                os.ftruncate(self._fd, length)
                if not known:
                    _fsync_directory(self._target.parent)
            except OSError:
                os.close(self._fd)
                raise

    def write(self, data: bytes) -> None:
        """Append bytes; they have left the process when this returns.

        Raises:
            OutputError: They cannot be written; a part of them may be.
        """
        with _converted(self._target):
            while data:
                data = data[os.write(self._fd, data) :]

    def sync(self) -> int:
        """Bring what was written to the disk; returns the length of the file in bytes."""
        with _converted(self._target):
            os.fsync(self._fd)
            return os.fstat(self._fd).st_size

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def copy_file(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Copy the contents of a file, so that the copy is complete or not there.

    Raises:
        CheckpointError: The source cannot be read.
        OutputError: The copy cannot be written.
    """
    try:
        file = open(source, "rb")  # noqa: SIM115  (closed below: only the opening is to be converted)
    except OSError as error:
        raise CheckpointError(f"cannot read {os.fspath(source)!r}: {_reason(error)}; check its permissions") from error
    with file, atomic_write(target) as copy:
        shutil.copyfileobj(file, copy, _CHUNK)


def write_json(path: str | os.PathLike[str], obj: Any) -> None:
    """Write an object as JSON, atomically.

    Args:
        path: The file to write.
        obj: Dictionaries with string keys, lists, tuples, strings, finite numbers, booleans and None; NumPy scalars and
            arrays and paths are converted.

    Raises:
        ArgumentError: The object holds something that JSON cannot: NaN, infinity, a tensor, a key that is not a string.
            The message says where.
        OutputError: The file cannot be written.
    """
    text = json.dumps(_plain(obj, "the value"), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        # A lone surrogate, such as os.fsdecode gives for a file name that is not UTF-8: JSON can hold it escaped.
        data = (json.dumps(_plain(obj, "the value"), indent=2, allow_nan=False) + "\n").encode("ascii")
    with atomic_write(path) as file:
        file.write(data)


def read_json(path: str | os.PathLike[str], error: type[SffFastError] = DataError) -> Any:
    """Read a JSON file, strictly: UTF-8, no NaN or infinity, no duplicate keys.

    Args:
        path: The file to read.
        error: The exception to raise for a file that cannot be used.

    Returns:
        The parsed value.

    Raises:
        SffFastError: Of the type ``error``: the file is missing, unreadable or no valid JSON.
    """
    name = repr(os.fspath(path))
    try:
        data = Path(path).read_bytes()
    except (OSError, ValueError) as cause:
        raise error(f"cannot read the file {name}: {_reason(cause)}") from cause
    try:
        text = data.removeprefix(codecs.BOM_UTF8).decode()  # "utf-8-sig" would be a module to load, from a disk that may be full
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as cause:
        raise error(f"{name} is not valid JSON (line {cause.lineno}, column {cause.colno}: {cause.msg})") from cause
    except UnicodeDecodeError as cause:
        raise error(f"{name} is not valid JSON (byte {cause.start} is not UTF-8)") from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{name} is not valid JSON ({_one_line(cause)})") from cause


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
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except (OSError, ValueError) as cause:
        raise error(f"cannot read the file {os.fspath(path)!r}: {_reason(cause)}") from cause
    return digest.hexdigest()


def check_output_directory(path: str | os.PathLike[str], overwrite: bool = False, resume: bool = False) -> str:
    """Check that a run may write into a folder, and clear up after dead runs in it.

    Nothing is left there but what was. When the folder may be used, temporaries that a dead run left in it, in its subfolders
    or beside it are removed, and a folder that such a run had moved aside is put back.

    Args:
        path: The output folder of a run; it need not exist yet.
        overwrite: Whether the results of an earlier run may be replaced.
        resume: Whether the run continues an earlier one.

    Returns:
        What the folder holds: ``"new"`` (no run, or no folder yet), ``"unfinished"`` (a run's ``state`` without
        ``metrics.json``) or ``"finished"``.

    Raises:
        OutputError: The folder is a file or cannot be written, is in use by another process, or holds a run and neither
            ``overwrite`` nor ``resume`` was given.
        ArgumentError: Both ``overwrite`` and ``resume`` were given.
    """
    if overwrite and resume:
        raise ArgumentError("overwrite and resume exclude each other: give one of them")
    target = _resolve(path)
    existing = target
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise OutputError(f"cannot use the output folder {str(target)!r}: {str(existing)!r} is a file; choose another")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot use the output folder {str(target)!r}: no permission to write to {str(existing)!r}; "
            "choose a folder that you may write to"
        )
    if existing != target:
        _try_to_write(existing, target)
    with _converted(target):
        holds = "new"
        if target.is_dir():
            locks.check_free(target)
        _recover(target.parent, only=target.name)
        if target.is_dir():
            holds = _describe_run(target)
    if holds != "new" and not (overwrite or resume):
        advice = "overwrite it (--overwrite)" if holds == "finished" else "continue it (--resume) or --overwrite it"
        article = "a" if holds == "finished" else "an"
        raise OutputError(f"the output folder {str(target)!r} holds {article} {holds} run: choose another folder, or {advice}")
    with _converted(target):
        for folder, inside, _ in os.walk(target):
            _recover(Path(folder))
            inside[:] = [name for name in inside if not _TEMPORARY.match(name)]
    return holds


def remove_abandoned(path: str | os.PathLike[str]) -> None:
    """Remove the temporaries of a file or folder that dead runs left beside it, and put back what they had moved aside.

    Raises:
        OutputError: Something cannot be removed.
    """
    target = _resolve(path)
    with _converted(target):
        _recover(target.parent, only=target.name)


def remove(path: str | os.PathLike[str]) -> None:
    """Delete a file for good: the folder is flushed too.

    Raises:
        OutputError: It cannot be deleted.
    """
    target = _resolve(path)
    with _converted(target):
        _unlink(target)
        _fsync_directory(target.parent)


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Delete a folder, or a file, for good; one that is not there is no error.

    It first gets a name of :func:`atomic_directory`'s temporaries, so that a crash leaves nothing half deleted under its own.

    Raises:
        OutputError: It cannot be deleted.
    """
    target = Path(path)
    if not os.path.lexists(target):
        return
    with _converted(target):
        if target.is_dir() and not target.is_symlink():
            doomed = target.parent / f".{target.name}.{secrets.token_hex(8)}.sff-tmp"
            os.rename(target, doomed)
            _fsync_directory(target.parent)
            _remove_tree(doomed)
        else:
            _unlink(target)
        _fsync_directory(target.parent)


def begin_writeback(file: BinaryIO, begin: int, end: int) -> None:
    """Let the disk begin with bytes that were written, instead of all of them at the final flush (Linux; elsewhere nothing).

    Args:
        file: A file of :func:`atomic_write`; its buffer must be flushed.
        begin: First byte.
        end: One past the last.
    """
    sync_file_range = getattr(_LIBC, "sync_file_range", None)
    if sync_file_range is not None:
        # Only a hint: what it cannot do, the flush at the end does.
        sync_file_range(file.fileno(), ctypes.c_int64(begin), ctypes.c_int64(end - begin), _SYNC_FILE_RANGE_WRITE)


def _try_to_write(existing: Path, target: Path) -> None:
    """Make a folder and remove it again: permissions do not tell of read-only and virtual file systems."""
    trial = existing / _temporary_name(target)
    try:
        os.mkdir(trial)
        with contextlib.suppress(FileNotFoundError):  # somebody else has cleared it up as a dead run's
            os.rmdir(trial)
    except OSError as cause:
        raise OutputError(
            f"cannot use the output folder {str(target)!r}: nothing can be written into {str(existing)!r} "
            f"({os.strerror(cause.errno).lower()}); choose another"
        ) from cause


# --- temporaries ------------------------------------------------------------------------------------------------------


class _RawFile(io.FileIO):
    """A file whose failed writes say which target they were for."""

    def __init__(self, fd: int, target: Path) -> None:
        super().__init__(fd, "wb")
        self._target = target

    def write(self, data: Any) -> int:
        with _converted(self._target):
            return super().write(data)


def _create_temporary(target: Path, directory: bool) -> tuple[Path, int]:
    """Make and lock a temporary beside the target; return it with the descriptor that holds the lock."""
    while True:
        temporary = target.parent / (f".{target.name}.{secrets.token_hex(8)}.sff-tmp" if directory else _temporary_name(target))
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


def _temporary_name(target: Path) -> str:
    """A name for a temporary; that of the target in it only helps a reader, so it may be cut to fit into the system's limit."""
    name = target.name.encode("utf-8", "surrogateescape")[:160].decode("utf-8", "ignore")
    return f".{name}.{secrets.token_hex(8)}.sff-tmp"


def _lock(fd: int) -> bool:
    """Lock a temporary; False when another process holds it or the file system has no locks."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NOT_SUPPORTED | {errno.EWOULDBLOCK, errno.ENOLCK, errno.EBADF}:
            return False
        raise
    return True


def _is_abandoned(path: Path) -> bool:
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


def _recover(folder: Path, only: str | None = None) -> None:
    """Remove what dead runs left in a folder (for one target's name or all), and put back what they moved aside."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, PermissionError):
        return
    found = [(folder / name, match) for name in names if (match := _TEMPORARY.match(name))]
    if only is not None:
        found = [(path, match) for path, match in found if match["name"] == only]
    for path, match in found:
        if match["kind"] != "old" or path.is_symlink() or not path.is_dir():
            continue
        partner = folder / f".{match['name']}.{match['token']}.sff-tmp"
        if partner.exists() and not _is_abandoned(partner):
            continue
        target = folder / match["name"]
        if target.exists():
            _remove_tree(path)
        else:
            os.rename(path, target)
            _fsync_directory(folder)
    for path, match in found:
        if match["kind"] == "tmp" and _is_abandoned(path):
            if path.is_dir():
                _remove_tree(path)
            else:
                _unlink(path)


def _describe_run(folder: Path) -> str:
    if (folder / "metrics.json").exists():
        return "finished"
    state = folder / "state"
    with _converted(state):
        if state.is_dir() and any(not _TEMPORARY.match(name) for name in os.listdir(state)):
            return "unfinished"
    return "new"


def _swap_in(temporary: Path, target: Path) -> None:
    """Give a complete temporary folder its name; what had the name before is removed."""
    if not target.exists():
        os.rename(temporary, target)
        _fsync_directory(target.parent)
        return
    if _exchange(temporary, target):
        # The temporary name now holds the old folder, which the caller removes.
        _fsync_directory(target.parent)
        return
    aside = temporary.with_name(temporary.name.removesuffix(".sff-tmp") + ".sff-old")
    os.rename(target, aside)
    try:
        os.rename(temporary, target)
    except BaseException:
        os.rename(aside, target)
        raise
    _fsync_directory(target.parent)
    _remove_tree(aside)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two folders atomically; False where the system or the file system cannot."""
    renameat2 = getattr(_LIBC, "renameat2", None)
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
    if number in _NOT_SUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(second))


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _remove_tree(path: Path) -> None:
    """Delete a folder that is no longer needed; a process that clears up at the same time may have been faster."""
    while path.exists():
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            continue


# --- disk -------------------------------------------------------------------------------------------------------------


def _resolve(path: str | os.PathLike[str]) -> Path:
    text = os.fsdecode(os.fspath(path))
    if not text or "\0" in text:
        raise OutputError(f"{text!r} is not a path: it is empty or holds a null character")
    resolved = Path(os.path.realpath(text))
    with _converted(resolved):
        try:
            mode = os.lstat(resolved).st_mode
        except (FileNotFoundError, NotADirectoryError):
            return resolved
    if stat.S_ISLNK(mode):
        raise OutputError(f"cannot write {text!r}: it is a loop of symbolic links; choose another path")
    return resolved


def _check_file_target(target: Path) -> None:
    with _converted(target):
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


def _fsync_directory(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems cannot flush a folder; the rename is then as durable as they make it.
        if error.errno not in _NOT_SUPPORTED:
            raise
    finally:
        os.close(fd)


def _fsync_tree(folder: Path) -> None:
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
        _fsync_directory(Path(root))


# --- messages ---------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _converted(target: Path) -> Iterator[None]:
    """Turn the operating system's errors into one line that names the target and says what to do."""
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        hint = _HINTS.get(error.errno or 0, "choose another folder")
        converted = OutputError(f"cannot write {str(target)!r}: {_reason(error)}; {hint}")
        converted.errno = error.errno
        raise converted from error


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "it does not exist"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return _one_line(error)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


# --- JSON and safetensors ---------------------------------------------------------------------------------------------


def _plain(obj: Any, where: str) -> Any:
    """Convert an object to what JSON holds, or say which part of it JSON cannot hold."""
    if obj is None or isinstance(obj, (bool, str)):
        return obj
    if isinstance(obj, np.generic):
        return _plain(obj.item(), where)
    if isinstance(obj, int):
        return int(obj)
    if isinstance(obj, float):
        if not math.isfinite(obj):
            raise ArgumentError(f"{where} is {obj}, which JSON cannot hold: use None")
        return float(obj)
    if isinstance(obj, os.PathLike):
        return os.fsdecode(os.fspath(obj))
    if isinstance(obj, np.ndarray):
        return _plain(obj.tolist(), where)
    if isinstance(obj, Mapping):
        for key in obj:
            if not isinstance(key, str):
                raise ArgumentError(f"{where} has the key {key!r} of type {type(key).__name__}: JSON keys are strings")
        return {key: _plain(value, f"{where}[{key!r}]") for key, value in obj.items()}
    if isinstance(obj, (list, tuple)):
        return [_plain(value, f"{where}[{index}]") for index, value in enumerate(obj)]
    raise ArgumentError(f"{where} is a {type(obj).__name__}, which JSON cannot hold: convert it first")


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"it holds {text}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        repeated = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {repeated!r} occurs twice")
    return result


def _check_tensor(name: Any, tensor: Any) -> None:
    if not isinstance(name, str) or name == "__metadata__":
        raise ArgumentError(f"{name!r} cannot be the name of a tensor in a safetensors file")
    if not isinstance(tensor, torch.Tensor):
        raise ArgumentError(f"{name!r} must be a tensor, got {type(tensor).__name__}")
    if tensor.layout != torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise ArgumentError(f"{name!r} must be a dense tensor with data, got {tensor.layout} on {tensor.device}")
    if tensor.dtype not in _SAFETENSORS_NAMES:
        raise ArgumentError(f"{name!r} has the dtype {tensor.dtype}, which safetensors cannot hold")
