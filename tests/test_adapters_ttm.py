"""The family ttm against granite-tsfm's own class."""

from __future__ import annotations

import functools
import json
import shutil
import socket
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from sff_fast import adapters
from sff_fast.adapters import TTMAdapter, tiny
from sff_fast.data import Batch, ForecastData, read_table
from sff_fast.errors import ArgumentError, CheckpointError, MissingPackageError
from sff_fast.metrics import ForecastMetrics

load = functools.partial(adapters.load, allow_pickle=True)

tinytimemixer = pytest.importorskip("tsfm_public.models.tinytimemixer", reason="granite-tsfm is not installed")


def batch_of(context, target):
    return Batch(context, target, torch.arange(len(context)))


@pytest.fixture(scope="module")
def folder(test_data):
    return test_data / "granite-ttm-512-96"


@pytest.fixture
def adapter(folder):
    return load("ttm", folder)


@pytest.fixture
def upstream(folder):
    """The package's class, loaded the package's way."""
    return tinytimemixer.TinyTimeMixerForPrediction.from_pretrained(str(folder), local_files_only=True).eval()


@pytest.fixture(scope="module")
def windows():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 608, 4, generator=generator).cumsum(1)
    return batch_of(values[:, :512], values[:, 512:])


def tiny_model(**changes):
    """A random model of the package's class, small, with changes to its configuration."""
    config = json.loads(tiny("ttm").model.config.to_json_string())
    config.pop("num_patches")
    torch.manual_seed(0)
    return tinytimemixer.TinyTimeMixerForPrediction(tinytimemixer.TinyTimeMixerConfig(**{**config, **changes})).eval()


# --- equality with the package ----------------------------------------------------------------------------------------


def test_weights_and_forecast_equal_the_package_bit_for_bit(adapter, upstream, windows):
    ours, theirs = adapter.model.state_dict(), upstream.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert sum(parameter.numel() for parameter in adapter.model.parameters()) == 805_280
    assert len(list(adapter.model.parameters())) == 134
    with torch.no_grad():
        expected = upstream(past_values=windows.context).prediction_outputs
    forecast = adapter.forecast(windows.context, 96)
    assert torch.equal(forecast.mean, expected)
    assert forecast.quantiles is None
    assert torch.equal(adapter.forecast(windows.context, 30).mean, expected[:, :30])


def test_the_loss_equals_the_package_with_and_without_dropout(adapter, upstream, windows):
    for mode in (False, True):
        adapter.model.train(mode)
        upstream.train(mode)
        torch.manual_seed(3)
        ours = adapter.loss(windows)
        torch.manual_seed(3)
        theirs = upstream(past_values=windows.context, future_values=windows.target).loss
        assert torch.equal(ours, theirs)
    ours.backward()
    theirs.backward()
    for name, parameter in adapter.model.named_parameters():
        assert torch.equal(parameter.grad, upstream.get_parameter(name).grad), name


def test_dropout_is_that_of_the_checkpoint_or_of_the_option(adapter, folder, windows):
    adapter.model.train()
    assert not torch.equal(adapter.loss(windows), adapter.loss(windows))
    still = load("ttm", folder, dropout=0.0, head_dropout=0.0)
    still.model.train()
    assert torch.equal(still.loss(windows), still.loss(windows))
    assert still.reload().model.config.dropout == 0.0


def test_the_loss_of_a_shorter_horizon_is_that_of_the_package_with_a_prediction_filter(adapter, folder, windows):
    filtered = tinytimemixer.TinyTimeMixerForPrediction.from_pretrained(
        str(folder), local_files_only=True, prediction_filter_length=40
    ).eval()
    expected = filtered(past_values=windows.context, future_values=windows.target).loss
    short = batch_of(windows.context, windows.target[:, :40])
    # The same squares summed in another order.
    torch.testing.assert_close(adapter.loss(short), expected, rtol=1e-6, atol=0)
    option = load("ttm", folder, prediction_filter_length=40)
    assert torch.equal(option.loss(short), expected)
    assert option.limits.max_prediction == 40


