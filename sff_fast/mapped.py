"""Memory that is mapped from files, as ``safetensors.torch.load_file`` gives it: cheaper ways to write to all of it.

Such a mapping is private: the first write to each page of 4 KiB faults and copies it, which costs several times what smoothing
does. Asking the system for all copies beforehand saves the faults, and several threads can do it.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

POPULATE_FROM = 64 << 20
"""Bytes of parameters from which on their mappings are looked up: that takes half a millisecond or so."""

_PIECE = 16 << 20
_MADV_POPULATE_WRITE = 23
_MAPS = Path("/proc/self/maps")

Span = tuple[int, int]


def populate(tensors: Iterable[torch.Tensor], threads: int | None = None) -> int:
    """Give this process its own copy of all pages of tensors that lie in private mappings of files, in order to write to them.

    Nothing but the time of the writes changes: without it, or where the system cannot do it (Linux before 5.14, too little
    memory), the first write to each page copies it.

    Args:
        tensors: Tensors on the CPU, dense.
        threads: How many threads copy. Default: ``torch.get_num_threads()``.

    Returns:
        The bytes of the pages that were made ready; 0 for tensors of less than :data:`POPULATE_FROM` bytes together.

    Source: madvise(2), ``MADV_POPULATE_WRITE``.
    """
    madvise = _madvise()
    spans = _merged((t.data_ptr(), t.data_ptr() + t.nbytes) for t in tensors if t.nbytes)
    if madvise is None or sum(end - begin for begin, end in spans) < POPULATE_FROM:
        return 0
    page = mmap.PAGESIZE
    found = _common(_merged((begin // page * page, -(-end // page) * page) for begin, end in spans), _file_mappings())
    pieces = [(at, min(at + _PIECE, end)) for begin, end in found for at in range(begin, end, _PIECE)]

    def ready(piece: Span) -> int:
        begin, end = piece
        return end - begin if madvise(begin, end - begin, _MADV_POPULATE_WRITE) == 0 else 0

    with ThreadPoolExecutor(torch.get_num_threads() if threads is None else threads) as pool:
        return sum(pool.map(ready, pieces))


@functools.cache
def _madvise() -> Callable[[int, int, int], int] | None:
    """The C library's madvise, which runs without the interpreter's lock; None but on Linux."""
    if not sys.platform.startswith("linux"):
        return None
    function = ctypes.CDLL(None, use_errno=True).madvise
    function.argtypes, function.restype = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int), ctypes.c_int
    return function


def _file_mappings() -> Sequence[Span]:
    """Addresses of this process's private, writable mappings of files, in order."""
    found = []
    for line in _MAPS.read_text().splitlines() if _MAPS.exists() else ():
        addresses, permissions, _, _, inode, *_ = line.split(maxsplit=5)
        if permissions[1] == "w" and permissions[3] == "p" and inode != "0":
            begin, end = addresses.split("-")
            found.append((int(begin, 16), int(end, 16)))
    return found


def _merged(spans: Iterable[Span]) -> list[Span]:
    """Spans in order, those that touch as one."""
    found: list[Span] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((begin, end))
    return found


def _common(spans: Sequence[Span], others: Sequence[Span]) -> Iterator[Span]:
    """What two ordered lists of disjoint spans share."""
    i = j = 0
    while i < len(spans) and j < len(others):
        begin, end = max(spans[i][0], others[j][0]), min(spans[i][1], others[j][1])
        if begin < end:
            yield begin, end
        if spans[i][1] < others[j][1]:
            i += 1
        else:
            j += 1
