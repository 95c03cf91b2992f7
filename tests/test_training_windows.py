"""The error of every window: where it lies, what it adds up to, and that a run keeps it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import training_fakes
from training_fakes import CONTEXT, HORIZON, FakeAdapter, make_data, place_of

from sff_fast.errors import ArgumentError, CheckpointError
from sff_fast.training import WindowErrors, compare, evaluate, finetune

quick = training_fakes.quick
pytestmark = pytest.mark.usefixtures("quick")


@pytest.mark.parametrize("batch_size", [7, 256])
@pytest.mark.parametrize("independent", [True, False])
def test_each_window_has_its_own_error_and_place(independent, batch_size):
    adapter = FakeAdapter.tiny()
    data = make_data(stride=2, channel_independent=independent)
    windows = WindowErrors(CONTEXT + HORIZON)
    found = evaluate(adapter, data, "test", batch_size=batch_size, windows=windows)
    assert windows.metrics == ["mse", "mae"]
    for number in range(len(data.test)):
        batch = data.test.batch(torch.tensor([number]))
        error = (adapter.forecast(batch.context, HORIZON).mean - batch.target).double()
        row, channel = place_of(data.test, number)
        assert (windows["start"][number], windows["channel"][number]) == (row, -1 if channel is None else channel)
        # Other batch sizes round the forecast's last bits differently, and errors are kept in float32.
        assert windows["mse"][number] == pytest.approx(float(error.square().mean()), rel=1e-5)
        assert windows["mae"][number] == pytest.approx(float(error.abs().mean()), rel=1e-5)
    assert windows["mse"].mean(dtype=np.float64) == pytest.approx(found["mse"], rel=1e-7)
    assert windows["mae"].mean(dtype=np.float64) == pytest.approx(found["mae"], rel=1e-7)
    assert not windows["series"].any()


def test_a_file_gives_back_what_was_saved(tmp_path):
    windows = WindowErrors(20)
    for begin in (0, 3):
        windows.add(torch.arange(begin, begin + 3), {"mse": torch.rand(3).double()}, torch.tensor([0, 1, 0]), torch.ones(3))
    path = tmp_path / "windows" / "test.safetensors"
    windows.save(path)
    assert path.stat().st_size < 6 * 16 + 600
    loaded = WindowErrors.load(path)
    assert (loaded.span, loaded.metrics, len(loaded)) == (20, ["mse"], 6)
    for name in ("start", "channel", "series", "mse"):
        assert loaded[name].dtype == windows[name].dtype
        assert np.array_equal(loaded[name], windows[name])


def test_long_series_have_their_places(tmp_path):
    windows = WindowErrors(20)
    windows.add(torch.tensor([40_000, 2_000_000_000]), {"mse": torch.ones(2)}, torch.tensor([0, 70_000]))
    windows.save(tmp_path / "windows" / "test.safetensors")
    loaded = WindowErrors.load(tmp_path / "windows" / "test.safetensors")
    assert loaded["start"].tolist() == [40_000, 2_000_000_000]
    assert loaded["channel"].tolist() == [0, 70_000]


def test_a_damaged_file_is_refused_in_one_line(tmp_path):
    windows = WindowErrors(20)
    windows.add(torch.arange(3), {"mse": torch.ones(3)})
    path = tmp_path / "windows" / "test.safetensors"
    windows.save(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(CheckpointError, match=r"cannot read '.*test\.safetensors'"):
        WindowErrors.load(path)
    from sff_fast.files import save_safetensors

    save_safetensors(path, {"weight": torch.ones(3)})
    with pytest.raises(CheckpointError, match="holds no errors of windows in the format 1"):
        WindowErrors.load(path)
    save_safetensors(path, {"start": torch.ones(3)}, {"format": "1", "span": "20"})
    with pytest.raises(CheckpointError, match="holds no whole table of windows"):
        WindowErrors.load(path)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ArgumentError, match="span must be a whole number of rows of at least 1, got 0"):
        WindowErrors(0)
    windows = WindowErrors(20)
    with pytest.raises(ArgumentError, match=r"mse must have one value for each of the 3 windows, got shape \[2\]"):
        windows.add(torch.arange(3), {"mse": torch.ones(2)})
    assert len(windows) == 0
    windows.add(torch.arange(3), {"mse": torch.ones(3)})
    with pytest.raises(ArgumentError, match="errors must have the metrics mse, got mae"):
        windows.add(torch.arange(3), {"mae": torch.ones(3)})
    with pytest.raises(ArgumentError, match="there is no 'crps' for each window: expected one of start, channel, series, mse"):
        windows["crps"]


def test_runs_keep_the_errors_of_their_test_windows(tmp_path):
    data = make_data()
    options = {"epochs": 1, "batch_size": 32}
    result = finetune(FakeAdapter.tiny(), data, "ff", out=tmp_path / "run", **options)
    assert sorted(path.name for path in (tmp_path / "run" / "windows").iterdir()) == ["test.safetensors", "zero-shot.safetensors"]
    again = finetune(FakeAdapter.tiny(), data, "ff", out=tmp_path / "run", resume=True, **options)
    for one in (result, again):
        assert one.windows["mse"].mean(dtype=np.float64) == pytest.approx(one.test_mse, rel=1e-7)
        assert one.zero_shot_windows["mse"].mean(dtype=np.float64) == pytest.approx(one.zero_shot["test_mse"], rel=1e-7)
        assert not np.array_equal(one.windows["mse"], one.zero_shot_windows["mse"])
    compare(FakeAdapter.tiny, data, ("ff",), out=tmp_path / "both", **options)
    files = sorted(str(path.relative_to(tmp_path / "both" / "runs")) for path in tmp_path.glob("both/runs/*/windows/*"))
    assert files == ["ff-seed0/windows/test.safetensors", "zero-shot/windows/zero-shot.safetensors"]


def test_a_model_whose_forecasts_are_not_finite_has_no_errors_of_windows(recwarn):
    adapter = FakeAdapter.tiny()
    with torch.no_grad():
        adapter.model.head.bias[0] = float("nan")
    result = finetune(adapter, make_data(), "zero-shot")
    assert result.test_mse is None
    assert result.windows is None
    assert any("not finite" in str(warning.message) or "nan" in str(warning.message) for warning in recwarn)
