"""What families share whose checkpoints are folders as transformers writes them: ``config.json`` and safetensors."""

from __future__ import annotations

import contextlib
import copy
import json
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn

from sff_fast import files
from sff_fast.adapters._foreign import foreign
from sff_fast.adapters.checkpoint import (
    existing_path,
    load_exactly,
    named_tensors,
    read_config,
    read_weights,
    unwrapped,
    weight_file,
)
from sff_fast.errors import ArgumentError, CheckpointError, require

CONFIG = "config.json"
GENERATION = "generation_config.json"
INDEX = "model.safetensors.index.json"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
# Fields that say with which software a configuration was written, not what the model is.
_VOLATILE = ("transformers_version", "torch_dtype", "dtype", "_name_or_path", "architectures", "auto_map")
# What the packages' constructors raise for a configuration that makes no sense.
_INVALID = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

Made = TypeVar("Made")


def open_folder(path: Any, variant: str) -> tuple[Path, dict[str, Any]]:
    """The folder of a checkpoint, and its ``config.json``.

    Raises:
        CheckpointError: It is missing, a file, or has no valid ``config.json``.
    """
    folder = existing_path(path)
    if not folder.is_dir():
        raise CheckpointError(
            f"a {variant} checkpoint is a folder with config.json and model.safetensors, got the file {str(folder)!r}"
        )
    return folder, read_config(folder / CONFIG)


def config_of(path: Path) -> dict[str, Any]:
    """The ``config.json`` of a folder, or an empty one where it cannot be read."""
    try:
        return read_config(path / CONFIG) if path.is_dir() else {}
    except CheckpointError:
        return {}


def architecture_of(config: dict[str, Any]) -> str | None:
    """The one class that a configuration says the model is of."""
    names = config.get("architectures")
    return names[0] if isinstance(names, list) and len(names) == 1 and isinstance(names[0], str) else None


def read_state(folder: Path) -> tuple[dict[str, Tensor], Path]:
    """The tensors of a folder: one file of weights, or the shards that an index lists.

    Returns:
        Name to tensor, and the file or index that they came from.

    Raises:
        CheckpointError: The weights are missing, damaged, or not those that the index lists.
    """
    index = folder / INDEX
    if not index.is_file():
        path = weight_file(folder, WEIGHTS)
        return named_tensors(unwrapped(read_weights(path))[0], path), path
    listed = read_config(index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) and "/" not in name for name in listed.values()):
        raise CheckpointError(f"{str(index)!r} must map names of tensors to files beside it (weight_map): replace it")
    state: dict[str, Tensor] = {}
    for name in sorted(set(listed.values())):
        state.update(named_tensors(read_weights(existing_path(folder / name)), folder / name))
    if state.keys() != listed.keys():
        first = min(state.keys() ^ listed.keys())
        raise CheckpointError(
            f"{str(index)!r} and the files that it lists differ, first in {first!r}: copy or download all of them again"
        )
    return state, index


def refuse(folder: Path, variant: str, expected: str, got: str) -> NoReturn:
    """Raise the error for a folder whose configuration is that of another model.

    Raises:
        ForeignCheckpointError: Always; it names the first tensor where the weights can be read.
    """
    raise foreign(folder, variant, f"{expected}, got {got}")


def check_dropout(dropout: Any) -> None:
    """Check an option of ``load``; None stands for the checkpoint's own.

    Raises:
        ArgumentError: It does not lie in [0, 1).
    """
    if dropout is not None and (isinstance(dropout, bool) or not isinstance(dropout, (int, float)) or not 0 <= dropout < 1):
        raise ArgumentError(f"dropout must lie in [0, 1), got {dropout!r}")


