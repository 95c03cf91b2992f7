"""A power cut at any moment of a run, after which only what was flushed is sure to be there: the run goes on all the same."""

from __future__ import annotations

import importlib
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import training_fakes
from killing import differences
from power import Cut, Disk
from safetensors.torch import load_file, save_file
from test_checkpoints import Mixed, pretrained, state
from training_fakes import FakeAdapter

import sff_fast
from sff_fast.checkpoints import chunks, journal, overwrite
from sff_fast.errors import SffFastError
from sff_fast.training import finetune
from sff_fast.training.state import StateStore

loop = importlib.import_module("sff_fast.training.loop")
OPTIONS = {"epochs": 2, "batch_size": 25, "seed": 3, "checkpoint_every": 4}
quick, data = training_fakes.quick, training_fakes.data
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """Two runs of each strategy that nobody stopped, which agree."""
    runs: dict[str, Path] = {}

    def of(strategy: str) -> Path:
        if strategy not in runs:
            folder = tmp_path_factory.mktemp("whole")
            for name in ("first", "second"):
                finetune(FakeAdapter.tiny(), data, strategy, out=folder / name, **OPTIONS)
            assert differences(folder / "first", folder / "second") == []
            runs[strategy] = folder / "first"
        return runs[strategy]

    return of


def cuts_of(data, root: Path, strategy: str, deaf: tuple[str, ...] = (), mixtures: int = 1, **options) -> list[Cut]:
    """What power cuts leave of a run in ``root/run``; each knows how many steps were saved for sure."""
    disk = Disk(root, deaf, mixtures)
    with pytest.MonkeyPatch.context() as patch, disk.watching():
        save = StateStore.save

        def noted(self, content, *arguments):
            target = save(self, content, *arguments)
            disk.note(content["position"]["step"])
            return target

        patch.setattr(StateStore, "save", noted)
        finetune(FakeAdapter.tiny(), data, strategy, out=root / "run", **OPTIONS | options)
        disk.note("finished")
    return list(disk.cuts.values())


def resumed(data, cut: Cut, folder: Path, strategy: str) -> tuple[int | str, list[str]]:
    """Go on after a cut; returns from which step, and what was said."""
    cut.restore(folder)
    begun: list[int | str] = []
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        restore, begin = loop.Trainer.restore, loop.Trainer.begin
        patch.setattr(loop.Trainer, "restore", lambda self, saved: (restore(self, saved), begun.append(self.at.step)))
        patch.setattr(loop.Trainer, "begin", lambda self, metrics=None: (begin(self, metrics), begun.append(-1)))
        finetune(FakeAdapter.tiny(), data, strategy, out=folder / "run", resume=True, **OPTIONS)
    return begun[0] if begun else "finished", [str(one.message) for one in said]


def troubles(data, cuts: list[Cut], folder: Path, strategy: str, expected: Path) -> Iterator[str]:
    """Of each cut that a run does not get over as it should: what came of it."""
    for number, cut in enumerate(cuts):
        place = f"{cut.kind}, before {cut.when}"
        try:
            start, said = resumed(data, cut, folder / str(number), strategy)
        except SffFastError as error:
            yield f"{place}: refused, {error}"
            continue
        if found := differences(expected, folder / str(number) / "run"):
            yield f"{place}: {found} differ"
        if said:
            yield f"{place}: {said}"
        if cut.note == "finished" != start or (isinstance(cut.note, int) and start != "finished" and start < cut.note):
            yield f"{place}: {cut.note} was saved, and the run went on from {start}"


@pytest.mark.parametrize(
    ("strategy", "mixtures"),
    [pytest.param("ff", 0), pytest.param("ff", 2, marks=pytest.mark.slow), pytest.param("l2-sp", 1, marks=pytest.mark.slow)],
)
def test_a_power_cut_at_any_moment_loses_nothing_that_was_saved(data, whole, tmp_path, strategy, mixtures):
    (tmp_path / "disk").mkdir()
    cuts = cuts_of(data, tmp_path / "disk", strategy, mixtures=mixtures)
    assert {cut.note for cut in cuts} == {None, 0, 4, 5, 8, 10, "finished"}
    assert len(cuts) >= 40
    assert list(troubles(data, cuts, tmp_path, strategy, whole(strategy))) == []


