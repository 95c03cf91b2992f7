"""The families that there are, by name."""

from __future__ import annotations

import difflib
import importlib.metadata
import importlib.util
import inspect
import os
import warnings
from dataclasses import dataclass
from typing import Any

from sff_fast.adapters.base import Adapter
from sff_fast.adapters.checkpoint import ForeignCheckpointError
from sff_fast.errors import ArgumentError, CheckpointError

#: Entry points of this group name :class:`Adapter` subclasses of other packages.
ENTRY_POINT_GROUP = "sff_fast.families"

_ADAPTERS: dict[str, type[Adapter]] = {}


@dataclass(frozen=True)
class FamilyInfo:
    """What is known of a family without importing its package.

    Args:
        name: The family's name.
        variant: Which of its architectures.
        package: The package on PyPI that it needs, or None.
        extra: The extra of sff_fast that installs the package, or None.
        tasks: What it can be trained for.
        channel_independent: Whether it is trained on windows of one channel.
        installed: Whether the package is there.
        adapter: The class.
    """

    name: str
    variant: str
    package: str | None
    extra: str | None
    tasks: frozenset[str]
    channel_independent: bool
    installed: bool
    adapter: type[Adapter]


def register(cls: type[Adapter]) -> type[Adapter]:
    """Add a family; usable as a class decorator.

    Args:
        cls: A concrete subclass of :class:`Adapter` whose ``family`` is not taken.

    Returns:
        The class.

    Raises:
        ArgumentError: It is no such class, or the name belongs to another one.
    """
    _check_class(cls)
    other = _ADAPTERS.setdefault(cls.family, cls)
    if other is not cls:
        raise ArgumentError(f"the family {cls.family!r} is taken by {_full_name(other)}: give {_full_name(cls)} another name")
    return cls


def families() -> dict[str, FamilyInfo]:
    """All families, those of installed plug-ins included, sorted by name.

    A plug-in that cannot be loaded, or that takes a name of this package, is left out with a warning that names it.

    Returns:
        Name to information.
    """
    _discover()
    return {name: _info(_ADAPTERS[name]) for name in sorted(_ADAPTERS)}


def load(family: str, path: str | os.PathLike[str], **options: Any) -> Adapter:
    """Load a checkpoint from a local file or folder.

    Args:
        family: Name of the family; see :func:`families`.
        path: The file or folder in the family's published layout.
        **options: The family's own; see the ``load`` of its adapter.

    Returns:
        The adapter, its model in eval mode.

    Raises:
        ArgumentError: There is no such family or option.
        CheckpointError: The checkpoint is missing, damaged or of another family.
        MissingPackageError: The family's package is not installed.
    """
    cls = _find(family)
    known = [
        parameter.name
        for parameter in inspect.signature(cls.load).parameters.values()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    ]
    takes_any = any(
        parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in inspect.signature(cls.load).parameters.values()
    )
    for option in options:
        if option not in known and not takes_any:
            raise ArgumentError(f"the family {family!r} has no option {option!r}: it takes {', '.join(known) or 'none'}")
    try:
        return cls.load(path, **options)
    except ForeignCheckpointError as error:
        owner = next((other for other in families().values() if _owns(other.adapter, cls, error.keys)), None)
        if owner is None:
            raise
        raise CheckpointError(f"{error}; it looks like the family {owner.name!r}: choose that one") from error


def tiny(family: str, seed: int = 0) -> Adapter:
    """A small random model of a family, for tests and trials.

    Args:
        family: Name of the family; see :func:`families`.
        seed: Seed of its weights; the global generators are left alone.

    Raises:
        ArgumentError: There is no such family.
        MissingPackageError: The family's package is not installed.
    """
    return _find(family).tiny(seed)


def _find(family: str) -> type[Adapter]:
    if family not in _ADAPTERS:
        _discover()
    if family not in _ADAPTERS:
        close = difflib.get_close_matches(str(family), _ADAPTERS, n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        raise ArgumentError(f"unknown family {family!r}{guess}: expected one of {', '.join(sorted(_ADAPTERS))}")
    return _ADAPTERS[family]


def _discover() -> None:
    for point in importlib.metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            register(point.load())
        except (ImportError, AttributeError, ArgumentError) as error:
            reason = " ".join(str(error).split())
            warnings.warn(f"the plug-in {point.name!r} ({point.value}) is left out: {reason}", stacklevel=3)


def _check_class(cls: type[Adapter]) -> None:
    if not (isinstance(cls, type) and issubclass(cls, Adapter)):
        raise ArgumentError(f"a family must be a subclass of sff_fast.adapters.Adapter, got {cls!r}")
    if inspect.isabstract(cls):
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise ArgumentError(f"the family class {_full_name(cls)} does not implement {missing}")
    for name in ("family", "variant"):
        if not isinstance(getattr(cls, name, None), str):
            raise ArgumentError(f"the family class {_full_name(cls)} must set the string {name!r}")


def _info(cls: type[Adapter]) -> FamilyInfo:
    installed = cls.module is None or importlib.util.find_spec(cls.module.split(".")[0]) is not None
    return FamilyInfo(cls.family, cls.variant, cls.package, cls.extra, cls.tasks, cls.channel_independent, installed, cls)


def _owns(candidate: type[Adapter], asked: type[Adapter], keys: tuple[str, ...]) -> bool:
    if candidate is asked or not candidate.marks:
        return False
    return all(any(mark in key for key in keys) for mark in candidate.marks)


def _full_name(cls: type[Adapter]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
