"""The family sundial against the class that sktime ships."""

from __future__ import annotations

import json
import socket

import pytest
import torch
from family_cases import upstream
from safetensors.torch import load_file, save_file

from sff_fast.adapters import SundialAdapter, load, tiny
from sff_fast.data import Batch
from sff_fast.errors import ArgumentError, CheckpointError

pytest.importorskip("sktime.libs.sundial", reason="sktime is not installed: make models-env")
pytestmark = pytest.mark.filterwarnings("ignore:The attention mask API under:FutureWarning")


def batch_of(context, target):
    return Batch(context, target, torch.arange(len(context)))


@pytest.fixture(scope="module")
def windows():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 224, 2, generator=generator).cumsum(1)
    return batch_of(values[:, :128], values[:, 128:])


@pytest.fixture
def folder(tmp_path):
    """A checkpoint as published: what transformers writes, off its initialisation."""
    model = tiny("sundial").model
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(tmp_path / "published")
    change(tmp_path / "published", auto_map={"AutoModelForCausalLM": "modeling_sundial.SundialForPrediction"})
    return tmp_path / "published"


def silent():
    """A tiny model whose flow is zero everywhere."""
    adapter = tiny("sundial")
    with torch.no_grad():
        adapter.model.flow_loss.net.final_layer.linear.weight.zero_()
    return adapter


