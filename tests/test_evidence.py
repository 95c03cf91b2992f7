"""The evidence script: equal trials for all, blind to the test part, resumable by point; the page says what the points say."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest
import training_fakes
from training_fakes import FakeAdapter, make_data

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import evidence
import evidence_doc

quick = training_fakes.quick
pytestmark = pytest.mark.usefixtures("quick")

SETTING = evidence.Setting("waves", "waves", 0.5, 4, 8, FakeAdapter.tiny, lambda f: make_data(train_fraction=f), 0)
FEW = {"core": {name: evidence.CORE[name] for name in ("ff", "sff")}}


@pytest.fixture
def few(monkeypatch):
    """Two strategies with two seeds."""
    monkeypatch.setattr(evidence, "TIERS", FEW)
    monkeypatch.setattr(evidence, "SEEDS", (1, 2))


def test_every_strategy_has_the_same_number_of_trials_and_no_trial_twice():
    for space in (*evidence.CORE.values(), *evidence.ABLATIONS.values()):
        before = []
        for number in range(evidence.TRIALS):
            options = space.trial(number, before)
            assert options not in [point["options"] for point in before]
            before.append({"options": options, "val_mse": float(number)})
        assert len(space.values) + len(space.lrs) == evidence.TRIALS


def test_learning_rates_are_tried_with_the_best_value_of_the_option():
    points = [
        {"options": {"alpha": alpha, "lr": 3e-4}, "val_mse": mse}
        for alpha, mse in ((0.3, 3.0), (0.5, 1.0), (0.7, None), (0.9, 2.0))
    ]
    assert evidence.CORE["sff"].trial(4, points) == {"alpha": 0.5, "lr": 1e-4}


def test_points_are_measured_in_a_level_order_and_not_twice(tmp_path, few):
    path = tmp_path / "points.jsonl"
    assert evidence.run(path, [SETTING], ["core"], None) == 1 + 2 * 6 + 2 * 2
    points = evidence.read(path)
    assert [p["strategy"] for p in points] == ["zero-shot", *["ff", "sff"] * 8]
    assert [p["stage"] for p in points] == ["final", *["search"] * 12, *["final"] * 4]
    assert not any("test_mse" in p for p in points if p["stage"] == "search")
    for strategy in ("ff", "sff"):
        best = min((p for p in points if p["strategy"] == strategy and p["stage"] == "search"), key=lambda p: p["val_mse"])
        assert all(p["options"] == best["options"] for p in points if p["strategy"] == strategy and p["stage"] == "final")
    assert evidence.run(path, [SETTING], ["core"], None) == 0
    path.write_text("".join(f"{line}\n" for line in path.read_text().splitlines()[:9]))
    evidence.run(path, [SETTING], ["core"], None)
    steady = [{key: value for key, value in p.items() if key != "cpu_seconds"} for p in points]
    assert [{key: value for key, value in p.items() if key != "cpu_seconds"} for p in evidence.read(path)] == steady


def test_a_trial_never_sees_the_test_part(monkeypatch):
    setting = dataclasses.replace(SETTING)
    zero_shot = evidence.measure(setting, "zero-shot", "final", 0, {}, {})

    def look(indices):
        raise AssertionError("a window of the test part was looked at")

    monkeypatch.setattr(setting.data.test, "batch", look)
    with pytest.raises(AssertionError, match="test part"):
        evidence.measure(setting, "ff", "final", 1, {"lr": 1e-3}, evidence._placeholder(zero_shot))
    point = evidence.measure(setting, "ff", "search", 0, {"lr": 1e-3}, evidence._placeholder(zero_shot))
    assert point["val_mse"] > 0
    assert "test_mse" not in point


def test_points_of_another_budget_count_as_absent(tmp_path, few):
    path = tmp_path / "points.jsonl"
    evidence.run(path, [SETTING], ["core"], None)
    longer = dataclasses.replace(SETTING, steps=5)
    assert evidence.following(evidence.read(path), [longer], ["core"])[1:4] == ("zero-shot", "final", 0)


def test_all_settings_and_strategies_of_the_question_are_there():
    assert [setting.fraction for setting in evidence.SETTINGS if "ETTh1" in setting.title] == [0.05, 0.25, 1.0]
    assert {"tfs", "ff", "lp", "lp-ff", "sff"} == set(evidence.CORE)
    assert list(evidence.ABLATIONS) == ["noise", "shrink", "perturb", "l2-sp", "l2-init", "mixout", "ema", "lora", "sam"]
    assert len(evidence.SEEDS) == 5
    assert evidence.SEARCH_SEED not in evidence.SEEDS


def point(strategy, stage, number, **measured):
    options = {} if strategy == "zero-shot" else {"lr": 1e-3}
    return {
        **SETTING.describe(),
        "strategy": strategy,
        "stage": stage,
        "number": number,
        "options": options,
        "cpu_seconds": 1.0,
        **measured,
    }


def test_the_page_holds_means_paired_intervals_and_the_answer_to_the_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(evidence_doc, "DOCS", tmp_path)
    points = [point("zero-shot", "final", 0, val_mse=1.0, test_mse=0.5, windows={"train": 1, "val": 2, "test": 3})]
    for name, tests in (("ff", (0.60, 0.64)), ("sff", (0.70, 0.74))):
        points.append(point(name, "search", 0, val_mse=0.9))
        points += [point(name, "final", seed, val_mse=0.9, test_mse=test) for seed, test in enumerate(tests, 1)]
    points.append(point("lp", "search", 0, val_mse=0.8))
    evidence_doc.write(points, [SETTING], evidence.TIERS, evidence.TRIALS, evidence.SEEDS)
    page = (tmp_path / "evidence.md").read_text()
    assert "| sff | lr 0.001 | 0.9000 | 0.7200 ± 0.0283 | 2 | +0.1000 [+0.1000, +0.1000] | +0.2200 [-0.0341, +0.4741] |" in page
    assert "SFF against FF: SFF is worse by 16.1%" in page
    assert "No strategy is better than the zero-shot model" in page
    assert "Nothing tested yet, trials alone: lp (1 of 6)." in page
    assert "* in any setting: tfs, lp-ff, noise" in page
    assert (tmp_path / "img" / "evidence.png").stat().st_size > 5_000


def test_the_measured_points_are_whole():
    points = [json.loads(line) for line in evidence.RESULTS.read_text().splitlines()]
    known = {setting.name for setting in evidence.SETTINGS}
    assert points
    for p in points:
        assert p["setting"] in known
        assert ("test_mse" in p) == (p["stage"] == "final")
