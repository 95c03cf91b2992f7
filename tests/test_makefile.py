"""Where `make models-env` installs."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def printed(*arguments):
    """The commands that make would run."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHON" and not key.startswith("MAKE")}
    command = ["make", "-n", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()


def test_models_env_goes_into_the_given_interpreters_environment():
    assert printed("models-env", "PYTHON=/some/bin/python") == [
        "/some/bin/python -m pip install --quiet -c requirements/constraints.txt -r requirements/models.txt",
        "/some/bin/python -m pip install --quiet --no-deps -r requirements/models-no-deps.txt",
    ]


def test_models_env_goes_into_the_projects_environment_otherwise():
    lines = printed("-B", "models-env")
    assert any(line.startswith(".venv/bin/python -m pip install --quiet --no-deps") for line in lines)


def test_the_python_of_make_test_makes_the_projects_environment_and_gets_no_packages():
    lines = printed("-B", "test", "PYTHON=/some/bin/python")
    assert [line for line in lines if line.startswith("/some/bin/python")] == ["/some/bin/python -m venv .venv"]
