"""How fast is a step of FusedAdamW, against torch's fused AdamW, 8-bit peers and the memory itself?

Contenders, interleaved in one process over the same 1e8 parameters in 321 tensors:

* limit: the bytes that a step with moments of the parameters' dtype must move, at the rate of the fastest of three streams; each
  contender's time is also divided by the limit of its own bytes;
* torch: ``torch.optim.AdamW(fused=True)``, states of the parameters' dtype;
* ours: each precision of the states;
* bitsandbytes, torchao: their 8-bit AdamW, where installed, over a fiftieth of the elements (they are slow on a CPU).

In the same run, one step of ours is checked against torch's on float32. Ours with float32 parameters also steps tables that
stay in the second-level cache, on one thread: what a step takes where memory does not count; and as many tensors of 64 elements,
against torch's: what a step asks of every tensor before anything is computed.

Run from the repository root:
``python benchmarks/bench_optimizer.py [--elements 1e8] [--runs 15] [--threads 1 2] [--cases fp32 bf16]``.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from timing import interleaved, latest_by, ratio, replace_table, write_rows

import sff_fast
from sff_fast.optim import kernels

DOCS = Path(__file__).resolve().parents[1] / "docs" / "optimizer.md"
CASES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TENSORS = 321
LIMITS = {
    ("fp32", "ours float32"): ("torch fused", {1: 0.95, 2: 0.98}),
    ("fp32", "ours int8"): ("ours float32", {1: 1.0, 2: 0.65}),
    ("bf16", "ours bfloat16"): ("torch fused", {1: 0.45, 2: 0.62}),
}
"""What each may take of another's time, by threads."""

LEAST_OVER_PEERS = 30.0
"""How often ours with int8 states steps while an 8-bit peer steps once, at least."""

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


STATE_BYTES = {"float32": 8.0, "bfloat16": 4.0, "int8": 2 + 2 * 4 / 256}
"""Of both moments of an element."""

CACHED, CACHED_STEPS = (1 << 14, 1 << 16), 400
"""Elements of two tables that stay in the cache, and steps in a round: their difference is free of what a call takes."""

CALLED, CALLED_STEPS = 64, 20
"""Elements of tensors whose step is all calls, and steps in a round."""


def traffic(contender: str, dtype: torch.dtype) -> float:
    """Bytes an element that a step must move: gradient read; parameter, moments and compensation read and written."""
    if contender in ("bitsandbytes", "torchao"):
        state = "int8"
    else:
        state = next((state for state in STATE_BYTES if state in contender), str(dtype).removeprefix("torch."))
    kept = 2 * dtype.itemsize if "kahan" in contender else 0
    return 3 * dtype.itemsize + 2 * STATE_BYTES[state] + kept


MOVES = {"scale": 2, "add": 3, "read": 1}
"""Simple streams over arrays of the parameters' bytes, and how many such arrays each moves."""


