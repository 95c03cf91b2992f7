"""Results on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sff_fast.report import rows

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
    if rows.best_run(metrics) is not None:
        console.print("* the tuned model that validation chose; errors are on standardised data", style="dim")
    console.print()
    console.print(Text(str(metrics["verdict"])), style="bold", soft_wrap=True)


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


def print_errors(title: str, errors: Mapping[str, float]) -> None:
    """Print a few named errors, one a line.

    Args:
        title: What was measured.
        errors: Name to value.
    """
    console = console_for_results()
    console.print(title, markup=False, soft_wrap=True)
    for name, value in errors.items():
        console.print(f"  {name:<10} {rows.format_error(value)}", markup=False)


def console_for_results() -> Any:
    """A console on stdout that never cuts a table: a narrow terminal wraps its lines, a pipe gets them whole."""
    import sys

    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    console.width = max(console.width, _TABLE_WIDTH) if console.is_terminal else 240
    return console
