"""Fuzzes for some minutes: the parsers under atheris, the Python layer with hypothesis, the kernels' tables under libFuzzer.

``python tools/fuzz.py --minutes 1`` gives each of the three that long, one after the other; ``make fuzz MINUTES=60`` does it on
demand. Inputs that brought something new are kept in ``build/fuzz`` and are where the next run starts; with ``--fresh`` it starts
from the seeds alone, so that what is tried depends on ``--seed`` and the time. What fails is printed, and the input that did it
is in ``build/fuzz/found``; a finding becomes a test (tests/test_fuzz.py). Exit code 1 where something was found.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORK = ROOT / "build" / "fuzz"
CLANG = ("clang++", *(f"clang++-{version}" for version in range(22, 13, -1)))
MEMORY = 4096
"""MiB that a target may take."""


def clang() -> str:
    """A clang++ that has libFuzzer.

    Raises:
        SystemExit: There is none.
    """
    found = next((path for path in map(shutil.which, CLANG) if path), None)
    if found is None:
        raise SystemExit("clang++ is absent: apt-get install -y --no-install-recommends clang libclang-rt-14-dev")
    return found


def build_table_target() -> Path:
    """Compile tests/native/fuzz_table."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    cmake = shutil.which("cmake", path=path)
    if cmake is None:
        raise SystemExit("cmake is absent: pip install -r requirements/dev.txt")
    compiler = clang()
    folder = WORK / f"native-{Path(compiler).name}"
    commands = [[cmake, "--build", folder, "--target", "fuzz_table"]]
    # Once a folder and compiler: CMake forgets the other flags where it is told of the compiler a second time.
    if not (folder / "build.ninja").exists():
        shutil.rmtree(folder, ignore_errors=True)
        flags = ("-DSFF_NATIVE_TESTS=ON", "-DSFF_NATIVE_FUZZ=ON", f"-DCMAKE_CXX_COMPILER={compiler}")
        commands.insert(0, [cmake, "-S", ROOT, "-B", folder, "-G", "Ninja", *flags])
    for command in commands:
        done = subprocess.run(
            list(map(str, command)), capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
        )
        if done.returncode != 0:
            raise SystemExit(done.stdout + done.stderr)
    return folder / "fuzz_table"


def libfuzzer(name: str, program: list[object], seconds: float, seed: int, corpus: Path) -> list[str]:
    """The command of a target with libFuzzer's options."""
    corpus.mkdir(parents=True, exist_ok=True)
    limits = (f"-max_total_time={max(1, int(seconds))}", f"-seed={seed}", f"-rss_limit_mb={MEMORY}")
    return [*map(str, program), str(corpus), *limits, f"-artifact_prefix={WORK / 'found' / name}-", "-print_final_stats=1"]


def parsers(seconds: float, seed: int, corpus: Path) -> list[str]:
    """atheris over every parser of tests/fuzz/parsers.py."""
    return libfuzzer("parsers", [sys.executable, ROOT / "tests/fuzz/parsers.py"], seconds, seed, corpus / "parsers")


def properties(seconds: float, seed: int, corpus: Path) -> list[str]:
    """hypothesis over tests/fuzz/properties.py."""
    script = str(ROOT / "tests/fuzz/properties.py")
    return [sys.executable, script, "--seconds", str(seconds), "--seed", str(seed)]


def table(seconds: float, seed: int, corpus: Path) -> list[str]:
    """libFuzzer over the kernels' tables."""
    return [*libfuzzer("table", [build_table_target()], seconds, seed, corpus / "table"), "-max_len=4096"]


TARGETS: dict[str, Callable[[float, int, Path], list[str]]] = {"parsers": parsers, "properties": properties, "table": table}


def run(target: str, seconds: float, seed: int, fresh: bool) -> int:
    """Fuzz one target; its output is shown where it fails, else its last lines."""
    (WORK / "found").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="sff-fuzz-") as scratch:
        command = TARGETS[target](seconds, seed, Path(scratch) if fresh else WORK)
        environment = {**os.environ, "TMPDIR": scratch, "PYTHONPATH": str(ROOT), "ASAN_OPTIONS": "detect_leaks=1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, errors="backslashreplace")
    lines = (done.stdout + done.stderr).splitlines()
    print(f"== {target}: exit code {done.returncode}", *lines[-80 if done.returncode else -8 :], sep="\n", flush=True)
    return done.returncode


def main() -> int:
    """Fuzz what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target, default 1")
    parser.add_argument("--seed", type=int, default=1, help="default 1")
    parser.add_argument("--fresh", action="store_true", help="from the seeds alone, and keep nothing but what was found")
    parser.add_argument("targets", nargs="*", help=f"default all: {', '.join(TARGETS)}")
    options = parser.parse_args()
    unknown = set(options.targets) - TARGETS.keys()
    if unknown:
        parser.error(f"expected some of {', '.join(TARGETS)}, got {', '.join(sorted(unknown))}")
    failed = [name for name in options.targets or TARGETS if run(name, 60 * options.minutes, options.seed, options.fresh)]
    print(f"found by {', '.join(failed)}: see {WORK / 'found'}" if failed else "nothing was found")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
