"""How the kernels' work is shared out among threads (csrc/cpu/parallel.h): by claims, so that a busy machine costs its share."""

from __future__ import annotations

import subprocess
from pathlib import Path

import driver
import pytest

SOURCES = (driver.ROOT / "tests" / "native" / "share.cpp", driver.ROOT / "csrc" / "cpu" / "parallel.cpp")


@pytest.fixture(scope="module")
def program(tmp_path_factory) -> Path:
    driver.needed("g++", "g++")
    path = tmp_path_factory.mktemp("share") / "share"
    subprocess.run(["g++", "-std=c++17", "-pthread", *map(str, SOURCES), "-o", str(path)], check=True)
    return path


def _run(program: Path, *arguments: object) -> str:
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize("threads", [2, 4])
def test_while_one_thread_is_stuck_the_others_do_all_the_rest(program, threads):
    assert _run(program, "held", threads) == "999 of 999"


@pytest.mark.parametrize(("total", "part", "threads"), [(0, 10, 2), (1, 10, 2), (1000, 10, 1), (1003, 10, 3), (5, 1, 8)])
def test_every_part_is_handed_out_once_and_whole(program, total, part, threads):
    assert _run(program, "covered", total, part, threads) == "whole"


@pytest.mark.parametrize(
    ("total", "threads", "expected"),
    [
        (0, 2, "100 by 1"),  # the least claim; no thread beside the caller's below 1,000 a thread
        (1_999, 2, "100 by 1"),
        (2_000, 2, "100 by 2"),
        (12_799, 2, "100 by 2"),  # 32 claims a thread of 199: whole hundreds
        (12_800, 2, "200 by 2"),
        (12_800, 4, "100 by 4"),
        (1_000_000, 2, "400 by 2"),  # the most
    ],
)
def test_claims_are_as_long_as_leaves_every_thread_thirty_two_of_them(program, total, threads, expected):
    assert _run(program, "claim", total, threads) == expected
