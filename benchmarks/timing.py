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

RESULTS = Path(__file__).parent / "results"


def interleaved(contenders: Mapping[str, Callable[[], object]], runs: int, warmup: int = 1) -> dict[str, list[float]]:
    """Seconds of every contender, taken in turn so that a drift of the machine's speed hits all alike.

    Args:
        contenders: Name to function without arguments.
        runs: Counted rounds.
        warmup: Rounds that are not counted, first.

    Returns:
        Name to seconds, one a round, in order.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(warmup + runs):
        for name, function in contenders.items():
            begin = time.perf_counter()
            function()
            if turn >= warmup:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratio(slow: list[float], fast: list[float]) -> float:
    """Median of the ratios of paired rounds."""
    return statistics.median(a / b for a, b in zip(slow, fast))


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
