"""Named groups of parameters, as the name patterns that :func:`sff_fast.smooth_` takes an alpha for."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from ..errors import ArgumentError

GROUPS = ("head", "embedding", "norms")

# What the input layers of the families are called; relative attention biases are embeddings by type, and part of attention.
_EMBEDDING = re.compile(
    r"(^|\.)(\w*embed\w*|emb|tokenizer|patcher|shared|in_proj|input_ff_layer|pre_transformer_resblock|mask_encoding)(\.|$)"
)
_ATTENTION = re.compile(r"att", re.IGNORECASE)


def patterns_of(adapter: Any, group: str) -> list[str]:
    """The patterns that match the parameters of a group and no others.

    Args:
        adapter: The model.
        group: ``"head"`` (what linear probing trains), ``"embedding"`` (the layers that take in the series), ``"norms"`` (the
            weights of normalisation layers), or a name pattern of its own.

    Raises:
        ArgumentError: The model has no such parameters.
    """
    model = adapter.model
    names = [name for name, _ in model.named_parameters()]
    if group not in GROUPS:
        if not any(fnmatchcase(name, group) for name in names):
            raise ArgumentError(
                f"alpha group {group!r} is none of {', '.join(GROUPS)} and matches no parameter; the model has "
                f"{', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
            )
        return [group]
    identities = {id(parameter): name for name, parameter in model.named_parameters()}
    head = {identities[id(parameter)] for _, parameter in adapter.head_parameters() if id(parameter) in identities}
    norms = {
        identities[id(parameter)]
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }
    chosen = {
        "head": head,
        "norms": norms - head,
        "embedding": {name for name in names if _EMBEDDING.search(name) and not _ATTENTION.search(name)} - head - norms,
    }[group]
    if not chosen:
        raise ArgumentError(
            f"the model of the family {adapter.family!r} has no parameters in the group {group!r}: give a name pattern instead"
        )
    return _collapse(chosen, names)


def _collapse(chosen: set[str], names: Sequence[str]) -> list[str]:
    """As few patterns as match the chosen names and no others: numbers of layers become ``*`` where that stays true."""
    found: list[str] = []
    for name in (name for name in names if name in chosen):
        if any(fnmatchcase(name, pattern) for pattern in found):
            continue
        pattern = re.sub(r"\d+", "*", name)
        exact = all(other in chosen for other in names if fnmatchcase(other, pattern))
        found.append(pattern if exact else name)
    return found
