"""The error of every window of a part: what paired comparisons and pictures of errors over time are made from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from ..errors import ArgumentError, CheckpointError
from ..files import make_directory, save_safetensors

FOLDER = "windows"
"""Folder beside ``metrics.json`` that holds them: ``test.safetensors`` of the run, ``zero-shot.safetensors`` where that run
measured the pre-trained model too."""

PLACES = ("start", "channel", "series")
ALL_CHANNELS = -1


class WindowErrors:
    """Collects one row a window: where it lies and its errors, while an evaluation goes over them.

    Any task can fill it, with any metric that has a value for a window. Places are int32 and errors float32: 16 bytes a
    window for one metric.

    Args:
        span: Rows of the table that a window covers, its context and horizon together: two windows whose starts are at least
            so many rows apart share no row.
    """

    def __init__(self, span: int) -> None:
        if isinstance(span, bool) or not isinstance(span, int) or span < 1:
            raise ArgumentError(f"span must be a whole number of rows of at least 1, got {span!r}")
        self.span = span
        self._parts: dict[str, list[np.ndarray]] = {}

    def add(
        self,
        start: torch.Tensor,
        errors: Mapping[str, torch.Tensor],
        channel: torch.Tensor | None = None,
        series: torch.Tensor | None = None,
    ) -> None:
        """Add the windows of a batch.

        Args:
            start: Integers [B], the first row of each window.
            errors: Name of a metric to its value for each window, floating point [B]; the same names every time.
            channel: Integers [B], the channel of each window. Default: a window holds all channels (-1).
            series: Integers [B], the series that each window belongs to. Default: there is one series (0).

        Raises:
            ArgumentError: A column has another length, or the metrics are others than before.
        """
        n = len(start)
        columns = {
            "start": start,
            "channel": torch.full((n,), ALL_CHANNELS) if channel is None else channel,
            "series": torch.zeros(n, dtype=torch.int64) if series is None else series,
            **errors,
        }
        if self._parts and set(columns) != set(self._parts):
            raise ArgumentError(f"errors must have the metrics {', '.join(self.metrics)}, got {', '.join(errors)}")
        for name, column in columns.items():
            if column.ndim != 1 or len(column) != n:
                raise ArgumentError(f"{name} must have one value for each of the {n} windows, got shape {list(column.shape)}")
        for name, column in columns.items():
            dtype = np.int32 if name in PLACES else np.float32
            self._parts.setdefault(name, []).append(column.detach().cpu().numpy().astype(dtype))

    def clear(self) -> None:
        """Forget all windows, as where an evaluation broke off."""
        self._parts = {}

    def __len__(self) -> int:
        return sum(map(len, self._parts.get("start", ())))

    def __getitem__(self, name: str) -> np.ndarray:
        """A column: ``start``, ``channel``, ``series`` (int32) or a metric (float32)."""
        if name not in self._parts:
            raise ArgumentError(f"there is no {name!r} for each window: expected one of {', '.join(self._parts) or 'nothing'}")
        if len(self._parts[name]) > 1:
            self._parts[name] = [np.concatenate(self._parts[name])]
        return self._parts[name][0]

    @property
    def metrics(self) -> list[str]:
        """Names of the errors that there are for each window."""
        return [name for name in self._parts if name not in PLACES]

    def save(self, path: Path) -> None:
        """Write a safetensors file with a tensor a column."""
        make_directory(path.parent)
        columns = {name: torch.from_numpy(self[name]) for name in self._parts}
        save_safetensors(path, columns, {"format": "1", "span": str(self.span)})

    @classmethod
    def load(cls, path: Path) -> WindowErrors:
        """Read what :meth:`save` has written.

        Raises:
            CheckpointError: The file cannot be read, or is not of this kind.
        """
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != "1" or not metadata.get("span", "").isdigit():
                    raise CheckpointError(
                        f"{str(path)!r} holds no errors of windows in the format 1: remove it, and evaluate again"
                    )
                loaded = cls(int(metadata["span"]))
                loaded._parts = {name: [file.get_tensor(name)] for name in file.keys()}  # noqa: SIM118  (no mapping)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"cannot read {str(path)!r}: {' '.join(str(error).split())}") from error
        missing = [name for name in PLACES if name not in loaded._parts]
        if missing or len({len(parts[0]) for parts in loaded._parts.values()}) != 1:
            raise CheckpointError(f"{str(path)!r} holds no whole table of windows: remove it, and evaluate again")
        return loaded


def load_windows(folder: Path | None, name: str) -> WindowErrors | None:
    """The errors of windows in a run's folder, or None where it has none, such as one of an earlier version.

    Raises:
        CheckpointError: The file is there and damaged.
    """
    path = None if folder is None else folder / FOLDER / f"{name}.safetensors"
    return None if path is None or not path.exists() else WindowErrors.load(path)
