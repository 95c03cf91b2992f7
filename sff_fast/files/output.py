"""The output folder of a run: whether it may be written to, and who may."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from sff_fast import locks
from sff_fast.errors import ArgumentError, OutputError

from . import temporaries
from .disk import converted, resolve
from .folders import make_directory


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
    target = resolve(path)
    made: list[Path] = []
    with converted(target):
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
    target = resolve(path)
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
    with converted(target):
        holds = "new"
        if target.is_dir():
            locks.check_free(target)
        temporaries.recover(target.parent, only=target.name)
        if target.is_dir():
            holds = _describe_run(target)
    if holds != "new" and not (overwrite or resume):
        advice = "overwrite it (--overwrite)" if holds == "finished" else "continue it (--resume) or --overwrite it"
        article = "a" if holds == "finished" else "an"
        raise OutputError(f"the output folder {str(target)!r} holds {article} {holds} run: choose another folder, or {advice}")
    with converted(target):
        for folder, inside, _ in os.walk(target):
            temporaries.recover(Path(folder))
            inside[:] = [name for name in inside if not temporaries.PATTERN.match(name)]
    return holds


def _describe_run(folder: Path) -> str:
    if (folder / "metrics.json").exists():
        return "finished"
    state = folder / "state"
    with converted(state):
        if state.is_dir() and any(not temporaries.PATTERN.match(name) for name in os.listdir(state)):
            return "unfinished"
    return "new"


def _try_to_write(existing: Path, target: Path) -> None:
    """Make a folder and remove it again: permissions do not tell of read-only and virtual file systems."""
    trial = existing / temporaries.name_for(target)
    try:
        os.mkdir(trial)
        with contextlib.suppress(FileNotFoundError):  # somebody else has cleared it up as a dead run's
            os.rmdir(trial)
    except OSError as cause:
        raise OutputError(
            f"cannot use the output folder {str(target)!r}: nothing can be written into {str(existing)!r} "
            f"({os.strerror(cause.errno).lower()}); choose another"
        ) from cause
