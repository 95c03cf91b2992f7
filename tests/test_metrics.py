"""Errors are averaged over all windows, whatever the batches were."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sff_fast.errors import ArgumentError, SffFastError
from sff_fast.metrics import ForecastMetrics, NotFiniteError


def draw(n: int, steps: int = 4, channels: int = 3, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (n, steps, channels)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def exact(prediction: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """Mean squared and absolute error in rational arithmetic."""
    errors = [Fraction(p) - Fraction(t) for p, t in zip(prediction.flatten().tolist(), target.flatten().tolist())]
    return float(sum(e * e for e in errors) / len(errors)), float(sum(abs(e) for e in errors) / len(errors))


def test_the_errors_of_two_windows_are_what_one_computes_by_hand() -> None:
    metrics = ForecastMetrics(2, 1)
    metrics.update(torch.tensor([[[1.0], [2.0]]]), torch.tensor([[[0.0], [4.0]]]))
    metrics.update(torch.tensor([[[3.0], [3.0]]]), torch.tensor([[[0.0], [3.0]]]))
    assert metrics.to_json() == {
        "mse": (1 + 4 + 9 + 0) / 4,
        "mae": (1 + 2 + 3 + 0) / 4,
        "rmse": math.sqrt(3.5),
        "windows": 2,
        "mse_per_horizon": [5.0, 2.0],
        "mae_per_horizon": [2.0, 1.0],
        "mse_per_channel": [3.5],
        "mae_per_channel": [1.5],
        "rmse_per_horizon": [math.sqrt(5), math.sqrt(2)],
        "rmse_per_channel": [math.sqrt(3.5)],
        # 2 |y - f| / (|y| + |f|): 2 and 4/6 in the first window, 2 and 0 in the second.
        "smape": pytest.approx((2 + 2 / 3 + 2 + 0) / 4, rel=1e-15),
        "smape_per_horizon": [2.0, pytest.approx(1 / 3, rel=1e-15)],
        "smape_per_channel": [pytest.approx((2 + 2 / 3 + 2 + 0) / 4, rel=1e-15)],
    }


def test_every_window_gets_its_own_errors_back() -> None:
    prediction, target = draw(5)
    errors = ForecastMetrics(4, 3).update(prediction, target)
    for row in range(5):
        mse, mae = exact(prediction[row], target[row])
        assert errors["mse"][row] == pytest.approx(mse, rel=1e-14)
        assert errors["mae"][row] == pytest.approx(mae, rel=1e-14)


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 40), sizes=st.lists(st.integers(1, 17), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_a_short_last_batch_counts_as_much_as_its_windows(n: int, sizes: list[int], seed: int) -> None:
    prediction, target = draw(n, seed=seed)
    metrics = ForecastMetrics(4, 3)
    begin = batch = 0
    while begin < n:
        end = min(n, begin + sizes[batch % len(sizes)])
        metrics.update(prediction[begin:end], target[begin:end])
        begin, batch = end, batch + 1
    mse, mae = exact(prediction, target)
    # Each float64 error and square is rounded to 1.1e-16; their sums are of one sign and compensated.
    assert metrics.mse == pytest.approx(mse, rel=1e-14)
    assert metrics.mae == pytest.approx(mae, rel=1e-14)
    assert metrics.windows == n


def test_channels_and_horizon_steps_are_told_apart() -> None:
    prediction, target = draw(11)
    metrics = ForecastMetrics(4, 3)
    metrics.update(prediction, target)
    found = metrics.to_json()
    for step in range(4):
        mse, mae = exact(prediction[:, step], target[:, step])
        assert found["mse_per_horizon"][step] == pytest.approx(mse, rel=1e-14)
        assert found["mae_per_horizon"][step] == pytest.approx(mae, rel=1e-14)
    for channel in range(3):
        mse, mae = exact(prediction[:, :, channel], target[:, :, channel])
        assert found["mse_per_channel"][channel] == pytest.approx(mse, rel=1e-14)
        assert found["mae_per_channel"][channel] == pytest.approx(mae, rel=1e-14)


def test_channel_independent_batches_give_the_same_errors_as_joint_ones() -> None:
    prediction, target = draw(10)
    joint, single = ForecastMetrics(4, 3), ForecastMetrics(4, 3)
    joint.update(prediction, target)
    channel = torch.arange(3).repeat_interleave(10)
    flat = [x.permute(2, 0, 1).reshape(30, 4, 1) for x in (prediction, target)]
    for part in torch.randperm(30, generator=torch.Generator().manual_seed(3)).split(7):
        single.update(flat[0][part], flat[1][part], channel[part])
    expected, got = joint.to_json(), single.to_json()
    assert (expected.pop("windows"), got.pop("windows")) == (10, 30)
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-13), name


def test_a_channel_without_a_window_has_no_error_and_does_not_dilute_the_mean() -> None:
    metrics = ForecastMetrics(2, 3)
    metrics.update(torch.ones(4, 2, 1), torch.zeros(4, 2, 1), torch.tensor([0, 2, 2, 2]))
    assert metrics.to_json()["mse_per_channel"] == [1.0, None, 1.0]
    assert metrics.mse == 1.0
    assert metrics.to_json()["mse_per_horizon"] == [1.0, 1.0]


def test_small_errors_are_not_lost_behind_large_ones() -> None:
    metrics = ForecastMetrics(1, 1)
    metrics.update(torch.full((1, 1, 1), 1e8, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64))
    for _ in range(1000):
        metrics.update(torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
    # 1e16 + 1 is 1e16 in float64, so a plain sum would lose all thousand.
    assert metrics.mse * 1001 == pytest.approx(1e16 + 1000, rel=1e-16 * 2)
    other = ForecastMetrics(1, 1)
    for _ in range(1000):
        other.update(torch.ones(1, 1, 1), torch.zeros(1, 1, 1))
    other.update(torch.full((1, 1, 1), 1e8, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64))
    assert other.mse == metrics.mse


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_difference_is_taken_in_float64_whatever_the_dtype(dtype: torch.dtype) -> None:
    prediction, target = (x.to(dtype) * 300 for x in draw(9))
    metrics = ForecastMetrics(4, 3)
    metrics.update(prediction.requires_grad_(), target)
    # float16 squares would overflow above 256; bfloat16 ones would have two digits.
    assert metrics.mse == pytest.approx(exact(prediction.double(), target.double())[0], rel=1e-14)


@pytest.mark.parametrize(("bad", "shown"), [(float("nan"), "is nan"), (float("inf"), "is inf"), (-float("inf"), "is -inf")])
def test_a_forecast_that_is_not_finite_is_refused_and_its_window_named(bad: float, shown: str) -> None:
    prediction, target = draw(5)
    metrics = ForecastMetrics(4, 3)
    metrics.update(prediction, target)
    before = metrics.to_json()
    broken = prediction.clone()
    broken[2, 3, 1] = broken[4, 0, 0] = bad
    message = rf"^the forecast {shown} in window 7, horizon step 4, channel 1 \(2 of 5 windows .*; lower the learning rate"
    with pytest.raises(NotFiniteError, match=message) as caught:
        metrics.update(broken, target)
    assert isinstance(caught.value, (ArithmeticError,))
    assert isinstance(caught.value, SffFastError)
    assert metrics.to_json() == before
    with pytest.raises(NotFiniteError, match="in window 33, horizon step 4, channel 1 "):
        metrics.update(broken, target, index=torch.tensor([31, 32, 33, 34, 35]))
    channel = torch.tensor([0, 1, 2, 0, 1])
    with pytest.raises(NotFiniteError, match="in window 33, horizon step 4, channel 2 "):
        metrics.update(broken[:, :, 1:2], target[:, :, 1:2], channel, torch.tensor([31, 32, 33, 34, 35]))


def test_a_bad_target_is_told_from_a_bad_forecast() -> None:
    prediction, target = draw(5)
    target[0, 0, 0] = float("nan")
    with pytest.raises(NotFiniteError, match=r"^the target is nan in window 0, horizon step 1, channel 0: check the data"):
        ForecastMetrics(4, 3).update(prediction, target)


def test_a_forecast_too_large_to_square_is_refused() -> None:
    prediction, target = (x.double() for x in draw(5))
    prediction[1, 1, 1] = 1e200
    with pytest.raises(NotFiniteError, match=r"the forecast \(1e\+200\) is too large to square in window 1"):
        ForecastMetrics(4, 3).update(prediction, target)


@pytest.mark.parametrize(
    ("prediction", "target", "channel", "message"),
    [
        ((5, 4, 3), (5, 4, 2), None, r"target must have the shape \[5, 4, 3\], got \[5, 4, 2\]"),
        ((5, 3, 3), (5, 3, 3), None, r"prediction must have the shape \[5, 4, 3\], got \[5, 3, 3\]"),
        ((5, 4, 1), (5, 4, 1), None, r"prediction must have the shape \[5, 4, 3\], got \[5, 4, 1\]"),
        ((5, 4, 3), (5, 4, 3), [0] * 5, r"prediction must have the shape \[5, 4, 1\]"),
        ((5, 4, 1), (1, 4, 1), [0] * 5, r"target must have the shape \[5, 4, 1\], got \[1, 4, 1\]"),
        ((5, 4, 1), (5, 4, 1), [0] * 4, r"channel must be int64 of shape \[5\], got torch.int64 \[4\]"),
        ((5, 4, 1), (5, 4, 1), [0.0] * 5, r"channel must be int64 of shape \[5\], got torch.float32"),
        ((5, 4, 1), (5, 4, 1), [3] * 5, r"channel must lie from 0 to 2, got \[3, 3, 3, 3, 3\]"),
        ((5, 4, 1), (5, 4, 1), [-1] * 5, r"channel must lie from 0 to 2"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(prediction: tuple, target: tuple, channel: list, message: str) -> None:
    tensor = None if channel is None else torch.tensor(channel)
    with pytest.raises(ArgumentError, match=message):
        ForecastMetrics(4, 3).update(torch.zeros(prediction), torch.zeros(target), tensor)


def test_no_windows_have_no_errors() -> None:
    metrics = ForecastMetrics(4, 3)
    metrics.update(torch.zeros(0, 4, 3), torch.zeros(0, 4, 3))
    for name in ("mse", "mae", "rmse"):
        with pytest.raises(ArgumentError, match="no window was added"):
            getattr(metrics, name)
    with pytest.raises(ArgumentError, match="no window was added"):
        metrics.to_json()
    with pytest.raises(ArgumentError, match="n_channels must be a whole number of at least 1, got 0"):
        ForecastMetrics(4, 0)
