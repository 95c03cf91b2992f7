"""Columns as a source gave them, before anybody decided which of them are channels."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

# What the readers of tables in wide use write for "no value", in lower case.
MISSING = frozenset(
    ["", "na", "n/a", "#n/a", "#n/a n/a", "#na", "nan", "-nan", "null", "none", "<na>", "nat"]
    + ["1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan"]
)


@dataclass
class RawTable:
    """A table of named columns of equal length.

    Args:
        source: What messages call the table: a file's path, or ``"the DataFrame"``.
        names: Column names, all different.
        columns: One array for each name: float64 (NaN where a value is missing), ``datetime64[us]`` (NaT), or object
            (text, None where a value is missing).
        lines: 1-based line in the file for each row, or None where rows have no lines.
        notes: What the reader did that the file did not say.
    """

    source: str
    names: list[str]
    columns: list[np.ndarray]
    lines: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def n_rows(self) -> int:
        return len(self.columns[0]) if self.columns else 0

    def place(self, row: int) -> str:
        """What a message calls a row: its line in the file, or its number."""
        if self.lines is None:
            return f"row {row + 1}"
        return f"line {int(self.lines[row])}"
