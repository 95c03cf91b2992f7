"""Smoothing a checkpoint where it is: a crash at any moment loses nothing."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_checkpoints import Mixed, as_folder, assert_same, pretrained, read_folder, state

import sff_fast
from sff_fast.checkpoints import chunks, journal, overwrite
from sff_fast.errors import CheckpointError, OutputError

pytestmark = pytest.mark.filterwarnings("ignore:.*copied unchanged:UserWarning")


@pytest.fixture(scope="module")
def plan():
    return sff_fast.trace(Mixed)


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(overwrite, "cut", lambda header, size, start: chunks.cut(header, 4096, start))


def smoothed(plan) -> dict[str, torch.Tensor]:
    model = pretrained()
    sff_fast.smooth_(model, plan, 0.6, 11)
    return state(model)


def smooth(source, plan, **options):
    return sff_fast.smooth_checkpoint(source, None, plan, 0.6, 11, in_place=True, **options)


def test_a_file_is_overwritten_with_the_bits_of_smooth(tmp_path, plan, small_pieces):
    source = tmp_path / "x.safetensors"
    save_file(state(pretrained()), source, {"format": "pt"})
    before = source.read_bytes()
    report = smooth(source, plan)
    assert_same(load_file(source), smoothed(plan))
    assert len(source.read_bytes()) == len(before)
    assert sorted(os.listdir(tmp_path)) == ["x.safetensors", "x.safetensors.sff_fast.json"]
    record = json.loads((tmp_path / "x.safetensors.sff_fast.json").read_text())
    assert record == report.record
    assert record["sha256"]["x.safetensors"]["source"] == hashlib.sha256(before).hexdigest()
    with pytest.raises(sff_fast.SffFastError, match="was smoothed before"):
        smooth(source, plan)


def test_a_folder_of_several_files_is_overwritten(tmp_path, plan, small_pieces):
    as_folder(state(pretrained()), tmp_path / "m")
    before = sorted(os.listdir(tmp_path / "m"))
    smooth(tmp_path / "m", plan, hashes=False)
    assert_same(read_folder(tmp_path / "m"), smoothed(plan))
    assert sorted(os.listdir(tmp_path / "m")) == sorted([*before, "sff_fast.json"])


class Crash(BaseException):
    """The power went: nothing after it is run."""


def crash_at(monkeypatch, count: int) -> None:
    """Let the ``count``-th write to the files or replacement of the journal fail, a write after half of its bytes."""
    real_write, real_store, real_remove, real_json = os.pwrite, journal.store, overwrite.files.remove, overwrite.files.write_json
    done = 0

    def step() -> bool:
        nonlocal done
        done += 1
        return done == count

    def pwrite(fd, data, offset):
        if step():
            real_write(fd, data[: len(data) // 2], offset)
            raise Crash
        return real_write(fd, data, offset)

    def before(real):
        def call(*arguments, **options):
            if step():
                raise Crash
            return real(*arguments, **options)

        return call

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(journal, "store", before(real_store))
    monkeypatch.setattr(overwrite.files, "remove", before(real_remove))
    monkeypatch.setattr(overwrite.files, "write_json", before(real_json))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_crash_at_any_step_is_finished_by_the_same_call(tmp_path, plan, small_pieces, monkeypatch, kind):
    expected, original = smoothed(plan), state(pretrained())
    crashes = 0
    for count in range(1, 100):
        folder = tmp_path / str(count)
        folder.mkdir()
        source = folder / "x.safetensors" if kind == "file" else folder / "m"
        save_file(original, source) if kind == "file" else as_folder(original, source)
        read = load_file if kind == "file" else read_folder
        with monkeypatch.context() as patch:
            crash_at(patch, count)
            try:
                smooth(source, plan)
            except Crash:
                crashes += 1
            else:
                break
        if journal.journal_of(source).exists():
            with pytest.raises(CheckpointError, match="is half smoothed: an overwriting in place was interrupted; finish it by"):
                sff_fast.smooth_checkpoint(source, folder / "y.safetensors", plan)
        else:
            assert_same(read(source), original)
        report = smooth(source, plan)
        assert report.resumed == (count > 1)
        assert_same(read(source), expected)
        assert not journal.journal_of(source).exists()
        assert next(iter(report.record["sha256"].values())).keys() == {"source", "data"}
        assert len(report.record["smoothing"]) == 1
    assert crashes > 10


def test_twice_interrupted_is_still_finished_right(tmp_path, plan, small_pieces, monkeypatch):
    source = tmp_path / "x.safetensors"
    save_file(state(pretrained()), source)
    for count in (4, 4, 3):
        with monkeypatch.context() as patch:
            crash_at(patch, count)
            with pytest.raises(Crash):
                smooth(source, plan)
    smooth(source, plan)
    assert_same(load_file(source), smoothed(plan))


def interrupted(tmp_path, plan, monkeypatch):
    source = tmp_path / "x.safetensors"
    save_file(state(pretrained()), source)
    with monkeypatch.context() as patch:
        crash_at(patch, 4)
        with pytest.raises(Crash):
            smooth(source, plan)
    return source


def test_other_options_do_not_go_on_with_an_interrupted_one(tmp_path, plan, small_pieces, monkeypatch):
    source = interrupted(tmp_path, plan, monkeypatch)
    content = source.read_bytes()
    for options in ({"seed": 12}, {"alpha": 0.5}, {"rounding": "stochastic"}):
        with pytest.raises(CheckpointError, match=r"is half smoothed with seed 11, factors .*: finish that first, with the same"):
            sff_fast.smooth_checkpoint(source, None, plan, **{"alpha": 0.6, "seed": 11, "in_place": True, **options})
    assert source.read_bytes() == content


def test_half_smoothed_weights_are_not_loaded(tmp_path, monkeypatch):
    adapter = sff_fast.tiny("timer")
    adapter.save(tmp_path / "m")
    monkeypatch.setattr(overwrite, "cut", lambda header, size, start: chunks.cut(header, 4096, start))
    with monkeypatch.context() as patch:
        crash_at(patch, 6)
        with pytest.raises(Crash):
            smooth(tmp_path / "m", adapter.plan())
    for path in (tmp_path / "m", next((tmp_path / "m").glob("*.safetensors"))):
        with pytest.raises(CheckpointError, match="is half smoothed"):
            sff_fast.load("timer", path)
    smooth(tmp_path / "m", adapter.plan())
    assert sff_fast.smoothing_of(sff_fast.load("timer", tmp_path / "m").model)[0]["seed"] == 11


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:10],
        lambda data: data[:-1],
        lambda data: b"x" + data[1:],
        lambda data: data[:-1] + bytes([data[-1] ^ 1]),
    ],
)
def test_a_damaged_journal_is_refused(tmp_path, plan, small_pieces, monkeypatch, damage):
    source = interrupted(tmp_path, plan, monkeypatch)
    place = journal.journal_of(source)
    place.write_bytes(damage(place.read_bytes()))
    with pytest.raises(CheckpointError, match=r"the journal .* is damaged \(.*\): restore the checkpoint from a copy"):
        smooth(source, plan)


def test_two_at_once_and_a_read_only_file_are_refused(tmp_path, plan, small_pieces):
    source = tmp_path / "x.safetensors"
    save_file(state(pretrained()), source)
    with overwrite._alone(source), pytest.raises(OutputError, match="another process is smoothing it; wait until it ends"):
        smooth(source, plan)
    assert_same(load_file(source), state(pretrained()))


_CHILD = """
import sys, warnings, sff_fast
from sff_fast.checkpoints import chunks, overwrite
sys.path.insert(0, sys.argv[2])
from test_checkpoints import Mixed
warnings.simplefilter("ignore")
overwrite.cut = lambda header, size, start: chunks.cut(header, 512, start)
plan = sff_fast.trace(Mixed)
print("ready", flush=True)
sff_fast.smooth_checkpoint(sys.argv[1], None, plan, 0.6, 11, in_place=True)
"""


@pytest.mark.slow
def test_killed_runs_are_finished_right(tmp_path, plan):
    expected, killed = smoothed(plan), 0
    for attempt in range(8):
        source = tmp_path / f"{attempt}.safetensors"
        save_file(state(pretrained()), source)
        for again in range(3):
            command = [sys.executable, "-c", _CHILD, str(source), os.path.dirname(__file__)]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout.readline() == "ready\n"
                time.sleep(0.01 * (attempt + again + 1))
                child.send_signal(signal.SIGKILL)
            killed += child.returncode == -signal.SIGKILL
            if child.returncode == 0:
                break
        if not (tmp_path / f"{attempt}.safetensors.sff_fast.json").exists() or journal.journal_of(source).exists():
            sff_fast.smooth_checkpoint(source, None, plan, 0.6, 11, in_place=True)
        assert_same(load_file(source), expected)
    assert killed >= 8
