"""The memory of a launch: regions of this process's memory, and a check of every access."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ptx.parse import PtxError

_NOBODY, _SEVERAL = -1, -2


@dataclass(frozen=True)
class Region:
    """Bytes that a launch may read and, where it is ``writable``, write."""

    address: int
    size: int
    writable: bool = True


class Memory:
    """Regions, and who touched each of their bytes.

    Args:
        regions: What may be accessed; they must not overlap.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        self._regions = [region for region in regions if region.size]
        self._bytes = [np.ctypeslib.as_array((ctypes.c_uint8 * r.size).from_address(r.address)) for r in self._regions]
        self._writer = [np.full(r.size, _NOBODY, np.int32) if r.writable else None for r in self._regions]
        self._reader = [np.full(r.size, _NOBODY, np.int32) if r.writable else None for r in self._regions]

    def load(self, addresses: np.ndarray, width: int, threads: np.ndarray, text: str) -> np.ndarray:
        """Bytes [threads, width] at some addresses, one of each thread.

        Raises:
            PtxError: An access is misaligned, out of bounds or a race.
        """
        result = np.empty((len(addresses), width), np.uint8)
        for k, chosen, at in self._places(addresses, width, threads, text):
            result[chosen] = self._bytes[k][at]
            if self._writer[k] is not None:
                me = threads[chosen][:, None]
                self._expect_alone(self._writer[k][at], me, text)
                before = self._reader[k][at]
                self._reader[k][at] = np.where((before == _NOBODY) | (before == me), me, _SEVERAL)
                self._reader[k][at[self._reader[k][at] != me]] = _SEVERAL  # two threads in this very instruction
        return result

    def store(self, addresses: np.ndarray, values: np.ndarray, threads: np.ndarray, text: str) -> None:
        """Write bytes [threads, width]; raises as :meth:`load` does, and where the region is read-only."""
        for k, chosen, at in self._places(addresses, values.shape[1], threads, text):
            if self._writer[k] is None:
                raise PtxError(f"write into read-only memory: {text}")
            me = np.broadcast_to(threads[chosen][:, None], at.shape)
            self._expect_alone(self._writer[k][at], me, text)
            self._expect_alone(self._reader[k][at], me, text)
            self._writer[k][at] = me
            self._expect_alone(self._writer[k][at], me, text)  # two threads in this very instruction
            self._bytes[k][at] = values[chosen]

    @staticmethod
    def _expect_alone(owner: np.ndarray, me: np.ndarray, text: str) -> None:
        foreign = (owner != _NOBODY) & (owner != me)
        if foreign.any():
            thread = int(np.broadcast_to(me, owner.shape)[foreign][0])
            raise PtxError(f"race: another thread than {thread} touched the same byte: {text}")

    def _places(self, addresses: np.ndarray, width: int, threads: np.ndarray, text: str):
        """(region, which of the addresses lie there, their bytes' indices)."""
        uneven = addresses % np.uint64(width) != 0
        if uneven.any():
            raise PtxError(f"misaligned {width}-byte access by thread {threads[np.argmax(uneven)]}: {text}")
        found = np.zeros(len(addresses), bool)
        for k, region in enumerate(self._regions):
            inside = (addresses >= np.uint64(region.address)) & (
                addresses + np.uint64(width) <= np.uint64(region.address + region.size)
            )
            if inside.any():
                found |= inside
                chosen = np.flatnonzero(inside)
                start = (addresses[chosen] - np.uint64(region.address)).astype(np.int64)
                yield k, chosen, start[:, None] + np.arange(width)
        if not found.all():
            lost = int(np.argmin(found))
            raise PtxError(f"out of bounds: {width} bytes at {int(addresses[lost]):#x} by thread {threads[lost]}: {text}")
