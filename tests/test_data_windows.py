"""Windows are the right rows of the right part, standardised by the train part."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from training_fakes import place_of

from sff_fast.data import Batch, Borders, ForecastData, Scaler, Table, WindowSet, epoch_order, read_table, split_borders
from sff_fast.errors import ArgumentError, DataError


def table(n: int = 200, channels: int = 3) -> Table:
    """Row t of channel c holds t + 1000 c, so that every value says where it is from."""
    values = np.arange(n, dtype=np.float64)[:, None] + 1000.0 * np.arange(channels)
    return Table(values, [f"c{i}" for i in range(channels)])


def original(data: ForecastData, batch: Batch, part: torch.Tensor) -> np.ndarray:
    return np.round(data.scaler.inverse(part, batch.channel).numpy(), 3)


# --- splits -----------------------------------------------------------------------------------------------------------


def test_the_ett_splits_are_months_of_thirty_days() -> None:
    assert split_borders(17420, "ett-hour", 512) == Borders((0, 8640), (8128, 11520), (11008, 14400))
    assert split_borders(69680, "ett-minute", 672) == Borders((0, 34560), (33888, 46080), (45408, 57600))


@pytest.mark.parametrize(
    ("n", "split", "expected"),
    [
        # 52696 rows is the weather data set, whose published sizes at context 96 and horizon 96 are 36696, 5175, 10444.
        (52696, "0.7,0.1,0.2", Borders((0, 36887), (36791, 42157), (42061, 52696))),
        (1000, (0.6, 0.2, 0.2), Borders((0, 600), (504, 800), (704, 1000))),
        # 0.7 and 0.2 of 998 are 698.6 and 199.6: both are cut, not rounded.
        (998, "0.7,0.1,0.2", Borders((0, 698), (602, 799), (703, 998))),
    ],
)
def test_a_split_by_shares_gives_the_rest_to_validation(n: int, split: object, expected: Borders) -> None:
    borders = split_borders(n, split, 96)
    assert borders == expected
    if n == 52696:
        sizes = [end - begin - 96 - 96 + 1 for begin, end in (borders.train, borders.val, borders.test)]
        assert sizes == [36696, 5175, 10444]


def test_a_split_may_be_text_or_numbers() -> None:
    assert split_borders(100, " 0.6, 0.2,0.2 ", 10) == split_borders(100, [0.6, 0.2, 0.2], 10)


# --- windows ----------------------------------------------------------------------------------------------------------


def test_the_windows_of_etth1_are_as_many_as_published_and_standardised_by_the_train_part(test_data: Path) -> None:
    source = read_table(test_data / "ETTh1.csv")
    joint = ForecastData(source, "ett-hour", 512, 96, channel_independent=False)
    assert [len(part) for part in (joint.train, joint.val, joint.test)] == [8033, 2785, 2785]
    single = ForecastData(source, "ett-hour", 512, 96)
    assert [len(part) for part in (single.train, single.val, single.test)] == [8033 * 7, 2785 * 7, 2785 * 7]
    part = source.values[:8640]
    expected = (source.values - part.mean(axis=0)) / part.std(axis=0)
    batch = joint.test.batch(torch.tensor([0, 2784]))
    np.testing.assert_allclose(batch.target[0].numpy(), expected[11520 : 11520 + 96], atol=1e-6)  # float32, values < 8
    np.testing.assert_allclose(batch.target[1].numpy(), expected[14400 - 96 : 14400], atol=1e-6)
    np.testing.assert_allclose(batch.context[0].numpy(), expected[11520 - 512 : 11520], atol=1e-6)
    last = single.test.batch(torch.tensor([2785 * 7 - 1]))
    np.testing.assert_allclose(last.target[0, :, 0].numpy(), expected[14400 - 96 : 14400, 6], atol=1e-6)


@pytest.mark.parametrize("channel_independent", [True, False])
@pytest.mark.parametrize("stride", [1, 7])
def test_every_window_holds_the_rows_of_its_place(channel_independent: bool, stride: int) -> None:
    data = ForecastData(table(), "0.6,0.2,0.2", 16, 5, stride, channel_independent)
    seen: dict[str, set] = {}
    for name, windows in (("train", data.train), ("val", data.val), ("test", data.test)):
        batch = windows.batch(torch.arange(len(windows)))
        context, target = original(data, batch, batch.context), original(data, batch, batch.target)
        assert batch.context.dtype == batch.target.dtype == torch.float32
        assert batch.context.is_contiguous()
        assert batch.target.is_contiguous()
        assert batch.index.tolist() == list(range(len(windows)))
        for index in range(len(windows)):
            row, channel = place_of(windows, index)
            channels = [channel] if channel_independent else [0, 1, 2]
            assert (batch.channel is None) == (channel is None) == (not channel_independent)
            for position, c in enumerate(channels):
                assert context[index, :, position].tolist() == [row + k + 1000 * c for k in range(16)]
                assert target[index, :, position].tolist() == [row + 16 + k + 1000 * c for k in range(5)]
            seen.setdefault(name, set()).add((row, channel))
        assert len(seen[name]) == len(windows)
    # All windows of a part and no others: first and last target rows are the part's own.
    for name, first, last in (("train", 16, 119), ("val", 120, 159), ("test", 160, 199)):
        starts = sorted({row + 16 for row, _ in seen[name]})
        assert starts == list(range(first, last - 5 + 2, stride))


def test_windows_share_the_memory_of_one_series() -> None:
    data = ForecastData(table(), "0.6,0.2,0.2", 16, 5)
    pointers = {w._contexts.untyped_storage().data_ptr() for w in (data.train, data.val, data.test)}
    pointers |= {w._targets.untyped_storage().data_ptr() for w in (data.train, data.val, data.test)}
    assert pointers == {data.series.untyped_storage().data_ptr()}
    assert data.series.shape == (200, 3)
    assert data.series.untyped_storage().nbytes() == 200 * 3 * 4


def test_a_batch_is_new_memory() -> None:
    data = ForecastData(table(), "0.6,0.2,0.2", 16, 5)
    before = data.series.clone()
    batch = data.train.batch(torch.tensor([0, 0, 3]))
    batch.context.zero_()
    batch.target.zero_()
    assert torch.equal(data.series, before)


def test_batches_take_any_order_repeats_and_nothing() -> None:
    data = ForecastData(table(), "0.6,0.2,0.2", 16, 5)
    everything = data.val.batch(torch.arange(len(data.val)))
    some = data.val.batch(torch.tensor([5, 2, 5], dtype=torch.int32))
    assert torch.equal(some.context, everything.context[[5, 2, 5]])
    assert len(some) == 3
    assert torch.equal(some.channel, everything.channel[[5, 2, 5]])
    assert some.index.dtype == torch.int64
    empty = data.val.batch(torch.tensor([], dtype=torch.int64))
    assert empty.context.shape == (0, 16, 1)
    assert empty.target.shape == (0, 5, 1)


def test_a_batch_moves_to_another_device() -> None:
    moved = ForecastData(table(), "0.6,0.2,0.2", 16, 5).val.batch(torch.arange(2)).to("meta")
    assert moved.context.device.type == moved.target.device.type == "meta"
    assert moved.index.device.type == "cpu"


@pytest.mark.parametrize("bad", [[-1], [0, 10**6], [10**12]])
def test_an_index_outside_of_the_part_is_refused(bad: list[int]) -> None:
    data = ForecastData(table(), "0.6,0.2,0.2", 16, 5)
    with pytest.raises(ArgumentError, match=f"indices must lie from 0 to {len(data.val) - 1}"):
        data.val.batch(torch.tensor(bad))
    with pytest.raises(ArgumentError, match="indices must lie from 0 to"):
        place_of(data.val, len(data.val))
    with pytest.raises(ArgumentError, match="indices must be one-dimensional, got shape"):
        data.val.batch(torch.zeros(2, 2, dtype=torch.int64))


def test_a_window_set_without_windows_is_refused() -> None:
    with pytest.raises(ArgumentError, match="rows 0 to 9 of 20 hold no window"):
        WindowSet(torch.zeros(1, 20), (0, 9), 8, 2)
    with pytest.raises(ArgumentError, match="rows -1 to 15 of 20 hold no window"):
        WindowSet(torch.zeros(1, 20), (-1, 15), 8, 2)
    with pytest.raises(ArgumentError, match="subset must be from 1 to 11 windows, got 12"):
        WindowSet(torch.zeros(1, 20), (0, 20), 8, 2, subset=12)


# --- train_fraction ---------------------------------------------------------------------------------------------------


def test_a_fraction_takes_evenly_spaced_windows_of_all_channels() -> None:
    full = ForecastData(table(), "0.6,0.2,0.2", 16, 5)
    tenth = ForecastData(table(), "0.6,0.2,0.2", 16, 5, train_fraction=0.1)
    assert (len(full.train), len(tenth.train)) == (300, 30)
    everything = [place_of(full.train, i) for i in range(300)]
    assert [place_of(tenth.train, i) for i in range(30)] == everything[::10]
    batch, whole = tenth.train.batch(torch.tensor([29, 3])), full.train.batch(torch.tensor([290, 30]))
    assert torch.equal(batch.context, whole.context)
    assert torch.equal(batch.target, whole.target)
    assert batch.index.tolist() == [29, 3]


@pytest.mark.parametrize(("fraction", "n"), [(0.7, 210), (0.3, 90), (0.003, 1), (1e-9, 1), (0.999, 299), (1, 300)])
def test_a_fraction_covers_the_whole_train_part(fraction: float, n: int) -> None:
    data = ForecastData(table(), "0.6,0.2,0.2", 16, 5, train_fraction=fraction)
    assert len(data.train) == n
    places = [place_of(data.train, i) for i in range(n)]
    assert len(set(places)) == n
    assert places == sorted(places, key=lambda place: (place[1], place[0]))
    if n > 2:
        assert {channel for _, channel in places} == {0, 1, 2}
        numbers = [row + 100 * channel for row, channel in places]
        steps = np.diff(numbers)
        assert steps.max() - steps.min() <= 1
        assert numbers[0] == 0
        assert numbers[-1] >= 300 - math.ceil(300 / n)


def test_a_fraction_leaves_the_scaler_and_the_other_parts_alone() -> None:
    full = ForecastData(table(), "0.6,0.2,0.2", 16, 5)
    tenth = ForecastData(table(), "0.6,0.2,0.2", 16, 5, train_fraction=0.1)
    assert tenth.scaler.to_json() == full.scaler.to_json()
    assert (len(tenth.val), len(tenth.test)) == (len(full.val), len(full.test))


# --- scaler -----------------------------------------------------------------------------------------------------------


def test_the_scaler_divides_by_the_population_standard_deviation() -> None:
    scaler = Scaler.fit(np.array([[1.0, 10.0], [3.0, 30.0]]))
    assert scaler.to_json() == {"mean": [2.0, 20.0], "std": [1.0, 10.0]}
    np.testing.assert_array_equal(scaler.transform(np.array([[4.0, 0.0]])), [[2.0, -2.0]])


def test_the_scaler_is_exact_for_a_large_offset() -> None:
    values = 1e9 + np.random.default_rng(0).normal(size=(100_000, 1))
    expected = math.sqrt(math.fsum((v - 1e9) ** 2 for v in values[:, 0]) / 1e5 - (math.fsum(values[:, 0] - 1e9) / 1e5) ** 2)
    # The values themselves are rounded to 1.2e-7; a one-pass variance would be off by more than the variance.
    assert Scaler.fit(values).std[0] == pytest.approx(expected, rel=1e-9)


def test_the_inverse_brings_back_the_datas_own_units() -> None:
    scaler = Scaler([1.0, 10.0], [2.0, 20.0])
    values = np.array([[[0.0, 0.0], [1.0, -1.0]]])
    np.testing.assert_array_equal(scaler.inverse(values), [[[1.0, 10.0], [3.0, -10.0]]])
    single = torch.ones(2, 3, 1, dtype=torch.float16)
    restored = scaler.inverse(single, torch.tensor([1, 0]))
    assert restored.dtype == torch.float64
    assert restored[:, 0, 0].tolist() == [30.0, 3.0]
    assert scaler.inverse(single, 1).unique().tolist() == [30.0]
    assert Scaler.from_json(scaler.to_json()).to_json() == scaler.to_json()


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ([0.0], [0.0], "positive standard deviations"),
        ([float("nan")], [1.0], "finite means"),
        ([0.0, 1.0], [1.0], "one mean and one std for each channel"),
    ],
)
def test_a_scaler_that_cannot_scale_is_refused(mean: list, std: list, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Scaler(mean, std)


# --- order of an epoch ------------------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(n=st.integers(0, 2000), seed=st.integers(0, 2**64 - 1), epoch=st.integers(0, 10**6))
def test_an_epoch_visits_every_window_once(n: int, seed: int, epoch: int) -> None:
    assert sorted(epoch_order(n, seed, epoch).tolist()) == list(range(n))


def test_an_epoch_order_is_known_for_ever() -> None:
    # Written down from the first version. A difference means that runs cannot be resumed across versions.
    assert epoch_order(10, 0, 0).tolist() == [3, 0, 1, 6, 9, 7, 2, 8, 4, 5]
    assert epoch_order(10, 0, 1).tolist() == [8, 1, 3, 5, 4, 0, 7, 9, 2, 6]
    assert epoch_order(10, 2**64 - 1, 3).tolist() == [9, 6, 2, 1, 4, 5, 8, 0, 3, 7]


def philox_words(n: int, key: tuple[int, int], counter: list[int]) -> list[int]:
    """Philox4x64-10 in Python's integers (Salmon et al. 2011); the counter is raised before each block, as NumPy does."""
    mask, words = 2**64 - 1, []
    while len(words) < n:
        value = (sum(word << 64 * i for i, word in enumerate(counter)) + 1) % 2**256
        counter = [value >> 64 * i & mask for i in range(4)]
        (a, b, c, d), (k0, k1) = counter, key
        for _ in range(10):
            p, q = 0xD2E7470EE14C6C93 * a, 0xCA5A826395121157 * c
            a, b, c, d = q >> 64 ^ b ^ k0, q & mask, p >> 64 ^ d ^ k1, p & mask
            k0, k1 = k0 + 0x9E3779B97F4A7C15 & mask, k1 + 0xBB67AE8584CAA73B & mask
        words += [a, b, c, d]
    return words[:n]


