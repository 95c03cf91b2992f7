"""tools/mutate_kernels.py: which mutants it makes, and what its page admits."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tools"))

import mutate_kernels
from mutate_kernels import Mutant, mutants_of, page

CODE = """#include <a.h>  // 1 + 1
template <int S>
float f(float x) { return x * 2.0f + 0x10u; }  // x - 3
const char* s = "a + 1";
bool g(int* a) { return a[1] < 4 && !a[2]; }
prefetch(a + 64);
"""


def test_every_operator_and_number_of_the_compiled_code_has_one_mutant():
    found = [(m.line, m.text, m.instead) for m in mutants_of("f.h", CODE, {1, 2, 3, 4, 6})]
    assert found == [(3, "*", "+"), (3, "+", "-"), (3, "2.0", "2.002"), (3, "0x10", "0x11")]
    assert [m.text for m in mutants_of("f.h", CODE, {5})] == ["<", "&&", "1", "4", "2"]


def test_a_mutant_changes_its_own_token_alone():
    (mutant,) = [m for m in mutants_of("f.h", CODE, {5}) if m.text == "4"]
    assert mutant.applied(CODE) == CODE.replace("< 4", "< 5")
    assert str(mutant) == "f.h:5:32 `4` -> `5`"


def test_a_mutant_of_other_code_is_an_error():
    with pytest.raises(AssertionError):
        Mutant("f.h", 3, 0, "4", "5").applied(CODE)


def test_headers_belong_to_an_instruction_set_and_a_unit():
    assert all((mutate_kernels.ROOT / header).exists() for header in mutate_kernels.HEADERS)
    assert {mutate_kernels.isa_of(header) for header in mutate_kernels.HEADERS} == {"portable", "avx2"}
    assert mutate_kernels.unit_of("csrc/core/adamw.h") == "adamw_isa"
    assert mutate_kernels.unit_of("csrc/core/philox.h") == "smooth_isa"


def test_the_page_counts_what_did_not_compile_apart_and_lists_what_was_not_noticed():
    rows = {
        "a:1": {"file": "a", "by": "test_x"},
        "a:2": {"file": "a", "by": ""},
        "a:3": {"file": "a", "by": "compiler"},
        "b:4": {"file": "b", "by": ""},
        "b:5": {"file": "b", "by": "driver fuzz"},
    }
    text = page(rows, 900, 5, {"b:4": "the same number"}, "2026-01-02 03:04")
    assert "| noticed | 2 of 4: 50.0 % |" in text
    assert "| of these without any effect (reasons below) | 1 |" in text
    assert "| **noticed of those with an effect** | **2 of 3: 66.7 %** |" in text
    assert "| `a` | 1 | 2 |" in text
    assert "* a:2\n* b:4: the same number\n" in text
