"""The scripts that write pages of docs/: what they read from machine code, and what they admit."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import exhaustive
import kernel_limits


def _page(ran: int, selected: int, expression: str = "") -> str:
    collector = exhaustive.Collector()
    collector.selected = selected
    collector.rows = [(f"test {i}", "passed", 1.5, "all finite") for i in range(ran)]
    return exhaustive.page(collector, 120.0, "the command", expression)


def test_the_page_of_the_exhaustive_tests_says_what_has_not_run():
    assert "3 of 3 tests passed in 2 minutes |" in _page(3, 3)
    assert "2 of 3 tests passed in 2 minutes; **interrupted: 1 tests have not run**" in _page(2, 3)
    assert "a part of the tests only" in _page(3, 3, "uniform")
    assert "| test 0 | passed | 1.5 | all finite |" in _page(1, 1)
    assert "`the command`" in _page(1, 1)


CODE = """vpaddd %ymm0,%ymm1,%ymm2
prefetcht0 2048(%rbx)
vmovups (%rax),%zmm1
vpmuludq %zmm26,%zmm19,%zmm19
vbroadcastss 4(%rcx),%zmm3
vpshufd $0xf5,%zmm1,%zmm2
vmovshdup %zmm1,%zmm2
prefetcht0 2112(%rbx)
vmovups %zmm1,(%rax)
add $0x40,%rax
jne 1001
prefetcht0 2048(%rbx)
vmulps %zmm1,%zmm2,%zmm3
jne 100b
jne 1000
ret"""


def test_the_main_loop_is_the_innermost_one_with_most_prefetches_and_moves_are_no_arithmetic():
    code = [(0x1000 + i, text) for i, text in enumerate(CODE.splitlines())]
    loop = kernel_limits.main_loop(code)
    assert loop.body[0] == "prefetcht0 2048(%rbx)"
    assert len(loop.body) == 10
    assert loop.arithmetic == 3  # the multiplication and two shuffles
