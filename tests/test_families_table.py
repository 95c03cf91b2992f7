"""README's table of families against what is registered; its figures come from tools/families_table.py."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import model_builders
import pytest
from family_cases import variants

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import families_table


def rows():
    """Variant to the cells of its row in README."""
    text = families_table.README.read_text()
    table = text.split(families_table.BEGIN)[1].split(families_table.END)[0]
    assert families_table.HEADER in table
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.strip().splitlines()[2:]]
    return {row[1].strip("`"): row for row in cells}


def test_the_table_of_families_has_a_row_for_every_variant_with_its_package_and_tasks():
    found = rows()
    assert sorted(found) == sorted(variants()), "run `python tools/families_table.py --write`"
    for variant, cls in variants().items():
        family, _, package, tasks, licence, *_ = found[variant]
        assert family == f"`{cls.family}`"
        assert package == (cls.package or "none")
        assert set(tasks.split(", ")) == cls.tasks
        assert licence == families_table.PUBLISHED[variant].licence


def test_the_page_of_tasks_names_who_can_do_which():
    text = " ".join((families_table.ROOT / "docs" / "tasks.md").read_text().split())
    for task, words in (("imputation", " also impute"), ("anomaly", " detect anomalies")):
        named = re.search(rf"((?:`[a-z0-9.-]+`(?:, | and )?)+){words}", text)
        assert re.findall("`(.*?)`", named[1]) == [name for name, cls in variants().items() if task in cls.tasks]
    assert all("forecast" in cls.tasks for cls in variants().values())


@pytest.mark.parametrize("variant", families_table.PUBLISHED)
def test_the_table_of_families_measures_every_published_size_from_small_to_large(variant):
    published = families_table.PUBLISHED[variant]
    sizes = [size for size in model_builders.SIZES[published.builder] if size not in ("tiny", "r2_post_init")]
    assert list(published.sizes) == sizes
    if variant in rows():
        counts = [float(count) for count in rows()[variant][5].split(" / ")]
        assert len(counts) == len(sizes)
        assert counts == sorted(counts)


def test_a_model_is_counted_and_its_memory_measured():
    found = families_table.measure("timer", "tiny")
    assert found["parameters"] == 23_392
    assert found["seconds"] > 0
    assert 0 <= found["bytes"] < 2**26


def test_counts_are_in_millions_with_three_digits():
    assert [families_table.millions(count) for count in (372_992, 67_397_728, 935_066_592)] == ["0.373", "67.4", "935"]
