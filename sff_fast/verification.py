"""Checks a plan against really constructed models.

Every test has a bound that a right plan exceeds with a probability below :data:`FALSE_ALARM` in all tests of one call
together (Bonferroni). The bounds on moments and on the Kolmogorov-Smirnov distance hold for every sample size.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from sff_fast.boxes import Box, paint, positions, row_major
from sff_fast.distributions import (
    Constant,
    Distribution,
    Materialized,
    Normal,
    TruncNormal,
    Uniform,
    is_random,
    truncated_mass,
)
from sff_fast.errors import ArgumentError, PlanError
from sff_fast.plan import InitPlan, ParameterPlan, Segment
from sff_fast.tracing.state import LOCK, HostGenerators, preserved

FALSE_ALARM = 1e-6
KS_LIMIT = 200_000
"""Elements that a Kolmogorov-Smirnov distance is computed from; a larger sample is thinned evenly."""


@dataclass
class VerifyRow:
    """One segment of a plan, checked over all seeds.

    Args:
        name: The parameter.
        index: Number of the segment.
        distribution: What the plan says.
        elements: Elements that no later segment hides.
        worst: The greatest ratio of a test's statistic to its bound; above 1 the plan is wrong.
        problems: One line for each failed test.
        note: What was not tested.
    """

    name: str
    index: int
    distribution: str
    elements: int
    worst: float = 0.0
    problems: list[str] = field(default_factory=list)
    note: str = ""

    def test(self, statistic: float, bound: float, label: str) -> None:
        """Note the result of a test whose statistic must not exceed its bound."""
        if bound > 0:
            self.worst = max(self.worst, statistic / bound)
        if not statistic <= bound:
            self.worst = max(self.worst, math.inf if bound <= 0 else self.worst)
            self.problems.append(f"{label}: {statistic:.6g} exceeds {bound:.6g}")


@dataclass
class VerifyReport:
    """The outcome of :func:`verify`; ``str()`` gives a table.

    Args:
        rows: One row a segment.
        seeds: The seeds that models were constructed with.
        problems: Differences that concern no single segment.
    """

    rows: list[VerifyRow]
    seeds: tuple[int, ...]
    problems: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every test passed."""
        return not self.problems and not self.failures

    @property
    def failures(self) -> list[VerifyRow]:
        """The rows with a failed test."""
        return [row for row in self.rows if row.problems]

    def __str__(self) -> str:
        rows = [("parameter", "segment", "plan", "elements", "worst/bound", "result")]
        for row in self.rows:
            result = "; ".join(row.problems) or ("ok" + (f" ({row.note})" if row.note else ""))
            rows.append((row.name, str(row.index), row.distribution, f"{row.elements:,}", f"{row.worst:.3f}", result))
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        lines.insert(1, "  ".join("-" * width for width in widths))
        seeds = ", ".join(map(str, self.seeds))
        wrong = len(self.failures) + len(self.problems)
        verdict = "the plan holds" if self.ok else f"{wrong} difference{'s' if wrong > 1 else ''}"
        return "\n".join([*lines, "", *self.problems, f"{len(self.rows)} segments, seeds {seeds}: {verdict}"])


def verify(factory: Callable[[], nn.Module], plan: InitPlan, seeds: Iterable[int] = (1, 2)) -> VerifyReport:
    """Construct a model for several seeds and test every segment of its plan.

    Constants and tables must be equal; for the others bounds, mean, variance and the whole distribution are tested, whether
    values repeat, whether they change with the seed, and whether draws that the plan calls one are one and others are not.
    The global generators are left as found.

    Args:
        factory: The constructor.
        plan: The plan to check.
        seeds: Two or more seeds, default (1, 2).

    Returns:
        The report.

    Raises:
        ArgumentError: There are fewer than two seeds.
        PlanError: The plan does not fit the model's names and shapes.
    """
    seeds = tuple(int(seed) for seed in seeds)
    if len(set(seeds)) < 2:
        raise ArgumentError(f"seeds must hold two or more different seeds, got {seeds}")
    rows = {
        (p.name, i): VerifyRow(p.name, i, str(s.distribution), 0)
        for p in plan.parameters.values()
        for i, s in enumerate(p.segments)
    }
    report = VerifyReport(list(rows.values()), seeds)
    tests = 16 * max(1, len(rows)) * len(seeds)
    doubt = math.log(2 * tests / FALSE_ALARM)
    first: dict[tuple[str, int], torch.Tensor] = {}
    for number, seed in enumerate(seeds):
        model = _construct(factory, seed)
        parameters = dict(model.named_parameters())
        for name, expected, found in plan.check(parameters):
            message = f"{name!r} has dtype {found}, the plan has {expected}"
            if message not in report.problems:
                report.problems.append(message)
        samples: dict[str, list[tuple[ParameterPlan, int, torch.Tensor]]] = {}
        for name, tensor in parameters.items():
            parameter = plan[name]
            if parameter.numel == 0:
                continue
            flat = tensor.detach().cpu().reshape(-1).contiguous()  # what has one dimension keeps its stride otherwise
            owner, unit = paint(parameter.numel, [s.box for s in parameter.segments])
            for i, segment in enumerate(parameter.segments):
                row, key = rows[(parameter.name, i)], (parameter.name, i)
                shown = _shown(owner, unit, i, segment)
                values = _box_of(flat, segment)[shown]
                row.elements = values.numel()
                if row.elements == 0:
                    row.note = "hidden by later segments"
                    continue
                _check(row, segment, parameter.shape, shown, values, plan, doubt)
                if number == 0:
                    first[key] = values
                elif number == 1 and is_random(segment.distribution):
                    _check_changes(row, segment, first[key], values)
                if segment.draw:
                    samples.setdefault(segment.draw, []).append((parameter, i, flat))
        _check_sharing(rows, samples)
    return report


