"""The CUDA kernels on the CPU: builds the shim library once a session and runs kernel tables with it."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sff_fast import table

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CHUNK_DTYPE = np.dtype([("data", "u8"), ("draw", "u8"), ("logical", "u8"), ("count", "i4"), ("task", "i4")])
"""The layout of ``sff::Chunk`` in ``csrc/cuda/chunks.h``."""

FLAGS = ("-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-Wall", "-Wextra", "-DSFF_ISA=device", "-DSFF_INLINE=inline")
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1")


def files_of(sources: Sequence[Path], *options: str) -> list[Path]:
    """Sources of C++ or CUDA, and what they include of the project's own."""
    command = ["g++", "-MM", "-std=c++17", "-DSFF_ISA=device", *options, f"-I{HERE}", "-x", "c++", *map(str, sources)]
    rules = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    names = {word for word in rules.replace("\\\n", " ").split() if not word.endswith(":")}
    paths = sorted({Path(name).resolve() for name in names})
    return [path for path in paths if "csrc" in path.parts or HERE in path.parents]


def build(
    sources: Sequence[Path] = (HERE / "shim.cpp",), options: Sequence[str] = ("-O1", "-Werror"), suffix: str = ".so"
) -> Path:
    """Compile sources (with the unmodified kernels in them), or take what an earlier run compiled.

    Args:
        sources: What is compiled, as C++. Default: the kernels of smoothing.
        options: Of the compiler. Default -O1: the loops are run over small sizes, so that compiling is most of the time.
        suffix: How the library's name ends; empty: a program is made.

    Returns:
        The path, in a folder of its own.
    """
    kind = ("-shared", "-fPIC") if suffix else ()
    command = ["g++", *FLAGS, *options, *kind, f"-I{HERE}", "-x", "c++", *map(str, sources)]
    digest = hashlib.blake2b(" ".join(command).encode(), digest_size=12)
    for path in files_of(sources, *(option for option in options if option.startswith(("-I", "-D")))):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    library = ROOT / "build" / "cuda-tests" / f"{sources[0].stem}-{digest.hexdigest()}" / f"{sources[0].stem}{suffix}"
    if not library.exists():
        library.parent.mkdir(parents=True, exist_ok=True)
        made = library.with_name(f"{os.getpid()}-{library.name}")
        subprocess.run([*command, "-o", str(made)], check=True)
        made.replace(library)  # whole or not at all
    return library


def run_sanitized(source: Path) -> None:
    """Build a program with AddressSanitizer and UndefinedBehaviorSanitizer, and expect it to find nothing."""
    done = subprocess.run([str(build([source], ("-O0", *SANITIZERS), ""))], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "clean\n"


class Shim:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        self._library = ctypes.CDLL(str(path))
        self._library.sff_shim_chunks.restype = ctypes.c_int64
        self._library.sff_shim_arguments.restype = ctypes.c_int64

    def run(self, tasks: Sequence[table.BoxTask], grid: int = 2, block: int = 64, largest: int = 256) -> int:
        """Run a table in place with a launch shape; ``grid=0`` takes the occupancy's shape. Returns the launches."""
        packed = table.pack(tasks)
        launches = self._library.sff_shim_smooth(
            packed.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(len(tasks)), largest, ctypes.c_uint(grid), ctypes.c_uint(block)
        )
        assert launches >= 0, "a launch failed"
        return launches

    def chunks(self, packed: np.ndarray, largest: int) -> np.ndarray:
        """The chunks of a packed table."""
        count = ctypes.c_int64(packed.nbytes // table.TASK_DTYPE.itemsize)
        pointer = packed.ctypes.data_as(ctypes.c_void_p)
        size = self._library.sff_shim_chunks(pointer, count, largest, None, ctypes.c_int64(0))
        chunks = np.zeros(size, CHUNK_DTYPE)
        self._library.sff_shim_chunks(pointer, count, largest, chunks.ctypes.data_as(ctypes.c_void_p), ctypes.c_int64(size))
        return chunks

    def variant(self, packed: np.ndarray, largest: int) -> int:
        """The variant of the kernel that the first bucket takes, as ``sff::Variant`` counts them."""
        count = ctypes.c_int64(packed.nbytes // table.TASK_DTYPE.itemsize)
        return self._library.sff_shim_variant(packed.ctypes.data_as(ctypes.c_void_p), count, largest, 0)

    def arguments(self, packed: np.ndarray, largest: int, index: int, chunks: np.ndarray) -> bytes:
        """The kernel's argument for bucket ``index``, with the tables where the arrays lie."""
        count = ctypes.c_int64(packed.nbytes // table.TASK_DTYPE.itemsize)
        out = ctypes.create_string_buffer(512)
        size = self._library.sff_shim_arguments(
            packed.ctypes.data_as(ctypes.c_void_p), count, largest, index, chunks.ctypes.data_as(ctypes.c_void_p), out
        )
        return out.raw[:size]
