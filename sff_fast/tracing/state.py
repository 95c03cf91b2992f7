"""The interpreter's state that a constructor may change, and that a trace puts back."""

from __future__ import annotations

import contextlib
import gc
import random
import threading
from collections.abc import Iterator

import numpy as np
import torch

from sff_fast.tracing.draws import derived_seed

LOCK = threading.RLock()
"""Generators and patched functions belong to the process: traces in two threads take turns."""


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Pause cyclic garbage collection: a trace makes no cycles, and a full collection takes longer than most traces.

    Everything there is then counts as old. Otherwise the next collection, which is due at once in a process that has just
    imported torch, would go through all of its objects.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            if gc.get_freeze_count() == 0:  # what the user froze stays frozen
                gc.freeze()
                gc.unfreeze()
            gc.enable()


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Put back torch's, NumPy's and Python's global generators and the default dtype, whatever happens."""
    default = torch.default_generator
    torch_state, numpy_state, python_state = default.get_state(), np.random.get_state(), random.getstate()
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else None
    dtype, fill = torch.get_default_dtype(), torch.utils.deterministic.fill_uninitialized_memory
    # Filling new memory with NaN, which deterministic mode does, would touch every page.
    torch.utils.deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = fill
        torch.set_default_dtype(dtype)
        default.set_state(torch_state)
        np.random.set_state(numpy_state)
        random.setstate(python_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


class HostGenerators:
    """Seeds NumPy's and Python's global generators, and tells whether a constructor drew from them."""

    def __init__(self, seed: int, torch_seed: int) -> None:
        torch.default_generator.manual_seed(torch_seed)
        np.random.seed(derived_seed(seed, "numpy") % 2**32)
        random.seed(derived_seed(seed, "python"))
        self._before = self._look()

    @staticmethod
    def _look() -> tuple:
        name, keys, position, has_gauss, cached = np.random.get_state()
        return random.getstate(), (name, keys.tobytes(), position, has_gauss, cached)

    def used(self) -> tuple[str, ...]:
        """Those of NumPy and Python whose generator has another state than it was given."""
        now = self._look()
        return tuple(name for name, before, after in zip(("Python", "NumPy"), self._before, now) if before != after)
