"""What has to be intercepted by name.

torch's truncated normal is a rejection loop that looks at its own draws, and an orthogonal matrix comes out of a
decomposition: both are recorded as one draw here. Other functions read memory below the dispatcher: what is pending must
be written first. The patched functions ask for the tracer of their own thread and call the original where there is none,
so a reference to one of them that somebody keeps does no harm.
"""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch

from sff_fast.boxes import Unrepresentable
from sff_fast.tracing.ops import record_draw
from sff_fast.tracing.tracer import Tracer, active_tracer, is_plain
from sff_fast.tracing.values import Law

READERS = {"numpy": True, "__dlpack__": True, "tolist": False, "data_ptr": False, "__reduce_ex__": False}
"""Methods of ``torch.Tensor`` that hand out or read memory, and whether its holder can write to it afterwards."""

OBSERVERS = {"numpy", "__dlpack__", "tolist"}
"""Those of them that show values to the constructor."""


def _recordable(tracer: Tracer | None, tensor: Any, generator: torch.Generator | None, numbers: tuple) -> bool:
    return (
        tracer is not None
        and isinstance(tensor, torch.Tensor)
        and is_plain(tensor)
        and tensor.is_floating_point()
        and tensor.numel() > 0
        and all(isinstance(x, (int, float)) and not math.isnan(x) for x in numbers)
        and tracer.ambient(generator)
    )


def _trunc_normal(original: Callable) -> Callable:
    @functools.wraps(original)
    def patched(tensor: Any, mean: float, std: float, a: float, b: float, generator: Any = None) -> Any:
        tracer, numbers = active_tracer(), (mean, std, a, b)
        if _recordable(tracer, tensor, generator, numbers) and std > 0 and a < b and math.isfinite(mean):
            with contextlib.suppress(Unrepresentable):
                numbers = tuple(map(float, numbers))
                return record_draw(tracer, tensor, "trunc_normal_", numbers, Law("trunc_normal", numbers))
        return original(tensor, mean, std, a, b, generator=generator)

    return patched


def _orthogonal(original: Callable) -> Callable:
    @functools.wraps(original)
    def patched(tensor: Any, gain: float = 1, generator: Any = None) -> Any:
        tracer = active_tracer()
        if (
            _recordable(tracer, tensor, generator, (gain,))
            and tensor.dim() >= 2
            and tensor.dtype in (torch.float32, torch.float64)
            and tensor.is_contiguous()
        ):
            with contextlib.suppress(Unrepresentable):
                return record_draw(tracer, tensor, "orthogonal_", (float(gain),), Law("orthogonal", (float(gain),)))
        return original(tensor, gain, generator=generator)

    return patched


def _sparse(original: Callable) -> Callable:
    @functools.wraps(original)
    def patched(tensor: Any, sparsity: float, std: float = 0.01, generator: Any = None) -> Any:
        tracer, numbers = active_tracer(), (sparsity, std)
        if _recordable(tracer, tensor, generator, numbers) and tensor.dim() == 2 and 0 <= sparsity <= 1 and std >= 0:
            with contextlib.suppress(Unrepresentable):
                law = Law("sparse", (float(sparsity), float(std), 1.0))
                return record_draw(tracer, tensor, "sparse_", (float(sparsity), float(std)), law)
        return original(tensor, sparsity, std, generator=generator)

    return patched


def _reader(name: str, original: Callable) -> Callable:
    @functools.wraps(original)
    def patched(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        tracer = active_tracer()
        if tracer is not None and tensor.layout == torch.strided:
            tracer.read_below(tensor, observes=name in OBSERVERS, leaks=READERS[name])
        return original(tensor, *args, **kwargs)

    return patched


_MISSING = object()


class _Patches:
    """Patches that nested traces share: the first one makes them, the last one takes them back."""

    def __init__(self) -> None:
        self.users = 0
        self.undo: list[tuple[Any, str, Any, bool]] = []
        self.modules: set[str] = set()
        self.ours: dict[Any, Any] = {}

    def _set(self, holder: Any, name: str, value: Any, original: Any, item: bool = False) -> None:
        self.ours[value] = original
        if item:
            self.undo.append((holder, name, holder[name], True))
            holder[name] = value
        else:
            self.undo.append((holder, name, vars(holder).get(name, _MISSING), False))
            setattr(holder, name, value)

    def install(self) -> None:
        """Patch torch, and transformers' own table of init functions where it is loaded."""
        init = torch.nn.init
        self.modules = set(sys.modules)
        self._set(init, "_no_grad_trunc_normal_", _trunc_normal(init._no_grad_trunc_normal_), init._no_grad_trunc_normal_)
        made = {"orthogonal_": _orthogonal(init.orthogonal_), "sparse_": _sparse(init.sparse_)}
        originals = {name: getattr(init, name) for name in made}
        for name, value in made.items():
            self._set(init, name, value, originals[name])
        transformers = sys.modules.get("transformers.initialization")
        if transformers is not None:
            for name, value in made.items():
                if transformers.TORCH_INIT_FUNCTIONS.get(name) is originals[name]:
                    self._set(transformers.TORCH_INIT_FUNCTIONS, name, value, originals[name], item=True)
        for name in READERS:
            original = getattr(torch.Tensor, name)
            self._set(torch.Tensor, name, _reader(name, original), original)

    def remove(self) -> None:
        """Put everything back, also in modules that were first imported meanwhile."""
        for holder, name, value, item in reversed(self.undo):
            if item:
                holder[name] = value
            elif value is _MISSING:
                delattr(holder, name)
            else:
                setattr(holder, name, value)
        self.undo.clear()
        for module_name in set(sys.modules) - self.modules:
            module = sys.modules.get(module_name)
            for namespace in _namespaces(module):
                for name, value in list(namespace.items()):
                    if callable(value) and _hashable(value) and value in self.ours:
                        namespace[name] = self.ours[value]
        self.ours.clear()


def _hashable(value: Any) -> bool:
    return type(value) is type(_hashable)


def _namespaces(module: Any) -> list[dict]:
    """A module's globals, and dictionaries in them such as transformers' table."""
    names = getattr(module, "__dict__", None)
    if not isinstance(names, dict):
        return []
    return [names, *(value for value in list(names.values()) if type(value) is dict)]


_PATCHES = _Patches()


@contextlib.contextmanager
def patched() -> Iterator[None]:
    """Patch for as long as the context lasts; the caller holds :data:`sff_fast.tracing.state.LOCK`."""
    if _PATCHES.users == 0:
        _PATCHES.install()
    _PATCHES.users += 1
    try:
        yield
    finally:
        _PATCHES.users -= 1
        if _PATCHES.users == 0:
            _PATCHES.remove()
