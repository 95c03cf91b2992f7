"""What each instruction does: a function of the machine, the instruction and the threads that execute it.

An instruction is found by its opcode; modifiers between opcode and type have to be among those named at its function.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ptx.arithmetic import NAN32, fma32, fma64, to_bfloat16, to_float16, to_integer
from ptx.parse import Instruction, PtxError, vector

TYPES = {
    f"{kind}{8 * size}": np.dtype(f"{letter}{size}")
    for kind, letter, sizes in (
        ("u", "u", (1, 2, 4, 8)),
        ("b", "u", (1, 2, 4, 8)),
        ("s", "i", (1, 2, 4, 8)),
        ("f", "f", (2, 4, 8)),
    )
    for size in sizes
}
_REGISTRY: dict[str, tuple[Callable[..., None], frozenset[str]]] = {}


def instruction(names: str, modifiers: str = "") -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator: the function of some opcodes, with the modifiers that it knows."""

    def register(function: Callable[..., None]) -> Callable[..., None]:
        for name in names.split():
            assert name not in _REGISTRY, name
            _REGISTRY[name] = function, frozenset(modifiers.split())
        return function

    return register


def function_of(i: Instruction) -> Callable[..., None]:
    """The function of an instruction.

    Raises:
        PtxError: The opcode or one of its modifiers is unknown.
    """
    function, known = _REGISTRY.get(i.name[0], (None, frozenset()))
    unknown = [part for part in i.name[1:] if part not in known and part not in TYPES and part != "pred"]
    if function is None or unknown:
        raise PtxError(f"unknown instruction{' modifier ' + unknown[0] if function and unknown else ''}: {i.text}")
    return function


def integer_of(type_: str) -> np.dtype:
    """The unsigned integer of a type's width."""
    return np.dtype(f"u{TYPES[type_].itemsize}")


def _result(m, i: Instruction, values: np.ndarray, threads: np.ndarray, type_: str = "") -> None:
    """Write a result; an fp32 NaN is the only one a GPU makes."""
    type_ = type_ or i.type
    if type_ == "f32":
        values = values.astype(np.float32)
        values = np.where(np.isnan(values), NAN32.view(np.float32), values)
    m.write(i.operands[0], type_, values, threads)


# ---------------------------------------------------------------------- memory and moves
@instruction("ld", "param global v2 v4")
def _load(m, i, threads):
    registers, width = vector(i.operands[0]), TYPES[i.type].itemsize
    memory = m.parameters if "param" in i.name else m.memory
    data = memory.load(m.address(i.operands[1], threads), width * len(registers), threads, i.text)
    for k, register in enumerate(registers):
        part = np.ascontiguousarray(data[:, k * width : (k + 1) * width])
        m.write(register, i.type, part.view(TYPES[i.type])[:, 0], threads)


@instruction("st", "global v2 v4")
def _store(m, i, threads):
    parts = [np.ascontiguousarray(m.read(register, i.type, threads)).view(np.uint8) for register in vector(i.operands[1])]
    data = np.concatenate([part.reshape(len(threads), -1) for part in parts], axis=1)
    m.memory.store(m.address(i.operands[0], threads), data, threads, i.text)


@instruction("mov")
def _move(m, i, threads):
    target, source = i.operands
    if not (target.startswith("{") or source.startswith("{")):
        m.write(target, i.type, m.read(source, i.type, threads), threads)
        return
    registers = vector(target if target.startswith("{") else source)
    bits = 8 * TYPES[i.type].itemsize // len(registers)
    part = f"u{bits}"
    if target.startswith("{"):
        whole = m.read(source, i.type, threads).astype(np.uint64)
        for k, register in enumerate(registers):
            m.write(register, part, (whole >> np.uint64(k * bits)).astype(TYPES[part]), threads)
    else:
        whole = np.zeros(len(threads), np.uint64)
        for k, register in enumerate(registers):
            whole |= m.read(register, part, threads).astype(np.uint64) << np.uint64(k * bits)
        m.write(target, i.type, whole.astype(integer_of(i.type)), threads)


@instruction("cvta", "to global")
def _to_space(m, i, threads):
    m.write(i.operands[0], i.type, m.read(i.operands[1], i.type, threads), threads)


# ---------------------------------------------------------------------- floating point and integers
def _arithmetic(names: str, modifiers: str, formula: Callable[..., np.ndarray]) -> None:
    @instruction(names, modifiers)
    def run(m, i, threads):
        _result(m, i, formula(*(m.read(source, i.type, threads) for source in i.operands[1:])), threads)


