"""Results on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sff_fast.report import rows

#: What the widest table of results takes up.
_TABLE_WIDTH = 112
#: What may be measured beside MSE and MAE, and what tables call it.
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
_TERMINAL_STYLES = {
    "zero-shot": "bright_black",
    "tfs": "green",
    "ff": "blue",
    "sff": "bold yellow",
    "lp": "magenta",
    "lp-ff": "cyan",
}


def print_results(metrics: Mapping[str, Any]) -> None:
    """Print the table of all runs, zero-shot first, and the verdict.

    Args:
        metrics: The content of ``metrics.json``.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", title=None)
    for position, column in enumerate(rows.COLUMNS):
        table.add_column(column, justify="left" if position == 0 else "right", no_wrap=True)
    for row in rows.result_rows(metrics):
        label, *rest = row.cells()
        mark = " *" if row.chosen else ""
        table.add_row(Text(label + mark, style=_TERMINAL_STYLES.get(row.strategy, "")), *(cell or "-" for cell in rest))
    console = console_for_results()
    console.print(table)
    further = further_metrics(metrics)
    if further is not None:
        console.print(further)
    if rows.best_run(metrics) is not None:
        console.print("* the tuned model that validation chose; errors are on standardised data", style="dim")
    console.print()
    console.print(Text(str(metrics["verdict"])), style="bold", soft_wrap=True)


def further_metrics(metrics: Mapping[str, Any]) -> Any | None:
    """A table of what else was measured on the test part, for each model; None where there is nothing more.

    Args:
        metrics: The content of ``metrics.json``.
    """
    from rich.table import Table
    from rich.text import Text

    found = [(row, _test_metrics(metrics, row)) for row in rows.result_rows(metrics)]
    names = [name for name in FURTHER if any(isinstance(measured.get(name), (int, float)) for _, measured in found)]
    if not names:
        return None
    table = Table(box=None, pad_edge=False, header_style="bold", title=None)
    for position, column in enumerate(("strategy", "alpha", "seed", *(f"test {FURTHER[name]}" for name in names))):
        table.add_column(column, justify="left" if position == 0 else "right", no_wrap=True)
    for row, measured in found:
        figures = [format_figure(measured.get(name)) or "-" for name in names]
        label = Text(row.label, style=_TERMINAL_STYLES.get(row.strategy, ""))
        table.add_row(label, row.alpha or "-", "-" if row.seed is None else str(row.seed), *figures)
    return table


def format_figure(value: Any) -> str:
    """A metric as text: counts and ranks whole, everything else as errors are; empty for None."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value) if isinstance(value, int) else rows.format_error(value)


def _test_metrics(metrics: Mapping[str, Any], row: rows.ResultRow) -> Mapping[str, Any]:
    entry = metrics["zero_shot"] if row.index is None else metrics["runs"][row.index]
    return entry.get("metrics", {}).get("test", {})


def print_sweep(metrics: Mapping[str, Any]) -> None:
    """Print the table of all alphas, by their validation error.

    Args:
        metrics: The content of a sweep's ``metrics.json``.
    """
    from rich.table import Table
    from rich.text import Text

    from sff_fast.report import sweep

    table = Table(box=None, pad_edge=False, header_style="bold", title=None)
    for position, column in enumerate(sweep.COLUMNS):
        table.add_column(column, justify="right" if 0 < position < len(sweep.COLUMNS) - 1 else "left", no_wrap=True)
    for cells in sweep.table_rows(metrics):
        table.add_row(
            *(Text(cell or "-", style="bold yellow" if cells[-1] == "chosen" else "") for cell in cells[:-1]), cells[-1]
        )
    console = console_for_results()
    console.print(table)
    console.print()


def print_landscape(metrics: Mapping[str, Any]) -> None:
    """Print the table of all centres, and the verdict.

    Args:
        metrics: The content of a landscape's ``metrics.json``.
    """
    from rich.table import Table
    from rich.text import Text

    from sff_fast.report import landscapes

    table = Table(box=None, pad_edge=False, header_style="bold", title=None)
    for position, column in enumerate(landscapes.COLUMNS):
        table.add_column(column, justify="left" if position == 0 else "right", no_wrap=True)
    for strategy, (label, *rest) in landscapes.table(metrics["landscape"]):
        table.add_row(Text(label, style=_TERMINAL_STYLES.get(strategy, "")), *(cell or "-" for cell in rest))
    console = console_for_results()
    console.print(table)
    for remark in landscapes.left_out(metrics["landscape"]):
        console.print(remark, style="dim", markup=False, soft_wrap=True)
    console.print()
    console.print(Text(str(metrics["verdict"])), style="bold", soft_wrap=True)


def print_errors(title: str, errors: Mapping[str, Any]) -> None:
    """Print a few named errors, one a line.

    Args:
        title: What was measured.
        errors: Name to value.
    """
    console = console_for_results()
    console.print(title, markup=False, soft_wrap=True)
    for name, value in errors.items():
        console.print(f"  {name:<10} {format_figure(value)}", markup=False)


def console_for_results() -> Any:
    """A console on stdout that never cuts a table: a narrow terminal wraps its lines, a pipe gets them whole."""
    import sys

    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    console.width = max(console.width, _TABLE_WIDTH) if console.is_terminal else 240
    return console
