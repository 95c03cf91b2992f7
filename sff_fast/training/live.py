"""How many bytes of tensors an operation, a forward or a backward pass holds at once, on any device."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations make while it is active, from birth to death.

    What an operation allocates for itself and frees again before it returns is not seen.

    Args:
        known: Tensors that are there already and not to be counted, views of them neither.

    Attributes:
        live: Bytes at present.
        peak: Most bytes at once since the last :meth:`take_peak`.
    """

    def __init__(self, known: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref] = {}
        for tensor in known:
            self._watch(tensor, counted=False)

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Run the operation and look at what it returns."""
        result = function(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, torch.Tensor) and value.layout is torch.strided:
                self._watch(value, counted=True)
        return result

    def take_peak(self) -> int:
        """The most bytes at once since the last call; the next count starts from what is alive now."""
        peak, self.peak = self.peak, self.live
        return peak

    def _watch(self, tensor: torch.Tensor, counted: bool) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes() if counted else 0
        self._known[key] = weakref.ref(storage, functools.partial(self._gone, key, size))
        self.live += size
        self.peak = max(self.peak, self.live)

    def _gone(self, key: int, size: int, _: Any) -> None:
        self.live -= size
        self._known.pop(key, None)
