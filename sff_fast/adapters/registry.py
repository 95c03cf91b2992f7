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
from sff_fast.adapters.checkpoint import ForeignCheckpointError, existing_path, pickles_allowed
from sff_fast.errors import ArgumentError, CheckpointError
from sff_fast.exhaustion import told

#: Entry points of this group name :class:`Adapter` subclasses of other packages.
ENTRY_POINT_GROUP = "sff_fast.families"

_ROOM = "a model is as large in memory as on disk, at least: free some, or smooth it on disk with `sff-fast smooth --plan`"
"""What to do where a checkpoint cannot be loaded."""

_ADAPTERS: dict[str, type[Adapter]] = {}


@dataclass(frozen=True)
class FamilyInfo:
    """What is known of a family, or of one of its variants, without importing its package.

    Args:
        name: The name of the family or of the variant.
        family: The family's name.
        variant: The architecture; of a family with several, the default one, which the rest of this record describes.
        variants: All architectures that the name stands for.
        package: The package on PyPI that it needs, or None.
        extra: The extra of sff_fast that installs the package, or None.
        tasks: What it can be trained for.
        channel_independent: Whether it is trained on windows of one channel.
        installed: Whether the package is there.
        adapter: The class.
    """

    name: str
    family: str
    variant: str
    variants: tuple[str, ...]
    package: str | None
    extra: str | None
    tasks: frozenset[str]
    channel_independent: bool
    installed: bool
    adapter: type[Adapter]


def register(cls: type[Adapter]) -> type[Adapter]:
    """Add a variant of a family; usable as a class decorator.

    Args:
        cls: A concrete subclass of :class:`Adapter` whose ``variant`` is not taken. A further variant of a family must
            come from the package that the family comes from, and must not be its default one.

    Returns:
        The class.

    Raises:
        ArgumentError: It is no such class, or a name belongs to another one.
    """
    _check_class(cls)
    other = _ADAPTERS.get(cls.variant)
    if other is cls:
        return cls
    siblings = [known for known in _ADAPTERS.values() if known.family == cls.family]
    if other is None:
        other = next((known for known in siblings if _package(known) != _package(cls)), None)
    if other is None:
        other = next((known for known in _ADAPTERS.values() if known.family == cls.variant != cls.family), None)
    if other is not None:
        name = cls.variant if other.variant == cls.variant else other.family
        raise ArgumentError(f"the family {name!r} is taken by {_full_name(other)}: give {_full_name(cls)} another name")
    default = next((known for known in siblings if known.default_variant and cls.default_variant), None)
    if default is not None:
        raise ArgumentError(
            f"the family {cls.family!r} has the default variant {default.variant!r}: "
            f"set default_variant to False in {_full_name(cls)}"
        )
    _ADAPTERS[cls.variant] = cls
    return cls


def families() -> dict[str, FamilyInfo]:
    """All families and their variants, those of installed plug-ins included, sorted by name.

    A plug-in that cannot be loaded, or that takes a name of this package, is left out with a warning that names it.

    Returns:
        Name to information. A family of several variants has an entry of its own, and each variant one.
    """
    _discover()
    names = {cls.variant for cls in _ADAPTERS.values()} | {cls.family for cls in _ADAPTERS.values()}
    return {name: _info(name) for name in sorted(names)}


