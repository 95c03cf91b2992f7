"""What does the fine-tuning loop cost over a bare forward pass, backward pass and optimizer step?

An epoch of the loop (shuffling, gathering the windows, learning-rate schedule, checks, progress, log) after a validation, and as
many bare steps take turns on one model, Timer at its published 67 million parameters, with one optimizer. The validation's
forecasts are not timed, but what the loop does to go from training to validation and back is: giving freed memory back, and
getting it again. ``--clipping`` also times what exact clipping costs where gradients are released: a second forward and backward
pass.

Run from the repository root: ``python benchmarks/bench_loop.py [--batch 32] [--steps 32] [--runs 5] [--threads N] [--clipping]``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from timing import interleaved, ratio, write_rows

from sff_fast.adapters.timer import TimerAdapter
from sff_fast.data import Batch, ForecastData, Table
from sff_fast.models import Timer, TimerConfig
from sff_fast.optim import FusedAdamW
from sff_fast.training import finetune
from sff_fast.training.config import resolve_settings
from sff_fast.training.interrupts import StopRequest
from sff_fast.training.log import RunLog
from sff_fast.training.loop import Trainer
from sff_fast.training.progress import Silent
from sff_fast.training.runtime import reset_peak_memory
from sff_fast.training.stages import Stages
from sff_fast.training.stepping import Stepper
from sff_fast.training.strategies import trainable
from sff_fast.training.weights import BestWeights

LIMIT = 1.02


class TimedStages(Stages):
    """Stages that know how long giving memory back has taken."""

    seconds = 0.0

    def _give_back(self) -> None:
        began = time.perf_counter()
        super()._give_back()
        self.seconds += time.perf_counter() - began


def measure(batch: int, runs: int, count: int, optimizer: str) -> dict[str, object]:
    """Epochs of ``count`` steps, interleaved with as many bare steps."""
    adapter = TimerAdapter(Timer(TimerConfig()).eval())
    rows = 672 + 96 + batch * count - 1
    values = np.random.default_rng(0).normal(size=(3 * rows, 1))
    data = ForecastData(Table(values, ["a"]), f"{1 / 3},{1 / 3},{1 / 3}", 672, 96)
    taken = inspect.signature(resolve_settings).parameters
    given = {name: p.default for name, p in inspect.signature(finetune).parameters.items() if name in taken}
    given.pop("adapter")
    settings = resolve_settings(adapter, **{**given, "batch_size": batch, "optimizer": optimizer, "strategy": "ff"})
    assert len(data.train) == batch * count, len(data.train)
    with tempfile.TemporaryDirectory() as folder, contextlib.closing(RunLog(Path(folder) / "log.jsonl")) as log:
        stages = TimedStages("cpu")
        trainer = Trainer(
            adapter,
            data,
            settings,
            log=log,
            store=None,
            frozen={},
            best=BestWeights(None),
            model_directory=None,
            stop=StopRequest(),
            progress=Silent(),
            stages=stages,
        )
        (phase,) = trainer.phases
        with trainable(adapter, phase) as parameters:
            stepper = Stepper(adapter, data, settings, parameters)
            trainer._optimizer = stepper.optimizer
            windows = data.train.batch(torch.arange(batch))
            adapter.model.train()

            def loop() -> float:
                """What an epoch adds to the time of its validation's forecasts."""
                stages.seconds = 0.0
                trainer._validate()
                given = stages.seconds
                trainer.at.position = 0
                began = time.perf_counter()
                trainer._train_epoch(phase, stepper)
                assert trainer.at.position == batch * count
                return given + time.perf_counter() - began

            def step() -> None:
                adapter.loss(windows).backward()
                stepper.optimizer.step()
                stepper.optimizer.zero_grad(set_to_none=True)

            def bare() -> float:
                began = time.perf_counter()
                for _ in range(count):
                    step()
                return time.perf_counter() - began

            reset_peak_memory("cpu")  # as a run: then it evaluates, then it trains
            trainer._validate()
            adapter.model.train()
            stages.begin_phase()
            seconds: dict[str, list[float]] = {"bare": [], "loop": []}
            for turn in range(1 + runs):
                for name, function in (("bare", bare), ("loop", loop)):
                    adapter.model.train()
                    step()  # not counted: what one leaves behind is not the other one's cost
                    value = function()
                    if turn:
                        seconds[name].append(value)
    value = ratio(seconds["loop"], seconds["bare"])
    return {
        "case": f"Timer-67M, batch {batch}, epochs of {count} steps, {optimizer}",
        "threads": torch.get_num_threads(),
        "runs": runs,
        "bare_ms": f"{statistics.median(seconds['bare']) / count * 1e3:.1f}",
        "loop_ms": f"{statistics.median(seconds['loop']) / count * 1e3:.1f}",
        "ratio": f"{value:.4f}",
        "must": f"<= {LIMIT}",
        "holds": "yes" if value <= LIMIT else "no",
    }


def clipping(batch: int, runs: int) -> dict[str, object]:
    """Steps with released gradients: clipped by the exact norm of all of them, in two passes, and not clipped."""
    adapter = TimerAdapter(Timer(TimerConfig()).eval())
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(batch, 672 + 96, 1, generator=generator)
    windows = Batch(values[:, :672], values[:, 672:], torch.zeros(batch, dtype=torch.int64))
    optimizer = FusedAdamW(adapter.model.parameters(), lr=1e-5, release_gradients=True)
    adapter.model.train()

    def step(max_norm: float | None) -> None:
        optimizer.max_norm = max_norm
        optimizer.backward(lambda: adapter.loss(windows))
        optimizer.step()

    seconds = interleaved({"bare": lambda: step(None), "loop": lambda: step(1.0)}, runs, warmup=2)
    return {
        "case": f"Timer-67M, batch {batch}, released gradients, clipped by the global norm over not clipped",
        "threads": torch.get_num_threads(),
        "runs": runs,
        "bare_ms": f"{statistics.median(seconds['bare']) * 1e3:.1f}",
        "loop_ms": f"{statistics.median(seconds['loop']) * 1e3:.1f}",
        "ratio": f"{ratio(seconds['loop'], seconds['bare']):.4f}",
        "must": "",
        "holds": "",
    }


def main() -> None:
    """Measure, print, and append to benchmarks/results/loop.csv."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--batch", type=int, default=32, help="windows in a step (default 32)")
    parser.add_argument("--runs", type=int, default=5, help="counted rounds (default 5)")
    parser.add_argument("--steps", type=int, default=32, help="steps in an epoch (default 32)")
    parser.add_argument("--threads", type=int, help="CPU threads (default torch's choice)")
    parser.add_argument("--optimizers", nargs="+", default=["adam", "fused-adam"], help="default adam fused-adam")
    parser.add_argument("--clipping", action="store_true", help="also the cost of exact clipping with released gradients")
    parser.add_argument("--no-csv", action="store_true", help="print only")
    settings = parser.parse_args()
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    cases = [functools.partial(measure, count=settings.steps, optimizer=optimizer) for optimizer in settings.optimizers]
    cases += [clipping] if settings.clipping else []
    rows = []
    for case in cases:
        row = case(settings.batch, settings.runs)
        rows.append(row)
        verdict = f"  must {row['must']}: {row['holds']}" if row["must"] else ""
        print(
            f"{row['case']}, {row['threads']} thread(s): {row['bare_ms']} ms, {row['loop_ms']} ms, ratio {row['ratio']}{verdict}",
            flush=True,
        )
    if not settings.no_csv:
        print(f"written to {write_rows('loop', rows)}")


if __name__ == "__main__":
    main()
