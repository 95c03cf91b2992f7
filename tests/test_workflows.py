"""The workflows of the repository's host run what the gate and the Makefile have."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def jobs() -> dict[str, dict]:
    """Every job of every workflow, under the names of both."""
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: make models-env")
    found = {}
    for path in sorted((ROOT / ".github/workflows").glob("*.yml")):
        workflow = yaml.safe_load(path.read_text())
        assert {"name", True, "jobs", "permissions"} <= workflow.keys(), path.name  # `on` is YAML 1.1's true
        found |= {f"{workflow['name']}/{name}": job for name, job in workflow["jobs"].items()}
    return found


def commands() -> dict[str, list[str]]:
    """What each job runs in a shell."""
    return {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs().items()}


def test_every_job_has_a_machine_a_limit_and_the_repository():
    for name, job in jobs().items():
        assert job["runs-on"].startswith("ubuntu-"), name
        assert 0 < job["timeout-minutes"] <= 360, name
        assert job["steps"][0]["uses"].startswith("actions/checkout@"), name
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), name
            assert "uses" not in step or re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"]), name


def test_every_make_target_of_a_job_is_there():
    words = [word for lines in commands().values() for line in lines if line.startswith("make ") for word in line.split()[1:]]
    assert {word for word in words if "=" not in word} <= TARGETS


def test_the_jobs_are_the_gate_the_style_the_site_and_what_takes_hours():
    run = {name: " ".join(lines) for name, lines in commands().items()}
    assert "bash .ci/run" in run["ci/gate"]
    assert "make lint tidy" in run["ci/lint"]
    assert "make docs" in run["ci/docs"]
    made = {name: [line for line in lines if line.startswith("make ")] for name, lines in commands().items()}
    assert {name: " ".join(lines) for name, lines in made.items() if name.startswith("weekly/")} == {
        "weekly/exhaustive": "make test-exhaustive",
        "weekly/mutation": "make mutation",
        "weekly/fuzz": "make fuzz MINUTES=60",
    }
