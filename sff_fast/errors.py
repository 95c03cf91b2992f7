"""Errors that a user can mend, each with a one-line message.

Every exception that sff_fast raises on purpose derives from :class:`SffFastError`. The command line prints its message
on one line and exits with code 2; anything else is a bug and shows its traceback.
"""

from __future__ import annotations

import importlib
from types import ModuleType


class SffFastError(Exception):
    """Something that the user can mend. The message names the thing, what was expected, what came and what to do."""


class ArgumentError(SffFastError, ValueError):
    """An argument or option lies outside of what is allowed."""


class PlanError(SffFastError, ValueError):
    """An init plan is invalid, or does not fit the model."""


class DataError(SffFastError, ValueError):
    """A data file or table cannot be used as it is."""


class CheckpointError(SffFastError, ValueError):
    """A checkpoint is damaged, or belongs to another model."""


class OutputError(SffFastError, OSError):
    """The output folder cannot be used."""


class BackendError(SffFastError, RuntimeError):
    """A compute backend was asked for that is not there or cannot do what was asked."""


class ExhaustedError(SffFastError, MemoryError):
    """The memory of the machine or of the device is not enough."""


class MissingPackageError(SffFastError, ImportError):
    """An optional package is not installed."""


def require(module: str, extra: str, package: str | None = None, command: str | None = None) -> ModuleType:
    """Import an optional module, or say in one line how to install it.

    Args:
        module: Name of the module to import.
        extra: The extra of sff_fast that brings it, such as ``"cli"``.
        package: Name of the distribution on PyPI when it differs from the module's.
        command: How to install it beside new versions of what it needs, where its own requirements forbid them.
            Default: by the extra.

    Returns:
        The imported module.

    Raises:
        MissingPackageError: The module, or something that it imports, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or module
        name = package or module.split(".")[0]
        because = "" if missing == module.split(".")[0] else f" (it needs {missing!r})"
        command = command or f"pip install 'sff_fast[{extra}]'"
        raise MissingPackageError(f"the package {name!r} is not installed{because}: run `{command}`") from error
