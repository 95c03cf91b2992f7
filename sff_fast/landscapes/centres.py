"""The weights that a landscape is drawn around: pre-trained, smoothed, fine-tuned."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sff_fast.errors import ArgumentError
from sff_fast.names import named_parameters
from sff_fast.smooth import smooth_

_HASHED_AT_ONCE = 1 << 22

PRE_TRAINED, SMOOTHED = "pre-trained", "smoothed"


@dataclass(frozen=True)
class Centre:
    """Where the middle of a grid lies.

    Attributes:
        name: Unique among the centres.
        open: Loads the model with these weights.
        strategy: Which strategy's colour it has in pictures.
        alpha: Share of the pre-trained weights where it was smoothed here.
        source: The folder that it was loaded from, for a tuned one.
    """

    name: str
    open: Callable[[], Any]
    strategy: str
    alpha: float | Mapping[str, float] | None = None
    source: Path | None = None


def make_centres(
    make_adapter: Callable[[], Any],
    variant: str,
    alpha: float | Mapping[str, float],
    tuned: Sequence[str | Path],
    seed: int,
    plan: Any,
) -> list[Centre]:
    """The centres in the order in which they are measured.

    Args:
        make_adapter: Loads the pre-trained model.
        variant: Its architecture; the tuned ones must be of the same.
        alpha: Smooth the pre-trained weights with this, for a centre of their own; 1 for no such centre.
        tuned: Folders of fine-tuned models: a run's, or its ``model``.
        seed: Seed of the smoothing.
        plan: Init plan of the smoothing, None for the family's own.

    Raises:
        ArgumentError: A folder is given twice.
    """
    centres = [Centre(PRE_TRAINED, make_adapter, "zero-shot")]
    if alpha != 1:

        def smoothed() -> Any:
            adapter = make_adapter()
            smooth_(adapter.model, plan, alpha, seed)
            return adapter

        centres.append(Centre(SMOOTHED, smoothed, "sff", alpha=alpha))
    folders = [Path(folder) for folder in tuned]
    for number, folder in enumerate(folders):
        if folder.resolve() in (other.resolve() for other in folders[:number]):
            raise ArgumentError(f"tuned: {str(folder)!r} is given twice")
    names = _names(folders)
    for folder, name in zip(folders, names, strict=True):
        inner = folder / "model" if (folder / "model").is_dir() else folder
        centres.append(Centre(name, _loader(variant, inner), _strategy(name), source=folder))
    return centres


def weights_hash(model: nn.Module) -> str:
    """A hash of all parameters, by name, on whatever device: tells whether a centre is the one that it was."""
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in named_parameters(model).items():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}\n".encode())
        flat = parameter.detach().reshape(-1)
        for part in flat.split(_HASHED_AT_ONCE):
            digest.update(part.cpu().contiguous().view(torch.uint8).numpy().view(np.uint8))
    return digest.hexdigest()


def _loader(variant: str, folder: Path) -> Callable[[], Any]:
    from sff_fast.adapters import load

    return lambda: load(variant, folder)


def _names(folders: Sequence[Path]) -> list[str]:
    """As short as they are unique: the folder's name, else with the folders above it."""
    paths = [folder.resolve() for folder in folders]
    paths = [path.parent if path.name == "model" else path for path in paths]
    names = []
    for path in paths:
        depth = 1
        while [_tail(other, depth) for other in paths].count(_tail(path, depth)) > 1 and depth < len(path.parts):
            depth += 1
        name = _tail(path, depth)
        names.append(f"{name} (tuned)" if name in (PRE_TRAINED, SMOOTHED) else name)
    return names


def _tail(path: Path, depth: int) -> str:
    return "/".join(path.parts[-depth:])


def _strategy(name: str) -> str:
    """The strategy that a run's folder is named after, as ``compare`` names them; else the folder's name."""
    from sff_fast.training.strategies import STRATEGIES

    last = name.rpartition("/")[2]
    fitting = [strategy for strategy in STRATEGIES if last == strategy or last.startswith(f"{strategy}-")]
    return max(fitting, key=len, default=last)