def load(family: str, path: str | os.PathLike[str], *, allow_pickle: bool = False, **options: Any) -> Adapter:
    """Load a checkpoint from a local file or folder.

    Args:
        family: Name of a family, whose variants recognise their checkpoints, or of one variant; see :func:`families`.
        path: The file or folder in the family's published layout.
        allow_pickle: Whether weights may come from a file of ``torch.save`` (``.ckpt``, ``.pt``, ``.pth``, ``.bin``). Also then
            tensors and plain containers alone are read (``weights_only``), no object of another kind. Default False:
            safetensors only.
        **options: The family's own; see the ``load`` of its adapter.

    Returns:
        The adapter, its model in eval mode.

    Raises:
        ArgumentError: There is no such family or option.
        CheckpointError: The checkpoint is missing, damaged or of another family, or pickled without ``allow_pickle``.
        MissingPackageError: The family's package is not installed.
        ExhaustedError: There is not enough memory for the model.
    """
    if not isinstance(allow_pickle, bool):
        raise ArgumentError(f"allow_pickle must be True or False, got {allow_pickle!r}")
    cls = _choose(family, _find(family), path)
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
            raise ArgumentError(f"the family {cls.variant!r} has no option {option!r}: it takes {', '.join(known) or 'none'}")
    try:
        with pickles_allowed(allow_pickle), told(_ROOM):
            return cls.load(path, **options)
    except ForeignCheckpointError as error:
        owner = next((other for other in _ADAPTERS.values() if _owns(other, cls, error.keys)), None)
        if owner is None:
            raise
        raise CheckpointError(f"{error}; it looks like the family {owner.variant!r}: choose that one") from error


def tiny(family: str, seed: int = 0) -> Adapter:
    """A small random model of a family, for tests and trials.

    Args:
        family: Name of a family, for its default variant, or of a variant; see :func:`families`.
        seed: Seed of its weights; the global generators are left alone.

    Raises:
        ArgumentError: There is no such family.
        MissingPackageError: The family's package is not installed.
    """
    return _default(_find(family)).tiny(seed)


def _find(name: str) -> list[type[Adapter]]:
    """The variants that a name stands for: all of a family, or the one of that name."""
    if not _named(name):
        _discover()
    found = _named(name)
    if not found:
        known = sorted({cls.variant for cls in _ADAPTERS.values()} | {cls.family for cls in _ADAPTERS.values()})
        close = difflib.get_close_matches(str(name), known, n=1)
        guess = f" (did you mean {close[0]!r}?)" if close else ""
        raise ArgumentError(f"unknown family {name!r}{guess}: expected one of {', '.join(known)}")
    return found


def _named(name: str) -> list[type[Adapter]]:
    """The classes behind a name; a family's name stands for the whole family, also where a variant has the same."""
    return [cls for cls in _ADAPTERS.values() if cls.family == name] or [cls for cls in _ADAPTERS.values() if cls.variant == name]


def _default(variants: list[type[Adapter]]) -> type[Adapter]:
    return next((cls for cls in variants if cls.default_variant), variants[0])


def _choose(name: str, variants: list[type[Adapter]], path: str | os.PathLike[str]) -> type[Adapter]:
    """The one variant that recognises the checkpoint; the default one where none does, for it says what is wrong."""
    if len(variants) == 1:
        return variants[0]
    source = existing_path(path)
    recognised = [cls for cls in variants if cls.recognises(source)]
    if len(recognised) > 1:
        names = ", ".join(cls.variant for cls in recognised)
        raise ArgumentError(f"{str(source)!r} may be several variants of the family {name!r}: choose one of {names} instead")
    return recognised[0] if recognised else _default(variants)


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


def _info(name: str) -> FamilyInfo:
    variants = _named(name)
    cls = _default(variants)
    return FamilyInfo(
        name=name,
        family=cls.family,
        variant=cls.variant,
        variants=tuple(sorted(other.variant for other in variants)),
        package=cls.package,
        extra=cls.extra,
        tasks=cls.tasks,
        channel_independent=cls.channel_independent,
        installed=cls.module is None or importlib.util.find_spec(cls.module.split(".")[0]) is not None,
        adapter=cls,
    )


def _owns(candidate: type[Adapter], asked: type[Adapter], keys: tuple[str, ...]) -> bool:
    if candidate is asked or not candidate.marks:
        return False
    return all(any(mark in key for key in keys) for mark in candidate.marks)


def _package(cls: type[Adapter]) -> str:
    return cls.__module__.split(".")[0]


def _full_name(cls: type[Adapter]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
