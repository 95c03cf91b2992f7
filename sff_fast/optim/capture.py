"""Steps that a CUDA graph may hold (``capturable=True``): tables that lie on the device, and step numbers counted there.

A step's table names addresses and options, nothing that changes from step to step: it is written when one of them changed, by
launches that carry it in their own parameters. A first launch of every step counts the steps on the device and computes the
coefficients from them, so that nothing is allocated, copied from the host or waited for, and a replay is a step of its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from sff_fast.backends import cuda
from sff_fast.errors import BackendError

from .cuda import Plan, plan_of
from .task import ADAMW_DTYPE


@dataclass
class _Tables:
    """A step's memory on the device: tasks and options, partial sums of squares, and what clipping makes of them."""

    memory: torch.Tensor
    sums: torch.Tensor
    clipped: torch.Tensor
    packed: np.ndarray | None = None  # what was written
    frozen: bool = False  # a graph reads it: never written with anything else

    @classmethod
    def of(cls, plan: Plan, size: int) -> _Tables:
        make = {"dtype": torch.uint8, "device": plan.device}
        sums = torch.zeros(plan.pieces, dtype=torch.float64, device=plan.device)
        return cls(torch.empty(size, **make), sums, torch.zeros(cuda._cuda.CLIPPED_BYTES, **make))

    def fits(self, plan: Plan, size: int) -> bool:
        return len(self.memory) == size and len(self.sums) == plan.pieces

    def holds(self, packed: np.ndarray) -> bool:
        return self.packed is not None and np.array_equal(self.packed, packed)


def _number(value: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    """A number of GradScaler's on the device of the step; nothing waits for it."""
    return None if value is None else value.to(device=device, dtype=torch.float32, non_blocking=True)


class Resident:
    """The steps of one optimizer on one device.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._tables: _Tables | None = None  # written, outside of any capture
        self._spare: _Tables | None = None  # for a capture, in which nothing may be allocated
        self._captured: list[tuple[_Tables, object]] = []  # what graphs read, for as long as the optimizer lives

    def step(
        self,
        table: np.ndarray,
        options: np.ndarray,
        loss_scale: torch.Tensor | None,
        found_inf: torch.Tensor | None,
        max_norm: float | None,
    ) -> torch.Tensor | None:
        """One step of every parameter of a table, in order of the device's current stream.

        Args:
            table: Entries of :data:`sff_fast.optim.task.ADAMW_DTYPE`; their coefficients do not count.
            options: For each an entry of :data:`sff_fast.optim.task.OPTIONS_DTYPE`.
            loss_scale: What the losses were multiplied by, or None.
            found_inf: Not 0 where gradients overflowed: then nothing changes, not the number of steps either. Or None.
            max_norm: What the norm of all gradients is clipped to, or None.

        Returns:
            The norm, a float64 tensor on the device that the next step overwrites; None without ``max_norm``.

        Raises:
            BackendError: A CUDA graph is being captured before a step outside of it, or CUDA refused a launch.
        """
        plan = plan_of(table, self.device, capturable=True)
        packed = np.concatenate([table.view(np.uint8), options.view(np.uint8)])
        loss_scale, found_inf = _number(loss_scale, self.device), _number(found_inf, self.device)
        if torch.cuda.is_current_stream_capturing():
            tables = self._for_capture(plan, table, packed)
            tables.frozen = True
            self._captured.append((tables, (plan, loss_scale, found_inf)))
        else:
            tables = self._tables = self._written(plan, table, packed)
            if self._spare is None or not self._spare.fits(plan, len(packed)):
                self._spare = _Tables.of(plan, len(packed))
        return self._launch(plan, tables, len(table), loss_scale, found_inf, max_norm)

    def _launch(
        self,
        plan: Plan,
        tables: _Tables,
        count: int,
        loss_scale: torch.Tensor | None,
        found_inf: torch.Tensor | None,
        max_norm: float | None,
    ) -> torch.Tensor | None:
        tasks = tables.memory[: count * ADAMW_DTYPE.itemsize]
        plan.prepare(tasks, tables.memory[len(tasks) :], count, loss_scale, found_inf)
        norm = factor = None
        if max_norm is not None:
            norm, factor = plan.clip_into(tasks, tables.sums, tables.clipped, 1.0, max_norm, loss_scale)
        plan.step(tasks, factor, found_inf)
        return norm

    def _written(self, plan: Plan, table: np.ndarray, packed: np.ndarray) -> _Tables:
        """Tables that hold a step outside of captures, written if they did not."""
        tables = self._tables
        if tables is not None and tables.holds(packed):
            return tables
        if tables is None or tables.frozen or not tables.fits(plan, len(packed)):
            tables = _Tables.of(plan, len(packed))
        plan.write(table, packed, tables.memory)
        tables.packed = packed
        return tables

    def _for_capture(self, plan: Plan, table: np.ndarray, packed: np.ndarray) -> _Tables:
        """Tables for a step of a graph: those that hold it already, or others, which the graph itself writes."""
        if self._tables is not None and self._tables.holds(packed):
            return self._tables
        tables = next((tables for tables, _ in self._captured if tables.holds(packed)), None)
        if tables is None:
            tables, self._spare = self._spare, None
            if tables is None or not tables.fits(plan, len(packed)):
                raise BackendError(
                    f"the optimizer on {self.device}: a CUDA graph is being captured, and there is no memory for the tables of "
                    f"its step yet: call step() once outside of the capture before each"
                )
        plan.write(table, packed, tables.memory)
        tables.packed = packed
        return tables
