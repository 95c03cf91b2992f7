"""What reports are made of, for their tests."""

from __future__ import annotations

import math

from sff_fast import report
from sff_fast.landscapes.result import lowest, rise, verdict

TEST_MSE = {"tfs": (0.61, 0.63), "ff": (0.36, 0.35), "sff": (0.33, 0.34)}


def make_run(strategy: str, seed: int, test_mse: float | None, **changes) -> dict:
    run = {
        "strategy": strategy,
        "alpha": 0.7 if strategy == "sff" else None,
        "seed": seed,
        "best_epoch": 2,
        "val_mse": None if test_mse is None else test_mse + 0.1,
        "test_mse": test_mse,
        "test_mae": 0.4,
        "seconds": 75.2,
        "peak_bytes": 300 * 1024**2,
    }
    return {**run, **changes}


def make_metrics(runs: list[dict] | None = None, **changes) -> dict:
    if runs is None:
        runs = [make_run(name, seed, values[seed]) for seed in (0, 1) for name, values in TEST_MSE.items()]
    metrics = {
        "sff_fast": "0.1.0",
        "stream_version": 1,
        "family": "timer",
        "data": {
            "source": "weather.csv",
            "columns": ["temp", "humid"],
            "windows": {"train": 9},
            "scaler": {"mean": [7]},
        },
        "zero_shot": {"val_mse": 0.45, "test_mse": 0.4, "test_mae": 0.41},
        "settings": {"lr": 3e-5, "max_steps": None, "runs": [{"strategy": "sff", "alpha": 0.7}, {"strategy": "ff"}]},
        "runs": runs,
        "summary": {},
        "comparisons": [],
        "verdict": "Ship sff (alpha 0.7), seed 0.",
    }
    return {**metrics, **changes}


def make_histories(metrics: dict) -> list[list[dict]]:
    histories = []
    for run in metrics["runs"]:
        start = run["test_mse"] or 1.0
        history = [{"epoch": 0, "train_loss": None, "val_mse": start + 0.3}]
        history += [{"epoch": e, "train_loss": start / e, "val_mse": start + 0.1 * abs(e - 2)} for e in (1, 2, 3)]
        histories.append(history)
    return histories


def make_window(channel: str = "temp", **changes) -> report.ForecastWindow:
    values = {
        "channel": channel,
        "start": "2013-11-02 05:00",
        "step": "1 h",
        "context": [float(i % 5) for i in range(20)],
        "truth": [1.0, 2.0, 3.0, 4.0],
        "predictions": {"zero-shot": [1.5] * 4, "sff": [1.0, 2.0, 3.0, 4.5]},
    }
    return report.ForecastWindow(**{**values, **changes})


def make_details(scale: float) -> dict:
    """The ``metrics`` of a run: its test error for each step and channel."""
    steps, channels = [scale * (0.2 + 0.02 * step) for step in range(8)], [0.8 * scale, 1.2 * scale]
    return {"test": {"mse_per_horizon": steps, "mse_per_channel": channels}}


def make_comparison() -> dict:
    """Three seeds of FF, TFS and of SFF with four alphas, their comparisons and details."""
    runs = []
    for seed in range(3):
        runs.append(make_run("tfs", seed, 0.62 + 0.01 * seed, metrics=make_details(0.62)))
        runs.append(make_run("ff", seed, 0.36 + 0.01 * seed, metrics=make_details(0.36)))
        for alpha in (0.3, 0.5, 0.7, 0.9):
            error = 0.33 + 0.3 * (alpha - 0.7) ** 2 + 0.008 * seed
            runs.append(make_run("sff", seed, error, alpha=alpha, metrics=make_details(error)))
    comparisons = [
        {
            "a": f"sff-alpha{alpha}",
            "b": "ff",
            "metric": "test_mse",
            "difference": d,
            "ci_low": d - 0.02,
            "ci_high": d + 0.02,
            "n": 3,
        }
        for alpha, d in ((0.3, 0.01), (0.5, -0.018), (0.7, -0.03), (0.9, -0.018))
    ]
    metrics = make_metrics(runs, comparisons=comparisons)
    metrics["zero_shot"]["metrics"] = make_details(0.4)
    return metrics


def make_sweep() -> dict:
    """Four alphas, of which one was left out early and one was chosen and tested, with FF and TFS, over three seeds."""
    metrics = make_comparison()
    metrics["runs"] = [run for run in metrics["runs"] if run["alpha"] in (0.7, None)]
    metrics["comparisons"] = []
    points = []
    for alpha, mean in ((0.3, 0.49), (0.5, 0.45), (0.7, 0.44), (0.9, 0.45)):
        points.append(
            {
                "alpha": alpha,
                "groups": {},
                "label": f"{alpha}",
                "seeds": [0] if alpha == 0.3 else [0, 1, 2],
                "val_mse": [mean] * (1 if alpha == 0.3 else 3),
                "val_mse_mean": mean,
                "ci_low": None if alpha == 0.3 else mean - 0.01,
                "ci_high": None if alpha == 0.3 else mean + 0.01,
                "left_out_after": 1 if alpha == 0.3 else None,
                "chosen": alpha == 0.7,
                "seconds": 30.0,
                "directories": [],
            }
        )
    lines = [
        {"strategy": strategy, "val_mse": [mean] * 3, "val_mse_mean": mean, "ci_low": mean - 0.01, "ci_high": mean + 0.01}
        for strategy, mean in (("ff", 0.47), ("tfs", 0.73))
    ]
    metrics["sweep"] = {
        "chosen": "0.7",
        "by": "val_mse",
        "seeds": [0, 1, 2],
        "halving": None,
        "points": points,
        "baselines": lines,
    }
    return metrics


def make_landscape(grid: int = 11) -> dict:
    """The ``metrics.json`` of a landscape with three centres, one of which has a cliff and no Hessian."""
    half = grid // 2
    axis = [step / half for step in range(-half, half + 1)]
    known = {"top_eigenvalue": 41.2, "residual": 0.003, "trace": -175.4, "trace_error": 21.0, "probes": 8, "products": 30}
    centres = []
    for name, strategy, alpha, base, steep, hessian in (
        ("pre-trained", "zero-shot", None, 0.5, 2.0, known),
        ("smoothed", "sff", 0.7, 0.8, 0.4, known),
        ("ff-seed0", "ff", None, 0.3, 3.0, {"left_out": "something in the model has no second derivative: attention"}),
    ):
        losses = [[base + steep * ((a - 0.1) ** 2 + b * b + 0.2 * math.sin(5 * a) * b) for b in axis] for a in axis]
        if strategy == "ff":
            losses[0][0] = None
            losses[-1][-1] = 1e6
        centres.append(
            {
                "name": name,
                "strategy": strategy,
                "alpha": alpha,
                "seed": 0 if alpha else None,
                "source": None,
                "weights": "0" * 32,
                "loss": losses[half][half],
                "losses": losses,
                "rise": rise(axis, losses),
                "lowest": lowest(axis, losses),
                "hessian": hessian,
            }
        )
    return {
        "sff_fast": "0.1.0",
        "stream_version": 1,
        "family": "timer",
        "variant": "timer",
        "data": {"source": "weather.csv", "columns": ["temp", "humid"], "context_length": 96, "prediction_length": 24},
        "settings": {"grid": grid, "span": 1.0, "windows": 64, "seed": 3, "weights": {"pre-trained": "0" * 32}},
        "landscape": {"axis": axis, "centres": centres},
        "verdict": verdict(64, 1.0, centres),
        "seconds": 90.0,
        "peak_bytes": 300 * 1024**2,
    }
