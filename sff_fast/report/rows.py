"""The results in ``metrics.json`` as rows and groups, for the terminal's table, the page and the pictures alike."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sff_fast.report import theme
from sff_fast.training.statistics import mean_and_std
from sff_fast.training.verdict import choose


@dataclass(frozen=True)
class ResultRow:
    """One model that was measured. Errors are on standardised data; ``None`` where a figure does not apply."""

    strategy: str
    label: str
    alpha: str
    seed: int | None
    best_epoch: int | None
    val_mse: float | None
    test_mse: float | None
    test_mae: float | None
    change: str
    seconds: float | None
    peak_bytes: int | None
    chosen: bool
    #: Position in ``metrics["runs"]``; None for the zero-shot model.
    index: int | None = None

    def cells(self) -> list[str]:
        """The row as text, in the order of :data:`COLUMNS`."""
        return [
            self.label,
            self.alpha,
            "" if self.seed is None else str(self.seed),
            "" if self.best_epoch is None else str(self.best_epoch),
            format_error(self.val_mse),
            format_error(self.test_mse),
            self.change,
            format_error(self.test_mae),
            theme.format_seconds(self.seconds),
            theme.format_bytes(self.peak_bytes),
        ]


#: Headings of :meth:`ResultRow.cells`.
COLUMNS = (
    "strategy",
    "alpha",
    "seed",
    "best epoch",
    "val MSE",
    "test MSE",
    "vs zero-shot",
    "test MAE",
    "time",
    "peak memory",
)


@dataclass(frozen=True)
class Group:
    """The runs of one strategy and alpha, over seeds.

    ``indices`` are positions in ``metrics["runs"]``; ``spread`` is the sample standard deviation, None for one run.
    """

    strategy: str
    alpha: str
    label: str
    indices: tuple[int, ...]
    test_mse: tuple[float, ...]
    mean: float
    spread: float | None


def format_error(value: float | None) -> str:
    """An error with four decimals, or four significant digits below 0.01; empty for None."""
    if value is None:
        return ""
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if abs(value) >= 0.01 or value == 0 else f"{value:.3e}"


def tuned_runs(metrics: Mapping[str, Any]) -> list[tuple[int, Mapping[str, Any]]]:
    """The runs with their positions, without a zero-shot entry: that one stands apart in ``metrics["zero_shot"]``."""
    return [(index, run) for index, run in enumerate(metrics["runs"]) if run["strategy"] != "zero-shot"]


def best_run(metrics: Mapping[str, Any]) -> int | None:
    """The position of the tuned run that validation chose, None where no run has a finite validation MSE."""
    runs = tuned_runs(metrics)
    best = choose(metrics["zero_shot"], [run for _, run in runs]).best
    return next((index for index, run in runs if run is best), None)


def result_rows(metrics: Mapping[str, Any]) -> list[ResultRow]:
    """One row for the zero-shot model, then one a run, in the order in which they ran.

    Args:
        metrics: The content of ``metrics.json``.

    Returns:
        The rows; the tuned model that validation chose is marked.
    """
    zero_shot = metrics["zero_shot"]
    chosen = best_run(metrics)
    rows = [_row("zero-shot", zero_shot, zero_shot, chosen=False)]
    rows += [_row(run["strategy"], run, zero_shot, index == chosen, index) for index, run in tuned_runs(metrics)]
    return rows


def groups(metrics: Mapping[str, Any]) -> list[Group]:
    """The runs by strategy and alpha, in order of appearance; runs without a finite test MSE are left out.

    Args:
        metrics: The content of ``metrics.json``.

    Returns:
        The groups with mean and standard deviation over seeds.
    """
    found: dict[tuple[str, str], list[int]] = {}
    for index, run in tuned_runs(metrics):
        found.setdefault((run["strategy"], _alpha_of(run)), []).append(index)
    alphas: dict[str, set[str]] = {}
    for strategy, alpha in found:
        alphas.setdefault(strategy, set()).add(alpha)
    result = []
    for (strategy, alpha), indices in found.items():
        values = [metrics["runs"][index].get("test_mse") for index in indices]
        finite = [value for value in values if _is_finite(value)]
        if not finite:
            continue
        label = theme.style(strategy).label
        if len(alphas[strategy]) > 1:
            label = f"{label} {alpha}"
        mean, spread = mean_and_std(finite)
        result.append(Group(strategy, alpha, label, tuple(indices), tuple(finite), mean, spread))
    return result


def preferred_alphas(metrics: Mapping[str, Any]) -> dict[str, str]:
    """Strategies that ran with several alphas, to the one with the lowest mean validation MSE over seeds, as text."""
    found: dict[str, dict[str, list[float]]] = {}
    for _, run in tuned_runs(metrics):
        value = run.get("val_mse")
        found.setdefault(run["strategy"], {}).setdefault(_alpha_of(run), []).append(value if _is_finite(value) else math.inf)
    means = {name: {alpha: sum(v) / len(v) for alpha, v in alphas.items()} for name, alphas in found.items() if len(alphas) > 1}
    return {name: min(alphas, key=alphas.__getitem__) for name, alphas in means.items()}


def _row(
    strategy: str, result: Mapping[str, Any], zero_shot: Mapping[str, Any], chosen: bool, index: int | None = None
) -> ResultRow:
    test_mse, reference = result.get("test_mse"), zero_shot.get("test_mse")
    comparable = strategy != "zero-shot" and _is_finite(test_mse) and _is_finite(reference)
    return ResultRow(
        strategy=strategy,
        label=theme.style(strategy).label,
        alpha=_alpha_of(result),
        seed=result.get("seed"),
        best_epoch=result.get("best_epoch"),
        val_mse=result.get("val_mse"),
        test_mse=test_mse,
        test_mae=result.get("test_mae"),
        change=theme.format_change(test_mse, reference) if comparable else "",
        seconds=result.get("seconds"),
        peak_bytes=result.get("peak_bytes"),
        chosen=chosen,
        index=index,
    )


def _alpha_of(run: Mapping[str, Any]) -> str:
    """alpha as text where it matters: only smoothed strategies have one."""
    return theme.format_alpha(run.get("alpha"))


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