_arithmetic("add", "rn", lambda a, b: a + b)
_arithmetic("sub", "rn", lambda a, b: a - b)
_arithmetic("neg", "", lambda a: -a)
_arithmetic("abs", "", np.abs)
_arithmetic("sqrt", "rn", np.sqrt)
_arithmetic("rcp", "rn", lambda a: a.dtype.type(1) / a)
_arithmetic("min", "", lambda a, b: np.fmin(a, b) if a.dtype.kind == "f" else np.minimum(a, b))
_arithmetic("max", "", lambda a, b: np.fmax(a, b) if a.dtype.kind == "f" else np.maximum(a, b))
_arithmetic("fma", "rn", lambda a, b, c: fma32(a, b, c) if a.dtype == np.float32 else fma64(a, b, c))


@instruction("div rem", "rn")
def _divide(m, i, threads):
    a, b = (m.read(source, i.type, threads) for source in i.operands[1:])
    if a.dtype.kind == "f":
        values = a / b
    elif a.dtype.kind == "u" and (b != 0).all():
        values = a // b if i.name[0] == "div" else a % b
    else:
        raise PtxError(f"signed division, or by zero: {i.text}")
    _result(m, i, values, threads)


def _product(i: Instruction, a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, str]:
    """The part of an integer product that the modifiers ask for, and its type."""
    bits = 8 * a.dtype.itemsize
    if "lo" in i.name:
        return a * b, i.type
    if bits == 64:
        raise PtxError(f"upper half of a 64-bit product: {i.text}")
    wide = np.dtype(f"{a.dtype.kind}{2 * a.dtype.itemsize}")
    product = a.astype(wide) * b.astype(wide)
    if "wide" in i.name:
        return product, f"{i.type[0]}{2 * bits}"
    return (product >> wide.type(bits)).astype(a.dtype), i.type


@instruction("mul", "rn lo hi wide")
def _multiply(m, i, threads):
    a, b = (m.read(source, i.type, threads) for source in i.operands[1:])
    if a.dtype.kind == "f":
        _result(m, i, a * b, threads)
    else:
        product, type_ = _product(i, a, b)
        _result(m, i, product, threads, type_)


@instruction("mad", "lo hi wide")
def _multiply_add(m, i, threads):
    a, b = (m.read(source, i.type, threads) for source in i.operands[1:3])
    product, type_ = _product(i, a, b)
    _result(m, i, product + m.read(i.operands[3], type_, threads), threads, type_)


# ---------------------------------------------------------------------- bits
def _bits(name: str, formula: Callable[..., np.ndarray]) -> None:
    @instruction(name)
    def run(m, i, threads):
        m.write(i.operands[0], i.type, formula(*(m.read(source, i.type, threads) for source in i.operands[1:])), threads)


_bits("and", np.bitwise_and)
_bits("or", np.bitwise_or)
_bits("xor", np.bitwise_xor)
_bits("not", np.invert)


@instruction("shl shr")
def _shift(m, i, threads):
    a = m.read(i.operands[1], i.type, threads)
    bits = 8 * a.dtype.itemsize
    by = m.read(i.operands[2], "u32", threads)
    near = np.minimum(by, bits - 1).astype(a.dtype)
    if i.name[0] == "shl":
        values = np.where(by < bits, a << near, a.dtype.type(0))
    elif a.dtype.kind == "i":
        values = a >> near  # fills up with the sign, however far
    else:
        values = np.where(by < bits, a >> near, a.dtype.type(0))
    m.write(i.operands[0], i.type, values, threads)


@instruction("shf", "l r wrap")
def _funnel(m, i, threads):
    low, high, by = (m.read(source, "u32", threads).astype(np.uint64) for source in i.operands[1:])
    both, by = high << np.uint64(32) | low, by & np.uint64(31)
    values = (both << by) >> np.uint64(32) if "l" in i.name else both >> by
    m.write(i.operands[0], "u32", values.astype(np.uint32), threads)


@instruction("bfi")
def _insert_bits(m, i, threads):
    a, b = (m.read(source, i.type, threads).astype(np.uint64) for source in i.operands[1:3])
    place, length = (int(text) for text in i.operands[3:])
    mask = np.uint64(((1 << length) - 1) << place & (1 << 8 * TYPES[i.type].itemsize) - 1)
    m.write(i.operands[0], i.type, (b & ~mask | a << np.uint64(place) & mask).astype(integer_of(i.type)), threads)


@instruction("bfe")
def _extract_bits(m, i, threads):
    if i.type not in ("u32", "u64"):
        raise PtxError(f"signed extraction: {i.text}")
    place, length = (int(text) for text in i.operands[2:])
    a = m.read(i.operands[1], i.type, threads)
    m.write(i.operands[0], i.type, a >> a.dtype.type(place) & a.dtype.type((1 << length) - 1), threads)


@instruction("prmt")
def _permute(m, i, threads):
    low, high, selector = (m.read(source, "u32", threads).astype(np.uint64) for source in i.operands[1:])
    both, values = high << np.uint64(32) | low, np.zeros(len(threads), np.uint64)
    for k in range(4):
        byte = selector >> np.uint64(4 * k) & np.uint64(15)
        if (byte & np.uint64(8)).any():
            raise PtxError(f"replicated sign: {i.text}")
        values |= (both >> byte * np.uint64(8) & np.uint64(255)) << np.uint64(8 * k)
    m.write(i.operands[0], "u32", values.astype(np.uint32), threads)


