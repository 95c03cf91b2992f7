"""The figures of docs/optimizer.md and README.md are those of benchmarks/results."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import bench_flat_parameters  # noqa: E402
import bench_optimizer  # noqa: E402
from timing import latest_by, replace_table  # noqa: E402

DOCS = (ROOT / "docs" / "optimizer.md").read_text()
README = (ROOT / "README.md").read_text()


MEMORY = latest_by("memory", "case", "way")
NAMES = {
    "chronos-t5-large": "Chronos-T5-large",
    "moirai-moe-base": "MOIRAI-MoE-base",
    "chronos-t5-4b": "Chronos-T5 with wider and more layers",
}


def test_the_table_of_memory_is_that_of_the_benchmark() -> None:
    table = re.findall(r"^\|([^|]*)\| (.*(?:AdamW|released gradients)) \| ([\d.]+) \| ([\d.]+) GiB \|$", DOCS, re.MULTILINE)
    found, model = [], ""
    for first, way, value, peak in table:
        model = first.strip() or model
        found.append((model, "usual" if "torch's AdamW" in way else "ours", value, peak))
    expected = [
        (
            f"{NAMES[case]}, {int(row['parameters']) / 1e6:.0f} million",
            way,
            f"{float(row['bytes_per_parameter']):.2f}",
            row["peak_gib"],
        )
        for (case, way), row in MEMORY.items()
    ]
    assert sorted(found) == sorted(expected)


def test_every_limit_of_memory_holds() -> None:
    assert {key: row["holds"] for key, row in MEMORY.items()} == dict.fromkeys(MEMORY, "yes")
    for row in MEMORY.values():
        assert row["trained"] == row["parameters"], row


def test_the_readme_has_the_same_figures() -> None:
    usual, ours = MEMORY["chronos-t5-large", "usual"], MEMORY["chronos-t5-large", "ours"]
    values = [f"{float(row['bytes_per_parameter']):.2f}" for row in (ours, usual)]
    assert "takes {} bytes a parameter instead of {}, weights".format(*values) in README
    assert f"({ours['peak_gib']} and {usual['peak_gib']} GiB in all; 4 billion parameters" in README
    assert f"4 billion parameters {MEMORY['chronos-t5-4b', 'ours']['peak_gib']} GiB" in README


def test_the_losses_of_the_four_billion_are_those_of_the_benchmark() -> None:
    row = MEMORY["chronos-t5-4b", "ours"]
    assert float(row["last_loss"]) < float(row["first_loss"])
    text = " ".join(DOCS.split())
    assert f"the loss falls from {float(row['first_loss']):.2f} to {float(row['last_loss']):.2f}" in text


def test_the_table_of_time_is_that_of_the_benchmark() -> None:
    rows = latest_by("optimizer", "case", "contender", "threads").values()
    assert replace_table(DOCS, "speed", bench_optimizer.table(rows)) == DOCS


def test_a_table_is_replaced_up_to_the_next_empty_line() -> None:
    page = "a\n<!-- x: command -->\n| old |\n| older |\n\nb\n\nc\n"
    assert replace_table(page, "x", ["| new |"]) == "a\n<!-- x: command -->\n| new |\n\nb\n\nc\n"
    assert replace_table("<!-- x: c -->\n\nb\n\nc\n", "x", ["| new |"]) == "<!-- x: c -->\n| new |\n\nb\n\nc\n"
    with pytest.raises(ValueError, match="no <!-- y"):
        replace_table(page, "y", [])


def test_the_benchmark_of_flat_parameters_steps_both_kinds() -> None:
    row = bench_flat_parameters.measure("bf16", "int8", 1_000_000, 2, 1)
    assert row["case"] == "bf16 parameters, int8 states"
    assert float(row["apart_ns"]) > 0
    assert float(row["ratio"]) > 0
