"""Reading checkpoints: every damage is one line that names the file and says what to do."""

from __future__ import annotations

import contextlib
import os
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor, nn

from sff_fast import files
from sff_fast.checkpoints.journal import interrupted, journal_of
from sff_fast.errors import CheckpointError

#: Suffixes of files that ``torch.save`` writes.
TORCH_SUFFIXES = (".ckpt", ".pth", ".pt", ".bin")
#: Suffixes of all files that can hold weights.
WEIGHT_SUFFIXES = (*TORCH_SUFFIXES, ".safetensors")

# What torch.load and zipfile raise for a damaged archive depends on the byte that is hit.
_DAMAGE = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
)


# A permission belongs to the call that opens a checkpoint, not to the family: adapters of other packages need no word of it.
_PICKLES: ContextVar[bool] = ContextVar("pickles", default=False)


@contextlib.contextmanager
def pickles_allowed(allow: bool = True) -> Iterator[None]:
    """Within this block pickled files of weights are read; what allows them around it stays allowed.

    Args:
        allow: Whether this block allows them, default True.
    """
    token = _PICKLES.set(allow or _PICKLES.get())
    try:
        yield
    finally:
        _PICKLES.reset(token)


def are_pickles_allowed() -> bool:
    """Whether this is within :func:`pickles_allowed`."""
    return _PICKLES.get()


class ForeignCheckpointError(CheckpointError):
    """The tensors are not those of the family that was asked for.

    Attributes:
        keys: The names of the tensors in the file.
    """

    def __init__(self, message: str, keys: tuple[str, ...]) -> None:
        super().__init__(message)
        self.keys = keys


def existing_path(path: str | os.PathLike[str]) -> Path:
    """The path made absolute, if there is something there; otherwise an error that says that hubs are not asked."""
    path = Path(path).expanduser()
    try:
        path.stat()
    except OSError as error:
        raise CheckpointError(
            f"cannot read the checkpoint {str(path)!r}: {(error.strerror or str(error)).lower()}; give a local file or "
            "folder (nothing is downloaded: fetch models first, for example with `hf download NAME --local-dir DIR`)"
        ) from error
    return path.absolute()


def weight_file(folder: Path, preferred: tuple[str, ...]) -> Path:
    """The one file of weights in a folder.

    Args:
        folder: Where to look.
        preferred: Names to take, first match first, before any other file with a suffix of weights.

    Returns:
        The file.

    Raises:
        CheckpointError: There is none, or there are several of other names.
    """
    found = weight_files(folder, preferred)
    if not found:
        model = folder / "model"
        raise CheckpointError(
            f"the folder {str(folder)!r} holds no weights: expected {' or '.join(preferred)}, or one file that ends in "
            f"{', '.join(WEIGHT_SUFFIXES)}{f'; a run keeps its model in {str(model)!r}' if model.is_dir() else ''}"
        )
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise CheckpointError(
            f"the folder {str(folder)!r} holds several files of weights ({names}): keep one, or call it {preferred[0]!r}"
        )
    return found[0]


def weight_files(folder: Path, preferred: tuple[str, ...]) -> list[Path]:
    """The first of the preferred files that is there, or else every file with a suffix of weights."""
    for name in preferred:
        if (folder / name).is_file():
            return [folder / name]
    try:
        return sorted(path for path in folder.iterdir() if path.suffix in WEIGHT_SUFFIXES and path.is_file())
    except OSError as error:
        raise _unreadable(folder, error) from error


def read_config(path: Path) -> dict[str, Any]:
    """Read a ``config.json``.

    Raises:
        CheckpointError: It is missing, no JSON, or no JSON object.
    """
    if not path.exists():
        raise CheckpointError(
            f"the folder {str(path.parent)!r} has no {path.name}: copy the one published with the weights there"
        )
    config = files.read_json(path, CheckpointError)
    if not isinstance(config, dict):
        raise CheckpointError(f"{str(path)!r} must hold a JSON object, got a {type(config).__name__}: replace it")
    return config


def read_weights(path: Path) -> Any:
    """Read a file of weights by its suffix.

    Args:
        path: A safetensors file, or, within :func:`pickles_allowed`, one written by ``torch.save`` with tensors and plain
            containers only.

    Returns:
        Name to tensor for safetensors; for the others the object that was saved. Tensors are on the CPU, and not mapped
        to the file.

    Raises:
        CheckpointError: The file cannot be read, is damaged, is pickled and that is not allowed, or holds other Python objects.
    """
    if path.suffix == ".safetensors":
        for place in (path, path.parent):
            if journal_of(place).exists():
                raise CheckpointError(interrupted(place))
        return _read_safetensors(path)
    if path.suffix in TORCH_SUFFIXES:
        return _read_torch(path)
    raise CheckpointError(f"{str(path)!r} is no file of weights: expected one that ends in {', '.join(WEIGHT_SUFFIXES)}")


