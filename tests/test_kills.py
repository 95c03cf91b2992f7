"""Runs of every family that are killed at a hundred random moments, and end with the bits of those that were not.

`killing.py` says what a moment is, and does it: in one process for all families, which this one starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from family_cases import is_installed, variants
from killing import WAYS

from sff_fast.training.strategies import STRATEGIES

ROOT = Path(__file__).parents[1]
KILLS = 7
"""Of each of the 16 variants: 112 in all."""


def killed(folder: Path, names: list[str], kills: int, **request) -> dict[str, dict]:
    """What the program says of each variant."""
    command = [sys.executable, str(ROOT / "tests" / "killing.py")]
    command.append(json.dumps({"variants": names, "kills": kills, "folder": str(folder), **request}))
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {one["variant"]: one for one in map(json.loads, done.stdout.splitlines())}


def check(said: dict) -> None:
    assert said["uninterrupted"] == [], "two runs that nobody stopped do not agree"
    assert said["different"] == {}


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(tmp_path):
    said = killed(tmp_path, ["timer-84m"], 3)["timer-84m"]
    check(said)
    assert said["ended"]["-9"] == 3


@pytest.mark.slow
def test_a_resumed_run_with_one_generator_not_restored_is_noticed(tmp_path):
    """The negative control: the same chains of kills, with torch's generator left as it was seeded."""
    said = killed(tmp_path, ["moment"], 5, forget="torch")["moment"]
    assert said["uninterrupted"] == []
    assert said["different"]
    assert all("state/rng.safetensors" in found and "state/weights.safetensors" in found for found in said["different"].values())


@pytest.mark.slow
def test_runs_of_every_family_killed_at_a_hundred_random_moments_end_with_the_same_bits(tmp_path):
    names = [name for name in variants() if is_installed(name)]
    if missing := sorted(set(variants()) - set(names)):
        pytest.skip(f"the packages of {', '.join(missing)} are not installed: make models-env")
    said = killed(tmp_path, names, KILLS)
    for name, one in said.items():
        assert (name, one["uninterrupted"], one["different"]) == (name, [], {})
    ended = {code: sum(one["ended"].get(code, 0) for one in said.values()) for code in ("-9", "143", "130", "0")}
    assert ended["-9"] == KILLS * len(names) >= 100
    assert ended["143"] >= 5
    assert ended["130"] >= 5


def test_every_variant_is_killed_and_between_them_every_strategy_that_tunes_the_whole_model():
    assert set(WAYS) == set(variants())
    assert {way["strategy"] for way in WAYS.values()} == set(STRATEGIES) - {"zero-shot", "lp"}
