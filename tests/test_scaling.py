"""docs/scaling.md: its tables are those of the measured rows, and the models are what was counted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_scaling  # noqa: E402
import scaling  # noqa: E402


def test_the_document_holds_the_tables_of_the_measured_rows():
    text = (ROOT / "docs" / "scaling.md").read_text()
    for title, lines in scaling.tables(scaling.read_rows()).items():
        assert "\n".join(lines) in text, title


def test_the_fit_finds_the_coefficients_that_rows_were_made_with():
    rows = [
        scaling.row("smoothing", ranks=8, tensors=t, elements=n, ms=1e3 * (2e-3 + 1e-4 * t + 1e-9 * n))
        for t in (10, 100)
        for n in (10**5, 10**7)
    ]
    (base, tensor, element), worst = scaling.fit(rows)
    # milliseconds are kept to four digits
    assert (base, tensor, element) == pytest.approx((2e-3, 1e-4, 1e-9), rel=0.02)
    assert worst < 1e-3


@pytest.mark.parametrize(("kind", "micro", "expected"), [("ddp", 4, 2.0), ("fsdp", 1, 3.0), ("fsdp", 4, 9.0)])
def test_a_step_moves_what_the_model_says(kind, micro, expected, monkeypatch):
    monkeypatch.setattr(bench_scaling, "ROWS", 64)
    row = bench_scaling.step(kind, 8, micro)
    size = 4 * int(row["elements"])
    assert int(row["received"]) == round(expected * size * 7 / 8)
    assert scaling.received(kind, size, 8, micro) == expected * size * 7 / 8


def test_fsdp_fills_up_what_does_not_divide(monkeypatch):
    monkeypatch.setattr(bench_scaling, "ROWS", 10)
    row = bench_scaling.step("fsdp", 4, 1)
    assert scaling.padding(10, 4) == 1.2
    assert int(row["received"]) == round(3 * 1.2 * 4 * int(row["elements"]) * 3 / 4)


def test_a_sharded_smoothing_launches_once_and_tells_nobody():
    row = bench_scaling.smoothing(8, 10, 10_000, 1)
    assert (row["launches"], row["calls"]) == ("1", "0")