@pytest.mark.parametrize(("n", "seed", "epoch"), [(10, 0, 0), (99, 2**64 - 1, 3), (1, 7, 2**40)])
def test_an_epoch_order_sorts_the_words_of_philox(n: int, seed: int, epoch: int) -> None:
    words = philox_words(n, (seed, int.from_bytes(b"sff_ordr", "big")), [0, 0, epoch, n])
    assert epoch_order(n, seed, epoch).tolist() == sorted(range(n), key=words.__getitem__)


def test_an_epoch_order_ignores_and_keeps_the_global_random_state() -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = epoch_order(100, 5, 2)
    torch.manual_seed(2)
    np.random.seed(2)
    expected = torch.get_rng_state(), np.random.get_state()[1].tolist()
    assert torch.equal(epoch_order(100, 5, 2), first)
    assert torch.equal(torch.get_rng_state(), expected[0])
    assert np.random.get_state()[1].tolist() == expected[1]


def test_epoch_orders_differ_by_every_argument_and_are_spread_evenly() -> None:
    n = 1000
    orders = [epoch_order(n, seed, epoch).numpy() for seed, epoch in [(0, 0), (0, 1), (1, 0), (1, 1), (2**32, 0)]]
    orders.append(np.array([i for i in epoch_order(n + 1, 0, 0).tolist() if i < n]))
    correlations = np.corrcoef(np.stack(orders)) - np.eye(len(orders))
    assert np.abs(correlations).max() < 5 / math.sqrt(n)  # five standard deviations of independent orders
    first = np.array([epoch_order(10, seed, 0)[0].item() for seed in range(2000)])
    counts = np.bincount(first, minlength=10)
    assert ((counts - 200) ** 2 / 200).sum() < 33.7  # chi-square of 9 degrees of freedom at 1e-4; fixed seeds


