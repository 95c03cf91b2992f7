"""Weights that were just loaded from a safetensors file: page faults cost more than the kernel. Which way is cheapest?

Every contender starts from the file in the page cache and ends with smoothed parameters that may be trained:

* mapped: ``load_file`` maps the file privately; the kernel's first write to each 4 KiB page copies it;
* populated: the same, all pages copied by one ``madvise(MADV_POPULATE_WRITE)`` first;
* read: the file read into anonymous memory with huge pages, the tensors being views of it;
* read, small pages: the same without the advice;
* mapped, not smoothed: ``load_file`` and an in-place scale, the least that the first way can cost.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import tempfile
from pathlib import Path

import numpy as np
import torch
from models import ALPHA, FACTORIES
from safetensors.torch import load_file, save_file
from timing import interleaved, row

import sff_fast

POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14
TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}
PAGE = mmap.PAGESIZE


def populate(tensors: list[torch.Tensor]) -> None:
    """Make all pages of these tensors private and writable in one call a run of neighbours.

    Raises:
        OSError: The kernel is older than 5.14 or out of memory.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    spans = sorted((t.data_ptr() & -PAGE, -(-(t.data_ptr() + t.nbytes) // PAGE) * PAGE) for t in tensors)
    merged: list[tuple[int, int]] = []
    for begin, end in spans:
        if merged and begin <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((begin, end))
    for begin, end in merged:
        if libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), POPULATE_WRITE) != 0:
            raise OSError(ctypes.get_errno(), "madvise(MADV_POPULATE_WRITE) failed: it needs Linux 5.14")


def read(path: Path, huge: bool) -> dict[str, torch.Tensor]:
    """The file's tensors as views of anonymous memory, in huge pages where the system grants them."""
    with path.open("rb", buffering=0) as file:
        header = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(header))
        size = path.stat().st_size - 8 - header
        memory = mmap.mmap(-1, size)
        if huge:
            memory.madvise(mmap.MADV_HUGEPAGE)
        view, at = memoryview(memory), 0
        while at < size:
            at += file.readinto(view[at : at + (64 << 20)])
    flat = torch.from_numpy(np.frombuffer(memory, dtype=np.uint8))
    return {
        name: flat[slice(*e["data_offsets"])].view(TYPES[e["dtype"]]).view(e["shape"])
        for name, e in entries.items()
        if name != "__metadata__"
    }


def mapped(name: str, runs: int, threads: int) -> list:
    """Load and smooth, in all ways."""
    factory = FACTORIES[name]
    plan = sff_fast.trace(factory)
    elements = sum(plan[key].numel for key in plan)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_file({key: p.detach().contiguous() for key, p in factory().named_parameters()}, path)
        model = factory()

        def smooth(weights: dict[str, torch.Tensor]) -> None:
            model.load_state_dict(weights, strict=False, assign=True)
            sff_fast.smooth_(model, plan, ALPHA, seed=1, threads=threads, again=True)

        def populated() -> None:
            weights = load_file(path)
            populate(list(weights.values()))
            smooth(weights)

        contenders = {
            "not smoothed": lambda: [t.mul_(0.999) for t in load_file(path).values()],
            "mapped": lambda: smooth(load_file(path)),
            "populated": populated,
            "read": lambda: smooth(read(path, True)),
            "read, small pages": lambda: smooth(read(path, False)),
        }
        seconds = interleaved(contenders, runs)
    return [
        row(f"{name} {way}", seconds, "not smoothed", elements, threads, ours=way) for way in contenders if way != "not smoothed"
    ]
