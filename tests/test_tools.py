"""The scripts that write pages of docs/: what they read from machine code, and what they admit."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import exhaustive
import kernel_limits

NAMES = [f"tests/test_exhaustive.py::test_of_the_words[all-{i}]" for i in range(3)]
ROW = {"outcome": "passed", "seconds": 60.0, "result": "all finite"}


def test_the_page_of_the_exhaustive_tests_says_what_has_not_run():
    whole = exhaustive.page(dict.fromkeys(NAMES, ROW), NAMES, "abc")
    assert "| outcome | 3 of 3 tests passed in 3 minutes |" in whole
    assert "| of the words[all-0] | passed | 60.0 | all finite |" in whole
    assert "| sources | abc |" in whole
    part = exhaustive.page({NAMES[0]: ROW, NAMES[1]: {**ROW, "outcome": "failed"}}, NAMES, "abc")
    assert "| outcome | 1 of 3 tests passed in 2 minutes; **1 have not run** |" in part


def test_a_stopped_exhaustive_run_goes_on_with_what_has_not_passed(tmp_path):
    kept = tmp_path / "rows" / "abc.json"
    first = exhaustive.Collector(kept)
    for name, outcome in zip(NAMES, ("passed", "failed")):
        first.pytest_runtest_logreport(
            SimpleNamespace(nodeid=name, when="call", outcome=outcome, duration=1.0, user_properties=[("result", "finite")])
        )
    second, deselected = exhaustive.Collector(kept), []
    items = [SimpleNamespace(nodeid=name) for name in NAMES]
    hook = SimpleNamespace(pytest_deselected=lambda items: deselected.extend(items))
    second.pytest_collection_modifyitems(SimpleNamespace(hook=hook), items)
    assert [item.nodeid for item in items] == NAMES[1:]
    assert [item.nodeid for item in deselected] == NAMES[:1]
    assert second.rows[NAMES[0]]["result"] == "finite"


def test_other_sources_have_another_hash(tmp_path, monkeypatch):
    before = exhaustive.sources_hash()
    for name in ("csrc", "sff_fast/backends", "tests"):
        shutil.copytree(exhaustive.ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    monkeypatch.setattr(exhaustive, "ROOT", tmp_path)
    assert exhaustive.sources_hash() == before
    (tmp_path / "csrc" / "cpu" / "adamw.cpp").write_text("// another optimizer")
    assert exhaustive.sources_hash() == before
    (tmp_path / "csrc" / "core" / "philox.h").write_text("// another generator")
    assert exhaustive.sources_hash() != before


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


def _figure(must: str, ours: float, peer: str, peer_ns: float, threads: int = 1) -> dict[str, str]:
    row = {"case": "uniform float32", "isa": "widest", "must": must, "holds": "no" if must else "", "ratio": "9.9"}
    return {**row, "ours_ns": str(ours), "peer": peer, "peer_ns": str(peer_ns), "threads": str(threads)}


@pytest.fixture
def blank(monkeypatch):
    """The blank loop's nanoseconds over memory and in the cache, and what it was asked for."""
    asked = {"ns": 0.0, "near": 0.0, "calls": []}

    def answer(operations, width, isa, threads, size=kernel_limits.FAR):
        asked["calls"].append((operations, width, isa, threads, size))
        return asked["ns" if size == kernel_limits.FAR else "near"]

    monkeypatch.setattr(kernel_limits, "blank_ns", answer)
    return asked


