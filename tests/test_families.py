"""What must hold for every family and variant, at tiny size and with the real upstream package.

What is special to a family is in tests/test_adapters_<family>.py; `family_cases.py` says how each is tried out.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from family_cases import FAST, case_of, is_installed, marked, require, script_of, shaken, variants
from safetensors import safe_open
from upstream.common import read_result, write_request

import sff_fast
from sff_fast.data import ForecastData, epoch_order, read_table
from sff_fast.errors import ArgumentError, CheckpointError, MissingPackageError
from sff_fast.optim import make_optimizer
from sff_fast.training.strategies import Phase, trainable

ROOT = Path(__file__).parents[1]
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
HELD_OUT = 48
"""Windows of the validation part, evenly spaced, that a loss is measured on."""
STEPS = 20
LEARNED = 0.05
"""Share of the held-out loss that the steps take away at the least."""


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def etth1(test_data):
    return read_table(test_data / "ETTh1.csv")


def windows(variant, table):
    """ETTh1 cut into windows as the family wants them."""
    case, channel_independent = case_of(variant), variants()[variant].channel_independent
    return ForecastData(table, "ett-hour", case.context, case.horizon, channel_independent=channel_independent)


def held_out(data):
    return data.val.batch(torch.arange(HELD_OUT) * (len(data.val) // HELD_OUT))


def state_of(model):
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def bits(tensor):
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def assert_same_state(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(bits(found[name]), bits(tensor)), name


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Variant to a folder with its shaken tiny model, saved once."""
    root, done = tmp_path_factory.mktemp("families"), {}

    def folder_of(variant):
        if variant not in done:
            done[variant] = root / variant
            shaken(variant).save(done[variant])
        return done[variant]

    return folder_of


