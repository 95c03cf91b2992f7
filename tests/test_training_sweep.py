"""A sweep over alpha: chosen by validation, tested once, from one pristine model, resumed to the same figures."""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import training_fakes
from training_fakes import FakeAdapter, StopAt, make_data, read_log, steady

from sff_fast.adapters import families, tiny
from sff_fast.errors import ArgumentError, CheckpointError, OutputError
from sff_fast.factors import match_factors, parse_factors
from sff_fast.files import sha256
from sff_fast.training import compare, evaluate, finetune, sweep
from sff_fast.training.comparisons import build_comparisons
from sff_fast.training.groups import GROUPS, patterns_of
from sff_fast.training.runtime import CAN_RESET_PEAK
from sff_fast.training.sweep import halving_steps, make_points

sweep_module = importlib.import_module("sff_fast.training.sweep")
evaluate_module = importlib.import_module("sff_fast.training.evaluate")

OPTIONS = {"epochs": 2, "batch_size": 32}
ALPHAS, SEEDS = (0.3, 0.7, 0.9), (0, 1)

quick, data = training_fakes.quick, training_fakes.data
pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A sweep of three alphas and two seeds, and its folder."""
    out = tmp_path_factory.mktemp("sweep") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        return sweep(FakeAdapter.tiny, data, ALPHAS, SEEDS, out, **OPTIONS), out


def means(result):
    return {point["alpha"]: point["val_mse_mean"] for point in result.metrics["sweep"]["points"]}


# ---------------------------------------------------------------------- the result
def test_the_alpha_with_the_lowest_mean_validation_error_is_chosen(data, finished):
    result, _ = finished
    alone = {
        alpha: [finetune(FakeAdapter.tiny(), data, "sff", alpha=alpha, seed=seed, **OPTIONS) for seed in SEEDS]
        for alpha in ALPHAS
    }
    for point in result.metrics["sweep"]["points"]:
        assert point["val_mse"] == [run.val_mse for run in alone[point["alpha"]]]
        assert point["val_mse_mean"] == pytest.approx(np.mean(point["val_mse"]))
        assert point["ci_low"] < point["val_mse_mean"] < point["ci_high"]
    best = min(means(result), key=means(result).get)
    assert [point["alpha"] for point in result.metrics["sweep"]["points"] if point["chosen"]] == [best]
    assert result.metrics["sweep"]["chosen"] == f"{best:g}"
    assert result.verdict.startswith(
        f"Alpha {best:g}, of 3 alphas, has the lowest validation MSE ({means(result)[best]:.4f}, mean over 2"
    )
    tested = [run for run in result.runs if run.strategy == "sff"]
    assert [(run.alpha, run.seed) for run in tested] == [(best, 0), (best, 1)]
    for run, other in zip(tested, alone[best], strict=True):
        assert (run.val_mse, run.test_mse, run.test_mae) == (other.val_mse, other.test_mse, other.test_mae)
        assert np.array_equal(run.windows["mse"], other.windows["mse"])


def test_baselines_are_the_runs_that_a_comparison_makes(data, finished):
    result, _ = finished
    others = compare(FakeAdapter.tiny, data, ("ff", "tfs"), SEEDS, **OPTIONS)
    found = {(run.strategy, run.seed): run for run in result.runs if run.strategy != "sff"}
    assert len(found) == 4
    for run in others.runs:
        one = found[run.strategy, run.seed]
        assert (one.val_mse, one.test_mse, one.best_epoch) == (run.val_mse, run.test_mse, run.best_epoch)
    assert steady(result.zero_shot) == steady(others.zero_shot)
    pairs = [(one["a"], one["b"]) for one in result.comparisons]
    assert pairs == [("sff", "ff"), ("tfs", "ff"), ("sff", "zero-shot"), ("ff", "zero-shot"), ("tfs", "zero-shot")]


def test_only_the_chosen_alpha_is_ever_tested(data, tmp_path, monkeypatch):
    looked = []
    original = evaluate_module.evaluate_windows

    def counting(adapter, data, part, **options):
        looked.append(part)
        return original(adapter, data, part, **options)

    monkeypatch.setattr(evaluate_module, "evaluate_windows", counting)
    sweep(FakeAdapter.tiny, data, ALPHAS, SEEDS, tmp_path / "out", baselines=("ff",), **OPTIONS)
    assert looked.count("test") == 1 + len(SEEDS) + len(SEEDS)  # zero-shot, ff, one alpha
    assert looked[-4:] == ["test"] * 4  # after all validation
    runs = (tmp_path / "out" / "runs").glob("*/metrics.json")
    told = {path.parent.name: json.loads(path.read_text()) for path in runs if path.parent.name != "zero-shot"}
    assert len(told) == 8
    assert all(run["runs"][0]["test_mse"] is None for run in told.values())
    assert all(run["verdict"] == "Not tested yet: validation decides which runs are." for run in told.values())


def test_the_test_part_has_no_say_in_the_choice(data, tmp_path, finished, monkeypatch):
    result, _ = finished
    original = sweep_module.measure_test

    def rigged(evaluation, data):
        test, windows = original(evaluation, data)
        return {**test, "mse": 1e6}, windows

    monkeypatch.setattr(sweep_module, "measure_test", rigged)
    other = sweep(FakeAdapter.tiny, data, ALPHAS, SEEDS, tmp_path / "out", **OPTIONS)
    assert other.metrics["sweep"]["chosen"] == result.metrics["sweep"]["chosen"]
    assert sha256(tmp_path / "out" / "model" / "model.safetensors") == sha256(finished[1] / "model" / "model.safetensors")


def test_the_folder_holds_the_shipped_model_and_no_weights_of_others(data, finished):
    result, out = finished
    assert sorted(path.name for path in out.iterdir()) == ["log.jsonl", "metrics.json", "model", "runs", "state"]
    assert not list(out.rglob("weights.safetensors"))
    assert not list(out.glob("runs/*/model"))
    shipped = [run for run in result.runs if run.model_dir is not None]
    assert len(shipped) == 1
    assert evaluate(FakeAdapter.load(out / "model"), data, "val")["mse"] == shipped[0].val_mse
    assert evaluate(FakeAdapter.load(out / "model"), data, "test")["mse"] == shipped[0].test_mse
    assert f"Ship {shipped[0].strategy}" in result.verdict
    assert json.loads((out / "metrics.json").read_text()) == result.metrics
    events = [line["event"] for line in read_log(out)]
    assert events == ["start", "zero_shot", *["run"] * 6, "chosen", *["run"] * 4, "end"]


def test_a_smoothed_model_that_is_shipped_says_so(data, tmp_path):
    from sff_fast.adapters.provenance import FILE

    result = sweep(FakeAdapter.tiny, data, (0.9,), (3,), tmp_path / "out", baselines=(), **OPTIONS)
    assert "Alpha 0.9, the only alpha, has the lowest validation MSE" in result.verdict
    record = json.loads((tmp_path / "out" / "model" / FILE).read_text())["smoothing"]
    assert [one["seed"] for one in record] == [3]


def test_the_pristine_model_is_shipped_where_nothing_beats_it(data, tmp_path):
    result = sweep(FakeAdapter.tiny, data, (0.5,), (0,), tmp_path / "out", baselines=(), lr=1e-9, **OPTIONS)
    assert "Ship the zero-shot model: " in result.verdict
    assert result.runs[0].model_dir is None
    pristine = evaluate(FakeAdapter.load(tmp_path / "out" / "model"), data, "val")["mse"]
    assert pristine == result.zero_shot["val_mse"]


def test_the_model_is_made_once(data, tmp_path):
    made = []

    def make():
        made.append(1)
        return FakeAdapter.tiny()

    sweep(make, data, (0.5, 0.9), SEEDS, tmp_path / "out", **OPTIONS)
    assert len(made) == 1


# ---------------------------------------------------------------------- stopping and going on
@pytest.mark.parametrize(("stage", "count", "number"), [("train", 14, signal.SIGTERM), ("test", 3, signal.SIGINT)])
def test_a_stopped_sweep_goes_on_to_the_same_figures(data, tmp_path, finished, stage, count, number):
    out, (expected, folder) = tmp_path / "out", finished
    arguments = (FakeAdapter.tiny, data, ALPHAS, SEEDS, out)
    # 4 steps an epoch, 8 a run: the 14th is amid the second run. The third batch of tests is that of the second tuned run.
    with pytest.raises(SystemExit if number == signal.SIGTERM else KeyboardInterrupt):
        sweep(*arguments, progress=StopAt(stage, count, number), **OPTIONS)
    assert not (out / "metrics.json").exists()
    with pytest.raises(OutputError, match="unfinished"):
        sweep(*arguments, **OPTIONS)
    first = (out / "runs" / "sff-alpha0.3-seed0" / "metrics.json").stat().st_mtime_ns
    result = sweep(*arguments, resume=True, **OPTIONS)
    assert (out / "runs" / "sff-alpha0.3-seed0" / "metrics.json").stat().st_mtime_ns == first
    assert steady(result.metrics) == steady(expected.metrics)
    assert read_log(out) == read_log(folder)
    assert sha256(out / "model" / "model.safetensors") == sha256(folder / "model" / "model.safetensors")


KILLED = """
import os, signal, sys
import torch
from training_fakes import FakeAdapter, StopAt, make_data
from sff_fast.training import sweep

