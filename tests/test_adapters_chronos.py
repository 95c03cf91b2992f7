"""The family chronos against chronos-forecasting's own classes."""

from __future__ import annotations

import copy
import json
import math
import shutil
import socket

import pytest
import torch
from family_cases import upstream
from safetensors.torch import load_file, save_file

from sff_fast.adapters import Chronos2Adapter, ChronosBoltAdapter, ChronosT5Adapter, load, tiny
from sff_fast.data import Batch
from sff_fast.errors import ArgumentError, CheckpointError

chronos = pytest.importorskip("chronos", reason="chronos-forecasting is not installed: make models-env")

DUMMIES = {"chronos-t5": "dummy-chronos-model", "chronos-bolt": "dummy-chronos-bolt-model"}
VARIANTS = {"chronos-t5": ChronosT5Adapter, "chronos-bolt": ChronosBoltAdapter, "chronos-2": Chronos2Adapter}


def batch_of(context, target):
    return Batch(context, target, torch.arange(len(context)))


@pytest.fixture(scope="module")
def windows():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(3, 264, 2, generator=generator).cumsum(1)
    return batch_of(values[:, :200], values[:, 200:])


@pytest.fixture
def published(test_data, tmp_path):
    """A variant to its checkpoint in the published layout: a real dummy, or one that transformers itself writes."""

    def folder_of(variant):
        if variant in DUMMIES:
            folder = tmp_path / variant
            shutil.copytree(test_data / "chronos-dummy" / DUMMIES[variant], folder, copy_function=shutil.copyfile)
            folder.chmod(0o755)
            # The package loads in the dtype that config.json names, which for the published T5 is not that of the file.
            change(folder, torch_dtype="float32")
            return folder
        tiny(variant).model.save_pretrained(tmp_path / variant)
        change(tmp_path / variant, architectures=["Chronos2Model"], chronos_pipeline_class="Chronos2Pipeline")
        return tmp_path / variant

    return folder_of


def change(folder, **fields):
    """Change fields of a config.json; a dict changes fields of the field."""
    config = json.loads((folder / "config.json").read_text())
    for name, value in fields.items():
        config[name] = {**config[name], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))


