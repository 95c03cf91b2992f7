"""Whether the CUDA module is built, and what is said where it is not: SFF_FAST_CUDA with nvcc there, failing, or missing."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cuda_code import tool
from test_build import _wheel, source  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parents[1]
CONFIGURED = "sff_fast: CUDA module for sm_80 sm_90 sm_100 and PTX for later ones"


def _configure(folder: Path, cuda: str, cuda_home: Path | None = None, without_nvcc: bool = False):
    """Configure the build; returns the finished command and what ``_cuda_absent.txt`` says (None: there is no such file)."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    options = {"SFF_FAST_CUDA": cuda, "Python_EXECUTABLE": sys.executable}
    tree = ROOT
    if without_nvcc:  # a tree that does not guess where nvcc lies, on a system whose programs CMake does not look for
        tree = folder / "tree"
        for name in ("csrc", "cmake"):
            shutil.copytree(ROOT / name, tree / name)
        shutil.copy(ROOT / "CMakeLists.txt", tree)
        text = (tree / "cmake" / "cuda.cmake").read_text()
        assert text.count("PATHS ${SFF_PYPI_CUDA} /usr/local/cuda/bin") == 1
        (tree / "cmake" / "cuda.cmake").write_text(text.replace("PATHS ${SFF_PYPI_CUDA} /usr/local/cuda/bin", ""))
        options |= {"CMAKE_FIND_USE_CMAKE_SYSTEM_PATH": "OFF", "CMAKE_FIND_USE_SYSTEM_ENVIRONMENT_PATH": "OFF"}
        options |= {"CMAKE_CXX_COMPILER": shutil.which("g++"), "CMAKE_MAKE_PROGRAM": shutil.which("ninja", path=path)}
    import pybind11

    options["pybind11_DIR"] = pybind11.get_cmake_dir()
    environment = {key: value for key, value in os.environ.items() if key not in ("CUDA_HOME", "CUDA_PATH")}
    if cuda_home:
        environment["CUDA_HOME"] = str(cuda_home)
    build = folder / "build"
    command = [shutil.which("cmake", path=path), "-S", str(tree), "-B", str(build), "-G", "Ninja"]
    command += [f"-D{key}={value}" for key, value in options.items()]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**environment, "PATH": path})
    said = build / "_cuda_absent.txt"
    return done, said.read_text() if said.exists() else None