@pytest.mark.parametrize(
    ("compute", "blank_ns", "near", "with_it", "why", "over"),
    [
        (0.6, 0.65, 0.5, "1.62", "the arithmetic", "1.08"),
        (0.3, 0.6, 0.5, "1.50", "the overlap of the two", "1.17"),
        (0.3, 0.45, 0.24, "1.12", "the arithmetic, and the 0.210 ns that memory adds to the blank loop's", "1.56"),
        (0.3, 0.45, 0.26, "1.12", "the order of arithmetic and memory, with 1.25 times the scale needed", "1.56"),
        (0.48, 0.45, 0.44, "1.12", "waiting within the arithmetic, with 1.04 times the arithmetic needed", "1.56"),
    ],
)
def test_a_figure_that_is_not_reached_is_shown_with_what_stops_it(blank, compute, blank_ns, near, with_it, why, over):
    blank["ns"], blank["near"] = blank_ns, near
    (line,) = kernel_limits.missed([_figure("<= 1.25", 0.7, "limit", 0.4)], {("uniform", "float32", "avx512"): (compute, 2.1)})
    times, why = f"0.7 | 0.5000 | {compute:.3f} | 0.400 | {blank_ns:.3f}", f"{why}; {over} times the blank loop"
    assert line == f"| uniform float32, widest, against limit | 1 | <= 1.25 | 9.9 | {times} | {with_it} | {why} |"
    assert blank["calls"] == [(2.1, 4, "avx512", 1, kernel_limits.FAR), (2.1, 4, "avx512", 1, kernel_limits.NEAR)]


def test_a_ratio_to_a_peer_is_the_peers_time_over_the_longest_of_arithmetic_memory_and_blank_loop(blank):
    blank["ns"] = 0.25
    rows = [_figure("", 0.3, "limit", 0.2, 2), _figure(">= 16", 0.3, "torch", 3.0, 2)]
    (line,) = kernel_limits.missed(rows, {("uniform", "float32", "avx512"): (0.3, 2.1)})
    assert "| 2 | >= 16 | 9.9 | 0.3 | 0.1875 | 0.150 | 0.200 | 0.250 | 12.00 | the memory; 1.20 times the blank loop |" in line
    assert kernel_limits.missed(rows[:1], {}) == []  # nothing was asked of it


def test_every_figure_that_was_asked_for_is_listed_with_what_stops_it(blank):
    blank["ns"] = 0.6
    date = {"date": "2026-11-22 22:15", "of": "ours / peer"}
    holds = {**_figure("<= 1.08", 0.3, "limit", 0.4), **date, "case": "constant float32", "holds": "yes", "ratio": "0.758"}
    rows = [holds, {**_figure("<= 1.25", 0.7, "limit", 0.4), **date}, {**_figure("", 0.7, "torch", 3.0), **date}]
    stopped = kernel_limits.missed(rows, {("uniform", "float32", "avx512"): (0.3, 2.1)})
    lines = [line for line in kernel_limits.every_figure(rows, stopped).splitlines() if " against " in line]
    assert lines == [
        "| constant float32, widest, against limit | 1 | ours / peer | <= 1.08 | 0.758 | holds | 2026-11-22 22:15 |",
        "| uniform float32, widest, against limit | 1 | ours / peer | <= 1.25 | 9.9 "
        "| the overlap of the two; 1.17 times the blank loop | 2026-11-22 22:15 |",
    ]
    memory = {**_figure("<= 1048576", 0.0, "parameters", 0.0), **date, "case": "extra peak", "ours_ns": "", "peer_ns": ""}
    line = kernel_limits.every_figure([memory], kernel_limits.missed([memory], {})).splitlines()[-1]
    assert line.endswith("| <= 1048576 | 9.9 | **not shown** | 2026-11-22 22:15 |")
    with pytest.raises(KeyError):  # a figure that is not reached and that nothing is said of
        kernel_limits.every_figure(rows, [])


CALLGRIND = """version: 1
events: Ir
fn=smooth
12 5
calls=1 30
13 900
14 2

fn=draw_run<Avx2, float, 1, false>(float*)
0x30 400
31 500
fn=smooth
15 3
totals: 910
"""


def test_instructions_of_a_function_are_its_own_without_those_of_what_it_calls():
    assert kernel_limits.own_instructions(CALLGRIND) == {"smooth": 10, "draw_run<Avx2, float, 1, false>(float*)": 900}


def test_many_tensors_are_shown_beside_their_kernels_alone(blank):
    slow = {**_figure("<= 1.10", 0.2, "one tensor", 0.18, 2), "case": kernel_limits.MANY, "elements": "64250000"}
    alone = {**_figure("", 0.18, "one kernel", 0.18, 2), "case": kernel_limits.MANY, "ratio": "1.03"}
    (line,) = kernel_limits.missed([slow, alone], {})
    assert line.endswith("1.0 us a tensor with its kernel's start; the kernels alone are at 1.03 |")
    assert blank["calls"] == []