@pytest.mark.parametrize("loss", ["mae", "huber", "pinball"])
def test_the_loss_is_the_one_of_the_configuration(tmp_path, loss):
    model = tiny_model(loss=loss)
    model.save_pretrained(tmp_path / "m")
    adapter = load("ttm", tmp_path / "m")
    context, target = torch.randn(2, 96, 3), torch.randn(2, 24, 3)
    expected = model(past_values=context, future_values=target).loss
    assert torch.equal(adapter.loss(batch_of(context, target)), expected)
    assert not torch.isclose(expected, (adapter.forecast(context, 24).mean - target).square().mean())


def test_quantiles_come_with_their_levels(tmp_path):
    tiny_model(multi_quantile_head=True).save_pretrained(tmp_path / "m")
    adapter = load("ttm", tmp_path / "m")
    context, target = torch.randn(2, 96, 3), torch.randn(2, 24, 3)
    forecast = adapter.forecast(context, 10)
    assert list(forecast.quantiles) == [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    assert all(value.shape == (2, 10, 3) for value in forecast.quantiles.values())
    assert torch.equal(forecast.quantiles[0.5], forecast.mean)
    with torch.no_grad():
        output = adapter.model(past_values=context, future_values=target)
    assert torch.equal(adapter.loss(batch_of(context, target)).detach(), output.loss)
    assert torch.equal(forecast.quantiles[0.9], output.quantile_outputs[:, 8, :10])
    with pytest.raises(ArgumentError, match=r"must be 24 .* got 10: load it with prediction_filter_length=10"):
        adapter.loss(batch_of(context, target[:, :10]))


def test_zero_shot_on_etth1_has_the_error_that_the_package_gives(adapter, test_data):
    # Measured with the package's class in a plain loop over every 29th test window: MSE 0.366005, MAE 0.389074
    # (all 2785 windows: 0.362812 and 0.389031).
    data = ForecastData(read_table(test_data / "ETTh1.csv"), "ett-hour", 512, 96, channel_independent=False)
    chosen = torch.arange(0, len(data.test), 29)
    assert len(data.test) == 2785
    metrics = ForecastMetrics(96, 7)
    for indices in chosen.split(32):
        batch = data.test.batch(indices)
        metrics.update(adapter.forecast(batch.context, 96).mean, batch.target)
    assert metrics.mse == pytest.approx(0.366005, abs=2e-6)
    assert metrics.mae == pytest.approx(0.389074, abs=2e-6)


# --- saving -----------------------------------------------------------------------------------------------------------


def test_files_are_those_of_save_pretrained_byte_for_byte(adapter, upstream, tmp_path):
    with torch.no_grad():
        for model in (adapter.model, upstream):
            model.head.base_forecast_block.bias.add_(1.0)
    adapter.save(tmp_path / "ours")
    upstream.save_pretrained(tmp_path / "theirs")
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == ["config.json", "model.safetensors"]
    for name in ("config.json", "model.safetensors"):
        ours, theirs = (tmp_path / "ours" / name).read_bytes(), (tmp_path / "theirs" / name).read_bytes()
        assert ours.rstrip() == theirs.rstrip(), name


def test_a_fresh_process_loads_what_was_saved_with_the_package_alone(adapter, windows, tmp_path):
    with torch.no_grad():
        for parameter in adapter.model.parameters():
            parameter.mul_(1.01)
    adapter.save(tmp_path / "saved")
    save_file({"context": windows.context.contiguous()}, tmp_path / "in.safetensors")
    program = """
import sys
from safetensors.torch import load_file, save_file
from tsfm_public.models.tinytimemixer import TinyTimeMixerForPrediction
model = TinyTimeMixerForPrediction.from_pretrained(sys.argv[1], local_files_only=True)
forecast = model(past_values=load_file(sys.argv[2])["context"]).prediction_outputs.detach()
state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
save_file({**state, "forecast": forecast.contiguous()}, sys.argv[3])
assert "sff_fast" not in sys.modules
"""
    paths = [str(tmp_path / name) for name in ("saved", "in.safetensors", "out.safetensors")]
    subprocess.run([sys.executable, "-c", program, *paths], check=True, capture_output=True, timeout=120)
    result = load_file(tmp_path / "out.safetensors")
    assert torch.equal(result.pop("forecast"), adapter.forecast(windows.context, 96).mean)
    state = adapter.model.state_dict()
    assert result.keys() == state.keys()
    assert all(torch.equal(result[name], state[name]) for name in state)


def test_a_half_precision_model_is_saved_and_loaded_as_such(folder, windows, tmp_path):
    adapter = load("ttm", folder, dtype="bfloat16")
    adapter.save(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "config.json").read_text())["dtype"] == "bfloat16"
    again = load("ttm", tmp_path / "m")
    assert {parameter.dtype for parameter in again.model.parameters()} == {torch.bfloat16}
    forecast = again.forecast(windows.context, 96).mean
    assert forecast.dtype == torch.float32
    assert torch.equal(forecast, adapter.forecast(windows.context, 96).mean)
    # bfloat16 keeps 8 bits: values of up to 60 come out within a few tenths of the float32 forecast.
    torch.testing.assert_close(forecast, load("ttm", folder).forecast(windows.context, 96).mean, rtol=0.05, atol=0.6)


