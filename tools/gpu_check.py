"""Checks the CUDA backend on a GPU and measures it.

The tests, 1e9 elements and the optimizer's steps against the CPU's bits, bandwidth of every path beside a copy on the device,
and AdamW beside ``torch.optim.AdamW`` fused and foreach. Prints one table and writes ``runs/gpu-check.csv``. Takes a few minutes,
needs no network. Exits with 1 where anything differs.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from kernel_cases import DISTRIBUTIONS, DTYPES, bits, tasks_for

from sff_fast import FusedAdamW, table
from sff_fast.backends import cpu, cuda
from sff_fast.distributions import Constant

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "runs" / "gpu-check.csv"
DEVICE = "cuda"
ELEMENTS, PART = 1_000_000_000, 1 << 24
"""Of the comparison with the CPU: in all, and at a time; there are more parts than kinds."""
KINDS = [
    (dtype, name, rounding)
    for dtype in DTYPES
    for name in DISTRIBUTIONS
    for rounding in ("nearest", "stochastic")[: 2 if dtype.itemsize == 2 else 1]
]
"""Of smoothing."""
STEPPED = (1, 1000, 1 << 20, 333_333)
"""Elements of the parameters whose steps are compared."""
MEASURED, COPIED, PARAMETERS = 1 << 28, 1 << 30, (64, 1 << 20)
"""Elements that are smoothed, bytes that are copied, number and elements of the parameters that are stepped."""
WARM, REPEATS = 3, 20
CHECKED_BY_SANITIZER = """
import sys, torch
sys.path.insert(0, "tests")
from kernel_cases import DISTRIBUTIONS, DTYPES, tasks_for
from sff_fast.backends import cuda
for dtype in DTYPES:
    for distribution in DISTRIBUTIONS.values():
        for rounding in ("nearest", "stochastic"):
            cuda.run(tasks_for(torch.zeros(5003, dtype=dtype, device="cuda")[3:], distribution, rounding=rounding))
from sff_fast import FusedAdamW
for state in ("float32", "bfloat16", "int8"):
    for options in ({}, {"stochastic_rounding": True}, {"compensation": "kahan"}):
        p = torch.nn.Parameter(torch.ones(5003, dtype=torch.bfloat16, device="cuda")[3:].detach())
        p.grad = torch.ones_like(p)
        FusedAdamW([p], state_dtype=state, max_norm=1.0, amsgrad=True, **options).step()
torch.cuda.synchronize()
"""
"""What compute-sanitizer looks at."""
STEPS = [(dtype, state) for dtype in (torch.float32, torch.bfloat16) for state in ("float32", "bfloat16", "int8")]
STATE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1}


def main() -> int:
    """Run everything; returns the exit code."""
    why = cuda.why_absent()
    if why:
        print(f"gpu-check: the CUDA backend cannot run here: {why}", file=sys.stderr)
        return 1
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, kernels for {cuda.describe()}")
    checks = {"tests": _tests, "sanitizer": _sanitizer, "bits": _same_bits, "steps": _same_steps, "replays": _same_replays}
    failures = [name for name, check in checks.items() if not check()]
    _write([*_measure(), *_measure_steps()])
    print(f"gpu-check: {'failed: ' + ', '.join(failures) if failures else 'passed'}")
    return 1 if failures else 0


def _tests() -> bool:
    files = sorted(str(path) for path in (ROOT / "tests").glob("test_cuda_*.py"))
    return subprocess.run([sys.executable, "-m", "pytest", "-q", "-m", "not slow", *files], cwd=ROOT, check=False).returncode == 0


def _sanitizer() -> bool:
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        print("compute-sanitizer: not installed, left out")
        return True
    command = [tool, "--error-exitcode", "1", sys.executable, "-c", CHECKED_BY_SANITIZER]
    return subprocess.run(command, cwd=ROOT, check=False).returncode == 0


def _same_bits() -> bool:
    """1e9 elements, a part after the other, over all dtypes, distributions and roundings."""
    done, part, same = 0, 0, True
    while done < ELEMENTS:
        dtype, name, rounding = KINDS[part % len(KINDS)]
        old = (torch.randn(PART, generator=torch.Generator().manual_seed(part)) * 0.05).to(dtype)
        new = old.to(DEVICE, copy=True)
        arguments = {"rounding": rounding, "shift": part * PART + part % 8, "seed": part}
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
    for _ in range(WARM):
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


def _trained(device: str, dtype: torch.dtype, **options) -> list[torch.Tensor]:
    """Parameters and states after three steps."""
    generator = torch.Generator().manual_seed(1)
    params = [torch.nn.Parameter(torch.randn(n, generator=generator).to(dtype).to(device)) for n in STEPPED]
    optimizer = FusedAdamW(params, lr=1e-2, max_norm=1.0, amsgrad=True, **options)
    for _ in range(3):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator).to(dtype).to(device)
        optimizer.step()
    states = [value for p in params for _, value in sorted(optimizer.state[p].items())]
    return [x.detach().cpu() for x in (*params, *states)]


def _same_replays() -> bool:
    """Replays of a graph that holds a capturable step against as many steps without one."""
    results = []
    for capturable in (False, True):
        params = [torch.nn.Parameter(torch.ones(n, device=DEVICE)) for n in STEPPED]
        for p in params:
            p.grad = torch.full_like(p, 0.5)
        optimizer = FusedAdamW(params, lr=1e-2, max_norm=1.0, capturable=capturable)
        optimizer.step()
        if capturable:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                optimizer.step()
        for _ in range(5):
            graph.replay() if capturable else optimizer.step()
        results.append([p.detach().cpu() for p in params])
    same = all(torch.equal(bits(a), bits(b)) for a, b in zip(*results))
    print(f"replays: {'equal' if same else 'DIFFER from'} steps without a graph")
    return same


def _same_steps() -> bool:
    """The optimizer's steps, with clipping, of every precision and way to store."""
    ways = ({}, {"stochastic_rounding": True}, {"compensation": "kahan"})
    cases = [(torch.bfloat16, state, way) for state in STATE_BYTES for way in ways]
    cases += [(dtype, state, {}) for dtype in (torch.float32, torch.float16) for state in STATE_BYTES]
    same = True
    for dtype, state, way in cases:
        pairs = zip(_trained("cpu", dtype, state_dtype=state, **way), _trained(DEVICE, dtype, state_dtype=state, **way))
        if not all(torch.equal(a.view(torch.uint8), b.view(torch.uint8)) for a, b in pairs if a.dim()):
            print(f"steps differ: {dtype}, {state} states, {way}")
            same = False
    print(f"steps: {len(cases)} kinds {'equal the CPU' if same else 'DIFFER from the CPU'}")
    return same


