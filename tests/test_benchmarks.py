"""The benchmarks: they run, their figures are what they say, and `sff-fast bench` finds them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import sff_fast
from sff_fast.cli.app import run as cli
from sff_fast.cli.commands import bench

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_smooth  # noqa: E402
import busy  # noqa: E402
import flat  # noqa: E402
import models  # noqa: E402
import picture  # noqa: E402
import speed_doc  # noqa: E402
import timing  # noqa: E402
import whole  # noqa: E402


def test_a_row_holds_medians_and_the_ratio_of_paired_rounds():
    seconds = {"ours": [1.0, 2.0, 4.0], "limit": [1.0, 1.0, 2.0], "torch": [10.0, 40.0, 80.0]}
    row = timing.row("x", seconds, "limit", 1000, 1, "<= 2.1")
    assert (row["ours_ns"], row["peer_ns"], row["ratio"]) == ("2000000.0000", "1000000.0000", "2.000")
    assert (row["of"], row["holds"]) == ("ours / peer", "yes")
    row = timing.row("x", seconds, "torch", 1000, 1, ">= 21")
    assert (row["ratio"], row["of"], row["holds"]) == ("20.000", "peer / ours", "no")
    assert timing.row("x", seconds, "torch", 1000, 1)["holds"] == ""


class Clock:
    """Time as :mod:`timing` asks for it: this thread turns all the while, others compute until ``others_stop``."""

    def __init__(self, others_stop: float) -> None:
        self.now, self.others_stop = 5.0, others_stop

    def perf_counter(self) -> float:
        self.now += 0.0005
        return self.now

    def thread_time(self) -> float:
        return self.now - 2.0

    def process_time(self) -> float:
        return self.now - 1.0 + min(self.now, self.others_stop)


def test_nobody_is_timed_beside_threads_that_the_one_before_left_turning(monkeypatch):
    clock = Clock(others_stop=5.034)
    monkeypatch.setattr(timing, "time", clock)
    began = []
    timing.interleaved({"a": lambda: began.append(clock.now)}, runs=1, warmup=0)
    assert 5.034 < began[0] < 5.034 + 2.5 * timing.WINDOW
    monkeypatch.setattr(timing, "time", Clock(others_stop=1e9))
    with pytest.raises(RuntimeError, match="never at rest"):
        timing.interleaved({"a": lambda: None}, runs=1)


def test_csv_rows_are_appended_and_other_columns_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(timing, "RESULTS", tmp_path / "results")
    rows = [timing.row("x", {"ours": [1.0], "torch": [2.0]}, "torch", 10, 1)]
    path = timing.write_rows("smooth", rows)
    timing.write_rows("smooth", rows)
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("case,isa,threads,elements,runs,ours_ns,peer,peer_ns,ratio,of,must,holds,date,cpu")
    with pytest.raises(SystemExit, match="other columns"):
        timing.write_rows("smooth", [{"case": "y"}])


def test_the_flat_cases_run_and_agree_with_the_reference():
    rows = flat.flat("uniform", models.torch.float32, 10_000, 2, 1)
    assert [r["peer"] for r in rows] == ["limit", "torch"]
    assert [r["must"] for r in rows] == ["<= 1.25", ">= 11"]
    rows = flat.alignment("normal", 10_000, 1, 1)
    assert [r["case"] for r in rows] == ["normal at 16 mod 64", "normal at 48 mod 64"]


def test_a_busy_neighbour_runs_beside_what_it_is_put_beside_and_is_gone_afterwards(monkeypatch):
    def state(pid: int) -> str:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]

    def children() -> set[int]:
        return {int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()}

    before = children()
    with busy.neighbour() as beside:
        (pid,) = children() - before
        seen: list[str] = []
        beside(lambda: seen.append(state(pid)))()
        assert seen[0] != "T"  # stopped
    assert not Path(f"/proc/{pid}").exists()
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    rows = busy.busy(10_000, 1, 2)
    assert [(r["peer"], r["must"], r["of"]) for r in rows] == [
        ("alone", "<= 1.65", "ours / peer"),
        ("scale alone", "", "ours / peer"),
    ]


def test_forcing_an_instruction_set_is_undone(monkeypatch):
    monkeypatch.setenv("SFF_FAST_ISA", "baseline")
    with flat.forced("avx2"):
        assert os.environ["SFF_FAST_ISA"] == "avx2"
    assert os.environ["SFF_FAST_ISA"] == "baseline"


def test_the_model_of_many_tensors_is_what_the_table_asks_for():
    sizes = [p.numel() for p in models.Many(8_000_000).parameters()]
    assert len(sizes) == 1285
    assert sum(sizes) == 8_000_000
    assert sum(n < 4096 for n in sizes) == 643


def test_the_normal_model_has_the_size_and_distributions_of_chronos_t5_base():
    plan = sff_fast.trace(models.ChronosBase)
    elements = sum(plan[name].numel for name in plan)
    assert elements == 201_374_976  # as transformers counts the published configuration, embeddings tied
    normal = sum(plan[n].numel for n in plan if isinstance(plan[n].segments[0].distribution, sff_fast.Normal))
    assert normal / elements > 0.999


def test_extra_memory_is_measured_in_a_fresh_process():
    (row,) = whole.memory("Timer-67M", 1)
    assert 0 < row["ratio"] <= whole.MEMORY_LIMIT
    assert row["holds"] == "yes"


def test_the_picture_is_drawn_from_rows(tmp_path):
    rows = []
    for threads in (1, 2):
        for case, isa, _ in picture.CASES:
            for peer in ("limit", "torch"):
                rows.append(
                    timing.row(case, {"ours": [2e-9], peer: [1e-9]}, peer, 1, threads, isa="" if isa == "widest" else isa)
                )
    assert picture.bars(rows, "Timer-67M", "widest", 2) == {"ours": 2.0, "limit": 1.0, "torch": 1.0}
    picture.draw(rows, tmp_path / "docs" / "speed.png")
    assert (tmp_path / "docs" / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_the_tables_of_the_readme_are_those_of_the_latest_figures():
    page = (ROOT / "README.md").read_text()
    assert speed_doc.updated(page, timing.latest_rows("smooth")) == page


def test_a_figure_of_one_and_two_threads_is_a_cell_and_one_of_a_single_count_is_none():
    rows = [
        timing.row("constant float32", {"ours": [ns * 1e-9], "limit": [1e-9]}, "limit", 1, threads)
        for threads, ns in ((1, 1.5), (2, 0.75))
    ]
    rows = [{key: str(value) for key, value in row.items()} for row in rows]
    assert speed_doc.flat_table(rows)[2] == "| constant fp32 | 1.50 / 0.75 | 1.50 / 0.75 | |"
    assert speed_doc.flat_table(rows[:1])[2] == "| constant fp32 | | | |"


def test_the_command_offers_the_groups_of_the_benchmark_and_passes_options_on(monkeypatch):
    assert list(bench.GROUPS) == list(dict.fromkeys(group for group, _ in bench_smooth.cases(1, 1, 1)))
    seen = []
    monkeypatch.setattr(subprocess, "run", lambda command, **_: seen.append(command) or subprocess.CompletedProcess(command, 0))
    assert cli(["bench", "--elements", "1000000", "--threads", "2", "--only", "cold", "--only", "many"]) == 0
    assert seen[0][1:] == [
        *(str(ROOT / "benchmarks" / "bench_smooth.py"), "--elements", "1000000", "--runs", "5"),
        *("--threads", "2", "--only", "cold", "many"),
    ]


def test_without_the_repository_the_command_says_where_the_benchmarks_are(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sff_fast, "__file__", str(tmp_path / "sff_fast" / "__init__.py"))
    assert cli(["bench"]) == 2
    assert "in a clone of the repository" in capsys.readouterr().err
