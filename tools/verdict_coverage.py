"""How often the intervals of the verdict hold what they should, and how often they find a difference: a table.

Test errors are made up with the noise that real ones have: a level that all runs share, one that differs from stretch to
stretch of the test part between strategies, a deviation of each run (its seed), and one of each run over time. What varies
over time is correlated over a share of a window's length, context and horizon: over 80 % of it where nothing else is said,
over all of it (as much as windows that share rows can make it), and over two of it (seasons, regimes: more than is corrected).

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


SETTINGS = (
    # strategies, seeds, spans of the test part, share of a span over which errors are correlated
    (2, 1, 10, 0.8),
    (2, 2, 10, 0.8),
    (2, 3, 10, 0.8),
    (2, 5, 10, 0.8),
    (2, 10, 10, 0.8),
    (2, 5, 4, 0.8),
    (2, 5, 40, 0.8),
    (6, 2, 10, 0.8),
    (6, 3, 10, 0.8),
    (6, 5, 10, 0.8),
    (6, 10, 10, 0.8),
    (2, 5, 10, 0.2),
    (2, 5, 10, 1.0),
    (2, 5, 10, 2.0),
    (2, 5, 40, 2.0),
)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--repetitions", type=int, default=400)
    options = parser.parse_args()
    print("| strategies | seeds | spans | correlated over | each holds | all hold | median half width, % | finds -3 % |")
    print("|" + "---|" * 8)
    for strategies, seeds, spans, share in SETTINGS:
        rows, width = spans * (CONTEXT + HORIZON), round(share * (CONTEXT + HORIZON))
        each, together, halves, found = [], [], [], []
        # One seed: its interval is for that run, so the run's own deviation is no error of it.
        noise = {"width": width, **({"of_seed": 0.0} if seeds == 1 else {})}
        for entries in trials(options.repetitions, strategies, seeds, rows, 0.0, **noise):
            limits = [bounds(entry) for entry in entries]
            each += [low <= 0 <= high for low, high in limits]
            together.append(all(low <= 0 <= high for low, high in limits))
            halves += [(high - low) / 2 for low, high in limits]
            # A constant moves a mean and its interval: what would be found is known without a second set of errors.
            found.append(next(high < 0.03 for one, (_, high) in zip(entries, limits) if one["a"] != "ff" and one["b"] == "ff"))
        figures = f"{np.mean(each):.3f} | {np.mean(together):.3f} | {100 * np.median(halves):.1f} | {np.mean(found):.2f}"
        print(f"| {strategies} | {seeds} | {spans} | {share:g} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
