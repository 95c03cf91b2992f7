"""What the options of a command name: the model, the table, its windows. Everything here fails before a folder is made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sff_fast.adapters import Adapter
    from sff_fast.data import AnomalyData, ForecastData, Table

_OWN_OPTIONS = {"forecast": (), "imputation": ("mask_rates", "patch_length"), "anomaly": ("segment_length",)}
_OPTION_NAMES = {"mask_rates": "--mask-rate", "patch_length": "--patch-length", "segment_length": "--segment-length"}


@dataclass(frozen=True)
class ModelSource:
    """The model of ``--family`` and ``--checkpoint`` or ``--tiny``. Called, it opens the model anew."""

    family: str
    checkpoint: str | None
    tiny: bool

    def __call__(self) -> Adapter:
        """Load the checkpoint, or make the tiny model.

        Raises:
            ArgumentError: There is no such family; the message lists those that there are.
            click.UsageError: Both or neither of the two options were given.
        """
        from sff_fast import adapters
        from sff_fast.errors import ArgumentError

        known = adapters.families()
        if self.family not in known:
            raise ArgumentError(f"unknown family {self.family!r}: expected one of {', '.join(known)}")
        if self.tiny == (self.checkpoint is not None):
            raise click.UsageError("give either --checkpoint PATH or --tiny (a small random model of the family)")
        return adapters.tiny(self.family) if self.tiny else adapters.load(self.family, self.checkpoint)


@dataclass(frozen=True)
class TableSource:
    """The table of ``--data``, and how to read it."""

    data: str
    columns: tuple[str, ...] | None
    date_column: str | None
    id_column: str | None
    fill: str | None
    drop: bool

    def read(self) -> Table:
        """Read and check the table."""
        from sff_fast.data import read_table

        named = {"columns": self.columns, "date_column": self.date_column, "id_column": self.id_column}
        return read_table(self.data, **named, fill=self.fill, drop=self.drop)


@dataclass(frozen=True)
class WindowSource(TableSource):
    """The windows that a table is cut into for a task."""

    split: str
    context_length: int | None
    prediction_length: int | None
    stride: int
    task: str
    mask_rates: tuple[float, ...] | None
    patch_length: int | None
    segment_length: int | None

    def windows(self, adapter: Adapter, train_fraction: float = 1.0) -> ForecastData | AnomalyData:
        """Read the data and cut it into windows as the task and the model's family want them.

        Args:
            adapter: The model.
            train_fraction: Share of the train windows to use.

        Raises:
            ArgumentError: The model cannot do the task, or not with these lengths.
            click.UsageError: An option is missing, or means nothing to the task.
        """
        from sff_fast import tasks

        given = {name: getattr(self, name) for name in _OPTION_NAMES if getattr(self, name) is not None}
        for name in given:
            if name not in _OWN_OPTIONS[self.task]:
                self._refuse(_OPTION_NAMES[name])
        given.update(stride=self.stride, train_fraction=train_fraction)
        if self.task == "forecast":
            return self._forecast(adapter, given)
        if self.prediction_length is not None:
            self._refuse("--prediction-length")
        adapter.check_task(self.task, self.context_length)
        if self.context_length is not None:
            given["context_length"] = self.context_length
        found = self._imputation(adapter, given) if self.task == "imputation" else self._anomaly(given)
        tasks.check(adapter, found)
        return found

    def _forecast(self, adapter: Adapter, given: dict[str, Any]) -> ForecastData:
        from sff_fast.data import ForecastData

        for name, value in (("--context-length", self.context_length), ("--prediction-length", self.prediction_length)):
            if value is None:
                raise click.UsageError(f"Missing option '{name}'.")
        adapter.check_lengths(self.context_length, self.prediction_length)
        lengths = (self.context_length, self.prediction_length)
        return ForecastData(self.read(), self.split, *lengths, channel_independent=adapter.channel_independent, **given)

    def _imputation(self, adapter: Adapter, given: dict[str, Any]) -> ForecastData:
        from sff_fast.data import ImputationData

        return ImputationData(self.read(), self.split, channel_independent=adapter.channel_independent, **given)

    def _anomaly(self, given: dict[str, Any]) -> AnomalyData:
        from sff_fast.data import AnomalyData

        if self.drop:
            raise click.UsageError("--drop would move the labels of --task anomaly: leave it out, and fill gaps with --fill")
        for option in ("columns", "date_column", "id_column"):  # a file of the archive has one value a line
            if getattr(self, option) is not None:
                self._refuse(f"--{option.replace('_', '-')}")
        return AnomalyData.from_ucr(self.data, fill=self.fill, **given)

    def _refuse(self, option: str) -> None:
        raise click.UsageError(f"{option} means nothing to --task {self.task}: leave it out")
