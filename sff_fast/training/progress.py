"""How a run tells its caller where it is."""

from __future__ import annotations

from typing import Any, Protocol


class Progress(Protocol):
    """What ``finetune(progress=...)`` calls. A task is one run; its unit is one window, trained on or evaluated."""

    def start(self, total: int, label: str) -> None:
        """A task begins: at most ``total`` windows (early stopping may end it sooner)."""

    def update(self, n: int, **fields: Any) -> None:
        """``n`` more windows are done; ``stage`` is train, val or test, training adds ``epoch``, ``loss`` and ``lr``."""

    def epoch(self, record: dict[str, Any]) -> None:
        """An epoch ended; the record is the one that the history and the log hold."""

    def close(self) -> None:
        """The task ended, whether it succeeded or not."""


class Silent:
    """Says nothing: the default."""

    def start(self, total: int, label: str) -> None:
        """Do nothing."""

    def update(self, n: int, **fields: Any) -> None:
        """Do nothing."""

    def epoch(self, record: dict[str, Any]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""
