"""The stages of a run, and where freed memory goes back to the system between them.

glibc's heap keeps what a stage frees, in pieces that the next stage's tensors may not fit into: without giving it back, the
peak of a run could be that of both together. Giving it back costs a tenth of a second and more, because the next stage has to
ask for the pages again. So it is done where it can lower the peak, and around every evaluation where that is asked for
(``always``, as runs do): pieces that a later step could not use have raised a peak by a set of weights.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..resident import resident_memory, return_freed_memory
from .runtime import peak_memory

SLACK = 16 << 20
"""Bytes of freed memory that may stay: what takes less is not worth the time."""

SHARE = 0.04
"""Share of the peak by which an evaluation may raise it, at worst, in a run that was not asked to save memory."""


class Stages:
    """Told of every stage of a run on the CPU, gives freed memory back where that can lower the run's peak.

    Args:
        device: Where the run's model is; on another than the CPU nothing is done.
        tight: Whether the run was asked to save memory. Default False.
        always: Whether freed memory goes back around every evaluation, whatever the peak. Default False.
    """

    def __init__(self, device: str, tight: bool = False, always: bool = False) -> None:
        self._on_cpu = device == "cpu"
        self._share, self._always = 0.0 if tight else SHARE, always
        self._took: dict[int, int] = {}  # by windows at a time: what evaluating took at most, on a heap that was given back
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
    def evaluating(self, windows: int) -> Iterator[None]:
        """Evaluate inside, whatever goes before and after.

        Before, freed memory is given back unless an evaluation that reuses none of it hardly raises the peak so far. After,
        unless the evaluation has left next to nothing: training goes on with the pieces that it has left itself.

        Args:
            windows: How many are forecast at a time.
        """
        if not self._on_cpu:
            yield
            return
        known = self._took.get(windows)
        peak = peak_memory("cpu")
        clean = self._always or known is None or resident_memory() + known > peak + max(SLACK, int(self._share * peak))
        if clean:
            self._give_back()
        before = resident_memory()
        yield
        if clean:
            took = max(0, peak_memory("cpu") - before)  # no more than this: the peak may be older
            self._took[windows] = took if known is None else min(known, took)
        if self._always or resident_memory() > before + SLACK:
            self._give_back()

    def _give_back(self) -> None:
        if self._on_cpu:
            return_freed_memory()
