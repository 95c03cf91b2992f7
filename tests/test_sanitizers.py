"""The native core under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, on fuzzed kernel tables.

The driver says for each random table whether it is valid, by walking every element (tests/native/oracle.h). What is invalid
must be refused with a message that names the task; what is valid must give on every instruction set, in memory of exactly
the size that the table names, the bits of an element-by-element scalar evaluation.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import driver
import pytest

pytestmark = pytest.mark.slow
ADDRESS = "-g1 -fno-omit-frame-pointer -fsanitize=address,undefined -fno-sanitize-recover=all"
THREAD = "-g1 -fsanitize=thread"
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:halt_on_error=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> Path:
    return driver.build(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def address(tmp_path_factory) -> Path:
    return driver.build(tmp_path_factory.mktemp("address"), f"-DCMAKE_CXX_FLAGS={ADDRESS}", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")


@pytest.fixture(scope="module")
def thread(tmp_path_factory) -> Path:
    return driver.build(tmp_path_factory.mktemp("thread"), f"-DCMAKE_CXX_FLAGS={THREAD}", "-DCMAKE_CXX_FLAGS_RELEASE=-O1")


def _run(program: Path, *arguments: object) -> str:
    command = [str(program), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **OPTIONS})
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _both_kinds(report: str, tables: int) -> None:
    words = report.split()
    valid, refused = int(words[1]), int(words[3])
    assert valid + refused == tables
    assert min(valid, refused) >= tables // 5, "the fuzzer makes tables of one kind only"


def test_tables_are_refused_or_run_exactly_as_the_oracle_says(plain):
    _both_kinds(_run(plain, "fuzz", 1, 60_000, 400, 2), 60_000)


def test_large_tables_give_the_same_bits_from_three_threads(plain):
    _both_kinds(_run(plain, "fuzz", 2, 40, 800_000, 3), 40)


def test_fuzzed_tables_pass_the_address_and_undefined_behaviour_sanitizers(address):
    _both_kinds(_run(address, "fuzz", 3, 6_000, 400, 2), 6_000)
    _both_kinds(_run(address, "fuzz", 4, 10, 400_000, 2), 10)


def test_fuzzed_tables_and_simultaneous_callers_pass_the_thread_sanitizer(thread):
    _both_kinds(_run(thread, "fuzz", 5, 10, 800_000, 4), 10)
    assert _run(thread, "together", 6) == "done\n"


def test_every_instruction_set_of_the_driver_gives_the_known_answers(plain, tmp_path):
    path = tmp_path / "vectors.bin"
    cases = driver.vectors()
    path.write_bytes(b"".join(cases))
    assert _run(plain, "vectors", path) == f"cases {len(cases)}\n"


def test_the_driver_sees_one_wrong_bit(plain, tmp_path):
    content = bytearray(b"".join(driver.vectors()))
    content[-1] ^= 1
    path = tmp_path / "wrong.bin"
    path.write_bytes(content)
    done = subprocess.run([str(plain), "vectors", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "differs from the recorded words" in done.stdout
