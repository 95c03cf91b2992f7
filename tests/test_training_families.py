"""The loop with real families: the small Timer, and IBM's published TTM on ETTh1."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch

from sff_fast.adapters import load, tiny
from sff_fast.data import ForecastData, Table, read_table
from sff_fast.smooth import smooth_, smoothing_of
from sff_fast.training import compare, evaluate, finetune, forecast

needs_ttm = pytest.mark.skipif(
    importlib.util.find_spec("tsfm_public") is None, reason="granite-tsfm is not installed: pip install 'sff_fast[ttm]'"
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data():
    t = np.arange(400)
    noise = 0.3 * np.random.default_rng(0).normal(size=(400, 2))
    return ForecastData(Table(np.stack([np.sin(t / 7), np.cos(t / 11)], axis=1) + noise, ["a", "b"]), "0.5,0.25,0.25", 96, 24)


def test_every_strategy_tunes_the_small_timer_and_saves_it_loadable(data, tmp_path):
    result = compare(
        lambda: tiny("timer"), data, ("tfs", "ff", "sff", "lp", "lp-ff"), out=tmp_path / "out", epochs=2, lr=1e-3, max_steps=20
    )
    for run in result.runs:
        assert evaluate(load("timer", run.model_dir), data, "test")["mse"] == run.test_mse, run.strategy
        assert run.test_mse != result.zero_shot["test_mse"], run.strategy
    assert len({run.test_mse for run in result.runs}) == 5


def test_sff_starts_from_what_the_kernel_makes_of_the_weights(data):
    adapter, reference = tiny("timer"), tiny("timer")
    smooth_(reference.model, reference.plan(), alpha=0.4, seed=9)
    expected = evaluate(reference, data, "val")["mse"]
    result = finetune(adapter, data, "sff", alpha=0.4, seed=9, epochs=1, max_steps=1)
    assert result.history[0]["val_mse"] == expected
    assert result.smooth["seed"] == 9
    assert len(smoothing_of(adapter.model)) == 1


def test_a_model_is_not_smoothed_twice_unless_asked(data):
    adapter = tiny("timer")
    finetune(adapter, data, "sff", epochs=1, max_steps=1)
    with pytest.raises(ValueError, match="smoothed before"):
        finetune(adapter, data, "sff", epochs=1, max_steps=1)
    finetune(adapter, data, "sff", epochs=1, max_steps=1, again=True)


def test_scratch_training_does_not_depend_on_the_pretrained_weights(data):
    results = [finetune(tiny("timer", seed), data, "tfs", epochs=1, max_steps=2).test_mse for seed in (0, 1)]
    assert results[0] == results[1]


@pytest.mark.parametrize("strategy", ["ff", "sff"])
def test_the_small_timer_trains_in_bf16(data, strategy):
    adapter = tiny("timer")
    result = finetune(adapter, data, strategy, epochs=1, max_steps=20, lr=3e-3, precision="bf16", deterministic=True)
    assert {parameter.dtype for parameter in adapter.model.parameters()} == {torch.bfloat16}
    assert result.test_mse < result.history[0]["val_mse"] + 1
    assert result.test_mse is not None


def test_a_deterministic_timer_run_repeats_itself_with_any_number_of_threads(data):
    figures = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        figures.append(finetune(tiny("timer"), data, "ff", epochs=1, max_steps=10, lr=1e-3, deterministic=True).test_mse)
    assert figures[0] == figures[1]


@needs_ttm
@pytest.mark.parametrize(
    ("stride", "windows", "mse", "mae"),
    [
        pytest.param(1, 2785, 0.362812, 0.389031, marks=pytest.mark.slow),
        pytest.param(29, 97, 0.366005, 0.389074),
    ],
)
def test_the_published_ttm_has_its_known_zero_shot_error_on_etth1(test_data, stride, windows, mse, mae):
    # Measured with the package's own class in a plain loop over all, or every 29th, of the test windows.
    data = ForecastData(read_table(test_data / "ETTh1.csv"), "ett-hour", 512, 96, stride, channel_independent=False)
    metrics = evaluate(load("ttm", test_data / "granite-ttm-512-96"), data, batch_size=64)
    assert metrics["windows"] == windows
    assert metrics["mse"] == pytest.approx(mse, abs=2e-6)
    assert metrics["mae"] == pytest.approx(mae, abs=2e-6)


@needs_ttm
def test_the_published_ttm_is_tuned_saved_and_loaded(test_data, tmp_path):
    full = read_table(test_data / "ETTh1.csv")
    table = Table(full.values[:1500, :3], full.columns[:3], full.timestamps[:1500], full.frequency, "the beginning of ETTh1")
    data = ForecastData(table, "0.6,0.2,0.2", 512, 96, stride=20, channel_independent=False)
    adapter = load("ttm", test_data / "granite-ttm-512-96")
    result = finetune(adapter, data, "sff", epochs=2, lr=1e-3, out=tmp_path / "run", batch_size=8)
    again = load("ttm", tmp_path / "run" / "model")
    assert evaluate(again, data)["mse"] == result.test_mse
    predicted = forecast(again, table, 512, 96, scaler=data.scaler)
    assert predicted.mean.shape == (96, 3)
    assert np.abs(predicted.mean - table.values[-200:].mean(axis=0)).max() < 6 * table.values.std()
    assert predicted.timestamps[0] - table.timestamps[-1] == np.timedelta64(1, "h")
