"""Every family in two processes: DDP and FSDP2 train as one process does."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from family_cases import is_installed, variants
from family_ranks import tune

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
NAMES = [*(name for name in variants() if is_installed(name)), "timer imputation", "units anomaly"]
DRAWN = ("moment", "sundial", "units")
"""Families whose loss draws numbers of its own (masks, noise): they depend on the number of ranks."""
SAMPLED = ("chronos-t5", "moirai", "moirai-moe", "sundial")
"""Families whose forecasts are drawn: a weight's last bit may choose another token."""


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> list[dict[str, dict]]:
    """What each of two ranks gave: one job runs them all."""
    folder = tmp_path_factory.mktemp("families")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "PYTHONPATH": f"{HERE.parent}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(HERE / "family_ranks.py"), str(folder), *NAMES],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


@functools.cache
def alone(name: str) -> dict:
    """What this process gives by itself."""
    return tune(name, None)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("name", NAMES)
def test_two_ranks_train_a_family_as_one_process_does(answers, name, parallel):
    answer, other = (one[f"{name} {parallel}"] for one in answers)
    assert "error" not in answer, answer["error"]
    assert answer == other
    expected = alone(name)
    assert answer["before"] == expected["before"]  # smoothed shards and shared forecasts have the bits of one process
    if name in DRAWN:
        if parallel == "ddp":
            return
        expected = answers[0][f"{name} ddp"]
    # float32 sums in another order, through two steps of Adam
    assert answer["loss"] == pytest.approx(expected["loss"], rel=1e-5)
    if name not in SAMPLED:
        assert answer["val"] == pytest.approx(expected["val"], rel=1e-4)
        assert answer["test"] == pytest.approx(expected["test"], rel=1e-4)
