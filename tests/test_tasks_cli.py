"""``--task`` on the command line: what it writes, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sff_fast.cli import main
from sff_fast.cli import options as cli_options
from sff_fast.data import AnomalyData, ImputationData, read_table
from sff_fast.demo.shipped import weather_path
from sff_fast.training import evaluate, finetune
from sff_fast.training.output import WRITTEN

TIMER = ("--family", "timer", "--tiny", "--quiet")


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def waves(tmp_path: Path) -> Path:
    t = np.arange(600)
    path = tmp_path / "waves.csv"
    path.write_text("a,b\n" + "\n".join(f"{np.sin(i / 7):.6f},{np.cos(i / 11):.6f}" for i in t) + "\n")
    return path


@pytest.fixture
def spike(tmp_path: Path) -> Path:
    values = np.sin(np.arange(1200) * 2 * np.pi / 48)
    values[900:910] += 3
    path = tmp_path / "002_UCR_Anomaly_spike_700_901_910.txt"
    path.write_text("\n".join(map(repr, values.tolist())) + "\n")
    return path


def test_evaluate_prints_what_the_library_measures(waves: Path, spike: Path, capsys) -> None:
    from sff_fast.adapters import tiny

    rates = ("--task", "imputation", "--mask-rate", "0.125,0.5", "--stride", "20", "--json")
    assert main(["evaluate", *TIMER, "--data", str(waves), *rates]) == 0
    data = ImputationData(read_table(waves), "0.7,0.1,0.2", stride=20, mask_rates=(0.125, 0.5))
    measured = json.loads(capsys.readouterr().out)["metrics"]
    assert measured == evaluate(tiny("timer"), data)
    assert main(["evaluate", *TIMER, "--data", str(waves), *rates[:-1]]) == 0
    assert f"MSE 0.5    {measured['mse_per_rate']['0.5']:.4f}\n" in capsys.readouterr().out
    lengths = ("--context-length", "288", "--segment-length", "96")
    assert main(["evaluate", *TIMER, "--task", "anomaly", "--data", str(spike), *lengths]) == 0
    shown = capsys.readouterr().out
    expected = evaluate(tiny("timer"), AnomalyData.from_ucr(spike, 288, segment_length=96))
    assert f"rank       {expected['rank']}\n" in shown
    assert f"AUC-ROC    {expected['auc_roc']:.4f}\n" in shown


def test_metrics_and_table_of_a_tuned_model_hold_the_tasks_own_figures(spike: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    options = ("--context-length", "288", "--stride", "20", "--strategy", "ff", "--epochs", "1", "--out", str(out))
    assert main(["finetune", *TIMER, "--task", "anomaly", "--data", str(spike), *options]) == 0
    shown = capsys.readouterr().out
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["data"]["task"] == "anomaly"
    assert metrics["data"]["anomaly"] == [900, 910]
    test = metrics["runs"][0]["metrics"]["test"]
    assert len(test["segment_scores"]) == test["segments"] == 5  # 500 rows in segments of 96, the rest of 20 joined to the last
    assert "test rank" in shown
    assert "test AUC-PR" in shown
    page = (out / "report.html").read_text()
    assert "Anomaly scores over the test part" in page
    assert "windows of 288 steps, segments of 96" in page
    assert not (out / "forecasts.png").exists()
    assert (out / "anomaly.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_for_imputation_shows_windows_and_is_replaced_as_a_whole(waves: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "run"
    command = ["finetune", *TIMER, "--task", "imputation", "--data", str(waves), "--stride", "40", "--out", str(out)]
    assert main([*command, "--strategy", "lp", "--epochs", "1"]) == 0
    assert (out / "imputation.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in out.iterdir()} <= set(WRITTEN)  # so that --overwrite removes it
    page = (out / "report.html").read_text()
    assert "Imputation on the test part" in page
    assert "patches of 24 hidden at a rate of 0.25" in page
    (out / "anomaly.png").write_bytes(b"of an earlier run")
    assert main([*command, "--strategy", "zero-shot", "--overwrite"]) == 0
    assert not (out / "anomaly.png").exists()
    assert json.loads((out / "metrics.json").read_text())["runs"] == []


REFUSED = {
    "--tiny --family ttm --task imputation": "ttm cannot do imputation: it can do forecast",
    "--tiny --family timer --task imputation --prediction-length 9": "--prediction-length means nothing to --task imputation",
    "--tiny --family timer --task imputation --segment-length 9": "--segment-length means nothing to --task imputation",
    "--tiny --family timer --task imputation --mask-rate 1": "mask_rates must hide at least one",
    "--tiny --family timer --task imputation --context-length 100": "multiple of 96",
    "--tiny --family timer --task anomaly": "expected <name>_<train end>_<anomaly begin>_<anomaly end>.txt",
    "--tiny --family timer --task anomaly --drop": "--drop would move the labels",
    "--tiny --family timer --mask-rate 0.5": "--mask-rate means nothing to --task forecast",
    "--tiny --family timer --context-length 96": "Missing option '--prediction-length'",
    "--tiny --family timer --task cluster": "'cluster' is not one of 'forecast', 'imputation', 'anomaly'",
}


@pytest.mark.parametrize("command", REFUSED)
def test_what_cannot_be_done_is_one_line_and_exit_code_2(command: str, waves: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["finetune", *command.split(), "--data", str(waves), "--quiet", "--out", str(out)]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("Try ")]
    assert len(lines) == 1
    assert REFUSED[command] in lines[0]
    assert not out.exists()


def test_the_tasks_of_the_command_line_are_those_of_the_library() -> None:
    from sff_fast.tasks import _EVALUATIONS

    assert set(cli_options.TASKS) == set(_EVALUATIONS)


@pytest.mark.slow
def test_a_timer_learns_to_impute_real_weather() -> None:
    from sff_fast.adapters import tiny

    data = ImputationData(read_table(weather_path()), "0.7,0.1,0.2", stride=24, mask_rates=(0.125, 0.25, 0.375, 0.5))
    result = finetune(tiny("timer"), data, "ff", epochs=3, lr=2e-3)
    # The mean of the observed points is what a model without any skill imputes; standardised errors of it are near 1.
    assert result.test_mse < 0.75 * result.zero_shot["test_mse"]
    rates = result.metrics["test"]["mse_per_rate"]
    assert list(rates) == ["0.125", "0.25", "0.375", "0.5"]


@pytest.mark.slow
def test_a_timer_learns_a_series_of_the_ucr_archive(test_data: Path) -> None:
    from sff_fast.adapters import tiny

    path = test_data / "ucr" / "136_UCR_Anomaly_InternalBleeding17_1600_3198_3309.txt"
    data = AnomalyData.from_ucr(path, stride=4)
    assert data.borders.test == (1600, 7500)
    result = finetune(tiny("timer"), data, "ff", epochs=10, lr=5e-3, schedule="constant")
    test = result.metrics["test"]
    assert len(test["segment_scores"]) == 61  # 5900 rows in segments of 96, the rest of 44 joined to the last
    assert test["labelled_segments"] == [16, 17]  # rows 3197 to 3308, counted from 1600
    assert result.val_mse < 0.5 * result.zero_shot["val_mse"]
