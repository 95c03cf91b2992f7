"""FusedAdamW inside the fine-tuning loop: training, stopping and resuming."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
import training_fakes
from training_fakes import FakeAdapter, StopAt, assert_same_run, make_data, make_table

from sff_fast.adapters import Adapter, tiny
from sff_fast.cli.options import OPTIMIZER_STATES
from sff_fast.data import ForecastData
from sff_fast.errors import ArgumentError, CheckpointError
from sff_fast.files import read_json
from sff_fast.optim.task import STATE_TYPES
from sff_fast.stream import ROUND, stream_id
from sff_fast.training import finetune
from sff_fast.training.config import resolve_settings
from sff_fast.training.recompute import recomputing, repeated_layers
from sff_fast.training.stepping import optimizer_for
from sff_fast.training.strategies import Phase, trainable

quick = training_fakes.quick
pytestmark = pytest.mark.usefixtures("quick")
OPTIONS = {"epochs": 3, "batch_size": 25, "seed": 3, "patience": None, "weight_decay": 0.1}


@pytest.mark.parametrize(("name", "state"), [("fused-adam", None), ("fused-adamw", "int8")])
def test_a_run_with_a_fused_optimizer_resumes_to_the_same_bits(tmp_path: Path, name: str, state: str | None) -> None:
    data, whole, parts = make_data(), tmp_path / "whole", tmp_path / "parts"
    finetune(FakeAdapter.tiny(), data, "ff", out=whole, optimizer=name, optimizer_state=state, **OPTIONS)
    for count in (8, 5):
        with pytest.raises(SystemExit):
            finetune(
                FakeAdapter.tiny(),
                data,
                "ff",
                out=parts,
                optimizer=name,
                optimizer_state=state,
                resume=count == 5,
                progress=StopAt("train", count, training_fakes.signal.SIGTERM),
                **OPTIONS,
            )
    finetune(FakeAdapter.tiny(), data, "ff", out=parts, optimizer=name, optimizer_state=state, resume=True, **OPTIONS)
    assert_same_run(whole, parts)


@pytest.mark.parametrize(("fused", "plain"), [("fused-adam", "adam"), ("fused-adamw", "adamw")])
def test_the_loop_learns_what_it_learns_with_torchs_optimizer(tmp_path: Path, fused: str, plain: str) -> None:
    data = make_data()
    ours = finetune(FakeAdapter.tiny(), data, "ff", optimizer=fused, **OPTIONS)
    theirs = finetune(FakeAdapter.tiny(), data, "ff", optimizer=plain, **OPTIONS)
    assert ours.test_mse == pytest.approx(theirs.test_mse, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"optimizer": "adam", "optimizer_state": "int8"},
            r"optimizer_state='int8' needs an optimizer that can choose \(fused-adam, fused-adamw\), got optimizer='adam'",
        ),
        (
            {"optimizer": "fused-adam", "optimizer_state": "int4"},
            "optimizer_state must be one of float32, bfloat16, int8, got 'int4'",
        ),
    ],
)
def test_a_precision_that_the_optimizer_does_not_have_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        finetune(FakeAdapter.tiny(), make_data(), "ff", **OPTIONS, **options)


def test_the_command_line_knows_every_precision() -> None:
    assert tuple(STATE_TYPES) == OPTIMIZER_STATES


def weights_after(adapter: Adapter, data: ForecastData, **options: object) -> list[torch.Tensor]:
    finetune(adapter, data, "sff", **{**OPTIONS, **options})
    return [p.detach().clone() for p in adapter.model.parameters()]


@pytest.mark.parametrize("clip", [None, 0.05])
def test_released_gradients_give_the_weights_of_kept_ones(clip: float | None) -> None:
    kept, released = (
        weights_after(FakeAdapter.tiny(), make_data(), optimizer="fused-adam", release_gradients=release, grad_clip=clip)
        for release in (False, True)
    )
    for a, b in zip(kept, released, strict=True):
        # The clipping norm is summed in another order, which may move the last bit of its float32 coefficient.
        torch.testing.assert_close(a, b, rtol=0 if clip is None else 1e-5, atol=0 if clip is None else 1e-7)


def test_two_passes_a_step_leave_the_models_buffers_as_one_does() -> None:
    passes = []
    for release in (False, True):
        adapter = FakeAdapter.tiny()
        finetune(adapter, make_data(), "ff", optimizer="fused-adam", release_gradients=release, grad_clip=1.0, **OPTIONS)
        passes.append((int(adapter.model.passes), adapter.model.unsaved.tolist()))
    assert passes[0] == passes[1]
    assert passes[0][0] > 0


@pytest.mark.parametrize("optimizer", ["adam", "fused-adam"])
@pytest.mark.parametrize("release", [False, True])
def test_micro_batches_follow_the_whole_batch(optimizer: str, release: bool) -> None:
    if release and optimizer == "adam":
        return
    results = []
    for micro_batch in (25, 7):
        adapter = FakeAdapter.tiny()
        adapter.model.dropout.p = 0.0  # its masks are drawn in another order for parts of a batch
        results.append(
            weights_after(
                adapter, make_data(), optimizer=optimizer, release_gradients=release, micro_batch=micro_batch, grad_clip=0.5
            )
        )
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["timer", "ttm"])
def test_activation_checkpointing_gives_the_same_bits_and_leaves_nothing_behind(family: str) -> None:
    results = []
    for recompute in (False, True):
        adapter = tiny(family)
        length = adapter.limits.max_context if family == "ttm" else adapter.limits.min_context
        data = ForecastData(
            make_table(300),
            "0.6,0.2,0.2",
            length,
            24,
            channel_independent=adapter.channel_independent,
            stride=4,
        )
        results.append(weights_after(adapter, data, activation_checkpointing=recompute, epochs=1, max_steps=2))
        assert not any("forward" in vars(module) for module in adapter.model.modules())
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_checkpointed_layers_are_computed_again_in_the_backward_pass() -> None:
    adapter, calls = tiny("timer"), []
    layers = repeated_layers(adapter.model)
    assert len(layers) == 2
    layers[0].attention.register_forward_hook(lambda *_: calls.append(1))
    x = torch.randn(2, 192, 1)
    adapter.model.train()
    with recomputing(adapter, True):
        loss = adapter.model(x).square().sum()
        assert len(calls) == 1
        loss.backward()
        assert len(calls) == 2
        adapter.model.eval()
        adapter.model(x)
        assert len(calls) == 3
    assert not any("forward" in vars(module) for module in adapter.model.modules())


def test_a_model_of_transformers_checkpoints_its_own_way() -> None:
    transformers = pytest.importorskip("transformers", reason="could be set up: transformers")
    model = transformers.T5ForConditionalGeneration(
        transformers.T5Config(d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=2, vocab_size=50, decoder_start_token_id=0)
    )
    adapter = type("Holder", (), {"model": model, "family": "t5"})()
    ids = torch.arange(12).reshape(2, 6)
    grads = []
    for enabled in (False, True):
        model.train()
        model.zero_grad()
        torch.manual_seed(0)
        with recomputing(adapter, enabled):
            assert model.encoder.gradient_checkpointing == enabled
            model(input_ids=ids, labels=ids).loss.backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    assert not model.encoder.gradient_checkpointing
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)


ALL = {
    "precision": "bf16-sr",
    "optimizer_state": "int8",
    "release_gradients": True,
    "activation_checkpointing": True,
    "grad_clip": 0.5,
}


@pytest.mark.parametrize("micro_batch", [8, 3])
def test_a_run_with_every_way_of_saving_memory_resumes_to_the_same_bits(tmp_path: Path, micro_batch: int) -> None:
    options = {**ALL, "epochs": 2, "batch_size": 8, "lr": 1e-2, "micro_batch": micro_batch}
    data = ForecastData(make_table(400), "0.5,0.25,0.25", 96, 24, stride=2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    finetune(tiny("timer"), data, "sff", out=whole, **options)
    for count in (3, 5):
        with pytest.raises(SystemExit):
            finetune(tiny("timer"), data, "sff", out=parts, resume=count == 5, progress=StopAt("train", count), **options)
    finetune(tiny("timer"), data, "sff", out=parts, resume=True, **options)
    assert_same_run(whole, parts)
    settings = read_json(whole / "metrics.json")["settings"]
    assert {name: settings[name] for name in ALL} == ALL
    assert settings["optimizer"] == "fused-adam"
    assert settings["micro_batch"] == micro_batch
    with pytest.raises(CheckpointError, match=r"settings\.release_gradients: True then, False now"):
        finetune(tiny("timer"), data, "sff", out=whole, resume=True, **{**options, "release_gradients": False})


def test_stochastic_rounding_in_the_loop_is_addressed_by_the_names_of_the_model() -> None:
    adapter = FakeAdapter.tiny()
    adapter.model.to(torch.bfloat16)
    settings = resolve_settings(adapter, **{**defaults(), "precision": "bf16-sr", "seed": 11})
    with trainable(adapter, Phase("full", 1, False, None)) as parameters:
        optimizer = optimizer_for(settings, parameters)
    (bucket,) = optimizer._buckets()
    assert bucket.table["round_stream"].tolist() == [stream_id(name, ROUND) for name, _ in adapter.model.named_parameters()]
    assert optimizer.param_groups[0]["seed"] == 11


def defaults() -> dict[str, object]:
    """The arguments of resolve_settings as finetune gives them."""
    taken = inspect.signature(resolve_settings).parameters
    given = {name: p.default for name, p in inspect.signature(finetune).parameters.items() if name in taken}
    return {name: value for name, value in given.items() if name != "adapter"}
