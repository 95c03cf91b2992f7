"""aarch64: the same source, cross-compiled and run under an emulator, gives the same bits."""

from __future__ import annotations

import subprocess
from pathlib import Path

import driver
import numpy as np
import pytest
import torch
from kernel_cases import tasks_for

from sff_fast import table
from sff_fast.backends import cpu

pytestmark = pytest.mark.slow
COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    driver.needed(COMPILER, "g++-aarch64-linux-gnu libc6-dev-arm64-cross")
    driver.needed(EMULATOR, "qemu-user")
    return driver.build(
        tmp_path_factory.mktemp("aarch64"),
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={COMPILER}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    )


def _run(program: Path, *arguments: object) -> str:
    done = subprocess.run([EMULATOR, str(program), *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_is_an_aarch64_program_with_the_portable_lanes(program):
    assert int.from_bytes(program.read_bytes()[18:20], "little") == 183  # ELF e_machine: EM_AARCH64
    assert _run(program, "isas") == "baseline\n"


def test_it_gives_the_known_answers_and_the_references_bits(program, tmp_path):
    cases = driver.vectors()
    path = tmp_path / "vectors.bin"
    path.write_bytes(b"".join(cases))
    assert _run(program, "vectors", path) == f"cases {len(cases)}\n"


def test_its_transforms_equal_this_machines_bit_for_bit(program, tmp_path):
    rng = np.random.default_rng(4)
    ends = np.arange(1024, dtype=np.uint32)
    words = np.concatenate([ends, rng.integers(0, 1 << 32, 200_000, dtype=np.uint32), 0xFFFFFFFF - ends])

    def here(distribution, given: np.ndarray) -> np.ndarray:
        return cpu._cpu.transform(table.pack(tasks_for(torch.zeros(4), distribution)), given, "")

    path = tmp_path / "transforms.bin"
    cases = driver.transforms(words, here)
    path.write_bytes(b"".join(cases))
    assert _run(program, "vectors", path) == f"cases {len(cases)}\n"


def test_it_refuses_and_runs_fuzzed_tables_as_the_oracle_says(program):
    words = _run(program, "fuzz", 7, 1_500, 400, 2).split()
    assert int(words[1]) + int(words[3]) == 1_500
    assert min(int(words[1]), int(words[3])) >= 300
