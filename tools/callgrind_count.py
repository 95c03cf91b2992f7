"""What tools/kernel_limits.py runs under callgrind: kernel tables on forced AVX2, with numpy and the native module alone.

``callgrind_count.py MODULE TABLES``: the extension's file, and a file of packed tables of one task each, whose memory is put in
here. Nothing of torch is loaded: valgrind would take minutes for it.
"""

from __future__ import annotations

import importlib.util
import sys

import numpy as np

LINE = 64  # bytes
WIDEST = 4  # bytes an element


def main(module: str, tables: str) -> None:
    """Run every task once, on one thread."""
    spec = importlib.util.spec_from_file_location("sff_fast._cpu", module)
    native = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(native)
    for record in np.load(tables):
        elements = int(record[16:24].view(np.int64)[0])  # sff::Task: data, table, memory_elements
        memory = np.zeros(elements * WIDEST + LINE, np.uint8)
        record[:8] = np.array([memory.ctypes.data + -memory.ctypes.data % LINE], np.uint64).view(np.uint8)
        native.smooth(record, 1, "avx2")


if __name__ == "__main__":
    main(*sys.argv[1:])
