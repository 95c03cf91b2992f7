"""The Timer model against the official source's outputs, names, sizes and draws."""

from __future__ import annotations

import copy
import json
import math

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from sff_fast.errors import ArgumentError
from sff_fast.models.timer import PointwiseConv1d, Timer, TimerConfig

SMALL = TimerConfig(patch_len=8, d_model=16, d_ff=24, e_layers=2, n_heads=4, dropout=0.1, max_patches=10)


@pytest.fixture(scope="module")
def golden(test_data):
    """The golden model, with its inputs and outputs."""
    folder = test_data / "golden" / "timer"
    state = torch.load(folder / "timer.ckpt", weights_only=True)["state_dict"]
    model = Timer(TimerConfig(**json.loads((folder / "config.json").read_text())))
    model.load_state_dict({name.removeprefix("model."): tensor for name, tensor in state.items()})
    return model.eval(), load_file(folder / "io.safetensors")


@pytest.fixture
def small():
    torch.manual_seed(0)
    return Timer(SMALL).eval()


# --- equality with the official source --------------------------------------------------------------------------------


# 1e-5 absolute is the required agreement. The golden values reach 55 and are themselves up to 8.7e-6 off the float64
# result, so float32 (whose order of summation depends on the CPU) gets two units in the last place on top.
@pytest.mark.parametrize("task", ["forecast", "imputation", "anomaly_detection"])
@pytest.mark.parametrize(("dtype", "rtol"), [(torch.float32, 2 * 2**-23), (torch.float64, 0.0)])
def test_outputs_equal_the_official_source(golden, task, dtype, rtol):
    model, io = golden
    inputs = [io[f"{task}.input"].to(dtype)] + ([io["imputation.mask"]] if task == "imputation" else [])
    with torch.no_grad():
        output = getattr(copy.deepcopy(model).to(dtype), task)(*inputs)
    torch.testing.assert_close(output, io[f"{task}.output"].to(dtype), rtol=rtol, atol=1e-5)


def test_state_dict_has_the_published_names_in_the_published_order(test_data):
    folder = test_data / "golden" / "timer"
    published = torch.load(folder / "timer.ckpt", weights_only=True)["state_dict"]
    state = Timer(TimerConfig(**json.loads((folder / "config.json").read_text()))).state_dict()
    assert ["model." + name for name in state] == list(published)
    assert [tensor.shape for tensor in state.values()] == [tensor.shape for tensor in published.values()]


def test_position_table_equals_the_published_one_bit_for_bit(golden, test_data):
    published = torch.load(test_data / "golden" / "timer" / "timer.ckpt", weights_only=True)["state_dict"]
    expected = published["model.patch_embedding.position_embedding.pe"]
    fresh = Timer(golden[0].config).patch_embedding.position_embedding.pe
    # The table may come from another CPU's sine, so one unit in the last place of a value up to 1 is allowed.
    torch.testing.assert_close(fresh, expected, rtol=0, atol=2**-23)


def test_default_sizes_are_those_of_the_published_model():
    with torch.device("meta"):
        model = Timer()
    parameters = list(model.parameters())
    assert len(parameters) == 133
    assert sum(parameter.numel() for parameter in parameters) == 67_397_728
    assert model.patch_embedding.position_embedding.pe.shape == (1, 5000, 1024)


# --- what the constructor draws ---------------------------------------------------------------------------------------