def streams(elements: int, width: int) -> dict[str, Callable[[], object]]:
    """Loops of torch that do next to nothing but move memory: which one is fastest differs from machine to machine."""
    target, other = torch.ones(elements * width // 4), torch.zeros(elements * width // 4)
    return {"scale": lambda: target.mul_(1.0), "add": lambda: target.add_(other), "read": target.sum}


def limit(seconds: dict[str, list[float]]) -> list[float]:
    """Seconds of a step that moves its seven arrays as fast as the fastest stream moved its own, round by round.

    Read gradient; read and write parameter and both moments.
    """
    rounds = zip(*(seconds[name] for name in MOVES))
    return [7 * min(value / moves for value, moves in zip(values, MOVES.values())) for values in rounds]


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


def in_cache(runs: int) -> list[dict[str, object]]:
    """Steps of tables that stay in the second-level cache, on one thread: the loop alone, without calls and memory."""
    torch.set_num_threads(1)

    def repeat(table: np.ndarray, device: torch.device) -> None:
        for _ in range(CACHED_STEPS):
            kernels.step(table, device)

    calls: dict[tuple[str, int], Callable[[], object]] = {}
    optimizers = []  # keep what tables point to
    for state, elements in itertools.product(("float32", "int8"), CACHED):
        param = torch.nn.Parameter(torch.randn(elements, generator=torch.Generator().manual_seed(1)) * 0.02)
        param.grad = param.detach().roll(1) * 0.05
        optimizers.append(sff_fast.FusedAdamW([param], state_dtype=state))
        optimizers[-1].step()
        ((bucket, active, grads),) = optimizers[-1]._work(optimizers[-1]._buckets())
        calls[f"ours {state}", elements] = functools.partial(repeat, bucket.tasks(active, grads, 1.0, True), param.device)
    taken = interleaved(calls, runs)
    small, large = CACHED
    seconds = {name: [b - a for a, b in zip(taken[name, small], taken[name, large])] for name in ("ours float32", "ours int8")}
    rows = [row("fp32, in the cache", name, 1, (large - small) * CACHED_STEPS, values) for name, values in seconds.items()]
    rows[1] |= {"of": "ours float32", "ratio": f"{ratio(seconds['ours int8'], seconds['ours float32']):.3f}"}
    return rows


def in_calls(runs: int) -> list[dict[str, object]]:
    """Steps of tensors so small that nothing counts but what a step asks of each of them, on one thread."""
    torch.set_num_threads(1)

    def repeat(optimizer: torch.optim.Optimizer) -> None:
        for _ in range(CALLED_STEPS):
            optimizer.step()

    params = [torch.nn.Parameter(torch.ones(CALLED)) for _ in range(TENSORS)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizers = {"torch fused": torch.optim.AdamW(params, fused=True)}
    optimizers |= {f"ours {state}": sff_fast.FusedAdamW(params, state_dtype=state) for state in ("float32", "int8")}
    seconds = interleaved({name: functools.partial(repeat, optimizer) for name, optimizer in optimizers.items()}, runs)
    count = TENSORS * CALLED * CALLED_STEPS
    return [
        row(f"fp32, {TENSORS} tensors of {CALLED}", name, 1, count, values)
        | {"over_torch": f"{ratio(values, seconds['torch fused']):.3f}"}
        for name, values in seconds.items()
    ]


def row(case: str, contender: str, threads: int, elements: int, values: list[float]) -> dict[str, object]:
    """A CSV row without what compares contenders."""
    return {
        "case": case,
        "contender": contender,
        "threads": threads,
        "elements": elements,
        "runs": len(values),
        "ns_per_element": f"{statistics.median(values) / elements * 1e9:.4f}",
        "bytes_per_element": f"{traffic(contender, CASES[case[:4]]):.2f}",
        "over_torch": "",
        "over_limit": "",
        "of": "",
        "ratio": "",
        "must": "",
        "holds": "",
    }


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
    seconds = interleaved(contenders | streams(elements, dtype.itemsize), runs, warmup=2)
    seconds["limit"] = limit(seconds)
    for name in MOVES:
        del seconds[name]
    small = elements // PEER_PARTS
    slow = interleaved(peers(small, dtype), 3)
    rows = []
    for name, values in [*seconds.items(), *slow.items()]:
        count = small if name in slow else elements
        of, bounds = LIMITS.get((case, name), ("", {}))
        value = ratio(values, seconds[of]) if of else 0.0
        must = f"<= {bounds[threads]}" if threads in bounds else ""
        holds = value <= bounds.get(threads, math.inf)
        if name in slow:
            of, value, must = "ours int8", ratio(values, seconds["ours int8"]) * elements / count, f">= {LEAST_OVER_PEERS}"
            holds = value >= LEAST_OVER_PEERS
        base = ratio(values, seconds["torch fused"]) * elements / count
        over = ratio(values, seconds["limit"]) * elements / count * (7 * dtype.itemsize) / traffic(name, dtype)
        rows.append(
            {
                **row(case, name, threads, count, values),
                "over_torch": f"{base:.3f}",
                "over_limit": f"{over:.3f}",
                "of": of,
                "ratio": f"{value:.3f}" if must else "",
                "must": must,
                "holds": ("yes" if holds else "no") if must else "",
            }
        )
    return rows


def table(rows: Iterable[Mapping[str, str]]) -> list[str]:
    """The lines of the table in docs/optimizer.md."""
    lines = [
        "| parameters | step | threads | ns an element | over torch fused | bytes an element | over the limit of these bytes |"
        " limit of this project |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        missed = " (missed)" if row["holds"] == "no" else ""
        if row["must"].startswith(">="):
            must = f"{row['of']} is {row['ratio']} times as fast, must be {row['must']}{missed}"
        elif row["ratio"]:
            must = f"{row['ratio']} of {row['of']}" + (f", must be {row['must']}{missed}" if row["must"] else "")
        else:
            must = ""
        names = ("case", "contender", "threads", "ns_per_element", "over_torch", "bytes_per_element", "over_limit")
        lines.append(f"| {' | '.join([*(row[name] for name in names), must])} |")
    return lines


def write_table() -> None:
    """The newest rows into docs/optimizer.md."""
    rows = latest_by("optimizer", "case", "contender", "threads").values()
    DOCS.write_text(replace_table(DOCS.read_text(), "speed", table(rows)))
    print(f"written to {DOCS}")


def main() -> None:
    """Run all cases, print them, append them to benchmarks/results/optimizer.csv and write the table in docs/optimizer.md."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--elements", type=float, default=1e8, help="parameters (default 1e8)")
    parser.add_argument("--runs", type=int, default=15, help="counted rounds (default 15)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts (default 1 2)")
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES), help="default fp32 bf16")
    parser.add_argument("--no-csv", action="store_true", help="print only")
    settings = parser.parse_args()
    check()
    rows = []

    def add(some: list[dict[str, object]]) -> None:
        for row in some:
            rows.append(row)
            against = "".join(f" = {row[key]} x {key[5:]}" for key in ("over_torch", "over_limit") if row[key])
            found = f"; {row['ratio']} x {row['of']}" if row["ratio"] else ""
            found += f", must {row['must']}: {row['holds']}" if row["must"] else ""
            name = f"{row['case']} {row['contender']:<26} {row['threads']} thread(s)"
            print(f"{name} {row['ns_per_element']} ns/element{against}{found}", flush=True)

    if "fp32" in settings.cases and 1 in settings.threads:
        add(in_cache(settings.runs))
        add(in_calls(settings.runs))
    for threads in settings.threads:
        for case in settings.cases:
            add(measure(case, CASES[case], int(settings.elements), settings.runs, threads))
    if not settings.no_csv:
        print(f"written to {write_rows('optimizer', rows)}")
        write_table()


if __name__ == "__main__":
    main()