@pytest.mark.parametrize("arguments", [(-1, 0, 0), (5, -1, 0), (5, 2**64, 0), (5, 0, -1), (5, 0.5, 0), (True, 0, 0)])
def test_a_bad_argument_of_an_order_is_refused(arguments: tuple) -> None:
    with pytest.raises(ArgumentError, match="must be a whole number from 0 to"):
        epoch_order(*arguments)


# --- describe ---------------------------------------------------------------------------------------------------------


def test_describe_says_what_was_used(tmp_path: Path) -> None:
    from sff_fast import files

    described = ForecastData(table(), "0.6,0.2,0.2", 16, 5, 2, True, 0.5).describe()
    files.write_json(tmp_path / "a.json", described)
    assert files.read_json(tmp_path / "a.json") == described
    assert described.pop("scaler")["mean"] == [59.5, 1059.5, 2059.5]
    assert described == {
        "source": "the table",
        "rows": 200,
        "columns": ["c0", "c1", "c2"],
        "frequency": None,
        "first": None,
        "last": None,
        "sha256": table().sha256(),
        "notes": [],
        "split": "0.6,0.2,0.2",
        "borders": {"train": [0, 120], "val": [104, 160], "test": [144, 200]},
        "context_length": 16,
        "prediction_length": 5,
        "stride": 2,
        "channel_independent": True,
        "train_fraction": 0.5,
        "windows": {"train": 75, "val": 54, "test": 54},
    }
