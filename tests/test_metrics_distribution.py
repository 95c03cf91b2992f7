"""MASE, sMAPE, weighted quantile loss and CRPS, against their definitions and against gluonts."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from training_fakes import CONTEXT, HORIZON, FakeAdapter, place_of

from sff_fast.data import ForecastData, Table
from sff_fast.errors import ArgumentError
from sff_fast.metrics import ForecastMetrics, NotFiniteError, quantile
from sff_fast.metrics.seasonal import naive_errors, season_of
from sff_fast.training import evaluate

MEAN, STD = [10.0, -3.0], [2.0, 0.5]
LEVELS = (0.1, 0.5, 0.8)


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def quantiles_of(center: torch.Tensor) -> dict[float, torch.Tensor]:
    return {level: center + 3 * (level - 0.5) for level in LEVELS}


def metrics_with_all() -> ForecastMetrics:
    return ForecastMetrics(4, 2, mean=MEAN, std=STD, naive=[0.5, 0.25])


def in_units(values: torch.Tensor) -> np.ndarray:
    return (values * torch.tensor(STD) + torch.tensor(MEAN)).numpy()


def empirical_crps(samples: list[float], y: float) -> float:
    """The integral of ``(F(x) - 1{x >= y})^2``, piece by piece in rational arithmetic."""
    points = sorted({Fraction(x) for x in samples} | {Fraction(y)})
    total = Fraction(0)
    for left, right in itertools.pairwise(points):
        share = Fraction(sum(Fraction(x) <= left for x in samples), len(samples))
        total += (share - (Fraction(y) <= left)) ** 2 * (right - left)
    return float(total)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_crps_of_samples_is_the_integral_that_defines_it(count: int) -> None:
    samples, target = draw(3, count, 4, 2).round(decimals=2), draw(3, 4, 2, seed=1).round(decimals=2)
    got = quantile.crps_of_sorted(samples.sort(dim=1).values, target)
    for b, h, c in itertools.product(range(3), range(4), range(2)):
        expected = empirical_crps(samples[b, :, h, c].tolist(), float(target[b, h, c]))
        assert float(got[b, h, c]) == pytest.approx(expected, abs=1e-13)


def test_one_sample_path_has_the_absolute_error_for_its_crps() -> None:
    prediction, target = draw(6, 4, 2), draw(6, 4, 2, seed=1)
    metrics = metrics_with_all()
    metrics.update(prediction, target, samples=prediction.unsqueeze(1))
    found = metrics.to_json()
    assert found["crps"] == pytest.approx(found["mae"], rel=1e-14)
    assert found["crps_per_channel"] == pytest.approx(found["mae_per_channel"], rel=1e-14)
    assert found["crps_of"] == "samples"


def test_the_quantiles_of_sample_paths_are_those_of_torch() -> None:
    samples = draw(3, 7, 4, 2)
    got = quantile.quantiles_of_sorted(samples.sort(dim=1).values, (0.0, 0.1, 0.5, 0.77, 1.0))
    for level, values in got.items():
        torch.testing.assert_close(values, samples.quantile(level, dim=1), rtol=1e-12, atol=1e-12)


def test_sample_paths_that_are_sorted_in_pieces_give_the_same_errors(monkeypatch) -> None:
    samples, target = draw(7, 9, 4, 2), draw(7, 4, 2, seed=1)
    whole, pieces = metrics_with_all(), metrics_with_all()
    whole.update(samples.mean(dim=1), target, samples=samples)
    monkeypatch.setattr(quantile, "CHUNK", 2 * 9 * 4 * 2)
    pieces.update(samples.mean(dim=1), target, samples=samples)
    assert pieces.to_json() == whole.to_json()


def test_the_figures_are_those_of_gluonts() -> None:
    gluonts = pytest.importorskip("gluonts.ev.metrics")
    target, forecast = draw(5, 4, 2), draw(5, 4, 2, seed=1)
    spread = quantiles_of(forecast)
    metrics = metrics_with_all()
    for part in torch.arange(5).split(2):
        metrics.update(forecast[part], target[part], quantiles={level: values[part] for level, values in spread.items()})
    found = metrics.to_json()
    # One series a window and channel, with its errors in the data's own units.
    series = {"label": in_units(target), "0.5": in_units(spread[0.5]), "mean": in_units(forecast)}
    series.update({str(level): in_units(values) for level, values in spread.items()})
    data = {name: values.transpose(0, 2, 1).reshape(10, 4) for name, values in series.items()}
    data["seasonal_error"] = np.tile(np.array([0.5, 0.25]) * STD, 5)[:, None]

    def theirs(definition: object) -> float:
        evaluator = definition(axis=None)
        evaluator.update(data)
        return float(evaluator.get())

    assert found["mase"] == pytest.approx(theirs(gluonts.MASE(forecast_type="mean")), rel=1e-12)
    assert found["smape"] == pytest.approx(theirs(gluonts.SMAPE(forecast_type="mean")), rel=1e-12)
    assert found["wql"] == pytest.approx(theirs(gluonts.MeanWeightedSumQuantileLoss(LEVELS)), rel=1e-12)
    for level in LEVELS:
        one = theirs(gluonts.WeightedSumQuantileLoss(q=level))
        assert found["wql_per_level"][f"{level:g}"] == pytest.approx(one, rel=1e-12)


def test_every_figure_is_there_for_each_step_and_channel() -> None:
    target, forecast = draw(6, 4, 2), draw(6, 4, 2, seed=1)
    metrics = metrics_with_all()
    metrics.update(forecast, target, quantiles=quantiles_of(forecast))
    found = metrics.to_json()
    for step in range(4):
        alone = ForecastMetrics(1, 2, mean=MEAN, std=STD, naive=[0.5, 0.25])
        part = slice(step, step + 1)
        alone.update(forecast[:, part], target[:, part], quantiles=quantiles_of(forecast[:, part]))
        for name in ("mse", "mae", "rmse", "mase", "smape", "wql", "crps"):
            assert found[f"{name}_per_horizon"][step] == pytest.approx(alone.to_json()[name], rel=1e-13), name
    for c in range(2):
        alone = ForecastMetrics(4, 1, mean=MEAN[c : c + 1], std=STD[c : c + 1], naive=[0.5 / 2**c])
        part = slice(c, c + 1)
        alone.update(forecast[..., part], target[..., part], quantiles=quantiles_of(forecast[..., part]))
        for name in ("mse", "mae", "rmse", "mase", "smape", "wql", "crps"):
            assert found[f"{name}_per_channel"][c] == pytest.approx(alone.to_json()[name], rel=1e-13), name


def test_windows_of_one_channel_give_the_same_figures_as_joint_ones() -> None:
    target, samples = draw(5, 4, 2), draw(5, 3, 4, 2, seed=1)
    joint, single = metrics_with_all(), metrics_with_all()
    joint.update(samples.mean(dim=1), target, samples=samples)
    for c in (1, 0):
        part = slice(c, c + 1)
        channel = torch.full((5,), c)
        single.update(samples.mean(dim=1)[..., part], target[..., part], channel, samples=samples[..., part])
    expected, got = joint.to_json(), single.to_json()
    assert (expected.pop("windows"), got.pop("windows")) == (5, 10)
    for name, value in expected.items():
        assert got[name] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-13)), name


def test_zeros_are_forecast_without_an_error_in_per_cent() -> None:
    metrics = ForecastMetrics(1, 1)
    metrics.update(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1), quantiles={0.5: torch.zeros(1, 1, 1)})
    found = metrics.to_json()
    assert found["smape"] == 0.0
    assert found["wql"] is None  # nothing to weigh with


def test_a_channel_that_repeats_its_season_has_no_mase_and_is_left_out_of_the_mean() -> None:
    metrics = ForecastMetrics(1, 2, naive=[0.0, 0.5])
    metrics.update(torch.tensor([[[1.0, 2.0]]]), torch.zeros(1, 1, 2))
    found = metrics.to_json()
    assert (found["mase"], found["mase_per_channel"], found["mase_per_horizon"]) == (4.0, [None, 4.0], [4.0])
    none = ForecastMetrics(1, 1, naive=[float("nan")])
    none.update(torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
    assert (none.to_json()["mase"], none.to_json()["mase_per_channel"]) == (None, [None])


@pytest.mark.parametrize("broken", ["quantiles", "samples"])
def test_a_distribution_that_is_not_finite_is_refused_and_nothing_of_it_added(broken: str) -> None:
    point = torch.zeros(3, 4, 2)
    bad = point.clone()
    bad[2, 1, 1] = float("nan")
    metrics = metrics_with_all()
    given = {"samples": bad.unsqueeze(1)} if broken == "samples" else {"quantiles": {0.1: point, 0.9: bad}}
    with pytest.raises(NotFiniteError, match="not finite in window 7, horizon step 2, channel 1: the weights have diverged"):
        metrics.update(point, point, index=torch.tensor([5, 6, 7]), **given)
    with pytest.raises(ArgumentError, match="no window was added"):
        metrics.to_json()


def test_other_levels_than_before_and_shapes_that_do_not_fit_are_refused() -> None:
    point = torch.zeros(3, 4, 2)
    metrics = metrics_with_all()
    metrics.update(point, point, quantiles={0.1: point})
    with pytest.raises(ArgumentError, match=r"levels \[0.1\] of the first batch, got \[0.2\]"):
        metrics.update(point, point, quantiles={0.2: point})
    with pytest.raises(ArgumentError, match=r"quantiles\[0.1\] must have the shape \[3, 4, 2\], got \[3, 4, 1\]"):
        metrics.update(point, point, quantiles={0.1: point[..., :1]})
    with pytest.raises(ArgumentError, match=r"samples must have the shape \[3, samples, 4, 2\], got \[3, 4, 2\]"):
        metrics.update(point, point, samples=point)
    with pytest.raises(ArgumentError, match=r"std must have one number for each of the 2 channels, got \[3\]"):
        ForecastMetrics(4, 2, std=[1.0, 1.0, 1.0])


@pytest.mark.parametrize(
    ("frequency", "season"),
    [
        ("h", 24),
        ("15min", 96),
        ("2h", 12),
        ("5h", 1),
        ("D", 1),
        ("B", 5),
        ("M", 12),
        ("Q", 4),
        ("7us", 1),
        (None, 1),
        ("30s", 120),
    ],
)
def test_the_season_follows_from_the_step(frequency: str | None, season: int) -> None:
    assert season_of(frequency) == season


def test_the_naive_error_is_that_of_the_season_before() -> None:
    train = np.array([[0.0, 1.0], [2.0, 1.0], [1.0, 5.0], [5.0, 1.0]])
    np.testing.assert_array_equal(naive_errors(train, 2), [(1 + 3) / 2, (4 + 0) / 2])
    np.testing.assert_array_equal(naive_errors(train, 4), [(2 + 1 + 4) / 3, (0 + 4 + 4) / 3])  # too short: one row before
    assert np.isnan(naive_errors(train[:1], 1)).all()


def test_an_evaluation_reports_mase_and_smape_in_the_datas_own_units() -> None:
    t = np.arange(400)
    noise = np.random.default_rng(0).normal(size=(400, 2))
    values = np.stack([100 + 20 * np.sin(t * np.pi / 12), 3 + np.cos(t * np.pi / 12)], axis=1) + 0.1 * noise
    stamps = np.datetime64("2024-01-01T00", "us") + t * np.timedelta64(1, "h").astype("timedelta64[us]")
    data = ForecastData(Table(values, ["a", "b"], stamps, "h"), "0.5,0.25,0.25", CONTEXT, HORIZON, stride=3)
    adapter = FakeAdapter.tiny()
    found = evaluate(adapter, data)
    errors, ratios, losses, sizes = [[], []], [], [], []
    for number in range(len(data.test)):
        row, channel = place_of(data.test, number)
        row += CONTEXT
        batch = data.test.batch(torch.tensor([number]))
        forecast = data.scaler.inverse(adapter.forecast(batch.context, HORIZON).mean[0, :, 0].numpy(), channel)
        truth = values[row : row + HORIZON, channel]
        errors[channel] += list(abs(truth - forecast))
        ratios += list(2 * abs(truth - forecast) / (abs(truth) + abs(forecast)))
        upper = forecast + data.scaler.std[channel]  # the fake family's 0.9 quantile lies one standard deviation above
        losses += list(0.5 * abs(truth - forecast) + np.maximum(0.9 * (truth - upper), 0.1 * (upper - truth)))
        sizes += list(abs(truth))
    season = [np.abs(values[24:200, c] - values[:176, c]).mean() for c in range(2)]
    assert found["season"] == 24
    # Forecasts are float32.
    assert found["mase"] == pytest.approx(np.mean([np.mean(errors[c]) / season[c] for c in range(2)]), rel=1e-5)
    assert found["smape"] == pytest.approx(np.mean(ratios), rel=1e-5)
    assert found["wql"] == pytest.approx(np.sum(losses) / np.sum(sizes), rel=1e-5)
    assert found["crps_of"] == "2 quantiles"
