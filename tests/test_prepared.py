"""A second call on a model takes over what the first one found out, and nothing that may have changed."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from test_smooth import PLAN, Net, pretrained, same, state
from torch import nn

import sff_fast
from sff_fast import backends, prepared, table
from sff_fast.distributions import Normal
from sff_fast.errors import PlanError


@pytest.fixture
def laid(monkeypatch) -> list[int]:
    """One entry a call that laid a plan over memory."""
    calls: list[int] = []
    build = table.build

    def counted(*arguments, **keywords):
        calls.append(1)
        return build(*arguments, **keywords)

    monkeypatch.setattr(table, "build", counted)
    return calls


def _warm() -> Net:
    """A model that was smoothed once, with its weights as before."""
    net = pretrained()
    sff_fast.smooth_(net, PLAN, seed=1)
    net.load_state_dict(pretrained().state_dict())
    return net


def _expect(net: nn.Module, plan: object = PLAN, **arguments: object) -> dict:
    """What a model that was never smoothed becomes; the reference backend takes nothing over."""
    fresh = copy.deepcopy(net)
    sff_fast.smooth_(fresh, plan, **arguments, again=True, backend="reference")
    return state(fresh)


@pytest.mark.parametrize("seed", [0, 1, 7, -3, (1 << 64) - 1])
def test_another_seed_uses_the_table_of_the_call_before(laid, seed):
    net = _warm()
    expected = _expect(net, seed=seed)
    before = len(laid)
    report = sff_fast.smooth_(net, PLAN, seed=seed, again=True)
    assert len(laid) == before
    assert same(state(net), expected)
    assert report.seed == seed % (1 << 64)


def test_the_report_of_a_call_that_took_things_over_is_the_same():
    first = sff_fast.smooth_(pretrained(), PLAN, {"linear.*": 0.5, "norm.*": 1.0}, seed=3).to_json()
    net = pretrained()
    sff_fast.smooth_(net, PLAN, {"linear.*": 0.5, "norm.*": 1.0}, seed=4)
    second = sff_fast.smooth_(net, PLAN, {"linear.*": 0.5, "norm.*": 1.0}, seed=3, again=True).to_json()
    for name in ("seconds", "threads"):
        del first[name], second[name]
    assert first == second


def test_reports_do_not_share_their_dicts():
    net = pretrained()
    sff_fast.smooth_(net, PLAN, seed=1).shrink.clear()
    report = sff_fast.smooth_(net, PLAN, seed=1, again=True)
    report.shrink.clear()
    assert sff_fast.smooth_(net, PLAN, seed=1, again=True).shrink["frozen"] == 0.7


@pytest.mark.parametrize(
    "arguments",
    [
        {"alpha": 0.4},
        {"alpha": {"embed*": 0.4, "*": 0.9}},
        {"alpha": {"linear.*": 0.7}},
        {"shrink": 0.7, "perturb": 0.1},
        {"plan": PLAN.override("linear.*", Normal(0, 0.5))},
        {"plan": Net},
    ],
    ids=["alpha", "patterns", "fewer parameters", "perturb", "plan", "constructor"],
)
def test_other_arguments_lay_the_plan_again(laid, arguments):
    net = _warm()
    expected = _expect(net, **{"plan": PLAN, "seed": 1, **arguments})
    before = len(laid)
    sff_fast.smooth_(net, **{"plan": PLAN, "seed": 1, **arguments}, again=True)
    assert len(laid) == before + 1
    assert same(state(net), expected)


def _moved(net: Net) -> None:
    net.linear.weight.data = net.linear.weight.data.clone()


def _transposed(net: Net) -> None:
    net.linear.weight.data = net.linear.weight.data.t()  # the same address and shape, other strides


def _replaced(net: Net) -> None:
    net.linear.weight = nn.Parameter(torch.ones(8, 8))


def _narrowed(net: Net) -> None:
    net.to(torch.bfloat16)


def _widened(net: Net) -> None:
    net.frozen.data = net.frozen.data.to(torch.float64)


@pytest.mark.parametrize("change", [_moved, _transposed, _replaced, _narrowed, _widened])
def test_parameters_that_changed_are_looked_at_again(laid, change):
    net = _warm()
    change(net)
    expected = _expect(net, seed=2)
    before = len(laid)
    sff_fast.smooth_(net, PLAN, seed=2, again=True)
    assert len(laid) == before + 1
    assert same(state(net), expected)


def test_the_same_bytes_as_another_dtype_are_looked_at_again():
    net = pretrained().to(torch.bfloat16)
    sff_fast.smooth_(net, PLAN, seed=1)
    net.linear.weight.data = net.linear.weight.data.view(torch.float16)
    expected = _expect(net, seed=2)
    sff_fast.smooth_(net, PLAN, seed=2, again=True)
    assert same(state(net), expected)


def test_parameters_that_came_to_share_memory_are_refused_as_in_a_first_call():
    net = _warm()
    net.linear.bias.data = net.norm.bias.data
    before = state(net)
    with pytest.raises(PlanError, match="share memory"):
        sff_fast.smooth_(net, PLAN, seed=2, again=True)
    assert same(state(net), before)


def test_a_parameter_that_is_gone_is_missed_as_in_a_first_call():
    net = _warm()
    del net.frozen
    with pytest.raises(PlanError, match="'frozen' is missing"):
        sff_fast.smooth_(net, PLAN, seed=2, again=True)


def test_rounding_is_part_of_what_is_taken_over():
    net = _warm().to(torch.bfloat16)
    for seed, rounding in enumerate(("nearest", "stochastic", "stochastic")):
        expected = _expect(net, seed=seed, rounding=rounding)
        sff_fast.smooth_(net, PLAN, seed=seed, rounding=rounding, again=True)
        assert same(state(net), expected)


class Orthogonal(nn.Module):
    """A value that is not elementwise: it is stored in a table, which depends on the seed."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(6, 6))
        nn.init.orthogonal_(self.w)


