"""``sff-fast landscape``: what it writes and prints, and what bad input gives."""

from __future__ import annotations

import json

import numpy as np
import pytest
from training_fakes import make_table, quick  # noqa: F401

from sff_fast import adapters
from sff_fast.cli import main
from sff_fast.data import AnomalyData, ImputationData, read_table
from sff_fast.landscapes import curvature
from sff_fast.landscapes.objective import choose_windows

pytestmark = pytest.mark.usefixtures("quick")
MODEL = ("--family", "timer", "--tiny")
LENGTHS = ("--context-length", "96", "--prediction-length", "24", "--device", "cpu", "--threads", "1")
SMALL = ("--grid", "5", "--windows", "2", "--probes", "2", "--quiet")


def run(*arguments) -> int:
    return main([str(argument) for argument in arguments])


@pytest.fixture
def data(tmp_path):
    table = make_table(900)
    lines = ["date,first,second"]
    lines += [f"{str(stamp)[:19]},{a},{b}" for stamp, (a, b) in zip(table.timestamps, table.values)]
    (tmp_path / "waves.csv").write_text("\n".join(lines) + "\n")
    return tmp_path / "waves.csv"


def test_a_landscape_is_printed_and_written(tmp_path, data, capsys):
    out = tmp_path / "out"
    arguments = ("landscape", *MODEL, "--data", data, *LENGTHS, *SMALL, "--alpha", "0.5", "--seed", "7", "--out", out)
    assert run(*arguments) == 0
    printed = capsys.readouterr().out
    assert "flattest around the" in printed
    assert f"report: {out}/report.html" in printed
    metrics = json.loads((out / "metrics.json").read_text())
    assert [centre["name"] for centre in metrics["landscape"]["centres"]] == ["pre-trained", "smoothed"]
    assert metrics["settings"]["alpha"] == 0.5
    assert metrics["settings"]["seed"] == 7
    assert {path.name for path in out.iterdir()} == {
        "metrics.json",
        "landscape.csv",
        "contours.png",
        "surfaces.png",
        "report.html",
        "state",
    }
    html = (out / "report.html").read_text()
    assert "sff-fast landscape --family timer --tiny" in html
    assert run(*arguments, "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out) == metrics
    assert "--resume" not in (out / "report.html").read_text()


def test_the_landscape_of_a_run_is_shown_in_the_runs_own_report(tmp_path, data, capsys):
    out = tmp_path / "run"
    tuning = ("finetune", *MODEL, "--data", data, *LENGTHS, "--epochs", "1", "--max-steps", "2", "--stride", "24", "--quiet")
    assert run(*tuning, "--out", out) == 0
    inside = ("--tuned", out, "--alpha", "1", "--no-hessian", "--out", out / "landscape")
    assert run("landscape", *MODEL, "--data", data, *LENGTHS, *SMALL, *inside) == 0
    metrics = json.loads((out / "landscape" / "metrics.json").read_text())
    first, second = metrics["landscape"]["centres"]
    assert (first["name"], second["name"]) == ("pre-trained", "run")
    assert first["weights"] != second["weights"]
    assert 'id="contours"' not in (out / "report.html").read_text()
    assert run(*tuning, "--out", out, "--resume") == 0
    assert 'id="contours"' in (out / "report.html").read_text()
    assert run(*tuning, "--out", out, "--overwrite") == 0
    assert not (out / "landscape").exists()


@pytest.fixture
def spike(tmp_path):
    values = np.sin(np.arange(1200) * 2 * np.pi / 48)
    values[900:910] += 3
    path = tmp_path / "002_UCR_Anomaly_spike_700_901_910.txt"
    path.write_text("\n".join(map(repr, values.tolist())) + "\n")
    return path


TASKS = {
    "imputation": (("--stride", "24", "--mask-rate", "0.5"), "windows of 192 steps, patches of 24 hidden at a rate of 0.5"),
    "anomaly": (("--context-length", "288"), "windows of 288 steps, segments of 96"),
}


@pytest.mark.parametrize("task", TASKS)
def test_the_landscape_of_a_task_is_that_of_the_tasks_own_loss(tmp_path, data, spike, capsys, task):
    file = spike if task == "anomaly" else data
    options, window = TASKS[task]
    out = tmp_path / "out"
    machine = ("--device", "cpu", "--threads", "1")
    assert run("landscape", *MODEL, "--data", file, "--task", task, *options, *SMALL, *machine, "--alpha", "1", "--out", out) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["data"]["task"] == task
    assert window in (out / "report.html").read_text()
    (centre,) = metrics["landscape"]["centres"]
    assert centre["hessian"]["top_eigenvalue"] > 0
    adapter = adapters.tiny("timer")
    if task == "imputation":
        windows = ImputationData(read_table(data), "0.7,0.1,0.2", stride=24, mask_rates=(0.5,))
        batch = windows.val.batch(choose_windows(len(windows.val), 2, 0))
        expected = adapter.imputation_loss(batch.values, batch.mask)
    else:
        windows = AnomalyData.from_ucr(spike, 288)
        expected = adapter.anomaly_loss(windows.val.batch(choose_windows(len(windows.val), 2, 0)).values)
    assert centre["loss"] == pytest.approx(float(expected.detach()), rel=1e-6)  # one batch: the same float32 sums


def test_why_there_is_no_hessian_is_said_on_one_line(data, capsys, monkeypatch):
    def refuse(*_):
        raise curvature.NoHessian("something in the model has no second derivative: of attention")

    monkeypatch.setattr(curvature, "_refuse_trap", refuse)
    assert run("landscape", *MODEL, "--data", data, *LENGTHS, *SMALL, "--alpha", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert "No Hessian of the pre-trained weights: something in the model has no second derivative: of attention." in lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--grid", "6"), "--grid must be odd, so that one point is the centre, got 6"),
        (("--grid", "3"), "expected an integer from 5 to 1001, got 3"),
        (("--span", "0"), "expected a number above 0"),
        (("--resume",), "--resume and --overwrite need --out"),
        (("--tuned", "not/there"), "not/there"),
        (("--alpha", "2"), "expected a number from 0 to 1"),
        (("--alpha", "nothing.*=0.5"), "nothing.*"),
        (("--task", "imputation"), "--prediction-length means nothing to --task imputation"),
        (("--mask-rate", "0.5"), "--mask-rate means nothing to --task forecast"),
    ],
)
def test_bad_options_end_in_one_line_and_write_nothing(tmp_path, data, capsys, options, message):
    before = sorted(tmp_path.iterdir())
    place = () if "--resume" in options else ("--out", tmp_path / "out")
    assert run("landscape", *MODEL, "--data", data, *LENGTHS, *SMALL, *options, *place) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert sorted(tmp_path.iterdir()) == before