def _copied(dtype: torch.dtype) -> float:
    """Bytes a second that a copy on the device moves."""
    source = torch.zeros(COPIED // dtype.itemsize, dtype=dtype, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _seconds(lambda: target.copy_(source))


def _measure() -> list[tuple[object, ...]]:
    """Bandwidth of every path of smoothing."""
    rows = []
    for dtype in DTYPES:
        copied = _copied(dtype)
        x = torch.zeros(MEASURED, dtype=dtype, device=DEVICE)
        paths = [
            (f"{name}, {rounding}{said}", tasks_for(x[ahead:], DISTRIBUTIONS[name], rounding=rounding), 2 * x.nbytes)
            for kind, name, rounding in KINDS
            for ahead, said in ((0, ""), (1, ", 1 element ahead"))
            if kind == dtype
        ]
        paths.append(("normal, elements apart", _apart(x), 2 * x.nbytes))
        paths.append(("stored values", _stored(x), 2 * x.nbytes + 4 * x.numel()))
        for case, tasks, moved in paths:
            rows.append(_compared("smooth_", dtype, case, moved, _seconds(cuda.prepare(tasks).run), copied))
    return rows


def _apart(x: torch.Tensor) -> list[table.BoxTask]:
    """All elements in an order in which neighbours are eight apart: each has a block of draws of its own."""
    (task,) = tasks_for(x, DISTRIBUTIONS["normal"])
    rows = x.numel() // 8
    box = {"size": (8, rows), "memory_strides": (1, 8), "draw_strides": (rows, 1), "logical_strides": (rows, 1)}
    return [dataclasses.replace(task, **box)]


def _stored(x: torch.Tensor) -> list[table.BoxTask]:
    """Values of the model that was traced in place of draws."""
    (task,) = tasks_for(x, Constant(0.0))
    return [dataclasses.replace(task, distribution=table.TABLE, table=torch.zeros(x.numel(), device=DEVICE))]


def _measure_steps() -> list[tuple[object, ...]]:
    """AdamW of :data:`PARAMETERS` beside torch's, which keeps states in the parameter's dtype."""
    rows, n = [], math.prod(PARAMETERS)
    for dtype in (torch.float32, torch.bfloat16):
        copied = _copied(dtype)
        params = [torch.nn.Parameter(torch.zeros(PARAMETERS[1], dtype=dtype, device=DEVICE)) for _ in range(PARAMETERS[0])]
        for p in params:
            p.grad = torch.full_like(p, 1e-3)
        for way in ("fused", "foreach"):
            optimizer = torch.optim.AdamW(params, **{way: True})
            rows.append(_compared(f"torch AdamW {way}", dtype, "", 7 * dtype.itemsize * n, _seconds(optimizer.step), copied))
        for state in (state for kind, state in STEPS if kind == dtype):
            ways = [{}, {"max_norm": 1.0}, {"capturable": True}]
            if dtype == torch.bfloat16:
                ways += [{"stochastic_rounding": True}, {"compensation": "kahan"}]
            for way in ways:
                # Clipping reads the gradients once more; what compensates is read and written.
                arrays = 3 + ("max_norm" in way) + 2 * ("compensation" in way)
                moved = (arrays * dtype.itemsize + 4 * STATE_BYTES[state]) * n
                optimizer = FusedAdamW(params, state_dtype=state, **way)
                case = ", ".join([f"{state} states", *way])
                rows.append(_compared("FusedAdamW", dtype, case, moved, _seconds(optimizer.step), copied))
    return rows


def _compared(what: str, dtype: torch.dtype, case: str, moved: int, seconds: float, copied: float) -> tuple[object, ...]:
    reached = moved / seconds
    return what, str(dtype), case, round(seconds * 1e6), round(reached / 1e9), round(copied / 1e9), round(reached / copied, 3)


def _write(rows: list[tuple[object, ...]]) -> None:
    """Print the rows and write them to a file."""
    header = ("what", "dtype", "case", "microseconds", "GB/s", "copy GB/s", "share")
    for row in (header, *rows):
        print("  ".join(f"{cell!s:<20}" for cell in row))
    OUT.parent.mkdir(exist_ok=True)
    with OUT.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("device", "torch", *header))
        writer.writerows((torch.cuda.get_device_name(), torch.__version__, *row) for row in rows)


if __name__ == "__main__":
    sys.exit(main())
