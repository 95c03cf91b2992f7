"""Folders that outlast a power cut, and files and folders that are deleted for good."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from .disk import converted, fsync_directory, remove_folder, resolve, unlink


def make_directory(path: str | os.PathLike[str]) -> list[Path]:
    """Make a folder, and those above it, so that they outlast a power cut; one that is there is left as it is.

    Returns:
        The folders that were made, outermost first.

    Raises:
        OutputError: It cannot be made.
    """
    target = resolve(path)
    missing: list[Path] = []
    made: list[Path] = []
    with converted(target):
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
                fsync_directory(folder.parent)
    return made


def remove(path: str | os.PathLike[str]) -> None:
    """Delete a file, a link or a folder for good: the folder above is flushed too. One that is not there is no error.

    A folder first gets a name of :func:`atomic_directory`'s temporaries, so that a crash leaves nothing half deleted.

    Raises:
        OutputError: It cannot be deleted.
    """
    target = Path(path)
    if not os.path.lexists(target):
        return
    with converted(target):
        if target.is_dir() and not target.is_symlink():
            doomed = target.parent / f".{target.name}.{secrets.token_hex(8)}.sff-tmp"
            os.rename(target, doomed)
            fsync_directory(target.parent)
            remove_folder(doomed)
        else:
            unlink(target)
        fsync_directory(target.parent)
