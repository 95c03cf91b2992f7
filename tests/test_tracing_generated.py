"""Random constructors, written as source: a failing one is shrunk and printed as a snippet that runs by itself."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

import sff_fast
from sff_fast.errors import PlanError
from sff_fast.tracing import trace
from sff_fast.verification import verify

STEPS = (
    "{x}.uniform_(-1.0, 1.0 + {i})",
    "{x}.normal_(0.0, 0.5 + {i})",
    "nn.init.trunc_normal_({x}, 0.0, 1.0, -1.0, 1.0 + {i})",
    "nn.init.kaiming_uniform_({x}, a=5**0.5)",
    "{x}.zero_()",
    "{x}[{i} % {x}.shape[0]].fill_({i})",
    "{x}[{i} % {x}.shape[0]].normal_()",
    "{x}[:, {i} % {x}.shape[1] :: 2].uniform_()",
    "{x}[: 1 + {i}].mul_(2.0)",
    "{x}.mul_(-0.5)",
    "{x}.add_(1.0)",
    "{x}[{i} % {x}.shape[0]].pow_(2)",
    "{x}[0].copy_({x}[{i} % {x}.shape[0]].clone())",
    "{x}[[0, {i} % {x}.shape[0]]] = 3.0",
    "for row in {x}: row.normal_(0.0, 1.0 + {i})",
    "torch.rand(3 + {i})",
    "{x}.tril_({i})",
    "{x}.masked_fill_(torch.arange({x}.shape[1]) < {i}, 0.25)",
    "torch._foreach_mul_([{x}], 0.5)",
    "torch.set_rng_state(state)",
)
"""Statements that write to a tensor, or draw and forget."""

MAKERS = (
    "{x}.clone()",
    "copy.deepcopy({x})",
    "1 - 2 * {x}",
    "{x}.to(torch.bfloat16).to(torch.float32)",
    "{x}.t().contiguous()",
    "{x}.t()",
    "{x}[: {x}.shape[0] // 2 + 1]",
    "torch.cat([{x}, torch.rand_like({x})], {i} % 2)",
    "{x}.repeat(2, 1)",
    "{x}.chunk(2, {i} % 2)[-1]",
    "{x}.reshape({x}.shape[1], {x}.shape[0])",
    "{x}.exp()",
    "torch.randn(20, 12 + {i})",
    "{x} + torch.randn_like({x})",
    "{x}.triu(1)",
    "{x}.masked_fill(torch.arange({x}.shape[1]) == {i}, -1.0)",
    "torch.where(torch.arange({x}.shape[0])[:, None] > {i}, {x}, 0.5)",
    "nn.Linear(12 + {i}, 20).weight.detach()",
    "nn.Embedding(20, 12 + {i}, padding_idx={i}).weight.detach()",
    "nn.MultiheadAttention(12, 2).in_proj_weight.detach()",
)
"""Expressions that give another tensor."""

HEAD = "import copy\n\nimport torch\nfrom torch import nn\n\n\ndef factory():\n"
HEAD += "    state = torch.get_rng_state()\n    v0 = torch.randn(24, 16)\n"
TAIL = "\n    return model\n"


@st.composite
def sources(draw):
    """Source of a constructor: statements on a growing pool of tensors, some of which become parameters."""
    lines, pool = ["v1 = torch.empty(16, 20).uniform_(-2, 1)"], 2
    for _ in range(draw(st.integers(1, 9))):
        template, i = draw(st.sampled_from((*STEPS, *MAKERS))), draw(st.integers(0, 3))
        line = template.format(x=f"v{draw(st.integers(0, pool - 1))}", i=i)
        if template in MAKERS:
            line, pool = f"v{pool} = {line}", pool + 1
        lines.append(line)
    lines.append("model = nn.Module()")
    kept = draw(st.sets(st.integers(0, pool - 1), min_size=1, max_size=3))
    lines += [f"model.p{at} = nn.Parameter(v{at})" for at in sorted(kept)]
    return HEAD + "".join(f"    {line}\n" for line in lines) + TAIL


def compiled(source):
    """The constructor of a source."""
    scope = {}
    exec(compile(source, "<generated>", "exec"), scope)
    return scope["factory"]


def refused(model, plan):
    """What smoothing by replay says against it; empty where it was done."""
    try:
        sff_fast.smooth_(model, plan, seed=5, rng="torch")
    except PlanError as error:
        return str(error)
    return ""


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sources())
def test_any_nesting_of_the_patterns_is_planned_right(source):
    note(f"{source}\n\nimport sff_fast\nprint(sff_fast.verify(factory, sff_fast.trace(factory)))")
    factory = compiled(source)
    plan = trace(factory)
    report = verify(factory, plan, (1, 2))
    assert report.ok, f"\n{report}"
    for name, parameter in plan.parameters.items():
        sample = plan.sample(name, 4)
        assert sample.shape == parameter.shape
        assert torch.isfinite(sample).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(sources())
def test_any_nesting_of_the_patterns_is_replayed_bit_for_bit_or_refused(source):
    note(f"{source}\n\nimport sff_fast\nsff_fast.smooth_(factory(), factory, seed=5, rng='torch')")
    factory = compiled(source)
    torch.manual_seed(0)
    # A copy a parameter: some of them are views of one tensor, which smooth_ refuses.
    ours = torch.nn.ParameterDict({name: copy.deepcopy(p.detach()) for name, p in factory().named_parameters()})
    theirs = copy.deepcopy(ours)
    plan = trace(factory)
    opaque = any(s.distribution.kind == "opaque" for p in plan.parameters.values() for s in p.segments)
    refusal = refused(ours, plan)
    if refusal:
        assert "rng='torch' cannot replay" in refusal
        assert opaque, "only what is not elementwise may be refused"
        return
    torch.manual_seed(5)
    second = dict(factory().named_parameters())
    with torch.no_grad():
        for name, p in theirs.items():
            p.copy_(p * 0.7 + second[name] * (1 - 0.7))
            assert torch.equal(ours[name], p), name


def test_a_wrong_plan_shrinks_to_a_snippet_that_runs():
    @settings(max_examples=200, deadline=None, derandomize=True, database=None)
    @given(sources())
    def claims_that_nothing_is_scaled(source):
        note(source)
        assert "mul_(2.0)" not in source

    with pytest.raises(AssertionError) as error:
        claims_that_nothing_is_scaled()
    snippet = next(text for text in error.value.__notes__ if text.startswith("import copy"))
    assert snippet.count("\n    v") + snippet.count("\n    for") == 3, snippet  # two tensors to start from, one statement
    assert len(list(compiled(snippet)().parameters())) == 1
