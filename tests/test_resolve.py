"""Plans of models for which the caller gives none."""

from __future__ import annotations

import copy
import gc

import pytest
import torch
from torch import nn

import sff_fast
from sff_fast import adapters
from sff_fast.errors import ArgumentError, PlanError
from sff_fast.resolve import resolve_plan, structure_copy


class Configured(nn.Linear):
    """A module that is built from its config, and changes it."""

    def __init__(self, config):
        super().__init__(config["in"], config.pop("out", 2))
        self.config = config
        nn.init.normal_(self.weight, 0, 0.02)


class Net(nn.Module):
    """A composite that draws again after its layers did."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
        nn.init.zeros_(self.fc.weight)


class Scaled(nn.Linear):
    """A layer with a way of its own to draw."""

    def reset_parameters(self):
        nn.init.normal_(self.weight, 0, 0.5)
        nn.init.ones_(self.bias)


def stack():
    return nn.Sequential(
        nn.Linear(6, 4),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.Sequential(nn.Embedding(9, 4, padding_idx=1), nn.GRU(4, 3)),
        Scaled(3, 2),
    )


def test_a_model_with_a_config_is_traced_from_its_class():
    model = Configured({"in": 3, "out": 2})
    config = copy.deepcopy(model.config)
    assert resolve_plan(model, None) == sff_fast.trace(lambda: Configured({"in": 3}))
    assert model.config == config


def test_a_config_that_the_class_cannot_be_built_from_names_the_three_ways():
    model = nn.Linear(3, 2)
    model.config = {"in": 3}
    with pytest.raises(PlanError, match=r"Linear does not say how it is built.*trace.*load.*constructor.*Linear\(config\) fails"):
        resolve_plan(model, None)


def test_modules_that_can_all_reset_themselves_are_traced_from_that():
    model = stack()
    plan = resolve_plan(model, None)
    assert plan == sff_fast.trace(stack)
    assert plan.notes == ("traced from reset_parameters of every module, not from a constructor",)


def test_looking_for_a_plan_changes_nothing_and_copies_no_values():
    model = stack()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    resolve_plan(model, None)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    made = structure_copy(model)
    ours, theirs = {p.data_ptr() for p in model.parameters()}, {p.data_ptr() for p in made.parameters()}
    assert not ours & theirs
    assert not any(buffer.any() for buffer in made.buffers())


def test_a_plan_from_reset_parameters_does_not_pretend_to_know_the_order_of_draws():
    with pytest.raises(PlanError, match="rng='torch' needs the constructor's draws"):
        sff_fast.smooth_(stack(), rng="torch")


TIED = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
TIED[1].weight = TIED[0].weight


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Net(), "the model itself .Net. is no module of torch.nn and has no reset_parameters"),
        (nn.Sequential(Net()), "0 .Net. is no module of torch.nn"),
        (nn.MultiheadAttention(4, 2), "the model itself .MultiheadAttention. has parameters and no reset_parameters"),
        (nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)), "parametriz"),
        (TIED, "1 .Linear. shares a parameter with 0 .Linear."),
    ],
)
def test_what_may_be_drawn_otherwise_is_refused_with_the_three_ways(model, reason):
    with pytest.raises(PlanError, match=rf"does not say how it is built: pass plan=.*InitPlan\.load.*constructor.*{reason}"):
        resolve_plan(model, None)


def test_the_model_of_an_adapter_has_the_adapters_plan():
    adapter = adapters.tiny("timer")
    assert resolve_plan(adapter.model, None) is adapter.plan()


def test_the_model_of_an_adapter_that_is_gone_falls_back_to_its_config():
    adapter = adapters.tiny("timer")
    plan, model = adapter.plan(), adapter.model
    del adapter
    gc.collect()
    assert resolve_plan(model, None) == plan


def test_anything_else_is_refused():
    with pytest.raises(ArgumentError, match="plan must be an InitPlan, a constructor or None, got int"):
        resolve_plan(nn.Linear(2, 2), 3)
    with pytest.raises(ArgumentError, match=r"got str: open a saved plan by sff_fast.InitPlan.load\(path\)$"):
        resolve_plan(nn.Linear(2, 2), "plan.json")
    with pytest.raises(TypeError, match=r"got a model: pass what makes it, lambda: Linear\(…\)$"):
        resolve_plan(nn.Linear(2, 2), nn.Linear(2, 2))


def test_loading_a_plan_lists_every_difference():
    plan = sff_fast.trace(stack)
    other = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(1, 1))
    with pytest.raises(PlanError) as error:
        sff_fast.smooth_(other, plan)
    text = str(error.value)
    assert "'0.weight' has shape (4, 5), the plan has (4, 6)" in text
    assert "'2.weight' is not in the plan" in text
    assert "'2.bias' is not in the plan" in text
    assert "'4.weight' is missing in the model" in text