def test_constructor_draws_plain_torch_modules_in_the_official_order():
    torch.manual_seed(7)
    drawn = list(Timer(SMALL).parameters())
    torch.manual_seed(7)
    expected = [*nn.Linear(8, 16, bias=False).parameters()]
    for _ in range(SMALL.e_layers):
        for _ in range(4):
            expected += nn.Linear(16, 16).parameters()
        expected += nn.Conv1d(16, 24, 1).parameters()
        expected += nn.Conv1d(24, 16, 1).parameters()
        expected += [*nn.LayerNorm(16).parameters(), *nn.LayerNorm(16).parameters()]
    expected += [*nn.LayerNorm(16).parameters(), *nn.Linear(16, 8).parameters()]
    assert len(drawn) == len(expected)
    for ours, theirs in zip(drawn, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_every_parameter_follows_the_distribution_that_its_docstring_states():
    torch.manual_seed(1)
    config = TimerConfig(patch_len=96, d_model=64, d_ff=256, e_layers=1, n_heads=4, max_patches=4)
    fan_in = {"value_embedding": 96, "conv2": 256}
    for name, parameter in Timer(config).named_parameters():
        if "norm" in name:
            assert torch.all(parameter == (1.0 if name.endswith("weight") else 0.0)), name
            continue
        bound = 1 / math.sqrt(next((n for part, n in fan_in.items() if part in name), 64))
        assert parameter.abs().max() <= bound, name
        # The largest of n uniform draws falls below 0.9 of the bound with probability 0.9**n, at most 0.2 % for n = 64.
        assert parameter.abs().max() > 0.9 * bound, name


# --- behaviour --------------------------------------------------------------------------------------------------------


def test_a_token_does_not_see_later_tokens(small):
    tokens = torch.randn(3, 6, 16)
    changed = tokens.clone()
    changed[:, 4:] += 1.0
    with torch.no_grad():
        before, after = small.decoder(tokens), small.decoder(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4], rtol=0, atol=1e-6)
    assert (before[:, 4:] - after[:, 4:]).abs().min(dim=-1).values.max() > 1e-4


def test_channels_and_windows_do_not_influence_each_other(small):
    x = torch.randn(3, 40, 4)
    with torch.no_grad():
        together, alone = small(x), small(x[1:2, :, 2:3])
    torch.testing.assert_close(together[1:2, :, 2:3], alone, rtol=1e-5, atol=1e-6)


def test_output_follows_the_scale_and_level_of_the_input(small):
    x = torch.randn(2, 32, 1, dtype=torch.float64)
    with torch.no_grad():
        # Not exact: the constant 1e-5 in the normalisation does not scale along.
        torch.testing.assert_close(small(100 * x - 7), 100 * small(x) - 7, rtol=1e-3, atol=1e-3)


def test_imputation_does_not_look_at_masked_values(small):
    x = torch.randn(2, 40, 3)
    mask = (torch.rand(2, 40, 3) > 0.25).float()
    with torch.no_grad():
        zeros = small.imputation(x.masked_fill(mask == 0, 0), mask)
        nans = small.imputation(x.masked_fill(mask == 0, math.nan), mask)
        plain = small(x.masked_fill(mask == 0, 0))
    assert torch.equal(zeros, nans)
    assert (zeros - plain).abs().max() > 1e-3


def test_a_wholly_masked_channel_gives_finite_values(small):
    mask = torch.ones(1, 16, 2)
    mask[:, :, 1] = 0
    with torch.no_grad():
        assert small.imputation(torch.randn(1, 16, 2), mask).isfinite().all()


def test_statistics_are_constants_in_the_backward_pass(small):
    x = torch.randn(1, 16, 1, dtype=torch.float64, requires_grad=True)
    small = small.double()
    small(x).sum().backward()
    # With the mean and deviation held fixed, as in the official source, the input enters through the patches alone.
    mean, std = x.detach().mean(), torch.sqrt(x.detach().var(unbiased=False) + 1e-5)
    leaf = x.detach().clone().requires_grad_()
    patches = ((leaf - mean) / std).reshape(1, 2, 8)
    tokens = small.proj(small.decoder(small.patch_embedding(patches)))
    (tokens * std + mean).sum().backward()
    torch.testing.assert_close(x.grad, leaf.grad, rtol=1e-9, atol=1e-12)


def test_every_parameter_gets_a_gradient(small):
    small.train()(torch.randn(2, 24, 3)).square().mean().backward()
    for name, parameter in small.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_dropout_acts_in_training_alone_and_in_every_place(small):
    x = torch.randn(2, 24, 1)
    with torch.no_grad():
        assert torch.equal(small(x), small(x))
        for place in ("embedding", "attention", "residual"):
            model = Timer(SMALL).eval()
            if place == "attention":
                model.decoder.attn_layers[0].attention.training = True
            else:
                owner = model.patch_embedding if place == "embedding" else model.decoder.attn_layers[0]
                owner.dropout.training = True
            assert not torch.equal(model(x), model(x)), place