@instruction("lop3")
def _logic(m, i, threads):
    a, b, c = (m.read(source, "u32", threads) for source in i.operands[1:4])
    table, values = int(i.operands[4], 0), np.zeros(len(threads), np.uint32)
    for k in range(8):
        if table >> k & 1:
            values |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
    m.write(i.operands[0], "u32", values, threads)


# ---------------------------------------------------------------------- choices
@instruction("selp")
def _select(m, i, threads):
    a, b = (m.read(source, i.type, threads) for source in i.operands[1:3])
    m.write(i.operands[0], i.type, np.where(m.read(i.operands[3], "pred", threads), a, b), threads)


_COMPARE = {"eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal}


@instruction("setp", "eq ne lt le gt ge equ neu ltu leu gtu geu num nan lo ls hi hs")
def _compare(m, i, threads):
    if len(i.name) != 3 or len(i.operands) != 3 or "|" in i.operands[0]:
        raise PtxError(f"comparison with a second operation or result: {i.text}")
    how = i.name[1]
    a, b = (m.read(source, i.type, threads) for source in i.operands[1:])
    if a.dtype.kind == "f":
        nan = np.isnan(a) | np.isnan(b)
        if how in ("num", "nan"):
            values = nan if how == "nan" else ~nan
        elif how in _COMPARE:
            values = _COMPARE[how](a, b) & ~nan
        else:
            values = _COMPARE[how[:-1]](a, b) | nan
    else:
        values = _COMPARE[{"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}.get(how, how)](a, b)
    m.write(i.operands[0], "pred", values, threads)


# ---------------------------------------------------------------------- conversions
_PAIRS = {"bf16x2": to_bfloat16, "f16x2": to_float16}
_HALVES = {"bf16": to_bfloat16, "f16": to_float16}


@instruction("cvt", "rn rzi bf16 bf16x2 f16x2")
def _convert(m, i, threads):
    target, source = i.name[-2:]
    if target in _PAIRS and i.name[1] == "rn" and source == "f32":
        high, low = (_PAIRS[target](m.read(operand, "f32", threads)).astype(np.uint32) for operand in i.operands[1:])
        m.write(i.operands[0], "u32", high << np.uint32(16) | low, threads)
    elif target in _HALVES and i.name[1] == "rn" and source == "f32":
        m.write(i.operands[0], "u16", _HALVES[target](m.read(i.operands[1], "f32", threads)), threads)
    elif source == "bf16" and target == "f32":
        bits = m.read(i.operands[1], "u16", threads).astype(np.uint32) << np.uint32(16)
        _result(m, i, bits.view(np.float32), threads, "f32")
    elif source in TYPES and target in TYPES:
        values = m.read(i.operands[1], source, threads)
        if source[0] == "f" and target[0] != "f":
            if "rzi" not in i.name:
                raise PtxError(f"conversion to an integer that does not truncate: {i.text}")
            values = to_integer(np.trunc(values), TYPES[target])
        else:
            values = values.astype(TYPES[target])
        _result(m, i, values, threads, target)
    else:
        raise PtxError(f"unknown conversion: {i.text}")


# ---------------------------------------------------------------------- warps
@instruction("redux", "sync max min")
def _reduce(m, i, threads):
    values = m.read(i.operands[1], i.type, threads)
    take = np.maximum if "max" in i.name else np.minimum
    result = np.empty_like(values)
    for warp in m.warps(threads, i.operands[2], i.text):
        result[warp] = take.reduce(values[warp])
    m.write(i.operands[0], i.type, result, threads)


@instruction("shfl", "sync down bfly idx")
def _shuffle(m, i, threads):
    values, by = m.read(i.operands[1], "u32", threads), m.read(i.operands[2], "u32", threads)
    if (m.read(i.operands[3], "u32", threads) != 31).any():
        raise PtxError(f"shuffle within part of a warp: {i.text}")
    result, there = np.empty_like(values), np.ones(len(threads), bool)
    for warp in m.warps(threads, i.operands[4], i.text):
        lane = np.arange(len(warp))
        source = {"down": lane + by[warp], "bfly": lane ^ by[warp], "idx": by[warp] & 31}[i.name[2]]
        outside = source >= len(warp)
        if outside.any() and i.name[2] != "down":
            raise PtxError(f"shuffle from a lane that is not there: {i.text}")
        result[warp] = values[warp][np.where(outside, lane, source)]  # beyond the last lane a thread gets its own value
        there[warp] = ~outside
    register, _, inside = i.operands[0].partition("|")
    m.write(register, "u32", result, threads)
    if inside:
        m.write(inside, "pred", there, threads)