def _construct(factory: Callable[[], nn.Module], seed: int) -> nn.Module:
    with LOCK, preserved():
        HostGenerators(seed, seed)
        return factory()


def _shown(owner: np.ndarray, unit: int, index: int, segment: Segment) -> torch.Tensor:
    """Which elements of a segment no later one hides, in its row-major order."""
    if owner.size == 1:
        return torch.full((segment.numel,), bool(owner[0] == index))
    mine = torch.from_numpy(owner == index)
    return mine[torch.from_numpy(positions(segment.box) // unit)]


def _box_of(flat: torch.Tensor, segment: Segment) -> torch.Tensor:
    # as_strided counts from the start of the storage, which a parameter may share with others.
    return torch.as_strided(flat, segment.size, segment.strides, flat.storage_offset() + segment.offset).reshape(-1)


# ---------------------------------------------------------------------- one segment
def _check(
    row: VerifyRow,
    segment: Segment,
    shape: tuple[int, ...],
    shown: torch.Tensor,
    values: torch.Tensor,
    plan: InitPlan,
    doubt: float,
) -> None:
    distribution = segment.distribution
    if isinstance(distribution, Constant):
        expected = torch.full((), distribution.value, dtype=torch.float64).to(torch.float32).to(values.dtype)
        wrong = int((values != expected).sum())
        row.test(wrong, 0, f"elements other than {distribution}")
        return
    if isinstance(distribution, Materialized):
        _check_materialized(row, segment, shown, values, plan)
        return
    if not bool(torch.isfinite(values).all()):
        row.problems.append("values are not finite")
        return
    x = values.to(torch.float64).numpy()
    if any(n > 1 and stride == 0 for n, stride in zip(segment.size, segment.draw_strides)):
        # A row that was repeated holds each element of its draw several times: test each once.
        drawn = positions(Box(segment.size, segment.draw_strides, segment.draw_offset))[shown.numpy()]
        x = x[np.unique(drawn, return_index=True)[1]]
    law = describe(distribution)
    precision = _precision(values)
    eps = float(torch.finfo(precision).eps)
    rounding = eps * max(abs(law.low) if math.isfinite(law.low) else abs(law.mean) + 4 * law.std,
                         abs(law.high) if math.isfinite(law.high) else abs(law.mean) + 4 * law.std)  # fmt: skip
    rounding = max(rounding, float(torch.finfo(precision).smallest_normal) * eps)
    if math.isfinite(law.low):
        row.test(law.low - float(x.min()), rounding, "below the lower bound by")
        row.test(float(x.max()) - law.high, rounding, "above the upper bound by")
    if law.std == 0:
        row.test(float(np.abs(x - law.mean).max()), rounding, "distance from the only value")
        return
    n = x.size
    centred = x - law.mean
    row.test(abs(float(centred.mean())), _mean_bound(law, n, doubt) + rounding, "mean is off by")
    spread = abs(float((centred**2).mean()) - law.std**2)
    coarse = 4 * eps * law.std * (abs(law.mean) + 2 * law.std)
    row.test(spread, _square_bound(law, n, doubt) + coarse, "mean square is off by")
    thin = np.sort(x if n <= KS_LIMIT else x[:: -(-n // KS_LIMIT)])
    row.test(_ks(law, thin, rounding), math.sqrt(doubt / (2 * thin.size)), "Kolmogorov-Smirnov distance")
    # Rows that are copies of each other have right marginals. Values of coarse draws (bf16: 256 of them) meet by chance
    # in 1 of 256 pairs, copies in most.
    for lag in {step for step in row_major(shape) if 0 < step < n} | {n // 2}:
        if 0 < lag < n:
            row.test(int((x[lag:] == x[:-lag]).sum()), 0.1 * (n - lag) + 8, f"values repeated {lag} elements on")


def _precision(values: torch.Tensor) -> torch.dtype:
    """The narrowest dtype that holds the values exactly: a constructor may draw in bf16 and convert to fp32."""
    if values.numel() > 1 and values.dtype in (torch.float32, torch.float64):
        for dtype in (torch.bfloat16, torch.float16):
            if torch.equal(values.to(dtype).to(values.dtype), values):
                return dtype
    return values.dtype


def _check_materialized(row: VerifyRow, segment: Segment, shown: torch.Tensor, values: torch.Tensor, plan: InitPlan) -> None:
    distribution = segment.distribution
    assert isinstance(distribution, Materialized)
    if distribution.kind == "table":
        stored, got = plan.table(row.name, row.index)[shown], values
        row.test(int(((stored != got) & ~((stored != stored) & (got != got))).sum()), 0, "elements other than the table's")
    elif distribution.kind == "opaque":
        row.note = "opaque: only its change with the seed is tested"
    elif not bool(shown.all()) or segment.numel != math.prod(distribution.shape) or segment.draw_strides != (1,):
        row.note = "a part of a recipe: only its change with the seed is tested"
    elif distribution.recipe == "orthogonal":
        rows = distribution.shape[0]
        matrix = values.to(torch.float64).reshape(rows, -1)
        matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
        gap = matrix @ matrix.T - distribution.gain**2 * torch.eye(matrix.shape[0], dtype=torch.float64)
        eps = float(torch.finfo(values.dtype).eps)
        bound = 4 * eps * distribution.gain**2 * matrix.shape[1]
        row.test(float(gap.abs().max()), bound, "distance from an orthogonal matrix")
    else:
        matrix = values.reshape(distribution.shape)
        zeros = math.ceil(distribution.sparsity * distribution.shape[0])
        wrong = int(((matrix == 0).sum(0) < zeros).sum())
        row.test(wrong, 0, f"columns with fewer than {zeros} zeros")


def _check_changes(row: VerifyRow, segment: Segment, before: torch.Tensor, now: torch.Tensor) -> None:
    """Random values must differ between two seeds."""
    distribution = segment.distribution
    spread = not isinstance(distribution, Materialized) and describe(distribution).std > 0
    fine = torch.finfo(now.dtype).bits >= 32 if now.dtype.is_floating_point else False
    enough = now.numel() >= 16 or (now.numel() >= 2 and fine)
    if enough and (spread or isinstance(distribution, Materialized)) and torch.equal(before, now):
        row.problems.append("has the same values for two seeds: it is not random")


def _check_sharing(
    rows: dict[tuple[str, int], VerifyRow], samples: dict[str, list[tuple[ParameterPlan, int, torch.Tensor]]]
) -> None:
    """Segments of one draw hold one sample, and segments of different draws do not."""
    copies: dict[tuple, tuple[str, str]] = {}
    for draw, holders in samples.items():
        known: dict[int, tuple[float, str]] = {}
        for parameter, i, flat in holders:
            segment = parameter.segments[i]
            if isinstance(segment.distribution, Materialized):
                continue
            law = describe(segment.distribution)
            owner, unit = paint(parameter.numel, [s.box for s in parameter.segments])
            shown = _shown(owner, unit, i, segment)
            values = _box_of(flat, segment)[shown].to(torch.float64)
            if law.std == 0 or values.numel() == 0:
                continue
            row = rows[(parameter.name, i)]
            if len(holders) > 1:
                drawn = torch.from_numpy(positions(Box(segment.size, segment.draw_strides, segment.draw_offset)))
                scores = ((values[:4096] - law.mean) / law.std).tolist()
                off, total, other = 0, 0, ""
                for element, score in zip(drawn[shown][:4096].tolist(), scores):
                    expected, holder = known.setdefault(element, (score, parameter.name))
                    total += 1
                    # bf16 on the way costs 2**-8 of the value; samples that have nothing in common differ by about 1.
                    if abs(expected - score) > 0.05 * (1 + abs(score) + abs(law.mean) / law.std):
                        off, other = off + 1, holder
                if off > 0.1 * total:
                    row.problems.append(f"does not hold the sample of the draw {draw!r} that {other!r} holds")
            if values.numel() >= 16:
                key = (str(segment.distribution), values.numel(), hash(values[:64].numpy().tobytes()))
                before = copies.setdefault(key, (draw, parameter.name))
                if before[0] != draw:
                    row.problems.append(f"is a copy of {before[1]!r}, the plan has two independent draws")


# ---------------------------------------------------------------------- distributions
@dataclass(frozen=True)
class Moments:
    """A distribution's support, moments and cumulative distribution function."""

    low: float
    high: float
    mean: float
    std: float
    cdf: Callable[[np.ndarray], np.ndarray]


def _normal_cdf(z: np.ndarray) -> np.ndarray:
    return torch.special.ndtr(torch.from_numpy(np.ascontiguousarray(z))).numpy()


def describe(distribution: Distribution) -> Moments:
    """Support, mean, standard deviation and distribution function of an elementwise distribution.

    Args:
        distribution: Uniform, normal, truncated normal or constant.

    Returns:
        Its description, in float64.

    Raises:
        PlanError: It is materialized.
    """
    if isinstance(distribution, Constant):
        value = distribution.value
        return Moments(value, value, value, 0.0, lambda x: (x >= value).astype(np.float64))
    if isinstance(distribution, Uniform):
        low, width = distribution.low, distribution.high - distribution.low
        cdf = lambda x: np.clip((x - low) / width, 0, 1)  # noqa: E731
        return Moments(low, distribution.high, low + width / 2, width / math.sqrt(12), cdf)
    if isinstance(distribution, Normal):
        mean, std = distribution.mean, distribution.std
        return Moments(-math.inf, math.inf, mean, std, lambda x: _normal_cdf((x - mean) / std))
    if isinstance(distribution, TruncNormal):
        return _describe_truncated(distribution)
    raise PlanError(f"{distribution} is not an elementwise distribution")


def _describe_truncated(d: TruncNormal) -> Moments:
    za, zb = (d.a - d.mean) / d.std, (d.b - d.mean) / d.std
    mass = truncated_mass(d.mean, d.std, d.a, d.b)
    density = lambda z: math.exp(-0.5 * z * z) / math.sqrt(2 * math.pi)  # noqa: E731
    if za > 0 or zb < 0 or mass < 1e-3:
        # Differences of densities cancel in a tail: integrate numerically instead.
        z = np.linspace(za, zb, 200_001)
        near = za if za > 0 else zb if zb < 0 else 0.0
        weight = np.exp(-0.5 * (z * z - near * near))
        weight /= weight.sum()
        mean = float((weight * z).sum())
        std = math.sqrt(float((weight * (z - mean) ** 2).sum()))
        cumulative = np.cumsum(weight) - 0.5 * weight
        cdf = lambda x: np.interp((x - d.mean) / d.std, z, cumulative, 0.0, 1.0)  # noqa: E731
        return Moments(d.a, d.b, d.mean + d.std * mean, d.std * std, cdf)
    mean = (density(za) - density(zb)) / mass
    variance = 1 + (za * density(za) - zb * density(zb)) / mass - mean**2
    begin = 0.5 * math.erfc(-za / math.sqrt(2))
    cdf = lambda x: np.clip((_normal_cdf((x - d.mean) / d.std) - begin) / mass, 0, 1)  # noqa: E731
    return Moments(d.a, d.b, d.mean + d.std * mean, d.std * math.sqrt(max(variance, 0.0)), cdf)


def _bernstein(variance: float, reach: float, n: int, doubt: float) -> float:
    """How far a mean of n values of this variance, at most ``reach`` from their expectation, strays (Bernstein 1924)."""
    a = doubt * reach / 3
    return (a + math.sqrt(a * a + 2 * doubt * n * variance)) / n


def _mean_bound(law: Moments, n: int, doubt: float) -> float:
    if math.isfinite(law.low):
        return min(_bernstein(law.std**2, max(law.mean - law.low, law.high - law.mean), n, doubt), law.high - law.low)
    return law.std * math.sqrt(2 * doubt / n)


def _square_bound(law: Moments, n: int, doubt: float) -> float:
    """How far the mean of squared deviations strays: Bernstein for bounded laws, Laurent and Massart (2000) for normals."""
    if not math.isfinite(law.low):
        return law.std**2 * (2 * math.sqrt(doubt / n) + 2 * doubt / n)
    reach = max(law.mean - law.low, law.high - law.mean) ** 2
    return _bernstein(reach * law.std**2, reach, n, doubt)


def _ks(law: Moments, ordered: np.ndarray, rounding: float) -> float:
    """Kolmogorov-Smirnov distance, each value taken anywhere within its rounding.

    Its bound is that of Dvoretzky, Kiefer and Wolfowitz with Massart's constant.
    """
    n = ordered.size
    steps = np.arange(n + 1) / n
    over = steps[1:] - law.cdf(ordered + rounding)
    under = law.cdf(ordered - rounding) - steps[:-1]
    return float(max(over.max(), under.max(), 0.0))
