"""Random stream version 1 in plain torch: the definition, slow and on any device.

Every function repeats the operations of the headers in ``csrc/core`` on whole tensors. A fused multiply-add is the exact
product in float64, a two-sum and a rounding to odd before the only rounding to float32; a square root goes through
float64, because torch's float32 one is not correctly rounded on every CPU.

Source: Boldo & Melquiond, "Emulation of a FMA and correctly rounded sums: proved algorithms using rounding to odd", 2008.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import torch

from sff_fast.table import CONSTANT, NORMAL, TABLE, TRUNC_NORMAL, UNIFORM, BoxTask

_M0, _M1, _W0, _W1, _MASK = 0xD2511F53, 0xCD9E8D57, 0x9E3779B9, 0xBB67AE85, 0xFFFFFFFF
CHUNK = 1 << 14
"""Elements at a time: what stays in a core's cache with all temporaries."""

_NAN = {
    torch.float32: (torch.int32, 0x7FC00000),
    torch.bfloat16: (torch.int16, 0x7FC0),
    torch.float16: (torch.int16, 0x7E00),
    torch.float64: (torch.int64, 0x7FF8000000000000),
}


# ---------------------------------------------------------------------- arithmetic
def _f32(value: float) -> float:
    return float(np.float32(value))


def fused(a: torch.Tensor | float, b: torch.Tensor | float, c: torch.Tensor | float) -> torch.Tensor:
    """Correctly rounded float32 ``a * b + c``; numbers count as float32."""
    a, b, c = (x.double() if isinstance(x, torch.Tensor) else _f32(x) for x in (a, b, c))
    product = a * b  # exact: 24 + 24 bits
    total = product + c
    # Rounding the float64 sum again differs from rounding once only where the sum is a midpoint of float32 numbers, or in
    # the denormal range, where midpoints are others. Both are rare: then everything goes the long way.
    midpoint = (total.view(torch.int64) & 0x1FFFFFFF) == 0x10000000
    if bool((midpoint | (total.abs() < 2.0**-126)).any()):
        total = _round_to_odd(product, c, total)
    return total.float()


def _round_to_odd(product: torch.Tensor, c: torch.Tensor | float, total: torch.Tensor) -> torch.Tensor:
    """The sum ``product + c``, nearest in float64 on entry, rounded to odd."""
    back = total - product
    error = (product - (total - back)) + (c - back)
    bits = total.view(torch.int64)
    inexact = torch.isfinite(error) & (error != 0) & ((bits & 1) == 0) & torch.isfinite(total)
    toward = torch.where((error > 0) == (total > 0), 1, -1)
    return torch.where(inexact, bits + toward, bits).view(torch.float64)


