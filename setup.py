"""Builds the native modules with CMake and ninja; everything else stands in pyproject.toml.

Environment:
    SFF_FAST_BUILD: ``1`` (default) compiles, and fails loudly without a compiler; ``0`` gives the pure PyTorch package.
    SFF_FAST_CUDA: ``auto`` (default) adds the CUDA module where an nvcc works, and never fails for its sake; ``on`` fails
        without; ``off`` leaves it out. No GPU needs to be there.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt, and installs the modules to where setuptools wants them."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        package = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = Path(self.build_temp).resolve() / "cmake"
        if build.exists():  # a cache would keep the compiler of an earlier environment
            shutil.rmtree(build)
        build.mkdir(parents=True)
        cuda = choice("SFF_FAST_CUDA", ("auto", "on", "off"))
        cmake = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "CMAKE_INSTALL_PREFIX": str(package.parent),
            "SFF_FAST_CUDA": cuda,
        }
        try:
            subprocess.run([*cmake, *(f"-D{key}={value}" for key, value in options.items())], check=True)
            subprocess.run(["cmake", "--build", str(build)], check=True)
            subprocess.run(["cmake", "--install", str(build), "--component", "cpu"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            asked = " SFF_FAST_CUDA=on asks for nvcc too: auto builds without." if cuda == "on" else ""
            raise SystemExit(
                f"sff_fast: the native module did not build ({error}). Install a C++17 compiler (apt-get install g++), or set "
                f"SFF_FAST_BUILD=0 for the pure PyTorch package, which is slower.{asked}"
            ) from error
        why_not = (build / "_cuda_absent.txt").read_text() or self._build_cuda(build, cuda)
        package.mkdir(parents=True, exist_ok=True)
        (package / "_cuda_absent.txt").write_text(why_not)
        if getattr(self, "editable_mode", False):  # setuptools puts only the declared module beside the sources
            for path in package.glob("_cuda*"):
                shutil.copy2(path, ROOT / "sff_fast" / path.name)

    def _build_cuda(self, build: Path, cuda: str) -> str:
        """Build and install the CUDA module; returns why there is none, where that is no error."""
        try:
            subprocess.run(["cmake", "--build", str(build), "--target", "_cuda"], check=True)
            subprocess.run(["cmake", "--install", str(build), "--component", "cuda"], check=True)
        except subprocess.CalledProcessError as error:
            if cuda == "on":
                raise SystemExit(f"sff_fast: SFF_FAST_CUDA=on, and the CUDA module did not build ({error})") from error
            return "nvcc failed when this was built: SFF_FAST_CUDA=on shows why"
        return ""


def choice(name: str, values: tuple[str, ...]) -> str:
    """An environment variable that has one of ``values``, the first one by default."""
    value = os.environ.get(name, values[0])
    if value not in values:
        raise SystemExit(f"sff_fast: {name} must be {', '.join(values[:-1])} or {values[-1]}, got {value!r}")
    return value


setup(
    ext_modules=[Extension("sff_fast._cpu", sources=[])] if choice("SFF_FAST_BUILD", ("1", "0")) == "1" else [],
    cmdclass={"build_ext": CMakeBuild},
)
