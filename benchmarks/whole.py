"""Whole models: warm against the peers, cold in a fresh process, extra memory, and weights mapped from a file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import torch
from models import ALPHA, FACTORIES, interpolate_with, torch_draw
from timing import interleaved, row

import sff_fast

HERE = Path(__file__).resolve().parent
SECOND = {"Timer-67M": {1: ">= 18", 2: ">= 18"}, "Chronos-T5-base": {1: ">= 16", 2: ">= 16"}}
LOOP = {"Timer-67M": {1: ">= 10", 2: ">= 14"}, "Chronos-T5-base": {1: ">= 8.5", 2: ">= 14"}}
MEMORY_LIMIT = 1 << 20


def warm(name: str, runs: int, threads: int) -> list:
    """Against building the second model and interpolating, and against a loop over the plan with one scratch tensor."""
    factory = FACTORIES[name]
    model, plan = factory(), sff_fast.trace(factory)
    elements = sum(p.numel() for p in model.parameters())
    scratch = torch.empty(max(p.numel() for p in model.parameters()))
    drawn = [(p, plan[key].segments[0].distribution) for key, p in model.named_parameters()]

    def loop() -> None:
        with torch.no_grad():
            for p, distribution in drawn:
                view = scratch[: p.numel()].view(p.shape)
                torch_draw(view, distribution)
                p.lerp_(view, 1 - ALPHA)

    def ours() -> None:
        sff_fast.smooth_(model, plan, ALPHA, seed=1, threads=threads, again=True)

    seconds = interleaved(
        {"ours": ours, "torch loop": loop, "second model": lambda: interpolate_with(model, factory())}, max(3, runs // 2)
    )
    near = interleaved({"limit": lambda: [p.detach().mul_(0.999) for p in model.parameters()], "ours": ours}, 2 * runs + 1)
    return [
        row(name, near, "limit", elements, threads),
        row(name, seconds, "torch loop", elements, threads, LOOP[name].get(threads, "")),
        row(name, seconds, "second model", elements, threads, SECOND[name].get(threads, "")),
    ]


def _child(*arguments: object) -> dict[str, float]:
    """What a fresh process of benchmarks/child.py prints."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(HERE / "child.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed: {done.stderr.strip()}")
    return json.loads(done.stdout)


def cold(name: str, runs: int, threads: int) -> list:
    """Trace and smooth once in a fresh process after its imports, against the reference in another one."""
    seconds: dict[str, list[float]] = {"ours": [], "second model": []}
    elements = 0
    for _ in range(max(3, runs // 2)):
        for contender, values in seconds.items():
            answer = _child("cold", name, contender, threads)
            values.append(answer["seconds"])
            elements = int(answer["elements"])
    return [row(f"{name} cold", seconds, "second model", elements, threads, ">= 8" if threads == 1 else "")]


def memory(name: str, threads: int) -> list:
    """Growth of the peak of resident memory during ``smooth_``."""
    answer = _child("memory", name, threads)
    extra, elements = int(answer["bytes"]), int(answer["elements"])
    return [
        {
            "case": f"{name} extra peak, bytes",
            "isa": "widest",
            "threads": threads,
            "elements": elements,
            "runs": 1,
            "ours_ns": "",
            "peer": "parameters",
            "peer_ns": "",
            "ratio": extra,
            "of": "bytes",
            "must": f"<= {MEMORY_LIMIT}",
            "holds": "yes" if extra <= MEMORY_LIMIT else "no",
        }
    ]
