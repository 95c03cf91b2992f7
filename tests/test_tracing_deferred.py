"""Elementwise functions that a constructor never reads are not run; all others give what they would have given."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn

from sff_fast.errors import PlanError
from sff_fast.tracing import trace
from sff_fast.tracing.tracer import DEFERRED_FROM, HELD_MOST, Tracer

N = DEFERRED_FROM


class Holder(nn.Module):
    """One parameter with the values of a tensor."""

    def __init__(self, values: torch.Tensor) -> None:
        super().__init__()
        self.w = nn.Parameter(values)


def angles(n: int = N) -> torch.Tensor:
    return torch.arange(n, dtype=torch.float32) * 1e-3


def filled(function: Callable = torch.sin, x: torch.Tensor | None = None) -> torch.Tensor:
    x = angles() if x is None else x
    out = torch.empty_like(x)
    function(x, out=out)
    return out


def test_an_elementwise_function_into_given_memory_waits_for_a_reader():
    with Tracer(0) as tracer:
        out = filled()
        assert not tracer.memory.record(out).concrete
        total = out.sum().item()
        assert tracer.memory.record(out).concrete
    assert total == angles().sin().sum().item()


def two_halves() -> torch.Tensor:
    x, table = angles(), torch.empty(N, 2)
    sines, cosines = table.unbind(-1)
    torch.sin(x, out=sines)
    torch.cos(x, out=cosines)
    return table


def changed_afterwards() -> torch.Tensor:
    x = angles()
    out = filled(x=x)
    x.mul_(2)
    return out


def filled_afterwards() -> torch.Tensor:
    x = angles()
    out = filled(x=x)
    x.zero_()
    return out


def changed_through_numpy() -> torch.Tensor:
    x = angles()
    out = filled(x=x)
    x.numpy()[:] = 3
    return out


def copied_over() -> torch.Tensor:
    x = angles()
    out = filled(x=x)
    x.copy_(torch.arange(N, dtype=torch.float64).sqrt())
    return out


def moved_away() -> torch.Tensor:
    x = angles()
    out = filled(x=x)
    x.set_(torch.ones(N))
    return out


def overwritten_in_part() -> torch.Tensor:
    out = filled()
    out[5:9] = 7.0
    out[N // 2 :].sqrt_()
    return out


def overwritten_before() -> torch.Tensor:
    out = torch.full((N + 3,), 2.0)
    torch.sin(angles(), out=out[3:])
    return out


def chained() -> torch.Tensor:
    return filled(torch.exp, filled())


def deep_copied() -> torch.Tensor:
    out = filled()
    twin = copy.deepcopy(out)
    out.zero_()
    return twin


def seen_as_bytes() -> torch.Tensor:
    return filled().view(torch.int32).view(torch.float32) + 0


def of_two_operands() -> torch.Tensor:
    x, out = angles(1024), torch.empty(1024, 1024)
    torch.mul(x[:, None], x, out=out)
    return out


CASES = [
    filled, two_halves, changed_afterwards, filled_afterwards, changed_through_numpy, copied_over, moved_away,
    overwritten_in_part, overwritten_before, chained, deep_copied, seen_as_bytes, of_two_operands,
]  # fmt: skip


@pytest.mark.parametrize("make", CASES, ids=lambda make: make.__name__)
def test_values_that_reach_a_parameter_are_those_of_the_constructor(make):
    plan = trace(lambda: Holder(make()))
    values = plan.sample("w", 0)
    torch.testing.assert_close(values, Holder(make()).w.detach(), rtol=0, atol=0, equal_nan=True)


def test_a_draw_that_a_deferred_function_reads_makes_its_values_opaque():
    def factory() -> nn.Module:
        x = torch.empty(N).uniform_(0, 1)
        return Holder(filled(torch.exp, x))

    plan = trace(factory)
    assert plan["w"].segments[0].distribution.kind == "opaque"
    first, second = plan.sample("w", 1), plan.sample("w", 2)
    assert not torch.equal(first, second)
    assert 1 <= float(first.min()) <= float(first.max()) <= 2.7182819


def test_a_wrong_call_fails_where_it_stands():
    def factory() -> nn.Module:
        x = angles()
        with pytest.raises(RuntimeError):
            torch.clamp(x, out=torch.empty_like(x))  # neither min nor max
        return nn.Linear(2, 2)

    trace(factory)


def test_what_is_kept_alive_for_deferred_functions_is_limited():
    def many() -> nn.Module:
        for _ in range(4):
            filled(x=angles(HELD_MOST // 8))
        return nn.Linear(2, 2)

    tracer = Tracer(0)
    with tracer:
        many()
    assert 0 < sum(tracer._held.values()) <= HELD_MOST


def test_a_trace_collects_no_old_garbage_and_lets_frozen_objects_be():
    generations = []

    def watch(phase: str, info: dict) -> None:
        generations.append(info["generation"])

    gc.unfreeze()  # what conftest.py froze
    gc.callbacks.append(watch)
    try:
        during = []

        def factory() -> nn.Module:
            made = nn.Sequential(*(nn.Linear(2, 2) for _ in range(100)))
            during.extend(generations)
            return made

        trace(factory)
        assert during == []
        assert 2 not in generations
        assert gc.isenabled()
        gc.freeze()
        frozen = gc.get_freeze_count()
        try:
            trace(lambda: nn.Linear(2, 2))
            assert 0 < gc.get_freeze_count() <= frozen  # objects that were frozen may have died
        finally:
            gc.unfreeze()
    finally:
        gc.callbacks.remove(watch)


def test_garbage_collection_that_the_user_switched_off_stays_off():
    gc.disable()
    try:
        with pytest.raises(PlanError):
            trace(lambda: Holder(torch.empty(3)))
        assert not gc.isenabled()
    finally:
        gc.enable()
