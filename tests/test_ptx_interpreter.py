"""The PTX interpreter by itself, on small pieces of PTX: known answers, and what it refuses."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from ptx import Launch, PtxError, Region, kernels
from ptx.arithmetic import fma32, to_bfloat16, to_float16, to_integer

HEAD = """
.version 9.0
.entry k(.param .u64 k_param_0)
{
    .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<9>; .reg .pred %p<9>;
    ld.param.u64 %rd1, [k_param_0];
    mov.u32 %r1, %tid.x;
    mul.wide.u32 %rd2, %r1, 4;
    add.s64 %rd3, %rd1, %rd2;
"""


def run(body: str, x: np.ndarray, threads: int = 32, **region) -> Launch:
    """Threads with %r1 their number and %rd3 the address of their element of ``x``."""
    (kernel,) = kernels(HEAD + body + "ret;\n}").values()
    memory = Region(x.ctypes.data, x.nbytes, **region)
    return Launch(kernel, struct.pack("<Q", x.ctypes.data), [memory], 1, threads).run()


def result(body: str, x: np.ndarray) -> np.ndarray:
    x = x.copy()
    run(f"ld.global.b32 %r2, [%rd3];\n{body}\nst.global.b32 [%rd3], %r3;", x, len(x))
    return x


WORDS = np.array([0, 1, 2, 0x80000000, 0xFFFFFFFF, 0x12345678, 31, 32], np.uint32)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("add.s32 %r3, %r2, 1;", WORDS + np.uint32(1)),
        ("shr.s32 %r3, %r2, 40;", (WORDS.view(np.int32) >> 31).view(np.uint32)),
        ("shl.b32 %r3, %r2, 32;", np.zeros(8, np.uint32)),
        ("mul.hi.u32 %r3, %r2, -766435501;", (WORDS.astype(np.uint64) * 0xD2511F53 >> 32).astype(np.uint32)),
        ("shf.l.wrap.b32 %r3, 305419896, %r2, 8;", (WORDS << 8) | np.uint32(0x12)),
        ("prmt.b32 %r3, %r2, 0, 291;", WORDS.byteswap()),
        ("bfi.b32 %r3, %r2, 0, 16, 16;", WORDS << 16),
        ("lop3.b32 %r3, %r2, 255, 0, 192;", WORDS & np.uint32(255)),
        ("setp.gt.s32 %p1, %r2, 0; selp.b32 %r3, 7, 9, %p1;", np.where(WORDS.view(np.int32) > 0, 7, 9).astype(np.uint32)),
        ("{ .reg .b32 tmp; mov.b64 {tmp, %r3}, 81985529216486895; }", np.full(8, 0x01234567, np.uint32)),
        (
            "setp.lt.u32 %p1, %r2, 5; mov.u32 %r3, 3;\n@%p1 bra $L;\nmov.u32 %r3, 4;\n$L: ",
            np.where(WORDS < 5, 3, 4).astype(np.uint32),
        ),
    ],
    ids=lambda v: v.split()[0] if isinstance(v, str) else "",
)
def test_integer_instructions_give_known_answers(body, expected):
    assert (result(body, WORDS) == expected).all()


@pytest.mark.parametrize(
    ("body", "x", "expected"),
    [
        ("fma.rn.f32 %f3, %f2, %f2, 0fBF800000;", 1 + 2.0**-12, 2.0**-11 + 2.0**-24),
        ("sqrt.rn.f32 %f3, %f2;", 2.0, np.sqrt(np.float32(2))),
        ("div.rn.f32 %f3, 0f3F800000, %f2;", 3.0, np.float32(1) / np.float32(3)),
        ("min.f32 %f3, %f2, 0f3F800000;", np.nan, 1.0),
        ("mul.rn.f32 %f3, %f2, 0f00800000;", 0.25, 2.0**-128),  # a denormal result is kept
    ],
    ids=["fma", "sqrt", "div", "min", "denormal"],
)
def test_floating_point_instructions_round_once(body, x, expected):
    values = np.full(4, x, np.float32)
    got = result(f"mov.b32 %f2, %r2; {body} mov.b32 %r3, %f3;", values.view(np.uint32)).view(np.float32)
    assert (got == np.float32(expected)).all()


def test_a_nan_is_the_one_that_a_gpu_makes():
    nan = np.full(4, 0xFFC01234, np.uint32)
    assert (result("mov.b32 %f2, %r2; add.rn.f32 %f3, %f2, 0f00000000; mov.b32 %r3, %f3;", nan) == 0x7FFFFFFF).all()
    assert to_bfloat16(np.float32([np.nan]))[0] == to_float16(np.float32([np.nan]))[0] == 0x7FFF


def test_fused_multiply_add_does_not_round_twice():
    # 1 + 2^-24 + 2^-60 lies above the midpoint of two fp32 numbers by less than fp64 shows.
    a, b = np.float32([1 + 2.0**-12]), np.float32([2.0**-48 * (1 + 2.0**-12)])
    assert fma32(b, a, np.float32([0]))[0] == np.float32(2.0**-48 * (1 + 2.0**-11))
    assert fma32(np.float32([2.0**-30]), np.float32([2.0**-30]), np.float32([1 + 2.0**-23]))[0] == np.float32(1 + 2.0**-23)
    half = np.float32([2.0**-24])
    assert fma32(half, np.float32([1 + 2.0**-23]), np.float32([1.0]))[0] == np.float32(1 + 2.0**-23)


def test_integers_from_numbers_saturate():
    x = np.float32([-1e20, 1e20, np.nan, -3.0])
    assert to_integer(x, np.dtype("i4")).tolist() == [-(1 << 31), (1 << 31) - 1, 0, -3]


def test_lanes_of_a_warp_reduce_and_shuffle():
    x = np.arange(64, dtype=np.uint32) * 3 % 50
    got = x.copy()
    run("ld.global.b32 %r2, [%rd3]; redux.sync.max.u32 %r3, %r2, -1; st.global.b32 [%rd3], %r3;", got, 64)
    assert (got == np.repeat([x[:32].max(), x[32:].max()], 32)).all()
    got = x.copy()
    run("ld.global.b32 %r2, [%rd3]; shfl.sync.down.b32 %r3, %r2, 8, 31, -1; st.global.b32 [%rd3], %r3;", got, 64)
    assert (got[:24] == x[8:32]).all()
    assert (got[24:32] == x[24:32]).all()


OTHER = "xor.b32 %r2, %r1, 1; mul.wide.u32 %rd4, %r2, 4; add.s64 %rd4, %rd4, %rd1;"
"""The address of a neighbour's element in %rd4."""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("st.global.b32 [%rd3+4], %r1;", "out of bounds: 4 bytes"),
        ("ld.global.b32 %r2, [%rd1+-4];", "out of bounds"),
        ("st.global.b32 [%rd3+2], %r1;", "misaligned 4-byte access by thread 0"),
        ("ld.global.v2.u32 {%r2, %r3}, [%rd3];", "misaligned 8-byte access by thread 1"),
        ("st.global.b32 [%rd1], %r1;", "race: "),
        ("ld.global.b32 %r2, [%rd1]; st.global.b32 [%rd3], %r2;", "race: "),
        ("st.global.b32 [%rd3], %r1;" + OTHER + "ld.global.b32 %r2, [%rd4];", "race: "),
        ("add.s32 %r2, %r5, 1;", "a register that nothing has written"),
        ("$L: bra $L;", "instructions and no end"),
        ("add.rz.f32 %f1, 0f00000000, 0f00000000;", "unknown instruction modifier rz"),
        ("mul.rn.ftz.f32 %f1, 0f00000000, 0f00000000;", "unknown instruction modifier ftz"),
        ("sin.approx.f32 %f1, 0f00000000;", "unknown instruction"),
        (".shared .b8 s[4];", "local or shared memory"),
        ("setp.ne.u32 %p1, %r1, 0;\n@%p1 redux.sync.max.u32 %r3, %r1, -1;", "31 lanes of a warp"),
    ],
)
def test_what_a_gpu_would_not_allow_is_refused_with_the_instruction(body, message):
    with pytest.raises(PtxError, match=message):
        run(body, np.zeros(32, np.uint32))


def test_many_threads_may_read_what_nobody_writes_and_read_only_memory_is_not_written():
    run("ld.global.b32 %r2, [%rd1];", np.zeros(32, np.uint32))
    with pytest.raises(PtxError, match="write into read-only memory"):
        run("st.global.b32 [%rd3], %r1;", np.zeros(32, np.uint32), writable=False)