# --- the contract -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", marked())
def test_a_tiny_model_depends_on_its_seed_alone_and_can_be_trained_whole(variant):
    require(variant)
    sff_fast.tiny(variant)  # Importing a package may draw; making a model may not.
    torch.manual_seed(3)
    state = torch.get_rng_state()
    adapters = [sff_fast.tiny(variant, seed) for seed in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = (list(adapter.model.parameters()) for adapter in adapters)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert all(parameter.requires_grad for parameter in first)
    assert not any(module.training for module in adapters[0].model.modules())
    assert sum(parameter.numel() for parameter in first) < 1_000_000


@pytest.mark.parametrize("variant", marked())
def test_build_draws_what_a_tiny_model_of_that_seed_is_made_of(variant):
    require(variant)
    adapter = sff_fast.tiny(variant, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(8)
        built = adapter.build()
    expected = sff_fast.tiny(variant, 8).model
    assert_same_state(dict(built.named_parameters()), dict(expected.named_parameters()))


@pytest.mark.parametrize("variant", marked())
def test_the_description_of_a_model_is_json_with_its_family_and_variant(variant):
    cls = require(variant)
    adapter = sff_fast.tiny(variant)
    config = adapter.config()
    assert json.loads(json.dumps(config)) == config
    assert (config["family"], config["variant"]) == (cls.family, variant)
    case = case_of(variant)
    adapter.check_lengths(case.context, case.horizon)
    assert 0 < cls.default_alpha < 1
    assert 0 < cls.default_lr < 0.1
    assert cls.default_precision in PRECISIONS


@pytest.mark.parametrize("variant", marked())
def test_a_forecast_has_the_shapes_of_the_contract_and_repeats_itself_by_its_seed(variant, etth1):
    require(variant)
    case, adapter = case_of(variant), shaken(variant)
    context = held_out(windows(variant, etth1)).context[:3]
    adapter.model.train()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    options = {"num_samples": case.samples}
    forecast = adapter.forecast(context, case.horizon, seed=4, **options)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in adapter.model.modules())
    batch, channels = len(context), context.shape[2]
    assert forecast.mean.shape == (batch, case.horizon, channels)
    assert forecast.mean.dtype == torch.float32
    assert forecast.mean.isfinite().all()
    assert not forecast.mean.requires_grad
    for level, values in (forecast.quantiles or {}).items():
        assert 0 < level < 1
        assert values.shape == forecast.mean.shape
    assert list(forecast.quantiles or {}) == sorted(forecast.quantiles or {})
    again = adapter.forecast(context, case.horizon, seed=4, **options)
    assert torch.equal(forecast.mean, again.mean)
    if case.samples is None:
        assert forecast.samples is None
        with pytest.raises(ArgumentError, match="num_samples"):
            adapter.forecast(context, case.horizon, num_samples=2)
    else:
        assert forecast.samples.shape == (batch, case.samples, case.horizon, channels)
        other = adapter.forecast(context, case.horizon, seed=5, **options)
        assert not torch.equal(forecast.samples, other.samples)


@pytest.mark.parametrize("variant", marked())
def test_tasks_that_a_family_has_work_and_the_others_say_who_can(variant):
    cls = require(variant)
    case, adapter = case_of(variant), shaken(variant)
    for task, call in (("imputation", "impute"), ("anomaly", "reconstruct")):
        length = max(case.context, adapter.limits_for(task).min_context)
        generator = torch.Generator().manual_seed(2)
        values = torch.randn(2, length, 1, generator=generator).cumsum(1)
        mask = torch.rand(values.shape, generator=generator) > 0.3
        arguments = (values, mask) if task == "imputation" else (values,)
        if task not in cls.tasks:
            with pytest.raises(ArgumentError, match=rf"{re.escape(variant)} cannot do {task}") as caught:
                getattr(adapter, call)(*arguments)
            assert "\n" not in str(caught.value)
            continue
        found = getattr(adapter, call)(*arguments)
        assert found.shape == values.shape
        loss = adapter.imputation_loss(values, mask) if task == "imputation" else adapter.anomaly_loss(values)
        assert loss.shape == ()
        assert loss.requires_grad
        if task == "imputation":
            # What is hidden is never read, and the loss is that of the hidden points.
            changed = torch.where(mask, values, values + 100)
            assert torch.equal(found, adapter.impute(changed, mask))
            torch.testing.assert_close(loss.detach(), (found - values)[~mask].square().mean(), rtol=1e-5, atol=0)
        else:
            expected = ~found.isnan()
            assert expected.any()
            torch.testing.assert_close(loss.detach(), (found - values)[expected].square().mean(), rtol=1e-5, atol=0)


# --- plan and smoothing -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", marked())
def test_the_plan_holds_every_parameter_as_the_constructor_draws_it(variant):
    require(variant)
    adapter = sff_fast.tiny(variant)
    plan = adapter.plan()
    assert list(plan) == [name for name, _ in adapter.model.named_parameters()]
    report = sff_fast.verify(adapter.build, plan, seeds=(1, 2))
    assert report.ok, f"\n{report}"
    assert plan.notes == ()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("variant", marked())
def test_smoothing_has_the_same_bits_by_kernel_and_by_reference(variant, dtype):
    require(variant)
    results = []
    for backend in ("cpu", "reference"):
        adapter = shaken(variant)
        adapter.model.to(getattr(torch, dtype))
        before = state_of(adapter.model)
        report = sff_fast.smooth_(adapter.model, adapter.plan(), alpha=0.7, seed=9, backend=backend)
        assert set(report.backends.values()) == {backend}
        assert report.untouched == ()
        same = [name for name, parameter in adapter.model.named_parameters() if torch.equal(before[name], parameter)]
        # In bfloat16 a small parameter may round back to what it was.
        assert same == [] or dtype == "bfloat16"
        results.append(state_of(adapter.model))
    assert_same_state(*results)


@pytest.mark.parametrize("variant", marked())
def test_smoothing_with_torchs_numbers_has_the_bits_of_a_really_built_second_model(variant):
    require(variant)
    ours = shaken(variant)
    theirs = copy.deepcopy(ours.model)
    sff_fast.smooth_(ours.model, ours.plan(), alpha=0.7, seed=5, rng="torch")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        second = ours.build()
    with torch.no_grad():
        for parameter, drawn in zip(theirs.parameters(), second.parameters(), strict=True):
            parameter.copy_(parameter * 0.7 + drawn * (1 - 0.7))
    assert_same_state(dict(ours.model.named_parameters()), dict(theirs.named_parameters()))


# --- training ---------------------------------------------------------------------------------------------------------


def held_out_loss(adapter, data, draws):
    """Mean loss over the held-out windows, and over the same random draws every time."""
    adapter.model.eval()
    batch, total = held_out(data), 0.0
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        for draw in range(draws):
            torch.manual_seed(100 + draw)
            total += float(adapter.loss(batch))
    return total / draws


def check_learns(variant, table, precision, gradient=1.0):
    """Train as the loop does, and assert that the held-out loss fell by the share LEARNED at the least.

    Args:
        variant: The variant.
        table: The data.
        precision: ``"fp32"`` or ``"bf16"``.
        gradient: What gradients are multiplied by; 0 must fail.
    """
    case, data = case_of(variant), windows(variant, table)
    adapter = sff_fast.tiny(variant)
    adapter.model.to(PRECISIONS[precision])
    before = held_out_loss(adapter, data, case.draws)
    order = epoch_order(len(data.train), seed=0, epoch=0)
    with torch.random.fork_rng(devices=[]), trainable(adapter, Phase("full", 1, False, None)) as parameters:
        torch.manual_seed(0)
        optimizer = make_optimizer("adam", parameters.items(), case.lr)
        adapter.model.train()
        for indices in order[: STEPS * case.batch].split(case.batch):
            adapter.loss(data.train.batch(indices)).backward()
            for parameter in parameters.values():
                if parameter.grad is not None:
                    parameter.grad.mul_(gradient)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    after = held_out_loss(adapter, data, case.draws)
    assert after <= (1 - LEARNED) * before, f"{STEPS} steps took the held-out loss from {before:.6g} to {after:.6g}"


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", marked())
def test_twenty_steps_lower_the_loss_of_held_out_windows(variant, precision, etth1):
    require(variant)
    check_learns(variant, etth1, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("variant", marked())
def test_twenty_steps_without_gradients_lower_no_loss(variant, precision, etth1):
    require(variant)
    with pytest.raises(AssertionError, match="steps took the held-out loss from"):
        check_learns(variant, etth1, precision, gradient=0.0)


@pytest.mark.parametrize("variant", marked())
def test_linear_probing_trains_the_head_and_nothing_else(variant, etth1):
    require(variant)
    data, adapter = windows(variant, etth1), shaken(variant)
    head = {name for name, _ in adapter.head_parameters()}
    names = {name for name, _ in adapter.model.named_parameters()}
    assert head
    assert head < names
    assert all(parameter is adapter.model.get_parameter(name) for name, parameter in adapter.head_parameters())
    before = state_of(adapter.model)
    with trainable(adapter, Phase("head", 1, True, None)) as parameters:
        optimizer = make_optimizer("adam", parameters.items(), 1e-2)
        adapter.model.train()
        for step in range(2):
            adapter.loss(data.train.batch(torch.arange(8) + 8 * step)).backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    changed = {name for name, parameter in adapter.model.named_parameters() if not torch.equal(before[name], parameter)}
    assert changed
    assert changed <= head
    assert all(parameter.requires_grad for parameter in adapter.model.parameters())


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", marked())
def test_a_saved_model_comes_back_and_reload_reads_it_again(variant, saved, tmp_path):
    require(variant)
    expected = state_of(shaken(variant).model)
    torch.manual_seed(7)
    generator = torch.get_rng_state()
    adapter = sff_fast.load(variant, saved(variant))
    assert torch.equal(torch.get_rng_state(), generator)
    assert_same_state(state_of(adapter.model), expected)
    assert type(adapter) is variants()[variant]
    assert all(parameter.requires_grad for parameter in adapter.model.parameters())
    assert not any(module.training for module in adapter.model.modules())
    with torch.no_grad():
        for parameter in adapter.model.parameters():
            parameter.zero_()
    assert_same_state(state_of(adapter.reload().model), expected)
    half = sff_fast.load(variant, saved(variant), dtype="bfloat16")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    half.save(tmp_path / variant)
    assert_same_state(state_of(sff_fast.load(variant, tmp_path / variant).model), state_of(half.model))


@pytest.mark.parametrize("variant", marked())
def test_a_fresh_process_opens_what_was_saved_with_the_package_alone(variant, saved, etth1, tmp_path):
    require(variant)
    case, adapter = case_of(variant), sff_fast.load(variant, saved(variant))
    batch = held_out(windows(variant, etth1))
    context, target = batch.context[:3], batch.target[:3]
    request = {"prediction_length": case.horizon, "seed": 6, "num_samples": case.samples}
    write_request(tmp_path / "in.safetensors", context, target, **request)
    script = script_of(variant)
    assert script.is_file()
    command = [sys.executable, "-W", "ignore", script, saved(variant), tmp_path / "in.safetensors", tmp_path / "out.safetensors"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert process.returncode == 0, process.stderr[-3000:]
    state, loss, found = read_result(tmp_path / "out.safetensors")
    assert_same_state(state, state_of(adapter.model))
    forecast = adapter.forecast(context, case.horizon, seed=6, num_samples=case.samples)
    torch.testing.assert_close(forecast.mean, found["mean"], rtol=0, atol=case.tolerance)
    assert (forecast.samples is None) == ("samples" not in found)
    if forecast.samples is not None:
        torch.testing.assert_close(forecast.samples, found["samples"], rtol=0, atol=case.tolerance)
    assert list(forecast.quantiles or {}) == list(found.get("quantiles", {}))
    for level, values in (forecast.quantiles or {}).items():
        torch.testing.assert_close(values, found["quantiles"][level], rtol=0, atol=case.tolerance)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        ours = adapter.loss(SimpleNamespace(context=context, target=target))
    # The same terms, perhaps summed in another order.
    torch.testing.assert_close(ours.float(), loss.float(), rtol=1e-5, atol=0)


def refused(variant, folder, other_keys):
    """Load a checkpoint that is not the variant's, and check the one line that refuses it."""
    with pytest.raises(CheckpointError) as caught:
        variants()[variant].load(folder)
    message = str(caught.value)
    assert "\n" not in message
    quoted = set(re.findall(r"'([^']+)'", message))
    own = set(sff_fast.tiny(variant).model.state_dict())
    assert quoted & (own | other_keys), f"{variant} names no tensor: {message}"


@pytest.mark.parametrize("variant", marked())
def test_a_checkpoint_of_another_family_or_version_is_refused_by_its_first_differing_names(variant, saved):
    require(variant)
    # Fast variants among themselves in the fast suite; a slow one with all others, in both directions.
    others = [name for name in variants() if name != variant and is_installed(name) and (variant not in FAST or name in FAST)]
    own_keys = names_in(saved(variant))
    for other in others:
        refused(other, saved(variant), own_keys)
        if variant not in FAST:
            refused(variant, saved(other), names_in(saved(other)))


def names_in(folder):
    """The names of all tensors in the files of a folder."""
    names = set()
    for path in folder.iterdir():
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                names |= set(file.keys())
        elif path.suffix in (".ckpt", ".pth", ".bin"):
            names |= _keys(torch.load(path, weights_only=True))
    return names


def _keys(content):
    if not isinstance(content, dict):
        return set()
    return {key for key in content if isinstance(key, str)} | {key for value in content.values() for key in _keys(value)}


# --- the package ------------------------------------------------------------------------------------------------------


class AbsentFinder:
    """Finds nothing of one package, as where it is not installed."""

    def __init__(self, package):
        self.package = package

    def find_spec(self, name, path=None, target=None):
        if name == self.package or name.startswith(f"{self.package}."):
            raise ModuleNotFoundError(f"No module named {self.package!r}", name=self.package)


@pytest.mark.parametrize("variant", marked(with_package=True))
def test_a_missing_package_is_one_line_with_the_command_that_installs_it(variant, saved, monkeypatch):
    cls = require(variant)
    folder, package = saved(variant), cls.module.split(".")[0]
    for name in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [AbsentFinder(package), *sys.meta_path])
    for attempt in (lambda: sff_fast.tiny(variant), lambda: sff_fast.load(variant, folder)):
        with pytest.raises(MissingPackageError, match=r"pip install .*") as caught:
            attempt()
        message = str(caught.value)
        assert "\n" not in message
        assert cls.package in message
