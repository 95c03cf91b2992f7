"""verify must pass right plans and fail wrong ones."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn

from sff_fast.distributions import Constant, Materialized, Normal, TruncNormal, Uniform
from sff_fast.errors import ArgumentError, PlanError
from sff_fast.plan import InitPlan, ParameterPlan, Segment, digest
from sff_fast.tracing import trace
from sff_fast.verification import describe, verify


class Model(nn.Module):
    def __init__(self, make):
        super().__init__()
        self.w = nn.Parameter(make())


def report_of(make, distribution, shape=(4000,), dtype=torch.float32, tables=None):
    numel = torch.Size(shape).numel()
    parameter = ParameterPlan("w", shape, dtype, (Segment.whole(distribution, numel, "w"),))
    return verify(lambda: Model(make), InitPlan([parameter], tables=tables))


TRUE = [
    (lambda: torch.randn(4000) * 0.02, Normal(0, 0.02)),
    (lambda: torch.rand(4000) * 2 - 1, Uniform(-1, 1)),
    (lambda: nn.init.trunc_normal_(torch.empty(4000)), TruncNormal(0, 1, -2, 2)),
    (lambda: nn.init.trunc_normal_(torch.empty(4000), 0, 1, 3, 5), TruncNormal(0, 1, 3, 5)),
    (lambda: torch.full((4000,), 0.1), Constant(0.1)),
]


@pytest.mark.filterwarnings("ignore:mean is more than 2 std")
@pytest.mark.parametrize(("make", "distribution"), TRUE, ids=[str(d) for _, d in TRUE])
def test_a_right_plan_passes(make, distribution):
    report = report_of(make, distribution)
    assert report.ok, str(report)
    assert "the plan holds" in str(report)


@pytest.mark.parametrize(
    ("make", "distribution", "problem"),
    [
        (lambda: torch.randn(4000) * 0.02, Normal(0.004, 0.02), "mean"),
        (lambda: torch.randn(4000) * 0.02, Normal(0, 0.025), "square"),
        (lambda: torch.randn(4000), Uniform(-1.7, 1.7), "bound"),
        (lambda: torch.rand(4000), Uniform(0, 1.2), "mean"),
        (lambda: torch.rand(4000), Uniform(0, 0.999), "upper bound"),
        (lambda: torch.rand(4000) - 0.5, Normal(0, 12**-0.5), "Kolmogorov"),
        (lambda: torch.rand(4000), TruncNormal(0.5, 0.3, 0, 1), "Kolmogorov"),
        (lambda: nn.init.trunc_normal_(torch.empty(4000), 0, 1, -1, 1), Normal(0, 0.5395), "Kolmogorov"),
        (lambda: torch.full((4000,), 0.1000001), Constant(0.1), "elements other than"),
        (lambda: torch.randn(4000), Constant(0), "elements other than"),
        (lambda: torch.zeros(4000), Uniform(-1, 1), "not random"),
        (lambda: torch.randn(4000, generator=torch.Generator().manual_seed(0)), Normal(0, 1), "not random"),
        (lambda: torch.randn(400).repeat(10), Normal(0, 1), "values repeated"),
        (lambda: torch.randn(1000).repeat_interleave(4), Normal(0, 1), "values repeated 1 elements on"),
        (lambda: torch.full((4000,), float("nan")), Normal(0, 1), "not finite"),
    ],
)
def test_a_wrong_plan_fails_with_the_reason(make, distribution, problem):
    report = report_of(make, distribution)
    assert not report.ok
    assert problem in "; ".join(report.rows[0].problems)
    assert "1 difference" in str(report)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_rounding_of_a_dtype_is_allowed_for(dtype):
    assert report_of(lambda: torch.empty(4000, dtype=dtype).uniform_(-0.3, 0.3), Uniform(-0.3, 0.3), dtype=dtype).ok
    assert report_of(lambda: torch.randn(4000).to(dtype), Normal(0, 1), dtype=dtype).ok
    assert not report_of(lambda: torch.randn(4000).to(dtype), Normal(0, 1.2), dtype=dtype).ok


def test_it_does_not_flag_right_plans_falsely():
    def factory():
        return nn.Sequential(*(nn.Linear(3, n) for n in range(1, 40)), nn.Embedding(5, 7, padding_idx=0))

    plan = trace(factory)
    report = verify(factory, plan, seeds=range(12))
    assert report.ok, str(report)


def test_tables_are_compared_exactly():
    values = torch.arange(4.0)
    table = Materialized("table", "fixed", digest=digest(values))
    tables = {("w", 0): values}
    assert report_of(lambda: torch.arange(4.0), table, (4,), tables=tables).ok
    assert not report_of(lambda: torch.arange(4.0) * 1.0000001, table, (4,), tables=tables).ok


def test_recipes_are_checked_for_what_they_are():
    orthogonal = Materialized("recipe", "x", recipe="orthogonal", gain=2.0, shape=(6, 4))
    assert report_of(lambda: nn.init.orthogonal_(torch.empty(6, 4), 2), orthogonal, (6, 4)).ok
    assert not report_of(lambda: nn.init.orthogonal_(torch.empty(6, 4), 2.1), orthogonal, (6, 4)).ok
    sparse = Materialized("recipe", "x", recipe="sparse", sparsity=0.5, std=1.0, shape=(6, 4))
    assert report_of(lambda: nn.init.sparse_(torch.empty(6, 4), 0.5, 1), sparse, (6, 4)).ok
    assert not report_of(lambda: torch.randn(6, 4), sparse, (6, 4)).ok


class Two(nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.a = nn.Parameter(torch.randn(50))
        self.b = nn.Parameter(self.a.detach().clone() if shared else torch.randn(50))


def test_shared_and_independent_draws_are_told_apart():
    shared, independent = trace(lambda: Two(True)), trace(lambda: Two(False))
    assert verify(lambda: Two(True), shared).ok
    assert verify(lambda: Two(False), independent).ok
    assert "does not hold the sample of the draw 'a'" in str(verify(lambda: Two(False), shared))
    assert "is a copy of 'a'" in str(verify(lambda: Two(True), independent))


def test_elements_that_a_later_segment_hides_are_left_out():
    parameter = ParameterPlan(
        "weight",
        (6, 4),
        torch.float32,
        (Segment.whole(Normal(0, 1), 24, "weight"), Segment(Constant(0), (4,), (1,), 0, "", (0,), 0)),
    )
    report = verify(lambda: nn.Embedding(6, 4, padding_idx=0), InitPlan([parameter]))
    assert report.ok
    assert [row.elements for row in report.rows] == [20, 4]
    moved = replace(parameter, segments=(parameter.segments[0], replace(parameter.segments[1], offset=4)))
    assert not verify(lambda: nn.Embedding(6, 4, padding_idx=0), InitPlan([moved])).ok


def test_a_dtype_that_differs_is_a_problem():
    report = report_of(lambda: torch.randn(40).half(), Normal(0, 1), (40,))
    assert report.problems == ["'w' has dtype torch.float16, the plan has torch.float32"]
    assert not report.ok


def test_generators_are_left_as_found():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    report_of(lambda: torch.randn(40), Normal(0, 1), (40,))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert random.getstate() == before[2]


def test_wrong_arguments_are_named():
    with pytest.raises(ArgumentError, match=r"two or more different seeds, got \(1, 1\)"):
        verify(lambda: nn.Linear(2, 2), trace(lambda: nn.Linear(2, 2)), seeds=(1, 1))
    with pytest.raises(PlanError, match="does not fit the model"):
        verify(lambda: nn.Linear(3, 2), trace(lambda: nn.Linear(2, 2)))


@pytest.mark.parametrize(
    "distribution",
    [Uniform(-0.3, 2), Normal(0.5, 2), TruncNormal(0.1, 1, -2, 0.5), TruncNormal(0, 1, 4, 6), TruncNormal(0, 0.1, -3, 3)],
    ids=str,
)
def test_moments_and_distribution_functions_are_those_of_scipy(distribution):
    if isinstance(distribution, Uniform):
        law = stats.uniform(distribution.low, distribution.high - distribution.low)
    elif isinstance(distribution, Normal):
        law = stats.norm(distribution.mean, distribution.std)
    else:
        d = distribution
        law = stats.truncnorm((d.a - d.mean) / d.std, (d.b - d.mean) / d.std, d.mean, d.std)
    mine = describe(distribution)
    # the tail is integrated with 2e5 steps: about five digits at its ends
    assert mine.mean == pytest.approx(law.mean(), rel=1e-4, abs=1e-12)
    assert mine.std == pytest.approx(law.std(), rel=1e-3)
    points = law.ppf(np.linspace(0.001, 0.999, 99))
    assert np.abs(mine.cdf(points) - law.cdf(points)).max() < 1e-4
    assert integrate.trapezoid(1 - law.cdf(points), points) == pytest.approx(
        integrate.trapezoid(1 - mine.cdf(points), points), rel=1e-3
    )
