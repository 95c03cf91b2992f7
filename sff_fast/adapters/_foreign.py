"""The error for a folder that holds another model than the one that was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import safetensors

from sff_fast.adapters.checkpoint import ForeignCheckpointError, named_tensors, read_weights, unwrapped, weight_files
from sff_fast.errors import CheckpointError

_PREFERRED = ("model.safetensors", "pytorch_model.bin")


def foreign(path: Path, variant: str, problem: str) -> ForeignCheckpointError:
    """Say that a checkpoint does not fit, with the name of its first tensor where its weights can be read.

    Args:
        path: The folder or file.
        variant: What was asked for.
        problem: What does not fit, such as ``"model_type must be 'timesfm', got 'ttm'"``.

    Returns:
        The error, which knows the names of all tensors: by them the registry finds whose checkpoint it is.
    """
    keys = tensor_names(path)
    first = f"; its first tensor is {keys[0]!r}" if keys else ""
    return ForeignCheckpointError(f"{str(path)!r} does not fit the family {variant!r}: {problem}{first}", keys)


def tensor_names(path: Path) -> tuple[str, ...]:
    """The names of the tensors in a file, or in a folder's first file of weights; none where they cannot be read."""
    try:
        index = path / "model.safetensors.index.json"
        if index.is_file():
            return tuple(sorted(json.loads(index.read_text(encoding="utf-8"))["weight_map"]))
        found = weight_files(path, _PREFERRED) if path.is_dir() else [path]
        if not found:
            return ()
        if found[0].suffix == ".safetensors":
            with safetensors.safe_open(found[0], framework="pt") as file:
                return tuple(file.keys())
        return tuple(named_tensors(unwrapped(read_weights(found[0]))[0], found[0]))
    except (CheckpointError, OSError, safetensors.SafetensorError, ValueError, LookupError, TypeError):
        return ()  # Damaged, or no weights at all: the message that names the problem does without.
