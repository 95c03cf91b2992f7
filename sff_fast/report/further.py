"""What is measured beside MSE and MAE, named and as a table, for the terminal and the page alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .rows import ResultRow, format_error, result_rows

FURTHER = {
    "rmse": "RMSE",
    "mase": "MASE",
    "smape": "sMAPE",
    "wql": "WQL",
    "crps": "CRPS",
    "rank": "rank",
    "segments": "segments",
    "quantile": "quantile",
    "located": "located",
    "auc_roc": "AUC-ROC",
    "auc_pr": "AUC-PR",
    "f1_best": "best F1",
}
"""What may be measured beside MSE and MAE, and what tables call it."""


def named_figures(measured: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of one evaluation beside MSE and MAE, by what tables call them.

    Of an imputation with several rates of hidden patches the MSE at each rate is one.

    Args:
        measured: What an evaluation gave, as under ``metrics.test`` of ``metrics.json``.
    """
    named = {title: measured[name] for name, title in FURTHER.items() if measured.get(name) is not None}
    per_rate = measured.get("mse_per_rate", {})
    return named | ({f"MSE {rate}": value for rate, value in per_rate.items()} if len(per_rate) > 1 else {})


def further_rows(metrics: Mapping[str, Any]) -> tuple[list[str], list[tuple[ResultRow, list[str]]]]:
    """What else was measured on the test part: headings, and for each model its row of results with the cells under them.

    Args:
        metrics: The content of ``metrics.json``.

    Returns:
        Headings and rows; without headings where nothing else was measured.
    """
    found = []
    for row in result_rows(metrics):
        entry = metrics["zero_shot"] if row.index is None else metrics["runs"][row.index]
        found.append((row, named_figures(entry.get("metrics", {}).get("test", {}))))
    titles = list(dict.fromkeys(title for _, figures in found for title in figures))
    columns = ["strategy", "alpha", "seed", *(f"test {title}" for title in titles)]
    if not titles:
        return [], []
    return columns, [
        (row, [row.label, row.alpha, "" if row.seed is None else str(row.seed), *(format_figure(f.get(t)) for t in titles)])
        for row, f in found
    ]


def format_figure(value: Any) -> str:
    """A metric as text: counts and ranks whole, everything else as errors are; empty for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, int) else format_error(value)
