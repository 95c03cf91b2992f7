"""``sff-fast finetune`` under torchrun, as a user starts it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
JOB = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "sff_fast.cli"]
ONE = [sys.executable, "-m", "sff_fast.cli"]


def call(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=300)


@pytest.fixture
def options(tmp_path) -> list[str]:
    """A short run of the small Timer on two waves."""
    t = np.arange(500)
    values = np.stack([np.sin(t / 3), np.cos(t / 5)], axis=1) + 0.1 * np.random.default_rng(0).normal(size=(500, 2))
    np.savetxt(tmp_path / "waves.csv", values, delimiter=",", header="a,b", comments="")
    run = "--family timer --tiny --context-length 96 --prediction-length 24 --max-steps 4 --stride 3 --device cpu --quiet"
    return [*run.split(), "--data", str(tmp_path / "waves.csv")]


@pytest.mark.slow
def test_two_processes_write_one_run_that_one_process_shows(tmp_path, options):
    done = call(*JOB, "finetune", *options, "--parallel", "fsdp", "--strategy", "ff", "--out", str(tmp_path / "two"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Ship ") == 1  # the table and the verdict come from one process
    assert sorted(path.name for path in (tmp_path / "two").iterdir() if path.suffix != ".png") == [
        *("log.jsonl", "metrics.json", "model", "report.html", "state", "windows")
    ]
    alone = call(*ONE, "finetune", *options, "--strategy", "ff", "--out", str(tmp_path / "one"))
    assert alone.returncode == 0, alone.stderr
    two, one = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("two", "one"))
    assert two["zero_shot"]["metrics"] == one["zero_shot"]["metrics"]
    assert two["settings"] == one["settings"]
    assert two["runs"][0]["metrics"]["test"]["windows"] == one["runs"][0]["metrics"]["test"]["windows"]
    # The small Timer has dropout: the masks are others, the run is alike.
    assert two["runs"][0]["test_mse"] == pytest.approx(one["runs"][0]["test_mse"], rel=0.05)
    again = call(*ONE, "finetune", *options, "--strategy", "ff", "--out", str(tmp_path / "two"), "--resume", "--json")
    assert json.loads(again.stdout)["runs"] == two["runs"]


@pytest.mark.slow
def test_every_process_says_what_is_wrong_in_one_line_of_its_own(tmp_path, options):
    done = call(*JOB, "finetune", *options, "--max-memory", "6G", "--out", str(tmp_path / "run"))
    assert done.returncode != 0
    said = [line for line in done.stderr.splitlines() if line.startswith("sff-fast: ")]
    message = "error: max_memory chooses for one process, got 2: give precision"
    # Which of them is heard is up to torchrun, which ends the others when the first has ended.
    assert said
    assert all(line.startswith((f"sff-fast: {message}", f"sff-fast: rank 1: {message}")) for line in said)
    assert not (tmp_path / "run").exists()


def test_what_one_process_does_is_refused_under_torchrun(tmp_path, options, monkeypatch, capsys):
    from sff_fast.cli import main

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["compare", *options, "--out", str(tmp_path / "run")]) == 2
    assert "rank 1: error: compare runs in one process: start it without torchrun" in capsys.readouterr().err


def test_parallel_without_torchrun_is_refused(tmp_path, options, capsys):
    from sff_fast.cli import main

    assert main(["finetune", *options, "--parallel", "ddp", "--out", str(tmp_path / "run")]) == 2
    assert "error: parallel='ddp' needs several processes, got one: start with torchrun" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