def test_values_that_are_stored_are_drawn_again_for_another_seed(laid):
    plan, net = sff_fast.trace(Orthogonal), Orthogonal()
    sff_fast.smooth_(net, plan, seed=1)
    expected = _expect(net, plan, seed=2)
    before = len(laid)
    sff_fast.smooth_(net, plan, seed=2, again=True)
    assert len(laid) == before + 1
    assert same(state(net), expected)


def test_the_version_counters_rise_each_time():
    net = _warm()
    before = {name: p._version for name, p in net.named_parameters()}
    sff_fast.smooth_(net, PLAN, seed=2, again=True)
    assert all(p._version == before[name] + 1 for name, p in net.named_parameters())


def test_a_backend_that_was_taken_away_is_not_taken_over(monkeypatch):
    net = _warm()
    expected = _expect(net, seed=2)
    monkeypatch.setattr(backends.cpu, "why_absent", lambda: "not compiled")
    monkeypatch.setattr(backends, "_said", set())
    with pytest.warns(RuntimeWarning, match="slow reference backend"):
        report = sff_fast.smooth_(net, PLAN, seed=2, again=True)
    assert report.backends == {"cpu": "reference"}
    assert same(state(net), expected)


def test_nothing_is_kept_for_a_model_that_is_gone():
    net = _warm()
    count = len(prepared._LAST)
    assert net in prepared._LAST
    del net
    assert len(prepared._LAST) == count - 1


def test_a_plan_whose_factory_knows_the_model_does_not_keep_it_alive():
    net = pretrained()

    def factory(known: nn.Module = net) -> nn.Module:
        return Net()

    sff_fast.smooth_(net, sff_fast.trace(factory), seed=1)
    assert net in prepared._LAST
    alive = weakref.ref(net)
    del net, factory
    gc.collect()
    assert alive() is None


def test_another_plan_at_the_same_address_is_not_mistaken_for_the_one_before(laid):
    net = pretrained()
    plan = sff_fast.trace(Net)
    sff_fast.smooth_(net, plan, seed=1)
    key = prepared._LAST[net].key
    assert prepared.recall(net, key, dict(net.named_parameters())) is not None
    del plan
    gc.collect()
    assert prepared.recall(net, key, dict(net.named_parameters())) is None
