"""The fine-tuning loop: what is trained, what is kept, what is written."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import itertools
import json
import math
import random

import numpy as np
import pytest
import torch
import training_fakes
from safetensors.torch import load_file
from training_fakes import CONTEXT, HORIZON, FakeAdapter, make_data, make_table, newest_state, read_log

from sff_fast.adapters import Forecast
from sff_fast.data import ForecastData, Scaler, Table, epoch_order
from sff_fast.errors import ArgumentError, CheckpointError, DataError, OutputError
from sff_fast.training import evaluate, finetune, forecast
from sff_fast.training.identity import differences
from sff_fast.training.log import finite
from sff_fast.training.output import WRITTEN
from sff_fast.training.weights import load_weights

loop = importlib.import_module("sff_fast.training.loop")
run_module = importlib.import_module("sff_fast.training.run")


quick = training_fakes.quick
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def data():
    return make_data()


def script(monkeypatch, values):
    """Let every validation of the loop give the next of the values (the zero-shot evaluation stays real)."""
    left = list(values)

    def measured(adapter, data, part, **options):
        value = left.pop(0)
        return {"mse": value, "mae": value}

    monkeypatch.setattr(loop, "measure", measured)


def weights(adapter):
    return {name: tensor.clone() for name, tensor in adapter.model.state_dict().items()}


# --- what is trained --------------------------------------------------------------------------------------------------


def test_every_window_is_trained_on_once_an_epoch_also_those_of_the_last_partial_batch(data):
    adapter, seen = FakeAdapter.tiny(), []
    adapter.on_loss = lambda batch: seen.append(batch.index.tolist())
    finetune(adapter, data, "ff", epochs=2, batch_size=25, patience=None)
    assert len(data.train) == 106
    assert [len(indices) for indices in seen] == [25, 25, 25, 25, 6] * 2
    first, second = list(itertools.chain(*seen[:5])), list(itertools.chain(*seen[5:]))
    assert sorted(first) == sorted(second) == list(range(106))
    assert first != second


@pytest.mark.parametrize("grad_clip", [None, 0.05])
def test_the_weights_are_those_of_a_plain_loop(data, grad_clip):
    adapter, reference = FakeAdapter.tiny(), FakeAdapter.tiny().model
    adapter.model.dropout.p = reference.dropout.p = 0.0
    finetune(adapter, data, "ff", epochs=2, batch_size=40, lr=1e-3, seed=3, grad_clip=grad_clip)
    optimizer = torch.optim.Adam(reference.parameters(), lr=1e-3, foreach=False, fused=False)
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 1e-3 / 2**epoch
        for indices in loop.epoch_order(106, 3, epoch).split(40):
            batch = data.train.batch(indices)
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(reference(batch.context), batch.target).backward()
            if grad_clip:
                torch.nn.utils.clip_grad_norm_(reference.parameters(), grad_clip)
            optimizer.step()
    for name, parameter in reference.named_parameters():
        # Fused and plain Adam round differently; a step is about 1e-3, so that a wrong one is far outside of this.
        torch.testing.assert_close(dict(adapter.model.named_parameters())[name], parameter, rtol=1e-5, atol=1e-6)


def test_tuning_learns_and_reports_the_weights_that_it_leaves_in_the_model(data, tmp_path):
    adapter = FakeAdapter.tiny()
    result = finetune(adapter, data, "ff", epochs=4, out=tmp_path / "run")
    assert result.test_mse < 0.8 * result.zero_shot["test_mse"]
    assert result.best_epoch == 4
    assert evaluate(adapter, data, "test")["mse"] == result.test_mse
    assert evaluate(adapter, data, "val")["mse"] == result.val_mse
    assert not any(module.training for module in adapter.model.modules())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("halving", [0.01, 0.005, 0.0025]),
        ("constant", [0.01, 0.01, 0.01]),
        # The last of 2, 4, 6 steps out of 6: half a cosine at 1/6, 3/6 and 5/6.
        ("cosine", [0.01 * (1 + math.cos(math.pi * k / 6)) / 2 for k in (1, 3, 5)]),
    ],
)
def test_the_learning_rate_follows_the_schedule(data, schedule, expected):
    result = finetune(FakeAdapter.tiny(), data, "ff", epochs=3, batch_size=53, schedule=schedule)
    assert [record["lr"] for record in result.history[1:]] == pytest.approx(expected, rel=1e-12)


def test_max_steps_ends_the_epoch_early_and_validates_it(data):
    result = finetune(FakeAdapter.tiny(), data, "ff", epochs=5, batch_size=53, max_steps=3)
    assert [record["step"] for record in result.history] == [0, 2, 3]
    assert result.stopped == "max_steps (3) reached"
    assert result.history[-1]["val_mse"] is not None


def test_the_gradient_norm_is_clipped(data):
    norms = []
    adapter = FakeAdapter.tiny()
    step = torch.optim.Adam.step

    def spy(self, *args):
        norms.append(math.sqrt(sum(float(p.grad.square().sum()) for p in adapter.model.parameters())))
        return step(self, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", spy)
        finetune(adapter, data, "ff", epochs=1, grad_clip=0.01)
    assert norms == pytest.approx([0.01] * len(norms), rel=1e-3)


def test_linear_probing_changes_the_head_alone_and_gives_requires_grad_back(data):
    adapter = FakeAdapter.tiny()
    adapter.model.body.bias.requires_grad_(False)
    before = weights(adapter)
    result = finetune(adapter, data, "lp", epochs=1)
    after = weights(adapter)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"head.weight", "head.bias", "passes"}
    required = {name: parameter.requires_grad for name, parameter in adapter.model.named_parameters()}
    assert required == {"body.weight": True, "body.bias": False, "head.weight": True, "head.bias": True}
    assert [record["phase"] for record in result.history] == ["initial", "head"]


def test_linear_probing_then_full_tuning_goes_on_from_the_best_probe_with_a_new_schedule(data, monkeypatch):
    adapter = FakeAdapter.tiny()
    stored, loaded = [], []
    store, load = loop.BestWeights.store, loop.BestWeights.load
    monkeypatch.setattr(loop.BestWeights, "store", lambda self, model: (stored.append(1), store(self, model)))
    monkeypatch.setattr(loop.BestWeights, "load", lambda self, model: (loaded.append(len(stored)), load(self, model)))
    script(monkeypatch, [0.5, 0.7, 0.6, 0.4])
    result = finetune(adapter, data, "lp-ff", epochs=4, lp_epochs=2, patience=None)
    assert [(record["phase"], record["lr"], record["best"]) for record in result.history] == [
        ("initial", None, False),
        ("head", 0.01, True),
        ("head", 0.005, False),
        ("full", 0.01, False),
        ("full", 0.005, True),
    ]
    assert result.best_epoch == 4
    assert loaded == [2, 3]  # the probe of epoch 1 at the change of phases, epoch 4 at the end


def test_the_best_probe_stays_a_candidate_when_full_tuning_makes_it_worse(data, monkeypatch):
    script(monkeypatch, [0.5, 0.7, 0.6])
    adapter = FakeAdapter.tiny()
    body = adapter.model.body.weight.clone()
    result = finetune(adapter, data, "lp-ff", epochs=3, lp_epochs=1, patience=None)
    assert (result.best_epoch, result.val_mse) == (1, 0.5)
    assert torch.equal(adapter.model.body.weight, body)


def test_patience_starts_anew_with_the_second_phase(data, monkeypatch):
    script(monkeypatch, [0.5, 0.6, 0.4, 0.3, 0.35])
    result = finetune(FakeAdapter.tiny(), data, "lp-ff", epochs=8, lp_epochs=4, patience=1)
    assert [record["phase"] for record in result.history[1:]] == ["head", "head", "full", "full", "full"]
    assert result.best_epoch == 4


def test_steps_of_both_phases_add_up_to_max_steps(data):
    result = finetune(FakeAdapter.tiny(), data, "lp-ff", epochs=10, lp_epochs=4, batch_size=10, max_steps=5)
    assert [(record["phase"], record["step"]) for record in result.history] == [
        ("initial", 0),
        ("head", 2),
        ("full", 5),
    ]


@pytest.mark.parametrize("strategy", ["tfs", "sff"])
def test_strategies_that_change_the_weights_call_the_kernel_with_alpha_and_seed(data, monkeypatch, strategy):
    calls = []

    class Report:
        def to_json(self):
            return {"seconds": 0.0}

    def kernel(model, plan, **options):
        calls.append((plan, options))
        with torch.no_grad():
            model.head.bias.fill_(3.0)
        return Report()

    module = importlib.import_module("sff_fast.training.strategies.preparing")
    monkeypatch.setattr(module, {"tfs": "fill_", "sff": "smooth_"}[strategy], kernel)
    adapter = FakeAdapter.tiny()
    untouched = evaluate(adapter, data, "val")["mse"]
    result = finetune(adapter, data, strategy, alpha=0.6, seed=5, rng="torch", epochs=1, plan="the plan")
    options = {"seed": 5, "rng": "torch"} | {"tfs": {}, "sff": {"alpha": 0.6, "again": False}}[strategy]
    assert calls == [("the plan", options)]
    assert result.alpha == {"tfs": None, "sff": 0.6}[strategy]
    assert result.zero_shot["val_mse"] == untouched
    assert result.history[0]["val_mse"] > 4  # a bias of 3 on standardised data


def test_training_from_scratch_with_torchs_numbers_starts_from_the_weights_of_a_new_model(data):
    start = {}

    class Listener(FakeAdapter):
        def on_loss(self, batch):
            start.update({} if start else {name: p.detach().clone() for name, p in self.model.named_parameters()})

    result = finetune(Listener.tiny(), data, "tfs", seed=5, rng="torch", epochs=1, max_steps=1)
    torch.manual_seed(5)
    second = FakeAdapter.tiny().build()
    assert {name: p.tolist() for name, p in second.named_parameters()} == {name: p.tolist() for name, p in start.items()}
    assert result.smooth["rng"] == "torch"


def test_what_preparing_draws_has_no_say_in_the_order_of_windows_and_dropout(data, monkeypatch):
    module = importlib.import_module("sff_fast.training.strategies.preparing")
    fill = module.fill_
    expected = finetune(FakeAdapter.tiny(), data, "tfs", epochs=1).test_mse
    monkeypatch.setattr(module, "fill_", lambda *args, **options: (torch.rand(5), fill(*args, **options))[1])
    assert finetune(FakeAdapter.tiny(), data, "tfs", epochs=1).test_mse == expected


def test_zero_shot_leaves_the_weights_alone_and_has_no_run(data, tmp_path):
    adapter = FakeAdapter.tiny()
    before = weights(adapter)
    result = finetune(adapter, data, "zero-shot", out=tmp_path / "run")
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(adapter).items())
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["runs"] == []
    assert metrics["zero_shot"]["test_mse"] == result.test_mse
    assert result.test_mse == evaluate(adapter, data)["mse"]
    assert load_file(tmp_path / "run" / "model" / "model.safetensors").keys() == before.keys()
    assert "Only the pre-trained model" in result.verdict


# --- what is kept -----------------------------------------------------------------------------------------------------


def test_the_best_epoch_by_validation_is_really_reloaded(data, monkeypatch, tmp_path):
    script(monkeypatch, [0.9, 0.3, 0.8, 0.7])
    snapshots = []
    adapter = FakeAdapter.tiny()

    class Watch:
        def start(self, total, label): ...
        def update(self, n, **fields): ...
        def close(self): ...

        def epoch(self, record):
            snapshots.append(weights(adapter))

    result = finetune(adapter, data, "ff", epochs=4, patience=None, progress=Watch(), out=tmp_path / "run")
    assert result.best_epoch == 2
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    for name, tensor in weights(adapter).items():
        assert torch.equal(tensor, snapshots[2][name]), name
        assert torch.equal(saved[name], snapshots[2][name]), name
    assert not torch.equal(snapshots[2]["head.weight"], snapshots[4]["head.weight"])


def test_the_best_weights_are_reloaded_without_an_output_folder_too(data, monkeypatch):
    script(monkeypatch, [0.3, 0.8])
    adapter, other = FakeAdapter.tiny(), FakeAdapter.tiny()
    finetune(adapter, data, "ff", epochs=2)
    script(monkeypatch, [0.3])
    finetune(other, data, "ff", epochs=1)
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(adapter).items())


@pytest.mark.parametrize(("patience", "epochs"), [(2, 4), (3, 5), (None, 7)])
def test_early_stopping_stops(data, monkeypatch, patience, epochs):
    script(monkeypatch, [0.5, 0.4, 0.41, 0.40, 0.42, 0.39, 0.6])
    result = finetune(FakeAdapter.tiny(), data, "ff", epochs=7, patience=patience)
    assert len(result.history) == 1 + epochs
    assert result.best_epoch == (6 if patience is None else 2)
    assert result.stopped == (None if patience is None else f"no better validation MSE for {patience} epochs")


def test_the_weights_before_training_are_no_candidate_unless_asked(data, monkeypatch):
    script(monkeypatch, [5.0, 6.0])
    assert finetune(FakeAdapter.tiny(), data, "ff", epochs=2).best_epoch == 1
    script(monkeypatch, [5.0, 6.0])
    adapter = FakeAdapter.tiny()
    before = weights(adapter)
    result = finetune(adapter, data, "ff", epochs=2, keep_initial=True)
    assert result.best_epoch == 0
    assert result.val_mse == result.zero_shot["val_mse"]
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(adapter).items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_its_step_and_keeps_the_best_weights(data, bad):
    adapter, steps = FakeAdapter.tiny(), []

    def poison(batch):
        steps.append(1)
        return torch.tensor(bad) if len(steps) == 7 else None

    adapter.on_loss = poison
    with pytest.warns(UserWarning, match=f"training loss is {bad} at step 7, in epoch 2.*epoch 1, are kept"):
        result = finetune(adapter, data, "ff", epochs=5, batch_size=25)
    assert len(steps) == 8  # the seventh is computed again to find out why
    assert result.best_epoch == 1
    second = ", ".join(str(int(index)) for index in epoch_order(len(data.train), 0, 1)[25:28])
    assert result.stopped == (
        f"the training loss is {bad} at step 7, in epoch 2, of windows {second}, … (25 in the batch): every parameter is "
        "finite, and so is the loss of its parts when it is computed again: training stopped"
    )
    assert all(tensor.isfinite().all() for tensor in adapter.model.state_dict().values())
    assert result.test_mse == evaluate(adapter, data)["mse"]


def test_a_divergence_in_the_first_epoch_leaves_the_weights_before_training(data, tmp_path):
    adapter = FakeAdapter.tiny()
    before = weights(adapter)
    adapter.on_loss = lambda batch: torch.tensor(float("nan"))
    FakeAdapter.tiny(seed=1).save(tmp_path / "model")
    (tmp_path / "run").mkdir()
    (tmp_path / "model").rename(tmp_path / "run" / "model")
    (tmp_path / "run" / "log.jsonl").write_text("")  # both left there by a run that was being overwritten
    with pytest.warns(UserWarning, match="at step 1"):
        result = finetune(adapter, data, "lp-ff", epochs=2, out=tmp_path / "run")
    assert result.best_epoch == 0
    assert torch.equal(adapter.model.head.weight, before["head.weight"])
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert torch.equal(saved["head.weight"], before["head.weight"])
    assert [line["event"] for line in read_log(tmp_path / "run")] == ["start", "zero_shot", "epoch", "stop", "end"]


def test_forecasts_that_are_not_finite_after_an_epoch_stop_the_run(data, monkeypatch):
    script(monkeypatch, [0.5, None, 0.1])
    with pytest.warns(UserWarning, match="validation part are not finite after epoch 2"):
        result = finetune(FakeAdapter.tiny(), data, "ff", epochs=3)
    assert result.best_epoch == 1
    assert len(result.history) == 3


# --- surroundings -----------------------------------------------------------------------------------------------------


def test_the_callers_random_generators_and_switches_are_as_before(data):
    torch.manual_seed(1), np.random.seed(2), random.seed(3)
    torch.set_num_threads(2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    finetune(FakeAdapter.tiny(), data, "ff", epochs=1, deterministic=True)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]
    assert torch.get_num_threads() == 2
    assert not torch.are_deterministic_algorithms_enabled()


def test_deterministic_runs_use_one_thread_and_deterministic_algorithms(data):
    torch.set_num_threads(2)
    adapter, seen = FakeAdapter.tiny(), set()
    adapter.on_loss = lambda batch: seen.add((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()))
    finetune(adapter, data, "ff", epochs=1, deterministic=True)
    assert seen == {(1, True)}


def test_the_seed_decides_everything(data):
    results = [finetune(FakeAdapter.tiny(), data, "ff", seed=seed, epochs=1).test_mse for seed in (4, 4, 2**64 - 1)]
    torch.manual_seed(99)
    results.append(finetune(FakeAdapter.tiny(), data, "ff", seed=4, epochs=1).test_mse)
    assert results[0] == results[1] == results[3] != results[2]


def test_how_often_a_run_saves_does_not_change_its_result(data, tmp_path):
    plain = finetune(FakeAdapter.tiny(), data, "ff", epochs=2).test_mse
    often = finetune(FakeAdapter.tiny(), data, "ff", epochs=2, out=tmp_path / "run", checkpoint_every=1).test_mse
    assert plain == often


def test_bf16_trains_bf16_parameters_and_measures_fp32_forecasts(data, tmp_path):
    adapter = FakeAdapter.tiny()
    result = finetune(adapter, data, "ff", epochs=2, precision="bf16", out=tmp_path / "run")
    assert {parameter.dtype for parameter in adapter.model.parameters()} == {torch.bfloat16}
    assert load_file(newest_state(tmp_path / "run") / "optimizer.safetensors")["/state/0/exp_avg"].dtype == torch.bfloat16
    assert result.test_mse < result.zero_shot["test_mse"]


def test_progress_hears_of_every_window_and_epoch(data):
    heard = {"train": 0, "val": 0, "test": 0}
    epochs, totals, closed = [], [], []

    class Listener:
        def start(self, total, label):
            totals.append((total, label))

        def update(self, n, stage, **fields):
            heard[stage] += n
            assert stage != "train" or set(fields) == {"epoch", "loss", "lr"}

        def epoch(self, record):
            epochs.append(record["epoch"])

        def close(self):
            closed.append(True)

    finetune(FakeAdapter.tiny(), data, "ff", epochs=2, patience=None, progress=Listener())
    # Zero-shot on both parts, which is ff's epoch 0 too; two epochs with a validation each; the test.
    assert heard == {"train": 2 * 106, "val": 3 * 42, "test": 2 * 42}
    assert totals == [(sum(heard.values()), "ff")]
    assert epochs == [0, 1, 2]
    assert closed == [True]


# --- what is written --------------------------------------------------------------------------------------------------


def test_the_output_folder_holds_what_the_design_says(data, tmp_path):
    out = tmp_path / "run"
    result = finetune(FakeAdapter.tiny(), data, "lp", epochs=2, batch_size=10, out=out)
    assert sorted(path.name for path in out.iterdir()) == ["log.jsonl", "metrics.json", "model", "state", "windows"]
    assert {path.name for path in out.iterdir()} <= set(WRITTEN)  # so that overwrite removes it
    metrics = json.loads((out / "metrics.json").read_text())
    assert {
        "sff_fast",
        "stream_version",
        "family",
        "data",
        "zero_shot",
        "runs",
        "summary",
        "comparisons",
        "verdict",
    } <= set(metrics)
    (run,) = metrics["runs"]
    assert (run["strategy"], run["alpha"], run["seed"], run["best_epoch"]) == ("lp", None, 0, result.best_epoch)
    assert (run["val_mse"], run["test_mse"], run["test_mae"]) == (result.val_mse, result.test_mse, result.test_mae)
    assert run["seconds"] > 0
    assert run["peak_bytes"] > 2**20
    assert run["metrics"]["test"]["windows"] == 42
    assert len(run["metrics"]["test"]["mse_per_horizon"]) == HORIZON
    assert metrics["summary"]["lp"]["test_mse_mean"] == result.test_mse
    assert metrics["summary"]["lp"]["test_mse_std"] is None
    assert metrics["summary"]["lp"]["n"] == 1
    (entry,) = metrics["comparisons"]
    assert (entry["a"], entry["b"], entry["metric"], entry["n"]) == ("lp", "zero-shot", "test_mse", 1)
    assert entry["difference"] == result.test_mse - result.zero_shot["test_mse"]
    assert entry["ci_low"] is None
    assert entry["ci_high"] is None
    assert metrics["verdict"] == result.verdict
    log = read_log(out)
    assert [line["event"] for line in log if line["event"] != "step"] == ["start", "zero_shot", *["epoch"] * 3, "end"]
    assert [line["step"] for line in log if line["event"] == "step"] == [10, 20]


def test_metrics_are_written_last(data, tmp_path, monkeypatch):
    def fail(path, value):
        assert (tmp_path / "run" / "model").exists()
        raise OutputError("disk full")

    monkeypatch.setattr(run_module, "write_json", fail)
    with pytest.raises(OutputError, match="disk full"):
        finetune(FakeAdapter.tiny(), data, "ff", epochs=1, out=tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / "metrics.json").exists()
    result = finetune(FakeAdapter.tiny(), data, "ff", epochs=1, out=tmp_path / "run", resume=True)
    assert result.test_mse == finetune(FakeAdapter.tiny(), data, "ff", epochs=1).test_mse


def test_an_output_folder_in_use_is_refused_and_overwritten_only_on_request(data, tmp_path):
    out = tmp_path / "run"
    finetune(FakeAdapter.tiny(), data, "ff", epochs=1, out=out)
    (out / "notes.txt").write_text("mine")
    (out / "report.html").write_text("old")
    with pytest.raises(OutputError, match="overwrite"):
        finetune(FakeAdapter.tiny(), data, "lp", epochs=1, out=out)
    finetune(FakeAdapter.tiny(), data, "lp", epochs=1, out=out, overwrite=True)
    assert json.loads((out / "metrics.json").read_text())["runs"][0]["strategy"] == "lp"
    assert (out / "notes.txt").exists()
    assert not (out / "report.html").exists()


@pytest.mark.parametrize("no_data", ["ETTh1.csv", make_table()], ids=["path", "table"])
def test_a_file_or_table_in_the_place_of_its_windows_is_refused_by_name(no_data):
    message = f"data must be a ForecastData, ImputationData or AnomalyData, got {type(no_data).__name__}: make one of"
    for call in (finetune, lambda adapter, data: evaluate(adapter, data)):
        with pytest.raises(ArgumentError, match=message):
            call(FakeAdapter.tiny(), no_data)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("mine", ["model/weights.bin", "runs/first/metrics.json", "landscape/hills.png"])
def test_folders_that_no_run_has_written_are_not_replaced(data, tmp_path, mine, overwrite):
    (tmp_path / mine).parent.mkdir(parents=True)
    (tmp_path / mine).write_text("mine")
    with pytest.raises(OutputError, match=f"no run has written '{tmp_path}/{mine.split('/')[0]}', which a run replaces; choose"):
        finetune(FakeAdapter.tiny(), data, "ff", epochs=1, out=tmp_path, overwrite=overwrite)
    assert [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()] == [mine]


def test_other_runs_in_the_folder_of_a_run_are_not_overwritten_with_it(data, tmp_path):
    for out in (tmp_path, tmp_path / "runs" / "second"):
        finetune(FakeAdapter.tiny(), data, "ff", epochs=1, out=out)
    with pytest.raises(OutputError, match=r"no run has written '.*/runs'"):
        finetune(FakeAdapter.tiny(), data, "lp", epochs=1, out=tmp_path, overwrite=True)
    assert (tmp_path / "runs" / "second" / "metrics.json").exists()
    assert json.loads((tmp_path / "metrics.json").read_text())["runs"][0]["strategy"] == "ff"


def test_a_pattern_without_a_match_leaves_the_run_that_was_to_be_overwritten(data, tmp_path):
    out = tmp_path / "run"
    finetune(FakeAdapter.tiny(), data, "ff", epochs=1, out=out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    with pytest.raises(ArgumentError, match="no parameter matches the pattern 'nothing"):
        finetune(FakeAdapter.tiny(), data, "sff", alpha={"nothing.*": 0.5}, epochs=1, out=out, overwrite=True)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_overwriting_the_model_to_start_from_is_refused(data, tmp_path):
    out = tmp_path / "run"
    finetune(FakeAdapter.tiny(), data, "ff", epochs=1, out=out)
    adapter = FakeAdapter.load(out / "model")
    with pytest.raises(ArgumentError, match="the model to start from"):
        finetune(adapter, data, "ff", epochs=1, out=out, overwrite=True)
    assert (out / "metrics.json").exists()
    assert (out / "model").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "fft"}, "strategy must be one of zero-shot, tfs, ff, sff, lp, lp-ff, .*, sam, got 'fft'"),
        ({"alpha": 1.5}, "alpha must be a number from 0 to 1, got 1.5"),
        ({"alpha": {"head.*": -1}}, r"alpha\['head.\*'\] must be a number from 0 to 1, got -1"),
        ({"alpha": {}}, "empty mapping"),
        ({"alpha": "much"}, "alpha must be a number from 0 to 1, got 'much'"),
        ({"seed": -1}, "seed must be an integer from 0 to 18446744073709551615, got -1"),
        ({"epochs": 0}, "epochs must be an integer of at least 1, got 0"),
        ({"epochs": 1.5}, "epochs must be an integer of at least 1, got 1.5"),
        ({"batch_size": True}, "batch_size must be an integer"),
        ({"lr": 0}, "lr must be a number above 0, got 0"),
        ({"lr": float("nan")}, "lr must be a number above 0, got nan"),
        ({"max_steps": 0}, "max_steps must be"),
        ({"rng": "numpy"}, "rng must be one of philox, torch, got 'numpy'"),
        ({"schedule": "linear"}, "schedule must be one of halving, constant, cosine, got 'linear'"),
        ({"patience": 0}, "patience must be"),
        ({"optimizer": "sgd"}, "optimizer must be one of .*adam.*got 'sgd'"),
        ({"weight_decay": -1}, "weight_decay must be a number of at least 0, got -1"),
        ({"grad_clip": 0}, "grad_clip must be a number above 0"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, bf16-sr, got 'fp8'"),
        ({"optimizer": "adam", "precision": "bf16-sr"}, "precision='bf16-sr' needs optimizer fused-adam or fused-adamw"),
        ({"optimizer": "adamw", "release_gradients": True}, "release_gradients=True needs optimizer fused-adam or"),
        ({"activation_checkpointing": True}, "the model of the family 'fake' has no repeated layers to recompute"),
        ({"micro_batch": 33}, "micro_batch must be an integer from 1 to 32, got 33"),
        ({"max_memory": "6X"}, "max_memory must be a positive number of bytes such as 6G, 800M or 6442450944, got '6X'"),
        ({"max_memory": 0}, "max_memory must be a positive number of bytes"),
        ({"strategy": "lp-ff", "lp_epochs": 10}, "lp_epochs must be less than epochs"),
        ({"strategy": "lp-ff", "epochs": 1}, "epochs must be at least 2 for lp-ff"),
        ({"strategy": "lp-ff", "max_steps": 1}, "max_steps must be at least 2 for lp-ff"),
        ({"device": "tpu"}, "device must be auto, cpu, cuda or cuda:N, got 'tpu'"),
        ({"checkpoint_every": 0}, "checkpoint_every must be"),
        ({"eval_batch_size": 0}, "eval_batch_size must be"),
        ({"resume": True, "overwrite": True}, "exclude each other"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_written(data, tmp_path, options, message):
    with pytest.raises(ArgumentError, match=message):
        finetune(FakeAdapter.tiny(), data, out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs hardware: a machine without a CUDA device")
def test_a_cuda_device_that_is_not_there_is_refused(data):
    with pytest.raises(ArgumentError, match="torch sees no CUDA device"):
        finetune(FakeAdapter.tiny(), data, "ff", device="cuda")


def test_data_that_does_not_fit_the_model_is_refused_before_anything_is_written(tmp_path):
    data = ForecastData(make_table(), "0.6,0.2,0.2", CONTEXT + 1, HORIZON)
    with pytest.raises(ArgumentError, match=f"context_length must be {CONTEXT}"):
        finetune(FakeAdapter.tiny(), data, "ff", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_family_without_a_head_cannot_be_probed(data, tmp_path):
    adapter = FakeAdapter.tiny()
    adapter.head_parameters = list
    with pytest.raises(ArgumentError, match="no head parameters"):
        finetune(adapter, data, "lp", epochs=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    assert all(parameter.requires_grad for parameter in adapter.model.parameters())


# --- evaluation and forecasts -----------------------------------------------------------------------------------------


def test_errors_are_means_over_all_windows_whatever_the_batch_size(data):
    adapter = FakeAdapter.tiny()
    batch = data.test.batch(torch.arange(len(data.test)))
    with torch.no_grad():
        error = (adapter.model(batch.context).double() - batch.target.double()).numpy()
    for batch_size in (1, 5, 41, 42, 1000):
        metrics = evaluate(adapter, data, "test", batch_size=batch_size)
        assert metrics["windows"] == 42
        # Forecasts are fp32 and their last bits may depend on the batch size.
        assert metrics["mse"] == pytest.approx((error**2).mean(), rel=1e-6)
        assert metrics["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-6)


def test_evaluation_needs_a_known_part(data):
    with pytest.raises(ArgumentError, match="part must be one of train, val, test, got 'all'"):
        evaluate(FakeAdapter.tiny(), data, "all")


def test_evaluation_draws_the_same_samples_every_time_and_leaves_the_generators_alone(data):
    adapter = FakeAdapter.tiny()
    original = adapter._forecast
    adapter._forecast = lambda context, length, samples: dataclasses.replace(
        original(context, length, samples), mean=torch.randn(len(context), length, 1)
    )
    state = torch.get_rng_state()
    assert evaluate(adapter, data)["mse"] == evaluate(adapter, data)["mse"]
    assert torch.equal(torch.get_rng_state(), state)


def test_a_forecast_is_in_the_tables_units_and_continues_its_time():
    table = make_table(50)
    adapter = FakeAdapter.tiny()
    result = forecast(adapter, table, CONTEXT, HORIZON)
    mean, std = table.values.mean(axis=0), table.values.std(axis=0)
    context = torch.tensor((table.values[-CONTEXT:] - mean) / std, dtype=torch.float32).T.unsqueeze(2)
    with torch.no_grad():
        expected = adapter.model(context).squeeze(2).T.double().numpy() * std + mean
    np.testing.assert_allclose(result.mean, expected, rtol=1e-5)
    np.testing.assert_allclose(result.quantiles[0.9], expected + std, rtol=1e-5)
    assert result.columns == ["first", "second"]
    assert [str(stamp)[:13] for stamp in result.timestamps] == [f"2024-01-03T0{hour}" for hour in (2, 3, 4, 5)]


class Sampler(FakeAdapter):
    """The little net with noise around its forecast: a family that draws sample paths."""

    default_num_samples = 40

    def _forecast(self, context, prediction_length, num_samples):
        mean = self.model(context).float()[:, None]
        samples = mean + torch.randn(len(context), num_samples, prediction_length, 1)
        return Forecast(samples.mean(1), samples=samples)


def test_a_forecast_by_sample_paths_has_their_quantiles_and_follows_the_seed():
    adapter = Sampler(FakeAdapter.tiny().model)
    table = make_table(50)
    result = forecast(adapter, table, CONTEXT, HORIZON, seed=3, num_samples=11)
    mean, std = table.values.mean(axis=0), table.values.std(axis=0)
    context = torch.tensor((table.values[-CONTEXT:] - mean) / std, dtype=torch.float32).T.unsqueeze(2)
    paths = adapter.forecast(context, HORIZON, seed=3, num_samples=11).samples.squeeze(3).double().numpy()
    assert list(result.quantiles) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    for level, values in result.quantiles.items():
        np.testing.assert_allclose(values, np.quantile(paths, level, axis=1).T * std + mean, rtol=1e-5)
    assert not np.array_equal(result.mean, forecast(adapter, table, CONTEXT, HORIZON, seed=4, num_samples=11).mean)
    with pytest.raises(ArgumentError, match="draws no sample paths"):
        forecast(FakeAdapter.tiny(), table, CONTEXT, HORIZON, num_samples=2)


@pytest.mark.parametrize(
    ("days", "expected"),
    [
        (
            np.arange("2023-01", "2024-11", dtype="datetime64[M]").astype("datetime64[D]"),
            "2024-11-01 2024-12-01 2025-01-01 2025-02-01",
        ),
        (
            np.arange("2023-02", "2024-12", dtype="datetime64[M]").astype("datetime64[D]") - 1,
            "2024-11-30 2024-12-31 2025-01-31 2025-02-28",
        ),
        (np.busday_offset("2024-01-01", np.arange(20)), "2024-01-29 2024-01-30 2024-01-31 2024-02-01"),
        (np.arange("2024-02-07", "2024-02-27", dtype="datetime64[D]"), "2024-02-27 2024-02-28 2024-02-29 2024-03-01"),
    ],
    ids=["months", "month ends", "working days", "days"],
)
def test_calendar_steps_are_continued(days, expected):
    values = np.random.default_rng(0).normal(size=(len(days), 1))
    table = Table(values, ["x"], days.astype("datetime64[us]"), None, "calendar.csv")
    result = forecast(FakeAdapter.tiny(), table, CONTEXT, HORIZON)
    assert [str(stamp)[:10] for stamp in result.timestamps] == expected.split()


def test_a_forecast_without_time_stamps_has_none():
    table = Table(np.random.default_rng(0).normal(size=(20, 1)), ["x"])
    assert forecast(FakeAdapter.tiny(), table, CONTEXT, HORIZON).timestamps is None


def test_a_forecast_from_too_few_rows_or_irregular_time_is_refused():
    with pytest.raises(DataError, match="has 15 rows, fewer than context_length"):
        forecast(FakeAdapter.tiny(), make_table(15), CONTEXT, HORIZON)
    table = make_table(40)
    stamps = table.timestamps.copy()
    stamps[-1] += 1
    with pytest.raises(DataError, match="follow no regular step"):
        forecast(FakeAdapter.tiny(), dataclasses.replace(table, timestamps=stamps), CONTEXT, HORIZON)


def test_a_scaler_of_other_channels_is_refused():
    with pytest.raises(ArgumentError, match="one mean for each of the 2 channels, got 1"):
        forecast(FakeAdapter.tiny(), make_table(40), CONTEXT, HORIZON, scaler=Scaler([0.0], [1.0]))


# --- small parts ------------------------------------------------------------------------------------------------------


def test_differences_name_nested_keys():
    then = {"a": {"lr": 1, "same": 2}, "gone": 3}
    assert differences(then, {"a": {"lr": 4, "same": 2}}) == ["a.lr: 1 then, 4 now", "gone: 3 then, 'absent' now"]


def test_numbers_that_json_cannot_hold_become_null():
    assert finite({"a": [1.0, float("inf")], "b": (float("nan"), "x")}) == {"a": [1.0, None], "b": [None, "x"]}


def test_weights_of_another_model_are_refused():
    model = torch.nn.Linear(2, 2)
    for tensors, message in (
        ({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}, r"'weight' is torch.float32 \(3, 2\)"),
        ({"weight": torch.zeros(2, 2)}, "lack 'bias'"),
        ({"scale": torch.zeros(2)}, "hold 'scale'"),
    ):
        with pytest.raises(CheckpointError, match=message):
            load_weights(model, tensors.items())


def test_buffers_that_grew_during_training_take_their_saved_shape():
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.zeros(1))
    model.register_buffer("table", torch.zeros(2))
    model.register_buffer("lazy", None)
    load_weights(model, {"weight": torch.ones(1), "table": torch.ones(5), "lazy": torch.ones(3)}.items())
    assert model.table.tolist() == [1] * 5
    assert model.lazy.tolist() == [1] * 3
    assert model.weight.item() == 1


def test_every_argument_of_finetune_is_documented():
    for name in inspect.signature(finetune).parameters:
        assert f"        {name}: " in finetune.__doc__, name
