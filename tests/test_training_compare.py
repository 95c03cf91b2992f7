"""A comparison: every run from the pristine weights, one model at a time, the one to ship chosen by validation."""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import weakref

import pytest
import torch
import training_fakes
from safetensors.torch import load_file
from training_fakes import FakeAdapter, StopAt, read_log, steady

from sff_fast.errors import ArgumentError, CheckpointError, OutputError
from sff_fast.files import sha256
from sff_fast.training import compare, evaluate, finetune

compare_module = importlib.import_module("sff_fast.training.compare")

OPTIONS = {"epochs": 2, "batch_size": 32}


quick, data = training_fakes.quick, training_fakes.data
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A comparison of three strategies and two seeds, and its folder."""
    out = tmp_path_factory.mktemp("compare") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        return compare(FakeAdapter.tiny, data, ("zero-shot", "ff", "sff", "lp"), (0, 1), out=out, **OPTIONS), out


def test_every_run_equals_the_same_run_alone(data, finished):
    result, _ = finished
    for run in result.runs:
        alone = finetune(FakeAdapter.tiny(), data, run.strategy, seed=run.seed, **OPTIONS)
        assert (run.val_mse, run.test_mse, run.best_epoch) == (alone.val_mse, alone.test_mse, alone.best_epoch)
        assert steady(run.zero_shot) == steady(alone.zero_shot)
    assert [(run.strategy, run.seed) for run in result.runs] == [(s, seed) for seed in (0, 1) for s in ("ff", "sff", "lp")]


def test_the_folder_holds_each_run_the_table_and_the_model_to_ship(data, finished):
    result, out = finished
    assert sorted(path.name for path in out.iterdir()) == ["log.jsonl", "metrics.json", "model", "runs", "state"]
    names = [f"{name}-seed{seed}" for name in ("ff", "lp", "sff-alpha0.7") for seed in (0, 1)]
    assert sorted(path.name for path in (out / "runs").iterdir()) == sorted([*names, "zero-shot"])
    for name in names:
        assert sorted(path.name for path in (out / "runs" / name).iterdir()) == ["log.jsonl", "metrics.json", "model", "windows"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics == result.metrics
    assert [run["directory"] for run in metrics["runs"]] == [
        f"runs/{run.strategy}{'-alpha0.7' if run.alpha else ''}-seed{run.seed}" for run in result.runs
    ]
    assert metrics["settings"]["runs"][1] == {"strategy": "sff", "alpha": 0.7, "seed": 0}
    assert set(metrics["summary"]) == {"zero-shot", "ff", "sff", "lp"}
    assert [(one["a"], one["b"], one["n"]) for one in metrics["comparisons"]] == [
        (a, b, 2) for a, b in [("sff", "ff"), ("lp", "ff"), ("ff", "zero-shot"), ("sff", "zero-shot"), ("lp", "zero-shot")]
    ]
    # 24 test rows make 5 starts of windows of 20 rows: no two blocks.
    assert {(one["covers"], one["blocks"], one["corrected_for"]) for one in metrics["comparisons"]} == {("seeds", 1, 5)}
    assert [line["event"] for line in read_log(out)] == ["start", "zero_shot", *["run"] * 6, "end"]


def test_the_model_to_ship_is_the_best_by_validation(data, finished):
    result, out = finished
    groups = {}
    for run in result.runs:
        groups.setdefault(run.strategy, []).append(run)
    best = min(groups.values(), key=lambda runs: sum(run.val_mse for run in runs))
    chosen = min(best, key=lambda run: run.val_mse)
    assert result.verdict.startswith(f"Ship {chosen.strategy}")
    assert sha256(out / "model" / "model.safetensors") == sha256(chosen.model_dir / "model.safetensors")
    assert evaluate(FakeAdapter.load(out / "model"), data, "val")["mse"] == chosen.val_mse


def test_the_test_part_has_no_say_in_what_is_shipped(data, tmp_path, monkeypatch):
    run_one = compare_module.run_one

    def rigged(adapter, data, settings, folder, **options):
        result = run_one(adapter, data, settings, folder, **options)
        if settings.strategy == "lp":
            result.val_mse, result.test_mse = 0.001, 9.0
        elif settings.strategy == "ff":
            result.test_mse = 0.001
        return result

    monkeypatch.setattr(compare_module, "run_one", rigged)
    result = compare(FakeAdapter.tiny, data, ("ff", "lp"), out=tmp_path / "out", **OPTIONS)
    assert result.verdict.startswith("Ship lp: ")
    assert "worse" in result.verdict
    shipped = sha256(tmp_path / "out" / "model" / "model.safetensors")
    assert shipped == sha256(tmp_path / "out" / "runs" / "lp-seed0" / "model" / "model.safetensors")


@pytest.mark.parametrize("strategies", [("ff",), ("zero-shot",)])
def test_the_pristine_model_is_shipped_when_nothing_beats_it(data, tmp_path, strategies):
    result = compare(FakeAdapter.tiny, data, strategies, out=tmp_path / "out", lr=1e-9, precision="bf16", **OPTIONS)
    assert not result.verdict.startswith("Ship ff")
    shipped = load_file(tmp_path / "out" / "model" / "model.safetensors")
    for name, tensor in FakeAdapter.tiny().model.state_dict().items():
        assert shipped[name].dtype == tensor.dtype  # not the bf16 copy that was evaluated
        assert torch.equal(shipped[name], tensor)


def test_there_is_never_a_second_model_in_memory(data, tmp_path):
    alive: weakref.WeakSet = weakref.WeakSet()
    made = []

    def make():
        assert len(alive) == 0, "the model before is still there"
        adapter = FakeAdapter.tiny()
        alive.add(adapter.model)
        made.append(1)
        return adapter

    gc.disable()  # what is let go of must not depend on when the collector runs by itself
    try:
        compare(make, data, ("ff", "sff", "tfs"), (0, 1), out=tmp_path / "out", **OPTIONS | {"epochs": 1})
    finally:
        gc.enable()
    assert len(made) == 1


def test_zero_shot_is_there_unasked_and_alphas_are_runs(data):
    result = compare(FakeAdapter.tiny, data, ("sff",), alphas=(0.5, 0.9), **OPTIONS)
    assert [(run.strategy, run.alpha) for run in result.runs] == [("sff", 0.5), ("sff", 0.9)]
    assert set(result.summary) == {"zero-shot", "sff-alpha0.5", "sff-alpha0.9"}
    assert result.model_dir is None
    alone = compare(FakeAdapter.tiny, data, ("zero-shot",))
    assert steady(alone.zero_shot) == steady(result.zero_shot)
    assert alone.runs == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_comparison_keeps_finished_runs_and_goes_on_with_the_other(data, tmp_path, finished, number):
    out, made = tmp_path / "out", []
    arguments = (data, ("zero-shot", "ff", "sff", "lp"), (0, 1))
    with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt):
        # 4 steps an epoch, 8 a run: the 14th is amid the second run.
        compare(FakeAdapter.tiny, *arguments, out=out, progress=StopAt("train", 14, number), **OPTIONS)
    assert not (out / "metrics.json").exists()
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["ff-seed0", "sff-alpha0.7-seed0", "zero-shot"]
    with pytest.raises(OutputError, match="unfinished"):
        compare(FakeAdapter.tiny, *arguments, out=out, **OPTIONS)
    before = (out / "runs" / "ff-seed0" / "metrics.json").stat().st_mtime_ns

    def make():
        made.append(1)
        return FakeAdapter.tiny()

    result = compare(make, *arguments, out=out, resume=True, **OPTIONS)
    assert (out / "runs" / "ff-seed0" / "metrics.json").stat().st_mtime_ns == before
    assert len(made) == 1
    expected, folder = finished
    assert steady(result.metrics) == steady(expected.metrics)
    assert read_log(out) == read_log(folder)
    assert sha256(out / "model" / "model.safetensors") == sha256(folder / "model" / "model.safetensors")
    for run, other in zip(result.runs, expected.runs, strict=True):
        assert steady(run.history) == steady(other.history)


def test_resuming_a_finished_comparison_returns_it_and_writes_nothing(data, finished):
    first, out = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = compare(FakeAdapter.tiny, data, ("zero-shot", "ff", "sff", "lp"), (0, 1), out=out, resume=True, **OPTIONS)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_resuming_another_comparison_is_refused_and_names_the_difference(data, finished):
    _, out = finished
    arguments = {"strategies": ("zero-shot", "ff", "sff", "lp"), "seeds": (0, 1)}
    for change, message in (
        ({"lr": 1.0}, "settings.lr: 0.01 then, 1.0 now"),
        ({"seeds": (0,)}, "settings.runs: "),
        ({"lp_epochs": 1}, "settings.lp_epochs: None then, 1 now"),
    ):
        with pytest.raises(CheckpointError, match=message):
            compare(FakeAdapter.tiny, data, out=out, resume=True, **arguments | OPTIONS | change)


def test_runs_and_comparisons_are_not_mixed_up(data, tmp_path, finished):
    _, out = finished
    with pytest.raises(CheckpointError, match="settings"):
        finetune(FakeAdapter.tiny(), data, "ff", out=out, resume=True, **OPTIONS)
    run, half = tmp_path / "run", tmp_path / "half"
    finetune(FakeAdapter.tiny(), data, "ff", out=run, **OPTIONS)
    with pytest.raises(CheckpointError, match="holds a single run, no comparison"):
        compare(FakeAdapter.tiny, data, ("ff",), out=run, resume=True, **OPTIONS)
    with pytest.raises(SystemExit):
        compare(FakeAdapter.tiny, data, ("ff",), out=half, progress=StopAt("train", 1), **OPTIONS)
    with pytest.raises(CheckpointError, match="holds a comparison, no single run"):
        finetune(FakeAdapter.tiny(), data, "ff", out=half, resume=True, **OPTIONS)


def test_overwriting_removes_the_runs_of_before(data, tmp_path):
    out = tmp_path / "out"
    compare(FakeAdapter.tiny, data, ("ff",), out=out, **OPTIONS)
    compare(FakeAdapter.tiny, data, ("lp",), out=out, overwrite=True, **OPTIONS)
    assert sorted(path.name for path in (out / "runs").iterdir()) == ["lp-seed0", "zero-shot"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategies": "ff,sff"}, "strategies must be a sequence of names, got the string"),
        ({"strategies": ()}, "strategies must not be empty"),
        ({"strategies": ("ff", "ff")}, "strategies must not hold anything twice"),
        ({"strategies": ("ff", "nope")}, "strategy must be one of"),
        ({"seeds": ()}, "seeds must not be empty"),
        ({"seeds": (1, 1)}, "seeds must not hold anything twice"),
        ({"seeds": (-1,)}, "seed must be an integer from 0"),
        ({"strategies": ("ff",), "alphas": (0.5,)}, "alphas mean something to sff, .* only, and strategies are ff"),
        ({"alphas": (0.5, 1.5)}, "alpha must be a number from 0 to 1, got 1.5"),
        ({"learning_rate": 1}, "compare has no option 'learning_rate': it takes .*epochs, .*batch_size"),
        ({"strategies": ("ff", "lp-ff"), "epochs": 1}, "epochs must be at least 2 for lp-ff"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_written(data, tmp_path, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        compare(FakeAdapter.tiny, data, out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategies": ("ff", "sff"), "alphas": ({"nothing.*": 0.5},)}, "no parameter matches the pattern 'nothing"),
        ({"strategies": ("ff", "lp")}, "no head parameters"),
    ],
)
def test_what_only_the_last_run_would_stumble_over_is_found_before_the_first(data, tmp_path, monkeypatch, arguments, message):
    monkeypatch.setattr(FakeAdapter, "head_parameters", lambda self: [])
    with pytest.raises(ArgumentError, match=message):
        compare(FakeAdapter.tiny, data, out=tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_model_instead_of_a_function_that_loads_it_is_refused(data):
    with pytest.raises(ArgumentError, match=r"make_adapter must be a function.*got FakeAdapter"):
        compare(FakeAdapter.tiny(), data)
