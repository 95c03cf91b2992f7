"""The distributions of an init plan: what they accept, print and store."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from sff_fast.distributions import (
    Constant,
    Materialized,
    Normal,
    TruncNormal,
    Uniform,
    distribution_from_json,
    is_random,
    truncated_mass,
)
from sff_fast.errors import PlanError

ALL = [
    Uniform(-0.1, 0.1),
    Uniform(2, 2),
    Normal(0.0, 0.02),
    Normal(),
    TruncNormal(0.0, 1.0, -2.0, 2.0),
    Constant(0.1),
    Materialized("table", "fixed", digest="00"),
    Materialized("opaque", "random values through exp"),
    Materialized("recipe", "orthogonal matrix", recipe="orthogonal", gain=2.0, shape=(4, 3)),
    Materialized("recipe", "sparse columns", recipe="sparse", sparsity=0.5, std=0.1, shape=(4, 3)),
]


@pytest.mark.parametrize("distribution", ALL, ids=str)
def test_json_gives_back_the_same_distribution(distribution):
    assert distribution_from_json(json.loads(json.dumps(distribution.to_json()))) == distribution


def test_text_is_what_a_user_would_type():
    texts = [str(d) for d in ALL]
    assert texts == [
        "Uniform(-0.1, 0.1)",
        "Uniform(2, 2)",
        "Normal(0, 0.02)",
        "Normal(0, 1)",
        "TruncNormal(0, 1, -2, 2)",
        "Constant(0.1)",
        "table",
        "opaque",
        "orthogonal(gain=2)",
        "sparse(sparsity=0.5, std=0.1)",
    ]


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Uniform(1, 0), "low <= high, got low=1.0 and high=0.0"),
        (lambda: Uniform(-math.inf, 0), "Uniform.low must be finite in float32, got -inf"),
        (lambda: Uniform(0, 1e39), "Uniform.high must be finite in float32"),
        (lambda: Uniform(-3e38, 3e38), "wider than float32"),
        (lambda: Uniform("0", 1), "Uniform.low must be a number, got '0'"),
        (lambda: Uniform(True, 1), "Uniform.low must be a number, got True"),
        (lambda: Normal(0, -1), "Normal.std must be at least 0, got -1.0"),
        (lambda: Normal(math.nan, 1), "Normal.mean must be finite"),
        (lambda: TruncNormal(0, 0, -1, 1), "TruncNormal.std must be above 0"),
        (lambda: TruncNormal(0, 1, 1, -1), "a <= b"),
        (lambda: TruncNormal(0, 1, 12, 13), "fewer than 2\\*\\*-60"),
        (lambda: TruncNormal(0, 1, 1, 1), "fewer than 2\\*\\*-60"),
        (lambda: Constant(math.inf), "Constant.value must be finite"),
        (lambda: Materialized("file", "x"), "'table', 'recipe' or 'opaque'"),
        (lambda: Materialized("recipe", "x"), "recipe belongs to kind 'recipe'"),
        (lambda: Materialized("table", "x", recipe="orthogonal"), "recipe belongs to kind 'recipe'"),
        (lambda: Materialized("opaque", "x", digest="0"), "digest belongs to kind 'table'"),
        (lambda: Materialized("recipe", "x", recipe="circulant", shape=(2, 2)), "one of orthogonal, sparse"),
        (lambda: Materialized("recipe", "x", recipe="orthogonal", shape=(2,)), "two or more sizes"),
        (lambda: Materialized("recipe", "x", recipe="sparse", shape=(2, 2, 2), sparsity=0.1, std=1), "two sizes"),
        (lambda: Materialized("recipe", "x", recipe="sparse", shape=(2, 2), sparsity=2, std=1), "0 <= sparsity <= 1"),
    ],
)
def test_a_wrong_argument_is_named(make, match):
    with pytest.raises(PlanError, match=match):
        make()


def test_numbers_of_numpy_and_torch_become_python_floats():
    made = Uniform(np.float32(0.5), torch.tensor(1.5))
    assert made == Uniform(0.5, 1.5)
    assert type(made.low) is float


@pytest.mark.parametrize(("a", "b"), [(-2, 2), (2, 3), (-11, -10), (5, 9), (-1, 40), (11.3, 12)])
def test_truncated_mass_equals_the_survival_function(a, b):
    expected = stats.norm.cdf(b) - stats.norm.cdf(a) if a <= 0 else stats.norm.sf(a) - stats.norm.sf(b)
    # erfc is good to a few ulp of float64, and the difference of two tails loses less than one digit here
    assert truncated_mass(0.3, 2.0, 0.3 + 2 * a, 0.3 + 2 * b) == pytest.approx(expected, rel=1e-12)


def test_the_least_mass_that_can_be_sampled_is_two_to_the_minus_sixty():
    TruncNormal(0, 1, 8.7, 20)  # 1.7e-18 is above 8.7e-19
    with pytest.raises(PlanError, match="cannot be sampled"):
        TruncNormal(0, 1, 8.9, 20)


def test_constants_and_tables_are_not_random():
    assert [is_random(d) for d in ALL] == [True, True, True, True, True, False, False, True, True, True]


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([], "must be a JSON object"),
        ({"kind": "gamma"}, "unknown distribution kind 'gamma'"),
        ({"kind": "uniform", "low": 0}, "wrong or missing fields"),
        ({"kind": "normal", "mean": 0, "std": 1, "low": 3}, "wrong or missing fields"),
        ({"kind": "materialized", "reason": "x"}, "wrong or missing fields"),
    ],
)
def test_json_of_no_distribution_is_refused(content, match):
    with pytest.raises(PlanError, match=match):
        distribution_from_json(content)
