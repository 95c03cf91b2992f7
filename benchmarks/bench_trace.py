"""How long a trace takes and what memory it commits, against really constructing the model.

    python benchmarks/bench_trace.py                            # Timer; the other models need `make models-env`
    python benchmarks/bench_trace.py timer:67m moirai_moe:base  # builders and sizes of tests/model_builders.py

Every figure comes from a process of its own, in which nothing else was traced but the builder's tiny size, so that the
import of the model's package is not counted. The ``cpu`` columns are the process's own time, which other processes on a busy
machine do not lengthen; ``extra_mb`` is the growth of the process's high-water mark of resident memory.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from timing import write_rows

LIMITS = {"timer:67m": (0.030, None), "moirai_moe:base": (0.5, 20.0)}
"""Seconds, and megabytes of resident memory, that a trace should stay below."""


def _resident() -> float:
    """High-water mark of resident memory in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(model: str, runs: int, construct: bool) -> dict[str, object]:
    """Trace or construct one model in this process.

    Args:
        model: ``builder:size``.
        runs: Traces after the first one.
        construct: Whether to construct the model once instead.

    Returns:
        The figures.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
    from model_builders import BUILDERS

    import sff_fast

    name, size = model.split(":")
    sff_fast.trace(lambda: BUILDERS[name]("tiny"))
    before, begin, used = _resident(), time.perf_counter(), time.process_time()
    if construct:
        BUILDERS[name](size)
        return {"construct": time.perf_counter() - begin, "construct_mb": _resident() - before}
    plan = sff_fast.trace(lambda: BUILDERS[name](size))
    first, first_cpu, extra = time.perf_counter() - begin, time.process_time() - used, _resident() - before
    more, cpu = [], []
    for _ in range(runs):
        begin, used = time.perf_counter(), time.process_time()
        again = sff_fast.trace(lambda: BUILDERS[name](size))
        more.append(time.perf_counter() - begin)
        cpu.append(time.process_time() - used)
        assert again.hash == plan.hash, "two traces of one constructor differ"
    return {
        "parameters": sum(p.numel for p in plan.parameters.values()),
        "tensors": len(plan),
        "first": first,
        "first_cpu": first_cpu,
        "more": more,
        "cpu": cpu,
        "extra_mb": extra,
    }


def _in_new_process(model: str, *options: str) -> dict:
    command = [sys.executable, __file__, model, "--here", *options]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def row(model: str, processes: int, runs: int, threads: int) -> dict[str, object]:
    """All figures of one model, as a CSV row."""
    traced, built = [], []
    for _ in range(processes):
        traced.append(_in_new_process(model, "--runs", str(runs), "--threads", str(threads)))
        built.append(_in_new_process(model, "--construct", "--threads", str(threads)))
    seconds = [t["first"] for t in traced]
    later = [s for t in traced for s in t["more"]]
    spread = statistics.quantiles(later, n=10) if len(later) > 1 else later * 9
    limit, limit_mb = LIMITS.get(model, (None, None))
    return {
        "model": model,
        "parameters": traced[0]["parameters"],
        "tensors": traced[0]["tensors"],
        "first_ms": round(1e3 * statistics.median(seconds), 2),
        "p20_ms": round(1e3 * spread[1], 2),
        "p50_ms": round(1e3 * statistics.median(later), 2),
        "p80_ms": round(1e3 * spread[7], 2),
        "first_cpu_ms": round(1e3 * statistics.median(t["first_cpu"] for t in traced), 2),
        "cpu_p50_ms": round(1e3 * statistics.median(s for t in traced for s in t["cpu"]), 2),
        "limit_ms": "" if limit is None else 1e3 * limit,
        "extra_mb": round(max(t["extra_mb"] for t in traced), 1),
        "limit_mb": "" if limit_mb is None else limit_mb,
        "construct_ms": round(1e3 * statistics.median(b["construct"] for b in built), 1),
        "construct_mb": round(max(b["construct_mb"] for b in built), 1),
        "threads": threads,
    }


def main() -> None:
    """Measure, print and append to the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["timer:67m"], help="builder:size, default timer:67m")
    parser.add_argument("--processes", type=int, default=3, help="processes a model, default 3")
    parser.add_argument("--runs", type=int, default=5, help="further traces in each process, default 5")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, default 1")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--construct", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        torch.set_num_threads(options.threads)
        print(json.dumps(measure(options.models[0], options.runs, options.construct)))
        return
    rows = [row(model, options.processes, options.runs, options.threads) for model in options.models]
    for line in rows:
        print(", ".join(f"{key} {value}" for key, value in line.items()))
    print(f"appended to {write_rows('trace', rows)}")


if __name__ == "__main__":
    main()
