"""The native core under AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer, on fuzzed kernel tables.

The driver says for each random table whether it is valid, by walking every element (tests/native/oracle.h). What is invalid
must be refused with a message that names the task; what is valid must give on every instruction set, in memory of exactly
the size that the table names, the bits of an element-by-element scalar evaluation.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import driver
import pytest

pytestmark = pytest.mark.slow
# In the plain build warnings are errors.
# One sanitizer a build, and without the checks of temporaries' life and of null references: on thousands of inlined lane
# operations they take g++ minutes a file.
BUILDS = {
    "plain": "",
    "address": "-g1 -fsanitize=address -fno-sanitize-address-use-after-scope",
    "undefined": "-g1 -fsanitize=undefined -fno-sanitize=null,alignment,object-size -fno-sanitize-recover=all",
    "thread": "-g1 -fsanitize=thread",
}
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=1:halt_on_error=1:strict_string_checks=1",
    "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    "TSAN_OPTIONS": "halt_on_error=1",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Callable[[str], Path]:
    """The driver under a sanitizer, compiled once."""

    @functools.cache
    def program(name: str) -> Path:
        flags = [f"-DCMAKE_CXX_FLAGS={BUILDS[name]}", "-DCMAKE_CXX_FLAGS_RELEASE=-O1"] if BUILDS[name] else ["-DSFF_WERROR=ON"]
        return driver.build(tmp_path_factory.mktemp(name), *flags)

    return program


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


def test_tables_are_refused_or_run_exactly_as_the_oracle_says(built):
    _both_kinds(_run(built("plain"), "fuzz", 1, 60_000, 400, 2), 60_000)


def test_large_tables_give_the_same_bits_from_three_threads(built):
    _both_kinds(_run(built("plain"), "fuzz", 2, 40, 800_000, 3), 40)


@pytest.mark.parametrize("sanitizer", ["address", "undefined"])
def test_fuzzed_tables_pass_the_sanitizer_in_memory_of_exact_size(built, sanitizer):
    _both_kinds(_run(built(sanitizer), "fuzz", 3, 6_000, 400, 2), 6_000)
    _both_kinds(_run(built(sanitizer), "fuzz", 4, 10, 400_000, 2), 10)


def test_fuzzed_tables_and_simultaneous_callers_pass_the_thread_sanitizer(built):
    _both_kinds(_run(built("thread"), "fuzz", 5, 10, 800_000, 4), 10)
    assert _run(built("thread"), "together", 6) == "done\n"


def test_every_instruction_set_of_the_driver_gives_the_known_answers(built, tmp_path):
    path = tmp_path / "vectors.bin"
    cases = driver.vectors()
    path.write_bytes(b"".join(cases))
    for name in BUILDS:
        assert _run(built(name), "vectors", path) == f"cases {len(cases)}\n"


def test_the_driver_sees_one_wrong_bit(built, tmp_path):
    content = bytearray(b"".join(driver.vectors()))
    content[-1] ^= 1
    path = tmp_path / "wrong.bin"
    path.write_bytes(content)
    done = subprocess.run([str(built("plain")), "vectors", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "differs from the recorded words" in done.stdout
