"""What does it bring FusedAdamW to have the parameters of a bucket side by side in memory?

The same step over 1e8 parameters in 321 tensors of their own, and over as many that ``flat_parameters=True`` has moved,
interleaved in one process; the median of paired ratios, flat over not flat.

Run from the repository root: ``python benchmarks/bench_flat_parameters.py [--elements 1e8] [--runs 9] [--threads 1 2]``.
"""

from __future__ import annotations

import argparse
import statistics

import torch
from bench_optimizer import CASES, model
from timing import interleaved, ratio, write_rows

import sff_fast

STATES = {"fp32": ("float32", "int8"), "bf16": ("bfloat16", "int8")}


def measure(case: str, state_dtype: str, elements: int, runs: int, threads: int) -> dict[str, object]:
    """One precision of parameters and states."""
    torch.set_num_threads(threads)
    steps = {}
    for flat in (False, True):
        optimizer = sff_fast.FusedAdamW(model(elements, CASES[case]), state_dtype=state_dtype, flat_parameters=flat)
        steps["flat" if flat else "apart"] = optimizer.step
    seconds = interleaved(steps, runs, warmup=2)
    return {
        "case": f"{case} parameters, {state_dtype} states",
        "threads": threads,
        "elements": elements,
        "runs": runs,
        "apart_ns": f"{statistics.median(seconds['apart']) / elements * 1e9:.4f}",
        "flat_ns": f"{statistics.median(seconds['flat']) / elements * 1e9:.4f}",
        "ratio": f"{ratio(seconds['flat'], seconds['apart']):.4f}",
    }


def main() -> None:
    """Measure, print, and append to benchmarks/results/flat-parameters.csv."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--elements", type=float, default=1e8, help="parameters (default 1e8)")
    parser.add_argument("--runs", type=int, default=9, help="counted rounds (default 9)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="CPU threads (default 1 2)")
    parser.add_argument("--no-csv", action="store_true", help="print only")
    settings = parser.parse_args()
    rows = []
    for threads in settings.threads:
        for case, states in STATES.items():
            for state_dtype in states:
                rows.append(measure(case, state_dtype, int(settings.elements), settings.runs, threads))
                print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    if not settings.no_csv:
        print(f"written to {write_rows('flat-parameters', rows)}")


if __name__ == "__main__":
    main()
