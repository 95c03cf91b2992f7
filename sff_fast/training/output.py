"""The folder that a run or comparison writes into."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from ..errors import ArgumentError, OutputError
from ..files import check_output_directory, claimed_directory, make_directory, remove
from .labels import ZERO_SHOT

P = ParamSpec("P")
R = TypeVar("R")

WRITTEN = (
    "metrics.json",
    "state",
    "memory.json",
    "report.html",
    "learning_curves.png",
    "forecasts.png",
    "comparison.png",
    "imputation.png",
    "anomaly.png",
    "alphas.png",
    "landscape.csv",
    "contours.png",
    "surfaces.png",
    "landscape",
    "model",
    "runs",
    "windows",
    "sweep.png",
    "log.jsonl",
)
"""What a run or comparison writes into its folder, in the order in which ``overwrite`` removes it: first what makes the rest a
run that is finished or can be resumed, last what tells that the rest was written by one."""

_MARKS = ("metrics.json", "state", "log.jsonl")
"""One of these is there before a run writes its ``model``, and until ``overwrite`` has removed it."""
_RUN = re.compile(rf"{ZERO_SHOT}|.+-seed\d+")
"""What a comparison calls the folders of its runs."""

COMPARISON = "comparison.json"
"""In ``state/``, marks a folder that holds a comparison of runs, not a run."""


def check_output(out: str | Path, resume: bool, overwrite: bool, source: Path | None) -> Path:
    """Check that a run may write into a folder; nothing is written yet.

    Raises:
        ArgumentError: The run to overwrite holds the model to start from.
        OutputError: The folder cannot be used, or holds what a run would replace and no run has written.
    """
    folder = Path(out)
    check_output_directory(folder, overwrite=overwrite, resume=resume)
    _check_links(folder)
    _check_own(folder)
    if overwrite and source is not None and folder.resolve() in (source.resolve(), *source.resolve().parents):
        raise ArgumentError(f"overwrite would remove the model to start from, {str(source)!r}: choose another output folder")
    return folder


def _check_links(folder: Path) -> None:
    """Refuse links by which a run would write outside of its folder.

    Raises:
        OutputError: There is one.
    """
    root = folder.resolve()
    for name in WRITTEN:
        path = folder / name
        inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
        for one in (path, *inside):
            if one.is_symlink() and not one.resolve().is_relative_to(root):
                raise OutputError(
                    f"{str(one)!r} is a link out of the output folder, to {str(one.resolve())!r}, where a run does not "
                    "write: remove it, or choose another folder"
                )


def _check_own(folder: Path) -> None:
    """Refuse a folder of the user's own things by the names of ``model``, ``runs`` or ``landscape``, which a run would replace.

    Raises:
        OutputError: There is one.
    """
    marked = any((folder / name).exists() for name in _MARKS)
    foreign = {
        "model": not marked,
        "runs": not all(_RUN.fullmatch(name) for name in _names_in(folder / "runs")),
        "landscape": not set(_names_in(folder / "landscape")) <= {*WRITTEN},
    }
    for name, is_foreign in foreign.items():
        if is_foreign and _names_in(folder / name):
            raise OutputError(
                f"cannot use the output folder {str(folder)!r}: no run has written {str(folder / name)!r}, which a run replaces; "
                "choose another folder"
            )


def _names_in(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []


def begin_output(folder: Path, overwrite: bool) -> None:
    """Make an output folder, or remove the earlier run in it.

    Raises:
        OutputError: The folder cannot be made, or something in it cannot be removed.
    """
    make_directory(folder)
    for name in WRITTEN if overwrite else ():
        remove(folder / name)


def alone_in_output(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function with the arguments ``out``, ``resume`` and ``overwrite`` have its output folder for itself.

    Raises:
        OutputError: Another process, or another run of this one, writes into the folder.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)
        given.apply_defaults()
        out, options = given.arguments["out"], given.arguments
        if out is None:
            return function(*args, **kwargs)
        with claimed_directory(out, overwrite=options["overwrite"], resume=options["resume"]):
            return function(*args, **kwargs)

    return alone
