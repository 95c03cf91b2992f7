"""Results of runs, and ``metrics.json`` made of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..stream import STREAM_VERSION
from ..version import __version__
from .comparisons import build_comparisons
from .labels import ZERO_SHOT, label_runs
from .log import finite
from .statistics import mean_and_std
from .verdict import verdict
from .windows import WindowErrors


@dataclasses.dataclass
class RunResult:
    """What one run gave. Errors are on standardised data, over all windows.

    Attributes:
        strategy: The strategy.
        alpha: Share of the pre-trained weights, for the strategies that smooth; else None.
        seed: The seed.
        best_epoch: Epoch whose weights were tested; 0 are the weights before training.
        val_mse: Their validation MSE; None where it is not finite.
        test_mse: Their test MSE.
        test_mae: Their test MAE.
        seconds: Wall time of training, validation and test, over all resumes.
        peak_bytes: Peak memory of the process that finished the run; see ``runtime.peak_memory``.
        history: A record for each epoch, epoch 0 first.
        metrics: ``{"val": {...}, "test": {...}}``, everything that was measured.
        smooth: Report of the smoothing or filling, or None.
        stopped: Why training ended before its last epoch, or None.
        zero_shot: Metrics of the pre-trained model.
        diverged: Whether that was a loss, or a forecast for the validation part, that is not finite.
        verdict: Which model to ship.
        model_dir: Where the model is, in the family's published layout; None without ``out``.
        windows: Test error of every window; None where the forecasts are not finite.
        zero_shot_windows: The pre-trained model's, where this run measured it.
    """

    strategy: str
    alpha: float | dict[str, float] | None
    seed: int
    best_epoch: int
    val_mse: float | None
    test_mse: float | None
    test_mae: float | None
    seconds: float
    peak_bytes: int
    history: list[dict[str, Any]]
    metrics: dict[str, Any]
    smooth: dict[str, Any] | None
    stopped: str | None
    zero_shot: dict[str, Any]
    diverged: bool = False
    verdict: str = ""
    model_dir: Path | None = None
    windows: WindowErrors | None = dataclasses.field(default=None, compare=False, repr=False)
    zero_shot_windows: WindowErrors | None = dataclasses.field(default=None, compare=False, repr=False)

    @classmethod
    def of_zero_shot(
        cls, zero_shot: dict[str, Any], seed: int, model_dir: Path | None, windows: WindowErrors | None = None
    ) -> RunResult:
        """The result of the run that tunes nothing."""
        return cls(
            strategy=ZERO_SHOT,
            alpha=None,
            seed=seed,
            best_epoch=0,
            val_mse=zero_shot["val_mse"],
            test_mse=zero_shot["test_mse"],
            test_mae=zero_shot["test_mae"],
            seconds=zero_shot["seconds"],
            peak_bytes=zero_shot["peak_bytes"],
            history=[],
            metrics=zero_shot["metrics"],
            smooth=None,
            stopped=None,
            zero_shot=zero_shot,
            verdict=verdict(zero_shot, []),
            model_dir=model_dir,
            windows=windows,
            zero_shot_windows=windows,
        )

    def to_json(self) -> dict[str, Any]:
        """The run's entry in ``metrics.json``."""
        left_out = ("history", "zero_shot", "verdict", "model_dir", "windows", "zero_shot_windows")
        entry = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}
        return finite(entry)


@dataclasses.dataclass
class CompareResult:
    """What a comparison gave.

    Attributes:
        zero_shot: Metrics of the pre-trained model.
        runs: The tuned runs, in the order in which they ran.
        summary: Mean and sample standard deviation over seeds, by label.
        comparisons: Paired differences between labels.
        verdict: Which model to ship.
        metrics: What ``metrics.json`` holds.
        model_dir: The model to ship, or None without ``out``.
    """

    zero_shot: dict[str, Any]
    runs: list[RunResult]
    summary: dict[str, Any]
    comparisons: list[dict[str, Any]]
    verdict: str
    metrics: dict[str, Any]
    model_dir: Path | None = None


def zero_shot_entry(val: Mapping[str, Any], test: Mapping[str, Any], seconds: float, peak_bytes: int) -> dict[str, Any]:
    """The ``zero_shot`` entry of ``metrics.json`` from the metrics of the two parts."""
    return finite(
        {
            "val_mse": val["mse"],
            "val_mae": val["mae"],
            "test_mse": test["mse"],
            "test_mae": test["mae"],
            "seconds": seconds,
            "peak_bytes": peak_bytes,
            "metrics": {"val": dict(val), "test": dict(test)},
        }
    )


def build_metrics(
    description: Mapping[str, Any],
    zero_shot: Mapping[str, Any],
    runs: Iterable[Mapping[str, Any]],
    windows: Sequence[WindowErrors | None] | None = None,
    zero_shot_windows: WindowErrors | None = None,
) -> dict[str, Any]:
    """All of ``metrics.json``.

    Args:
        description: What was run: ``family``, ``data`` and so on; its keys go in as they are.
        zero_shot: The zero-shot entry.
        runs: Entries of the tuned runs.
        windows: The test error of every window, for each run.
        zero_shot_windows: The zero-shot model's.
    """
    runs = [dict(run) for run in runs]
    groups: dict[str, list[dict[str, Any]]] = {}
    for label, run in zip(label_runs(runs), runs, strict=True):
        groups.setdefault(label, []).append(run)
    comparisons = build_comparisons(zero_shot, runs, windows, zero_shot_windows)
    return finite(
        {
            "sff_fast": __version__,
            "stream_version": STREAM_VERSION,
            **description,
            "zero_shot": dict(zero_shot),
            "runs": runs,
            "summary": _summary(zero_shot, groups),
            "comparisons": comparisons,
            "verdict": verdict(zero_shot, runs, comparisons),
        }
    )


def _summary(zero_shot: Mapping[str, Any], groups: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Mean and sample standard deviation over the seeds whose figures are finite."""
    table = {}
    for label, members in {ZERO_SHOT: [zero_shot], **groups}.items():
        row: dict[str, Any] = {}
        for metric in ("val_mse", "test_mse", "test_mae"):
            values = [run[metric] for run in members if run[metric] is not None]
            row[f"{metric}_mean"], row[f"{metric}_std"] = mean_and_std(values) if values else (None, None)
        row["n"] = sum(run["test_mse"] is not None for run in members)
        table[label] = row
    return table
