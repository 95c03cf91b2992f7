"""Predicted memory, and the choice that max_memory makes."""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
import weakref
from pathlib import Path

import family_cases
import pytest
import torch
import training_fakes
from training_fakes import FakeAdapter, StopAt, assert_same_run, make_data, make_table

from sff_fast.adapters import load, tiny
from sff_fast.data import ForecastData
from sff_fast.errors import ArgumentError, CheckpointError
from sff_fast.files import read_json
from sff_fast.optim.fused_adamw import FusedAdamW
from sff_fast.training import compare, finetune, fit, memory, sweep
from sff_fast.training.config import Settings, parse_bytes, resolve_settings
from sff_fast.training.live import LiveBytes
from sff_fast.training.memory import Footprint, MemoryModel
from sff_fast.training.runtime import CAN_RESET_PEAK

quick = training_fakes.quick
pytestmark = pytest.mark.usefixtures("quick")
GIB = 1 << 30


def settings_of(adapter: object, **options: object) -> Settings:
    import inspect

    taken = inspect.signature(resolve_settings).parameters
    given = {name: p.default for name, p in inspect.signature(finetune).parameters.items() if name in taken}
    given.pop("adapter", None)
    return resolve_settings(adapter, **{**given, **options})


# ---------------------------------------------------------------------- counting
def test_live_bytes_are_those_of_the_tensors_that_operations_make() -> None:
    weight = torch.ones(10, 100)
    with LiveBytes([weight]) as live:
        x = torch.zeros(50, 10)  # 2,000 bytes
        y = x @ weight  # 20,000
        assert live.live == 22_000
        view = y.t()[3:]
        assert live.live == 22_000
        del x
        assert live.live == 20_000
        del y
        assert live.live == 20_000  # the view holds it
        del view
        assert live.live == 0
        weight.t()
        assert live.live == 0
        assert live.take_peak() == 22_000
        assert live.take_peak() == 0


def test_what_autograd_saves_is_alive_until_the_backward_pass_has_used_it() -> None:
    weight = torch.ones(100, 100, requires_grad=True)
    with LiveBytes([weight]) as live:
        loss = (torch.zeros(10, 100) @ weight).exp().sum()
        assert live.live == 4000 + 4000 + 4  # the input, the result of exp, the loss
        loss.backward()
        assert live.live >= 40_000
        weight.grad = None
        assert live.live == 4


