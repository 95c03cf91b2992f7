"""Results on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sff_fast.report import further, rows

#: What the widest table of results takes up.
_TABLE_WIDTH = 112
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
    more = further_metrics(metrics)
    if more is not None:
        console.print(more)
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

    columns, lines = further.further_rows(metrics)
    if not columns:
        return None
    table = Table(box=None, pad_edge=False, header_style="bold", title=None)
    for position, column in enumerate(columns):
        table.add_column(column, justify="left" if position == 0 else "right", no_wrap=True)
    for row, (label, *figures) in lines:
        table.add_row(Text(label, style=_TERMINAL_STYLES.get(row.strategy, "")), *(figure or "-" for figure in figures))
    return table


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
        console.print(f"  {name:<10} {further.format_figure(value)}", markup=False)


def console_for_results() -> Any:
    """A console on stdout that never cuts a table: a narrow terminal wraps its lines, a pipe gets them whole."""
    import sys

    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    console.width = max(console.width, _TABLE_WIDTH) if console.is_terminal else 240
    return console
