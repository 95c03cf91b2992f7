"""How fast is a step of FusedAdamW, against torch's fused AdamW, 8-bit peers and the memory itself?

Contenders, interleaved in one process over the same 1e8 parameters in 321 tensors:

* limit: the bytes that a step must move (read gradient, read and write parameter and both moments of the parameter's dtype);
* torch: ``torch.optim.AdamW(fused=True)``, states of the parameters' dtype;
* ours: each precision of the states;
* bitsandbytes, torchao: their 8-bit AdamW, where installed, over a fiftieth of the elements (they are slow on a CPU).

In the same run, one step of ours is checked against torch's on float32.

Run from the repository root:
``python benchmarks/bench_optimizer.py [--elements 1e8] [--runs 7] [--threads 1 2] [--cases fp32 bf16]``.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from collections.abc import Callable

import torch
from timing import interleaved, ratio, write_rows

import sff_fast

CASES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TENSORS = 321
PEER_PARTS = 50
"""The 8-bit peers get one part in this many of the elements."""


def shapes(elements: int) -> list[int]:
    """Sizes like a transformer's: two thirds small (norms, biases), one third large, ``elements`` in all."""
    small, large = TENSORS * 2 // 3, TENSORS - TENSORS * 2 // 3
    each = (elements - small * 1024) // large
    return [1024] * small + [each] * (large - 1) + [elements - small * 1024 - each * (large - 1)]


def model(elements: int, dtype: torch.dtype) -> list[torch.nn.Parameter]:
    """Parameters with gradients."""
    generator = torch.Generator().manual_seed(1)
    params = []
    for n in shapes(elements):
        values = torch.randn(n, generator=generator)
        params.append(torch.nn.Parameter((values * 0.02).to(dtype)))
        params[-1].grad = (values.roll(1) * 1e-3).to(dtype)
    return params


def limit(elements: int, width: int) -> Callable[[], None]:
    """Moves a step's bytes for parameters and moments of ``width`` bytes: three arrays in place, and one that is read."""
    written = torch.ones(3 * elements * width // 4)
    read = torch.ones(elements * width // 4)

    def run() -> None:
        written.mul_(1.0)
        read.sum()

    return run


def check() -> None:
    """Ours against torch on a small model."""
    ours, theirs = model(3_000_000, torch.float32), model(3_000_000, torch.float32)
    sff_fast.FusedAdamW(ours).step()
    torch.optim.AdamW(theirs, fused=True).step()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)


def peers(elements: int, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """8-bit optimizers that are installed and run on a CPU."""
    found: dict[str, Callable[[], object]] = {}
    for package, name in (("bitsandbytes.optim", "AdamW8bit"), ("torchao.optim", "AdamW8bit")):
        try:
            optimizer = getattr(importlib.import_module(package), name)(model(elements, dtype))
        except ImportError:
            continue
        found[package.split(".")[0]] = optimizer.step
    return found


def measure(case: str, dtype: torch.dtype, elements: int, runs: int, threads: int) -> list[dict[str, object]]:
    """All contenders on parameters of one dtype; they share parameters and gradients, so that 1e8 elements fit."""
    torch.set_num_threads(threads)
    params = model(elements, dtype)
    states = ("float32", "int8") if dtype == torch.float32 else ("bfloat16", "int8")
    options: dict[str, dict[str, object]] = {f"ours {state}": {"state_dtype": state} for state in states}
    if dtype == torch.bfloat16:
        options["ours bfloat16, stochastic"] = {"state_dtype": "bfloat16", "stochastic_rounding": True}
        options["ours bfloat16, kahan"] = {"state_dtype": "bfloat16", "compensation": "kahan"}
    contenders: dict[str, Callable[[], object]] = {"torch fused": torch.optim.AdamW(params, fused=True).step}
    contenders |= {name: sff_fast.FusedAdamW(params, **kwargs).step for name, kwargs in options.items()}
    contenders["limit"] = limit(elements, dtype.itemsize)
    seconds = interleaved(contenders, runs, warmup=2)
    small = elements // PEER_PARTS
    slow = interleaved(peers(small, dtype), 3)
    rows = []
    for name, values in [*seconds.items(), *slow.items()]:
        count = small if name in slow else elements
        ns = statistics.median(values) / count * 1e9
        base = ratio(values, seconds["torch fused"]) * elements / count
        rows.append(
            {
                "case": case,
                "contender": name,
                "threads": threads,
                "elements": count,
                "runs": len(values),
                "ns_per_element": f"{ns:.4f}",
                "over_torch": f"{base:.3f}",
                "over_limit": f"{ratio(values, seconds['limit']) * elements / count:.3f}",
            }
        )
    return rows


def main() -> None:
    """Run all cases, print them, and append them to benchmarks/results/optimizer.csv."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--elements", type=float, default=1e8, help="parameters (default 1e8)")
    parser.add_argument("--runs", type=int, default=7, help="counted rounds (default 7)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts (default 1 2)")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="default fp32 bf16")
    parser.add_argument("--no-csv", action="store_true", help="print only")
    settings = parser.parse_args()
    check()
    rows = []
    for threads in settings.threads:
        for case in settings.cases:
            for row in measure(case, CASES[case], int(settings.elements), settings.runs, threads):
                rows.append(row)
                print(
                    f"{row['case']} {row['contender']:<26} {row['threads']} thread(s) {row['ns_per_element']} ns/element"
                    f" = {row['over_torch']} x torch fused = {row['over_limit']} x limit",
                    flush=True,
                )
    if not settings.no_csv:
        print(f"written to {write_rows('optimizer', rows)}")


if __name__ == "__main__":
    main()
