"""The strategies that smoothing is compared with: each against an independent float64 computation of its formula."""

from __future__ import annotations

import copy
import importlib.util
import inspect
import json
import signal
import sys
from types import SimpleNamespace

import pytest
import torch
import training_fakes
from safetensors.torch import load_file
from torch import nn
from training_fakes import FakeAdapter, StopAt, assert_same_run, newest_state, once_each, steady

from sff_fast.backends.reference import philox
from sff_fast.data import epoch_order
from sff_fast.draw import draw
from sff_fast.errors import ArgumentError, CheckpointError, MissingPackageError
from sff_fast.smooth import smoothing_of
from sff_fast.stream import MASK, NOISE, rounding_key, stream_id
from sff_fast.tracing import trace
from sff_fast.training import STRATEGIES, compare, evaluate, finetune
from sff_fast.training.config import resolve_settings
from sff_fast.training.live import LiveBytes
from sff_fast.training.strategies import check_processes
from sff_fast.training.strategies.lora import linear_layers
from sff_fast.training.strategies.mixout import draw_mask, mix
from sff_fast.training.strategies.noise import noise_

quick, data = training_fakes.quick, training_fakes.data
pytestmark = pytest.mark.usefixtures("quick")

PREPARING = ("noise", "shrink", "perturb")
needs_peft = pytest.mark.skipif(
    importlib.util.find_spec("peft") is None, reason="peft is not installed: pip install 'sff_fast[lora]'"
)
LORA = pytest.param("lora", marks=needs_peft)
TRAINING = ("l2-sp", "l2-init", "mixout", "ema", LORA, "sam")
ALPHA, SEED = 0.6, 5


def values(model):
    return {name: p.detach().double().clone() for name, p in model.named_parameters()}


def prepared(strategy, alpha=ALPHA):
    """Weights before and after a strategy has prepared them."""
    adapter = FakeAdapter.tiny()
    before = values(adapter.model)
    settings = settings_of(adapter, strategy, alpha=alpha)
    report = STRATEGIES[strategy].prepare(adapter, settings, None)
    return adapter, before, values(adapter.model), report


def settings_of(adapter, strategy, **options):
    known = inspect.signature(resolve_settings).parameters
    defaults = {name: p.default for name, p in inspect.signature(finetune).parameters.items() if name in known}
    del defaults["adapter"]
    return resolve_settings(adapter, **{**defaults, "strategy": strategy, "seed": SEED, **options})


def initial(adapter):
    """The random initialisation of the seed, one sample a parameter."""
    plan = adapter.plan()
    return {name: draw(plan[name], SEED, plan).double() for name, _ in adapter.model.named_parameters()}


# ---------------------------------------------------------------------- before training
def test_shrink_multiplies_the_weights_and_adds_nothing():
    _, before, after, report = prepared("shrink")
    for name in before:
        torch.testing.assert_close(after[name], ALPHA * before[name], rtol=1e-6, atol=1e-9)  # one float32 rounding
    assert set(report["perturb"].values()) == {0.0}


def test_perturb_adds_a_share_of_the_initialisation_and_keeps_the_weights_whole():
    adapter, before, after, report = prepared("perturb")
    rand = initial(adapter)
    for name in before:
        torch.testing.assert_close(after[name], before[name] + (1 - ALPHA) * rand[name], rtol=1e-6, atol=1e-7)
    assert set(report["shrink"].values()) == {1.0}


def test_noise_is_as_long_as_the_change_that_smoothing_makes_and_points_elsewhere():
    adapter, before, after, report = prepared("noise")
    rand = initial(adapter)
    for name in before:
        change, noise = (1 - ALPHA) * (rand[name] - before[name]), after[name] - before[name]
        assert noise.norm().item() == pytest.approx(change.norm().item(), rel=1e-5)
        assert report["norms"][name] == pytest.approx(change.norm().item(), rel=1e-6)
    change, noise = (1 - ALPHA) * (rand["body.weight"] - before["body.weight"]), after["body.weight"] - before["body.weight"]
    # The cosine of 128 independent pairs has a standard deviation of 128**-0.5 = 0.09.
    assert abs(nn.functional.cosine_similarity(change.flatten(), noise.flatten(), dim=0)) < 0.4


