"""Anomaly detection: which rows are scored, and what the scores say about the labelled anomaly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from family_cases import doing, require
from training_fakes import FakeAdapter

from sff_fast import tasks
from sff_fast.adapters import Adapter, Limits, tiny
from sff_fast.data import AnomalyData, SeriesBatch, Table
from sff_fast.data.ucr import Labels, labels_of
from sff_fast.errors import ArgumentError, DataError, MissingPackageError
from sff_fast.metrics import NotFiniteError
from sff_fast.report.anomaly import envelope
from sff_fast.tasks.anomaly import detection, segment_edges
from sff_fast.training import evaluate, finetune

LENGTH, SEGMENT = 64, 16
TRAIN_END, SPIKE = 200, (301, 309)


pytestmark = pytest.mark.usefixtures("one_thread")


def table(rows: int = 407, channels: int = 1, spike: tuple[int, int] = SPIKE) -> Table:
    t = np.arange(rows)
    values = np.stack([np.sin(t * 2 * np.pi / 16 + channel) for channel in range(channels)], axis=1)
    values[spike[0] : spike[1]] += 0.5
    return Table(values, [f"c{number}" for number in range(channels)], source="spike.txt")


def make_data(rows: int = 407, channels: int = 1, **options) -> AnomalyData:
    options = {"context_length": LENGTH, "segment_length": SEGMENT, **options}
    return AnomalyData(table(rows, channels), TRAIN_END, SPIKE, **options)


class Periodic(Adapter):
    """Expects of every row what was there one period before; nothing of the first one."""

    family = variant = "periodic"
    tasks = frozenset({"anomaly"})
    period = 16

    def __init__(self) -> None:
        super().__init__(torch.nn.Linear(1, 1))

    load = tiny = classmethod(lambda cls, *args, **kwargs: cls())
    build = head_parameters = config = _write = _loss = _forecast = limits = None

    def limits_for(self, task):
        return Limits()

    def _reconstruct(self, values):
        return torch.cat((torch.full_like(values[:, : self.period], torch.nan), values[:, : -self.period]), dim=1)


# --- file names and windows -------------------------------------------------------------------------------------------


def test_the_name_of_a_file_tells_train_end_and_anomaly_in_rows_from_0() -> None:
    assert labels_of(Path("x/136_UCR_Anomaly_InternalBleeding17_1600_3198_3309.txt")) == Labels(1600, 3197, 3309)
    assert labels_of(Path("5_7_7.txt")) == Labels(5, 6, 7)


@pytest.mark.parametrize("name", ["ETTh1.csv", "a_1_2.txt", "a_9_5_7.txt", "a_1_7_5.txt", "a_0_2_3.txt"])
def test_other_file_names_are_refused(name: str) -> None:
    with pytest.raises(DataError, match=r"expected <name>_<train end>_<anomaly begin>_<anomaly end>.txt"):
        labels_of(Path(name))


def test_a_file_of_the_archive_is_read(tmp_path: Path) -> None:
    path = tmp_path / "001_UCR_Anomaly_waves_200_302_309.txt"
    path.write_text("\n".join(map(repr, table().values[:, 0].tolist())) + "\n")
    data = AnomalyData.from_ucr(path, LENGTH, segment_length=SEGMENT)
    assert data.labels == Labels(TRAIN_END, *SPIKE)
    np.testing.assert_array_equal(data.table.values, table().values)
    path.write_text(path.read_text().replace("\n", "\n\n", 1))
    with pytest.raises(DataError, match=r"line 2.*the value is missing"):
        AnomalyData.from_ucr(path, LENGTH)
    assert len(AnomalyData.from_ucr(path, LENGTH, segment_length=SEGMENT, fill="interpolate").table) == 408


@pytest.mark.parametrize(("rows", "length", "segment"), [(407, 64, 16), (407, 64, 63), (400, 180, 1), (310, 64, 16)])
def test_every_row_of_validation_and_test_is_scored_once_with_a_segment_before_it(rows: int, length: int, segment: int) -> None:
    data = make_data(rows, context_length=length, segment_length=segment)
    assert data.borders.train == (0, 180)
    assert len(data.train) == 180 - length + 1
    for part, (begin, end) in (("val", (180, 200)), ("test", (200, rows))):
        windows = getattr(data, part)
        batch = windows.batch(torch.arange(len(windows)))
        assert isinstance(batch, SeriesBatch)
        scored = []
        for number in range(len(batch)):
            start, (first, last) = int(batch.start[number]), batch.scored[number].tolist()
            assert first >= segment
            assert batch.values[number].tolist() == data.series[start : start + length].tolist()
            scored += range(start + first, start + last)
        assert scored == list(range(begin, end))


def test_the_scaler_knows_the_train_rows_alone() -> None:
    data = make_data()
    np.testing.assert_allclose(data.series[:180].mean(), 0, atol=1e-6)
    assert data.scaler.mean[0] == table().values[:180].mean()


def test_a_share_of_the_train_windows_is_spread_over_all_of_them() -> None:
    data = make_data(train_fraction=0.1)
    rows = data.train.positions(torch.arange(len(data.train)))[0].tolist()
    assert rows == [number * 117 // 11 for number in range(11)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"context_length": 190},
            DataError,
            "too short: the normal part has 200 rows, 20 of them for validation, one window needs 190",
        ),
        ({"context_length": 16}, ArgumentError, r"context_length must be above segment_length \(16\), got 16"),
        ({"segment_length": 0}, ArgumentError, "segment_length must be a whole number of at least 1, got 0"),
        ({"val_share": 1.0}, ArgumentError, "val_share must be above 0 and at most 0.9, got 1.0"),
        ({"train_fraction": 0}, ArgumentError, "train_fraction must be above 0 and at most 1, got 0"),
    ],
)
def test_lengths_and_shares_that_do_not_fit_are_refused(options: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        make_data(**options)


def test_an_anomaly_outside_of_the_test_part_is_refused() -> None:
    for labels in ((199, 205), (300, 300), (300, 408)):
        with pytest.raises(DataError, match=r"'spike.txt': the anomaly must lie after the normal part and within the 407 rows"):
            AnomalyData(table(), TRAIN_END, labels, LENGTH, segment_length=SEGMENT)


# --- scores -----------------------------------------------------------------------------------------------------------


def test_a_model_that_knows_the_period_finds_the_spike() -> None:
    spike = (393, 401)  # one period before the end, so that it surprises the model once
    data = AnomalyData(table(channels=2, spike=spike), TRAIN_END, spike, LENGTH, segment_length=SEGMENT)
    found = evaluate(Periodic(), data, batch_size=3)
    squared = np.zeros(207)
    squared[193:201] = (0.25 / data.scaler.std**2).mean()
    expected = [squared[begin : begin + 16].mean() for begin in range(0, 207, 16)]
    np.testing.assert_allclose(found["segment_scores"], expected, rtol=1e-5, atol=1e-10)  # float32 data
    assert found["mse"] == pytest.approx(squared.mean(), rel=1e-5)
    assert (found["rank"], found["segments"], found["labelled_segments"]) == (1, 13, [12])
    assert (found["quantile"], found["auc_roc"], found["auc_pr"], found["f1_best"]) == (1 / 13, 1.0, 1.0, 1.0)
    plain = {"mse", "mae", "rmse", "windows", "mse_per_channel", "mae_per_channel"}
    assert set(evaluate(Periodic(), data, "val")) == set(evaluate(Periodic(), data, "train")) == plain


def test_the_figures_of_detection_are_those_by_hand() -> None:
    scores = np.array([0.0, 5, 3, 3, 4, 2, 9, 1, 1])
    found = detection(scores, (3, 5), 2)
    assert found["segment_scores"] == [2.5, 3, 3, 5, 1]
    # Segments 1 and 2 share a row with the anomaly; segment 3 comes before them.
    assert (found["labelled_segments"], found["rank"], found["segments"], found["quantile"]) == ([1, 2], 2, 5, 0.4)
    # Pairs of a labelled (3, 4) and another row (0, 5, 3, 2, 9, 1, 1) in order: 4.5 + 5 of 14.
    assert found["auc_roc"] == pytest.approx(9.5 / 14, rel=1e-15)
    # At a threshold of 3: rows 5, 3, 3, 4, 9, of which two are labelled.
    assert found["f1_best"] == pytest.approx(2 * 0.4 / 1.4, rel=1e-15)
    assert found["f1_threshold"] == 3.0
    # Precision 1/3 at the score of 4, 2/5 at that of 3; each adds half of the recall.
    assert found["auc_pr"] == pytest.approx((1 / 3 + 2 / 5) / 2, rel=1e-15)


@pytest.mark.parametrize(
    ("rows", "length", "edges"),
    [
        (1, 4, [0, 1]),
        (4, 4, [0, 4]),
        (5, 4, [0, 5]),
        (6, 4, [0, 4, 6]),
        (9, 4, [0, 4, 9]),
        (3, 1, [0, 1, 2, 3]),
        (8, 3, [0, 3, 6, 8]),
    ],
)
def test_a_rest_of_less_than_half_a_segment_joins_the_one_before_it(rows: int, length: int, edges: list[int]) -> None:
    assert segment_edges(rows, length).tolist() == edges


def test_a_few_loud_rows_at_the_end_do_not_outrank_the_anomaly() -> None:
    scores = np.zeros(33)
    scores[4:8] = 3.0  # the anomaly
    scores[32] = 10.0
    found = detection(scores, (4, 8), 8)
    assert (found["segment_scores"], found["rank"], found["segments"]) == ([1.5, 0, 0, pytest.approx(10 / 9)], 1, 4)


def test_segments_with_the_same_score_as_the_labelled_one_come_before_it() -> None:
    assert detection(np.ones(10), (4, 5), 2)["rank"] == 5


def test_a_model_that_is_silent_for_longer_than_a_segment_is_refused() -> None:
    message = "segment_length must be at least 16 for this periodic model, which expects nothing of the first 16 rows"
    with pytest.raises(ArgumentError, match=message):
        evaluate(Periodic(), make_data(segment_length=8))


def test_an_expectation_that_is_not_finite_is_refused_and_its_row_named() -> None:
    data = make_data()
    found = tasks.evaluation(data, "test")
    batch = data.test.batch(torch.tensor([0]))
    with pytest.raises(NotFiniteError, match="not finite in row 201, channel 0: the weights have diverged"):
        found.update(torch.full_like(batch.values, torch.nan), batch)


def test_without_scikit_learn_the_one_line_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(MissingPackageError, match=r"'scikit-learn' is not installed.*pip install 'sff_fast\[anomaly\]'"):
        evaluate(Periodic(), make_data())


# --- the loop ---------------------------------------------------------------------------------------------------------


def test_a_family_that_cannot_detect_anomalies_says_so() -> None:
    with pytest.raises(ArgumentError, match="fake cannot do anomaly: it can do forecast"):
        finetune(FakeAdapter.tiny(), make_data(), "ff")


@pytest.mark.parametrize("strategy", ["ff", "sff"])
def test_a_tuned_model_knows_the_normal_part_better_and_its_run_holds_all_scores(strategy: str, tmp_path: Path) -> None:
    adapter = tiny("units")
    data = make_data()
    result = finetune(adapter, data, strategy, epochs=2, batch_size=16, lr=2e-3, out=tmp_path / "run")
    assert result.val_mse < result.zero_shot["val_mse"]
    assert result.metrics["test"] == evaluate(adapter, data)
    assert len(result.metrics["test"]["segment_scores"]) == 13
    assert len(result.windows) == len(data.test)
    again = finetune(tiny("units"), data, strategy, epochs=2, batch_size=16, lr=2e-3, out=tmp_path / "run", resume=True)
    assert again.metrics == result.metrics


@pytest.mark.slow
@pytest.mark.parametrize("variant", doing("anomaly"))
def test_all_families_that_detect_anomalies_are_tuned_for_it(variant: str) -> None:
    require(variant)
    length = 192 if variant != "moment" else 128  # the longest window of the tiny model
    data = AnomalyData(table(900, spike=(601, 609)), 500, (601, 609), length, stride=8)
    adapter = tiny(variant)
    before = evaluate(adapter, data, "val")["mse"]
    result = finetune(adapter, data, "ff", epochs=3, batch_size=8, lr=1e-3, schedule="constant")
    assert result.val_mse < before
    test = result.metrics["test"]
    assert len(test["segment_scores"]) == test["segments"] == 4  # 400 rows in segments of 96, the last of 112
    assert test["labelled_segments"] == [1]


def test_a_long_series_is_drawn_by_the_extremes_of_its_stretches() -> None:
    values = np.zeros(100_000)
    values[54_321] = 7.0
    at, drawn = envelope(values, 100)
    assert len(at) <= 100
    assert drawn[at.index(54_321)] == 7.0
    assert at == sorted(at)
    assert envelope([3.0, 1.0, 2.0]) == ([0, 1, 2], [3.0, 1.0, 2.0])
