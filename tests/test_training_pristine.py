"""One model for many runs: its weights are put back bit for bit, from its checkpoint where that holds them."""

from __future__ import annotations

import os

import pytest
import torch
import training_fakes
from training_fakes import FakeAdapter, make_data

from sff_fast.adapters import families, load, tiny
from sff_fast.errors import CheckpointError
from sff_fast.smooth import smooth_, smoothing_of
from sff_fast.training import finetune
from sff_fast.training.pristine import PristineModel, Snapshot
from sff_fast.training.weights import weights_of

quick = training_fakes.quick
pytestmark = pytest.mark.usefixtures("quick")


def copies(model):
    return {name: tensor.clone() for name, tensor in weights_of(model).items()}


def assert_same(model, expected):
    found = weights_of(model)
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name].nan_to_num(), tensor.nan_to_num()), name


def test_a_model_is_as_it_was_after_a_run_in_another_precision():
    models = PristineModel(FakeAdapter.tiny)
    adapter = models.pristine()
    before = copies(adapter.model)
    parameters = [id(parameter) for parameter in adapter.model.parameters()]
    finetune(adapter, make_data(), "sff", epochs=1, batch_size=32, precision="bf16")
    assert smoothing_of(adapter.model)
    assert adapter.model.body.weight.dtype == torch.bfloat16
    models.spend()
    assert models.pristine() is adapter
    assert_same(adapter.model, before)
    assert smoothing_of(adapter.model) == []
    assert [id(parameter) for parameter in adapter.model.parameters()] == parameters
    assert not adapter.model.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in adapter.model.parameters())


def test_what_the_checkpoint_holds_is_not_kept_on_the_host(tmp_path):
    FakeAdapter.tiny().save(tmp_path / "model")
    models = PristineModel(lambda: FakeAdapter.load(tmp_path / "model"))
    adapter = models.pristine()
    snapshot = Snapshot(adapter.model, adapter.source)
    assert snapshot.host_bytes == 8  # the two elements of the buffer that no file has
    before = copies(adapter.model)
    with torch.no_grad():
        for tensor in weights_of(adapter.model).values():
            tensor.fill_(7)
    snapshot.restore(adapter.model)
    assert_same(adapter.model, before)
    assert Snapshot(FakeAdapter.tiny().model, None).host_bytes == sum(tensor.nbytes for tensor in before.values())


def test_a_checkpoint_that_changes_between_runs_is_noticed(tmp_path):
    FakeAdapter.tiny().save(tmp_path / "model")
    models = PristineModel(lambda: FakeAdapter.load(tmp_path / "model"))
    models.pristine()
    models.spend()
    FakeAdapter.tiny(seed=1).save(tmp_path / "model", overwrite=True)
    with pytest.raises(CheckpointError, match="has changed since it was loaded"):
        models.pristine()


def test_equal_numbers_of_other_bits_are_kept_on_the_host(tmp_path):
    adapter = FakeAdapter.tiny()
    with torch.no_grad():
        adapter.model.head.bias.zero_()
    adapter.save(tmp_path / "model")
    with torch.no_grad():
        adapter.model.head.bias.fill_(-0.0)
    snapshot = Snapshot(adapter.model, tmp_path / "model")
    assert snapshot.host_bytes == 8 + adapter.model.head.bias.nbytes
    snapshot.restore(adapter.model)
    assert torch.signbit(adapter.model.head.bias).all()


def test_buffers_that_grow_or_appear_in_a_forward_pass_are_put_back():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3))
    model.register_buffer("lazy", None)
    model[0].register_buffer("table", torch.arange(4.0))
    snapshot = Snapshot(model, None)
    model.lazy = torch.ones(2)
    model[0].table = torch.zeros(9)
    assert snapshot.fits(model)
    snapshot.restore(model)
    assert model.lazy is None
    assert torch.equal(model[0].table, torch.arange(4.0))


def test_a_run_that_left_other_modules_behind_has_the_model_loaded_anew():
    made = []

    def make():
        made.append(1)
        return FakeAdapter.tiny()

    models = PristineModel(make)
    before = copies(models.pristine().model)
    models.pristine().model.head = torch.nn.Sequential(models.pristine().model.head)
    models.spend()
    assert_same(models.pristine().model, before)
    assert len(made) == 2


@pytest.mark.parametrize("family", families())
def test_every_family_is_put_back_bit_for_bit(family, tmp_path):
    try:
        made = tiny(family)
    except ImportError as error:
        pytest.skip(f"needs the package of the family: {error}")
    made.save(tmp_path / "model")
    adapter = load(made.variant, tmp_path / "model")
    snapshot = Snapshot(adapter.model, adapter.source)
    before = copies(adapter.model)
    adapter.model.to(torch.bfloat16).train()
    smooth_(adapter.model, adapter.plan(), alpha=0.5, seed=0)
    snapshot.restore(adapter.model)
    assert snapshot.fits(adapter.model)
    assert_same(adapter.model, before)
    # Parameters come from the file where the layout holds them as they are.
    parameters = sum(parameter.nbytes for parameter in adapter.model.parameters())
    if any(path.suffix == ".safetensors" for path in (tmp_path / "model").iterdir()):
        assert snapshot.host_bytes < parameters
    assert os.listdir(tmp_path / "model")
