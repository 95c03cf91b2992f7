"""What nvcc makes of the CUDA kernels: registers, spills, the width of accesses, instructions an element."""

from __future__ import annotations

import pytest
from cuda_code import ARCHITECTURES, compile_for_all, functions, resources

# Most instructions an element on the way that no special value takes: (uniform, normal) of the memory-bound kernels. The
# square root of an older architecture takes more.
LIMITS = {
    ("float32", "sm_80"): (22, 46),
    ("float32", "sm_90"): (22, 44),
    ("float32", "sm_100"): (22, 44),
    ("bfloat16", "sm_80"): (21, 46),
    ("bfloat16", "sm_90"): (21, 44),
    ("bfloat16", "sm_100"): (21, 44),
}
UNIT = {"float32": 4, "bfloat16": 8, "float16": 8, "float64": 4}
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
REGISTERS_A_MULTIPROCESSOR = 65536
THREADS_A_MULTIPROCESSOR = 2048


@pytest.fixture(scope="module", params=ARCHITECTURES)
def compiled(request):
    cubin, report = compile_for_all("cubin")[request.param]
    return request.param, resources(report), functions(cubin)


def _loops(found, dtype, stochastic=False, variant="plain"):
    return found[dtype, stochastic, variant]


def _philox_blocks(loop) -> int:
    return round(loop.count(r"IMAD\.WIDE\.U32") / 18)


def _congruent(found, dtype):
    """The loops that draw as many blocks as they have elements for: (uniform, normal)."""
    loops = [loop for loop in _loops(found, dtype) if 4 * _philox_blocks(loop) == UNIT[dtype]]
    (uniform,) = (loop for loop in loops if not loop.count("MUFU"))
    (normal,) = (loop for loop in loops if loop.count("MUFU"))
    return uniform, normal


def test_nothing_is_spilled_and_no_stack_is_used(compiled):
    _, found, _ = compiled
    assert len(found) == 18
    for name, kernel in found.items():
        assert kernel["stack"] == 0, name
        assert kernel["spilled"] == 0, name


def test_registers_leave_three_quarters_of_the_threads_and_half_at_least(compiled):
    _, found, _ = compiled
    for (dtype, stochastic, variant), kernel in found.items():
        most, share = (48, 0.625) if variant == "truncated" else (40, 0.75)
        if stochastic or variant == "shifted":
            most, share = (80, 0.375) if stochastic and variant == "shifted" else (64, 0.5)
        assert kernel["registers"] <= most, (dtype, stochastic, variant)
        granted = -(-kernel["registers"] // 8) * 8
        blocks = REGISTERS_A_MULTIPROCESSOR // (granted * 256)
        assert blocks * 256 / THREADS_A_MULTIPROCESSOR >= share


def test_vector_loops_move_parameters_by_128_bits_only(compiled):
    _, _, found = compiled
    for (dtype, stochastic, variant), loops in found.items():
        kinds = 4 if variant == "plain" else 6  # constant and stored values, uniform, normal; two of truncated normals
        exchanged = 0 if variant != "shifted" else kinds if stochastic else kinds - 2
        assert len(loops) == kinds + exchanged
        assert sum(loop.count("SHFL") > 0 for loop in loops) == exchanged
        for loop in loops:
            vectors = UNIT[dtype] * BYTES[dtype] // 16
            assert loop.count(r"LDG\S*\.128") == vectors
            assert loop.count(r"\bSTG") == loop.count(r"STG\S*\.128") == vectors
            assert not loop.count(r"\b(LDL|STL|LD\.|ST\.|LDS|STS)\b")
    for dtype in UNIT:
        for loop in _congruent(found, dtype):
            assert loop.count(r"\bLDG") == UNIT[dtype] * BYTES[dtype] // 16, "only the parameters are read"


def test_the_loops_use_no_division_no_double_precision_and_no_approximation_but_the_square_roots(compiled):
    _, _, found = compiled
    for (dtype, _, _), loops in found.items():
        for loop in loops:
            assert loop.count("MUFU") == loop.count(r"MUFU\.RSQ")
            if dtype != "float64":
                assert not loop.count(r"\b(DFMA|DADD|DMUL|DSETP|F2F\.F32\.F64|F2F\.F64\.F32)")
    uniform, normal = _congruent(found, "float32")
    assert uniform.count("MUFU") == 0
    assert normal.count("MUFU") == 2, "one square root a pair"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_instructions_an_element_stay_within_the_budget(compiled, dtype):
    architecture, _, found = compiled
    counts = [loop.path / UNIT[dtype] for loop in _congruent(found, dtype)]
    print(f"{architecture} {dtype}: uniform {counts[0]:.2f}, normal {counts[1]:.2f} instructions an element")
    for count, limit in zip(counts, LIMITS[dtype, architecture]):
        assert 10 < count <= limit


def test_a_thread_draws_as_many_blocks_as_it_has_elements_for(compiled):
    _, _, found = compiled
    for dtype, unit in UNIT.items():
        one = unit // 4
        # constant and stored values; uniform and normal; two of truncated normals; these four where numbers are exchanged
        expected = {"plain": [0, 0, one, one], "truncated": [0, 0, *[one] * 4], "shifted": [0, 0, *[one] * 8]}
        for variant, blocks in expected.items():
            assert sorted(_philox_blocks(loop) for loop in _loops(found, dtype, False, variant)) == blocks
            if unit == 8 and dtype != "float64":  # with the rounding's block, which constants take too
                both = 2 if variant == "shifted" else 1
                assert sorted(_philox_blocks(loop) for loop in _loops(found, dtype, True, variant)) == [
                    *[1] * (2 * both),
                    *[one + 1] * ((len(blocks) - 2) if variant != "shifted" else 8),
                ]