@pytest.mark.parametrize("mixtures", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_power_cut_while_a_run_is_overwritten_leaves_no_mixture_of_two(data, whole, tmp_path, mixtures):
    root = tmp_path / "disk"
    finetune(FakeAdapter.tiny(), data, "ff", out=root / "run", **OPTIONS)
    cuts = [cut for cut in cuts_of(data, root, "ff", mixtures=mixtures, overwrite=True) if cut.note is None]
    assert len(cuts) > 15
    found = [trouble for trouble in troubles(data, cuts, tmp_path, "ff", whole("ff")) if "start again (overwrite)" not in trouble]
    assert found == []


@pytest.mark.parametrize(
    "deaf",
    [
        pytest.param("atomic_write", id="files", marks=pytest.mark.slow),
        pytest.param("fsync_directory", id="folders after a rename", marks=pytest.mark.slow),
        pytest.param("fsync_tree", id="a folder's contents", marks=pytest.mark.slow),
        pytest.param("sync", id="the log"),
    ],
)
def test_without_one_of_the_flushes_a_power_cut_is_noticed_to_lose_something(data, whole, tmp_path, deaf):
    (tmp_path / "disk").mkdir()
    deaf = (deaf, "fsync_directory") if deaf == "fsync_tree" else (deaf,)
    cuts = cuts_of(data, tmp_path / "disk", "ff", deaf)
    assert next(troubles(data, cuts, tmp_path, "ff", whole("ff")), None) is not None


def test_a_save_that_a_power_cut_tore_is_named_and_the_one_before_it_gives_the_same_bits(data, whole, tmp_path):
    (tmp_path / "disk").mkdir()
    cuts = cuts_of(data, tmp_path / "disk", "ff", ("atomic_write", "fsync_tree"))
    fell_back = refused = errors = 0
    for number, cut in enumerate(cuts):
        saves = sorted({path.split("/")[2] for path in cut.tree if re.match(r"run/state/save-\d+", path)})
        try:
            start, said = resumed(data, cut, tmp_path / str(number), "ff")
        except SffFastError as error:
            errors += 1
            refused += bool(re.search(r"no save can be used|is not valid JSON|cannot read|lines were lost|holds no", str(error)))
            continue
        assert differences(whole("ff"), tmp_path / str(number) / "run") == [], cut.when
        if said:
            fell_back += 1
            used = saves[-1 - len(said)]
            for torn, text in zip(reversed(saves), said, strict=False):
                assert re.search(rf"{torn}.*; the save before it, '.*{used}', is used", text)
            assert isinstance(start, int)
    assert fell_back > 3
    assert refused == errors > 3


# --- smoothing in place ---------------------------------------------------------------------------------------------------


def cuts_in_place(root: Path, plan, deaf: tuple[str, ...] = ()) -> list[Cut]:
    root.mkdir()
    save_file(state(pretrained()), root / "x.safetensors")
    disk = Disk(root, deaf, mixtures=4)
    with disk.watching():
        disk.note("begun")
        sff_fast.smooth_checkpoint(root / "x.safetensors", None, plan, 0.6, 11, in_place=True)
        disk.note("finished")
    return list(disk.cuts.values())


def wrong_in_place(cuts: list[Cut], folder: Path, plan, expected: dict[str, torch.Tensor]) -> Iterator[str]:
    """Of each cut after which the same call does not give the smoothed weights: what it gave."""
    for number, cut in enumerate(cuts):
        cut.restore(folder / str(number))
        source = folder / str(number) / "x.safetensors"
        finished = source.with_name("x.safetensors.sff_fast.json").exists() and not journal.journal_of(source).exists()
        try:
            if not finished:
                sff_fast.smooth_checkpoint(source, None, plan, 0.6, 11, in_place=True)
        except SffFastError as error:
            yield f"{cut.kind}, before {cut.when}: {error}"
            continue
        found = load_file(source)
        same = all(torch.equal(found[name], tensor) for name, tensor in expected.items())
        if not same or (cut.note == "finished" and not finished):
            yield f"{cut.kind}, before {cut.when}: other weights"


@pytest.mark.filterwarnings("ignore:.*copied unchanged:UserWarning")
@pytest.mark.parametrize("deaf", [(), ("_write_exactly",), ("atomic_write",), ("fsync_directory",)])
def test_a_power_cut_amid_smoothing_in_place_is_finished_by_the_same_call(tmp_path, monkeypatch, deaf):
    monkeypatch.setattr(overwrite, "cut", lambda header, size, start: chunks.cut(header, 4096, start))
    plan, model = sff_fast.trace(Mixed), pretrained()
    sff_fast.smooth_(model, plan, 0.6, 11)
    cuts = cuts_in_place(tmp_path / "disk", plan, deaf)
    assert len(cuts) > 15
    found = wrong_in_place(cuts, tmp_path, plan, state(model))
    if deaf:
        assert next(found, None) is not None  # the flush that is left out is noticed
    else:
        assert list(found) == []
