"""Builds and feeds tests/native/driver: the native core without Python, for sanitizers and other architectures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from golden import GOLDEN, KAT, golden_tasks, stored_bits, word
from kernel_cases import DISTRIBUTIONS, DTYPES, bits, tasks_for, weights

from sff_fast import table
from sff_fast.backends import reference

ROOT = Path(__file__).resolve().parents[1]
SMOOTH, PHILOX, TRANSFORM = range(3)


def build(folder: Path, *options: str) -> Path:
    """Configure and compile the driver with CMake.

    Args:
        folder: Where to build.
        options: Further ``-DNAME=VALUE`` for CMake.

    Returns:
        The program.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=path)
    assert cmake, "cmake is absent: pip install -r requirements/dev.txt"
    environment = {**os.environ, "PATH": path}
    configure = [cmake, "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DSFF_NATIVE_TESTS=ON", *options]
    for command in (configure, [cmake, "--build", str(folder), "--target", "driver"]):
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    return folder / "driver"


def needed(program: str, package: str) -> None:
    """Skip where a Debian package is absent."""
    if shutil.which(program) is None:
        pytest.skip(f"{program} is absent: apt-get install -y --no-install-recommends {package}")


def vectors() -> list[bytes]:
    """Known answers of the generator and of every golden case, and what the reference backend makes of other runs."""
    cases = []
    for vector in KAT:
        counter, key = vector["counter"], vector["key"]
        at = np.array([word(*key), word(*counter[2:]), word(*counter[:2]), 1], dtype=np.uint64)
        cases.append(_case(PHILOX, at, np.array([int(w, 16) for w in vector["result"]], dtype=np.uint32)))
    for case in GOLDEN["cases"]:
        _, tasks = golden_tasks(case)
        old, new = stored_bits(case, "old"), stored_bits(case, "new")
        cases.append(_smoothing(tasks, old, new))
    cases += [_reference_run(label, dtype, n) for label in DISTRIBUTIONS for dtype in DTYPES for n in (1, 31, 1025, 20_000)]
    cases += [_reference_words(start) for start in (0, (1 << 32) - 9, (1 << 40) + 3)]
    return cases


def transforms(words: np.ndarray, draw) -> list[bytes]:
    """Draws of given words: ``draw(distribution, words)`` gives what is expected."""
    return [
        _case(TRANSFORM, _packed(tasks_for(torch.zeros(4), d)), np.uint64([len(words)]), words, draw(d, words))
        for label, d in DISTRIBUTIONS.items()
        if label != "constant"
    ]


def _case(kind: int, *parts: np.ndarray) -> bytes:
    return b"".join([np.uint64(kind).tobytes(), *(part.tobytes() for part in parts)])


def _packed(tasks: list[table.BoxTask]) -> np.ndarray:
    return table.pack(tasks)


def _smoothing(tasks: list[table.BoxTask], old: np.ndarray, new: np.ndarray) -> bytes:
    (task,) = tasks
    return _case(SMOOTH, _packed([task]), np.uint64([old.nbytes]), old, new)


def _reference_run(label: str, dtype: torch.dtype, n: int) -> bytes:
    old = weights(n, dtype)
    new = old.clone()
    rounding = "stochastic" if n % 2 and dtype in (torch.bfloat16, torch.float16) else "nearest"
    tasks = tasks_for(new, DISTRIBUTIONS[label], rounding=rounding, shift=n % 7)
    reference.run(tasks)
    return _smoothing([tasks[0]], bits(old).numpy(), bits(new).numpy())


def _reference_words(start: int) -> bytes:
    blocks = torch.arange(100, dtype=torch.int64) + start
    words = torch.stack(reference.philox(99, 1 << 63, blocks), dim=-1).numpy().astype(np.uint32)
    return _case(PHILOX, np.array([99, 1 << 63, start, 100], dtype=np.uint64), words)
