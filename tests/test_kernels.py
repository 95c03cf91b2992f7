"""The kernels: the same bits from every backend, accuracy against float64, and behaviour towards the process."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from kernel_cases import BACKENDS, DISTRIBUTIONS, DTYPES, ISAS, bits, forced_isa, philox, run, tasks_for, weights, whole
from scipy import stats

from sff_fast import table
from sff_fast.backends import cpu, reference
from sff_fast.distributions import Constant, Normal, TruncNormal, Uniform

BIG = 10_000_003


# ---------------------------------------------------------------------- the same bits
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("label", ["constant", "uniform", "normal", "trunc_normal"])
def test_cpu_and_reference_agree_on_ten_million_elements_with_one_and_two_threads(label, dtype):
    old = weights(BIG, dtype)
    results = {}
    for name, threads in (("reference", 1), ("cpu", 1), ("cpu", 2)):
        new = old.clone()
        tasks = tasks_for(new, DISTRIBUTIONS[label], shift=3)
        (reference.run if name == "reference" else cpu.run)(tasks, threads)
        results[name, threads] = new
    assert torch.equal(bits(results["cpu", 1]), bits(results["reference", 1]))
    assert torch.equal(bits(results["cpu", 2]), bits(results["reference", 1]))
    assert not torch.equal(bits(old), bits(results["cpu", 1]))


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("label", DISTRIBUTIONS)
def test_every_isa_gives_the_references_bits_at_every_offset_and_length(label, dtype, rounding):
    lengths = [0, 1, 2, 3, 4, 5, 15, 16, 17, 31, 32, 33, 63, 64, 65, 191, 192, 193, 1023, 1024, 1025]
    old = weights(1100, dtype)
    expected = old.clone()
    reference.run(tasks_for(expected, DISTRIBUTIONS[label], rounding=rounding))
    for isa in ISAS:
        with forced_isa(isa):
            for shift in (0, 1, 2, 3, 7):
                for n in lengths:
                    new = old.clone()
                    cpu.run(tasks_for(new[shift : shift + n], DISTRIBUTIONS[label], rounding=rounding, shift=shift))
                    wanted = torch.cat([old[:shift], expected[shift : shift + n], old[shift + n :]])
                    assert torch.equal(bits(new), bits(wanted)), (isa, n, shift)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("label", ["uniform", "normal"])
@pytest.mark.parametrize("turn", [1, 2])
def test_a_run_may_cross_the_wrap_of_the_low_counter_word(isa, label, turn):
    start = turn * (1 << 34) - 75  # block turn * 2**32 lies inside
    old = weights(400, torch.bfloat16)
    expected, new = old.clone(), old.clone()
    reference.run(tasks_for(expected, DISTRIBUTIONS[label], shift=start, rounding="stochastic"))
    run(isa, tasks_for(new, DISTRIBUTIONS[label], shift=start, rounding="stochastic"))
    assert torch.equal(bits(new), bits(expected))


@pytest.mark.parametrize("isa", ISAS)
def test_the_rounding_stream_may_wrap_its_low_counter_word(isa):
    start = (1 << 35) - 77
    old = weights(400, torch.bfloat16)
    expected, new = old.clone(), old.clone()
    reference.run(tasks_for(expected, Constant(0.1), shift=start, rounding="stochastic"))
    run(isa, tasks_for(new, Constant(0.1), shift=start, rounding="stochastic"))
    assert torch.equal(bits(new), bits(expected))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_memory_around_a_run_stays_as_it_was(isa, dtype):
    for n in (1, 7, 33, 500):
        for lead in range(4):
            buffer = torch.full((n + 100,), 3.25, dtype=dtype)
            run(isa, tasks_for(buffer[lead + 20 : lead + 20 + n], Normal(0, 1), shift=lead))
            changed = buffer != 3.25
            assert changed[lead + 20 : lead + 20 + n].all() or n == 1
            changed[lead + 20 : lead + 20 + n] = False
            assert not changed.any()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_specials_follow_the_stream_also_when_torch_flushes_denormals(isa, dtype):
    info = torch.finfo(dtype)
    old = torch.tensor(
        [info.smallest_normal / 4, -info.smallest_normal / 2, math.inf, -math.inf, math.nan, info.max, 0.0, -0.0] * 9, dtype=dtype
    )
    results = []
    for flush in (False, True):
        torch.set_flush_denormal(flush)
        try:
            new, expected = old.clone(), old.clone()
            run(isa, tasks_for(new, Constant(0.0), shrink=0.5, perturb=0.5), threads=2)
            reference.run(tasks_for(expected, Constant(0.0), shrink=0.5, perturb=0.5))
            still = (torch.full((1,), 1e-310, dtype=torch.float64) * 1.0 == 0).item()
        finally:
            torch.set_flush_denormal(False)
        assert still is flush, "the user's mode was not put back"
        assert torch.equal(bits(new), bits(expected))
        results.append(bits(new))
    assert torch.equal(*results)
    assert results[0][0] != 0, "a denormal was flushed"
    quiet = {4: 0x7FC00000, 8: 0x7FF8000000000000}.get(old.element_size(), 0x7FC0 if dtype == torch.bfloat16 else 0x7E00)
    assert results[0][4] == quiet


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_nan_becomes_canonical_wherever_it_stands_in_a_long_run(isa, dtype):
    # groups of vectors are looked after together, in two places at a time: no place of a group may be left out
    n = 4 * 192 + 37
    kinds = {4: torch.int32, 8: torch.int64}.get(torch.empty((), dtype=dtype).element_size(), torch.int16)
    quiet = torch.tensor(math.nan, dtype=dtype).view(kinds)
    other = torch.tensor(-1, dtype=kinds)  # all ones: a NaN of another sign and payload
    for at in range(n):
        new = torch.ones(n, dtype=dtype)
        new.view(kinds)[at] = other
        run(isa, tasks_for(new, Constant(1.0), shrink=0.5, perturb=0.5))
        assert new.view(kinds)[at] == quiet, at
        assert (new == 1).sum() == n - 1, at


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_vectors_of_denormals_alone_are_kept(isa, dtype):
    # no NaN among them: the way of vectors with NaN must not be what keeps the denormals
    old = torch.linspace(-1, 1, 200, dtype=torch.float64).mul(torch.finfo(dtype).smallest_normal).to(dtype)
    new, expected = old.clone(), old.clone()
    run(isa, tasks_for(new, Constant(0.0), shrink=0.75, perturb=0.25))
    reference.run(tasks_for(expected, Constant(0.0), shrink=0.75, perturb=0.25))
    assert torch.equal(bits(new), bits(expected))
    assert (new != 0).sum() > 150


@pytest.mark.parametrize("backend", BACKENDS)
def test_with_shrink_zero_old_values_are_not_read(backend):
    garbage = torch.full((200,), math.nan)
    clean = torch.zeros(200)
    run(backend, tasks_for(garbage, Uniform(-1, 1), shrink=0.0, perturb=1.0))
    run(backend, tasks_for(clean, Uniform(-1, 1), shrink=0.0, perturb=1.0))
    assert torch.equal(garbage, clean)
    assert not garbage.isnan().any()


# ---------------------------------------------------------------------- rounding
def _fma32(a, x, c):
    """Correctly rounded float32 a * x + c by exact rational arithmetic."""
    from fractions import Fraction

    exact = Fraction(float(a)) * Fraction(float(x)) + Fraction(float(c))
    low = np.float32(exact.numerator / exact.denominator)  # at most a double rounding away
    near = [np.nextafter(low, np.float32(-np.inf)), low, np.nextafter(low, np.float32(np.inf))]
    even = [abs(Fraction(float(v)) - exact) for v in near]
    best = min(even)
    picks = [v for v, d in zip(near, even) if d == best]
    return picks[0] if len(picks) == 1 else next(v for v in picks if v.view(np.uint32) % 2 == 0)


def test_the_references_fused_multiply_add_is_correctly_rounded():
    rng = np.random.default_rng(0)
    a = rng.standard_normal(3000).astype(np.float32)
    x = (rng.standard_normal(3000) * 10.0 ** rng.integers(-20, 20, 3000)).astype(np.float32)
    c = np.where(rng.random(3000) < 0.5, -(a * x), rng.standard_normal(3000)).astype(np.float32)
    # products that are a midpoint of two float32 numbers, and an addend that only decides the direction
    a[:500], x[:500] = 1 + 2.0**-12, 1 + (2 * rng.integers(0, 1 << 9, 500) + 1) * 2.0**-12
    c[:500] = 2.0**-60 * rng.choice([-1, 1], 500)
    # the same among denormals, whose midpoints are others
    a[500:600], x[500:600] = (1 + 2.0**-23) * 2.0**-75, (1 - 2.0**-23) * 2.0**-75
    c[500:600] = 2.0**-127 + rng.integers(0, 999, 100) * 2.0**-149
    # apart, since one hard case sends a whole tensor the long way
    for part in (slice(0, 500), slice(500, 600), slice(600, None)):
        got = reference.fused(*(torch.from_numpy(v[part]) for v in (a, x, c))).numpy()
        expected = np.array([_fma32(*row) for row in zip(a[part], x[part], c[part])])
        assert np.array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_the_references_float64_fused_multiply_add_is_correctly_rounded():
    from fractions import Fraction

    rng = np.random.default_rng(1)
    x = rng.standard_normal(2000) * 10.0 ** rng.integers(-30, 30, 2000)
    x[:20], x[20:40] = 5e-324 * rng.integers(1, 99, 20), 1e308
    a = 0.7
    c = np.where(rng.random(2000) < 0.5, -(a * x), rng.standard_normal(2000))
    got = reference._fused64(a, torch.from_numpy(x), torch.from_numpy(c)).numpy()
    exact = [Fraction(a) * Fraction(p) + Fraction(q) for p, q in zip(x, c)]
    assert np.array_equal(got, np.array([e.numerator / e.denominator for e in exact]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_nearest_rounding_equals_torchs_conversion(dtype):
    bits32 = torch.randint(-(1 << 31), 1 << 31, (200_000,), generator=torch.Generator().manual_seed(3)).to(torch.int32)
    x = bits32.view(torch.float32)
    x = torch.cat([x, x.to(dtype).float(), torch.linspace(-1e-7, 1e-7, 5001)])
    expected = torch.where(x.isnan(), torch.full_like(x, math.nan).to(dtype), x.to(dtype))
    assert torch.equal(bits(reference.narrow(x, dtype)[~x.isnan()]), bits(expected[~x.isnan()]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("value", [0.7001, -0.0123456, 3.3e-6, 1.0])
def test_stochastic_rounding_is_unbiased(dtype, value):
    n = 400_000
    x = torch.zeros(n, dtype=dtype)
    cpu.run(tasks_for(x, Constant(value), shrink=0.0, perturb=1.0, rounding="stochastic"))
    value32 = float(np.float32(value))
    unit = float(x.double().max() - x.double().min())
    # two neighbours with probability p and 1 - p: standard error of the mean at most unit / 2 / sqrt(n); 4.5 of them
    assert abs(float(x.double().mean()) - value32) <= 4.5 * unit / 2 / math.sqrt(n)
    assert len(x.unique()) == (1 if value == 1.0 else 2)


@pytest.mark.parametrize("nan", [False, True], ids=["finite and infinite", "with NaN"])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_every_sixteen_bit_pattern_is_rounded_as_in_the_reference(isa, dtype, rounding, nan):
    patterns = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16).view(dtype)
    old = patterns if nan else patterns[~patterns.isnan()]
    for shrink, perturb in ((1.0, 1e-9), (0.37, 2e-5), (2.0**-9, 0.0), (1.7, 0.3)):
        new, expected = old.clone(), old.clone()
        run(isa, tasks_for(new, Constant(1.0), shrink=shrink, perturb=perturb, rounding=rounding))
        reference.run(tasks_for(expected, Constant(1.0), shrink=shrink, perturb=perturb, rounding=rounding))
        assert torch.equal(bits(new), bits(expected))


def test_rounding_bits_are_uncorrelated_with_the_draw_between_parameters_and_between_steps():
    n = 200_000
    old = weights(n, torch.bfloat16)

    def rounding_error(name: str, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        new, exact = old.clone(), old.float()
        plan = whole(Normal(0, 0.02), n, torch.bfloat16, name)
        cpu.run(table.build([(plan, new, 0.7, 0.3)], None, 5, "stochastic", step))
        cpu.run(table.build([(dataclasses.replace(plan, dtype=torch.float32), exact, 0.7, 0.3)], None, 5))
        return (new.double() - exact.double()), exact.double() - 0.7 * old.double()

    error, draw = rounding_error("a", 0)
    for other in (draw, rounding_error("b", 0)[0], rounding_error("a", 1)[0]):
        # |r| sqrt(n) is standard normal under independence
        assert abs(float(torch.corrcoef(torch.stack([error, other]))[0, 1])) * math.sqrt(n) < 4.5


# ---------------------------------------------------------------------- accuracy and distribution
def _words(n: int) -> np.ndarray:
    """A stratified sample of 32-bit words with both ends in full."""
    rng = np.random.default_rng(2)
    ends = np.arange(4096, dtype=np.uint32)
    strata = (np.arange(n, dtype=np.uint64) * (2**32 // n) + rng.integers(0, 2**32 // n, n).astype(np.uint64)).astype(np.uint32)
    return np.concatenate([ends, strata, 0xFFFFFFFF - ends])


def _transform(isa: str, distribution, words: np.ndarray) -> np.ndarray:
    task = table.pack(tasks_for(torch.zeros(4), distribution))
    with forced_isa(isa):
        return cpu._cpu.transform(task, words, isa)


@pytest.mark.parametrize("isa", ISAS)
def test_box_muller_is_within_2e_5_of_float64_at_the_same_u_and_t(isa):
    n = 1 << 20
    w0 = _words(n)
    w1 = np.random.default_rng(3).permutation(w0)
    words = np.stack([w0, w1], axis=1).reshape(-1)
    got = _transform(isa, Normal(0, 1), words).astype(np.float64).reshape(-1, 2)
    u = ((w0 >> 1) | 1).astype(np.float32).astype(np.float64) * 2.0**-31
    t = (w1 << np.uint32(2)).view(np.int32).astype(np.float32).astype(np.float64) * 2.0**-31
    r = np.sqrt(-2 * np.log(u))
    s, c = np.sin(t * np.pi / 4), np.cos(t * np.pi / 4) * np.where(w1 & 0x40000000, -1.0, 1.0)
    swap = (w1 >> 31).astype(bool)
    expected = np.stack([r * np.where(swap, s, c), r * np.where(swap, c, s)], axis=1)
    assert np.isfinite(got).all()
    assert np.abs(got - expected).max() <= 2e-5  # the contract of random stream version 1


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("a", "b"),
    [(-2.0, 2.0), (-10.0, 10.0), (3.0, 9.0), (-6.0, -4.0), (0.5, 0.500001), (-0.1, 5.0), (8.0, 8.4), (-8.4, -8.0)],
    ids=lambda v: f"{v:g}",
)
def test_truncated_normals_are_within_1e_4_of_float64_inversion(isa, a, b):
    words = _words(1 << 18)
    got = _transform(isa, TruncNormal(0, 1, a, b), words).astype(np.float64)
    a, b = float(np.float32(a)), float(np.float32(b))
    u = ((words >> 8).astype(np.float64) + 0.5) * 2.0**-24
    if a >= 0:
        expected = stats.norm.isf(stats.norm.sf(b) + (1 - u) * (stats.norm.sf(a) - stats.norm.sf(b)))
    else:
        expected = stats.norm.ppf(stats.norm.cdf(a) + u * (stats.norm.cdf(b) - stats.norm.cdf(a)))
        upper = stats.norm.isf(stats.norm.sf(b) + (1 - u) * (stats.norm.cdf(b) - stats.norm.cdf(a)))
        expected = np.where(expected > 0, upper, expected)
    assert got.min() >= a
    assert got.max() <= b
    assert np.abs(got - expected)[np.abs(expected) <= 6].max(initial=0) <= 1e-4  # the contract
    assert np.abs(got - expected).max() <= 3e-4  # beyond 6 standard deviations, as measured


@pytest.mark.parametrize("bound", [2.9, 2.94, 3.0, 3.1, 3.3])
def test_the_tail_of_the_quantile_begins_where_the_reference_has_it_begin(bound):
    # w = 5 is |z| = 2.93: just before it the kernels leave the tail's polynomial out, just behind they must not
    old = weights(400_000, torch.float32)
    expected = old.clone()
    reference.run(tasks_for(expected, TruncNormal(0, 1, -bound, bound)))
    for isa in ISAS:
        new = old.clone()
        run(isa, tasks_for(new, TruncNormal(0, 1, -bound, bound)))
        assert torch.equal(bits(new), bits(expected)), isa


@pytest.mark.parametrize("isa", ISAS)
def test_uniform_draws_lie_in_their_bounds_for_all_24_bit_numbers(isa):
    words = np.arange(0, 1 << 32, 1 << 8, dtype=np.uint64).astype(np.uint32)
    for low, high in ((-0.1, 0.3), (1.0, 1.0000001), (-3e38, 3e37), (5.0, 5.0)):
        got = _transform(isa, Uniform(low, high), words)
        assert got.min() >= np.float32(low)
        assert got.max() <= np.float32(high)
        assert got.min() == np.float32(low)


@pytest.mark.parametrize(
    ("distribution", "frozen"),
    [
        (Uniform(-1, 3), stats.uniform(-1, 4)),
        (Normal(0.5, 2), stats.norm(0.5, 2)),
        (TruncNormal(0, 1, -2, 2), stats.truncnorm(-2, 2)),
        (TruncNormal(1, 2, 4, 9), stats.truncnorm(1.5, 4, 1, 2)),
    ],
    ids=lambda v: str(v) if not hasattr(v, "cdf") else "",
)
def test_draws_have_their_distribution(distribution, frozen):
    x = torch.zeros(2_000_000)
    cpu.run(tasks_for(x, distribution, shrink=0.0, perturb=1.0, seed=42))
    x = x.numpy().astype(np.float64)
    assert stats.kstest(x, frozen.cdf).pvalue > 1e-3
    counts, _ = np.histogram(x, bins=frozen.ppf(np.linspace(0, 1, 257)))
    assert stats.chisquare(counts, np.full(256, counts.sum() / 256)).pvalue > 1e-3


def test_neighbouring_parameters_seeds_and_elements_are_uncorrelated():
    n = 1_000_000

    def sample(name: str, seed: int) -> np.ndarray:
        x = torch.zeros(n)
        cpu.run(table.build([(whole(Normal(0, 1), n, name=name), x, 0.0, 1.0)], None, seed))
        return x.numpy().astype(np.float64)

    base = sample("layer.0.weight", 0)
    others = [sample("layer.1.weight", 0), sample("layer.0.weight", 1), np.roll(base, 1), np.roll(base, 4)]
    others.append(sample("layer.0.weight", 1 << 32))
    for other in others:
        for x, y in ((base, other), (base**2, other**2)):
            assert abs(np.corrcoef(x, y)[0, 1]) * math.sqrt(n) < 4.5  # standard normal under independence


# ---------------------------------------------------------------------- process
def _child(x: torch.Tensor, queue: multiprocessing.Queue) -> None:
    # nothing of torch that runs on its own thread pool: that pool does not survive a fork
    cpu.run(tasks_for(x, Normal(0, 1)), 2)
    queue.put(x.numpy().tobytes())


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_the_kernels_work_after_fork():
    x, y = weights(700_000, torch.float32), weights(700_000, torch.float32)
    assert cpu.run(tasks_for(x, Normal(0, 1)), 2) == 2
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=_child, args=(y, queue))
    child.start()
    assert queue.get(timeout=60) == x.numpy().tobytes()
    child.join()


def test_several_python_threads_may_run_the_kernels_at_once():
    expected = weights(700_001, torch.float32)
    cpu.run(tasks_for(expected, Uniform(0, 1)), 1)
    results = [weights(700_001, torch.float32) for _ in range(6)]
    workers = [threading.Thread(target=cpu.run, args=(tasks_for(x, Uniform(0, 1)), 2)) for x in results]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(torch.equal(x, expected) for x in results)


def test_other_python_threads_run_meanwhile():
    x = weights(30_000_000, torch.float32)
    packed, order = table.pack(tasks_for(x, Normal(0, 1))), []

    def call() -> None:
        order.append("before")
        cpu._cpu.smooth(packed, 1, "baseline")
        order.append("after")

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # from here on a thread runs until it gives the interpreter's lock away by itself
    try:
        worker = threading.Thread(target=call)
        worker.start()
        order.append("meanwhile")
        worker.join()
    finally:
        sys.setswitchinterval(interval)
    assert order == ["before", "meanwhile", "after"]


def test_more_threads_than_cores_do_the_same_work():
    expected = weights(9_000_001, torch.float32)
    cpu.run(tasks_for(expected, Normal(0, 1)), 1)
    x = weights(9_000_001, torch.float32)
    assert cpu.run(tasks_for(x, Normal(0, 1)), 32) == 32
    assert torch.equal(x, expected)


def test_no_thread_stays_behind():
    from pathlib import Path

    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("needs hardware: no /proc on this system")
    x = weights(4_000_000, torch.float32)
    before = len(list(tasks.iterdir()))
    assert cpu.run(tasks_for(x, Uniform(0, 1)), 2) == 2
    assert len(list(tasks.iterdir())) == before


MEMORY = """
import torch
import sff_fast
from torch import nn

