"""Building and installing, as a stranger would: wheels with and without the native module."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[1]

# An editable install of the package would answer for what the wheel lacks: its finder goes first.
USE = """
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
import sff_fast, torch
print(sff_fast.__file__)
print(sff_fast.available_backends()["cpu"])
model = torch.nn.Linear(3, 2)
print(list(sff_fast.smooth_(model, lambda: torch.nn.Linear(3, 2)).backends.values())[0])
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source tree as a fresh clone has it: no build folder, no compiled module."""
    ignore = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "runs", "*.so", "*.egg-info", "__pycache__", ".*_cache")
    return Path(shutil.copytree(ROOT, tmp_path_factory.mktemp("source") / "sff_fast", ignore=ignore))


def _wheel(source: Path, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(source),
        "--no-build-isolation",
        "--no-deps",
        "--no-cache-dir",
        "-w",
        str(folder),
    ]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    unwanted = ("SFF_FAST_BUILD", "SFF_FAST_CUDA", "CXX", "CUDA_HOME", "CUDA_PATH")
    clean = {k: v for k, v in os.environ.items() if k not in unwanted}
    shutil.rmtree(source / "build", ignore_errors=True)
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**clean, "PATH": path, **environment})


def _use(wheel: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=False, env=environment, cwd=folder)


def test_a_wheel_compiles_the_native_module_and_carries_the_demo(source, tmp_path):
    built = _wheel(source, tmp_path / "wheels")
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "wheels").glob("sff_fast-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert sum(name.startswith("sff_fast/_cpu.") for name in names) == 1
    assert "sff_fast/demo/assets/timer-small/model.safetensors" in names
    assert any(name.endswith(".csv.gz") for name in names)
    assert not any(name.startswith(("tests", "csrc", "benchmarks")) for name in names)
    used = _use(wheel, tmp_path / "there")
    assert used.returncode == 0, used.stderr
    where, backend, ran = used.stdout.split("\n")[:3]
    assert where.startswith(str(tmp_path))
    assert backend.startswith(("avx512", "avx2", "baseline"))
    assert ran == "cpu"


def test_without_a_build_the_wheel_is_pure_python_and_works(source, tmp_path):
    built = _wheel(source, tmp_path / "wheels", SFF_FAST_BUILD="0", CXX="/no/such/compiler")
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "wheels").glob("sff_fast-*-none-any.whl")
    assert not any(name.endswith(".so") for name in zipfile.ZipFile(wheel).namelist())
    used = _use(wheel, tmp_path / "there")
    assert used.returncode == 0, used.stderr
    _, backend, ran = used.stdout.split("\n")[:3]
    assert backend.startswith("absent: not compiled")
    assert ran == "reference"
    assert "slow reference backend" in used.stderr


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"CXX": "/no/such/compiler"}, "set SFF_FAST_BUILD=0 for the pure PyTorch package"),
        ({"SFF_FAST_BUILD": "yes"}, "SFF_FAST_BUILD must be 1 or 0, got 'yes'"),
    ],
)
def test_a_build_that_cannot_work_fails_loudly_with_what_to_do(source, tmp_path, environment, message):
    built = _wheel(source, tmp_path, **environment)
    assert built.returncode != 0
    assert message in " ".join((built.stdout + built.stderr).split())
