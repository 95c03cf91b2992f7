"""The process around a run: random generators, determinism, threads and memory. All of it is put back afterwards."""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..resident import peak_resident_memory


def capture_rng(device: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The state of the global generators of torch (CPU and the device), NumPy and Python.

    Returns:
        The tensors and the JSON part.
    """
    tensors = {"torch": torch.get_rng_state()}
    if device != "cpu":
        tensors["cuda"] = torch.cuda.get_rng_state(device)
    kind, keys, position, has_gauss, gauss = np.random.get_state()
    tensors["numpy"] = torch.from_numpy(keys.astype(np.int64))
    version, internal, gauss_next = random.getstate()
    plain = {
        "numpy": {"kind": kind, "position": position, "has_gauss": has_gauss, "gauss": gauss},
        "python": {"version": version, "internal": list(internal), "gauss_next": gauss_next},
    }
    return tensors, plain


def restore_rng(tensors: dict[str, torch.Tensor], plain: dict[str, Any], device: str) -> None:
    """Put the global generators into a captured state."""
    torch.set_rng_state(tensors["torch"])
    if device != "cpu":
        torch.cuda.set_rng_state(tensors["cuda"], device)
    of_numpy = plain["numpy"]
    keys = tensors["numpy"].numpy().astype(np.uint32)
    np.random.set_state((of_numpy["kind"], keys, of_numpy["position"], of_numpy["has_gauss"], of_numpy["gauss"]))
    of_python = plain["python"]
    random.setstate((of_python["version"], tuple(of_python["internal"]), of_python["gauss_next"]))


def seed_all(seed: int, device: str) -> None:
    """Seed the global generators of torch (CPU and the device), NumPy and Python."""
    torch.default_generator.manual_seed(seed)
    if device != "cpu":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])
    random.seed(seed)


@contextlib.contextmanager
def seeded(seed: int, device: str) -> Iterator[None]:
    """Seed the global generators; the caller's states are back when the block ends."""
    before = capture_rng(device)
    seed_all(seed, device)
    try:
        yield
    finally:
        restore_rng(*before, device)


def environment() -> dict[str, Any]:
    """What the last digits of a run may depend on beside its settings."""
    return {"torch": torch.__version__, "threads": torch.get_num_threads()}


@contextlib.contextmanager
def determinism(enabled: bool) -> Iterator[None]:
    """Only deterministic algorithms, and one thread within an operation; both as before when the block ends.

    One thread is the policy because a sum that is split over threads is rounded differently for every thread count, so
    that only this makes a run the same on machines with different numbers of cores. It costs speed on the CPU. Without
    determinism the thread count stays what the caller set (``torch.set_num_threads``), and a run repeats itself, also
    across a resume, with the same count on the same machine.
    """
    if not enabled:
        yield
        return
    algorithms = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    threads = torch.get_num_threads()
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    torch.set_num_threads(1)
    # cuBLAS is deterministic only with a fixed workspace, and torch refuses its operations without.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(algorithms, warn_only=warn_only)
        torch.backends.cudnn.benchmark = benchmark
        torch.set_num_threads(threads)
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


_CLEAR_REFS = Path("/proc/self/clear_refs")
CAN_RESET_PEAK = os.access(_CLEAR_REFS, os.W_OK)
"""Whether the peak of this process's resident memory can be measured anew."""


def reset_peak_memory(device: str) -> None:
    """Begin a new measurement of the peak, where the system allows it (CUDA, and Linux with a writable clear_refs)."""
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5")


def peak_memory(device: str) -> int:
    """Peak memory since the last reset, in bytes.

    On CUDA the peak that torch allocated on the device, on the CPU the process's peak resident set.
    """
    return torch.cuda.max_memory_allocated(device) if device != "cpu" else peak_resident_memory()
