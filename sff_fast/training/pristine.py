"""One model in memory for many runs: after each of them its pre-trained weights are put back.

Nothing is loaded a second time. A tensor that the checkpoint holds as it is in the model, in a safetensors file, is read again
from there, through pages that are mapped read-only and given back at once; every other tensor is kept once on the host.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from ..errors import CheckpointError
from ..resident import return_freed_memory
from ..smooth import remember_smoothing, smoothing_of
from .weights import weights_of

_GLIMPSE = 64
"""Elements that are compared first: tensors of one shape that differ do so there, as a rule."""


class PristineModel:
    """The one model that is in memory, and the way back to its pre-trained weights.

    Args:
        make: Loads it. Called once, and again only after a run that left other modules in the model.
    """

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._adapter: Any = None
        self._origin: Snapshot | None = None
        self._spent = False

    def pristine(self) -> Any:
        """The adapter, its model as it was loaded; the same one every time.

        Raises:
            CheckpointError: The checkpoint has changed since.
        """
        if self._adapter is not None and self._spent:
            if self._origin.fits(self._adapter.model):
                self._origin.restore(self._adapter.model)
            else:
                self._adapter, self._origin = None, None
                gc.collect()  # adapter and plan refer to each other
        if self._adapter is None:
            self._adapter = self._make()
            self._origin = Snapshot(self._adapter.model, self._adapter.source)
        self._spent = False
        return self._adapter

    @property
    def host_bytes(self) -> int:
        """Bytes of pre-trained weights that are kept on the host; 0 before the model was loaded."""
        return 0 if self._origin is None else self._origin.host_bytes

    def spend(self) -> None:
        """Say that the model was changed: the next :meth:`pristine` puts it back."""
        self._spent = True


def host_bytes_of(model: torch.nn.Module, source: Path | None) -> int:
    """Bytes that a :class:`Snapshot` would keep on the host.

    Args:
        model: The model.
        source: Where it was loaded from: a file or folder, or None.
    """
    files = _Files(source)
    return sum(tensor.nbytes for name, tensor in weights_of(model).items() if files.find(name, tensor) is None)


class Snapshot:
    """The parameters and buffers of a model at one time, its flags, and what was noted of its smoothing.

    Args:
        model: The model.
        source: Where it was loaded from: a file or folder, or None.
    """

    def __init__(self, model: torch.nn.Module, source: Path | None) -> None:
        files = _Files(source)
        self._places: dict[str, _Place] = {}
        for name, tensor in weights_of(model).items():
            found = files.find(name, tensor)
            self._places[name] = _Place(tensor, found)
        self._modules = _structure(model)
        self._training = {name: module.training for name, module in model.named_modules()}
        self._trained = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        self._absent = {
            f"{prefix}.{leaf}" if prefix else leaf
            for prefix, module in model.named_modules()
            for leaf, buffer in module._buffers.items()
            if buffer is None
        }
        self._smoothing = smoothing_of(model)
        return_freed_memory()

    @property
    def host_bytes(self) -> int:
        """Bytes that are kept on the host; the rest is read from the checkpoint."""
        return sum(place.kept.nbytes for place in self._places.values() if place.kept is not None)

    def fits(self, model: torch.nn.Module) -> bool:
        """Whether a model still has the modules and parameters that it had."""
        return _structure(model) == self._modules

    def restore(self, model: torch.nn.Module) -> None:
        """Put everything back, in place; the model stays on its device, and takes its first dtypes.

        Raises:
            CheckpointError: The checkpoint has changed since.
        """
        parameters = dict(model.named_parameters())
        with torch.no_grad():
            for name, parameter in parameters.items():
                place = self._places[name]
                parameter.grad = None
                if (parameter.shape, parameter.dtype) != (place.shape, place.dtype):
                    parameter.data = torch.empty(place.shape, dtype=place.dtype, device=parameter.device)
                parameter.copy_(place.read())
                parameter.requires_grad_(self._trained[name])
            device = next(iter(parameters.values())).device if parameters else torch.device("cpu")
            for prefix, module in model.named_modules():
                for leaf, buffer in module._buffers.items():
                    name = f"{prefix}.{leaf}" if prefix else leaf
                    place = self._places.get(name)
                    if name in self._absent:
                        module._buffers[leaf] = None  # made by a forward pass
                    elif place is None:
                        pass  # a second name of a tied buffer: it has its place under the first
                    elif buffer is not None and (buffer.shape, buffer.dtype) == (place.shape, place.dtype):
                        buffer.copy_(place.read())
                    else:
                        module._buffers[leaf] = place.read().to(device, copy=True)
                module.training = self._training[prefix]
        remember_smoothing(model, list(self._smoothing))
        return_freed_memory()


def _structure(model: torch.nn.Module) -> list[tuple[Any, ...]]:
    """Names and types of the modules, with the names of their parameters and buffers."""
    return [(name, type(module), tuple(module._parameters), tuple(module._buffers)) for name, module in model.named_modules()]


class _Place:
    """Where a tensor's first values are: in a file, or in a copy on the host."""

    def __init__(self, tensor: torch.Tensor, found: tuple[_File, str] | None) -> None:
        self.shape, self.dtype = tensor.shape, tensor.dtype
        self.found = found
        self.kept = tensor.to("cpu", copy=True) if found is None else None

    def read(self) -> torch.Tensor:
        """The values, on the CPU; mapped to the file where they are in one, so only to be read at once."""
        if self.found is None:
            return self.kept
        file, key = self.found
        return file.read(key).to(self.dtype)


