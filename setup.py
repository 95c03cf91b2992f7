"""Builds the native modules with CMake and ninja; everything else stands in pyproject.toml.

Environment:
    SFF_FAST_BUILD: ``1`` (default) compiles, and fails loudly without a compiler; ``0`` gives the pure PyTorch package.
"""

from __future__ import annotations

import os
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
        build.mkdir(parents=True, exist_ok=True)
        cmake = ["cmake", "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
        options = {
            "CMAKE_BUILD_TYPE": "Release",
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "CMAKE_INSTALL_PREFIX": str(package.parent),
        }
        try:
            subprocess.run([*cmake, *(f"-D{key}={value}" for key, value in options.items())], check=True)
            subprocess.run(["cmake", "--build", str(build), "--target", "install"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise SystemExit(
                f"sff_fast: the native module did not build ({error}). Install a C++17 compiler (apt-get install g++), or set "
                f"SFF_FAST_BUILD=0 for the pure PyTorch package, which is slower."
            ) from error


def wants_build() -> bool:
    value = os.environ.get("SFF_FAST_BUILD", "1")
    if value not in ("0", "1"):
        raise SystemExit(f"sff_fast: SFF_FAST_BUILD must be 0 or 1, got {value!r}")
    return value == "1"


setup(
    ext_modules=[Extension("sff_fast._cpu", sources=[])] if wants_build() else [],
    cmdclass={"build_ext": CMakeBuild},
)
