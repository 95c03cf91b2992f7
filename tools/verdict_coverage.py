"""How often the intervals of the verdict hold what they should, and how often they find a difference: a table.

Test errors are made up with the noise that real ones have: a level that all runs share, one that differs from stretch to
stretch of the test part between strategies, a deviation of each run (its seed), and one of each run over time. Everything
over time is correlated over the rows of a horizon; or of a context, which is nearly a block: the hardest case.

    python tools/verdict_coverage.py
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import numpy as np
import torch

from sff_fast.training import WindowErrors
from sff_fast.training.comparisons import build_comparisons

CONTEXT, HORIZON, CHANNELS = 192, 48, 2


def smooth_noise(generator: np.random.Generator, shape: tuple[int, ...], rows: int, width: int) -> np.ndarray:
    """Noise [*shape, rows] of variance 1 that is correlated over ``width`` rows: a moving average of white noise."""
    sums = np.cumsum(generator.standard_normal((*shape, rows + width)), axis=-1)
    return (sums[..., width:] - sums[..., :-width]) / np.sqrt(width)


def make_errors(
    generator: np.random.Generator,
    strategies: int,
    seeds: int,
    rows: int,
    of_seed: float = 0.01,
    of_time: float = 0.05,
    of_both: float = 0.03,
    width: int = CONTEXT,
) -> np.ndarray:
    """Errors of windows [strategies, seeds, rows], mean 1 for all strategies; the last one is the same for all seeds."""
    shared = 0.3 * smooth_noise(generator, (1, 1), rows, width)
    own = of_time * smooth_noise(generator, (strategies, 1), rows, width)
    runs = of_seed * generator.standard_normal((strategies, seeds, 1))
    runs = runs + of_both * smooth_noise(generator, (strategies, seeds), rows, width)
    runs[-1] = 0
    return 1 + shared + own + runs


def as_windows(errors: np.ndarray, span: int = CONTEXT + HORIZON) -> WindowErrors:
    """One run's errors [rows], as if every window had two channels around them."""
    rows = len(errors)
    windows = WindowErrors(span)
    for channel in range(CHANNELS):
        values = torch.from_numpy(errors + (0.1 if channel else -0.1))
        windows.add(torch.arange(rows), {"mse": values}, torch.full((rows,), channel))
    return windows


def compare(errors: np.ndarray, seeds: int, names: list[str], with_windows: bool = True) -> list[dict[str, object]]:
    """The comparisons of strategies by their errors [strategies, seeds, rows], the last one as the zero-shot model."""
    runs, windows = [], []
    for name, of_strategy in zip(names, errors):
        for seed in range(seeds):
            alpha = float(name[3:]) if name.startswith("sff") else None
            strategy = "sff" if name.startswith("sff") else name
            runs.append({"strategy": strategy, "alpha": alpha, "seed": seed, "test_mse": float(of_strategy[seed].mean())})
            windows.append(as_windows(of_strategy[seed]) if with_windows else None)
    zero_shot = {"test_mse": float(errors[-1, 0].mean())}
    return build_comparisons(zero_shot, runs, windows, as_windows(errors[-1, 0]) if with_windows else None)


def trials(repetitions: int, strategies: int, seeds: int, rows: int, difference: float, **noise: float) -> Iterator[list[dict]]:
    """The comparisons of every repetition: ff, then sff with several alphas, then zero-shot."""
    names = ["ff", *(f"sff{0.9 - 0.1 * i:.1f}" for i in range(strategies - 1))]
    for repetition in range(repetitions):
        generator = np.random.default_rng([repetition, strategies, seeds, rows])
        errors = make_errors(generator, strategies + 1, seeds, rows, **noise)
        errors[1:-1] -= difference
        yield compare(errors, seeds, names)


def bounds(entry: dict) -> tuple[float, float]:
    """The interval, over windows alone with one seed."""
    low = entry["ci_low"] if entry["ci_low"] is not None else entry["windows_ci_low"]
    high = entry["ci_high"] if entry["ci_high"] is not None else entry["windows_ci_high"]
    return low, high


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=400)
    options = parser.parse_args()
    print("| strategies | seeds | blocks | correlated, rows | each holds | all hold | median half width, % | finds -3 % |")
    print("|" + "---|" * 8)
    for strategies, seeds, blocks, width in (
        (2, 2, 10, HORIZON),
        (2, 3, 10, HORIZON),
        (2, 5, 10, HORIZON),
        (2, 10, 10, HORIZON),
        (2, 5, 4, HORIZON),
        (2, 5, 40, HORIZON),
        (6, 3, 10, HORIZON),
        (6, 5, 10, HORIZON),
        (6, 10, 10, HORIZON),
        (2, 5, 10, CONTEXT),
        (6, 5, 10, CONTEXT),
        (6, 10, 10, CONTEXT),
    ):
        rows = blocks * (CONTEXT + HORIZON)
        each, together, halves, found = [], [], [], []
        for entries in trials(options.repetitions, strategies, seeds, rows, 0.0, width=width):
            held = [low <= 0 <= high for low, high in map(bounds, entries)]
            each += held
            together.append(all(held))
            halves += [(high - low) / 2 for low, high in map(bounds, entries)]
        for entries in trials(options.repetitions, strategies, seeds, rows, 0.03, width=width):
            found.append(next(bounds(one)[1] < 0 for one in entries if one["a"].startswith("sff") and one["b"] == "ff"))
        figures = f"{np.mean(each):.3f} | {np.mean(together):.3f} | {100 * np.median(halves):.1f} | {np.mean(found):.2f}"
        print(f"| {strategies} | {seeds} | {blocks} | {width} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
