"""The family timer: loading, saving, loss and forecast."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from sff_fast import adapters
from sff_fast.adapters import TimerAdapter, tiny
from sff_fast.data import Batch
from sff_fast.errors import ArgumentError, CheckpointError, OutputError
from sff_fast.models.timer import Timer, TimerConfig

load = functools.partial(adapters.load, allow_pickle=True)

SMALL = TimerConfig(patch_len=8, d_model=16, d_ff=24, e_layers=2, n_heads=4, dropout=0.1, max_patches=10)


def batch_of(context, target):
    return Batch(context, target, torch.arange(len(context)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Timer(SMALL).eval()


@pytest.fixture
def golden(test_data):
    return load("timer", test_data / "golden" / "timer"), load_file(test_data / "golden" / "timer" / "io.safetensors")


def save_fine_tuned(model, path):
    """What the official code writes after fine-tuning: every tensor twice, at the backbone and at the model."""
    state = {"backbone." + name: tensor for name, tensor in model.state_dict().items()}
    for name, tensor in model.state_dict().items():
        state[name.replace("patch_embedding.", "enc_embedding.")] = tensor
    torch.save(state, path)
    return state


def assert_same_tensors(found, expected):
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


# --- loading ----------------------------------------------------------------------------------------------------------


def test_the_published_layout_is_read_whole_or_by_file(test_data):
    folder = test_data / "golden" / "timer"
    for path in (folder, folder / "timer.ckpt", str(folder)):
        adapter = load("timer", path)
        assert adapter.model.config == TimerConfig(**json.loads((folder / "config.json").read_text()))
        assert not adapter.model.training
    assert adapter.source == folder


def test_sizes_are_read_off_the_tensors_where_there_is_no_configuration(model, tmp_path):
    torch.save({"state_dict": {"model." + k: v for k, v in model.state_dict().items()}}, tmp_path / "x.ckpt")
    adapter = load("timer", tmp_path / "x.ckpt", n_heads=4)
    assert adapter.model.config == SMALL
    assert load("timer", tmp_path / "x.ckpt").model.config.n_heads == 8
    assert load("timer", tmp_path, n_heads=4, dropout=0.3).model.config.dropout == 0.3
    x = torch.randn(2, 16, 1)
    assert torch.equal(adapter.model(x), model(x))


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "module.backbone.", "module.model."])
@pytest.mark.parametrize("suffix", [".ckpt", ".pth", ".safetensors"])
def test_prefixes_are_recognised_and_written_back(model, tmp_path, prefix, suffix):
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    adapter = load("timer", path, n_heads=4)
    assert_same_tensors(adapter.model.state_dict(), model.state_dict())
    adapter.save(tmp_path / "saved")
    if suffix == ".safetensors":
        assert load_file(tmp_path / "saved" / "model.safetensors").keys() == state.keys()
    else:
        assert_same_tensors(torch.load(tmp_path / "saved" / "timer.ckpt", weights_only=True), state)


def test_the_76_keys_of_a_fine_tuned_official_checkpoint_are_37_parameters_and_are_saved_again(model, tmp_path):
    state = save_fine_tuned(model, tmp_path / "checkpoint.pth")
    assert len(state) == 76
    adapter = load("timer", tmp_path / "checkpoint.pth", n_heads=4)
    assert len(list(adapter.model.parameters())) == 37
    with torch.no_grad():
        for parameter in adapter.model.parameters():
            parameter.mul_(2)
    adapter.save(tmp_path / "saved")
    saved = torch.load(tmp_path / "saved" / "timer.ckpt", weights_only=True)
    assert_same_tensors(saved, {k: v if k.endswith(".pe") else 2 * v for k, v in state.items()})


def test_asking_for_the_format_of_the_source_keeps_its_names(model, tmp_path):
    state = save_fine_tuned(model, tmp_path / "checkpoint.pth")
    load("timer", tmp_path / "checkpoint.pth", n_heads=4, format="ckpt").save(tmp_path / "saved")
    assert_same_tensors(torch.load(tmp_path / "saved" / "timer.ckpt", weights_only=True), state)


def test_aliases_that_differ_are_refused(model, tmp_path):
    state = save_fine_tuned(model, tmp_path / "checkpoint.pth")
    state["proj.bias"] = state["proj.bias"] + 1
    torch.save(state, tmp_path / "checkpoint.pth")
    with pytest.raises(CheckpointError, match=r"'backbone.proj.bias' and 'proj.bias' should be one tensor and differ"):
        load("timer", tmp_path / "checkpoint.pth")


def test_loading_leaves_the_global_generator_alone_and_maps_no_file(model, tmp_path):
    TimerAdapter(model).save(tmp_path / "m")
    torch.manual_seed(4)
    state = torch.get_rng_state()
    adapter = load("timer", tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), state)
    path = tmp_path / "m" / "model.safetensors"
    path.write_bytes(b"\0" * path.stat().st_size)
    assert_same_tensors(adapter.model.state_dict(), model.state_dict())
    for parameter in adapter.model.parameters():
        assert parameter.requires_grad
        assert parameter.untyped_storage().nbytes() == parameter.nbytes


def test_the_dtype_is_that_of_the_file_or_of_the_option(model, tmp_path):
    TimerAdapter(model.to(torch.bfloat16)).save(tmp_path / "m")
    assert {p.dtype for p in load("timer", tmp_path / "m").model.parameters()} == {torch.bfloat16}
    adapter = load("timer", tmp_path / "m", dtype="float32")
    assert {p.dtype for p in adapter.model.parameters()} == {torch.float32}
    assert {p.dtype for p in adapter.reload().model.parameters()} == {torch.float32}


def test_reload_reads_the_file_again(golden):
    adapter, io = golden
    with torch.no_grad():
        adapter.model.proj.weight.zero_()
    fresh = adapter.reload()
    assert fresh.source == adapter.source
    torch.testing.assert_close(fresh.model(io["forecast.input"]), io["forecast.output"], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"d_model": 32}, "says d_model=32, but model.safetensors was made with 16"),
        ({"e_layers": 3}, "says e_layers=3, but model.safetensors was made with 2"),
        ({"max_patches": 11}, "says max_patches=11, but model.safetensors was made with 10"),
        ({"n_heads": 3}, "d_model must be a multiple of n_heads"),
        ({"dropout": 2}, "config.json': TimerConfig: dropout must lie in"),
        ({"n_head": 4}, "has the unknown field 'n_head': expected patch_len"),
    ],
)
def test_a_configuration_that_does_not_fit_the_weights_is_refused(model, tmp_path, change, message):
    TimerAdapter(model).save(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(json.dumps({**SMALL.to_dict(), **change}))
    with pytest.raises(CheckpointError, match=message):
        load("timer", tmp_path / "m")


def test_missing_and_misshapen_tensors_are_refused_by_name(model, tmp_path):
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    bias = state.pop("decoder.attn_layers.1.conv2.bias")
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(first 'decoder.attn_layers.1.conv2.bias'\)$"):
        load("timer", tmp_path / "x.safetensors", n_heads=4)
    save_file({**state, "decoder.attn_layers.1.conv2.bias": bias[:-1].clone()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"'decoder.attn_layers.1.conv2.bias' has the shape \[15\], .* \[16\]"):
        load("timer", tmp_path / "x.safetensors", n_heads=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_heads": 5}, "multiple of n_heads"),
        ({"dropout": -1}, "dropout must lie in"),
        ({"format": "onnx"}, "format must be 'ckpt' or 'safetensors', got 'onnx'"),
        ({"dtype": "int8"}, "dtype must be one of"),
    ],
)
def test_a_bad_option_is_refused(test_data, options, message):
    with pytest.raises(ArgumentError, match=message):
        load("timer", test_data / "golden" / "timer", **options)


# --- saving -----------------------------------------------------------------------------------------------------------


def test_a_ckpt_is_saved_just_as_it_was_published(golden, test_data, tmp_path):
    golden[0].save(tmp_path / "saved")
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == ["config.json", "timer.ckpt"]
    saved = torch.load(tmp_path / "saved" / "timer.ckpt", weights_only=True)
    published = torch.load(test_data / "golden" / "timer" / "timer.ckpt", weights_only=True)
    assert list(saved) == ["state_dict"]
    assert_same_tensors(saved["state_dict"], published["state_dict"])
    assert {type(tensor) for tensor in saved["state_dict"].values()} == {torch.Tensor}
    assert not any(tensor.requires_grad for tensor in saved["state_dict"].values())
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert json.loads((test_data / "golden" / "timer" / "config.json").read_text()).items() <= config.items()


def test_the_format_is_that_of_the_source_unless_chosen(golden, test_data, tmp_path):
    chosen = load("timer", test_data / "golden" / "timer", format="safetensors")
    chosen.save(tmp_path / "a")
    back = load("timer", tmp_path / "a")
    back.save(tmp_path / "b")
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == ["config.json", "model.safetensors"]
    assert_same_tensors(back.model.state_dict(), golden[0].model.state_dict())
    load("timer", tmp_path / "b", format="ckpt").save(tmp_path / "c")
    saved = torch.load(tmp_path / "c" / "timer.ckpt", weights_only=True)["state_dict"]
    assert_same_tensors(saved, {"model." + k: v for k, v in golden[0].model.state_dict().items()})


def test_parameters_that_are_views_of_one_buffer_are_saved_without_the_rest(model, tmp_path):
    buffer = torch.zeros(1_000_000)
    with torch.no_grad():
        model.proj.weight.data = buffer[: model.proj.weight.numel()].view_as(model.proj.weight)
    adapter = TimerAdapter(model)
    adapter.save(tmp_path / "m")
    load("timer", tmp_path / "m", format="ckpt").save(tmp_path / "direct")
    ckpt = load("timer", tmp_path / "direct")
    ckpt.model.proj.weight.data = buffer[: model.proj.weight.numel()].view_as(model.proj.weight)
    ckpt.save(tmp_path / "view")
    assert (tmp_path / "view" / "timer.ckpt").stat().st_size < 100_000


def test_an_existing_folder_is_replaced_only_when_asked(model, tmp_path):
    adapter = TimerAdapter(model)
    adapter.save(tmp_path / "m")
    with pytest.raises(OutputError, match="exists already"):
        adapter.save(tmp_path / "m")
    with torch.no_grad():
        model.proj.bias.fill_(3.0)
    adapter.save(tmp_path / "m", overwrite=True)
    assert torch.all(load("timer", tmp_path / "m").model.proj.bias == 3.0)


# --- loss and forecast ------------------------------------------------------------------------------------------------


def test_the_loss_is_the_squared_error_of_the_last_patch(golden):
    adapter, io = golden
    torch.manual_seed(0)
    target = torch.randn(2, 96, 3)
    expected = (io["forecast.output"][:, -96:] - target).square().mean()
    loss = adapter.loss(batch_of(io["forecast.input"], target))
    # The golden outputs agree to 1e-5 of values up to 40: relative 1e-6 in the mean square.
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    shorter = adapter.loss(batch_of(io["forecast.input"], target[:, :10]))
    expected = (io["forecast.output"][:, -96:-86] - target[:, :10]).square().mean()
    torch.testing.assert_close(shorter, expected, rtol=1e-6, atol=0)


def test_a_forecast_beyond_one_patch_goes_on_from_its_own_patches(golden):
    adapter, io = golden
    window, patches = io["forecast.input"], []
    with torch.no_grad():
        for _ in range(3):
            patches.append(adapter.model(window)[:, -96:])
            window = torch.cat([window[:, 96:], patches[-1]], dim=1)
    expected = torch.cat(patches, dim=1)
    torch.testing.assert_close(patches[0], io["forecast.output"][:, -96:], rtol=1e-6, atol=1e-5)
    for length in (1, 96, 97, 192, 250):
        forecast = adapter.forecast(io["forecast.input"], length)
        assert torch.equal(forecast.mean, expected[:, :length])
        assert forecast.quantiles is None
        assert forecast.samples is None
    target = torch.zeros(2, 200, 3)
    loss = adapter.loss(batch_of(io["forecast.input"], target))
    torch.testing.assert_close(loss, expected[:, :200].square().mean(), rtol=1e-6, atol=0)


def test_the_loss_of_a_long_horizon_reaches_the_weights_through_every_patch(model):
    adapter = TimerAdapter(model)
    context, target = torch.randn(2, 24, 1), torch.randn(2, 24, 1)
    adapter.loss(batch_of(context, target)).backward()
    long = model.proj.bias.grad.clone()
    model.zero_grad()
    adapter.loss(batch_of(context, target[:, :8])).backward()
    assert (long - model.proj.bias.grad).abs().max() > 1e-3


def test_training_by_the_loss_lowers_it():
    adapter = tiny("timer")
    time = torch.arange(96 * 3, dtype=torch.float32)
    waves = torch.stack([torch.sin(time / period) for period in (5.0, 8.0, 13.0)]).unsqueeze(-1)
    batch = batch_of(waves[:, :192], waves[:, 192:])
    parameters = list(adapter.model.parameters())
    first = adapter.loss(batch).item()
    for _ in range(40):
        gradients = torch.autograd.grad(adapter.loss(batch), parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(0.1 * gradient)
    assert adapter.loss(batch).item() < 0.5 * first


def test_the_head_is_the_output_projection(model):
    names = [name for name, _ in TimerAdapter(model).head_parameters()]
    assert names == ["proj.weight", "proj.bias"]
    for name, parameter in TimerAdapter(model).head_parameters():
        assert parameter is model.get_parameter(name)


def test_a_context_that_is_no_multiple_of_the_patch_is_refused(golden):
    with pytest.raises(ArgumentError, match=r"multiple of 96 .* got 500: use 480 or 576"):
        golden[0].forecast(torch.zeros(1, 500, 1), 96)


# --- imputation and anomaly detection ---------------------------------------------------------------------------------


def test_imputed_values_are_those_of_the_official_source(golden):
    adapter, io = golden
    mask = io["imputation.mask"].bool()
    # See tests/test_models_timer.py for the tolerance.
    found = adapter.impute(io["imputation.input"], mask)
    torch.testing.assert_close(found, io["imputation.output"], rtol=2 * 2**-23, atol=1e-5)
    truth = torch.randn(io["imputation.input"].shape, generator=torch.Generator().manual_seed(0))
    values = torch.where(mask, io["imputation.input"], truth)
    expected = (io["imputation.output"] - truth)[~mask].square().mean()
    torch.testing.assert_close(adapter.imputation_loss(values, mask), expected, rtol=1e-5, atol=0)


def test_a_window_is_expected_patch_by_patch_from_what_came_before(golden):
    adapter, io = golden
    values, output = io["anomaly_detection.input"], io["anomaly_detection.output"]
    found = adapter.reconstruct(values)
    assert found[:, :96].isnan().all()
    torch.testing.assert_close(found[:, 96:], output[:, :-96], rtol=2 * 2**-23, atol=1e-5)
    expected = (output[:, :-96] - values[:, 96:]).square().mean()
    torch.testing.assert_close(adapter.anomaly_loss(values), expected, rtol=1e-5, atol=0)


def test_the_windows_of_the_published_protocols_are_accepted_and_a_single_patch_expects_nothing(golden):
    adapter = golden[0]
    assert adapter.impute(torch.zeros(1, 192, 1), torch.ones(1, 192, 1).bool()).shape == (1, 192, 1)
    assert adapter.reconstruct(torch.zeros(1, 768, 1)).shape == (1, 768, 1)
    with pytest.raises(ArgumentError, match="the length of a window must be at least 192 for this timer model, got 96"):
        adapter.reconstruct(torch.zeros(1, 96, 1))
    with pytest.raises(ArgumentError, match="the length of a window must be a multiple of 96"):
        adapter.impute(torch.zeros(1, 100, 1), torch.ones(1, 100, 1).bool())
