"""Building and installing, as a stranger would: wheels with and without the native module."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
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
    assert sum(name.startswith("sff_fast/_cpu.") and name.endswith(".so") for name in names) == 1
    assert {"sff_fast/_cpu.pyi", "sff_fast/py.typed"} <= set(names)
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


# ---------------------------------------------------------------------- what is published
def _tool(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path}
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)], capture_output=True, text=True, check=False, env=environment, cwd=cwd
    )


@pytest.mark.skipif(sys.version_info < (3, 11), reason="needs hardware: cibuildwheel needs Python 3.11")
@pytest.mark.parametrize(("machine", "count"), [("x86_64", 4), ("aarch64", 4)])
def test_wheels_for_four_pythons_are_built_on_two_machines(machine, count):
    done = _tool("cibuildwheel", "--print-build-identifiers", "--platform", "linux", "--archs", machine, ROOT, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    names = [f"cp3{minor}-manylinux_{machine}" for minor in range(10, 14)]
    assert done.stdout.split() == names
    assert len(names) == count


@pytest.fixture(scope="module")
def sdist(source, tmp_path_factory) -> Path:
    """The source distribution of a fresh clone."""
    folder = tmp_path_factory.mktemp("sdist")
    done = _tool("build", "--sdist", "--no-isolation", "--skip-dependency-check", "--outdir", folder, source, cwd=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.tar.gz")
    return found


def test_an_sdist_builds_a_wheel_that_keeps_the_manylinux_policy_and_leaves_nothing_behind(sdist, tmp_path):
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
        archive.extractall(tmp_path / "from", filter="data")
    assert {"CMakeLists.txt", "setup.py", "csrc/core/philox.h", "cmake/cuda.cmake", "LICENSE"} <= names
    assert not any(name.endswith(".so") for name in names)
    (unpacked,) = (tmp_path / "from").iterdir()
    built = _wheel(unpacked, tmp_path / "wheels", SFF_FAST_CUDA="off")
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "wheels").glob("sff_fast-*.whl")

    shown = _tool("auditwheel", "show", wheel, cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    # The glibc of the machine that built it, not of the image that publishes: what counts is that every library is the policy's,
    # so none of torch's.
    text = " ".join(shown.stdout.split())
    assert re.search(r'is consistent with the following platform tag: "manylinux_2_\d+_', text), text
    assert "external shared libraries are required" not in text

    venv.create(tmp_path / "env", with_pip=False, system_site_packages=True)
    python = tmp_path / "env/bin/python"
    site = next((tmp_path / "env/lib").glob("python*/site-packages"))
    # The packages of this environment, torch first of all, behind those of the new one; its editable finders stay out.
    (site / "outer.pth").write_text(str(next(p for p in map(Path, sys.path) if (p / "torch").is_dir())) + "\n")
    before = {str(p.relative_to(tmp_path / "env")) for p in (tmp_path / "env").rglob("*")}

    def in_env(*arguments: object) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"PYTHONDONTWRITEBYTECODE": "1"}
        command = [str(python), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, cwd=tmp_path)

    done = in_env("-m", "pip", "install", "--no-deps", "--no-index", "--force-reinstall", "--ignore-installed", wheel)
    assert done.returncode == 0, done.stderr
    done = in_env(ROOT / "tools/check_wheel.py")
    assert done.returncode == 0, done.stderr
    done = in_env(tmp_path / "env/bin/sff-fast", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["backends"]["cpu"].startswith(("avx512", "avx2", "baseline"))
    done = in_env("-m", "pip", "uninstall", "--yes", "sff_fast")
    assert done.returncode == 0, done.stderr
    assert {str(p.relative_to(tmp_path / "env")) for p in (tmp_path / "env").rglob("*")} == before
