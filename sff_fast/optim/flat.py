"""Flat memory: of a bucket's states, and of parameters that are moved into it.

A parameter is moved by giving it other memory (``p.data = ...``): whoever holds the parameter sees no difference. Whoever
holds its memory would, so what is held by somebody else stays where it is.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.weak import WeakIdKeyDictionary

from sff_fast.resident import return_freed_memory

from . import shards

ALIGN = 64
"""Elements: every parameter's part of flat memory begins at a multiple of them."""

CACHE_LINE = 64
"""Bytes: flat memory begins at a multiple of them, so that no vector of a kernel lies in two lines."""

_NUMPY = {torch.float32: np.float32, torch.bfloat16: np.uint16, torch.float16: np.uint16, torch.uint8: np.uint8}


def starts_of(sizes: Sequence[int]) -> list[int]:
    """Where parts of so many elements begin in flat memory, and the end of the last one."""
    return np.cumsum([0, *(-(-size // ALIGN) * ALIGN for size in sizes)]).tolist()


def zeros(elements: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Zeros whose memory is not touched on the CPU, so that what is never used costs nothing."""
    if device.type != "cpu":
        return torch.zeros(elements, dtype=dtype, device=device)
    memory = np.zeros(elements * dtype.itemsize + CACHE_LINE, np.uint8)
    start = -memory.ctypes.data % CACHE_LINE
    result = torch.from_numpy(memory[start : start + elements * dtype.itemsize].view(_NUMPY[dtype]))
    return result if result.dtype == dtype else result.view(dtype)


def why_it_stays(p: torch.Tensor) -> str | None:
    """Why a parameter may not be moved, or None.

    Two modules that hold one parameter object do not keep it from moving. A second tensor over its memory does: an alias, a
    state dict that somebody keeps, a graph that is not done.
    """
    if shards.is_sharded(p):
        return "a DTensor"
    if not p.is_contiguous():
        return "not contiguous"
    if p.is_shared() and p.device.type == "cpu":
        return "in memory that processes share"
    storage = p.untyped_storage()
    if storage.nbytes() != p.nbytes:
        return "a part of a larger tensor"
    if not storage.resizable():
        return "in memory of a file or of another library"
    # One for the parameter, one for the storage object of the line above.
    if torch._C._storage_Use_Count(storage._cdata) > 2:
        return "in memory that another tensor or a graph holds too"
    return None


class Homes:
    """Moves parameters into flat memory, every one at most once; one that left it afterwards is left alone."""

    def __init__(self) -> None:
        self._seen = WeakIdKeyDictionary()
        self._stayed: list[str] = []

    def move_in(self, params: Sequence[torch.Tensor], labels: Sequence[str]) -> None:
        """Move the parameters of a bucket side by side; what each had before is freed before the next is moved.

        Args:
            params: Of one dtype and device.
            labels: Their names.
        """
        moving = []
        for p, label in zip(params, labels):
            if p in self._seen or not p.numel():
                continue
            self._seen[p] = True
            reason = why_it_stays(p)
            if reason is None:
                moving.append(p)
            else:
                self._stayed.append(f"{label} ({reason})")
        if not moving:
            return
        starts = starts_of([p.numel() for p in moving])
        flat = zeros(starts[-1], moving[0].dtype, moving[0].device)
        for p, start in zip(moving, starts):
            part = flat[start : start + p.numel()].view(p.shape)
            part.copy_(p.detach())
            p.data = part
        if flat.device.type == "cpu":
            return_freed_memory()  # of this bucket, or the heap would keep it beside the next one

    def say(self) -> None:
        """Say which parameters stayed where they are, those not said before."""
        if self._stayed:
            logging.getLogger("sff_fast").info(
                "FusedAdamW: %d parameter(s) stay where they are and are reached by their pointers, the first one %s",
                len(self._stayed),
                self._stayed[0],
            )
            self._stayed = []
