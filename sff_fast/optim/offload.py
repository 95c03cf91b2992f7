"""States and step on the CPU for parameters on an accelerator, the copies overlapping with the steps.

The CPU keeps the states and a copy of the parameters. A step copies a bucket's gradients over, steps the copy and sends it
back; while one bucket is stepped, the gradients of the next one are on their way.

Source: Ren et al., "ZeRO-Offload: democratizing billion-scale model training", 2021.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from . import flat, kernels, reference, shards
from .buckets import Bucket

CPU = torch.device("cpu")
Part = tuple["OffloadedBucket", np.ndarray, list[torch.Tensor], np.ndarray]


class OffloadedBucket(Bucket):
    """A bucket whose states lie in the CPU's memory, beside a copy of its parameters."""

    @property
    def home(self) -> torch.device:
        """The CPU."""
        return CPU

    def _make_table(self) -> None:
        starts = self._starts()
        self._copy = torch.empty(starts[-1], dtype=self.dtype, pin_memory=self.device.type == "cuda")
        self.copies = self._views_of(self._copy, range(len(self.params)), starts)
        self._written: list[tuple[int, int] | None] = [None] * len(self.params)
        super()._make_table()

    def _starts(self) -> list[int]:
        """Where each parameter begins in flat memory, cache lines apart, and the end."""
        return flat.starts_of(self._elements)

    def _views_of(self, flat: torch.Tensor, which: Sequence[int], starts: Sequence[int]) -> list[torch.Tensor]:
        return [flat.as_strided(self._shapes[i], self._strides[i], start) for i, start in zip(which, starts)]

    def _addresses(self) -> list[int]:
        return [copy.data_ptr() for copy in self.copies]

    def _stepped(self, i: int) -> torch.Tensor:
        return self.copies[i]

    @property
    def elements(self) -> int:
        """Elements of flat memory that gradients of all parameters take."""
        return self._copy.numel()

    def staged(self, flat: torch.Tensor, active: np.ndarray) -> list[torch.Tensor]:
        """Room for the gradients of some parameters in flat memory of the bucket's dtype."""
        starts = self._starts()
        return self._views_of(flat, active.tolist(), [starts[i] for i in active.tolist()])

    def squares(self, i: int) -> float:
        """Sum of squares of a gradient, on the gradient's own device."""
        return reference.sum_of_squares(shards.local(self.params[i].grad))

    def refresh(self, active: np.ndarray) -> None:
        """Take over parameters that somebody else has written or replaced since the last step.

        Autograd's version counters tell; what is written through ``.data`` is not noticed.
        """
        for i in active.tolist():
            p = shards.local(self.params[i])
            if (p._version, p.data_ptr()) != self._written[i]:
                self.copies[i].copy_(p.detach())

    def send(self, active: np.ndarray) -> None:
        """Write the stepped copies into the parameters; they may still be on their way when this returns."""
        for i in active.tolist():
            p = shards.local(self.params[i])
            p.copy_(self.copies[i], non_blocking=True)
            if p is not self.params[i]:
                torch.autograd.graph.increment_version([self.params[i]])
            self._written[i] = (p._version, p.data_ptr())


class Pipe:
    """Copies between the CPU and one device, in a CUDA stream of their own where there are streams.

    Args:
        device: The device.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._pinned = device.type == "cuda"
        self._rooms: dict[tuple[int, torch.dtype], torch.Tensor] = {}

    def run(self, parts: Sequence[Part]) -> None:
        """Step the copies of all buckets and send them back."""
        with self._in_stream(begin=True):
            for bucket, active, _, _ in parts:
                bucket.refresh(active)
        coming = self._fetch(parts[0], 0)
        for k, part in enumerate(parts):
            grads, ready = coming
            if k + 1 < len(parts):
                coming = self._fetch(parts[k + 1], (k + 1) % 2)  # its room was read by the step before this one
            if ready is not None:
                ready.synchronize()
            self._step(part, grads)
            with self._in_stream():
                part[0].send(part[1])
        if self._stream is not None:
            torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)

    def _fetch(self, part: Part, slot: int) -> tuple[list[torch.Tensor], torch.cuda.Event | None]:
        bucket, active, grads, _ = part
        room = self._rooms.get((slot, bucket.dtype))
        if room is None or room.numel() < bucket.elements:
            room = torch.empty(bucket.elements, dtype=bucket.dtype, pin_memory=self._pinned)
            self._rooms[slot, bucket.dtype] = room
        targets = bucket.staged(room, active)
        with self._in_stream():
            for target, grad in zip(targets, grads):
                target.copy_(grad, non_blocking=True)
                if self._stream is not None:
                    grad.record_stream(self._stream)
        return targets, None if self._stream is None else self._stream.record_event()

    @staticmethod
    def _step(part: Part, grads: list[torch.Tensor]) -> None:
        bucket, active, _, table = part
        table["grad"] = [grad.data_ptr() for grad in grads]
        if bucket.native:
            kernels.step(table, CPU)
        else:
            bucket.run_reference(active, grads, table)

    @contextlib.contextmanager
    def _in_stream(self, begin: bool = False) -> Iterator[None]:
        """Enqueue copies in the own stream; at the beginning it waits for what made gradients and parameters."""
        if self._stream is None:
            yield
            return
        if begin:
            self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            yield
