"""The variant timer-84m against the class that sktime ships."""

from __future__ import annotations

import json
import socket

import pytest
import torch
from family_cases import upstream
from safetensors.torch import load_file, save_file

from sff_fast.adapters import Timer84mAdapter, TimerAdapter, load, tiny
from sff_fast.data import Batch
from sff_fast.errors import ArgumentError, CheckpointError

modeling = pytest.importorskip("sktime.libs.timer.modeling_timer", reason="sktime is not installed: make models-env")
pytestmark = pytest.mark.filterwarnings("ignore:The attention mask API under:FutureWarning")

PATCH = 16


def batch_of(context, target):
    return Batch(context, target, torch.arange(len(context)))


def windows(length, horizon):
    values = torch.randn(3, length + horizon, 2, generator=torch.Generator().manual_seed(0)).cumsum(1)
    return batch_of(values[:, :length], values[:, length:])


def change(folder, **fields):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **fields}))


def published(folder, **fields):
    """A checkpoint as transformers writes it, off its initialisation."""
    sizes = dict(
        input_token_len=PATCH,
        output_token_lens=[PATCH],
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        use_cache=False,
    )
    torch.manual_seed(0)
    model = modeling.TimerForPrediction(modeling.TimerConfig(**{**sizes, **fields}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    change(folder, auto_map={"AutoModelForCausalLM": "modeling_timer.TimerForPrediction"})
    return folder


@pytest.fixture
def folder(tmp_path):
    return published(tmp_path / "published")


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("a family must not reach the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


# --- loading ----------------------------------------------------------------------------------------------------------


def test_the_family_picks_the_variant_by_the_layout(folder, test_data):
    assert type(load("timer", folder)) is type(load("timer-84m", folder)) is Timer84mAdapter
    assert type(load("timer", test_data / "golden" / "timer", allow_pickle=True)) is TimerAdapter
    assert not Timer84mAdapter.recognises(folder / "config.json")
    assert type(tiny("timer")) is TimerAdapter


def test_weights_and_rotary_buffers_are_those_of_the_constructed_class(folder):
    adapter, theirs = load("timer-84m", folder), upstream("timer-84m").load(folder)
    found = {**adapter.model.state_dict(), **dict(adapter.model.named_buffers())}
    expected = {**theirs.state_dict(), **dict(theirs.named_buffers())}
    assert sum("cos_cached" in name for name in expected) == 2
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_published_model_has_its_size():
    from sff_fast.tracing import trace

    config = modeling.TimerConfig(input_token_len=96, output_token_lens=[96], use_cache=False)
    plan = trace(lambda: modeling.TimerForPrediction(config))
    assert (sum(p.numel for p in plan.parameters.values()), len(plan)) == (84_142_080, 116)


def test_shards_that_an_index_lists_are_read(folder):
    state = load_file(folder / "model.safetensors")
    names = list(state)
    for number, part in enumerate((names[:5], names[5:])):
        save_file({name: state[name] for name in part}, folder / f"model-{number}.safetensors", {"format": "pt"})
    weight_map = {name: f"model-{int(position >= 5)}.safetensors" for position, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    (folder / "model.safetensors").unlink()
    assert all(torch.equal(tensor, state[name]) for name, tensor in load("timer-84m", folder).model.state_dict().items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model_type": "sundial"}, "does not fit the family 'timer-84m': model_type must be 'timer', got 'sundial'; .*'.*'"),
        ({"hidden_size": 0}, "hidden_size must be an integer of at least 1, got 0"),
        ({"hidden_size": 64}, r"the tensor '.*' has the shape \[.*\], the configuration asks for"),
        ({"num_hidden_layers": 3}, r"14 missing \(first 'model.layers.2.self_attn.q_proj.weight'\)"),
        ({"output_token_lens": []}, r"output_token_lens must list integers of at least 1, got \[\]"),
        ({"output_token_lens": [24]}, r"output_token_lens must be rising multiples of input_token_len=16, got \[24\]"),
        ({"output_token_lens": [32, 16]}, r"must be rising multiples of input_token_len=16, got \[32, 16\]"),
        ({"hidden_act": "none"}, "describes no valid timer-84m"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folder, fields, message):
    change(folder, **fields)
    with pytest.raises(CheckpointError, match=message) as caught:
        load("timer-84m", folder)
    assert "\n" not in str(caught.value)


# --- equality with the package ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "horizon"), [(64, 16), (64, 1), (16, 16), (64, 40), (48, 64)])
def test_the_loss_and_its_gradients_are_those_of_the_package(folder, length, horizon):
    adapter, package, batch = load("timer-84m", folder), upstream("timer-84m"), windows(length, horizon)
    theirs = package.load(folder)
    ours = adapter.loss(batch)
    expected = package.loss(theirs, batch.context, batch.target)
    # The same terms, summed in another order where the target ends within a patch.
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=0)
    ours.backward()
    expected.backward()
    for (name, parameter), other in zip(adapter.model.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_the_class_computes_its_own_loss_for_whoever_calls_it(folder):
    adapter, batch = load("timer-84m", folder), windows(64, 16)
    series = torch.cat((batch.context, batch.target), dim=1).transpose(1, 2).flatten(0, 1)
    past = series[:, :64]
    series = (series - past.mean(1, keepdim=True)) / past.std(1, keepdim=True)
    for model in (adapter.model, tiny("timer-84m").model, adapter.build()):
        output = model(input_ids=series[:, :64], labels=series[:, PATCH:], use_cache=False, return_dict=True)
        hidden = model.model(input_ids=series[:, :64], use_cache=False, return_dict=True).last_hidden_state
        expected = (model.lm_heads[0](hidden) - series[:, PATCH:].unfold(1, PATCH, PATCH)).square().mean()
        torch.testing.assert_close(output.loss, expected)
        if model is adapter.model:
            torch.testing.assert_close(adapter.loss(batch), output.loss)


def test_a_loss_of_several_heads_is_their_mean_where_the_target_reaches(tmp_path):
    adapter, batch = load("timer-84m", published(tmp_path / "two", output_token_lens=[16, 48])), windows(64, 48)
    theirs = upstream("timer-84m").load(tmp_path / "two")
    series = torch.cat((batch.context, batch.target), dim=1).transpose(1, 2).flatten(0, 1)
    past = series[:, :64]
    series = (series - past.mean(1, keepdim=True)) / past.std(1, keepdim=True)
    with torch.no_grad():
        hidden = theirs.model(input_ids=series[:, :96], use_cache=False, return_dict=True).last_hidden_state
        errors = []
        for head, ahead in zip(theirs.lm_heads, (16, 48), strict=True):
            squares = []
            for token in range(6):
                truth = series[:, (token + 1) * 16 : (token + 1) * 16 + ahead]
                squares.append((head(hidden[:, token])[:, : truth.shape[1]] - truth).square().flatten())
            errors.append(torch.cat(squares).mean())
        torch.testing.assert_close(adapter.loss(batch), torch.stack(errors).mean())


@pytest.mark.parametrize("heads", [[16], [16, 32]])
@pytest.mark.parametrize("horizon", [1, 16, 40, 64])
def test_forecasts_go_on_from_their_own_patches_as_the_package_generates(tmp_path, heads, horizon):
    adapter = load("timer-84m", published(tmp_path / "m", output_token_lens=heads))
    package, context = upstream("timer-84m"), windows(64, 1).context
    with torch.no_grad():
        expected = package.forecast(package.load(tmp_path / "m"), context, horizon, seed=0, num_samples=None)["mean"]
    found = adapter.forecast(context, horizon)
    assert found.mean.shape == (3, horizon, 2)
    # The contexts reach 20 and are normalised by the same operations.
    torch.testing.assert_close(found.mean, expected, rtol=0, atol=1e-5)


def test_a_window_is_expected_patch_by_patch_from_what_came_before(folder):
    adapter, theirs = load("timer-84m", folder), upstream("timer-84m").load(folder)
    values = windows(64, 1).context
    found = adapter.reconstruct(values)
    assert found.shape == values.shape
    assert found[:, :PATCH].isnan().all()
    series = values.transpose(1, 2).flatten(0, 1)
    mean, std = series.mean(1, keepdim=True), series.std(1, keepdim=True)
    with torch.no_grad():
        for end in (16, 32, 48):
            step = theirs(input_ids=(series[:, :end] - mean) / std, max_output_length=16, use_cache=False, return_dict=True)
            expected = (step.logits * std + mean).view(3, 2, 16).transpose(1, 2)
            torch.testing.assert_close(found[:, end : end + 16], expected, rtol=0, atol=1e-5)
    with pytest.raises(ArgumentError, match="the length of a window must be at least 32 for this timer-84m model, got 16"):
        adapter.reconstruct(values[:, :16])
    with pytest.raises(ArgumentError, match="timer-84m cannot do imputation: it can do anomaly, forecast"):
        adapter.impute(values, torch.ones_like(values, dtype=torch.bool))


# --- behaviour --------------------------------------------------------------------------------------------------------


def test_constant_windows_have_finite_losses_and_forecasts(folder):
    adapter, flat = load("timer-84m", folder), torch.full((2, 64, 1), 3.0)
    adapter.loss(batch_of(flat, flat[:, :16])).backward()
    assert all(parameter.grad.isfinite().all() for parameter in adapter.model.parameters())
    assert adapter.forecast(flat, 40).mean.isfinite().all()
    assert adapter.reconstruct(flat)[:, PATCH:].isfinite().all()


def test_half_precision_weights_keep_the_level_and_scale_of_the_data(folder):
    adapter, half = load("timer-84m", folder), load("timer-84m", folder, dtype="bfloat16")
    level = 10_000 + windows(64, 1).context
    found = half.forecast(level, 16).mean
    assert found.dtype == torch.float32
    # In bfloat16 such a level alone has steps of 64.
    torch.testing.assert_close(found, adapter.forecast(level, 16).mean, rtol=0, atol=0.5)


def test_the_limits_are_whole_patches_and_positions_and_the_head_comes_after_the_transformer(folder):
    adapter = load("timer-84m", folder)
    limits = adapter.limits
    assert (limits.min_context, limits.max_context, limits.multiple_of, limits.max_prediction) == (16, 1024, 16, None)
    with pytest.raises(ArgumentError, match=r"multiple of 16 .* got 50: use 48 or 64"):
        adapter.forecast(torch.zeros(1, 50, 1), 16)
    assert [name for name, _ in adapter.head_parameters()] == ["lm_heads.0.weight"]


def test_a_saved_model_is_what_transformers_writes(folder, tmp_path):
    load("timer-84m", folder).save(tmp_path / "saved")
    names = sorted(path.name for path in (tmp_path / "saved").iterdir())
    assert names == sorted(path.name for path in folder.iterdir())
    found, expected = (load_file(path / "model.safetensors") for path in (tmp_path / "saved", folder))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    found, expected = (json.loads((path / "config.json").read_text()) for path in (tmp_path / "saved", folder))
    assert found == expected
