"""The family moment against the package momentfm."""

from __future__ import annotations

import json
import socket
import warnings

import pytest
import torch
from family_cases import upstream
from safetensors.torch import load_file, save_file

from sff_fast.adapters import MomentAdapter, load, tiny
from sff_fast.data import Batch
from sff_fast.errors import ArgumentError, CheckpointError

momentfm = pytest.importorskip("momentfm", reason="momentfm is not installed: make models-env")


def batch_of(context, target):
    return Batch(context, target, torch.arange(len(context)))


def windows(length, horizon=24):
    values = torch.randn(3, length + horizon, 2, generator=torch.Generator().manual_seed(0)).cumsum(1)
    return batch_of(values[:, :length], values[:, length:])


def change(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    config = {name: value for name, value in {**config, **fields}.items() if value != "drop"}
    (folder / "config.json").write_text(json.dumps(config))


def shake(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture
def folder(tmp_path):
    """A checkpoint with the pre-trained head, as the package writes it, off its initialisation."""
    shake(tiny("moment").model).save_pretrained(tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def fine_tuned(folder, tmp_path):
    """The folder of a forecasting model that the package made and saved, and that model."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = momentfm.MOMENTPipeline.from_pretrained(
            str(folder), model_kwargs={"task_name": "forecasting", "forecast_horizon": 24}, local_files_only=True
        )
        model.init()
    shake(model, 2).save_pretrained(tmp_path / "fine-tuned")
    return tmp_path / "fine-tuned", model.eval()


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a family must not reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def same_tensors(found, expected):
    assert found.keys() == expected.keys()
    return all(torch.equal(found[name], expected[name]) for name in expected)


def assert_same_loss(adapter, package, theirs, batch):
    """With and without dropout; the models are in eval mode afterwards."""
    for training in (True, False):
        adapter.model.train(training)
        theirs.train(training)
        torch.manual_seed(3)
        ours = adapter.loss(batch)
        torch.manual_seed(3)
        # The same operations; one sum of squares may be taken in another order.
        torch.testing.assert_close(ours, package.loss(theirs, batch.context, batch.target), rtol=1e-6, atol=0)


# --- equality with the package ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [128, 96, 8])
@pytest.mark.parametrize("horizon", [24, 8, 3])
def test_the_pre_trained_head_forecasts_as_the_package_does_by_masked_patches(folder, length, horizon):
    adapter, package = load("moment", folder), upstream("moment")
    theirs, batch = package.load(folder), windows(length, horizon)
    assert same_tensors(adapter.model.state_dict(), theirs.state_dict())
    with torch.no_grad():
        expected = package.forecast(theirs, batch.context, horizon, seed=0, num_samples=None)["mean"]
        torch.testing.assert_close(adapter.forecast(batch.context, horizon).mean, expected, rtol=0, atol=1e-5)
    assert_same_loss(adapter, package, theirs, batch)


def test_a_forecasting_head_that_the_package_trained_is_kept_and_forecasts_as_it_did(fine_tuned):
    folder, theirs = fine_tuned
    # The package's own file still says reconstruction: the shape of the head tells.
    assert json.loads((folder / "config.json").read_text())["task_name"] == "reconstruction"
    for options in ({}, {"prediction_length": 24}):
        adapter = load("moment", folder, **options)
        assert same_tensors(adapter.model.state_dict(), theirs.state_dict())
    package = upstream("moment")
    for length in (128, 96):
        batch = windows(length)
        with torch.no_grad():
            expected = package.forecast(theirs, batch.context, 24, seed=0, num_samples=None)["mean"]
        torch.testing.assert_close(adapter.forecast(batch.context, 24).mean, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(adapter.forecast(batch.context, 10).mean, expected[:, :10], rtol=0, atol=1e-5)
        assert_same_loss(adapter, package, theirs, batch)


@pytest.mark.parametrize("length", [128, 64])
def test_imputed_and_expected_values_are_those_of_the_package(folder, length):
    adapter, package = load("moment", folder), upstream("moment")
    theirs, values = package.load(folder), windows(length).context
    patches = torch.rand(3, length // 8, 1, generator=torch.Generator().manual_seed(1)) > 0.3
    # The package has one mask for all channels; one point hides its patch.
    mask = patches.repeat_interleave(8, dim=1).expand(values.shape).clone()
    single = mask.clone()
    single[:, 5] = False
    x, input_mask = package.window(theirs, values)
    for found_mask in (mask, single):
        hidden = torch.ones(3, 128)
        hidden[:, 128 - length :] = found_mask[:, :, 0].float()
        with torch.no_grad():
            expected = theirs.reconstruction(x_enc=x, input_mask=input_mask, mask=hidden).reconstruction
        found = adapter.impute(values, found_mask)
        torch.testing.assert_close(found, expected[:, :, -length:].transpose(1, 2), rtol=0, atol=1e-5)
    with torch.no_grad():
        anomalies = theirs.detect_anomalies(x_enc=x, input_mask=input_mask)
    found = adapter.reconstruct(values)
    torch.testing.assert_close(found, anomalies.reconstruction[:, :, -length:].transpose(1, 2), rtol=0, atol=1e-5)
    torch.testing.assert_close(adapter.anomaly_loss(values), anomalies.anomaly_scores[:, :, -length:].mean(), rtol=1e-5, atol=0)


def test_every_channel_has_a_mask_of_its_own_and_one_that_is_hidden_whole_gives_finite_values(folder):
    adapter, values = load("moment", folder), windows(128).context
    mask = torch.ones_like(values, dtype=torch.bool)
    mask[:, 16:40, 0] = False
    both = adapter.impute(values, mask)
    torch.testing.assert_close(both[:, :, :1], adapter.impute(values[:, :, :1], mask[:, :, :1]))
    torch.testing.assert_close(both[:, :, 1], adapter.reconstruct(values)[:, :, 1])
    mask[:, :, 0] = False
    assert adapter.impute(values, mask).isfinite().all()
    adapter.imputation_loss(values, mask).backward()
    assert all(p.grad.isfinite().all() for p in adapter.model.parameters() if p.grad is not None)


# --- heads ------------------------------------------------------------------------------------------------------------


def test_a_new_forecasting_head_is_the_one_that_the_package_draws_and_said_to_be_random(folder):
    torch.manual_seed(9)
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match=r"no forecasting head for 24 steps, so a new one is drawn at random \(seed=5\)"):
        adapter = load("moment", folder, prediction_length=24, seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = momentfm.MOMENTPipeline.from_pretrained(
            str(folder), model_kwargs={"task_name": "forecasting", "forecast_horizon": 24}, local_files_only=True
        )
        torch.manual_seed(5)
        theirs.init()
    assert same_tensors(adapter.model.state_dict(), theirs.state_dict())
    assert adapter.limits.max_prediction == 24
    assert not adapter.model.training
    # Reloading warns no more: the same head again, not another one.
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same_tensors(adapter.reload().model.state_dict(), theirs.state_dict())
    assert {name for name, _ in adapter.head_parameters()} == {"head.linear.weight", "head.linear.bias"}
    plan = adapter.plan()
    assert list(plan) == [name for name, _ in adapter.model.named_parameters()]
    assert plan["head.linear.weight"].shape == (24, 32 * 16)


@pytest.mark.filterwarnings("ignore:moment. .* has no forecasting head:UserWarning")
def test_a_head_of_another_length_is_replaced_and_one_of_this_length_kept(fine_tuned):
    folder, theirs = fine_tuned
    kept = load("moment", folder, prediction_length=24)
    assert torch.equal(kept.model.head.linear.weight, theirs.head.linear.weight)
    assert load("moment", folder, prediction_length=30).model.head.linear.weight.shape == (30, 512)


@pytest.mark.filterwarnings("ignore:moment. .* has no forecasting head:UserWarning")
def test_a_saved_forecasting_model_opens_with_its_head_in_the_package_and_here(folder, tmp_path):
    adapter = load("moment", folder, prediction_length=24)
    shake(adapter.model, 3)
    adapter.save(tmp_path / "saved")
    config = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert (config["task_name"], config["forecast_horizon"]) == ("forecasting", 24)
    package, batch = upstream("moment"), windows(96)
    theirs = package.load(tmp_path / "saved")
    assert same_tensors(theirs.state_dict(), adapter.model.state_dict())
    with torch.no_grad():
        expected = package.forecast(theirs, batch.context, 24, seed=0, num_samples=None)["mean"]
    for ours in (adapter, load("moment", tmp_path / "saved")):
        torch.testing.assert_close(ours.forecast(batch.context, 24).mean, expected, rtol=0, atol=1e-5)


def test_a_forecasting_head_says_that_it_cannot_do_the_other_tasks(fine_tuned):
    adapter, values = load("moment", fine_tuned[0]), torch.zeros(1, 128, 1)
    with pytest.raises(ArgumentError, match="has a forecasting head and cannot do imputation: load a checkpoint with the pre-"):
        adapter.impute(values, torch.ones_like(values, dtype=torch.bool))
    with pytest.raises(ArgumentError, match="has a forecasting head and cannot do anomaly detection"):
        adapter.reconstruct(values)
    with pytest.raises(ArgumentError, match="prediction_length must be at most 24 for this moment model, got 25"):
        adapter.forecast(values, 25)


# --- options and limits -----------------------------------------------------------------------------------------------


def test_what_the_package_freezes_can_be_trained_here(folder):
    change(folder, freeze_encoder=True, freeze_embedder=True)
    adapter = load("moment", folder)
    assert all(parameter.requires_grad for parameter in adapter.model.parameters())
    adapter.loss(windows(128)).backward()
    without = {name for name, parameter in adapter.model.named_parameters() if parameter.grad is None}
    # Tokens of text, which no time series has.
    assert without == {"encoder.embed_tokens.weight"}


def test_dropouts_are_the_checkpoints_unless_given_and_are_saved_with_it(folder, tmp_path):
    def rates(adapter):
        modules = dict(adapter.model.named_modules())
        names = ("patch_embedding.dropout", "encoder.dropout", "head.dropout")
        return [modules[name].p for name in names]

    change(folder, patch_dropout=0.2, head_dropout=0.3)
    assert rates(load("moment", folder)) == [0.2, 0.1, 0.3]
    changed = load("moment", folder, dropout=0.4, head_dropout=0.0)
    assert rates(changed) == rates(changed.reload()) == [0.4, 0.4, 0.0]
    changed.save(tmp_path / "saved")
    assert rates(load("moment", tmp_path / "saved")) == [0.4, 0.4, 0.0]


def test_gradient_checkpointing_changes_memory_and_no_number(folder):
    gradients = []
    for checkpointing in (False, True):
        adapter = load("moment", folder, gradient_checkpointing=checkpointing)
        switches = [getattr(module, "gradient_checkpointing", False) for module in adapter.model.encoder.modules()]
        assert any(switches) == checkpointing
        adapter.model.train()
        torch.manual_seed(0)
        adapter.loss(windows(128)).backward()
        gradients.append({name: p.grad for name, p in adapter.model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-5, atol=1e-7, msg=name)


def test_half_precision_weights_keep_the_level_and_scale_of_the_data(folder):
    adapter, half = load("moment", folder), load("moment", folder, dtype="bfloat16")
    level = 10_000 + windows(128).context
    found = half.forecast(level, 8).mean
    assert found.dtype == torch.float32
    # In bfloat16 such a level alone has steps of 64; the statistics are taken in float32.
    torch.testing.assert_close(found, adapter.forecast(level, 8).mean, rtol=0, atol=0.5)


def test_the_limits_are_whole_patches_of_the_models_window(folder):
    adapter = load("moment", folder)
    limits = adapter.limits
    assert (limits.min_context, limits.max_context, limits.multiple_of, limits.max_prediction) == (8, 128, 8, 120)
    for length, message in ((136, "at most 128"), (100, "multiple of 8 .* use 96 or 104"), (4, "at least 8")):
        with pytest.raises(ArgumentError, match=message):
            adapter.forecast(torch.zeros(1, length, 1), 8)
    with pytest.raises(ArgumentError, match="at most 120"):
        adapter.forecast(torch.zeros(1, 128, 1), 121)
    assert adapter.forecast(torch.zeros(1, 8, 1), 120).mean.isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prediction_length": 0}, "prediction_length must be an integer of at least 1, got 0"),
        ({"seed": 1.5}, "seed must be an integer, got 1.5"),
        ({"dropout": 1}, r"dropout must lie in \[0, 1\), got 1"),
        ({"head_dropout": "a"}, r"head_dropout must lie in \[0, 1\), got 'a'"),
        ({"dtype": "int8"}, "dtype must be one of"),
        ({"horizon": 3}, "the family 'moment' has no option 'horizon': it takes prediction_length, seed"),
    ],
)
def test_a_bad_option_is_refused(folder, options, message):
    with pytest.raises(ArgumentError, match=message):
        load("moment", folder, **options)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"seq_len": 0}, "seq_len must be an integer of at least 1, got 0"),
        ({"seq_len": 100}, "seq_len must be a multiple of patch_len=8, got 100"),
        ({"patch_stride_len": 4}, "patch_stride_len must equal patch_len=8, got 4"),
        ({"transformer_type": "decoder_only"}, "transformer_type must be 'encoder_only', got 'decoder_only'"),
        ({"d_model": "x"}, "d_model must be an integer of at least 1, got 'x'"),
        ({"d_model": 16}, r"the tensor '.*' has the shape \[32.*\], the configuration asks for \[16"),
        ({"t5_config": {"d_model": 32}}, "t5_config.d_kv must be an integer of at least 1, got None"),
        ({"t5_config": "drop"}, "does not fit the family 'moment': it must have t5_config .* first tensor is '.*'"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=message) as caught:
        load("moment", folder)
    assert "\n" not in str(caught.value)


def test_tensors_of_another_size_or_name_are_refused_by_the_first(folder):
    state = load_file(folder / "model.safetensors")
    weight = state.pop("head.linear.weight")
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(first 'head.linear.weight'\)$"):
        load("moment", folder)
    save_file({**state, "head.linear.weight": weight[:, :5].clone()}, folder / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"'head.linear.weight' has the shape \[8, 5\], the configuration asks for \[8, 32\]"
    ):
        load("moment", folder)


def test_a_file_is_no_folder(folder):
    with pytest.raises(CheckpointError, match=r"a moment checkpoint is a folder with config.json and model.safetensors"):
        MomentAdapter.load(folder / "model.safetensors")
