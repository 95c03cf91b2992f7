"""Imputation: which points are hidden, what their errors are, and that the one loop trains for it."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from family_cases import doing, require
from training_fakes import FakeAdapter, StopAt, make_table, steady

from sff_fast import tasks
from sff_fast.adapters import Adapter, tiny
from sff_fast.data import ForecastData, ImputationData, MaskedBatch
from sff_fast.data.masks import choose, hide_patches
from sff_fast.errors import ArgumentError, DataError
from sff_fast.metrics import NotFiniteError
from sff_fast.training import evaluate, finetune

pytestmark = pytest.mark.usefixtures("quick_threads")
RATES = (0.25, 0.5)


@pytest.fixture
def quick_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make_data(rows: int = 400, **options) -> ImputationData:
    options = {"context_length": 96, "patch_length": 12, "mask_rates": RATES, **options}
    return ImputationData(make_table(rows), "0.5,0.25,0.25", **options)


# --- masks ------------------------------------------------------------------------------------------------------------


def philox(seed: int, block: int, name: str) -> list[int]:
    """Philox4x32-10 in plain integers."""
    low = 0xFFFFFFFF
    stream = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, person=b"mask").digest(), "little")
    c, k = [block & low, block >> 32, stream & low, stream >> 32], [seed & low, seed >> 32]
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 & low, (p0 >> 32) ^ c[3] ^ k[1], p0 & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


@pytest.mark.parametrize("patches", [2, 3, 8, 9])
def test_the_hidden_patches_are_those_with_the_lowest_words_of_the_stream(patches: int) -> None:
    windows, channels = [0, 1, 5, 10**9], 2
    counts = [number % patches for number in range(4)]
    got = hide_patches(2**63 + 7, "test", torch.tensor(windows), torch.tensor(counts), patches, channels)
    assert got.shape == (4, patches, channels)
    blocks = -(-patches // 4)
    for row, (window, count) in enumerate(zip(windows, counts, strict=True)):
        for channel in range(channels):
            first = (window * channels + channel) * blocks
            words = [word for block in range(blocks) for word in philox(2**63 + 7, first + block, "test")][:patches]
            hidden = sorted(range(1, patches), key=words.__getitem__)[:count]
            assert (~got[row, :, channel]).nonzero().flatten().tolist() == sorted(hidden)


def test_each_window_draws_its_rate_from_the_stream() -> None:
    expected = [philox(7, window, "train/3/rate")[0] * 4 >> 32 for window in range(50)]
    assert choose(7, "train/3", torch.arange(50), 4).tolist() == expected


def test_every_patch_but_the_first_is_hidden_about_as_often() -> None:
    seen = hide_patches(0, "test", torch.arange(7000), torch.full((7000,), 2), 8, 1)[..., 0]
    counts = (~seen).sum(dim=0)
    assert counts[0] == 0
    # 2000 of 7000 expected, standard deviation 38: five of them.
    assert ((counts[1:] - 2000).abs() < 190).all()


# --- windows ----------------------------------------------------------------------------------------------------------


def test_every_window_of_validation_and_test_comes_once_with_each_rate() -> None:
    data = make_data()
    # As the reference counts: the part's rows, extended backwards by a window, less a window, and one.
    assert (len(data.train), len(data.val), len(data.test)) == (2 * (200 - 96 + 1), 2 * 2 * 101, 2 * 2 * 101)
    batch = data.test.batch(torch.arange(len(data.test)))
    assert isinstance(batch, MaskedBatch)
    shares = (~batch.mask).float().mean(dim=(1, 2))
    half = len(data.test) // 2
    assert set(shares[:half].tolist()) == {0.25}
    assert set(shares[half:].tolist()) == {0.5}
    torch.testing.assert_close(batch.values[:half], batch.values[half:], rtol=0, atol=0)
    rows, channels = data.test.positions(torch.arange(len(data.test)))
    series = data.series
    for number in (0, 1, 100, half - 1, half + 5):
        row, channel = int(rows[number]), int(channels[number])
        assert int(batch.channel[number]) == channel
        assert batch.values[number, :, 0].tolist() == series[row : row + 96, channel].tolist()
    patches = batch.mask.view(len(batch), 8, 12)
    assert (patches.all(dim=2) | ~patches.any(dim=2)).all()
    assert patches[:, 0].all()


def test_masks_of_evaluations_never_change_and_those_of_training_do_with_epoch_and_seed() -> None:
    data, other = make_data(), make_data(mask_seed=1)
    numbers = torch.arange(len(data.val))
    before = data.val.batch(numbers).mask
    train = {}
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        data.begin_epoch(seed, epoch)
        train[seed, epoch] = data.train.batch(torch.arange(len(data.train))).mask
        assert torch.equal(data.val.batch(numbers).mask, before)
    assert not torch.equal(train[0, 0], train[0, 1])
    assert not torch.equal(train[0, 0], train[1, 0])
    assert not torch.equal(other.val.batch(numbers).mask, before)
    data.begin_epoch(0, 1)
    some = torch.tensor([17, 3])
    assert torch.equal(data.train.batch(some).mask, train[0, 1][some])
    # Both rates occur, and each window hides something: a batch of one window has a loss.
    assert set((~train[0, 1]).float().mean(dim=(1, 2)).tolist()) == set(RATES)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"context_length": 100},
            r"must be a multiple of patch_length \(12\) and hold two patches or more, got 100",
        ),
        ({"context_length": 12}, "and hold two patches or more, got 12"),
        ({"mask_rates": (0.01,)}, r"at least one of the 8 patches .* from 0.0625 to below 0.938, got 0.01"),
        ({"mask_rates": (0.95,)}, "and leave the first"),
        ({"mask_rates": (1,)}, "got 1$"),
        ({"mask_rates": ()}, "one or several different numbers"),
        ({"mask_rates": (0.5, 0.5)}, "one or several different numbers"),
        ({"patch_length": 0}, "patch_length must be a whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_be_hidden_is_refused(options: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make_data(**options)


def test_a_table_too_short_for_a_window_is_named() -> None:
    message = r"'waves.csv': too short: the train part has 95 rows .* at least 192 rows and has 191"
    with pytest.raises(DataError, match=message):
        make_data(191)
    assert len(make_data(192).train) == 2
    shares = {"context_length": 48, "patch_length": 12, "mask_rates": (0.25,)}
    with pytest.raises(DataError, match="test part has 48 rows with its context, one window needs 48 and one row of the part"):
        ImputationData(make_table(99), (0.98, 0.01, 0.01), **shares)
    with pytest.raises(DataError, match="the table needs at least 100 rows and has 99"):
        ImputationData(make_table(99), (0.98, 0.01, 0.01), **shares)
    assert len(ImputationData(make_table(100), (0.98, 0.01, 0.01), **shares).test) == 2 * 2
    with pytest.raises(ArgumentError, match="prediction_length must be a whole number of at least 1, got 0"):
        ForecastData(make_table(100), "0.5,0.25,0.25", 16, 0)


# --- errors -----------------------------------------------------------------------------------------------------------


class Constant(Adapter):
    """Imputes a number for each channel, and remembers what it was shown."""

    family = variant = "constant"
    tasks = frozenset({"imputation"})

    def __init__(self, *values: float) -> None:
        super().__init__(torch.nn.Linear(1, 1))
        self.values, self.shown = values, []

    load = tiny = classmethod(lambda cls, *args, **kwargs: cls(0.0))
    build = head_parameters = config = _write = _loss = _forecast = limits = None

    def limits_for(self, task):
        from sff_fast.adapters import Limits

        return Limits()

    def _impute(self, values, mask):
        self.shown.append((values, mask))
        return torch.tensor(self.values).expand_as(values)


def errors_of(adapter, data, part="test", batch_size=7):
    found = tasks.evaluation(data, part)
    windows = getattr(data, part)
    per_window = []
    for indices in torch.arange(len(windows)).split(batch_size):
        batch = windows.batch(indices)
        per_window.append(found.update(found.predict(adapter, batch, 0), batch)["mse"])
    return found, torch.cat(per_window)


@pytest.mark.parametrize("independent", [True, False])
def test_the_errors_are_those_of_the_hidden_points_by_hand(independent: bool) -> None:
    data = make_data(channel_independent=independent)
    adapter = Constant(0.5) if independent else Constant(0.5, 0.5)
    found, per_window = errors_of(adapter, data)
    batch = data.test.batch(torch.arange(len(data.test)))
    hidden = ~batch.mask
    wanted = {}
    for number, rate in enumerate(RATES):
        points = batch.values[batch.rate == number][hidden[batch.rate == number]].double()
        wanted[f"{rate:g}"] = float((points - 0.5).square().mean())
    report = found.to_json()
    # Means of float64 squares over thousands of points.
    assert report["mse_per_rate"] == pytest.approx(wanted, rel=1e-12)
    assert report["mse"] == pytest.approx(sum(wanted.values()) / 2, rel=1e-12)
    assert report["rmse"] == pytest.approx(report["mse"] ** 0.5, rel=1e-15)
    assert (report["windows"], report["hidden_points"]) == (len(data.test), int(hidden.sum()))
    by_hand = (batch.values.double() - 0.5).square().where(hidden, 0.0).sum(dim=(1, 2)) / hidden.sum(dim=(1, 2))
    torch.testing.assert_close(per_window, by_hand, rtol=1e-12, atol=0)
    first = batch.values[..., 0] if not independent else batch.values[batch.channel == 0][..., 0]
    mask = hidden[..., 0] if not independent else hidden[batch.channel == 0][..., 0]
    rate = batch.rate if not independent else batch.rate[batch.channel == 0]
    channel = [float((first[rate == r][mask[rate == r]].double() - 0.5).square().mean()) for r in (0, 1)]
    assert report["mse_per_channel"][0] == pytest.approx(sum(channel) / 2, rel=1e-12)


def test_the_model_sees_zero_where_points_are_hidden() -> None:
    data, adapter = make_data(), Constant(0.0)
    errors_of(adapter, data)
    for values, mask in adapter.shown:
        assert (values[~mask] == 0).all()
        assert (values[mask] != 0).all()


def test_an_imputed_value_that_is_not_finite_is_refused_and_its_window_named() -> None:
    data = make_data()
    with pytest.raises(NotFiniteError, match=r"not finite in window 0, row [0-9]+, channel 0: the weights have diverged"):
        errors_of(Constant(float("nan")), data)


# --- the loop ---------------------------------------------------------------------------------------------------------

OPTIONS = {"epochs": 2, "batch_size": 16, "lr": 1e-3, "seed": 5}


def loop_data() -> ImputationData:
    return ImputationData(make_table(600), "0.5,0.25,0.25", 192, stride=8, mask_rates=(0.25,))


def weights(adapter) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in adapter.model.state_dict().items()}


def test_every_strategy_trains_for_imputation_and_is_tested_on_the_hidden_points() -> None:
    data = loop_data()
    for strategy in ("tfs", "ff", "sff", "lp", "lp-ff"):
        adapter = tiny("timer")
        result = finetune(adapter, data, strategy, **OPTIONS)
        assert result.test_mse == evaluate(adapter, data)["mse"]
        assert result.val_mse == evaluate(adapter, data, "val")["mse"]
        assert result.windows["mse"].mean() == pytest.approx(result.test_mse, rel=1e-5)  # kept as float32
        assert result.val_mse < (result.history[0]["val_mse"])
        assert set(result.metrics["test"]["mse_per_rate"]) == {"0.25"}


def test_training_sees_other_masks_in_every_epoch() -> None:
    data, adapter = loop_data(), tiny("timer")
    seen: dict[int, torch.Tensor] = {}

    def remember(batch):
        seen.setdefault(len(seen), batch.mask)
        return plain(batch)

    plain, adapter.loss = adapter.loss, remember
    finetune(adapter, data, "ff", epochs=2, batch_size=1000, lr=1e-3)
    first, second = seen.values()
    assert not torch.equal(first.sort(dim=0).values, second.sort(dim=0).values)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path) -> None:
    straight = tiny("timer")
    expected = finetune(straight, loop_data(), "sff", out=tmp_path / "straight", **OPTIONS)
    stopped = tiny("timer")
    with pytest.raises(SystemExit):
        finetune(stopped, loop_data(), "sff", out=tmp_path / "run", progress=StopAt("train", 3), **OPTIONS)
    again = tiny("timer")
    result = finetune(again, loop_data(), "sff", out=tmp_path / "run", resume=True, **OPTIONS)
    assert steady(result.to_json()) == steady(expected.to_json())
    for name, tensor in weights(straight).items():
        assert torch.equal(tensor, weights(again)[name]), name


def test_the_loss_of_a_batch_is_the_mean_of_its_windows_losses_so_that_micro_batches_add_up() -> None:
    adapter, data = tiny("timer"), loop_data()
    indices = torch.arange(0, 28, 5)
    alone = [adapter.loss(data.train.batch(one)).item() for one in indices.split(1)]
    # Every window hides as many points; float32 sums.
    assert adapter.loss(data.train.batch(indices)).item() == pytest.approx(sum(alone) / len(alone), rel=1e-5)


def test_a_limit_of_memory_is_kept_to() -> None:
    result = finetune(tiny("timer"), loop_data(), "ff", epochs=1, batch_size=8, max_memory="16G")
    assert result.test_mse is not None


def test_a_resumed_run_must_hide_the_same_points(tmp_path) -> None:
    finetune(tiny("timer"), loop_data(), "zero-shot", out=tmp_path / "run")
    other = ImputationData(make_table(600), "0.5,0.25,0.25", 192, stride=8, mask_rates=(0.5,))
    with pytest.raises(ValueError, match=r"data.mask_rates: \[0.25\] then, \[0.5\] now"):
        finetune(tiny("timer"), other, "zero-shot", out=tmp_path / "run", resume=True)


def test_a_family_that_cannot_impute_says_so_before_anything_is_computed(tmp_path) -> None:
    adapter = FakeAdapter.tiny()
    with pytest.raises(ArgumentError, match="cannot do imputation: it can do"):
        finetune(adapter, loop_data(), "ff", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ArgumentError, match="the length of a window must be a multiple of 96"):
        finetune(tiny("timer"), make_data(context_length=120), "ff")


@pytest.mark.parametrize("variant", doing("imputation"))
def test_all_families_that_impute_are_tuned_for_it(variant: str) -> None:
    require(variant)
    adapter = tiny(variant)
    length = 96 if variant != "moment" else 64
    data = make_data(context_length=length, patch_length=8, stride=10, channel_independent=adapter.channel_independent)
    before = evaluate(adapter, data, "val")["mse"]
    result = finetune(adapter, data, "ff", epochs=2, batch_size=8, lr=1e-3)
    assert result.val_mse < before
    assert np.isfinite(result.test_mse)


TWO_PROCESSES = """
import json, sys
sys.path[:0] = [{tests!r}]
from test_tasks_imputation import OPTIONS, loop_data
from sff_fast.adapters import tiny
from sff_fast.training import finetune

if __name__ == "__main__":
    result = finetune(tiny("timer"), loop_data(), "ff", parallel="ddp", device="cpu", out={out!r}, **OPTIONS)
"""


@pytest.mark.slow
def test_two_processes_impute_the_same_points_and_measure_the_same_errors(tmp_path) -> None:
    script, out = tmp_path / "job.py", tmp_path / "run"
    tests = Path(__file__).resolve().parent
    script.write_text(TWO_PROCESSES.format(tests=str(tests), out=str(out)))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(tests.parent), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((out / "metrics.json").read_text())
    alone = finetune(tiny("timer"), loop_data(), "ff", **OPTIONS)
    assert steady(metrics["zero_shot"]) == steady(alone.zero_shot)
    # Dropout masks differ with the number of processes; what is learned is about the same.
    assert metrics["runs"][0]["val_mse"] == pytest.approx(alone.val_mse, rel=0.2)