def test_pointwise_convolution_equals_conv1d_forward_and_backward():
    torch.manual_seed(0)
    ours, theirs = PointwiseConv1d(6, 10), nn.Conv1d(6, 10, kernel_size=1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 6, 5)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-6)
    for convolution in (ours, theirs):
        convolution(x).square().sum().backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(name).grad, rtol=1e-5, atol=1e-5)


def test_activation_is_the_one_of_the_configuration(small):
    relu = Timer(TimerConfig(**{**SMALL.to_dict(), "activation": "relu"})).eval()
    relu.load_state_dict(small.state_dict())
    hidden = torch.randn(2, 3, 16)
    layer = relu.decoder.attn_layers[0]
    with torch.no_grad():
        mixed = layer.norm1(hidden + layer.attention(hidden))
        widened = torch.relu(mixed @ layer.conv1.weight[..., 0].T + layer.conv1.bias)
        expected = layer.norm2(mixed + widened @ layer.conv2.weight[..., 0].T + layer.conv2.bias)
        torch.testing.assert_close(layer(hidden), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "data", "result", "tolerance"),
    [
        # A bfloat16 product keeps 8 bits; the outputs have a deviation of about 1 after the normalisation is undone.
        (torch.bfloat16, torch.float32, torch.float32, 0.1),
        (torch.bfloat16, torch.bfloat16, torch.float32, 0.1),
        (torch.float16, torch.float32, torch.float32, 0.02),
        (torch.float32, torch.float64, torch.float64, 1e-5),
        (torch.float64, torch.float32, torch.float64, 1e-5),
    ],
)
def test_half_and_double_precision_keep_the_scale_of_the_data(small, weights, data, result, tolerance):
    x = torch.randn(2, 40, 2).to(torch.bfloat16).float()
    with torch.no_grad():
        expected = small(x + 1000) - 1000
        if data == torch.bfloat16:
            expected, level = small(x), 0
        else:
            level = 1000
        output = small.to(weights)((x + level).to(data))
    assert output.dtype == result
    # Level 1000 in float32 leaves an absolute precision of 6e-5, amplified a little by the model.
    torch.testing.assert_close(output - level, expected.to(result), rtol=0, atol=tolerance + 1e-3)


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_len": 0}, "patch_len must be an integer of at least 1, got 0"),
        ({"e_layers": 2.0}, "e_layers must be an integer of at least 1, got 2.0"),
        ({"n_heads": True}, "n_heads must be an integer"),
        ({"d_model": 33, "n_heads": 1}, "d_model must be even .* got 33"),
        ({"d_model": 32, "n_heads": 5}, "multiple of n_heads, got d_model=32, n_heads=5"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
        ({"dropout": "a"}, r"dropout must lie in \[0, 1\), got 'a'"),
        ({"activation": "swish"}, "activation must be one of .* got 'swish'"),
    ],
)
def test_a_bad_size_is_refused_by_name(change, message):
    with pytest.raises(ArgumentError, match=message):
        TimerConfig(**change)


@pytest.mark.parametrize(
    ("x", "mask", "message"),
    [
        (torch.zeros(2, 12, 1), None, "multiple of patch_len=8, got 12: cut it to the last 8 values"),
        (torch.zeros(2, 0, 1), None, "multiple of patch_len=8, got 0"),
        (torch.zeros(2, 88, 1), None, "x holds 11 patches, the table of positions only 10"),
        (torch.zeros(2, 16), None, r"\[batch, time, channel\], got torch.float32 of shape \(2, 16\)"),
        (torch.zeros(2, 16, 1, dtype=torch.int64), None, "got torch.int64"),
        (torch.zeros(2, 16, 1), torch.ones(2, 16), r"mask must have the shape of x, \(2, 16, 1\), got \(2, 16\)"),
    ],
)
def test_a_bad_input_is_refused_with_what_was_expected(small, x, mask, message):
    with pytest.raises(ArgumentError, match=message):
        small(x, mask)
