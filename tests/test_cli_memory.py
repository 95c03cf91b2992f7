"""``sff-fast plan --memory`` and the options that save memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sff_fast.cli import main
from sff_fast.files import read_json
from sff_fast.training.runtime import CAN_RESET_PEAK

PLAN = ("plan", "--memory", "--family", "timer", "--tiny", "--context-length", "96", "--prediction-length", "24")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def write_data(path: Path, rows: int = 900) -> Path:
    t = np.arange(rows)
    np.save(path, np.stack([np.sin(t / 7), np.cos(t / 11)], axis=1) + 0.1 * np.random.default_rng(0).normal(size=(rows, 2)))
    return path


def test_plan_prints_the_parts_of_the_peak(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*PLAN, "--optimizer-state", "int8", "--release-gradients", "--batch-size", 8) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == (
        "fp32, optimizer fused-adam, int8 states, released gradients, micro-batches of 8, evaluation of 256 windows at a time"
    )
    meanings = [line.split("  ")[-1] for line in lines[1:]]
    several = ["pre-trained weights that compare and sweep keep on the host", "peak of compare and sweep"]
    assert meanings[-3:] == ["peak of the run", *several]
    assert run(*PLAN, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["settings"]["optimizer"] == "adam"
    predicted = found["predicted"]
    assert predicted["peak"] == max(predicted["training"], predicted["evaluating"], predicted["process"] + predicted["start"])
    # A random model is in no file: compare and sweep keep all of its weights.
    assert found["several"] == {"kept": predicted["weights"], "peak": predicted["peak"] + predicted["weights"]}


def test_plan_knows_that_a_checkpoints_weights_need_not_be_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from sff_fast.adapters import tiny

    tiny("timer").save(tmp_path / "model")
    model = ("--family", "timer", "--checkpoint", tmp_path / "model", "--context-length", 96, "--prediction-length", 24)
    assert run("plan", "--memory", *model, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["several"] == {"kept": 0, "peak": found["predicted"]["peak"]}


def test_plan_says_what_max_memory_would_choose(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*PLAN, "--max-memory", "64G", "--json") == 0
    assert json.loads(capsys.readouterr().out)["settings"]["micro_batch"] == 32
    assert run(*PLAN, "--max-memory", "1M") == 2
    error = capsys.readouterr().err
    assert "max_memory=1.00 MiB is too little: the least that this run can do with is" in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("plan", "--memory", "--family", "timer", "--tiny"), "--memory needs --family, --context-length and"),
        ((*PLAN, "--save", "x.json"), "--memory makes no plan that --save could write"),
        ((*PLAN, "--max-memory", "lots"), "max_memory must be a positive number of bytes such as 6G"),
    ],
)
def test_plan_refuses_what_makes_no_sense(arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert message in capsys.readouterr().err


def test_the_options_reach_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_data(tmp_path / "data.npy")
    options = ("--precision", "bf16-sr", "--optimizer-state", "int8", "--activation-checkpointing", "--micro-batch", "3")
    lengths = ("--context-length", "96", "--prediction-length", "24", "--epochs", "1", "--max-steps", "2", "--batch-size", "8")
    machine = ("--threads", "1", "--device", "cpu", "--out", tmp_path / "out", "--max-memory", "64G")
    assert run("finetune", "--family", "timer", "--tiny", "--data", data, *lengths, *options, *machine) == 0
    settings = read_json(tmp_path / "out" / "metrics.json")["settings"]
    assert settings["precision"] == "bf16-sr"
    assert settings["optimizer_state"] == "int8"
    assert settings["activation_checkpointing"] is True
    assert settings["micro_batch"] == 3
    assert settings["max_memory"] == 64 << 30
    assert "max_memory 64.00 GiB: bf16-sr, optimizer fused-adam, int8 states" in capsys.readouterr().err
    assert read_json(tmp_path / "out" / "memory.json")["given"]["micro_batch"] == 3


@pytest.mark.slow
@pytest.mark.skipif(not CAN_RESET_PEAK, reason="needs hardware: a Linux that lets a process reset its peak memory")
def test_plan_predicts_what_a_run_of_the_command_line_measures(tmp_path: Path) -> None:
    from sff_fast.adapters.timer import TimerAdapter
    from sff_fast.models import Timer, TimerConfig

    model, out = tmp_path / "model", tmp_path / "out"
    TimerAdapter(Timer(TimerConfig(d_model=512, d_ff=2048, e_layers=6)).eval()).save(model)
    data = write_data(tmp_path / "data.npy", 6000)
    run_of = ("--family", "timer", "--checkpoint", model, "--context-length", 960, "--prediction-length", 96)
    how = ("--batch-size", 16, "--device", "cpu", "--optimizer-state", "int8")
    program = [sys.executable, "-m", "sff_fast.cli"]
    plan = [*program, "plan", "--memory", *run_of, *how, "--json"]
    printed = subprocess.run(list(map(str, plan)), check=True, stdout=subprocess.PIPE, text=True).stdout
    predicted = json.loads(printed)["predicted"]
    limits = ("--stride", 6, "--epochs", 1, "--max-steps", 3, "--quiet", "--out", out)
    subprocess.run(
        list(map(str, [*program, "finetune", *run_of, *how, *limits, "--data", data])), check=True, capture_output=True
    )
    measured = read_json(out / "metrics.json")["runs"][0]["peak_bytes"]
    assert predicted["peak"] == pytest.approx(measured, rel=0.1), predicted
