"""The family timesfm against transformers' and Google's own classes; what holds for every family is in test_families.py."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from family_cases import shaken, upstream
from safetensors.torch import load_file, save_file

from sff_fast.adapters import load, tiny
from sff_fast.adapters import timesfm_2_5_google as google
from sff_fast.adapters._timesfm import tuner_loss
from sff_fast.errors import ArgumentError, CheckpointError

pytest.importorskip("transformers", reason="transformers is not installed: make models-env")
pytest.importorskip("timesfm", reason="timesfm is not installed: make models-env")
pytestmark = pytest.mark.slow

VARIANTS = ("timesfm-2.5", "timesfm-2.0", "timesfm-2.5-google", "timesfm-3-google")


def windows(context=96, horizon=128, channels=1, batch=3):
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(batch, context + horizon, channels, generator=generator).cumsum(1)
    return SimpleNamespace(context=values[:, :context], target=values[:, context:])


def gradient(model):
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])


def assert_same_forecast(found, expected, tolerance=0.0):
    torch.testing.assert_close(found.mean, expected["mean"], rtol=0, atol=tolerance)
    assert list(found.quantiles) == list(expected["quantiles"])
    for level, values in found.quantiles.items():
        torch.testing.assert_close(values, expected["quantiles"][level], rtol=0, atol=tolerance)


@pytest.fixture
def folders(tmp_path):
    """Variant to a folder with its saved tiny model."""

    def folder(variant):
        path = tmp_path / variant
        if not path.exists():
            shaken(variant).save(path)
        return path

    return folder


# --- equality with the packages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("context", "horizon", "channels"), [(96, 128, 1), (100, 40, 1), (7, 128, 2), (128, 33, 3)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_and_forecast_equal_the_package_for_any_lengths_and_channels(variant, context, horizon, channels, folders):
    script, adapter = upstream(variant), load("timesfm", folders(variant))
    model, batch = script.load(str(folders(variant))), windows(context, horizon, channels)
    assert type(adapter).variant == variant
    with torch.no_grad():
        # The same terms, added up in another order.
        expected = script.loss(model, batch.context, batch.target)
        torch.testing.assert_close(adapter.loss(batch), expected, rtol=3e-6, atol=0)
        expected = script.forecast(model, batch.context, horizon, 0, None)
    # The scripts of 2.0 and 2.5-google pad to the longest context, and go through the windows one by one.
    other_order = variant in ("timesfm-2.0", "timesfm-2.5-google")
    assert_same_forecast(adapter.forecast(batch.context, horizon), expected, 2e-6 if other_order else 0.0)


@pytest.mark.parametrize("variant", ["timesfm-2.5", "timesfm-2.0"])
def test_gradients_equal_those_of_the_class(variant, folders):
    script, adapter, batch = upstream(variant), load(variant, folders(variant)), windows(channels=2)
    model = script.load(str(folders(variant)))
    adapter.loss(batch).backward()
    script.loss(model, batch.context, batch.target).backward()
    expected = gradient(model)
    assert float((gradient(adapter.model) - expected).norm() / expected.norm()) < 1e-5


def test_padding_to_a_patch_forecasts_what_padding_to_the_longest_context_does(folders):
    adapter, batch = load("timesfm-2.5", folders("timesfm-2.5")), windows(96)
    series = list(batch.context[..., 0])
    with torch.no_grad():
        output = adapter.model(past_values=series, truncate_negative=False)
    torch.testing.assert_close(adapter.forecast(batch.context, 128).mean[..., 0], output.mean_predictions, rtol=0, atol=1e-5)


def test_a_forecast_does_not_depend_on_the_other_windows_of_a_batch():
    # The class of 2.5 clamps at zero where the whole batch is positive, unless told otherwise.
    adapter, generator = shaken("timesfm-2.5"), torch.Generator().manual_seed(0)
    positive = 20 * torch.rand(3, 96, 1, generator=generator) ** 8
    alone = adapter.forecast(positive, 128).mean
    together = adapter.forecast(torch.cat((positive, -positive)), 128).mean
    torch.testing.assert_close(together[:3], alone, rtol=0, atol=1e-5)
    assert float(alone.min()) < 0
    with torch.no_grad():
        clamped = adapter.model(past_values=list(positive[..., 0]), forecast_context_len=96).mean_predictions
    assert float(clamped.min()) == 0


def test_the_class_of_2_5_pairs_quantile_channels_with_the_levels_of_their_neighbours(folders):
    # What the documentation of the adapter says of transformers' loss; when this fails, it has been mended.
    adapter, batch = load("timesfm-2.5", folders("timesfm-2.5")), windows()
    model, past, target = adapter.model, batch.context[..., 0], batch.target[..., 0]
    mean, deviation = past.mean(1, keepdim=True), past.std(1, keepdim=True)
    with torch.no_grad():
        full = model(past_values=list(past), forecast_context_len=96, truncate_negative=False).full_predictions
        full, target = (full - mean[..., None]) / deviation[..., None], (target - mean) / deviation

        def pinball(channel, level):
            error = target - full[..., channel]
            return torch.maximum(level * error, (level - 1) * error).mean()

        paired = [(0, 0.1), (1, 0.2), (2, 0.3), (3, 0.4), (4, 0.5), (6, 0.6), (7, 0.7), (8, 0.8), (9, 0.9)]
        expected = (full[..., 5] - target).square().mean() + sum(pinball(*pair) for pair in paired) / 9
        torch.testing.assert_close(adapter.loss(batch), expected, rtol=1e-5, atol=0)
        own = (full[..., 0] - target).square().mean() + sum(2 * pinball(i, i / 10) for i in range(1, 10))
        tuner = load("timesfm-2.5", folders("timesfm-2.5"), loss="tuner")
        torch.testing.assert_close(tuner.loss(batch), own, rtol=1e-5, atol=0)
    assert torch.equal(tuner.reload().loss(batch), tuner.loss(batch))
    with pytest.raises(ArgumentError, match=r"loss must be one of 'class', 'tuner', got 'mse'"):
        load("timesfm-2.5", folders("timesfm-2.5"), loss="mse")


def test_the_loss_of_the_fine_tuner_has_known_values():
    quantiles, target = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[1.0]])
    # 2 * (0.1 * 1) + 2 * (0.1 * 1), and the square of 3.
    torch.testing.assert_close(tuner_loss(None, quantiles, target, [0.1, 0.9]), torch.tensor(0.4))
    torch.testing.assert_close(tuner_loss(torch.tensor([[4.0]]), quantiles, target, [0.1, 0.9]), torch.tensor(9.4))


def test_the_frequency_of_2_0_is_an_option_of_load(folders):
    folder, batch = folders("timesfm-2.0"), windows()
    forecasts = [load("timesfm-2.0", folder, freq=freq).forecast(batch.context, 128).mean for freq in (0, 1, 2)]
    model = upstream("timesfm-2.0").load(str(folder))
    for freq, found in enumerate(forecasts):
        with torch.no_grad():
            expected = model(past_values=list(batch.context[..., 0]), freq=[freq] * 3).mean_predictions
        torch.testing.assert_close(found[..., 0], expected, rtol=0, atol=2e-6)
        assert freq == 0 or not torch.allclose(found, forecasts[0], atol=1e-4)
    assert torch.equal(load("timesfm-2.0", folder, freq=2).reload().forecast(batch.context, 128).mean, forecasts[2])
    for wrong in (3, -1, "daily", True):
        with pytest.raises(ArgumentError, match=r"freq must be an integer in \[0, 3\) .* got"):
            load("timesfm-2.0", folder, freq=wrong)


# --- Google's packages ------------------------------------------------------------------------------------------------


def test_long_horizons_of_googles_2_5_are_trained_from_true_values_and_forecast_as_the_package_does(folders):
    script, adapter = upstream("timesfm-2.5-google"), load("timesfm", folders("timesfm-2.5-google"))
    model, batch = script.load(str(folders("timesfm-2.5-google"))), windows(64, 250)
    with torch.no_grad():
        torch.testing.assert_close(adapter.loss(batch), script.loss(model, batch.context, batch.target), rtol=3e-6, atol=0)
    # The script goes through the windows one by one.
    assert_same_forecast(adapter.forecast(batch.context, 250), script.forecast(model, batch.context, 250, 0, None), 2e-6)


def test_both_heads_of_googles_2_5_learn():
    adapter = shaken("timesfm-2.5-google")
    adapter.loss(windows(64, 40)).backward()
    for name, parameter in adapter.model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


def test_the_published_sizes_are_the_packages_own_class():
    module = google._package()
    published = module.TimesFM_2p5_200M_torch_module
    assert google._class(google._Sizes()) is published
    with torch.device("meta"):
        model = published()
    assert google._sizes(model.state_dict()) == google._Sizes()
    assert sum(parameter.numel() for parameter in model.parameters()) == 231_289_280


def test_googles_2_5_is_loaded_from_a_file_too_and_keeps_the_configuration_beside_it(folders, tmp_path):
    folder, batch = folders("timesfm-2.5-google"), windows()
    expected = load("timesfm-2.5-google", folder).forecast(batch.context, 128).mean
    assert torch.equal(load("timesfm", folder / "model.safetensors").forecast(batch.context, 128).mean, expected)
    (folder / "config.json").write_text('{"kept": 1}')
    load("timesfm", folder).save(tmp_path / "again")
    assert json.loads((tmp_path / "again" / "config.json").read_text()) == {"kept": 1}
    (folder / "config.json").unlink()
    assert torch.equal(load("timesfm", folder).forecast(batch.context, 128).mean, expected)


def test_context_and_horizon_of_googles_2_5_share_its_limit():
    adapter = tiny("timesfm-2.5-google")
    assert (adapter.limits.max_context, adapter.limits.max_prediction) == (16384 - 128, 256)
    adapter.check_lengths(16256, 128)
    with pytest.raises(ArgumentError, match=r"at most 16384 together for this timesfm-2.5-google model, got 16256 and 256"):
        adapter.check_lengths(16256, 129)


def test_a_window_that_begins_with_a_constant_has_finite_gradients_in_3():
    # The statistics behind a constant patch have no spread, and the root of zero no derivative.
    adapter, batch = shaken("timesfm-3-google"), windows(128, 64, channels=2)
    batch.context[:, :40] = 3.0
    loss = adapter.loss(batch)
    loss.backward()
    assert gradient(adapter.model).isfinite().all()
    with torch.no_grad():
        expected = upstream("timesfm-3-google").loss(adapter.model, batch.context, batch.target)
    torch.testing.assert_close(loss.detach(), expected, rtol=3e-6, atol=0)
    still = SimpleNamespace(context=torch.full((2, 64, 1), 5.0), target=torch.full((2, 64, 1), 5.0))
    for variant in VARIANTS:
        adapter = shaken(variant)
        adapter.loss(still).backward()
        assert gradient(adapter.model).isfinite().all(), variant


def test_gradients_of_3_are_those_of_the_forecast_with_fixed_statistics():
    adapter, batch = shaken("timesfm-3-google"), windows(64, 64)
    adapter.loss(batch).backward()
    # A step against the gradient of the output layer, behind which lie no statistics but those that are held fixed,
    # lowers the loss by its squared length; the loss is linear in the layer's bias as far as the forecast's order holds.
    bias = adapter.model.output_head.bias
    direction, step = bias.grad.clone(), 1e-3
    with torch.no_grad():
        before = adapter.loss(batch)
        bias.sub_(step * direction)
        after = adapter.loss(batch)
    assert float((before - after) / (step * direction.square().sum())) == pytest.approx(1, rel=0.15)


# --- half precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_keeps_the_statistics_of_a_window_in_float32(variant, folders):
    batch = windows(96, 64)
    # At the offset bfloat16 has steps of 16: as much as the signal.
    batch = SimpleNamespace(context=batch.context + 3000, target=batch.target + 3000)
    half, full = load(variant, folders(variant), dtype="bfloat16"), load(variant, folders(variant))
    loss, expected = half.loss(batch), full.loss(batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.05, atol=0)
    loss.backward()
    assert gradient(half.model).isfinite().all()
    found, exact = half.forecast(batch.context, 64).mean, full.forecast(batch.context, 64).mean
    assert found.dtype == torch.float32
    assert float((found - exact).abs().max()) < 2
    assert not half.model._forward_pre_hooks
    assert not any(layer._forward_pre_hooks for layer in half.model.modules())
    with pytest.raises(ArgumentError, match=rf"dtype must be float32, bfloat16 or float16 for {variant}, .* got float64"):
        load(variant, folders(variant), dtype="float64")


# --- files ------------------------------------------------------------------------------------------------------------


def written_by_the_package(variant, folder, target):
    """Save a folder's model once more, by the package's own save_pretrained."""
    model = upstream(variant).load(str(folder))
    if variant != "timesfm-2.5-google":
        model.save_pretrained(target)
        return
    from timesfm import TimesFM_2p5_200M_torch

    wrapper = object.__new__(TimesFM_2p5_200M_torch)
    wrapper.model, wrapper._hub_mixin_config = model, {"torch_compile": True}
    wrapper.save_pretrained(target)


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_are_those_of_save_pretrained(variant, folders, tmp_path):
    ours, theirs = folders(variant), tmp_path / "theirs"
    written_by_the_package(variant, ours, theirs)
    assert sorted(path.name for path in ours.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((ours / "config.json").read_text()) == json.loads((theirs / "config.json").read_text())
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    load("timesfm", theirs).save(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


def test_the_feed_forward_layers_of_2_5_have_other_names_on_disk_than_in_the_class(folders):
    folder = folders("timesfm-2.5")
    state = load_file(folder / "model.safetensors")
    adapter = load("timesfm-2.5", folder)
    layer = adapter.model.model.layers[1].mlp
    assert torch.equal(layer.fc1.weight, state["model.layers.1.mlp.ff0.weight"])
    assert torch.equal(layer.fc2.weight, state["model.layers.1.mlp.ff1.weight"])
    # A model that transformers did not load is saved under the same names.
    adapter.build().save_pretrained(folder / "built")
    assert load_file(folder / "built" / "model.safetensors").keys() == state.keys()
    renamed = {name.replace(".ff0.", ".fc1.").replace(".ff1.", ".fc2."): tensor for name, tensor in state.items()}
    save_file(renamed, folder / "model.safetensors")
    again = load("timesfm-2.5", folder)
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), adapter.model.parameters(), strict=True))


@pytest.mark.parametrize("variant", ["timesfm-2.5", "timesfm-2.0"])
def test_shards_and_their_index_are_read(variant, folders):
    folder = folders(variant)
    expected = load("timesfm", folder).forecast(windows().context, 128).mean
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[:9], "model-00002-of-00002.safetensors": names[9:]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in parts.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(load("timesfm", folder).forecast(windows().context, 128).mean, expected)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*model-00002-of-00002.safetensors"):
        load("timesfm", folder)


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("timesfm-2.5", {"model_type": "timesfm"}, "model_type must be 'timesfm2_5', got .*first tensor is 'model.inp"),
        ("timesfm-2.5", {"hidden_size": "wide"}, "describes no valid timesfm-2.5"),
        ("timesfm-2.5", {"quantiles": [0.9, 0.1]}, r"quantiles must rise within \(0, 1\), got \[0.9, 0.1\]"),
        ("timesfm-2.0", {"num_hidden_layers": 3}, r"missing \(first 'decoder.layers.2"),
        ("timesfm-2.0", {"horizon_length": 64}, r"has the shape \[1280, 32\], the configuration asks for \[640, 32\]"),
        ("timesfm-3-google", {"transformer_config": {"num_layers": 2}}, "describes no valid timesfm-3-google"),
        ("timesfm-3-google", {"output_patch_len": 48}, "describes no valid timesfm-3-google model .*multiple"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folders, variant, change, message):
    folder = folders(variant)
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as caught:
        load(variant, folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("variant", VARIANTS)
def test_damaged_folders_are_refused_by_what_is_wrong(variant, folders):
    folder = folders(variant)
    state = load_file(folder / "model.safetensors")
    last = sorted(name for name in state if "output" in name)[-1]
    save_file({name: tensor for name, tensor in state.items() if name != last}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=rf"1 missing \(first '{last}'\)"):
        load(variant, folder)
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(CheckpointError) as caught:
        load(variant, folder)
    assert "\n" not in str(caught.value)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load(variant, folder)


def test_other_folders_are_recognised_by_none(tmp_path, folders):
    from sff_fast.adapters import TimesFM3GoogleAdapter, TimesFM20Adapter, TimesFM25Adapter, TimesFM25GoogleAdapter

    classes = (TimesFM25Adapter, TimesFM20Adapter, TimesFM25GoogleAdapter, TimesFM3GoogleAdapter)
    for variant, cls in zip(VARIANTS, classes, strict=True):
        assert [other.variant for other in classes if other.recognises(folders(variant))] == [cls.variant]
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("nothing")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("[")
    for path in (tmp_path / "empty", tmp_path / "text", tmp_path / "broken", tmp_path / "absent"):
        assert not any(cls.recognises(path) for cls in classes)


# --- the two packages of 2.5 ------------------------------------------------------------------------------------------

_BLOCKS = {
    "tokenizer": "model.input_ff_layer",
    "output_projection_point": "output_projection_point",
    "output_projection_quantiles": "output_projection_quantiles",
}
_LAYER = {
    "pre_attn_ln.scale": "input_layernorm.weight",
    "post_attn_ln.scale": "post_attention_layernorm.weight",
    "pre_ff_ln.scale": "pre_feedforward_layernorm.weight",
    "post_ff_ln.scale": "post_feedforward_layernorm.weight",
    "attn.query_ln.scale": "self_attn.q_norm.weight",
    "attn.key_ln.scale": "self_attn.k_norm.weight",
    "attn.per_dim_scale.per_dim_scale": "self_attn.scaling",
    "attn.out.weight": "self_attn.o_proj.weight",
    "ff0.weight": "mlp.fc1.weight",
    "ff1.weight": "mlp.fc2.weight",
}


def as_in_transformers(state):
    """The tensors of Google's model under the names that transformers gives them."""
    found = {}
    for name, tensor in state.items():
        head, rest = name.split(".", 1)
        if head in _BLOCKS:
            found[f"{_BLOCKS[head]}.{rest.replace('hidden_layer', 'input_layer')}"] = tensor
            continue
        layer, rest = rest.split(".", 1)
        if rest == "attn.qkv_proj.weight":
            for part, piece in zip("qkv", tensor.chunk(3), strict=True):
                found[f"model.layers.{layer}.self_attn.{part}_proj.weight"] = piece
        else:
            found[f"model.layers.{layer}.{_LAYER[rest]}"] = tensor
    return found


def test_both_packages_of_2_5_agree_on_the_same_weights(folders):
    theirs, batch = shaken("timesfm-2.5-google"), windows(96, 128, channels=2)
    ours = load("timesfm-2.5", folders("timesfm-2.5"), loss="tuner")
    ours.model.load_state_dict(as_in_transformers(theirs.model.state_dict()))
    torch.testing.assert_close(
        ours.forecast(batch.context, 128).mean, theirs.forecast(batch.context, 128).mean, rtol=0, atol=1e-5
    )
    # Google's loss goes without the average over the flipped window.
    ours.model.config.force_flip_invariance = False
    torch.testing.assert_close(ours.loss(batch), theirs.loss(batch), rtol=1e-5, atol=0)