def change(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


# --- equality with the package ----------------------------------------------------------------------------------------


def test_weights_and_rotary_buffers_are_those_of_the_constructed_class(folder):
    adapter, theirs = load("sundial", folder), upstream("sundial").load(folder)
    assert isinstance(adapter, SundialAdapter)
    found = {**adapter.model.state_dict(), **dict(adapter.model.named_buffers())}
    expected = {**theirs.state_dict(), **dict(theirs.named_buffers())}
    assert sum("cos_cached" in name for name in expected) == 2
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("length", [96, 24, 1])
def test_the_loss_and_its_gradients_are_those_of_the_package_with_and_without_dropout(folder, windows, length):
    adapter, package = load("sundial", folder), upstream("sundial")
    theirs = package.load(folder)
    batch = batch_of(windows.context, windows.target[:, :length])
    for training in (False, True):
        adapter.model.train(training)
        theirs.train(training)
        torch.manual_seed(3)
        ours = adapter.loss(batch)
        torch.manual_seed(3)
        expected = package.loss(theirs, batch.context, batch.target)
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    ours.backward()
    expected.backward()
    for name, parameter in adapter.model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(name).grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("length", [96, 24, 1])
def test_forecasts_are_the_samplers_at_the_same_seed(folder, windows, length):
    adapter, package = load("sundial", folder), upstream("sundial")
    ours = adapter.forecast(windows.context, length, seed=5, num_samples=4)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        theirs = package.forecast(package.load(folder), windows.context, length, seed=5, num_samples=4)
    torch.testing.assert_close(ours.samples, theirs["samples"], rtol=0, atol=1e-5)
    torch.testing.assert_close(ours.mean, theirs["mean"], rtol=0, atol=1e-5)
    assert adapter.forecast(windows.context, length).samples.shape == (3, 20, length, 2)


def test_without_a_flow_the_sampler_draws_the_mean_of_the_context(windows):
    # Each step takes away an equal part of the noise, until nothing is left.
    forecast = silent().forecast(windows.context, 10, num_samples=3)
    expected = windows.context.mean(dim=1, keepdim=True)[:, None].expand(forecast.samples.shape)
    torch.testing.assert_close(forecast.samples, expected, rtol=0, atol=2e-5)


def test_without_a_flow_the_loss_is_the_weighted_square_of_what_is_asked(windows):
    # Each patch of 16 is asked for the 24 steps that follow it, with the weights 1, 1/2, 1/3, …
    values = torch.cat((windows.context, windows.target[:, :24]), dim=1).transpose(1, 2).reshape(6, -1)
    past = values[:, :128]
    mean, std = past.mean(1, keepdim=True), past.std(1, keepdim=True, unbiased=False)
    asked = ((values - mean) / std)[:, 16:].unfold(1, 24, 16)
    expected = (asked.square() / torch.arange(1, 25)).sum(-1).mean()
    loss = silent().loss(batch_of(windows.context, windows.target[:, :24]))
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def test_hardly_any_variation_is_taken_for_none_in_training_as_in_the_package(folder):
    generator = torch.Generator().manual_seed(7)
    values = 3 + 0.004 * torch.randn(2, 40, 1, generator=generator)
    context, target = values[:, :32], values[:, 32:]
    assert 0 < context.std() < 1e-2
    adapter, package = load("sundial", folder), upstream("sundial")
    theirs = package.load(folder)
    torch.manual_seed(2)
    ours = adapter.loss(batch_of(context, target))
    torch.manual_seed(2)
    torch.testing.assert_close(ours, package.loss(theirs, context, target), rtol=1e-6, atol=0)


def test_a_constant_context_gives_finite_losses_and_forecasts(folder):
    adapter = load("sundial", folder)
    context = torch.full((2, 32, 1), 7.0)
    assert adapter.loss(batch_of(context, torch.full((2, 8, 1), 7.0))).isfinite()
    torch.testing.assert_close(adapter.forecast(context, 8).mean, torch.full((2, 8, 1), 7.0), rtol=0, atol=1e-3)


def test_windows_are_normalised_in_float32_whatever_the_models_dtype(folder):
    generator = torch.Generator().manual_seed(4)
    context = 1000 + torch.randn(2, 64, 1, generator=generator)
    half = load("sundial", folder, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    found = half.forecast(context, 16).mean
    # In bfloat16 the context would be 1000 everywhere and its deviation 0.
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, load("sundial", folder).forecast(context, 16).mean, rtol=0, atol=1.0)
    assert (found - 1000).abs().max() < 10
    assert (found - found.round()).abs().max() > 0.01


# --- files ------------------------------------------------------------------------------------------------------------


def test_files_are_those_of_save_pretrained(folder, tmp_path):
    adapter = load("sundial", folder)
    adapter.save(tmp_path / "ours")
    names = sorted(path.name for path in folder.iterdir())
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == names
    for name in names:
        ours, theirs = (tmp_path / "ours" / name).read_bytes(), (folder / name).read_bytes()
        assert json.loads(ours) == json.loads(theirs) if name.endswith(".json") else ours == theirs, name


def test_options_hold_for_copies_too_and_dropout_acts_in_training(folder, windows):
    still = load("sundial", folder, dropout=0.0)
    assert still.reload().model.config.dropout_rate == 0.0
    for adapter, same in ((still, True), (load("sundial", folder), False)):
        adapter.model.train()
        losses = []
        for seed in (1, 1):
            torch.manual_seed(seed)
            losses.append(adapter.loss(windows))
        assert torch.equal(*losses)
        adapter.model.eval()
        torch.manual_seed(1)
        assert torch.equal(adapter.loss(windows), losses[0]) == same


def test_loading_and_forecasting_open_no_connection(folder, windows, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load("sundial", folder).forecast(windows.context, 8)
    with pytest.raises(CheckpointError, match=r"'thuml/sundial-base-128m': .*nothing is downloaded"):
        load("sundial", "thuml/sundial-base-128m")


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context_length", "prediction_length", "message"),
    [
        (100, 8, "context_length must be a multiple of 16 for this sundial model, got 100: use 96 or 112"),
        (1040, 8, "context_length must be at most 1024 for this sundial model, got 1040"),
        (8, 8, "context_length must be at least 16"),
        (96, 97, "prediction_length must be at most 96 for this sundial model, got 97"),
    ],
)
def test_lengths_that_the_model_was_not_made_for_are_refused(context_length, prediction_length, message):
    with pytest.raises(ArgumentError, match=message):
        tiny("sundial").forecast(torch.zeros(1, context_length, 1), prediction_length)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "timer"}, r"model_type must be 'sundial', got 'timer'; its first tensor is 'flow_loss"),
        ({"output_token_lens": []}, r"output_token_lens must list integers of at least 1, got \[\]"),
        ({"output_token_lens": [48]}, r"'flow_loss.net.input_proj.weight' has the shape \[32, 96\], .* for \[32, 48\]"),
        ({"hidden_size": "wide"}, "hidden_size must be an integer of at least 1, got 'wide'"),
        ({"hidden_act": "absent"}, "describes no valid sundial"),
        ({"num_hidden_layers": 3}, r"missing \(first 'model.layers.2"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_one_line(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=message) as caught:
        load("sundial", folder)
    assert "\n" not in str(caught.value)


def test_a_checkpoint_without_some_tensors_is_refused_rather_than_filled_with_random_ones(folder):
    state = load_file(folder / "model.safetensors")
    del state["model.norm.weight"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(first 'model.norm.weight'\)"):
        load("sundial", folder)


def test_the_head_is_the_network_that_draws():
    names = [name for name, _ in tiny("sundial").head_parameters()]
    assert len(names) == 28
    assert all(name.startswith("flow_loss.net.") for name in names)