def _fused64(a: float, x: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """Correctly rounded float64 ``a * x + c``: exact rational arithmetic wherever the fast path might not be exact."""
    split = 134217729.0  # 2**27 + 1, Dekker
    ah = (split * a) - ((split * a) - a)
    al = a - ah
    xh = (split * x) - ((split * x) - x)
    xl = x - xh
    high = a * x
    low = ((ah * xh - high) + ah * xl + al * xh) + al * xl
    total = high + c
    back = total - high
    error = (high - (total - back)) + (c - back)
    # total + error + low: add the two small parts rounding to odd, then once to nearest (Boldo & Melquiond, Fma)
    rest = error + low
    back = rest - error
    lost = (error - (rest - back)) + (low - back)
    bits = rest.view(torch.int64)
    inexact = (lost != 0) & ((bits & 1) == 0)
    odd = torch.where(inexact, bits + torch.where((lost > 0) == (rest > 0), 1, -1), bits).view(torch.float64)
    result = total + odd

    def tame(v: torch.Tensor) -> torch.Tensor:
        return (v == 0) | ((v.abs() > 2.0**-400) & (v.abs() < 2.0**400))

    scalar_tame = a == 0 or 2.0**-400 < abs(a) < 2.0**400
    wild = ~(tame(x) & tame(c)) if scalar_tame else torch.ones_like(x, dtype=torch.bool)
    cancelled = (total == 0) & (high != 0)
    for i in torch.nonzero((wild | cancelled).reshape(-1)).reshape(-1).tolist():
        result.reshape(-1)[i] = _exact_fma(a, float(x.reshape(-1)[i]), float(c.reshape(-1)[i]))
    return result


def _exact_fma(a: float, x: float, c: float) -> float:
    if not (math.isfinite(a) and math.isfinite(x) and math.isfinite(c)):
        return a * x + c
    exact = Fraction(a) * Fraction(x) + Fraction(c)
    if exact == 0:
        return a * x + c if a * x == 0 else 0.0  # IEEE 754: the sign of an exact zero sum
    try:
        return exact.numerator / exact.denominator
    except OverflowError:
        return math.copysign(math.inf, exact)


def _sqrt(x: torch.Tensor) -> torch.Tensor:
    return x.double().sqrt().float()


def _to_float(x: torch.Tensor) -> torch.Tensor:
    return x.to(torch.float32)


def _signed(x: torch.Tensor) -> torch.Tensor:
    """Unsigned 32-bit words, held in int64, read as signed."""
    return torch.where(x >= 1 << 31, x - (1 << 32), x)


# ---------------------------------------------------------------------- Philox
def philox(seed: int, stream: int, blocks: torch.Tensor) -> list[torch.Tensor]:
    """The four words of Philox4x32-10 blocks.

    Args:
        seed: 64-bit key.
        stream: High half of the counter.
        blocks: int64 block numbers (low half of the counter), of any shape.

    Returns:
        Four int64 tensors of that shape with values in [0, 2**32).
    """
    k0, k1 = seed & _MASK, seed >> 32
    c0, c1 = blocks & _MASK, (blocks >> 32) & _MASK
    c2, c3 = torch.full_like(c0, stream & _MASK), torch.full_like(c0, stream >> 32)
    for _ in range(10):
        # Products wrap at 64 bits, whose low 64 are right. c1 and c3 keep rubbish in their high halves, masked in time.
        p0, p1 = c0 * _M0, c2 * _M1
        c0 = c1.bitwise_xor_(p1 >> 32).bitwise_xor_(k0).bitwise_and_(_MASK)
        c2 = c3.bitwise_xor_(p0 >> 32).bitwise_xor_(k1).bitwise_and_(_MASK)
        c1, c3 = p1, p0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return [c0, c1.bitwise_and_(_MASK), c2, c3.bitwise_and_(_MASK)]


# ---------------------------------------------------------------------- distributions
def uniform(words: torch.Tensor, low: float, width: float) -> torch.Tensor:
    """``fmaf(u, width, low)`` with ``u = (word >> 8) * 2**-24``."""
    return fused(_to_float(words >> 8) * 2.0**-24, width, low)


def _scaled_log(x: torch.Tensor, bias: int, c: float) -> torch.Tensor:
    shifted = x.view(torch.int32).long() - (0x3F3504F3 + (bias << 23))
    exponent = _to_float(shifted >> 23)
    f = ((shifted & 0x7FFFFF) + 0x3F3504F3).int().view(torch.float32) - 1.0
    y = torch.full_like(f, _f32(c * 0.12274210900068283))
    for k in (
        -0.18712803721427917,
        0.20410701632499695,
        -0.24905461072921753,
        0.3332030475139618,
        -0.5000112652778625,
        1.0,
    ):
        y = fused(y, f, c * k)
    return fused(exponent, c * 0.69314718055994530942, y * f)


def box_muller(w0: torch.Tensor, w1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two standard normals from two words (Box & Muller 1958)."""
    q = 0.78539816339744830962
    r = _sqrt(_scaled_log(_to_float((w0 >> 1) | 1), 31, -2.0))
    t = _to_float(_signed((w1 << 2) & _MASK)) * 2.0**-31
    z = t * t
    s = fused(0.00815163554257281 * q * q * q * q * q, z, -0.16662480165576177 * q * q * q)
    s = fused(s, z, 0.9999985694116267 * q) * t
    c = fused(-0.001359782213171741 * q * q * q * q * q * q, z, 0.04165629448876774 * q * q * q * q)
    c = fused(c, z, -0.49999894779466647 * q * q)
    c = fused(c, z, 1.0)
    c = torch.where((w1 & 0x40000000) != 0, -c, c)
    swap = (w1 & 0x80000000) != 0
    return r * torch.where(swap, s, c), r * torch.where(swap, c, s)


_CENTRE = (
    4.6738159653614275e-07,
    -4.4940293264517095e-06,
    -6.015909548295895e-06,
    0.00030725286342203617,
    -0.0017736293375492096,
    -0.005905875936150551,
    0.3488031327724457,
    2.1233131885528564,
)
_TAIL = (
    -1.7238760392501717e-06,
    2.0293487978051417e-05,
    -8.766529936110601e-05,
    0.0001629243342904374,
    -0.00013215409126132727,
    0.00027871778002008796,
    -0.0012109167873859406,
    0.0018978144507855177,
    1.427625298500061,
    5.430261611938477,
)


def _polynomial(coefficients: Sequence[float], x: torch.Tensor) -> torch.Tensor:
    y = torch.full_like(x, _f32(coefficients[0]))
    for k in coefficients[1:]:
        y = fused(y, x, k)
    return y


def truncated_normal(words: torch.Tensor, p: Sequence[float]) -> torch.Tensor:
    """A truncated normal by inversion; ``p`` as :func:`sff_fast.table.parameters_of` gives it."""
    mean, std, a, b, below, above, step = p[:7]
    k = words >> 8
    lower = fused(_to_float(k) + 0.5, step, below)
    upper = fused(_to_float(0xFFFFFF - k) + 0.5, step, above)
    q = torch.minimum(lower, upper)
    q4 = q * 4.0
    w = _scaled_log(fused(-q4, q, q4), 0, -1.0)
    y = _polynomial(_CENTRE, w - 2.5)
    tail = w >= 5.0
    if bool(tail.any()):
        y[tail] = _polynomial(_TAIL, _sqrt(w[tail]) - 4.0)
    magnitude = y * fused(-2.0, q, 1.0)
    z = torch.where(lower < upper, 0.0 - magnitude, magnitude)
    x = fused(std, z, mean)
    return x.clamp(min=a, max=b)


def _block_draws(task: BoxTask, blocks: torch.Tensor) -> torch.Tensor:
    """The float32 random numbers of whole blocks, shape [blocks, 4]."""
    kind, p = task.distribution, task.p
    words = torch.stack(philox(task.seed, task.stream, blocks), dim=-1)
    if kind == UNIFORM:
        return uniform(words, p[0], p[1])
    if kind == NORMAL:
        pairs = torch.stack(box_muller(words[:, 0::2], words[:, 1::2]), dim=-1)
        return fused(p[1], pairs.reshape(words.shape), p[0])
    assert kind == TRUNC_NORMAL
    return truncated_normal(words, p)


def draws(task: BoxTask, index: torch.Tensor) -> torch.Tensor:
    """The float32 random numbers of a task at these numbers of its draw (one-dimensional int64)."""
    if task.distribution == CONSTANT:
        return torch.full(index.shape, task.p[0], dtype=torch.float32, device=index.device)
    if task.distribution == TABLE:
        return task.table.to(index.device)[index]
    blocks, place = torch.unique_consecutive(index >> 2, return_inverse=True)
    return _block_draws(task, blocks).reshape(-1)[place * 4 + (index & 3)]


# ---------------------------------------------------------------------- rounding
def _canonical(x: torch.Tensor, bad: torch.Tensor) -> torch.Tensor:
    integer, nan = _NAN[x.dtype]
    return torch.where(bad, torch.full_like(x.view(integer), nan), x.view(integer)).view(x.dtype)


def narrow(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Float32 to ``dtype``, to nearest even, NaN as the dtype's canonical quiet NaN."""
    bad = torch.isnan(x)
    if dtype == torch.bfloat16:
        bits = x.view(torch.int32).long() & _MASK
        half = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF
        return _canonical(_as_int16(half).view(dtype), bad)
    return _canonical(x.to(dtype), bad)


def narrow_stochastic(x: torch.Tensor, h: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Float32 to bfloat16 or float16 by stochastic rounding with 16 random bits ``h`` (int64) an element."""
    bits = x.view(torch.int32).long() & _MASK
    magnitude, sign, bad = bits & 0x7FFFFFFF, (bits >> 16) & 0x8000, torch.isnan(x)
    if dtype == torch.bfloat16:
        half = torch.where(magnitude >= 0x7F800000, bits, bits + h) >> 16
        return _canonical(_as_int16(half & 0xFFFF).view(dtype), bad)
    normal = ((magnitude - 0x38000000 + (h >> 3)) >> 13).clamp(max=0x7C00)
    small = x.abs().clamp(max=2.0**-13) * 2.0**40
    denormal = (small.long() + h) >> 16
    half = torch.where(magnitude >= 0x38800000, normal, denormal)
    half = torch.where(torch.isinf(x), torch.full_like(half, 0x7C00), half)
    return _canonical(_as_int16(sign | half).view(dtype), bad)


def _as_int16(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x >= 1 << 15, x - (1 << 16), x).to(torch.int16)


def _interpolate(task: BoxTask, old: torch.Tensor, r: torch.Tensor, logical: torch.Tensor) -> torch.Tensor:
    if old.dtype == torch.float64:
        old = torch.zeros_like(old) if task.shrink == 0 else old
        x = _fused64(task.shrink, old, task.perturb * r.double())
        return _canonical(x, torch.isnan(x))
    shrink, perturb = _f32(task.shrink), _f32(task.perturb)
    old = torch.zeros_like(r) if shrink == 0 else old.float()
    x = fused(shrink, old, r * perturb)
    if task.stochastic and task.tensor.dtype in (torch.bfloat16, torch.float16):
        blocks, place = torch.unique_consecutive(logical >> 3, return_inverse=True)
        words = philox(task.round_seed, task.round_stream, blocks)
        word = torch.stack(words, dim=-1).reshape(-1)[place * 4 + ((logical >> 1) & 3)]
        return narrow_stochastic(x, torch.where((logical & 1) == 1, word >> 16, word & 0xFFFF), task.tensor.dtype)
    return narrow(x, task.tensor.dtype)


# ---------------------------------------------------------------------- tasks
@contextlib.contextmanager
def _calling_thread_alone() -> Iterator[None]:
    """Everything on the calling thread with denormals kept, whatever ``torch.set_flush_denormal`` said before.

    The mode belongs to a thread, and torch's pool has others; chunks are too small to gain from them.
    """
    flushed = bool((torch.full((1,), 1e-310, dtype=torch.float64, device="cpu") * 1.0 == 0).item())
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    if flushed:
        torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        if flushed:
            torch.set_flush_denormal(True)


def _rows(task: BoxTask) -> Iterator[tuple[int, int, int, int]]:
    """Memory, draw and logical index of the first element of every row, and the row's length."""
    forms = (task.memory_strides, task.draw_strides, task.logical_strides)
    start = (task.memory_offset, task.draw_offset, task.logical_offset)
    for m in itertools.product(*(range(n) for n in task.size[:-1])):
        yield (*(o + sum(i * s for i, s in zip(m, form)) for o, form in zip(start, forms)), task.size[-1])


def run(tasks: Sequence[BoxTask], threads: int | None = None) -> int:
    """Run a kernel table with plain torch operations, in place.

    Args:
        tasks: Disjoint boxes.
        threads: Unused: everything runs on the calling thread.

    Returns:
        1, the number of threads.
    """
    with torch.no_grad(), _calling_thread_alone():
        for task in tasks:
            _run_task(task)
    return 1


def _run_task(task: BoxTask) -> None:
    if 0 in task.size:
        return
    target = task.tensor.detach()
    device = target.device if target.device.type in ("cpu", "cuda") else torch.device("cpu")
    # Rows are gathered until a chunk is full, so that many short rows cost no more than one long one.
    pending: list[tuple[int, int, int, int]] = []
    count = 0
    for memory, draw, logical, n in _rows(task):
        at = 0
        while at < n:
            take = min(n - at, CHUNK - count)
            steps = (task.memory_strides[-1], task.draw_strides[-1], task.logical_strides[-1])
            pending.append(tuple(o + at * s for o, s in zip((memory, draw, logical), steps)) + (take,))
            at, count = at + take, count + take
            if count == CHUNK:
                _run_rows(task, target, device, pending)
                pending, count = [], 0
    if pending:
        _run_rows(task, target, device, pending)


def _run_rows(task: BoxTask, target: torch.Tensor, device: torch.device, rows: Sequence[tuple[int, int, int, int]]) -> None:
    def indices(place: int, stride: int) -> torch.Tensor:
        parts = [torch.arange(row[3], dtype=torch.int64, device=device) * stride + row[place] for row in rows]
        return torch.cat(parts)

    draw, logical = indices(1, task.draw_strides[-1]), indices(2, task.logical_strides[-1])
    old = torch.cat([_view(target, row, task.memory_strides[-1]).to(device) for row in rows])
    new = _interpolate(task, old, draws(task, draw), logical)
    for row, values in zip(rows, new.split([row[3] for row in rows])):
        _view(target, row, task.memory_strides[-1]).copy_(values)


def _view(target: torch.Tensor, row: tuple[int, int, int, int], stride: int) -> torch.Tensor:
    return torch.as_strided(target, (row[3],), (stride,), target.storage_offset() + row[0])