out, stage, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
torch.set_num_threads(1)
os.fsync = lambda fd: None  # no power is cut here
progress = StopAt(stage, count, signal.SIGKILL)
options = {"epochs": 2, "batch_size": 32, "resume": os.path.exists(out), "progress": progress}
sweep(FakeAdapter.tiny, make_data(), (0.3, 0.7, 0.9), (0, 1), out, **options)
"""


def test_a_sweep_that_is_killed_again_and_again_ends_in_the_same_table(data, tmp_path, finished):
    out, (expected, folder) = tmp_path / "out", finished
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(here), str(here.parent)])}
    # Amid the second run of eight steps; then amid the tests, after all validation.
    for stage, count in (("train", 14), ("test", 3)):
        command = [sys.executable, "-c", KILLED, str(out), stage, str(count)]
        assert subprocess.run(command, env=environment, check=False).returncode == -signal.SIGKILL
        assert not (out / "metrics.json").exists()
    result = sweep(FakeAdapter.tiny, data, ALPHAS, SEEDS, out, resume=True, **OPTIONS)
    assert steady(result.metrics) == steady(expected.metrics)
    assert sha256(out / "model" / "model.safetensors") == sha256(folder / "model" / "model.safetensors")


def test_resuming_a_finished_sweep_returns_it_and_writes_nothing(data, finished):
    first, out = finished
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    again = sweep(FakeAdapter.tiny, data, ALPHAS, SEEDS, out, resume=True, **OPTIONS)
    assert again == first
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_a_sweep_can_be_given_more_alphas_and_seeds(data, tmp_path, finished):
    out = tmp_path / "out"
    sweep(FakeAdapter.tiny, data, ALPHAS[:2], SEEDS[:1], out, **OPTIONS)
    kept = (out / "runs" / "sff-alpha0.7-seed0" / "log.jsonl").stat().st_mtime_ns
    result = sweep(FakeAdapter.tiny, data, ALPHAS, SEEDS, out, resume=True, **OPTIONS)
    assert steady(result.metrics) == steady(finished[0].metrics)
    shipped = next(run for run in result.runs if run.model_dir is not None)
    assert evaluate(FakeAdapter.load(out / "model"), data, "val")["mse"] == shipped.val_mse
    if shipped.alpha != 0.7:
        assert (out / "runs" / "sff-alpha0.7-seed0" / "log.jsonl").stat().st_mtime_ns == kept


def test_another_sweep_or_a_comparison_is_refused(data, tmp_path, finished):
    _, out = finished
    with pytest.raises(CheckpointError, match=r"settings.lr: 0.01 then, 1.0 now"):
        sweep(FakeAdapter.tiny, data, ALPHAS, SEEDS, out, resume=True, lr=1.0, **OPTIONS)
    with pytest.raises(CheckpointError, match=r"settings.kind: 'sweep' then, 'absent' now"):
        compare(FakeAdapter.tiny, data, ("ff",), SEEDS, out=out, resume=True, **OPTIONS)
    with pytest.raises(CheckpointError, match="settings"):
        finetune(FakeAdapter.tiny(), data, "ff", out=out, resume=True, **OPTIONS)


# ---------------------------------------------------------------------- halving
def test_halving_gives_the_seeds_to_the_better_half():
    assert halving_steps(1, 5) == [(1, 5)]
    assert halving_steps(2, 5) == [(2, 5)]
    assert halving_steps(6, 5) == [(6, 2), (3, 3), (2, 5)]
    assert halving_steps(8, 8) == [(8, 2), (4, 4), (2, 8)]
    assert halving_steps(6, 1) == [(6, 1), (3, 1), (2, 1)]


def test_halving_leaves_out_the_worst_and_changes_no_run(data, tmp_path):
    alphas, seeds = (0.2, 0.4, 0.6, 0.8), (0, 1, 2, 3)
    whole = sweep(FakeAdapter.tiny, data, alphas, seeds, tmp_path / "whole", baselines=(), **OPTIONS)
    halved = sweep(FakeAdapter.tiny, data, alphas, seeds, tmp_path / "half", baselines=(), halving=True, **OPTIONS)
    assert halved.metrics["sweep"]["halving"] == [{"points": 4, "seeds": 2}, {"points": 2, "seeds": 4}]
    points = {point["alpha"]: point for point in whole.metrics["sweep"]["points"]}
    left = []
    for point in halved.metrics["sweep"]["points"]:
        assert point["val_mse"] == points[point["alpha"]]["val_mse"][: len(point["val_mse"])]
        assert (len(point["val_mse"]), point["left_out_after"]) in ((4, None), (2, 1))
        left += [point["alpha"]] if point["left_out_after"] is None else []
    assert sorted(left) == sorted(sorted(alphas, key=lambda alpha: np.mean(points[alpha]["val_mse"][:2]))[:2])
    chosen = min(left, key=lambda alpha: np.mean(points[alpha]["val_mse"]))
    assert halved.metrics["sweep"]["chosen"] == f"{chosen:g}"
    assert len(list((tmp_path / "half" / "runs").iterdir())) == 1 + 12


# ---------------------------------------------------------------------- groups
@pytest.mark.parametrize("family", families())
def test_groups_are_found_in_every_family_and_do_not_overlap(family):
    try:
        adapter = tiny(family)
    except ImportError as error:
        pytest.skip(f"needs the package of the family: {error}")
    names = [name for name, _ in adapter.model.named_parameters()]
    seen: set[str] = set()
    for group in GROUPS:
        if (family, group) == ("chronos-t5", "embedding"):
            with pytest.raises(ArgumentError, match="no parameters in the group 'embedding'"):
                patterns_of(adapter, group)  # the embedding is the head there: they are tied
            continue
        patterns = patterns_of(adapter, group)
        found = set(match_factors(names, parse_factors(dict.fromkeys(patterns, 0.5), None, None)))
        assert found
        assert not found & seen, group
        assert len(patterns) <= 40
        seen |= found
    head = {id(parameter) for _, parameter in adapter.head_parameters()}
    given = match_factors(names, parse_factors(dict.fromkeys(patterns_of(adapter, "head"), 0.5), None, None))
    assert {id(parameter) for name, parameter in adapter.model.named_parameters() if name in given} == head


def test_groups_are_combined_with_all_alphas(data, tmp_path):
    points = make_points(FakeAdapter.tiny(), (0.5, 0.9), {"head": (0.3, 1.0), "body.*": 0.8})
    assert [point.label for point in points] == [
        f"{alpha}, head={head}, body.*=0.8" for head in ("0.3", "1") for alpha in ("0.5", "0.9")
    ]
    assert points[0].given == {"head.weight": 0.3, "head.bias": 0.3, "body.*": 0.8, "*": 0.5}
    result = sweep(
        FakeAdapter.tiny, data, (0.5, 0.9), (0,), tmp_path / "out", groups={"head": (0.3, 1.0)}, baselines=(), **OPTIONS
    )
    for point in result.metrics["sweep"]["points"]:
        given = {"head.*": point["groups"]["head"], "*": point["alpha"]}
        alone = finetune(FakeAdapter.tiny(), data, "sff", alpha=given, seed=0, **OPTIONS)
        assert point["val_mse"] == [alone.val_mse]


def test_a_parameter_in_two_groups_takes_the_alpha_of_the_first():
    (point,) = make_points(FakeAdapter.tiny(), (0.5,), {"head": 0.3, "head.weight": 0.8})
    assert point.given == {"head.weight": 0.3, "head.bias": 0.3, "*": 0.5}


# ---------------------------------------------------------------------- bad settings
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"out": None}, "out must be a folder"),
        ({"alphas": ()}, "alphas must not be empty"),
        ({"alphas": (0.5, 0.5)}, "alphas must not hold anything twice"),
        ({"alphas": (1.5,)}, "alpha must be a number from 0 to 1, got 1.5"),
        ({"seeds": ()}, "seeds must not be empty"),
        ({"baselines": "ff"}, "baselines must be a sequence of names, got the string 'ff'"),
        ({"baselines": ("ff", "ff")}, "baselines must not hold anything twice"),
        ({"baselines": ("sff",)}, "baselines must be strategies without an alpha of their own, got 'sff'"),
        ({"baselines": ("nope",)}, "strategy must be one of"),
        ({"groups": {"tail": 0.5}}, "alpha group 'tail' is none of head, embedding, norms and matches no parameter"),
        ({"groups": {"norms": 0.5}}, "has no parameters in the group 'norms': give a name pattern instead"),
        ({"groups": {"head": ()}}, r"groups\['head'\] must not be empty"),
        ({"learning_rate": 1}, "sweep has no option 'learning_rate'"),
    ],
)
def test_a_bad_setting_is_refused_before_anything_is_written(data, tmp_path, arguments, message):
    with pytest.raises(ArgumentError, match=message):
        sweep(FakeAdapter.tiny, data, **{"alphas": (0.5,), "seeds": (0,), "out": tmp_path / "out", **arguments})
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------- measured
@pytest.mark.slow
def test_a_trained_model_against_itself_with_other_seeds_is_no_difference():
    data = make_data(800)
    runs = []
    for seed in range(20):
        result = finetune(FakeAdapter.tiny(), data, "sff", seed=seed, epochs=2, batch_size=64)
        runs.append((result.test_mse, result.windows))
        zero_shot, of_zero_shot = result.zero_shot, result.zero_shot_windows
    generator, alike = np.random.default_rng(0), 0
    for _ in range(100):
        chosen = generator.permutation(20)[:10]
        entries = [
            {"strategy": "ff" if place < 5 else "sff", "alpha": None, "seed": place % 5, "test_mse": runs[index][0]}
            for place, index in enumerate(chosen)
        ]
        one = build_comparisons(zero_shot, entries, [runs[index][1] for index in chosen], of_zero_shot)[0]
        assert (one["a"], one["b"], one["covers"]) == ("sff", "ff", "seeds and windows")
        alike += one["ci_low"] <= 0 <= one["ci_high"]
    assert alike >= 90


@pytest.mark.slow
@pytest.mark.skipif(not CAN_RESET_PEAK, reason="needs hardware: a Linux that lets a process reset its peak memory")
@pytest.mark.parametrize("mapped", ["mapped", "kept"])
def test_a_sweep_takes_no_more_than_training_and_one_set_of_weights(tmp_path, mapped):
    script = Path(__file__).with_name("sweep_run.py")
    environment = {**os.environ, "PYTHONPATH": str(script.parent.parent)}
    peaks = {}
    for what in ("finetune", "sweep"):
        command = [sys.executable, str(script), what, mapped, str(tmp_path / what)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        peaks[what] = json.loads(done.stdout)
    weights = peaks["sweep"]["weights"]
    assert peaks["sweep"]["host_bytes"] == (0 if mapped == "mapped" else weights)
    # Beside: what the allocator keeps between runs. That was 2 MB of a set of 151; a second model would be a whole one.
    allowed = (0 if mapped == "mapped" else weights) + weights // 2
    assert peaks["sweep"]["peak"] <= peaks["finetune"]["peak"] + allowed, peaks
    # And the measurement sees a set of weights: it is what the copy on the host adds.
    if mapped == "kept":
        assert peaks["sweep"]["peak"] >= peaks["finetune"]["peak"] + weights // 2, peaks