@pytest.mark.parametrize(
    ("text", "expected"),
    [("6G", 6 * GIB), ("1.5GiB", 3 * GIB // 2), ("800m", 800 << 20), ("2 TB", 2 << 40), ("4096", 4096), (77, 77), ("1K", 1024)],
)
def test_sizes_are_read_in_powers_of_1024(text: object, expected: int) -> None:
    assert parse_bytes("max_memory", text) == expected


# ---------------------------------------------------------------------- predicting
def test_waiting_gradients_follow_the_optimizers_own_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    from sff_fast.training import memory

    adapter = tiny("timer")
    parameters = dict(adapter.model.named_parameters())
    sizes = {name: p.numel() * 4 for name, p in parameters.items()}
    limit = sum(sizes.values()) // 3
    monkeypatch.setattr(memory, "BUCKET_BYTES", limit)
    data = ForecastData(make_table(600), "0.5,0.25,0.25", 96, 24)
    model = MemoryModel(adapter, data, settings_of(adapter), True)
    order = tuple(reversed(parameters))
    held = model._pending(order, sizes)
    optimizer = FusedAdamW(parameters.items(), bucket_bytes=limit)
    waiting, left = set(), [set(bucket.labels) for bucket in optimizer._buckets()]
    assert len(left) > 2
    expected = [0]
    for name in order:
        waiting.add(name)
        for labels in left:
            if labels <= waiting:
                waiting -= labels
        expected.append(sum(sizes[other] for other in waiting))
    assert held == expected
    assert held[-1] == 0


def test_predicting_leaves_the_model_and_the_generators_as_they_were() -> None:
    adapter, data = FakeAdapter.tiny(), make_data()
    before = {name: tensor.clone() for name, tensor in adapter.model.state_dict().items()}
    generator = torch.get_rng_state()
    settings = settings_of(adapter)
    footprint = MemoryModel(adapter, data, settings, True).predict(settings)
    assert footprint.peak > 0
    assert torch.equal(torch.get_rng_state(), generator)
    assert not adapter.model.training
    assert adapter.model.unsaved.tolist() == [0.0, 0.0]
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in adapter.model.parameters())


def test_a_model_is_let_go_of_after_its_memory_was_predicted() -> None:
    adapter = tiny("timer")
    settings = settings_of(adapter)
    MemoryModel(adapter, ForecastData(make_table(600), "0.5,0.25,0.25", 96, 24), settings, True).predict(settings)
    model = weakref.ref(adapter.model)
    del adapter
    gc.collect()
    assert model() is None


def test_states_and_weights_are_those_of_the_optimizer() -> None:
    adapter = tiny("timer")
    data = ForecastData(make_table(600), "0.5,0.25,0.25", 96, 24)
    elements = sum(p.numel() for p in adapter.model.parameters())
    model = MemoryModel(adapter, data, settings_of(adapter), False)
    adam = settings_of(adapter, optimizer="adam")
    assert model.predict(adam).states == 8 * elements
    for options in ({"optimizer": "fused-adam"}, {"optimizer_state": "bfloat16"}, {"optimizer_state": "int8"}):
        settings = settings_of(adapter, **options)
        footprint = model.predict(settings)
        optimizer = FusedAdamW(adapter.model.parameters(), state_dtype=settings.optimizer_state or "float32")
        flat = sum(values.nbytes for bucket in optimizer._buckets() for values in bucket.flat.values())
        assert footprint.states == flat
        assert footprint.weights == sum(
            t.numel() * t.element_size() for t in [*adapter.model.parameters(), *adapter.model.buffers()]
        )
        assert footprint.best == 0


def test_every_way_of_saving_memory_is_predicted_to_save_some() -> None:
    adapter = tiny("timer")
    data = ForecastData(make_table(1200), "0.5,0.25,0.25", 480, 24)
    settings = settings_of(adapter, optimizer="fused-adam", batch_size=32)
    model = MemoryModel(adapter, data, settings, False)
    plain = model.predict(settings)
    activations = plain.gradients + plain.activations
    for option in ({"micro_batch": 4}, {"activation_checkpointing": True}, {"release_gradients": True}):
        way = model.predict(settings_of(adapter, optimizer="fused-adam", batch_size=32, **option))
        # What passes take beside their tensors is measured anew each time.
        assert way.gradients + way.activations <= 1.1 * activations, option
        if "release_gradients" not in option:
            assert way.gradients + way.activations < 0.7 * activations, option
    assert model.predict(settings_of(adapter, batch_size=32, eval_batch_size=8)).evaluation < plain.evaluation / 4


MEASURED = [
    ("timer", {}),
    ("ttm", {"batch_size": 64}),
    ("chronos-bolt", {"batch_size": 32}),
    ("moment", {"batch_size": 32}),
    ("medium", {"batch_size": 16}),
    ("medium", {"batch_size": 16, "epochs": 3}),
    ("medium", {"batch_size": 64, "micro_batch": 16, "activation_checkpointing": True, "eval_batch_size": 32}),
    ("medium", {"batch_size": 16, "optimizer_state": "int8", "release_gradients": True}),
    ("medium", {"precision": "bf16-sr", "batch_size": 16, "optimizer_state": "int8", "release_gradients": True}),
]


@pytest.mark.slow
@pytest.mark.skipif(not CAN_RESET_PEAK, reason="needs hardware: a Linux that lets a process reset its peak memory")
@pytest.mark.parametrize(("size", "options"), MEASURED, ids=str)
def test_the_peak_is_predicted_within_ten_percent_of_what_a_fresh_process_measures(size: str, options: dict[str, object]) -> None:
    if size != "medium":
        family_cases.require(size)
    script = Path(__file__).with_name("memory_run.py")
    command = [sys.executable, str(script), size, json.dumps(options)]
    environment = {**os.environ, "PYTHONPATH": str(script.parent.parent)}
    found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout)
    assert found["peak"] == pytest.approx(found["measured"], rel=0.1), found


