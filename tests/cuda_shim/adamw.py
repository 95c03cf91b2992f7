"""The optimizer's CUDA kernels on the CPU: builds their shim library once and runs tables with it."""

from __future__ import annotations

import ctypes

import numpy as np

from cuda_shim import HERE, build

SOURCE = HERE / "adamw_shim.cpp"
CHUNK_DTYPE = np.dtype([("begin", "i8"), ("count", "i4"), ("task", "i4")])
"""The layout of ``sff::AdamWChunk`` in ``csrc/cuda/adamw_chunks.h``."""
LARGEST = 1 << 13


class _Clipped(ctypes.Structure):
    _fields_ = (("norm", ctypes.c_double), ("factor", ctypes.c_float), ("reserved", ctypes.c_float))


def _pointer(array: np.ndarray | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None) if array is None else array.ctypes.data_as(ctypes.c_void_p)


class AdamWShim:
    """The loaded library."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(str(build([SOURCE])))
        self._library.sff_shim_adamw_chunks.restype = ctypes.c_int64
        self._library.sff_shim_adamw_arguments.restype = ctypes.c_int64
        self._library.sff_shim_clip.restype = ctypes.c_double

    def step(self, table: np.ndarray, grid: int = 2, block: int = 64, largest: int = 512, factor: float | None = None) -> int:
        """Step all parameters of a table; ``grid=0`` takes the occupancy's shape. Returns the launches."""
        factors = None if factor is None else np.float32([factor])
        launches = self._library.sff_shim_adamw(
            _pointer(table), ctypes.c_int64(len(table)), largest, ctypes.c_uint(grid), ctypes.c_uint(block), _pointer(factors)
        )
        assert launches >= 0, "a launch failed"
        return launches

    def clip(self, table: np.ndarray, grad_scale: float, max_norm: float) -> tuple[float, float, float]:
        """Sum of squares, norm and factor of clipping."""
        out = _Clipped()
        count, numbers = ctypes.c_int64(len(table)), (ctypes.c_double(grad_scale), ctypes.c_double(max_norm))
        return self._library.sff_shim_clip(_pointer(table), count, *numbers, ctypes.byref(out)), out.norm, out.factor

    def chunks(self, table: np.ndarray, largest: int = LARGEST, pieces: bool = False) -> np.ndarray:
        """The chunks of a table, or the pieces of its sums."""
        fixed = (_pointer(table), ctypes.c_int64(len(table)), largest, int(pieces))
        size = self._library.sff_shim_adamw_chunks(*fixed, None, ctypes.c_int64(0))
        chunks = np.zeros(size, CHUNK_DTYPE)
        self._library.sff_shim_adamw_chunks(*fixed, _pointer(chunks), ctypes.c_int64(size))
        return chunks

    def arguments(
        self,
        table: np.ndarray,
        largest: int,
        chunks: np.ndarray,
        factor: np.ndarray | None = None,
        sums: np.ndarray | None = None,
    ) -> bytes:
        """The kernel's argument for the first bucket of a table, or with ``sums`` that of the kernel of sums."""
        out = ctypes.create_string_buffer(512)
        count = ctypes.c_int64(len(table))
        size = self._library.sff_shim_adamw_arguments(
            _pointer(table), count, largest, _pointer(chunks), _pointer(factor), _pointer(sums), out
        )
        return out.raw[:size]
