"""A small family and small data for the tests of the fine-tuning loop."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sff_fast.adapters import Adapter, Forecast, Limits, tiny
from sff_fast.data import ForecastData, Table, WindowSet
from sff_fast.files import save_safetensors
from sff_fast.training import finetune

CONTEXT, HORIZON = 16, 4
VOLATILE = {"seconds", "throughput", "peak_bytes"}


@pytest.fixture
def quick(monkeypatch):
    """One thread, and files that are not flushed to the disk: no test here cuts the power."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def place_of(windows: WindowSet, index: int) -> tuple[int, int | None]:
    """First context row (in the table) and channel (None for all) of one window."""
    rows, channels = windows.positions(torch.tensor([index]))
    return int(rows[0]), None if channels is None else int(channels[0])


class Net(nn.Module):
    """Two layers with dropout, a buffer that counts training passes and one that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(CONTEXT, 8)
        self.dropout = nn.Dropout(0.2)
        self.head = nn.Linear(8, HORIZON)
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.register_buffer("unsaved", torch.zeros(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.passes += 1
            self.unsaved += 0.5
        hidden = torch.tanh(self.body(x.transpose(1, 2).to(self.body.weight.dtype)))
        return self.head(self.dropout(hidden)).transpose(1, 2)


class FakeAdapter(Adapter):
    """Forecasts each channel with the little net. ``on_loss`` is called with the batch and may replace the loss."""

    family = "fake"
    variant = "fake"
    default_lr = 1e-2
    channel_independent = True

    on_loss = None

    @classmethod
    def load(cls, path: Any, **options: Any) -> FakeAdapter:
        adapter = cls.tiny()
        adapter.model.load_state_dict(load_file(Path(path) / "model.safetensors"))
        adapter.source = Path(path)
        return adapter

    @classmethod
    def tiny(cls, seed: int = 0) -> FakeAdapter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(Net().eval(), origin=lambda: cls.tiny(seed))

    def build(self) -> Net:
        return Net()

    def _loss(self, context: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return nn.functional.mse_loss(self.model(context).float(), target)

    def loss(self, batch: Any) -> torch.Tensor:
        loss = super().loss(batch)
        if self.on_loss is not None:
            replaced = self.on_loss(batch)
            loss = loss if replaced is None else loss * replaced
        return loss

    def _forecast(self, context: torch.Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        mean = self.model(context).float()
        return Forecast(mean, quantiles={0.5: mean, 0.9: mean + 1})

    @property
    def limits(self) -> Limits:
        return Limits(min_context=CONTEXT, max_context=CONTEXT, max_prediction=HORIZON)

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(f"head.{name}", parameter) for name, parameter in self.model.head.named_parameters()]

    def config(self) -> dict[str, Any]:
        return {"family": "fake", "width": 8}

    def _write(self, folder: Path) -> None:
        save_safetensors(folder / "model.safetensors", self.model.state_dict())


def make_table(rows: int = 120, seed: int = 0) -> Table:
    """Two noisy waves, hourly."""
    t = np.arange(rows)
    noise = np.random.default_rng(seed).normal(size=(rows, 2))
    values = np.stack([10 + 3 * np.sin(t / 3), -5 + np.cos(t / 5)], axis=1) + 0.2 * noise
    stamps = np.datetime64("2024-01-01T00", "us") + t * np.timedelta64(1, "h").astype("timedelta64[us]")
    return Table(values, ["first", "second"], stamps, "h", "waves.csv")


def make_data(rows: int = 120, seed: int = 0, **options: Any) -> ForecastData:
    return ForecastData(make_table(rows, seed), "0.6,0.2,0.2", CONTEXT, HORIZON, **options)


@pytest.fixture(scope="module")
def data() -> ForecastData:
    """:func:`make_data`, once a module."""
    return make_data()


def once_each(data: ForecastData, folders: pytest.TempPathFactory, options: dict[str, Any]) -> Callable[[str], Any]:
    """A function from a strategy to the folder and the result of its run, which is done when it is first asked for."""
    runs: dict[str, Any] = {}

    def of(strategy: str) -> Any:
        if strategy not in runs:
            out = folders.mktemp("whole") / strategy
            runs[strategy] = out, finetune(FakeAdapter.tiny(), data, strategy, out=out, **options)
        return runs[strategy]

    return of


class StopAt:
    """A progress that sends this process a signal when the n-th update of a stage is reported."""

    def __init__(self, stage: str, count: int, number: int = signal.SIGTERM) -> None:
        self.stage, self.left, self.number = stage, count, number

    def start(self, total: int, label: str) -> None: ...

    def update(self, n: int, **fields: Any) -> None:
        self.left -= fields["stage"] == self.stage
        if self.left == 0 and fields["stage"] == self.stage:
            os.kill(os.getpid(), self.number)

    def epoch(self, record: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class PrintSteps(StopAt):
    """A progress that prints a line for every training step."""

    def __init__(self) -> None: ...

    def update(self, n: int, **fields: Any) -> None:
        if fields["stage"] == "train":
            print("step", flush=True)


def tune_tiny_timer(out: Any, progress: Any = None) -> None:
    """A short run of the small Timer, begun or continued."""
    torch.set_num_threads(1)
    t = np.arange(400)
    noise = 0.3 * np.random.default_rng(0).normal(size=(400, 2))
    table = Table(np.stack([np.sin(t / 7), np.cos(t / 11)], axis=1) + noise, ["a", "b"])
    data = ForecastData(table, "0.5,0.25,0.25", 96, 24)
    options = {"epochs": 3, "batch_size": 8, "lr": 1e-3, "seed": 5}
    finetune(tiny("timer"), data, "sff", out=out, resume=True, progress=progress, **options)


def steady(value: Any) -> Any:
    """A nested value without the fields that differ from run to run."""
    if isinstance(value, dict):
        return {key: steady(item) for key, item in value.items() if key not in VOLATILE}
    return [steady(item) for item in value] if isinstance(value, list) else value


def read_log(folder: Path) -> list[dict[str, Any]]:
    return [steady(json.loads(line)) for line in (folder / "log.jsonl").read_text().splitlines()]


def newest_state(folder: Path) -> Path:
    return max((folder / "state").glob("save-*"))


def assert_same_run(first: Path, second: Path, *extra: str) -> None:
    """Weights, best weights, optimizer, generators, model, log and metrics are the same, bit for bit.

    ``extra`` names further files of the state, between the best weights and the optimizer in the alphabet.
    """
    one, two = newest_state(first), newest_state(second)
    names = sorted(path.name for path in one.glob("*.safetensors"))
    assert names == [f"{name}.safetensors" for name in ("best", *extra, "optimizer", "rng", "weights")]
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    content = [json.loads((state / "state.json").read_text())["content"] for state in (one, two)]
    for part in ("position", "optimizer", "method", "rng", "scheduler", "zero_shot", "prepared", "identity", "environment"):
        assert steady(content[0][part]) == steady(content[1][part]), part
    for path in (first / "model").iterdir():
        assert path.read_bytes() == (second / "model" / path.name).read_bytes(), path.name
    assert read_log(first) == read_log(second)
    metrics = [steady(json.loads((folder / "metrics.json").read_text())) for folder in (first, second)]
    assert metrics[0] == metrics[1]
