"""Runs nvcc's PTX of the kernels on this machine: tables and tensors of the process are a launch's memory."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from cuda_code import ROOT, SOURCE, compile_for_all, kernel_name
from cuda_shim import Shim
from ptx import Kernel, Launch, Region, kernels

from sff_fast import table

LARGEST = 64
"""Elements of a chunk: small, so that small tensors have several."""


def programs(source: Path = SOURCE, named=kernel_name) -> dict[str, dict[object, Kernel]]:
    """The kernels of every architecture by what ``named`` makes of their symbols.

    Architectures whose kernels are the same to the letter stand under one key, their names joined.
    """
    texts: dict[str, list[str]] = {}
    for architecture, (path, _) in compile_for_all("ptx", source).items():
        text = path.read_text().replace(f".target {architecture}", ".target")
        texts.setdefault(text, []).append(architecture)
    return {"+".join(names): {named(k): v for k, v in kernels(text).items()} for text, names in texts.items()}


def run(
    shim: Shim, kernel: Kernel, tasks: Sequence[table.BoxTask], regions: Sequence[Region] = (), largest: int = LARGEST
) -> Launch:
    """Run a table of one task with a kernel: two blocks of one warp.

    Args:
        shim: Cuts the table and makes the kernel's argument, as the host code does.
        kernel: The kernel of the task's dtype and rounding.
        tasks: One task.
        regions: What may be written, default the task's tensor.
        largest: Elements of a chunk.

    Returns:
        The launch, for its counts.
    """
    packed = table.pack(tasks)
    chunks = shim.chunks(packed, largest)
    tables = [Region(array.ctypes.data, array.nbytes, writable=False) for array in (packed, chunks)]
    tables += [Region(t.table.data_ptr(), t.table.nbytes, writable=False) for t in tasks if t.table is not None]
    tensor = tasks[0].tensor
    memory = regions or [Region(tensor.data_ptr(), tensor.nbytes)]
    return Launch(kernel, shim.arguments(packed, largest, 0, chunks), [*tables, *memory], 2, 32).run()


def planted(folder: Path, changes: Mapping[str, tuple[str, str]]) -> Path:
    """A copy of the kernels with faults in it.

    Args:
        folder: Where the copy goes.
        changes: File under ``csrc`` to (text that stands there once, what takes its place).

    Returns:
        The copy of ``csrc/cuda``.
    """
    copy = Path(shutil.copytree(ROOT / "csrc", folder / "csrc"))
    for name, (old, new) in changes.items():
        text = (copy / name).read_text()
        assert text.count(old) == 1, f"{name} has {text.count(old)} times {old!r}"
        (copy / name).write_text(text.replace(old, new))
    return copy / "cuda"