# ---------------------------------------------------------------------- choosing
class Arithmetic:
    """A memory model that adds up what a model of 1 GiB of weights would take."""

    def __init__(self, adapter: object, data: object, settings: Settings, in_memory: bool, kept: int = 0) -> None:
        self.kept = kept
        self.half = 1 if settings.precision == "fp32" else 2

    def predict(self, settings: Settings) -> Footprint:
        weights = GIB // self.half
        states = {None: 2 * weights, "float32": 2 * GIB, "bfloat16": GIB, "int8": GIB // 2}[settings.optimizer_state]
        whole = settings.micro_batch < settings.batch_size or not settings.release_gradients
        return Footprint(
            process=0,
            weights=weights,
            states=states,
            best=0,
            gradients=weights if whole else 0,
            activations=settings.micro_batch * GIB // 32 // (8 if settings.activation_checkpointing else 1) // self.half,
            evaluation=settings.eval_batch_size * GIB // 256,
            start=weights,
            kept=self.kept,
        )


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (
            "5G",
            {"precision": "fp32", "optimizer": "adam", "optimizer_state": None, "release_gradients": False, "micro_batch": 32},
        ),
        ("4G", {"optimizer": "fused-adam", "optimizer_state": None, "release_gradients": True, "micro_batch": 32}),
        ("3G", {"optimizer_state": "bfloat16", "release_gradients": True, "micro_batch": 32}),
        ("2.5G", {"optimizer_state": "int8", "release_gradients": True, "micro_batch": 32}),
        ("1.7G", {"optimizer_state": "int8", "release_gradients": True, "activation_checkpointing": True, "eval_batch_size": 32}),
        ("1.2G", {"precision": "bf16-sr", "optimizer_state": "int8", "release_gradients": True, "eval_batch_size": 32}),
    ],
)
def test_the_cheapest_way_that_fits_is_chosen(limit: str, expected: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "MemoryModel", Arithmetic)
    adapter = tiny("timer")
    settings = settings_of(adapter, max_memory=limit)
    chosen, footprint = fit.fit_settings(adapter, None, settings, {}, False)
    assert footprint.peak <= settings.max_memory
    assert {name: getattr(chosen, name) for name in expected} == expected


def test_what_was_given_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "MemoryModel", Arithmetic)
    adapter = tiny("timer")
    for given in (
        {"optimizer": "adam"},
        {"precision": "fp32", "optimizer_state": "bfloat16"},
        {"micro_batch": 32, "release_gradients": False},
    ):
        settings = settings_of(adapter, max_memory="4.6G", **given)
        chosen, _ = fit.fit_settings(adapter, None, settings, given, False)
        assert {name: getattr(chosen, name) for name in given} == given


def test_too_little_memory_says_what_the_least_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "MemoryModel", Arithmetic)
    adapter = tiny("timer")
    with pytest.raises(ArgumentError, match=r"max_memory=100\.00 MiB is too little: the least .* is 1\.0\d GiB, of which"):
        fit.fit_settings(adapter, None, settings_of(adapter, max_memory="100M"), {}, False)


