"""Memory of this process that is resident: how much, how much at most, and giving back what was freed."""

from __future__ import annotations

import ctypes
import functools
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path

_PROCESS = Path("/proc/self")


def resident_memory() -> int:
    """Resident memory of this process in bytes; where the system does not tell, its peak so far."""
    statm = _PROCESS / "statm"
    if statm.exists():
        return int(statm.read_text().split()[1]) * resource.getpagesize()
    return peak_resident_memory()


def peak_resident_memory() -> int:
    """Peak resident memory in bytes.

    ``VmHWM`` of ``/proc/self/status`` on Linux, elsewhere ``getrusage``, which counts from the start of the process.
    """
    status = _PROCESS / "status"
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, where the C library keeps it and can be asked to (glibc).

    glibc maps large blocks, but moves its limit up to the largest block that was freed, at most 32 MiB: from then on tensors
    lie in the heap, where what is freed stays resident, in pieces that others may not fit into.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


def keep_few_kernels() -> None:
    """Have oneDNN keep 64 compiled kernels instead of 1024, where that was not decided already.

    Every size of a matrix product is a kernel of its own, of about half a megabyte: a mixture of experts, whose experts get
    another number of tokens at every step, would fill the store with hundreds of megabytes that are never used again. oneDNN
    reads the setting at its first operation; what the environment says stays.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


class Ceiling:
    """Keeps what a stretch of work frees from piling up: gives it back when more is resident than at its beginning.

    Args:
        slack: Bytes by which resident memory may grow before freed memory is given back.
    """

    def __init__(self, slack: int) -> None:
        self._slack = slack
        self._limit: int | None = None

    def begin(self) -> None:
        """Resident memory may be as large as it is now, plus the slack."""
        self._limit = resident_memory() + self._slack

    def check(self) -> None:
        """Give freed memory back if there is more than that; what is still resident then is in use and may stay.

        The first check is the beginning where there was none.
        """
        if self._limit is None:
            self.begin()
        elif resident_memory() > self._limit:
            return_freed_memory()
            self._limit = max(self._limit, resident_memory() + self._slack)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
