"""The stages of a run, and where freed memory goes back to the system between them.

glibc's heap keeps what a stage frees, in pieces that the next stage's tensors may not fit into: without giving it back, the
peak of a run was up to a set of weights higher. Giving it back costs a tenth of a second, and the next stage has to ask for the
pages again; that is less than 2 % of a run whose epochs have eight steps (``benchmarks/bench_loop.py --steps 8``).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..resident import return_freed_memory


class Stages:
    """Told of every stage of a run, gives freed memory back between them where the model is on the CPU.

    Args:
        device: Where the run's model is; on another than the CPU nothing is done.
    """

    def __init__(self, device: str) -> None:
        self._on_cpu = device == "cpu"
        self._first_step = False

    def loaded(self) -> None:
        """The model has been cast and placed: its former weights are freed."""
        self._give_back()

    def begin_phase(self) -> None:
        """A phase begins: gradients and states do not fit into the pieces that evaluations have left."""
        self._give_back()
        self._first_step = True

    def stepped(self) -> None:
        """A step is done. The first one of a phase has put states that stay among gradients that were freed."""
        if self._first_step:
            self._first_step = False
            self._give_back()

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluate inside: neither lies in what training has left nor training in what an evaluation has left."""
        self._give_back()
        yield
        self._give_back()

    def _give_back(self) -> None:
        if self._on_cpu:
            return_freed_memory()
