"""Progress for people: a bar on a terminal, plain lines elsewhere. Both implement ``sff_fast.training``'s Progress."""

from __future__ import annotations

import sys
import time
from typing import Any, TextIO

#: Between two plain lines within an epoch, in seconds.
_PLAIN_INTERVAL = 30.0


def make_progress(quiet: bool, stream: TextIO | None = None, unit: str = "windows", scale: int = 1) -> Any:
    """The progress display that suits the stream.

    Args:
        quiet: Whether nothing is to be shown.
        stream: Where to show it; stderr by default, so that stdout holds results only.
        unit: What is counted, in words.
        scale: How many of what ``start`` and ``update`` are told make one of them.

    Returns:
        An object with ``start``, ``update``, ``epoch`` and ``close``, or None for no display.
    """
    stream = sys.stderr if stream is None else stream
    if quiet:
        return None
    return (BarProgress if stream.isatty() else LineProgress)(stream, unit, scale)


class _Throughput:
    """Windows, or what else is counted, a second since the task began, and the time that the rest will take at that rate."""

    def __init__(self, total: float) -> None:
        self.total = total
        self.done = 0.0
        self._began = time.monotonic()

    def rate(self) -> float | None:
        """How many a second, None before anything was done."""
        passed = time.monotonic() - self._began
        return self.done / passed if self.done and passed > 0 else None

    def remaining(self) -> float | None:
        """Seconds until the task's end, None before anything was done."""
        rate = self.rate()
        return None if rate is None else max(self.total - self.done, 0) / rate


class LineProgress:
    """One line an epoch, and one every half minute within long ones.

    Args:
        stream: Where the lines go.
        unit: What is counted, in words.
        scale: How many of what it is told make one of them.
    """

    def __init__(self, stream: TextIO, unit: str = "windows", scale: int = 1) -> None:
        self._stream = stream
        self._unit, self._scale = unit, scale
        self._label = ""
        self._throughput = _Throughput(0)
        self._spoke = 0.0

    def start(self, total: int, label: str) -> None:
        """A task of ``total`` windows begins."""
        self._label = label
        self._throughput = _Throughput(total / self._scale)
        self._spoke = time.monotonic()
        self._line(f"{total / self._scale:.0f} {self._unit} at most")

    def update(self, n: int, **fields: Any) -> None:
        """``n`` more windows are done."""
        self._throughput.done += n / self._scale
        if time.monotonic() - self._spoke >= _PLAIN_INTERVAL:
            self._line(describe(fields), self._pace())

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch ended."""
        self._line(describe(record), self._pace())

    def close(self) -> None:
        """The task ended."""

    def _pace(self) -> str:
        from sff_fast.report.theme import format_seconds

        rate, remaining = self._throughput.rate(), self._throughput.remaining()
        return "" if rate is None else f"{rate:.0f} {self._unit}/s, at most {format_seconds(remaining)} left"

    def _line(self, *parts: str) -> None:
        self._spoke = time.monotonic()
        self._stream.write(f"{self._label}: {', '.join(part for part in parts if part)}\n")
        self._stream.flush()


class BarProgress:
    """A bar for the current task; the epochs that ended stay above it.

    Args:
        stream: A terminal.
        unit: What is counted, in words.
        scale: How many of what it is told make one of them.
    """

    def __init__(self, stream: TextIO, unit: str = "windows", scale: int = 1) -> None:
        self._stream = stream
        self._unit, self._scale = unit, scale
        self._bar: Any = None
        self._task: Any = None
        self._label = ""
        self._throughput = _Throughput(0)
        self._state = ""
        self._validated = ""

    def start(self, total: int, label: str) -> None:
        """A task of ``total`` windows begins."""
        from rich.console import Console
        from rich.markup import escape
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        self.close()
        self._label = label
        self._throughput = _Throughput(total / self._scale)
        self._state = self._validated = ""
        self._bar = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            TextColumn("{task.fields[rate]}", style="cyan"),
            TimeRemainingColumn(compact=True),
            console=Console(file=self._stream, highlight=False),
            transient=True,
        )
        self._bar.start()
        self._task = self._bar.add_task(escape(label), total=total, state="", rate="")

    def update(self, n: int, **fields: Any) -> None:
        """``n`` more windows are done."""
        if self._bar is None:
            return
        self._throughput.done += n / self._scale
        rate = self._throughput.rate()
        self._state = describe(fields) or self._state
        state = ", ".join(part for part in (self._state, self._validated) if part)
        self._bar.update(self._task, advance=n, state=state, rate="" if rate is None else f"{rate:.0f} {self._unit}/s")

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch ended."""
        if record.get("val_mse") is not None:
            self._validated = f"val MSE {record['val_mse']:.4f}"
        if self._bar is not None:
            self._bar.console.print(f"{self._label}: {describe(record)}", markup=False)

    def close(self) -> None:
        """The task ended."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def describe(fields: dict[str, Any]) -> str:
    """Where a run is, from the fields that the loop reports: ``epoch 2, step 40, loss 0.3412, val MSE 0.3722``."""
    parts = []
    if fields.get("stage") not in (None, "train"):
        parts.append({"val": "validating", "test": "testing"}.get(fields["stage"], str(fields["stage"])))
    for key, text, form in (
        ("epoch", "epoch", "d"),
        ("step", "step", "d"),
        ("loss", "loss", ".4f"),
        ("train_loss", "loss", ".4f"),
        ("val_mse", "val MSE", ".4f"),
        ("lr", "lr", ".2g"),
    ):
        if fields.get(key) is not None:
            parts.append(f"{text} {fields[key]:{form}}")
    return ", ".join(parts)