def test_a_run_notes_its_choice_and_resumes_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    data = ForecastData(make_table(400), "0.5,0.25,0.25", 96, 24, stride=2)
    options = {"max_memory": "3G", "epochs": 2, "batch_size": 8, "lr": 1e-3}
    monkeypatch.setattr(fit, "MemoryModel", Arithmetic)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetune(tiny("timer"), data, "sff", out=whole, **options)
    assert "max_memory 3.00 GiB: fp32, optimizer fused-adam, bfloat16 states, released gradients" in caplog.text
    noted = read_json(whole / "memory.json")
    assert noted["chosen"]["optimizer_state"] == "bfloat16"
    assert noted["predicted"]["peak"] <= 3 * GIB
    settings = read_json(whole / "metrics.json")["settings"]
    assert {name: settings[name] for name in noted["chosen"]} == noted["chosen"]
    with pytest.raises(SystemExit):
        finetune(tiny("timer"), data, "sff", out=parts, progress=StopAt("train", 4), **options)

    def never(*_: object) -> None:
        raise AssertionError("a resumed run must not choose anew")

    monkeypatch.setattr(fit, "MemoryModel", never)
    finetune(tiny("timer"), data, "sff", out=parts, resume=True, **options)
    assert_same_run(whole, parts)
    monkeypatch.setattr(fit, "MemoryModel", Arithmetic)
    with pytest.raises(CheckpointError, match=r"settings\.max_memory: 3221225472 then, 4294967296 now"):
        finetune(tiny("timer"), data, "sff", out=parts, resume=True, **{**options, "max_memory": "4G"})


def test_a_comparison_chooses_once_for_all_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit, "MemoryModel", Arithmetic)
    data = ForecastData(make_table(400), "0.5,0.25,0.25", 96, 24, stride=2)
    compare(
        lambda: tiny("timer"),
        data,
        ("ff", "sff"),
        out=tmp_path / "run",
        max_memory="1.3G",
        batch_size=8,
        max_steps=2,
        epochs=1,
    )
    noted = read_json(tmp_path / "run" / "memory.json")
    assert noted["chosen"]["precision"] == "bf16-sr"
    for run in ("ff", "sff-alpha0.7"):
        settings = read_json(tmp_path / "run" / "runs" / f"{run}-seed0" / "metrics.json")["settings"]
        assert {name: settings[name] for name in noted["chosen"]} == noted["chosen"]


@pytest.mark.parametrize("way", ["compare", "sweep"])
@pytest.mark.parametrize("place", ["kept", "mapped"])
def test_the_pristine_weights_that_several_runs_keep_on_the_host_count(
    way: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "MemoryModel", Arithmetic)
    data = ForecastData(make_table(400), "0.5,0.25,0.25", 96, 24, stride=2)
    make = lambda: tiny("timer")  # noqa: E731  (one of two makers)
    if place == "mapped":
        tiny("timer").save(tmp_path / "model")
        make = lambda: load("timer", tmp_path / "model")  # noqa: E731
    weights = sum(tensor.nbytes for tensor in (*make().model.parameters(), *make().model.buffers()))
    options = {"out": tmp_path / "run", "max_memory": "64G", "batch_size": 8, "max_steps": 1, "epochs": 1}
    if way == "compare":
        compare(make, data, ("ff",), **options)
    else:
        sweep(make, data, (0.9,), (0,), baselines=(), **options)
    predicted = read_json(tmp_path / "run" / "memory.json")["predicted"]
    assert predicted["kept"] == (weights if place == "kept" else 0)
    parts = ("process", "weights", "states", "best", "gradients", "activations", "kept")
    assert predicted["training"] == sum(predicted[name] for name in parts)


def test_what_is_kept_is_told_apart_from_the_process_and_counts_in_every_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "resident_memory", lambda: 1 << 30)
    adapter = tiny("timer")
    data, settings = ForecastData(make_table(400), "0.5,0.25,0.25", 96, 24), settings_of(adapter)
    alone, several = (MemoryModel(adapter, data, settings, False, kept).predict(settings) for kept in (0, 5 << 20))
    assert (alone.kept, several.kept) == (0, 5 << 20)
    assert alone.process - several.process == 5 << 20
    more = dataclasses.replace(alone, kept=1 << 40)
    assert all(getattr(more, name) == getattr(alone, name) + (1 << 40) for name in ("training", "evaluating", "peak"))


def test_enough_memory_changes_nothing(tmp_path: Path) -> None:
    adapter, data = FakeAdapter.tiny(), make_data()
    first = finetune(adapter, data, "ff", epochs=1, batch_size=25, max_memory="64G")
    second = finetune(FakeAdapter.tiny(), data, "ff", epochs=1, batch_size=25)
    assert first.test_mse == second.test_mse
