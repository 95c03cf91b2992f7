"""A run that was stopped goes on and gives the same bits as one that was not."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import training_fakes
from training_fakes import (
    FakeAdapter,
    StopAt,
    assert_same_run,
    make_data,
    newest_state,
    once_each,
    read_log,
    steady,
    tune_tiny_timer,
)

from sff_fast.errors import CheckpointError, OutputError
from sff_fast.files import sha256, write_json
from sff_fast.training import evaluate, finetune
from sff_fast.training.runtime import capture_rng
from sff_fast.training.state import StateStore, join_tensors, split_tensors

loop = importlib.import_module("sff_fast.training.loop")
state_module = importlib.import_module("sff_fast.training.state")

OPTIONS = {"epochs": 4, "batch_size": 25, "seed": 3, "patience": None}


quick, data = training_fakes.quick, training_fakes.data
pytestmark = pytest.mark.usefixtures("quick")


def stopped(data, out, stage="train", count=8, number=signal.SIGTERM, strategy="ff", adapter=None, **options):
    """Start a run and stop it by a signal at the count-th batch of a stage."""
    expected = SystemExit if number == signal.SIGTERM else KeyboardInterrupt
    with pytest.raises(expected) as caught:
        finetune(
            adapter or FakeAdapter.tiny(),
            data,
            strategy,
            out=out,
            progress=StopAt(stage, count, number),
            **OPTIONS | options,
        )
    if number == signal.SIGTERM:
        assert caught.value.code == 143
    assert not (out / "metrics.json").exists()


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """Runs that nobody stopped, one for each strategy: folder and result."""
    return once_each(data, tmp_path_factory, OPTIONS)


# Each evaluation is one batch. The first validation and the first test are the zero-shot model's; sff and tfs validate
# their changed weights as epoch 0 with the second validation, before there is anything to resume.
@pytest.mark.parametrize(
    ("strategy", "stage", "count"),
    [
        pytest.param("ff", "train", 1, id="ff: first step"),
        pytest.param("ff", "train", 8, id="ff: amid an epoch"),
        pytest.param("ff", "train", 10, id="ff: last step of an epoch"),
        pytest.param("ff", "val", 2, id="ff: first validation"),
        pytest.param("ff", "test", 2, id="ff: test"),
        pytest.param("sff", "train", 8, id="sff: amid an epoch"),
        pytest.param("sff", "val", 3, id="sff: first validation"),
        pytest.param("lp-ff", "train", 8, id="lp-ff: amid the first phase"),
        pytest.param("lp-ff", "val", 3, id="lp-ff: validation at the end of the first phase"),
        pytest.param("lp-ff", "train", 17, id="lp-ff: amid the second phase"),
        pytest.param("tfs", "train", 8, id="tfs: amid an epoch"),
    ],
)
def test_a_run_that_was_stopped_gives_the_same_bits_as_one_that_was_not(data, tmp_path, uninterrupted, strategy, stage, count):
    (whole, expected), parts = uninterrupted(strategy), tmp_path / "parts"
    stopped(data, parts, stage, count, strategy=strategy)
    assert (parts / "model" / "model.safetensors").exists()
    adapter = FakeAdapter.tiny()
    result = finetune(adapter, data, strategy, out=parts, resume=True, **OPTIONS)
    assert_same_run(whole, parts)
    assert steady(result.to_json()) == steady(expected.to_json())
    assert steady(result.history) == steady(expected.history)
    assert evaluate(adapter, data)["mse"] == expected.test_mse


def test_a_run_can_be_stopped_many_times(data, tmp_path, uninterrupted):
    whole, parts = uninterrupted("ff")[0], tmp_path / "parts"
    stopped(data, parts, count=3)
    for count in (1, 4, 6):
        stopped(data, parts, count=count, resume=True)
    finetune(FakeAdapter.tiny(), data, "ff", out=parts, resume=True, **OPTIONS)
    assert_same_run(whole, parts)


def test_a_cosine_schedule_with_clipping_and_a_limit_of_steps_resumes_too(data, tmp_path):
    options = {"schedule": "cosine", "grad_clip": 0.1, "max_steps": 12, "optimizer": "adamw", "weight_decay": 0.1}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetune(FakeAdapter.tiny(), data, "ff", out=whole, **OPTIONS | options)
    stopped(data, parts, count=12, **options)  # the signal comes at the very last step that is allowed
    finetune(FakeAdapter.tiny(), data, "ff", out=parts, resume=True, **OPTIONS | options)
    assert_same_run(whole, parts)


def test_a_bf16_run_resumes_too(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetune(FakeAdapter.tiny(), data, "ff", out=whole, precision="bf16", **OPTIONS)
    stopped(data, parts, precision="bf16")
    finetune(FakeAdapter.tiny(), data, "ff", out=parts, resume=True, precision="bf16", **OPTIONS)
    assert_same_run(whole, parts)


@pytest.mark.parametrize("lost", ["torch rng", "optimizer", "position in the epoch", "buffers"])
def test_the_comparison_of_bits_sees_what_a_state_could_forget(data, tmp_path, uninterrupted, monkeypatch, lost):
    whole, parts = uninterrupted("ff")[0], tmp_path / "parts"
    stopped(data, parts)
    if lost == "torch rng":
        restore = loop.restore_rng
        monkeypatch.setattr(
            loop,
            "restore_rng",
            lambda tensors, plain, device: restore(tensors | {"torch": torch.get_rng_state()}, plain, device),
        )
    elif lost == "optimizer":
        monkeypatch.setattr(loop.Trainer, "_restore_optimizer", lambda self, saved: None)
    elif lost == "position in the epoch":
        restore_position = loop.Trainer.restore
        monkeypatch.setattr(
            loop.Trainer,
            "restore",
            lambda self, saved: (restore_position(self, saved), setattr(self.at, "position", 0)),
        )
    else:
        load = loop.load_weights
        monkeypatch.setattr(loop, "load_weights", lambda model, tensors: load(model, [*tensors, ("unsaved", torch.zeros(2))]))
    finetune(FakeAdapter.tiny(), data, "ff", out=parts, resume=True, **OPTIONS)
    with pytest.raises(AssertionError):
        assert_same_run(whole, parts)


def test_random_draws_of_numpy_and_python_in_a_loss_resume_too(data, tmp_path):
    def noisy():
        adapter = FakeAdapter.tiny()
        adapter.on_loss = lambda batch: torch.tensor(1 + random.gauss(0, 0.1) + 0.1 * np.random.normal())
        return adapter

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetune(noisy(), data, "ff", out=whole, **OPTIONS)
    stopped(data, parts, count=7, adapter=noisy())
    finetune(noisy(), data, "ff", out=parts, resume=True, **OPTIONS)
    assert_same_run(whole, parts)


@pytest.mark.parametrize("lost", [None, "torch", "numpy", "python"])
def test_each_random_generator_that_is_not_restored_is_noticed(data, tmp_path, monkeypatch, lost):
    def noisy():
        adapter = FakeAdapter.tiny()
        adapter.on_loss = lambda batch: torch.tensor(1 + random.gauss(0, 0.1) + 0.1 * np.random.normal())
        return adapter

    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetune(noisy(), data, "ff", out=whole, **OPTIONS)
    stopped(data, parts, count=7, adapter=noisy())
    restore = loop.restore_rng

    def forgetful(tensors, plain, device):
        present = capture_rng(device)
        own = {"torch": ({"torch"}, set()), "numpy": ({"numpy"}, {"numpy"}), "python": (set(), {"python"}), None: (set(), set())}
        kept = [{**then, **{name: now[name] for name in names}} for then, now, names in zip((tensors, plain), present, own[lost])]
        restore(*kept, device)

    monkeypatch.setattr(loop, "restore_rng", forgetful)
    finetune(noisy(), data, "ff", out=parts, resume=True, **OPTIONS)
    with pytest.raises(AssertionError) if lost else contextlib.nullcontext():
        assert_same_run(whole, parts)


def test_a_run_that_was_killed_loses_only_what_came_after_its_last_save(data, tmp_path):
    whole, parts, options = tmp_path / "whole", tmp_path / "parts", OPTIONS | {"batch_size": 8}
    finetune(FakeAdapter.tiny(), data, "ff", out=whole, **options)

    class Killed(BaseException):
        pass

    adapter, steps = FakeAdapter.tiny(), []

    def die(batch):
        steps.append(1)
        if len(steps) == 33:
            raise Killed

    adapter.on_loss = die
    with pytest.raises(Killed):
        finetune(adapter, data, "ff", out=parts, checkpoint_every=9, **options)
    assert _steps_done(parts) == 28  # the end of epoch 2
    assert max(line["step"] for line in read_log(parts) if line["event"] == "step") == 30  # to be taken back
    finetune(FakeAdapter.tiny(), data, "ff", out=parts, resume=True, checkpoint_every=2, **options)
    assert_same_run(whole, parts)


def test_checkpoints_amid_an_epoch_are_made_when_asked_for(data, tmp_path):
    steps = []

    class Watch(StateStore):
        def save(self, content, tensors, copies):
            steps.append(content["position"]["step"])
            return super().save(content, tensors, copies)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sff_fast.training.run.StateStore", Watch)
        finetune(FakeAdapter.tiny(), data, "ff", out=tmp_path / "run", checkpoint_every=2, **OPTIONS | {"epochs": 2})
    assert steps == [0, 2, 4, 5, 6, 8, 10, 10]


def test_a_diverged_run_resumes_to_the_same_end(data, tmp_path):
    out = tmp_path / "run"
    adapter, steps = FakeAdapter.tiny(), []
    adapter.on_loss = lambda batch: steps.append(1) or (torch.tensor(float("nan")) if len(steps) == 8 else None)
    with pytest.warns(UserWarning, match="step 8"):
        stopped(data, out, "test", 2, adapter=adapter)
    result = finetune(FakeAdapter.tiny(), data, "ff", out=out, resume=True, **OPTIONS)
    assert result.best_epoch == 1
    assert "step 8, in epoch 2" in result.stopped


def test_ctrl_c_before_the_first_epoch_ends_leaves_the_weights_it_started_from(data, tmp_path):
    out, adapter = tmp_path / "run", FakeAdapter.tiny()
    before = {name: tensor.clone() for name, tensor in adapter.model.state_dict().items()}
    stopped(data, out, count=3, number=signal.SIGINT, adapter=adapter)
    saved = FakeAdapter.load(out / "model").model.state_dict()
    assert all(torch.equal(before[name], tensor) for name, tensor in saved.items())


def test_ctrl_c_leaves_the_best_model_so_far(data, tmp_path):
    out = tmp_path / "run"
    stopped(data, out, count=13, number=signal.SIGINT)
    history = [line for line in read_log(out) if line["event"] == "epoch"]
    best = min(line["val_mse"] for line in history[1:])
    assert len(history) == 3
    assert evaluate(FakeAdapter.load(out / "model"), data, "val")["mse"] == best


def test_a_notebook_may_resume_with_the_adapter_that_was_interrupted(data, tmp_path, uninterrupted):
    whole, parts, adapter = uninterrupted("sff")[0], tmp_path / "parts", FakeAdapter.tiny()
    stopped(data, parts, count=9, number=signal.SIGINT, strategy="sff", adapter=adapter)
    finetune(adapter, data, "sff", out=parts, resume=True, **OPTIONS)
    assert_same_run(whole, parts)


def test_signal_handlers_are_given_back(data, tmp_path):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    stopped(data, tmp_path / "run")
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_second_ctrl_c_stops_at_once(data, tmp_path):
    class Twice(StopAt):
        def update(self, n, **fields):
            super().update(n, **fields)
            if self.left == 0:
                self.left = 1  # once more, from the same call
                os.kill(os.getpid(), signal.SIGINT)

    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        finetune(FakeAdapter.tiny(), data, "ff", out=out, progress=Twice("train", 8, signal.SIGINT), **OPTIONS)
    position = json.loads((newest_state(out) / "state.json").read_text())["content"]["position"]
    assert position["step"] == 5  # nothing was saved after the end of epoch 1


# --- resuming what is something else ----------------------------------------------------------------------------------


def test_resuming_where_nothing_was_begun_begins(data, tmp_path):
    result = finetune(FakeAdapter.tiny(), data, "ff", out=tmp_path / "run", resume=True, **OPTIONS)
    assert (tmp_path / "run" / "metrics.json").exists()
    assert result.best_epoch > 0


def test_resuming_a_finished_run_returns_its_result_and_writes_nothing(data, tmp_path):
    out = tmp_path / "run"
    for strategy in ("ff", "zero-shot"):
        first = finetune(FakeAdapter.tiny(), data, strategy, out=out / strategy, **OPTIONS)
        before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
        again = finetune(FakeAdapter.tiny(), data, strategy, out=out / strategy, resume=True, **OPTIONS)
        assert again == first
        assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.5}, r"settings.lr: 0.01 then, 0.5 now"),
        ({"seed": 4}, r"settings.seed: 3 then, 4 now"),
        ({"batch_size": 9, "patience": 2}, r"settings.batch_size: 25 then, 9 now; .*settings.patience: None then, 2 now"),
        ({"rng": "torch"}, r"settings.rng: 'philox' then, 'torch' now"),
        ({"strategy": "lp"}, r"settings.strategy: 'ff' then, 'lp' now"),
        ({"data": make_data(seed=1)}, r"data.scaler.mean: .*data.sha256: '"),
        ({"data": make_data(train_fraction=0.5)}, r"data.train_fraction: 1.0 then, 0.5 now"),
        ({"family": "other"}, r"family: 'fake' then, 'other' now"),
        ({"config": {"width": 9}}, r"model.width: 8 then, 9 now"),
    ],
)
@pytest.mark.parametrize("finished", [False, True])
def test_resuming_with_something_else_is_refused_and_names_it(data, tmp_path, options, message, finished):
    out, adapter = tmp_path / "run", FakeAdapter.tiny()
    if finished:
        finetune(FakeAdapter.tiny(), data, "ff", out=out, **OPTIONS)
    else:
        stopped(data, out)
    call = {"data": data, "strategy": "ff"} | OPTIONS | options
    if family := call.pop("family", None):
        adapter.family = family
    if config := call.pop("config", None):
        adapter.config = lambda: {"family": "fake"} | config
    before = {name: tensor.clone() for name, tensor in adapter.model.state_dict().items()}
    with pytest.raises(CheckpointError, match=f"cannot resume the run in .*{message}"):
        finetune(adapter, out=out, resume=True, **call)
    assert all(torch.equal(before[name], tensor) for name, tensor in adapter.model.state_dict().items())


def test_the_same_data_may_have_moved(data, tmp_path):
    stopped(data, tmp_path / "run")
    moved = make_data()
    object.__setattr__(moved.table, "source", "elsewhere/waves.csv")
    finetune(FakeAdapter.tiny(), moved, "ff", out=tmp_path / "run", resume=True, **OPTIONS)


def test_resuming_with_another_number_of_threads_is_said_to_change_digits(data, tmp_path):
    stopped(data, tmp_path / "run")
    torch.set_num_threads(2)
    with pytest.warns(UserWarning, match="threads: 1 then, 2 now.*last digits"):
        finetune(FakeAdapter.tiny(), data, "ff", out=tmp_path / "run", resume=True, **OPTIONS)


def test_a_deterministic_run_may_be_resumed_with_any_number_of_threads(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetune(FakeAdapter.tiny(), data, "ff", out=whole, deterministic=True, **OPTIONS)
    stopped(data, parts, deterministic=True)
    torch.set_num_threads(2)
    finetune(FakeAdapter.tiny(), data, "ff", out=parts, resume=True, deterministic=True, **OPTIONS)
    assert_same_run(whole, parts)


def test_an_unfinished_run_is_not_begun_anew_by_mistake(data, tmp_path):
    stopped(data, tmp_path / "run")
    with pytest.raises(OutputError, match=r"unfinished run.*--resume"):
        finetune(FakeAdapter.tiny(), data, "ff", out=tmp_path / "run", **OPTIONS)


def test_a_log_that_lost_lines_is_refused(data, tmp_path):
    out = tmp_path / "run"
    stopped(data, out)
    (out / "log.jsonl").write_bytes((out / "log.jsonl").read_bytes()[:100])
    with pytest.raises(CheckpointError, match="has 100 bytes, and the save to resume from was made at"):
        finetune(FakeAdapter.tiny(), data, "ff", out=out, resume=True, **OPTIONS)


# --- damaged states ---------------------------------------------------------------------------------------------------


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["weights", "best", "optimizer", "rng"])
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-5]), r"has \d+ bytes instead of \d+"),
        (_flip, "does not match its hash"),
        (Path.unlink, "is missing"),
    ],
    ids=["cut short", "a bit flipped", "lost"],
)
def test_a_damaged_save_is_named_and_the_one_before_it_is_used(data, tmp_path, uninterrupted, name, damage, message):
    out = tmp_path / "run"
    stopped(data, out, count=13)
    states = sorted((out / "state").glob("save-*"))
    assert len(states) == 2
    damage(states[1] / f"{name}.safetensors")
    with pytest.warns(UserWarning, match=rf"{states[1].name}.*{name}.*{message}.*{states[0].name}.* is used"):
        finetune(FakeAdapter.tiny(), data, "ff", out=out, resume=True, **OPTIONS)
    assert_same_run(uninterrupted("ff")[0], out)


def test_a_changed_byte_anywhere_in_a_save_is_refused_by_name_or_means_the_same(tmp_path):
    for number in range(2):
        StateStore(tmp_path).save({"number": number, "text": "ä"}, {"weights": {"x": torch.full((3,), float(number))}}, {})
    draw, newest = random.Random(1), tmp_path / "save-000001"
    refused = {"state.json": 0, "weights.safetensors": 0}
    for path in sorted(newest.iterdir()):
        whole = path.read_bytes()
        for place in range(len(whole)):
            changed = bytes([whole[place] ^ (1 << draw.randrange(8))])
            path.write_bytes(whole[:place] + changed + whole[place + 1 :])
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                saved = StateStore(tmp_path).load()
            if said:
                refused[path.name] += 1
                assert saved.content["number"] == 0
                assert re.search(r"save-000001.*; the save before it, '.*save-000000', is used", str(said[0].message))
            else:  # such as a blank between two names of the JSON that became a tabulator
                assert saved.content == {"number": 1, "text": "ä"}
                assert path.name == "state.json"
                assert whole[place : place + 1].isspace()
        path.write_bytes(whole)
        assert refused[path.name] > 0.9 * len(whole)
    assert StateStore(tmp_path).load().content["number"] == 1


def test_a_newest_save_of_another_format_is_named_and_the_one_before_it_is_used(tmp_path):
    for number in range(2):
        StateStore(tmp_path).save({"number": number}, {"weights": {"x": torch.ones(2)}}, {})
    newest = tmp_path / "save-000001" / "state.json"
    write_json(newest, json.loads(newest.read_text()) | {"format": 2})
    with pytest.warns(
        UserWarning, match=r"save-000001' has the format 2, this version reads 1; the save before it, .*save-000000"
    ):
        assert StateStore(tmp_path).load().content == {"number": 0}


def test_a_damaged_save_is_removed_by_the_next_one_which_does_not_take_its_number(tmp_path):
    store = StateStore(tmp_path)
    for number in range(2):
        store.save({"number": number}, {"weights": {"x": torch.ones(2)}}, {})
    _flip(tmp_path / "save-000001" / "weights.safetensors")
    store = StateStore(tmp_path)
    with pytest.warns(UserWarning, match=r"save-000001.*does not match its hash"):
        assert store.load().content == {"number": 0}
    store.save({"number": 2}, {"weights": {"x": torch.ones(2)}}, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["save-000000", "save-000002"]


def test_the_best_weights_of_a_save_replace_later_ones_when_it_is_gone_back_to(data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    stopped(data, out, "test", 2)
    older, newer = sorted((out / "state").glob("save-*"))
    best = [(state / "best.safetensors").read_bytes() for state in (older, newer)]
    assert best[0] != best[1] == (out / "state" / "best.safetensors").read_bytes()
    (newer / "rng.safetensors").unlink()
    seen = []
    restore = loop.Trainer.restore
    monkeypatch.setattr(loop.Trainer, "restore", lambda self, saved: (restore(self, saved), seen.append(self.best.path)))
    monkeypatch.setattr(loop.Trainer, "run", lambda self: seen.append(self.best.path.read_bytes()))
    with pytest.warns(UserWarning, match="is missing"):
        finetune(FakeAdapter.tiny(), data, "ff", out=out, resume=True, **OPTIONS)
    assert seen[1] == best[0]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(path.read_text()[:-40]),
        lambda path: path.write_text(path.read_text().replace('"step": 13', '"step": 12')),
        Path.unlink,
    ],
    ids=["cut short", "changed", "lost"],
)
def test_a_damaged_state_json_is_noticed_too(data, tmp_path, uninterrupted, damage):
    out = tmp_path / "run"
    stopped(data, out, count=13)
    damage(newest_state(out) / "state.json")
    with pytest.warns(UserWarning, match=r"save-000003.*save-000002.* is used"):
        finetune(FakeAdapter.tiny(), data, "ff", out=out, resume=True, **OPTIONS)
    assert_same_run(uninterrupted("ff")[0], out)


def test_when_no_save_is_whole_that_is_an_error_that_names_both(data, tmp_path):
    out = tmp_path / "run"
    stopped(data, out)
    first, second = sorted((out / "state").glob("save-*"))
    _flip(first / "rng.safetensors"), (second / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match=rf"no save can be used.*{second.name}.*{first.name}.*overwrite"):
        finetune(FakeAdapter.tiny(), data, "ff", out=out, resume=True, **OPTIONS)


def test_a_save_of_another_format_is_refused_by_its_number(data, tmp_path):
    out = tmp_path / "run"
    stopped(data, out)
    for state in (out / "state").glob("save-*"):
        raw = json.loads((state / "state.json").read_text())
        write_json(state / "state.json", raw | {"format": 99})
    with pytest.raises(CheckpointError, match="has the format 99, this version reads 1"):
        finetune(FakeAdapter.tiny(), data, "ff", out=out, resume=True, **OPTIONS)


def test_two_saves_are_kept_while_a_run_goes_on_and_one_when_it_is_finished(data, tmp_path):
    out = tmp_path / "run"
    stopped(data, out, count=18)
    assert [path.name for path in sorted((out / "state").iterdir())] == [
        "best.safetensors",
        "save-000003",
        "save-000004",
    ]
    finetune(FakeAdapter.tiny(), data, "ff", out=out, resume=True, **OPTIONS)
    assert [path.name for path in (out / "state").iterdir()] == ["save-000005"]


def test_every_save_says_the_hashes_of_its_files(data, tmp_path):
    out = tmp_path / "run"
    stopped(data, out)
    state = newest_state(out)
    raw = json.loads((state / "state.json").read_text())
    assert raw["format"] == 1
    assert {name: entry["sha256"] for name, entry in raw["files"].items()} == {
        path.name: sha256(path) for path in state.glob("*.safetensors")
    }


def test_a_crash_while_saving_leaves_the_save_before(data, tmp_path, monkeypatch):
    out = tmp_path / "run"
    original = state_module.save_safetensors
    calls = []

    def crash(path, tensors, *rest):
        calls.append(path)
        if len(calls) == 5:
            raise OutputError("the disk is full")
        original(path, tensors, *rest)

    monkeypatch.setattr(state_module, "save_safetensors", crash)
    with pytest.raises(OutputError, match="disk is full"):
        finetune(FakeAdapter.tiny(), data, "ff", out=out, **OPTIONS)
    monkeypatch.undo()
    assert [path.name for path in (out / "state").glob("*save*")] == ["save-000000"]
    finetune(FakeAdapter.tiny(), data, "ff", out=out, resume=True, **OPTIONS)


def test_nested_values_with_tensors_survive_splitting_and_joining():
    value = {
        "state": {0: {"exp_avg": torch.ones(2), "n": 3}},
        "groups": [{"betas": (0.9, 0.99), "lr": 1e-3, "x": None}],
    }
    tensors = {}
    skeleton = json.loads(json.dumps(split_tensors(value, tensors)))
    joined = join_tensors(skeleton, tensors)
    assert torch.equal(joined["state"][0].pop("exp_avg"), value["state"][0].pop("exp_avg"))
    assert joined == value
    assert isinstance(joined["groups"][0]["betas"], tuple)


def test_optimizer_states_take_the_layout_of_their_parameters(data, tmp_path):
    out = tmp_path / "run"

    def transposed():
        adapter = FakeAdapter.tiny()
        weight = adapter.model.body.weight
        weight.data = weight.data.T.contiguous().T
        return adapter

    stopped(data, out, adapter=transposed())
    seen = []
    restore = loop.Trainer._restore_optimizer

    def spy(self, saved):
        restore(self, saved)
        for parameter, values in self._optimizer.state.items():
            seen.append(values["exp_avg"].stride() == parameter.stride())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Trainer, "_restore_optimizer", spy)
        finetune(transposed(), data, "ff", out=out, resume=True, **OPTIONS)
    assert seen == [True] * 4


# --- a real process, a real family, a real signal ---------------------------------------------------------------------


def _killed_at(out: Path, step: int) -> int:
    """Run in a process of its own, send it SIGTERM after so many more steps, and return its exit code."""
    code = "import sys, training_fakes as f; f.tune_tiny_timer(sys.argv[1], f.PrintSteps())"
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(folders)}
    command = [sys.executable, "-W", "error", "-c", code, str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        for number, _ in enumerate(process.stdout, start=1):
            if number == step:
                process.send_signal(signal.SIGTERM)
    return process.returncode


def test_the_tiny_timer_killed_by_sigterm_at_random_moments_resumes_to_the_same_bits(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    tune_tiny_timer(whole)
    total = _steps_done(whole)
    for moment in sorted(random.Random(2).sample(range(2, total - 2), 2)):
        assert _killed_at(parts, max(1, moment - _steps_done(parts))) == 143
        assert moment <= _steps_done(parts) < total, "the signal came too late to test anything"
    tune_tiny_timer(parts)
    assert_same_run(whole, parts)


def _steps_done(out: Path) -> int:
    if not (out / "state").exists():
        return 0
    return json.loads((newest_state(out) / "state.json").read_text())["content"]["position"]["step"]
