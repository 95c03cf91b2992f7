"""Weights that were just loaded from a safetensors file: page faults cost more than the kernel. Which way is cheapest?

Every contender starts from the file in the page cache and ends with smoothed parameters that may be trained:

* populated: ``load_file`` maps the file privately, and ``smooth_`` has all pages copied before the kernel runs
  (:mod:`sff_fast.mapped`);
* page by page: the same without that, so that the kernel's first write to each 4 KiB page copies it;
* read: the file read into anonymous memory with huge pages, the tensors being views of it;
* read, small pages: the same without the advice;
* not smoothed: ``load_file`` and an in-place scale, what training costs that smooths nothing.
"""

from __future__ import annotations

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
from sff_fast import mapped as mapping

TYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16, "F64": torch.float64}


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

        def page_by_page() -> None:
            before, mapping.POPULATE_FROM = mapping.POPULATE_FROM, 1 << 62
            try:
                smooth(load_file(path))
            finally:
                mapping.POPULATE_FROM = before

        contenders = {
            "not smoothed": lambda: [t.mul_(0.999) for t in load_file(path).values()],
            "populated": lambda: smooth(load_file(path)),
            "page by page": page_by_page,
            "read": lambda: smooth(read(path, True)),
            "read, small pages": lambda: smooth(read(path, False)),
        }
        seconds = interleaved(contenders, runs)
    return [
        row(f"{name} {way}", seconds, "not smoothed", elements, threads, ours=way) for way in contenders if way != "not smoothed"
    ]
