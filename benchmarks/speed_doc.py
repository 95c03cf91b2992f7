"""README's tables of speed, from ``benchmarks/results/smooth.csv``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from timing import replace_table

Rows = Sequence[Mapping[str, str]]
FLAT = (
    ("constant fp32", "constant float32", "widest"),
    ("uniform fp32", "uniform float32", "widest"),
    ("normal fp32", "normal float32", "widest"),
    ("truncated normal fp32", "trunc_normal float32", "widest"),
    ("uniform bf16", "uniform bfloat16", "widest"),
    ("normal bf16", "normal bfloat16", "widest"),
    ("uniform fp32, AVX2 forced", "uniform float32", "avx2"),
    ("normal fp32, AVX2 forced", "normal float32", "avx2"),
)
WHOLE = (
    ("Timer, 67 million parameters", "Timer-67M"),
    ("the shapes of Chronos-T5-base, 201 million", "Chronos-T5-base"),
    ("Timer cold: traced and smoothed once in a fresh process", "Timer-67M cold"),
)
THREADS = ("1", "2")


def _cell(rows: Rows, case: str, isa: str, peer: str, column: str, form: str) -> str:
    """A column of one case on one and on two threads; empty where it was not measured on both."""
    found = {r["threads"]: float(r[column]) for r in rows if (r["case"], r["isa"], r["peer"]) == (case, isa, peer)}
    return " / ".join(form.format(found[t]) for t in THREADS) if set(THREADS) <= set(found) else ""


def flat_table(rows: Rows) -> list[str]:
    """One tensor of 10^8 elements: time, against the limit, against torch."""
    lines = ["| | ns an element | times the limit | faster than torch |", "|---|---|---|---|"]
    for label, case, isa in FLAT:
        cells = (
            _cell(rows, case, isa, "limit", "ours_ns", "{:.2f}"),
            _cell(rows, case, isa, "limit", "ratio", "{:.2f}"),
            _cell(rows, case, isa, "torch", "ratio", "{:.1f}x"),
        )
        lines.append(f"| {label} | {' | '.join(cells)} |".replace("  ", " "))
    return lines


def whole_table(rows: Rows) -> list[str]:
    """Whole models against building a second one and against a loop over the plan."""
    lines = ["| | faster than a second model | faster than a torch loop |", "|---|---|---|"]
    for label, case in WHOLE:
        cells = (_cell(rows, case, "widest", peer, "ratio", "{:.1f}x") for peer in ("second model", "torch loop"))
        lines.append(f"| {label} | {' | '.join(cells)} |".replace("  ", " "))
    return lines


def updated(page: str, rows: Rows) -> str:
    """The page with both tables made anew."""
    return replace_table(replace_table(page, "speed of one tensor", flat_table(rows)), "speed of models", whole_table(rows))
