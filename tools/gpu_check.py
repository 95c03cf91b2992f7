"""Checks the CUDA backend on a GPU and measures it: the tests, 1e9 elements against the CPU's bits, bandwidth of every path.

Prints one table and writes ``runs/gpu-check.csv``. Takes a few minutes, needs no network. Exits with 1 where anything differs.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from kernels import DISTRIBUTIONS, DTYPES, bits, tasks_for

from sff_fast.backends import cpu, cuda

ROOT = Path(__file__).resolve().parents[1]
ELEMENTS = 1_000_000_000
PART = 1 << 26
REPEATS = 20
CHECKED_BY_SANITIZER = """
import sys, torch
sys.path.insert(0, "tests")
from kernels import DISTRIBUTIONS, DTYPES, tasks_for
from sff_fast.backends import cuda
for dtype in DTYPES:
    for distribution in DISTRIBUTIONS.values():
        for rounding in ("nearest", "stochastic"):
            cuda.run(tasks_for(torch.zeros(5003, dtype=dtype, device="cuda")[3:], distribution, rounding=rounding))
torch.cuda.synchronize()
"""


def main() -> int:
    """Run everything; returns the exit code."""
    why = cuda.why_absent()
    if why:
        print(f"gpu-check: the CUDA backend cannot run here: {why}", file=sys.stderr)
        return 1
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, kernels for {cuda.describe()}")
    failures = [name for name, check in (("tests", _tests), ("sanitizer", _sanitizer), ("bits", _same_bits)) if not check()]
    _measure()
    print(f"gpu-check: {'failed: ' + ', '.join(failures) if failures else 'passed'}")
    return 1 if failures else 0


def _tests() -> bool:
    files = ["tests/test_cuda_backend.py", "tests/test_cuda_shim.py"]
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "not slow", *files], cwd=ROOT, check=False).returncode == 0


def _sanitizer() -> bool:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("compute-sanitizer: not installed, left out")
        return True
    command = [tool, "--error-exitcode", "1", sys.executable, "-c", CHECKED_BY_SANITIZER]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def _same_bits() -> bool:
    """1e9 elements, a part after the other, over all distributions and dtypes."""
    done, part, same = 0, 0, True
    kinds = [(dtype, name) for dtype in DTYPES for name in DISTRIBUTIONS]
    while done < ELEMENTS:
        dtype, name = kinds[part % len(kinds)]
        old = (torch.randn(PART, generator=torch.Generator().manual_seed(part)) * 0.05).to(dtype)
        new = old.cuda()
        arguments = {"rounding": ("nearest", "stochastic")[part % 2], "shift": part * PART + part % 8, "seed": part}
        cpu.run(tasks_for(old, DISTRIBUTIONS[name], **arguments))
        cuda.run(tasks_for(new, DISTRIBUTIONS[name], **arguments))
        if not torch.equal(bits(new.cpu()), bits(old)):
            print(f"bits differ: {dtype}, {name}, {arguments}")
            same = False
        done, part = done + PART, part + 1
    print(f"bits: {done} elements {'equal the CPU' if same else 'DIFFER from the CPU'}")
    return same


def _seconds(call) -> float:
    """Median time of a call by CUDA events."""
    for _ in range(3):
        call()
    times = []
    for _ in range(REPEATS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3)
    return sorted(times)[len(times) // 2]


def _measure() -> None:
    """Bandwidth of every path beside a copy on the device that moves as many bytes."""
    rows = []
    for dtype in DTYPES:
        source = torch.zeros(1 << 28, dtype=dtype, device="cuda")
        target = torch.empty_like(source)
        copied = 2 * source.nbytes / _seconds(lambda s=source, t=target: t.copy_(s)) / 1e9
        del target
        for name, distribution in DISTRIBUTIONS.items():
            for rounding in ("nearest", "stochastic")[: 2 if dtype.itemsize == 2 else 1]:
                for ahead in (0, 1):
                    prepared = cuda.prepare(tasks_for(source[ahead:], distribution, rounding=rounding))
                    reached = 2 * source.nbytes / _seconds(prepared.run) / 1e9
                    rows.append((str(dtype), name, rounding, ahead, round(reached), round(copied), round(reached / copied, 3)))
        del source
    header = ("dtype", "draw", "rounding", "elements ahead", "GB/s", "copy GB/s", "share")
    for row in (header, *rows):
        print("  ".join(f"{cell!s:<18}" for cell in row))
    out = ROOT / "runs" / "gpu-check.csv"
    out.parent.mkdir(exist_ok=True)
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("device", "torch", *header))
        writer.writerows((torch.cuda.get_device_name(), torch.__version__, *row) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