def unwrapped(content: Any, key: str = "state_dict") -> tuple[Any, bool]:
    """What a file holds under a key, and True; or the content itself, and False."""
    if isinstance(content, Mapping) and key in content and not isinstance(content[key], Tensor):
        return content[key], True
    return content, False


def named_tensors(state: Any, path: Path) -> dict[str, Tensor]:
    """Check that an object is a mapping of names to floating-point tensors, not empty.

    Args:
        state: What :func:`read_weights` gave, or a part of it.
        path: Where it came from, for the message.

    Returns:
        Name to tensor, contiguous, none of them a part of a larger storage.

    Raises:
        CheckpointError: It is not.
    """
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{str(path)!r} holds no state dict: expected names and tensors, got {_described(state)}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{str(path)!r} holds no state dict: expected names and tensors, got {_described(value)} under {name!r}"
            )
        if not value.is_floating_point() or value.layout != torch.strided:
            raise CheckpointError(
                f"{str(path)!r}: the tensor {name!r} must be dense floating point, got {value.dtype}, {value.layout}"
            )
    return {
        name: value
        if value.is_contiguous() and value.untyped_storage().nbytes() == value.nbytes
        else value.clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
    }


def load_exactly(model: nn.Module, state: dict[str, Tensor], path: Path, family: str) -> None:
    """Give a model the tensors of a checkpoint, which must be exactly its own.

    The tensors become the model's parameters and buffers, so it may be on the meta device, and takes their dtypes.

    Args:
        model: The model; untouched where the names or shapes differ.
        state: Name to tensor.
        path: Where the tensors came from, for the message.
        family: The family, for the message.

    Raises:
        ForeignCheckpointError: Names differ; the message names the first ones.
        CheckpointError: A shape differs.
    """
    expected = model.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    if missing or unexpected:
        parts = [
            f"{len(names)} {what} (first {names[0]!r})"
            for names, what in ((missing, "missing"), (unexpected, "unexpected"))
            if names
        ]
        raise ForeignCheckpointError(
            f"{str(path)!r} does not fit the family {family!r}: of its {len(expected)} tensors {' and '.join(parts)}",
            tuple(state),
        )
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            raise CheckpointError(
                f"{str(path)!r}: the tensor {name!r} has the shape {list(state[name].shape)}, the configuration asks "
                f"for {list(tensor.shape)}: check that config.json belongs to these weights"
            )
    model.load_state_dict(state, assign=True)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        # Opened by Python first: the library says of a file that may not be read that it is not there.
        with path.open("rb"), safetensors.safe_open(path, framework="pt") as file:
            # Cloned: what the library returns is mapped to the file, which may change under it.
            return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise _unreadable(path, error) from error
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"{str(path)!r} is damaged or cut short ({_one_line(error)}): copy or download it again") from error


def _read_torch(path: Path) -> Any:
    try:
        empty = path.stat().st_size == 0
        with path.open("rb"):
            pass
    except OSError as error:
        raise _unreadable(path, error) from error
    if not are_pickles_allowed():
        raise CheckpointError(
            f"{str(path)!r} is a pickled file of weights, which is read on request only: pass allow_pickle=True (--allow-pickle) "
            "if you know where it comes from, or take one that ends in .safetensors"
        )
    if empty:
        raise _damaged(path, "it is empty")
    if _is_torchscript(path):
        raise CheckpointError(
            f"{str(path)!r} is a TorchScript program, not a file of weights: take the checkpoint with the state_dict, "
            "or make one with torch.save(torch.jit.load(path).state_dict(), new_path)"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise _damaged(path, "it is no file that torch.save wrote") from error
        raise CheckpointError(
            f"{str(path)!r} holds pickled Python objects ({found[1]}), which can run code and are not loaded: open it "
            "where you trust it and save its state_dict of tensors alone"
        ) from error
    except _DAMAGE as error:
        told = isinstance(error, (RuntimeError, OSError, EOFError))
        raise _damaged(path, _one_line(error) if told else "it is no file that torch.save wrote") from error


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, *_DAMAGE):
        return False  # Another format, or damaged: torch.load tells.


def _unreadable(path: Path, error: OSError) -> CheckpointError:
    reason = (error.strerror or str(error)).lower()
    return CheckpointError(f"cannot read the checkpoint {str(path)!r}: {reason}; check the path and its permissions")


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(f"{str(path)!r} is damaged or cut short ({reason}): copy or download it again")


def _one_line(error: Exception, limit: int = 160) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[:limit] + "..."


def _described(value: Any) -> str:
    if isinstance(value, Mapping):
        return "an empty mapping" if not value else f"a mapping with the key {next(iter(value))!r}"
    return f"a {type(value).__name__}"