# --- equality with the package ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_published_checkpoint_has_the_weights_that_the_package_loads(variant, published):
    folder = published(variant)
    adapter = load("chronos", folder)
    assert type(adapter) is VARIANTS[variant]
    theirs = upstream(variant).load(folder)
    assert type(adapter.model) is type(theirs)
    assert [name for name, _ in adapter.model.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    expected = {**theirs.state_dict(), **dict(theirs.named_buffers())}
    found = {**adapter.model.state_dict(), **dict(adapter.model.named_buffers())}
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_new_model_is_drawn_by_the_constructor_of_the_package(variant):
    adapter = tiny(variant)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        ours = adapter.build()
        torch.manual_seed(4)
        theirs = type(adapter.model)(copy.deepcopy(adapter.model.config))
    assert type(adapter.model).__module__.split(".")[0] == ("transformers" if variant == "chronos-t5" else "chronos")
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("length", [64, 40])
def test_the_loss_and_its_gradients_are_those_of_the_package_with_and_without_dropout(variant, length, published, windows):
    folder = published(variant)
    adapter, package = load("chronos", folder), upstream(variant)
    theirs = package.load(folder)
    batch = batch_of(windows.context, windows.target[:, :length])
    for training in (False, True):
        adapter.model.train(training)
        theirs.train(training)
        torch.manual_seed(3)
        ours = adapter.loss(batch)
        torch.manual_seed(3)
        expected = package.loss(theirs, batch.context, batch.target)
        if variant == "chronos-t5" and length == 40 and training:
            # The package pads a short target to its full length, so dropout falls on other elements.
            continue
        # T5 sums the same tokens in another order.
        torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    if length == 64:
        ours.backward()
        expected.backward()
        for name, parameter in adapter.model.named_parameters():
            torch.testing.assert_close(parameter.grad, theirs.get_parameter(name).grad, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_horizon_beyond_the_models_own_is_trained_on_in_pieces(variant, windows):
    adapter, package = tiny(variant), upstream(variant)
    longest = 64 if variant != "chronos-2" else 1024
    generator = torch.Generator().manual_seed(1)
    target = torch.randn(3, longest + 20, 2, generator=generator).cumsum(1)
    ours = adapter.loss(batch_of(windows.context, target))
    seen = torch.cat((windows.context, target[:, :longest]), dim=1)
    first = package.loss(adapter.model, windows.context, target[:, :longest])
    second = package.loss(adapter.model, seen, target[:, longest:])
    # By steps: cross-entropy is a mean over tokens, Bolt's loss a sum over steps, that of Chronos-2 a mean over patches.
    weights = {"chronos-t5": (64 / 84, 20 / 84), "chronos-bolt": (1, 1), "chronos-2": (1024 / 1056, 32 / 1056)}[variant]
    torch.testing.assert_close(ours, weights[0] * first + weights[1] * second, rtol=1e-5, atol=0)


@pytest.mark.filterwarnings("ignore:We recommend keeping prediction length")
@pytest.mark.parametrize(
    ("variant", "length"), [("chronos-t5", 40), ("chronos-t5", 100), ("chronos-bolt", 40), ("chronos-bolt", 200)]
)
def test_forecasts_of_published_checkpoints_are_the_pipelines(variant, length, published, windows):
    folder = published(variant)
    adapter, package = load("chronos", folder), upstream(variant)
    samples = 3 if variant == "chronos-t5" else None
    ours = adapter.forecast(windows.context, length, seed=8, num_samples=samples)
    with torch.random.fork_rng(devices=[]):
        theirs = package.forecast(package.load(folder), windows.context, length, seed=8, num_samples=samples)
    torch.testing.assert_close(ours.mean, theirs["mean"], rtol=0, atol=1e-5)
    if variant == "chronos-t5":
        assert torch.equal(ours.samples, theirs["samples"])
    else:
        assert list(ours.quantiles) == list(theirs["quantiles"])
        for level, values in theirs["quantiles"].items():
            torch.testing.assert_close(ours.quantiles[level], values, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings("ignore:We recommend keeping prediction length")
def test_a_long_forecast_of_chronos_2_is_the_pipelines_and_warns_no_more(windows):
    adapter, package = tiny("chronos-2"), upstream("chronos-2")
    theirs = package.forecast(adapter.model, windows.context, 1030, seed=0, num_samples=None)
    ours = adapter.forecast(windows.context, 1030)
    torch.testing.assert_close(ours.mean, theirs["mean"], rtol=0, atol=1e-5)
    assert len(ours.quantiles) == 21


def test_long_forecasts_raise_none_of_the_packages_advice(windows):
    # pytest turns warnings into errors.
    for variant in ("chronos-bolt", "chronos-t5"):
        assert tiny(variant).forecast(windows.context[:1], 70).mean.shape == (1, 70, 2)


def test_sample_paths_are_as_many_as_asked_or_as_published(windows):
    adapter = tiny("chronos-t5")
    assert adapter.forecast(windows.context, 2).samples.shape == (3, 20, 2, 2)
    forecast = adapter.forecast(windows.context, 2, num_samples=5)
    assert forecast.samples.shape == (3, 5, 2, 2)
    torch.testing.assert_close(forecast.mean, forecast.samples.mean(1))


def test_the_channels_of_chronos_2_see_each_other_and_those_of_the_others_do_not(windows):
    other = windows.context.clone()
    other[:, :, 1] = other[:, :, 1].flip(1)
    for variant, independent in (("chronos-2", False), ("chronos-bolt", True)):
        adapter = tiny(variant)
        with torch.no_grad():
            for parameter in adapter.model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        before, after = (adapter.forecast(context, 8).mean[:, :, 0] for context in (windows.context, other))
        assert torch.equal(before, after) == independent
        assert adapter.channel_independent == independent


def test_a_cast_of_chronos_2_leaves_the_frequencies_in_float32(windows, tmp_path):
    adapter = tiny("chronos-2")
    adapter.model.to(torch.bfloat16)
    forecast = adapter.forecast(windows.context, 8).mean
    adapter.save(tmp_path / "half")
    theirs = upstream("chronos-2").load(tmp_path / "half")
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16}
    expected = {name: buffer for name, buffer in theirs.named_buffers() if "inv_freq" in name}
    found = {name: buffer for name, buffer in adapter.model.named_buffers() if "inv_freq" in name}
    assert expected
    assert {buffer.dtype for buffer in found.values()} == {torch.float32}
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(forecast, load("chronos-2", tmp_path / "half").forecast(windows.context, 8).mean)


@pytest.mark.parametrize("variant", VARIANTS)
def test_missing_values_are_masked_as_in_the_package(variant, published, windows):
    folder = published(variant)
    adapter, package = load(variant, folder), upstream(variant)
    context, target = windows.context.clone(), windows.target.clone()
    context[0, 20:40], target[1, 5:9] = torch.nan, torch.nan
    loss = adapter.loss(batch_of(context, target))
    assert loss.isfinite()
    torch.testing.assert_close(loss, package.loss(package.load(folder), context, target), rtol=1e-6, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_in_half_precision_has_the_packages_loss(variant, published, windows, tmp_path):
    load(variant, published(variant), dtype="bfloat16").save(tmp_path / "half")
    adapter, package = load(variant, tmp_path / "half"), upstream(variant)
    theirs = package.load(tmp_path / "half")
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16}
    assert torch.equal(adapter.loss(windows), package.loss(theirs, windows.context, windows.target))
    assert {name: b.dtype for name, b in theirs.named_buffers()} == {n: b.dtype for n, b in adapter.model.named_buffers()}


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_are_those_of_save_pretrained_byte_for_byte(variant, published, tmp_path):
    folder = published(variant)
    adapter, theirs = load("chronos", folder), upstream(variant).load(folder)
    adapter.save(tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    names = sorted(path.name for path in (tmp_path / "theirs").iterdir())
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == names
    for name in names:
        ours, expected = ((tmp_path / which / name).read_bytes().rstrip() for which in ("ours", "theirs"))
        if name.endswith(".json"):
            assert json.loads(ours) == json.loads(expected), name
        else:
            assert ours == expected, name


def test_the_file_decides_the_dtype_and_not_the_configuration(test_data):
    folder = test_data / "chronos-dummy" / DUMMIES["chronos-t5"]
    assert json.loads((folder / "config.json").read_text())["torch_dtype"] == "bfloat16"
    assert {p.dtype for p in load("chronos", folder).model.parameters()} == {torch.float32}
    half = load("chronos", folder, dtype="bfloat16")
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in half.reload().model.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("variant", DUMMIES)
def test_one_embedding_may_be_stored_under_any_of_its_names(variant, published):
    folder = published(variant)
    expected = load(variant, folder).model.state_dict()
    state = load_file(folder / "model.safetensors")
    aliases = [name for name in expected if torch.equal(expected[name], expected["shared.weight"])]
    assert len(aliases) == (4 if variant == "chronos-t5" else 3)
    for name in aliases:
        kept = {other: tensor for other, tensor in state.items() if other not in aliases}
        save_file({**kept, name: expected["shared.weight"].clone()}, folder / "model.safetensors")
        found = load(variant, folder).model
        assert all(torch.equal(found.state_dict()[other], expected[other]) for other in expected)
        assert found.encoder.embed_tokens.weight is found.shared.weight
        assert found.decoder.embed_tokens.weight is found.shared.weight


def test_an_embedding_whose_names_have_different_values_is_refused(published):
    folder = published("chronos-t5")
    state = load_file(folder / "model.safetensors")
    state["lm_head.weight"] = state["shared.weight"] + 1
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"'shared.weight' and 'lm_head.weight' should be one tensor and differ"):
        load("chronos", folder)


def test_shards_and_their_index_are_read_as_one_file(published):
    folder = published("chronos-bolt")
    expected = load("chronos", folder).model.state_dict()
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts = {f"model-0000{number}-of-00002.safetensors": list(state)[number - 1 :: 2] for number in (1, 2)}
    for file, names in parts.items():
        save_file({name: state[name] for name in names}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in parts.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    found = load("chronos", folder).model.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    del index["weight_map"]["shared.weight"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"the files that it lists differ, first in 'shared.weight'"):
        load("chronos", folder)
    index["weight_map"]["shared.weight"] = "../elsewhere.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"must map names of tensors to files beside it"):
        load("chronos", folder)
    index["weight_map"]["shared.weight"] = "model-00003-of-00002.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"cannot read the checkpoint .*model-00003-of-00002.safetensors"):
        load("chronos", folder)


def test_loading_and_forecasting_open_no_connection(published, windows, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was opened")

    folders = [published(variant) for variant in VARIANTS]
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    for folder in folders:
        load("chronos", folder).forecast(windows.context[:1], 2)
    with pytest.raises(CheckpointError, match=r"'amazon/chronos-2': .*nothing is downloaded"):
        load("chronos", "amazon/chronos-2")


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_context_longer_than_the_models_is_refused_rather_than_cut():
    with pytest.raises(ArgumentError, match="context_length must be at most 512 for this chronos-t5 model, got 513"):
        tiny("chronos-t5").forecast(torch.zeros(1, 513, 1), 2)
    assert tiny("chronos-bolt").forecast(torch.randn(1, 3, 1), 2).mean.shape == (1, 2, 1)


@pytest.mark.parametrize("dropout", [-0.1, 1, "much", True])
def test_a_dropout_outside_of_its_range_is_refused(dropout, tmp_path):
    with pytest.raises(ArgumentError, match=r"dropout must lie in \[0, 1\), got"):
        load("chronos-bolt", tmp_path, dropout=dropout)


def test_dropout_is_that_of_the_checkpoint_or_of_the_option(published, windows):
    for variant in VARIANTS:
        folder = published(variant)
        adapter, still = load(variant, folder), load(variant, folder, dropout=0.0)
        adapter.model.train()
        still.model.train()
        assert not torch.equal(adapter.loss(windows), adapter.loss(windows))
        assert torch.equal(still.loss(windows), still.loss(windows))
        assert still.reload().model.config.dropout_rate == 0.0


@pytest.mark.parametrize(
    ("variant", "fields", "message"),
    [
        (
            "chronos-t5",
            {"architectures": ["T5EncoderModel"]},
            r"must hold a chronos_config .*its first tensor is 'decoder.b",
        ),
        ("chronos-t5", {"chronos_config": None}, "must hold a chronos_config .* got chronos_config NoneType"),
        ("chronos-t5", {"chronos_config": {"model_type": "causal"}}, "model_type must be 'seq2seq', got 'causal'"),
        ("chronos-t5", {"chronos_config": {"n_tokens": 64}}, r"n_tokens must be at most vocab_size \(32\), got 64"),
        ("chronos-t5", {"chronos_config": {"tokenizer_class": "Absent"}}, "describes no tokenizer"),
        ("chronos-t5", {"chronos_config": {"surprise": 1}}, "describes no tokenizer .*surprise"),
        ("chronos-t5", {"chronos_config": {"context_length": 0}}, "context_length must be an integer of at least 1, got 0"),
        ("chronos-t5", {"d_model": "wide"}, "describes no valid chronos-t5 .*d_model"),
        ("chronos-t5", {"d_model": 32}, r"has the shape .* the configuration asks for"),
        ("chronos-t5", {"num_layers": 2}, r"missing \(first 'encoder.block.1"),
        (
            "chronos-bolt",
            {"chronos_config": {"quantiles": [0.2, 0.8]}},
            r"must rise within \(0, 1\) and hold 0.5, got \[0.2",
        ),
        ("chronos-bolt", {"chronos_config": {"prediction_length": -1}}, "describes no valid chronos-bolt"),
        ("chronos-bolt", {"chronos_config": {"surprise": 1}}, "describes no valid chronos-bolt .*surprise"),
        ("chronos-2", {"chronos_config": {"output_patch_size": 8}}, "describes no valid chronos-2 .*must be equal"),
        ("chronos-2", {"chronos_config": {"use_reg_token": False}}, "use_reg_token must be true"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused_in_one_line(variant, fields, message, published):
    folder = published(variant)
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=message) as caught:
        load(variant, folder)
    assert "\n" not in str(caught.value)


def test_another_variants_checkpoint_is_refused_with_its_own_name(published):
    with pytest.raises(CheckpointError, match=r"it looks like the family 'chronos-bolt': choose that one"):
        load("chronos-t5", published("chronos-bolt"))
    with pytest.raises(CheckpointError, match=r"it looks like the family 'chronos-t5': choose that one"):
        load("chronos-2", published("chronos-t5"))
    with pytest.raises(CheckpointError, match=r"it looks like the family 'chronos-2': choose that one"):
        load("chronos-bolt", published("chronos-2"))


def test_the_head_turns_states_into_forecasts(published):
    assert [name for name, _ in load("chronos", published("chronos-t5")).head_parameters()] == ["shared.weight"]
    for variant in ("chronos-bolt", "chronos-2"):
        names = [name for name, _ in tiny(variant).head_parameters()]
        assert names == [
            f"output_patch_embedding.{layer}_layer.{part}"
            for layer in ("hidden", "output", "residual")
            for part in ("weight", "bias")
        ]


def test_the_point_forecast_is_the_median(windows):
    for variant in ("chronos-bolt", "chronos-2"):
        forecast = tiny(variant).forecast(windows.context, 4)
        assert torch.equal(forecast.mean, forecast.quantiles[0.5])
    assert math.isclose(min(forecast.quantiles), 0.01)