def test_the_noise_is_the_standard_normal_draw_of_the_streams_noise_purpose():
    _, before, after, _ = prepared("noise")
    noise = (after["body.weight"] - before["body.weight"]).flatten()
    expected = box_muller(philox(SEED, stream_id("body.weight", NOISE), torch.arange(len(noise) // 4)))
    # The kernels' polynomials are 2e-5 off at most; the difference of float32 weights adds rounding of 1e-8 / 0.1.
    torch.testing.assert_close(noise / noise.norm(), expected / expected.norm(), rtol=0, atol=5e-6)


def box_muller(words):
    """Standard normals of blocks in float64: the pairs of words (0, 1) and (2, 3), as the random stream's version 1 has them."""
    pairs = []
    for first, second in (words[:2], words[2:]):
        radius = (-2 * (((first >> 1) | 1).double() * 2.0**-31).log()).sqrt()
        fraction = (second << 2) & 0xFFFFFFFF
        angle = (fraction - ((fraction >> 31) << 32)).double() * 2.0**-31 * torch.pi / 4
        cosine, sine = angle.cos() * (1 - 2 * ((second >> 30) & 1)), angle.sin()
        swap = (second >> 31).bool()
        pairs += [radius * torch.where(swap, sine, cosine), radius * torch.where(swap, cosine, sine)]
    return torch.stack(pairs, dim=1).flatten()


def test_alpha_by_name_leaves_what_it_does_not_name_in_all_three():
    for strategy in PREPARING:
        _, before, after, _ = prepared(strategy, {"head.*": 0.5})
        assert torch.equal(after["body.weight"], before["body.weight"]), strategy
        assert not torch.equal(after["head.weight"], before["head.weight"]), strategy


def test_noise_is_recorded_on_the_model_and_refused_a_second_time(data):
    adapter = FakeAdapter.tiny()
    finetune(adapter, data, "noise", epochs=1, max_steps=1)
    assert [record["purpose"] for record in smoothing_of(adapter.model)] == ["noise"]
    with pytest.raises(ArgumentError, match="smoothed before"):
        finetune(adapter, data, "noise", epochs=1, max_steps=1)
    with pytest.raises(ArgumentError, match="rng must be philox for noise"):
        finetune(FakeAdapter.tiny(), data, "noise", rng="torch")


# ---------------------------------------------------------------------- one step, in float64
class OneStep:
    """One training step of a strategy on the little net without dropout, and what goes into its formula."""

    def __init__(self, data, strategy, steps=1, **options):
        self.adapter = quiet(FakeAdapter.tiny())
        self.start = values(self.adapter.model)
        self.gradients = []
        optimizer = {"optimizer": "adam", "lr": 1e-2, "schedule": "constant"}
        self.options = {"epochs": 1, "max_steps": steps, "batch_size": 25, "seed": SEED, **optimizer, **options}
        self.data, self.strategy = data, strategy

    def run(self, monkeypatch):
        """The gradients that the optimizer was given, step by step, and the weights after each step."""
        found = []
        step = torch.optim.Adam.step

        def seen(optimizer, closure=None):
            names = {id(p): name for name, p in self.adapter.model.named_parameters()}
            params = [p for group in optimizer.param_groups for p in group["params"]]
            gradients = {names[id(p)]: p.grad.double().clone() for p in params}
            before = {names[id(p)]: p.detach().double().clone() for p in params}
            step(optimizer, closure)
            found.append((gradients, before, {names[id(p)]: p.detach().double().clone() for p in params}))

        monkeypatch.setattr(torch.optim.Adam, "step", seen)
        self.result = finetune(self.adapter, self.data, self.strategy, **self.options)
        return found

    def gradient(self, weights, step=0):
        """The float64 gradient of the training loss of a step's batch at some weights."""
        order = epoch_order(len(self.data.train), SEED, 0)
        batch = self.data.train.batch(order[25 * step : 25 * (step + 1)])
        net = quiet(FakeAdapter.tiny()).model.double()
        net.load_state_dict({**net.state_dict(), **weights})
        hidden = torch.tanh(net.body(batch.context.double().transpose(1, 2)))
        loss = (net.head(hidden).transpose(1, 2) - batch.target.double()).square().mean()
        return dict(zip(dict(net.named_parameters()), torch.autograd.grad(loss, list(net.parameters()))))


def quiet(adapter):
    """The same without dropout, so that a gradient can be computed elsewhere."""
    adapter.model.dropout.p = 0.0
    return adapter


def close(actual, expected):
    assert set(actual) == set(expected)
    for name in actual:  # float32 sums over 25 windows and 16 inputs
        torch.testing.assert_close(
            actual[name], expected[name], rtol=2e-4, atol=2e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_full_fine_tuning_is_given_the_gradient_itself(data, monkeypatch):
    run = OneStep(data, "ff")
    close(run.run(monkeypatch)[0][0], run.gradient(run.start))


def test_l2_sp_adds_the_distance_to_the_pretrained_weights(data, monkeypatch, tmp_path):
    run = OneStep(data, "l2-sp", steps=2, penalty=3.0, out=tmp_path / "out")
    first, second = run.run(monkeypatch)
    close(first[0], run.gradient(run.start))
    plain = run.gradient(second[1], step=1)
    close(second[0], {name: g + 3.0 * (second[1][name] - run.start[name]) for name, g in plain.items()})
    assert any((second[0][name] - g).abs().max() > 1e-2 for name, g in plain.items())


def test_l2_init_adds_the_distance_to_the_initialisation(data, monkeypatch):
    run = OneStep(data, "l2-init", penalty=0.5)
    plain, rand = run.gradient(run.start), initial(run.adapter)
    close(run.run(monkeypatch)[0][0], {name: g + 2 * 0.5 * (run.start[name] - rand[name]) for name, g in plain.items()})


def test_mixout_mixes_the_weights_and_lets_gradients_through_where_they_are_theta(data, monkeypatch):
    run = OneStep(data, "mixout", steps=2, mixout_p=0.4)
    first, second = run.run(monkeypatch)
    assert torch.equal(first[1]["body.weight"], run.start["body.weight"])
    masks, mixed = {}, dict(second[1])
    for name in ("body.weight", "head.weight"):
        masks[name] = draw_mask(name, run.start[name], 0.4, rounding_key(SEED, 2))
        w, u, m = second[1][name], run.start[name], masks[name].double()
        mixed[name] = (m * u + (1 - m) * w - 0.4 * u) / (1 - 0.4)
    plain = run.gradient(mixed, step=1)
    expected = {name: g * (~masks[name]) / 0.6 if name in masks else g for name, g in plain.items()}
    close(second[0], expected)


def test_the_mask_holds_with_its_probability_and_differs_from_step_to_step():
    like = torch.empty(400, 50)
    masks = [draw_mask("w", like, 0.9, rounding_key(SEED, step)) for step in (1, 2)]
    for mask in masks:
        # Standard deviation of the share: (0.9 * 0.1 / 20000) ** 0.5 = 0.0021
        assert mask.double().mean().item() == pytest.approx(0.9, abs=0.01)
    assert (masks[0] != masks[1]).double().mean().item() == pytest.approx(0.18, abs=0.02)
    words = torch.stack(philox(rounding_key(SEED, 1), stream_id("w", MASK), torch.arange(like.numel() // 4)), dim=1).flatten()
    assert torch.equal(masks[0].flatten(), (words >> 8).double() * 2.0**-24 < 0.9)


def test_the_mean_of_mixed_weights_is_theta():
    theta, start = torch.tensor([3.0, -1.0]), torch.tensor([1.0, 5.0])
    kept, replaced = (mix(theta, start, torch.tensor([m, m]), 0.25) for m in (False, True))
    assert torch.equal(replaced, start)
    torch.testing.assert_close(0.25 * replaced + 0.75 * kept, theta)


def test_ema_evaluates_the_average_and_trains_the_weights(data, monkeypatch):
    run = OneStep(data, "ema", steps=4, ema_decay=0.7)
    after = [weights for _, _, weights in run.run(monkeypatch)]
    expected = after[0]
    for weights in after[1:]:
        expected = {name: 0.7 * expected[name] + 0.3 * weights[name] for name in weights}
    for name, value in values(run.adapter.model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
    assert evaluate(run.adapter, data, "val")["mse"] == run.result.val_mse


def test_a_decay_of_one_averages_all_steps_alike_as_torchs_swa_does(data, monkeypatch):
    run = OneStep(data, "ema", steps=4, ema_decay=1)
    after = [weights for _, _, weights in run.run(monkeypatch)]
    averaged = torch.optim.swa_utils.AveragedModel(quiet(FakeAdapter.tiny()).model.double())
    for weights in after:
        net = copy.deepcopy(averaged.module)
        net.load_state_dict({**net.state_dict(), **weights})
        averaged.update_parameters(net)
    for name, value in values(run.adapter.model).items():
        torch.testing.assert_close(value, dict(averaged.module.named_parameters())[name].detach(), rtol=1e-5, atol=1e-7)


def test_sam_is_given_the_gradient_uphill_and_steps_from_where_it_was(data, monkeypatch):
    run = OneStep(data, "sam", sam_rho=0.3)
    ((gradients, before, _),) = run.run(monkeypatch)
    plain = run.gradient(run.start)
    norm = torch.stack([g.square().sum() for g in plain.values()]).sum().sqrt()
    close(gradients, run.gradient({name: run.start[name] + 0.3 * g / norm for name, g in plain.items()}))
    assert all(torch.equal(before[name], run.start[name]) for name in before)
    assert any((gradients[name] - g).abs().max() > 1e-3 for name, g in plain.items())


def test_both_passes_of_sam_see_the_same_dropout_and_count_once_in_buffers(data, monkeypatch):
    adapter, states = FakeAdapter.tiny(), []
    adapter.on_loss = lambda batch: states.append(torch.get_rng_state())
    finetune(adapter, data, "sam", epochs=1, max_steps=3, batch_size=25, keep_initial=False)
    assert len(states) == 6
    assert [torch.equal(*states[i : i + 2]) for i in range(5)] == [True, False, True, False, True]
    assert adapter.model.passes == 3


@needs_peft
def test_lora_trains_the_low_rank_matrices_alone_and_merges_their_product(data, monkeypatch):
    run = OneStep(data, "lora", steps=3, lora_rank=2)
    found = run.run(monkeypatch)
    shapes = {name: tuple(g.shape) for name, g in found[0][0].items()}
    assert shapes == {
        "body.lora_A.default.weight": (2, 16),
        "body.lora_B.default.weight": (8, 2),
        "head.lora_A.default.weight": (2, 8),
        "head.lora_B.default.weight": (4, 2),
    }
    after, expected = found[-1][2], dict(run.start)
    for layer in ("body", "head"):
        product = after[f"{layer}.lora_B.default.weight"] @ after[f"{layer}.lora_A.default.weight"]
        expected[f"{layer}.weight"] = run.start[f"{layer}.weight"] + product
    for name, value in values(run.adapter.model).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7)
    assert not torch.equal(values(run.adapter.model)["body.weight"], run.start["body.weight"])
    assert all(p.requires_grad for p in run.adapter.model.parameters())


def test_layers_that_stand_in_several_places_or_share_a_weight_are_not_adapted():
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"first": shared, "again": shared, "tied": nn.Linear(3, 3), "own": nn.Linear(3, 3)})
    model["other"] = nn.Linear(3, 3)
    model["other"].weight = model["tied"].weight
    model["attention"] = nn.MultiheadAttention(4, 2)
    assert linear_layers(model) == ["own"]


# ---------------------------------------------------------------------- in the loop
SHARED = {"epochs": 3, "batch_size": 25, "patience": None}
OPTIONS = {**SHARED, "seed": 3}


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """Runs that nobody stopped, one for each strategy."""
    return once_each(data, tmp_path_factory, OPTIONS)


@pytest.mark.parametrize("strategy", [*PREPARING, *TRAINING])
@pytest.mark.parametrize("step", [1, 8, 10])
def test_a_run_that_was_stopped_at_any_step_gives_the_same_bits(data, tmp_path, uninterrupted, strategy, step):
    (whole, expected), parts = uninterrupted(strategy), tmp_path / "parts"
    with pytest.raises(SystemExit):
        finetune(FakeAdapter.tiny(), data, strategy, out=parts, progress=StopAt("train", step, signal.SIGTERM), **OPTIONS)
    assert load_file(parts / "model" / "model.safetensors").keys() == load_file(whole / "model" / "model.safetensors").keys()
    adapter = FakeAdapter.tiny()
    result = finetune(adapter, data, strategy, out=parts, resume=True, **OPTIONS)
    extra = ["method"] if strategy in ("l2-sp", "mixout", "ema") else []
    assert_same_run(whole, parts, *extra)
    assert steady(result.to_json()) == steady(expected.to_json())
    assert evaluate(adapter, data)["mse"] == expected.test_mse
    assert [path.name for path in (parts / "state").iterdir()] == [newest_state(parts).name]


@needs_peft
def test_in_a_comparison_each_starts_from_the_pristine_model_whatever_ran_before(data, uninterrupted, tmp_path):
    names = ["lora", "sff", "noise", "ema", "mixout", "shrink", "sam", "perturb", "l2-sp", "l2-init"]
    result = compare(FakeAdapter.tiny, data, names, (OPTIONS["seed"],), out=tmp_path / "out", **SHARED)
    assert [run.strategy for run in result.runs] == names
    for run in result.runs:
        assert (run.val_mse, run.test_mse) == (uninterrupted(run.strategy)[1].val_mse, uninterrupted(run.strategy)[1].test_mse)


@pytest.mark.parametrize("strategy", TRAINING)
def test_a_strategy_changes_what_full_fine_tuning_gives(uninterrupted, strategy):
    assert uninterrupted(strategy)[1].test_mse != uninterrupted("ff")[1].test_mse


@pytest.mark.parametrize(
    ("strategy", "options", "tolerance"),
    [
        ("l2-sp", {"penalty": 0}, 0),
        ("l2-init", {"penalty": 0}, 0),
        ("ema", {"ema_decay": 0}, 0),
        ("mixout", {"mixout_p": 0}, 1e-6),  # start + (theta - start) is theta up to rounding
    ],
)
def test_a_strategy_of_strength_zero_is_full_fine_tuning(data, uninterrupted, strategy, options, tolerance):
    result = finetune(FakeAdapter.tiny(), data, strategy, **OPTIONS, **options)
    assert result.test_mse == pytest.approx(uninterrupted("ff")[1].test_mse, rel=tolerance, abs=0)


@pytest.mark.parametrize("strategy", ["l2-sp", "mixout"])
def test_a_changed_file_of_the_first_weights_is_refused(data, tmp_path, strategy):
    out = tmp_path / "out"
    for change in ("other weights", "no file"):
        with pytest.raises(SystemExit):
            finetune(FakeAdapter.tiny(), data, strategy, out=out, overwrite=True, progress=StopAt("train", 4), **OPTIONS)
        path = out / "state" / "start.safetensors"
        if change == "no file":
            path.unlink()
        else:
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)
        with pytest.raises(CheckpointError, match="the weights that the run began with"):
            finetune(FakeAdapter.tiny(), data, strategy, out=out, resume=True, **OPTIONS)


@pytest.mark.parametrize("strategy", TRAINING)
def test_the_best_weights_are_those_that_were_validated(data, tmp_path, strategy):
    adapter = FakeAdapter.tiny()
    result = finetune(adapter, data, strategy, out=tmp_path / "out", **OPTIONS)
    for model in (adapter, FakeAdapter.load(tmp_path / "out" / "model")):
        assert evaluate(model, data, "val")["mse"] == result.val_mse
        assert [name for name, _ in model.model.named_parameters()] == [n for n, _ in FakeAdapter.tiny().model.named_parameters()]


@pytest.mark.parametrize("strategy", ["l2-sp", "l2-init", "mixout", "sam"])
def test_accumulated_and_clipped_gradients_go_through_a_strategy(data, strategy):
    options = {**OPTIONS, "optimizer": "fused-adamw", "grad_clip": 0.5}
    whole, parts = (
        finetune(quiet(FakeAdapter.tiny()), data, strategy, micro_batch=size, **options).test_mse for size in (None, 10)
    )
    assert parts == pytest.approx(whole, rel=1e-4)  # sums in another order


def test_ema_works_with_gradients_that_are_released(data):
    options = {**OPTIONS, "optimizer": "fused-adam"}
    results = [finetune(FakeAdapter.tiny(), data, "ema", release_gradients=r, **options).test_mse for r in (False, True)]
    assert results[0] == results[1]


@pytest.mark.parametrize("strategy", ["mixout", "sam", LORA])
def test_a_diverging_strategy_leaves_the_weights_as_they_were(data, strategy):
    adapter = FakeAdapter.tiny()
    before = values(adapter.model)
    calls = iter([1.0, float("nan")] if strategy == "sam" else [float("nan")])
    adapter.on_loss = lambda batch: next(calls, float("nan"))  # also when the cause is looked for
    with pytest.warns(UserWarning, match="training loss is nan"):
        finetune(adapter, data, strategy, epochs=1, batch_size=25)
    after = values(adapter.model)
    assert all(torch.equal(after[name], value) for name, value in before.items())


# ---------------------------------------------------------------------- memory
LAYERS, WIDTH = 16, 64
LAYER = WIDTH * WIDTH * 4
"""Bytes of one weight; that of the whole net is 16 of them."""


def deep_net():
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))


def extra_bytes(strategy, act):
    """The most bytes of tensors at once that a strategy adds in ``act``, after its first step."""
    model = deep_net()
    adapter = SimpleNamespace(model=model, plan=lambda: trace(deep_net))
    settings = SimpleNamespace(seed=SEED, penalty=0.1, mixout_p=0.5, sam_rho=0.05, ema_decay=0.9)
    method = STRATEGIES[strategy].method(adapter, settings)
    method.attach(resumed=False)
    method.stepped()
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    known = [*model.parameters(), *(p.grad for p in model.parameters())]
    known += [*getattr(method, "_average", {}).values()]
    with LiveBytes(known) as live:
        act(method)
    return live.peak


@pytest.mark.parametrize(
    ("strategy", "most"),
    [
        pytest.param("l2-init", 0, id="l2-init draws onto the gradients"),
        pytest.param("l2-sp", 2 * LAYER, id="l2-sp needs one distance at a time beside its set"),
        pytest.param("mixout", (LAYERS + 4) * LAYER, id="mixout parks one set"),
    ],
)
def test_the_passes_of_a_strategy_take_the_memory_that_is_stated(strategy, most):
    assert extra_bytes(strategy, lambda method: method.passes(lambda: 0.0, 1)) <= most


def test_sam_parks_one_set_and_climbs_a_tensor_at_a_time():
    def passes(method):
        gradients = {p: p.grad for p in method.adapter.model.parameters()}

        def compute():
            for parameter, gradient in gradients.items():
                parameter.grad = gradient
            return 0.0

        method.passes(compute, 1)

    assert extra_bytes("sam", passes) <= (LAYERS + 2) * LAYER


def test_ema_takes_nothing_in_a_step_and_one_set_while_it_is_evaluated():
    assert extra_bytes("ema", lambda method: method.stepped()) <= LAYER

    def evaluate_average(method):
        with method.evaluating():
            pass

    assert LAYERS * LAYER <= extra_bytes("ema", evaluate_average) <= (LAYERS + 1) * LAYER


def test_noise_takes_one_scratch_tensor():
    model, plan = deep_net(), trace(deep_net)
    with LiveBytes(list(model.parameters())) as live:
        noise_(model, plan, 0.7, SEED)
    assert LAYER <= live.peak <= 2 * LAYER


# ---------------------------------------------------------------------- what is refused
@pytest.mark.parametrize(
    ("strategy", "options", "message"),
    [
        ("l2-sp", {"penalty": -1}, "penalty must be a number of at least 0, got -1"),
        ("mixout", {"mixout_p": 1}, "mixout_p must be a number from 0 to 0.999, got 1"),
        ("ema", {"ema_decay": 1.1}, "ema_decay must be a number from 0 to 1, got 1.1"),
        pytest.param("lora", {"lora_rank": 0}, "lora_rank must be an integer of at least 1, got 0", marks=needs_peft),
        ("sam", {"sam_rho": 0}, "sam_rho must be a number above 0, got 0"),
        ("sam", {"precision": "bf16"}, "precision must be fp32 for sam, got 'bf16'"),
        ("sam", {"release_gradients": True}, "release_gradients must be False for sam"),
        ("l2-init", {"release_gradients": True}, "release_gradients must be False for l2-init"),
        ("ema", {"max_memory": "6G"}, "the memory of strategy 'ema' is not predicted"),
    ],
)
def test_what_a_strategy_cannot_do_is_said_in_one_line(data, strategy, options, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        finetune(FakeAdapter.tiny(), data, strategy, **options)
    assert "\n" not in str(caught.value)


def test_lora_without_peft_says_how_to_install_it(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(MissingPackageError, match=r"run `pip install 'sff_fast\[lora\]'`"):
        finetune(FakeAdapter.tiny(), data, "lora")


def test_options_of_other_strategies_are_no_part_of_a_run(data, tmp_path):
    finetune(FakeAdapter.tiny(), data, "ff", penalty=7.0, epochs=1, max_steps=1, out=tmp_path / "ff")
    finetune(FakeAdapter.tiny(), data, "l2-sp", penalty=7.0, epochs=1, max_steps=1, out=tmp_path / "l2-sp")
    described = [json.loads((tmp_path / name / "metrics.json").read_text())["settings"] for name in ("ff", "l2-sp")]
    assert "penalty" not in described[0]
    assert described[1]["penalty"] == 7.0
    assert "sam_rho" not in described[1]


def test_what_needs_one_process_is_refused_by_several():
    check_processes("mixout", 1)
    check_processes("shrink", 8)
    with pytest.raises(ArgumentError, match=r"'mixout' works in one process, got 2: use one, or one of .*sff.*perturb"):
        check_processes("mixout", 2)


def test_every_strategy_of_the_contract_is_there():
    names = "zero-shot tfs ff sff lp lp-ff noise shrink perturb l2-sp l2-init mixout ema lora sam"
    assert list(STRATEGIES) == names.split()
