"""What nvcc makes of the optimizer's CUDA kernels: registers, spills, the width of accesses, instructions an element."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cuda_code import ADAMW_SOURCE, ARCHITECTURES, adamw_name, compile_for_all, functions, resources

sys.path.append(str(Path(__file__).resolve().parents[1] / "tools"))

UNITS = {("float32", "float32"): 4}
"""Elements a thread takes at a time, by parameter and states; 8 elsewhere."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@pytest.fixture(scope="module", params=ARCHITECTURES)
def compiled(request):
    cubin, report = compile_for_all("cubin", ADAMW_SOURCE)[request.param]
    return request.param, resources(report, adamw_name), functions(cubin, adamw_name)


def _steps(found):
    return {name: value for name, value in found.items() if not isinstance(name, str)}


def test_nothing_is_spilled_and_no_stack_is_used(compiled):
    _, found, _ = compiled
    assert len(_steps(found)) == 36
    assert set(found) - set(_steps(found)) == {"sum", "clip"}
    for name, kernel in found.items():
        assert kernel["stack"] == kernel["spilled"] == 0, name


def test_registers_leave_half_of_the_threads_and_fewer_where_a_thread_holds_more_arrays(compiled):
    _, found, _ = compiled
    for (dtype, state, _, amsgrad), kernel in _steps(found).items():
        blocks = 4
        if state == "int8":
            blocks = 2 if amsgrad else 3
        elif amsgrad and (dtype, state) not in UNITS:
            blocks = 3
        granted = -(-kernel["registers"] // 8) * 8
        assert 65536 // (granted * 256) >= blocks, (dtype, state, amsgrad, kernel)
    assert found["sum"]["registers"] <= 32


def test_whole_units_move_by_128_bits_and_codes_by_64(compiled):
    _, _, found = compiled
    for (dtype, state, storing, amsgrad), loops in _steps(found).items():
        (loop,) = loops
        unit = UNITS.get((dtype, state), 8)
        param, moments = unit * BYTES[dtype] // 16, 3 if amsgrad else 2
        compensation = param if storing == "compensated" else 0
        states = 0 if state == "int8" else moments * unit * BYTES[state] // 16
        assert loop.count(r"LDG\S*\.128") == 2 * param + compensation + states, (dtype, state, storing, amsgrad)
        assert loop.count(r"STG\S*\.128") == param + compensation + states, (dtype, state, storing, amsgrad)
        if state == "int8":
            assert loop.count(r"STG\S*\.64") == moments
        assert not loop.count(r"\b(LDL|STL|LD\.|ST\.|LDS|STS)\b")


def test_a_steps_arithmetic_is_fp32_with_one_root_and_one_division_an_element(compiled):
    _, _, found = compiled
    for name, loops in _steps(found).items():
        (loop,) = loops
        unit = UNITS.get(name[:2], 8)
        assert not loop.count(r"\b(DFMA|DADD|DMUL|DSETP|F2F\.F32\.F64|F2F\.F64\.F32)\b")
        forms = loop.count(r"MUFU\.RSQ") // unit  # of weight decay: some compilers unroll the loop for each
        assert forms in (1, 2)
        assert loop.count(r"MUFU\.RSQ") == forms * unit
        codes = (3 if name[3] else 2) if name[1] == "int8" else 0  # a division for each new scale
        assert loop.count(r"MUFU\.RCP") == forms * unit + codes, name
        assert loop.count("MUFU") == loop.count(r"MUFU\.(RSQ|RCP)")


def test_instructions_an_element_stay_below_what_memory_takes(compiled):
    architecture, _, found = compiled
    # An H100 issues 132 * 4 * 32 * 1.98e9 = 33.5e12 instructions of a thread a second and moves 3.35e12 bytes: ten a byte.
    for (dtype, state, storing, amsgrad), loops in _steps(found).items():
        (loop,) = loops
        each = loop.path / UNITS.get((dtype, state), 8)
        moments = 3 if amsgrad else 2
        moved = BYTES[dtype] * (5 if storing == "compensated" else 3) + 2 * moments * BYTES[state]
        print(f"{architecture} {dtype} {state} {storing} {'amsgrad' if amsgrad else ''}: {each:.1f} instructions, {moved} bytes")
        assert 30 < each <= 10 * moved, (dtype, state, storing, amsgrad)


def test_a_rounding_block_is_drawn_once_for_eight_elements(compiled):
    _, _, found = compiled
    for name, loops in _steps(found).items():
        (loop,) = loops
        products = loop.count(r"IMAD\.WIDE\.U32")
        if name[2] == "stochastic":
            assert 18 <= products <= 18 + 5, name  # and addresses
        else:
            assert products <= 5, name


def test_the_pages_model_is_that_of_this_code():
    import roofline

    page = roofline.PAGE.read_text()
    for table in (roofline.smoothing, roofline.optimizer):
        assert "\n".join(table()) + "\n\n" in page + "\n", "python tools/roofline.py writes it anew"