class _File:
    """A safetensors file whose tensors are read through a mapping; each is unmapped as soon as it is let go of."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._state = self._stat()
        with safe_open(path, framework="pt") as file:
            self.shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118  (no mapping)

    def read(self, key: str) -> torch.Tensor:
        """A tensor, mapped read-only."""
        if self._stat() != self._state:
            raise CheckpointError(
                f"the checkpoint {str(self.path)!r} has changed since it was loaded: the runs that are left would start from "
                "other weights; put it back, and go on (resume)"
            )
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(key)

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            found = self.path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_size, found.st_mtime_ns


class _Files:
    """The safetensors files of a checkpoint, searched for a model's tensors.

    Args:
        source: A file, a folder, or None.
    """

    def __init__(self, source: Path | None) -> None:
        self._by_shape: dict[tuple[int, ...], list[tuple[_File, str]]] = {}
        for path in _safetensors(source):
            try:
                file = _File(path)
            except (SafetensorError, OSError):
                continue  # the model was loaded without it: it is none of its checkpoint's files
            for key, shape in file.shapes.items():
                self._by_shape.setdefault(shape, []).append((file, key))

    def find(self, name: str, tensor: torch.Tensor) -> tuple[_File, str] | None:
        """The entry that holds a tensor's values bit for bit, likely names first; families rename and rearrange."""
        candidates = self._by_shape.get(tuple(tensor.shape), [])
        for file, key in sorted(candidates, key=lambda one: not (one[1].endswith(name) or name.endswith(one[1]))):
            stored = file.read(key)
            if _same(stored.flatten()[:_GLIMPSE], tensor.flatten()[:_GLIMPSE]) and _same(stored, tensor):
                return file, key
        return None


def _same(stored: torch.Tensor, tensor: torch.Tensor) -> bool:
    """Whether reading gives a tensor's own bits; bits, since -0.0 equals 0.0 and NaN nothing."""
    own = tensor.detach().to("cpu").contiguous()
    read = stored.to(own.dtype).contiguous()
    return torch.equal(read.view(torch.uint8), own.view(torch.uint8)) if own.ndim else bool(read == own)


def _safetensors(source: Path | None) -> Iterator[Path]:
    if source is None:
        return
    if source.is_dir():
        yield from sorted(path for path in source.iterdir() if path.suffix == ".safetensors")
    elif source.suffix == ".safetensors":
        yield source
