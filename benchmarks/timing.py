"""What the benchmarks share: interleaved timing, medians of paired ratios, and a CSV row with machine and versions."""

from __future__ import annotations

import csv
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import torch

import sff_fast

LEAST = ("limit", "not smoothed", "alone", "scale alone")
"""Peers that do less than ours must, or have the machine to themselves: ours is a multiple of them."""
RESULTS = Path(__file__).parent / "results"


WINDOW, QUIET = 0.02, 0.002
"""Seconds that are looked at, longer than the ticks by which threads are accounted for, and what others may compute in them."""


def rest() -> None:
    """Wait until no other thread of this process computes.

    OpenMP's threads keep turning for a while after a parallel loop, milliseconds with GNU's library, 200 with LLVM's. On as many
    threads as the machine has cores, whoever is timed next would share the cores with them. This thread turns meanwhile: a
    core that has slept is slow at first.

    Raises:
        RuntimeError: Another thread computes on and on.
    """
    for _ in range(100):
        others, end = time.process_time() - time.thread_time(), time.perf_counter() + WINDOW
        while time.perf_counter() < end:
            pass
        if time.process_time() - time.thread_time() - others < QUIET:
            return
    raise RuntimeError("the process is never at rest: another thread of it computes, and would be measured too")


def interleaved(
    contenders: Mapping[str, Callable[[], object]], runs: int, warmup: int = 1, before: Callable[[], object] = lambda: None
) -> dict[str, list[float]]:
    """Seconds of every contender, taken in turn so that a drift of the machine's speed hits all alike.

    Each begins when the process is at :func:`rest`.

    Args:
        contenders: Name to function without arguments.
        runs: Counted rounds.
        warmup: Rounds that are not counted, first.
        before: Called before each contender, not timed: what one leaves behind (a heap given back, a cold cache) must not be
            another one's cost. Default: nothing.

    Returns:
        Name to seconds, one a round, in order.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + runs):
        for name, function in contenders.items():
            before()
            rest()
            begin = time.perf_counter()
            function()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios of paired rounds."""
    return statistics.median(a / b for a, b in zip(slow, fast))


def row(
    case: str,
    seconds: Mapping[str, list[float]],
    peer: str,
    elements: int,
    threads: int,
    must: str = "",
    ours: str = "ours",
    isa: str = "",
) -> dict[str, object]:
    """The figures of one pair of contenders.

    Args:
        case: What was measured.
        seconds: From :func:`interleaved`.
        peer: The contender that ``ours`` is compared with.
        elements: Elements that both of them change.
        threads: CPU threads of both.
        must: The limit, such as ``"<= 1.08"`` for ours over peer or ``">= 11"`` for peer over ours; empty for none.
        ours: The contender that is examined.
        isa: The instruction set of ours, where it was forced.

    Returns:
        A CSV row; ``ratio`` is ours / peer for an upper limit or a peer that does less, else peer / ours.
    """
    upper = must.startswith("<=") or peer in LEAST
    value = ratio(seconds[ours], seconds[peer]) if upper else ratio(seconds[peer], seconds[ours])
    holds = ""
    if must:
        bound = float(must.split()[1])
        holds = "yes" if (value <= bound if upper else value >= bound) else "no"
    return {
        "case": case,
        "isa": isa or "widest",
        "threads": threads,
        "elements": elements,
        "runs": len(seconds[ours]),
        "ours_ns": f"{statistics.median(seconds[ours]) / elements * 1e9:.4f}",
        "peer": peer,
        "peer_ns": f"{statistics.median(seconds[peer]) / elements * 1e9:.4f}",
        "ratio": f"{value:.3f}",
        "of": "ours / peer" if upper else "peer / ours",
        "must": must,
        "holds": holds,
    }


def show(r: Mapping[str, object]) -> None:
    """One line a row."""
    limit = f"  must {r['must']}: {r['holds']}" if r["must"] else ""
    print(
        f"{r['case']:<28} {r['isa']:<8} {r['threads']}T  {r['ours_ns']:>8} ns  {r['peer']:<16} {r['peer_ns']:>8} ns  "
        f"{r['of']} {r['ratio']:>7}{limit}",
        flush=True,
    )


def machine() -> dict[str, str]:
    """What a figure depends on besides the code."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.split(":", 1)[1].strip()
                break
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "cpu": cpu,
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "sff_fast": sff_fast.__version__,
        "backend": sff_fast.available_backends()["cpu"],
    }


def latest_rows(benchmark: str) -> list[dict[str, str]]:
    """The latest row of every case in ``benchmarks/results/<benchmark>.csv``, in order of their first appearance."""
    with (RESULTS / f"{benchmark}.csv").open(newline="") as file:
        rows = {tuple(row[key] for key in ("case", "isa", "threads", "peer")): row for row in csv.DictReader(file)}
    return list(rows.values())


def write_rows(benchmark: str, rows: list[dict[str, object]]) -> Path:
    """Append rows to ``benchmarks/results/<benchmark>.csv``, each with machine and versions.

    Raises:
        SystemExit: The file has other columns: it belongs to another version of the benchmark.
    """
    path = RESULTS / f"{benchmark}.csv"
    RESULTS.mkdir(exist_ok=True)
    full = [{**row, **machine()} for row in rows]
    new = not path.exists()
    if not new:
        with path.open(newline="") as file:
            if next(csv.reader(file)) != list(full[0]):
                raise SystemExit(f"{path} has other columns: move it away first")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, list(full[0]))
        if new:
            writer.writeheader()
        writer.writerows(full)
    return path


def latest_by(benchmark: str, *key: str) -> dict[tuple[str, ...], dict[str, str]]:
    """The newest row of each case in ``benchmarks/results/<benchmark>.csv``, in the order in which cases came first."""
    with (RESULTS / f"{benchmark}.csv").open(newline="") as file:
        return {tuple(row[column] for column in key): row for row in csv.DictReader(file)}


def replace_table(text: str, name: str, lines: list[str]) -> str:
    """A page with the lines after ``<!-- name: ... -->``, up to the next empty one, replaced."""
    head, mark, rest = text.partition(f"<!-- {name}: ")
    comment, _, after = rest.partition("\n")
    if not mark:
        raise ValueError(f"no <!-- {name}: ... --> in the page")
    following = after[1:] if after.startswith("\n") else after.partition("\n\n")[2]  # no table there yet, or one
    return head + mark + comment + "\n" + "\n".join(lines) + "\n\n" + following
