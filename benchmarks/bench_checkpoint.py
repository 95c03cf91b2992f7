"""smooth_checkpoint against a plain copy of the same file: time, hashing, peak memory.

    python benchmarks/bench_checkpoint.py --gigabytes 3
    python benchmarks/bench_checkpoint.py --gigabytes 12 --runs 1

The checkpoint is made here: matrices of 134 MB, and one tensor of a third of the file. Peak memory is VmHWM of a fresh
process over its own after the imports and the trace. Bits are compared with ``smooth_`` on tensors read one at a time.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open
from timing import write_rows

import sff_fast
from sff_fast import table
from sff_fast.backends import reference
from sff_fast.checkpoints.window import restricted, whole_shape
from sff_fast.plan import InitPlan

ROWS, COLUMNS = 8192, 4096
ALPHA, SEED = 0.7, 3

_CHILD = """
import json, sys, time
import sff_fast
from sff_fast.checkpoints import smooth_checkpoint

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM:")) * 1024

plan = sff_fast.InitPlan.load(sys.argv[3])
before = peak()
begin = time.perf_counter()
report = smooth_checkpoint(sys.argv[1], sys.argv[2], plan, {alpha}, {seed}, hashes=bool(int(sys.argv[4])), threads={threads})
print(json.dumps([time.perf_counter() - begin, report.hash_seconds, peak() - before, report.threads]))
"""


class Model(torch.nn.Module):
    """Matrices, and one parameter that is larger than what smoothing may take."""

    def __init__(self, gigabytes: float) -> None:
        super().__init__()
        total = int(gigabytes * 1e9) // (ROWS * COLUMNS * 4)
        large = max(total // 3, 1)
        self.large = torch.nn.Embedding(ROWS * large, COLUMNS)
        self.layers = torch.nn.ModuleList(torch.nn.Linear(COLUMNS, ROWS, bias=False) for _ in range(max(total - large, 1)))


def make(path: Path, plan: InitPlan) -> None:
    """A checkpoint of random weights for the plan, a piece at a time."""
    header, end = {}, 0
    for name, parameter in plan.parameters.items():
        header[name] = {"dtype": "F32", "shape": list(parameter.shape), "data_offsets": [end, end + parameter.numel * 4]}
        end += parameter.numel * 4
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    piece = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).numpy()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for begin in range(0, end, piece.nbytes):
            file.write(memoryview(piece).cast("B")[: end - begin])


def copied(source: Path, target: Path) -> float:
    """Seconds of the plain copy, on the disk."""
    begin = time.perf_counter()
    subprocess.run(["cp", "--reflink=never", source, target], check=True)
    subprocess.run(["sync", target], check=True)
    return time.perf_counter() - begin


def smoothed(source: Path, target: Path, plan: Path, hashes: bool, threads: int) -> list[float]:
    """Seconds, seconds of hashing, extra peak bytes, threads; in a fresh process."""
    code = _CHILD.format(alpha=ALPHA, seed=SEED, threads=threads)
    arguments = [sys.executable, "-c", code, str(source), str(target), str(plan), str(int(hashes))]
    return json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def check(source: Path, target: Path, plan: InitPlan) -> None:
    """The bits of ``smooth_``, on the first tensors and the rows at both ends of the large one."""
    with safe_open(source, "pt") as before, safe_open(target, "pt") as after:
        name = "layers.0.weight"
        single = torch.nn.Linear(COLUMNS, ROWS, bias=False)
        with torch.no_grad():
            single.weight.copy_(before.get_tensor(name))
        sff_fast.smooth_(single, plan, ALPHA, SEED, prefix="layers.0.", subset=True)
        assert torch.equal(single.weight, after.get_tensor(name)), f"{name} differs from smooth_"
        last = after.get_slice("large.weight")
        rows = last.get_shape()[0]
        for at in (0, rows // 2, rows - 8):
            rows_there = before.get_slice("large.weight")[at : at + 8].contiguous()
            _smooth_rows(plan, rows_there, at)
            assert torch.equal(last[at : at + 8], rows_there), f"row {at} of large.weight differs"


def _smooth_rows(plan: InitPlan, memory: torch.Tensor, first: int) -> None:
    """A few rows of the large tensor by the plain-torch backend; the whole does not fit into memory."""
    parameter = plan["large.weight"]
    whole = whole_shape(parameter.shape, torch.float32)
    tasks = table.build([(parameter, whole, ALPHA, 1.0 - ALPHA)], plan, SEED)
    low = first * COLUMNS
    reference.run(list(restricted(tasks, memory.reshape(-1), low, low + memory.numel())), None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=3.0)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, default=None, help="where to work; default the system's temporary folder")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        plan = sff_fast.trace(lambda: Model(options.gigabytes))
        plan.save(folder / "plan.json")
        source, copy, target = folder / "in.safetensors", folder / "copy.safetensors", folder / "out.safetensors"
        make(source, plan)
        os.sync()
        copies, plain, hashed, peaks = [], [], [], []
        for turn in range(options.runs + 1):
            one = copied(source, copy)
            copy.unlink()
            os.sync()
            seconds, _, peak, _ = smoothed(source, target, folder / "plan.json", False, options.threads)
            target.unlink()
            os.sync()
            if turn:  # The first round is not counted.
                copies.append(one)
                plain.append(seconds)
            peaks.append(peak)
        seconds, hashing, _, _ = smoothed(source, target, folder / "plan.json", True, options.threads)
        hashed.append(seconds)
        check(source, target, plan)
        ratio = statistics.median(a / b for a, b in zip(copies, plain))
        size = source.stat().st_size
        row = {
            "gigabytes": round(size / 1e9, 2),
            "largest_gigabytes": round(plan["large.weight"].numel * 4 / 1e9, 2),
            "runs": options.runs,
            "threads": options.threads,
            "seconds": round(statistics.median(plain), 3),
            "cp_sync_seconds": round(statistics.median(copies), 3),
            "speed_of_cp": round(ratio, 3),
            "must": ">= 0.8",
            "holds": "yes" if ratio >= 0.8 else "no",
            "seconds_with_hashes": round(hashed[0], 3),
            "hash_cpu_seconds": round(hashing, 3),
            "peak_mb": round(max(peaks) / 2**20, 1),
            "peak_limit_mb": 256,
        }
        print(", ".join(f"{key} {value}" for key, value in row.items()))
        print("appended to", write_rows("checkpoint", [row]))
        if max(peaks) > 256 << 20:
            raise SystemExit("the peak is above its limit")
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
