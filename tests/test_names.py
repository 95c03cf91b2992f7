"""The plan's names behind wrappers."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from sff_fast.errors import PlanError
from sff_fast.names import named_parameters, unwrap


def block() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 3)))


NAMES = [n for n, _ in block().named_parameters()]


def test_a_plain_model_has_its_own_names_in_order():
    model = block()
    assert list(named_parameters(model)) == NAMES
    assert named_parameters(model)["0.weight"] is model[0].weight


def test_wrappers_are_taken_out_at_the_root_and_inside():
    model = block()
    assert list(named_parameters(AveragedModel(model))) == NAMES
    assert list(named_parameters(nn.DataParallel(model))) == NAMES
    inner = block()
    inner[1][0] = checkpoint_wrapper(inner[1][0])
    assert list(named_parameters(inner)) == NAMES
    assert list(named_parameters(AveragedModel(inner))) == NAMES
    assert unwrap(AveragedModel(AveragedModel(model))).__class__ is nn.Sequential


def test_a_compiled_model_has_the_names_of_the_model():
    model = block()
    compiled = torch.compile(model)
    assert list(named_parameters(compiled)) == NAMES
    assert unwrap(compiled) is model


def test_a_module_that_is_merely_called_module_is_no_wrapper():
    model = nn.ModuleDict({"module": nn.Linear(2, 2)})
    assert list(named_parameters(model)) == ["module.weight", "module.bias"]


def test_distributed_data_parallel_is_a_wrapper(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert list(named_parameters(nn.parallel.DistributedDataParallel(block()))) == NAMES
    finally:
        torch.distributed.destroy_process_group()


def test_tied_parameters_appear_once_under_their_first_name():
    model = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    model["b"].weight = model["a"].weight
    assert list(named_parameters(model)) == ["a.weight", "a.bias", "b.bias"]


def test_prefixes_are_put_on_or_taken_off():
    model = block()
    assert list(named_parameters(model, "x.")) == [f"x.{n}" for n in NAMES]
    assert list(named_parameters(nn.ModuleDict({"x": model}), "-x.")) == NAMES
    with pytest.raises(PlanError, match=r"prefix='-y.' takes 'y.' off every name, but there is '0.weight'"):
        named_parameters(model, "-y.")


def test_parameters_that_cannot_be_addressed_are_refused_by_name():
    model = block()
    model[0].weight.ds_id = 3
    with pytest.raises(PlanError, match=r"'0.weight' is partitioned by DeepSpeed ZeRO-3"):
        named_parameters(model)

    class FlatParameter(nn.Parameter):
        pass

    flat = nn.Module()
    flat._flat_param = FlatParameter(torch.zeros(3))
    with pytest.raises(PlanError, match="flat parameter of FSDP1"):
        named_parameters(flat)


def test_two_parameters_with_one_name_are_refused():
    class Wrapper(AveragedModel):
        def __init__(self, model: nn.Module) -> None:
            super().__init__(model)
            self.register_module("0", nn.Linear(2, 2))

    with pytest.raises(PlanError, match=r"two different parameters of the model map to the name '0.weight'"):
        named_parameters(Wrapper(block()))
