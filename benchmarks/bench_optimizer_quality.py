"""Do states of fewer bits learn as well?

A small network forecasts 24 hours from 96 on ETTh1 (all channels, standardised), from the same weights and batches for every
optimizer, over five seeds; some take over from another one in the middle. Prints the training loss of the last 200 steps and
the validation loss, each with its standard deviation over seeds and the mean difference to torch's AdamW seed by seed, and
draws the loss curves.

Run from the repository root: ``SFF_FAST_TEST_DATA=... python benchmarks/bench_optimizer_quality.py``; it writes
``benchmarks/results/optimizer_quality.csv`` and ``docs/img/optimizer-states.png``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from timing import write_rows

import sff_fast

CONTEXT, HORIZON, BATCH, TRAIN, LAST = 96, 24, 64, 8000, 200
PICTURE = Path(__file__).parent.parent / "docs" / "img" / "optimizer-states.png"

Make = Callable[[torch.nn.Module], torch.optim.Optimizer]


def ours(**options: object) -> Make:
    """A FusedAdamW with some options."""
    return lambda model: sff_fast.FusedAdamW(model.named_parameters(), lr=1e-3, **options)


def torchs(model: torch.nn.Module) -> torch.optim.Optimizer:
    """torch's AdamW."""
    return torch.optim.AdamW(model.parameters(), lr=1e-3)


CONTENDERS: dict[str, tuple[tuple[Make, ...], torch.dtype]] = {
    "torch AdamW, float32": ((torchs,), torch.float32),
    "float32 states": ((ours(),), torch.float32),
    "bfloat16 states": ((ours(state_dtype="bfloat16"),), torch.float32),
    "int8 states": ((ours(state_dtype="int8"),), torch.float32),
    "bfloat16 stochastic, int8 states": ((ours(state_dtype="int8", stochastic_rounding=True),), torch.bfloat16),
    "bfloat16 Kahan, bfloat16 states": ((ours(state_dtype="bfloat16", compensation="kahan"),), torch.bfloat16),
    "torch AdamW, bfloat16": ((torchs,), torch.bfloat16),
    "torch, then bfloat16 states": ((torchs, ours(state_dtype="bfloat16")), torch.float32),
    "bfloat16 states, then torch": ((ours(state_dtype="bfloat16"), torchs), torch.float32),
    "torch, then int8 states": ((torchs, ours(state_dtype="int8")), torch.float32),
    "int8 states, then torch": ((ours(state_dtype="int8"), torchs), torch.float32),
}
"""By name what trains, and the parameters' dtype. Several take over one from another, each for the same number of steps."""


def windows(values: torch.Tensor, rows: torch.Tensor, channels: torch.Tensor) -> torch.Tensor:
    """[n, context + horizon] from the rows that windows begin at, and their channels."""
    return values[rows[:, None] + torch.arange(CONTEXT + HORIZON), channels[:, None]]


def take_over(old: torch.optim.Optimizer, new: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """An optimizer that goes on with the states of another one."""
    to_torch = isinstance(old, sff_fast.FusedAdamW) and not isinstance(new, sff_fast.FusedAdamW)
    new.load_state_dict(old.to_torch_state_dict() if to_torch else old.state_dict())
    return new


def train(values: torch.Tensor, seed: int, steps: int, makes: tuple[Make, ...], dtype: torch.dtype) -> tuple[list[float], float]:
    """Losses of all steps, and the validation loss at the end."""
    torch.manual_seed(seed)
    layers = torch.nn
    model = layers.Sequential(
        layers.Linear(CONTEXT, 256),
        layers.GELU(),
        layers.Linear(256, 256),
        layers.GELU(),
        layers.LayerNorm(256),
        layers.Linear(256, HORIZON),
    ).to(dtype)
    optimizer, generator, losses = makes[0](model), torch.Generator().manual_seed(seed), []
    turns = {steps * k // len(makes): make for k, make in enumerate(makes) if k}
    for step in range(steps):
        if step in turns:
            optimizer = take_over(optimizer, turns[step](model))
        rows = torch.randint(0, TRAIN - CONTEXT - HORIZON, (BATCH,), generator=generator)
        part = windows(values, rows, torch.randint(0, values.shape[1], (BATCH,), generator=generator)).to(dtype)
        loss = (model(part[:, :CONTEXT]) - part[:, CONTEXT:]).float().square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    rows = torch.arange(TRAIN, TRAIN + 2800, 7)
    with torch.no_grad():
        parts = [windows(values, rows, torch.full_like(rows, c)).to(dtype) for c in range(values.shape[1])]
        errors = [(model(part[:, :CONTEXT]) - part[:, CONTEXT:]).float().square().mean() for part in parts]
    return losses, float(torch.stack(errors).mean())


def draw(curves: dict[str, np.ndarray]) -> None:
    """Mean loss curves over seeds, smoothed over 50 steps, and their difference to the first one."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    window = np.ones(50) / 50
    seeds = {name: np.array([np.convolve(run, window, "valid") for run in losses]) for name, losses in curves.items()}
    smooth = {name: losses.mean(0) for name, losses in seeds.items()}
    base, noise = next(iter(smooth.values())), next(iter(seeds.values())).std(0, ddof=1)
    steps = np.arange(len(base)) + 50
    right.fill_between(steps, -noise, noise, color="0.9", label="standard deviation over seeds")
    for name, losses in smooth.items():
        line = "--" if " then " in name else "-"
        left.plot(steps, losses, line, linewidth=1.2, label=name)
        right.plot(steps, losses - base, line, linewidth=1.2)
    left.set(xlabel="step", ylabel="training MSE, mean over seeds", yscale="log")
    right.set(xlabel="step", ylabel="difference to torch AdamW in float32")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    """Train everything, print, draw, and append to benchmarks/results/optimizer_quality.csv."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--seeds", type=int, default=5, help="seeds (default 5)")
    parser.add_argument("--steps", type=int, default=1200, help="steps (default 1200)")
    settings = parser.parse_args()
    folder = os.environ.get("SFF_FAST_TEST_DATA")
    if not folder:
        raise SystemExit("set SFF_FAST_TEST_DATA to the folder with ETTh1.csv")
    torch.set_num_threads(1)
    values = torch.tensor(pd.read_csv(Path(folder) / "ETTh1.csv").iloc[:, 1:].to_numpy(np.float32))
    values = (values - values[:TRAIN].mean(0)) / values[:TRAIN].std(0)
    rows, curves, base = [], {}, {}
    for name, (makes, dtype) in CONTENDERS.items():
        runs = [train(values, seed, settings.steps, makes, dtype) for seed in range(settings.seeds)]
        curves[name] = np.array([losses for losses, _ in runs])
        measured = {"train": curves[name][:, -LAST:].mean(1), "val": np.array([error for _, error in runs])}
        base = base or measured
        row: dict[str, object] = {"contender": name, "seeds": settings.seeds, "steps": settings.steps}
        for part, figures in measured.items():
            row[f"{part}_mse"] = f"{figures.mean():.4f}"
            row[f"{part}_std"] = f"{figures.std(ddof=1):.4f}"
            row[f"{part}_difference"] = f"{(figures - base[part]).mean():+.4f}"
        rows.append(row)
        print(
            f"{name:<34} train {row['train_mse']} ± {row['train_std']} ({row['train_difference']})"
            f"  val {row['val_mse']} ± {row['val_std']} ({row['val_difference']})",
            flush=True,
        )
    draw(curves)
    print(f"written to {write_rows('optimizer_quality', rows)} and {PICTURE}")


if __name__ == "__main__":
    main()