def test_options_are_saved_with_the_model(folder, tmp_path):
    load("ttm", folder, prediction_filter_length=24, head_dropout=0.7).save(tmp_path / "m")
    again = load("ttm", tmp_path / "m")
    assert (again.limits.max_prediction, again.model.config.head_dropout) == (24, 0.7)


# --- offline, and what is refused -------------------------------------------------------------------------------------


def test_loading_and_forecasting_open_no_connection(folder, windows, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    load("ttm", folder).forecast(windows.context, 96)
    with pytest.raises(CheckpointError, match=r"'ibm-granite/granite-timeseries-ttm-r2': .*nothing is downloaded"):
        load("ttm", "ibm-granite/granite-timeseries-ttm-r2")


def test_loading_leaves_the_global_generator_alone(folder):
    torch.manual_seed(9)
    state = torch.get_rng_state()
    load("ttm", folder)
    assert torch.equal(torch.get_rng_state(), state)


class AbsentFinder:
    """Finds no tsfm_public, as where granite-tsfm is not installed."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name == "tsfm_public":
            raise ModuleNotFoundError("No module named 'tsfm_public'", name="tsfm_public")


def test_the_missing_package_is_named_with_the_command(folder, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "tsfm_public"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [AbsentFinder, *sys.meta_path])
    expected = r"the package 'granite-tsfm' is not installed: run `pip install 'sff_fast\[ttm\]'`"
    with pytest.raises(MissingPackageError, match=expected):
        load("ttm", folder)
    with pytest.raises(MissingPackageError, match=expected):
        tiny("ttm")


@pytest.mark.parametrize(
    ("context_length", "prediction_length", "message"),
    [
        (500, 96, "context_length must be 512, which this ttm model was made for, got 500"),
        (1024, 96, "context_length must be 512, which this ttm model was made for, got 1024"),
        (512, 97, "prediction_length must be at most 96 for this ttm model, got 97"),
    ],
)
def test_lengths_that_the_model_was_not_made_for_are_refused(adapter, context_length, prediction_length, message):
    with pytest.raises(ArgumentError, match=message):
        adapter.forecast(torch.zeros(1, context_length, 2), prediction_length)


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the checkpoint to damage, and its configuration."""
    shutil.copytree(folder, tmp_path / "copy", copy_function=shutil.copyfile)
    (tmp_path / "copy").chmod(0o755)
    return tmp_path / "copy", json.loads((folder / "config.json").read_text())


def test_damaged_folders_are_refused_by_the_file_that_is_wrong(copy):
    folder, config = copy
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"copy' has no config.json: copy the one published"):
        load("ttm", folder)
    (folder / "config.json").write_text('{"model_type": ')
    with pytest.raises(CheckpointError, match=r"config.json' is not valid JSON"):
        load("ttm", folder)
    (folder / "config.json").write_text(json.dumps(config))
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:100_000])
    with pytest.raises(CheckpointError, match=r"model.safetensors' is damaged or cut short \(.*\): copy or download"):
        load("ttm", folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no weights: expected model.safetensors or pytorch_model.bin"):
        load("ttm", folder)
    with pytest.raises(CheckpointError, match=r"a ttm checkpoint is a folder with config.json"):
        load("ttm", folder / "config.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "patchtst"}, "model_type must be 'tinytimemixer' .* got 'patchtst'"),
        ({"architectures": ["TinyTimeMixerForMaskedPrediction"]}, "got 'tinytimemixer' and .*MaskedPrediction"),
        ({"d_model": "wide"}, "config.json': d_model must be an integer of at least 1, got 'wide'"),
        ({"context_length": None}, "context_length must be an integer of at least 1, got None"),
        ({"patch_stride": 32}, "patch_stride must equal patch_length"),
        ({"loss": "nll"}, "loss must be one of mse, mae, huber, pinball, got 'nll'"),
        ({"num_patches": "many"}, "config.json' describes no valid TTM"),
        ({"exogenous_channel_indices": [1]}, "exogenous_channel_indices needs known future values of exogenous"),
        ({"d_model": 96}, r"the tensor 'backbone.encoder.patcher.weight' has the shape \[192, 64\], .* \[96, 64\]"),
        ({"num_layers": 1}, r"of its 86 tensors \d+ unexpected \(first 'backbone.encoder.mlp_mixer_encoder"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(copy, change, message):
    folder, config = copy
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        load("ttm", folder)


def test_a_checkpoint_without_some_tensors_is_refused_rather_than_filled_with_random_ones(copy):
    folder, _ = copy
    state = load_file(folder / "model.safetensors")
    del state["head.base_forecast_block.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(first 'head.base_forecast_block.bias'\)"):
        load("ttm", folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction_filter_length": 97}, r"prediction_filter_length must be an integer in \[1, 96\], got 97"),
        ({"prediction_filter_length": 0}, "got 0"),
        ({"dropout": 1.5}, r"dropout must lie in \[0, 1\), got 1.5"),
        ({"head_dropout": "no"}, r"head_dropout must lie in \[0, 1\), got 'no'"),
        ({"freq_token": 1}, "this ttm model has no resolution prefix: leave out freq_token"),
    ],
)
def test_a_bad_option_is_refused(folder, options, message):
    with pytest.raises(ArgumentError, match=message):
        load("ttm", folder, **options)


def test_a_model_with_a_resolution_prefix_needs_and_uses_its_token(tmp_path):
    model = tiny_model(resolution_prefix_tuning=True)
    model.save_pretrained(tmp_path / "m")
    for token in (None, 5, -1):
        with pytest.raises(ArgumentError, match=r"needs freq_token, an integer in \[0, 5\), got"):
            load("ttm", tmp_path / "m", freq_token=token)
    context = torch.randn(2, 96, 3)
    forecasts = [load("ttm", tmp_path / "m", freq_token=token).forecast(context, 24).mean for token in (1, 2)]
    with torch.no_grad():
        expected = model(past_values=context, freq_token=torch.tensor([1, 1])).prediction_outputs
    assert torch.equal(forecasts[0], expected)
    assert not torch.equal(forecasts[0], forecasts[1])
    assert torch.equal(load("ttm", tmp_path / "m", freq_token=1).reload().forecast(context, 24).mean, expected)


def test_a_model_that_mixes_channels_refuses_another_number_of_them(tmp_path):
    tiny_model(mode="mix_channel", decoder_mode="mix_channel", num_input_channels=3).save_pretrained(tmp_path / "m")
    adapter = load("ttm", tmp_path / "m")
    assert adapter.forecast(torch.randn(2, 96, 3), 24).mean.shape == (2, 24, 3)
    with pytest.raises(ArgumentError, match="mixes its 3 channels, got data with 2"):
        adapter.forecast(torch.randn(2, 96, 2), 24)


def test_the_head_is_everything_but_the_backbone(adapter):
    head = dict(adapter.head_parameters())
    assert {name.split(".")[0] for name in head} == {"decoder", "head"}
    assert head["head.base_forecast_block.weight"] is adapter.model.head.base_forecast_block.weight
    assert sum(parameter.numel() for parameter in head.values()) == 289_696
    backbone = sum(parameter.numel() for parameter in adapter.model.backbone.parameters())
    assert backbone + 289_696 == 805_280


def test_the_adapter_says_what_it_needs():
    assert (TTMAdapter.package, TTMAdapter.extra, TTMAdapter.channel_independent) == ("granite-tsfm", "ttm", False)