class Model(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.a = nn.Parameter(torch.empty(n).normal_())
        self.b = nn.Parameter(torch.empty(n).uniform_())
        self.c = nn.Parameter(torch.ones(n))
        self.d = nn.Parameter(torch.empty(n // 64, 64))
        nn.init.trunc_normal_(self.d)
        with torch.no_grad():
            self.d[3:7, 5:9] = 0.0

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))

sff_fast.smooth_(Model(640), lambda: Model(640))
n = 64 * 200_000
plan = sff_fast.trace(lambda: Model(n))
model = Model(n)  # private pages, all resident
open("/proc/self/clear_refs", "w").write("5")
before = peak()
report = sff_fast.smooth_(model, plan, threads=2)
print(peak() - before, *report.backends.values())
"""


def test_smoothing_takes_at_most_one_mebibyte_beyond_the_parameters():
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, env=_environment(), check=False)
    assert done.returncode == 0, done.stderr
    kibibytes, backend = done.stdout.split()
    assert backend == "cpu"
    assert int(kibibytes) <= 1024


def _environment() -> dict[str, str]:
    import os
    from pathlib import Path

    here = Path(__file__).parent
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}


def test_philox_of_every_isa_equals_the_references_for_many_blocks():
    for start in (0, (1 << 32) - 40, (1 << 40) + 3):
        expected = philox("reference")(99, 1 << 63, start, 100)
        for isa in ISAS:
            assert np.array_equal(philox(isa)(99, 1 << 63, start, 100), expected)
