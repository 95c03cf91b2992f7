"""Smoothing on a machine that has something else to do: a process that computes without pause, on no core in particular."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from models import ALPHA, DISTRIBUTIONS, Flat
from timing import interleaved, row

import sff_fast


@contextmanager
def neighbour() -> Iterator[Callable[[Callable[[], object]], Callable[[], None]]]:
    """Another process that never waits, stopped but for the time of the functions that are wrapped in what this gives."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])

    def beside(function: Callable[[], object]) -> Callable[[], None]:
        def run() -> None:
            os.kill(process.pid, signal.SIGCONT)
            function()
            os.kill(process.pid, signal.SIGSTOP)

        return run

    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield beside
    finally:
        process.kill()
        process.wait()


def busy(elements: int, runs: int, threads: int) -> list:
    """Uniform fp32 beside one busy process over the same alone, and torch's own scale of the same memory likewise.

    The limit is the fair share of the cores that are there, and a tenth for being moved between them: with two threads on two
    cores 1.5 times the time where work goes to whoever is free, against twice the time where every thread has its part and the
    slowest one is waited for.
    """
    plan, model = Flat.plan(DISTRIBUTIONS["uniform"], elements, torch.float32), Flat(torch.zeros(elements))

    def ours() -> None:
        sff_fast.smooth_(model, plan, ALPHA, seed=1, threads=threads, again=True)

    def scale() -> None:
        model.w.mul_(0.999)

    with neighbour() as beside:
        contenders = {"alone": ours, "ours": beside(ours), "scale alone": scale, "scale": beside(scale)}
        seconds = interleaved(contenders, 4 * runs + 1)
    case, cores = "beside a busy process", os.cpu_count() or 1
    fair = max(1.0, min(threads, cores) * (threads + 1) / (threads * cores))
    return [
        row(f"uniform float32 {case}", seconds, "alone", elements, threads, f"<= {1.1 * fair:.2f}"),
        row(f"in-place scale {case}", seconds, "scale alone", elements, threads, ours="scale"),
    ]