def construct(make: Callable[[], Made], path: Path, what: str, extra: str) -> Made:
    """A model whose parameters have no values yet, and whose buffers have theirs; no generator is touched.

    Args:
        make: Makes the configuration and the model.
        path: Where the configuration came from, for the message.
        what: What it should describe, for the message.
        extra: The extra of sff_fast that brings transformers.

    Raises:
        CheckpointError: The configuration is not valid.
    """
    skipping = require("transformers.initialization", extra, "transformers").no_init_weights
    strict = require("huggingface_hub.errors", extra, "huggingface_hub").StrictDataclassError
    try:
        with torch.random.fork_rng(devices=[]), skipping():
            return make()
    except (*_INVALID, strict) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"{str(path)!r} describes no valid {what} ({reason}): replace it") from error


def load_state(model: Any, state: dict[str, Tensor], path: Path, variant: str) -> None:
    """Give a model of transformers the tensors of a checkpoint, which names each tied one once or more.

    Raises:
        ForeignCheckpointError: Names differ.
        CheckpointError: A shape differs, or names of one tied tensor have different values.
    """
    # Constructing without initial values leaves out tying.
    model.tie_weights()
    state = dict(state)
    for names in _tied(model):
        present = [name for name in names if name in state]
        for name in present[1:]:
            if not torch.equal(state[name], state[present[0]]):
                raise CheckpointError(
                    f"{str(path)!r}: {present[0]!r} and {name!r} should be one tensor and differ: "
                    f"{variant} has one embedding for both; save the model with tied weights"
                )
        if present:
            state.update(dict.fromkeys(names, state[present[0]]))
    load_exactly(model, state, path, variant)
    # Each name was given a parameter of its own.
    model.tie_weights()


def load_generation(model: Any, folder: Path, extra: str) -> None:
    """Give a model that generates the settings that lie beside its weights, so that they are saved again.

    Raises:
        CheckpointError: They are not valid.
    """
    path = folder / GENERATION
    if not model.can_generate() or not path.is_file():
        return
    make = require("transformers", extra).GenerationConfig.from_dict
    model.generation_config = construct(partial(make, read_config(path)), path, "settings of generation", extra)


def load_all(model: Any, folder: Path, variant: str, extra: str) -> None:
    """Give a model that :func:`construct` made its tensors, and the settings of generation where there are some.

    Raises:
        CheckpointError: As :func:`read_state`, :func:`load_state` and :func:`load_generation` do.
    """
    state, weights = read_state(folder)
    load_state(model, state, weights, variant)
    load_generation(model, folder, extra)


def write(model: Any, folder: Path, architecture: str, rename: Callable[[str], str] = str) -> None:
    """Write what ``save_pretrained`` writes: ``config.json``, ``model.safetensors``, for generators their settings.

    Args:
        model: The model.
        folder: Where to write.
        architecture: The class that ``config.json`` names.
        rename: The name in the file for a name in the model, where transformers keeps them apart.
    """
    config = copy.deepcopy(model.config)
    config.architectures = [architecture]
    config.dtype = next(model.parameters()).dtype
    files.write_json(folder / CONFIG, json.loads(config.to_json_string()))
    aliases = {name for names in _tied(model) for name in names[1:]}
    state = {rename(name): tensor for name, tensor in model.state_dict().items() if name not in aliases}
    files.save_safetensors(folder / WEIGHTS[0], state, {"format": "pt"})
    if model.can_generate():
        files.write_json(folder / GENERATION, json.loads(model.generation_config.to_json_string()))


def describe(model: Any) -> dict[str, Any]:
    """The fields of a model's configuration that say what it is, fit for JSON."""
    fields = json.loads(model.config.to_json_string())
    return {name: value for name, value in fields.items() if name not in _VOLATILE}


@contextlib.contextmanager
def mask_warning_ignored() -> Iterator[None]:
    """sktime's classes use an older way to make masks; their users can do nothing about what transformers says of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The attention mask API under", category=FutureWarning)
        yield


@contextlib.contextmanager
def seeded_apart(seed: int) -> Iterator[None]:
    """Torch's CPU generator seeded for a while, and then as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def _tied(model: nn.Module) -> list[list[str]]:
    """The names of each parameter that has several, in the model's order."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    return [group for group in names.values() if len(group) > 1]