def _one_line(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join((done.stdout + done.stderr).split())


def _nvcc(folder: Path, script: str) -> Path:
    """A CUDA_HOME whose nvcc is a shell script."""
    program = folder / "cuda" / "bin" / "nvcc"
    program.parent.mkdir(parents=True)
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return folder / "cuda"


def test_off_leaves_it_out_and_says_so(tmp_path):
    done, absent = _configure(tmp_path, "off")
    assert done.returncode == 0, done.stderr
    assert absent == "left out by SFF_FAST_CUDA=off"


@pytest.mark.parametrize("cuda", ["auto", "on"])
def test_with_a_working_nvcc_it_is_configured_for_three_architectures(tmp_path, cuda):
    tool("nvcc")
    done, absent = _configure(tmp_path, cuda)
    assert done.returncode == 0, done.stderr
    assert absent == ""
    assert CONFIGURED in done.stdout


def test_without_nvcc_auto_goes_on_and_on_fails_with_what_to_do(tmp_path):
    done, absent = _configure(tmp_path / "auto", "auto", without_nvcc=True)
    assert done.returncode == 0, done.stderr
    assert absent == "no nvcc was found when this was built"
    done, absent = _configure(tmp_path / "on", "on", without_nvcc=True)
    assert done.returncode != 0
    assert absent is None
    assert "SFF_FAST_CUDA=on: no nvcc was found when this was built. Put nvcc on the PATH, set CUDA_HOME, or" in _one_line(done)
    assert "pip install 'sff_fast[cuda]'" in _one_line(done)


def test_an_nvcc_that_fails_stops_on_and_is_named_by_auto(tmp_path):
    home = _nvcc(tmp_path, 'echo "unsupported GNU version!" >&2; exit 1')
    done, absent = _configure(tmp_path / "auto", "auto", home)
    assert done.returncode == 0, done.stderr
    assert absent.startswith(f"{home}/bin/nvcc did not compile a small file when this was built: unsupported GNU version!")
    assert "\n" not in absent
    done, absent = _configure(tmp_path / "on", "on", home)
    assert done.returncode != 0
    assert "did not compile a small file" in _one_line(done)


def test_another_value_is_refused(tmp_path):
    done, _ = _configure(tmp_path, "yes")
    assert done.returncode != 0
    assert "SFF_FAST_CUDA must be auto, on or off, got 'yes'" in _one_line(done)


def test_the_extra_lists_the_packages_of_nvcc():
    extra = re.search(r"^cuda = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(), re.S | re.M)[1]
    packages = re.findall(r'"(.*?)"', extra)
    lines = (ROOT / "requirements" / "cuda.txt").read_text().splitlines()
    assert packages == [line for line in lines if line and not line.startswith("#")]
    assert any(name.startswith("nvidia-cuda-nvcc") for name in packages)


# ---------------------------------------------------------------------- wheels
USE = """
import sys
sys.meta_path = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", "")]
import sff_fast, torch
from sff_fast import doctor
print(sff_fast.__file__)
print(sff_fast.available_backends()["cuda"])
print(doctor.to_text(doctor.examine()).count(sff_fast.available_backends()["cuda"]))
model = torch.nn.Linear(3, 2)
print(list(sff_fast.smooth_(model, lambda: torch.nn.Linear(3, 2)).backends.values())[0])
"""


def _use(wheel: Path, folder: Path) -> list[str]:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    environment = {**os.environ, "PYTHONPATH": str(folder), "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=False, env=environment, cwd=folder)
    assert done.returncode == 0, done.stderr
    where, *rest = done.stdout.splitlines()
    assert where.startswith(str(folder))
    return rest


@pytest.mark.slow
def test_the_wheel_of_a_cuda_build_works_without_a_driver(source, tmp_path):  # noqa: F811
    tool("nvcc")
    built = _wheel(source, tmp_path / "wheels", SFF_FAST_CUDA="on")
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "wheels").glob("sff_fast-*.whl")
    cuda, doctors, ran = _use(wheel, tmp_path / "there")
    (module,) = (tmp_path / "there" / "sff_fast").glob("_cuda.*.so")
    needed = subprocess.run(["readelf", "-d", str(module)], capture_output=True, text=True, check=True).stdout
    libraries = re.findall(r"\(NEEDED\).*\[(.*?)\]", needed)
    assert libraries
    assert not [name for name in libraries if name.startswith(("libcuda", "libnv"))], "the runtime is linked statically"
    assert cuda.startswith(("absent: compiled for sm_80 sm_90 sm_100, but there is no usable GPU", "absent: compiled for sm_80"))
    assert doctors == "1", "doctor says it"
    assert ran == "cpu"


@pytest.mark.slow
def test_an_nvcc_that_fails_at_the_kernels_leaves_a_wheel_that_says_so_and_stops_on(source, tmp_path):  # noqa: F811
    real = tool("nvcc")
    home = _nvcc(tmp_path, f'case "$*" in *csrc/cuda/*) echo "internal error" >&2; exit 1;; esac\nexec {real} "$@"')
    built = _wheel(source, tmp_path / "wheels", CUDA_HOME=str(home), SFF_FAST_CUDA="auto")
    assert built.returncode == 0, built.stderr
    (wheel,) = (tmp_path / "wheels").glob("sff_fast-*.whl")
    cuda, doctors, ran = _use(wheel, tmp_path / "there")
    assert cuda.startswith("absent: not compiled (nvcc failed when this was built: SFF_FAST_CUDA=on shows why)")
    assert doctors == "1"
    assert ran == "cpu"
    stopped = _wheel(source, tmp_path / "more", CUDA_HOME=str(home), SFF_FAST_CUDA="on")
    assert stopped.returncode != 0
    assert "SFF_FAST_CUDA=on, and the CUDA module did not build" in " ".join((stopped.stdout + stopped.stderr).split())
