"""The family moirai against uni2ts' own classes; what holds for every family is in test_families.py."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from family_cases import shaken, upstream
from safetensors.torch import load_file, save_file

from sff_fast.adapters import load, tiny
from sff_fast.adapters._moirai import uni2ts
from sff_fast.errors import ArgumentError, CheckpointError

pytest.importorskip("uni2ts", reason="timecopilot-uni2ts is not installed: make models-env")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::UserWarning:gluonts.*")]

VARIANTS = ("moirai", "moirai-2", "moirai-moe")


def windows(context=100, horizon=130, channels=1, batch=3):
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(batch, context + horizon, channels, generator=generator).cumsum(1)
    return SimpleNamespace(context=values[:, :context], target=values[:, context:])


def samples_of(variant):
    return None if variant == "moirai-2" else 4


@pytest.fixture
def folders(tmp_path):
    """Variant to a folder with its saved tiny model."""

    def folder(variant):
        path = tmp_path / variant
        if not path.exists():
            shaken(variant).save(path)
        return path

    return folder


# --- equality with the package ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("context", "horizon"), [(96, 16), (100, 130), (5, 200)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_loss_gradients_and_forecast_equal_the_package_where_lengths_are_no_multiples_of_a_patch(
    variant, context, horizon, folders
):
    script, adapter, batch = upstream(variant), load(variant, folders(variant)), windows(context, horizon)
    model = script.load(str(folders(variant)))
    ours, theirs = adapter.loss(batch), script.loss(model, batch.context, batch.target)
    # The same terms in another order.
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=0)
    ours.backward()
    theirs.backward()
    found, expected = (torch.cat([parameter.grad.flatten() for parameter in one.parameters()]) for one in (adapter.model, model))
    # One component of the mixture has the scale 1e-3, whose gradient magnifies rounding by 1e6 near its centre.
    assert float((found - expected).norm() / expected.norm()) < (2e-5 if variant == "moirai-2" else 2e-3)
    found = adapter.forecast(batch.context, horizon, seed=2, num_samples=samples_of(variant))
    expected = script.forecast(model, batch.context, horizon, 2, samples_of(variant))
    if found.samples is not None:
        assert torch.equal(found.samples, expected["samples"])
    for level, values in (found.quantiles or {}).items():
        assert torch.equal(values, expected["quantiles"][level])
    # NumPy and torch add up samples in other orders.
    torch.testing.assert_close(found.mean, expected["mean"], rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_windows_of_several_channels_equal_the_package(variant, folders):
    script, adapter, batch = upstream(variant), load(variant, folders(variant)), windows(128, 100, channels=3)
    model = script.load(str(folders(variant)))
    found = adapter.forecast(batch.context, 100, seed=2, num_samples=samples_of(variant))
    expected = script.forecast(model, batch.context, 100, 2, samples_of(variant))
    assert found.mean.shape == (3, 100, 3)
    torch.testing.assert_close(found.mean, expected["mean"], rtol=2e-6, atol=2e-6)
    alone = adapter.forecast(batch.context[..., 1:2], 100, seed=2, num_samples=samples_of(variant))
    together = torch.allclose(alone.mean, found.mean[..., 1:2], rtol=1e-4, atol=1e-4)
    assert together == (variant == "moirai-2"), "MOIRAI-2 forecasts channels on their own, the others let them attend"
    if variant != "moirai-moe":
        with torch.no_grad():
            expected_loss = script.loss(model, batch.context, batch.target)
        torch.testing.assert_close(adapter.loss(batch).detach(), expected_loss, rtol=2e-6, atol=0)


def test_a_loss_over_one_channel_of_copies_is_that_of_moe_over_one():
    # Each channel has its own mean and scale, so a constant shift of one of them changes nothing.
    adapter, batch = shaken("moirai-moe"), windows(64, 40, channels=2)
    shifted = SimpleNamespace(context=batch.context + torch.tensor([0.0, 5.0]), target=batch.target + torch.tensor([0.0, 5.0]))
    torch.testing.assert_close(adapter.loss(batch), adapter.loss(shifted), rtol=1e-3, atol=0)
    swapped = SimpleNamespace(context=batch.context.flip(2), target=batch.target.flip(2))
    torch.testing.assert_close(adapter.loss(batch), adapter.loss(swapped), rtol=1e-5, atol=0)


def test_the_values_of_the_horizon_change_no_prediction_before_them_in_the_decoders():
    for variant in ("moirai-2", "moirai-moe"):
        adapter, batch = shaken(variant), windows(64, 16)
        first = adapter.loss(batch)
        longer = SimpleNamespace(context=batch.context, target=torch.cat((batch.target, batch.target + 3), dim=1))
        assert not torch.isclose(first, adapter.loss(longer))
        # A block of the horizon is predicted from the context alone, whatever it holds: only its own error moves.
        moved = SimpleNamespace(context=batch.context, target=batch.target + 1)
        found = adapter.forecast(batch.context, 16, num_samples=samples_of(variant)).mean
        again = adapter.forecast(moved.context, 16, num_samples=samples_of(variant)).mean
        assert torch.equal(found, again)


# --- half precision ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "offset"), [("bfloat16", 3000), ("float16", 0)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_half_precision_keeps_statistics_and_distributions_in_float32(variant, dtype, offset, folders):
    batch = windows(96, 40)
    # At the offset bfloat16 has steps of 16: as much as the signal.
    batch = SimpleNamespace(context=batch.context + offset, target=batch.target + offset)
    half, full = load(variant, folders(variant), dtype=dtype), load(variant, folders(variant))
    loss, expected = half.loss(batch), full.loss(batch)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in half.model.parameters())
    found = half.forecast(batch.context, 40, num_samples=samples_of(variant)).mean
    assert found.dtype == torch.float32
    assert float((found - offset).abs().max()) < 60
    with pytest.raises(ArgumentError, match=rf"dtype must be float32, bfloat16 or float16 for {variant}, .* got float64"):
        load(variant, folders(variant), dtype="float64")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", VARIANTS)
def test_files_are_those_of_save_pretrained(variant, folders, tmp_path):
    upstream(variant).load(str(folders(variant))).save_pretrained(tmp_path / "theirs")
    ours, theirs = folders(variant), tmp_path / "theirs"
    assert sorted(path.name for path in ours.iterdir()) == ["config.json", "model.safetensors"]
    assert json.loads((ours / "config.json").read_text()) == json.loads((theirs / "config.json").read_text())
    assert (ours / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    # What the package writes is read back, and written again.
    again = load("moirai", theirs)
    assert type(again).variant == variant
    again.save(tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()


def test_the_centroids_of_the_experts_keep_their_dtype_and_are_not_smoothed(folders):
    adapter = load("moirai-moe", folders("moirai-moe"))
    centroid = adapter.model.encoder.centroid.clone()
    assert centroid.dtype == torch.float64
    assert torch.equal(tiny("moirai-moe").model.encoder.centroid, centroid)
    assert 0.9 < float(centroid.std()) < 1.1
    assert "encoder.centroid" not in adapter.plan()


@pytest.mark.parametrize(
    ("variant", "change", "message"),
    [
        ("moirai", {"d_ff": 64}, "config.json must describe a moirai model, got one of moirai-moe; its first tensor is 'enc"),
        ("moirai-2", {"patch_size": None, "x": 1}, "describes no valid moirai-2 model"),
        ("moirai-2", {"quantile_levels": [0.1, 0.9]}, "quantile_levels must hold 0.5, .* got"),
        ("moirai", {"patch_sizes": []}, r"patch_sizes must be a list of positive integers, got \[\]"),
        ("moirai-moe", {"patch_sizes": [16, "a"]}, "patch_sizes must be a list of positive integers, got"),
        ("moirai", {"d_model": 32}, r"describes no valid moirai model \(AssertionError\): replace it"),
        ("moirai", {"d_model": "wide"}, "describes no valid moirai model"),
        ("moirai", {"num_layers": 1}, r"of its 34 tensors 12 unexpected \(first 'encoder.layers.1"),
        ("moirai-2", {"d_ff": 64}, r"the tensor 'encoder.layers.0.ffn.fc1.weight' has the shape \[128, 64\], .* \[64, 64\]"),
        ("moirai", {"distr_output": {"_target_": "os.system", "command": "true"}}, "describes no valid moirai .*Unsafe"),
        ("moirai", {"distr_output": {"_target_": "uni2ts.distribution.Absent"}}, "describes no valid moirai model"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(folders, variant, change, message):
    folder = folders(variant)
    config = {**json.loads((folder / "config.json").read_text()), **change}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message) as caught:
        load("moirai-2" if variant == "moirai-2" else "moirai-moe", folder) if variant != "moirai" else _moirai(folder)
    assert "\n" not in str(caught.value)


def _moirai(folder):
    from sff_fast.adapters import MoiraiAdapter

    return MoiraiAdapter.load(folder)


def test_damaged_folders_are_refused_by_what_is_wrong(folders):
    folder = folders("moirai-2")
    state = load_file(folder / "model.safetensors")
    del state["out_proj.hidden_layer.bias"]
    save_file(state, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"1 missing \(first 'out_proj.hidden_layer.bias'\)"):
        load("moirai", folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="holds no weights"):
        load("moirai", folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        load("moirai", folder)
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"it must be a folder with config.json and model.safetensors"):
        load("moirai", folder)


# --- lengths and patches ----------------------------------------------------------------------------------------------


def test_context_and_horizon_share_the_patches_of_a_sequence():
    adapter = tiny("moirai-2")
    assert (adapter.limits.max_context, adapter.limits.max_prediction) == (511 * 16, 511 * 16)
    adapter.check_lengths(500 * 16, 12 * 16)
    with pytest.raises(ArgumentError, match=r"must make at most 512 patches of 16 for this moirai-2 model, got 513 of 8001"):
        adapter.check_lengths(500 * 16 + 1, 12 * 16)


def test_the_patch_size_is_chosen_at_load_and_changes_loss_and_forecast(folders):
    script, batch, folder = upstream("moirai"), windows(64, 24), folders("moirai")
    model, losses = script.load(str(folder)), []
    for size in (8, 16, 32):
        adapter = load("moirai", folder, patch_size=size)
        losses.append(adapter.loss(batch).item())
        assert losses[-1] == pytest.approx(script.loss(model, batch.context, batch.target, size).item(), rel=2e-6)
        found = adapter.forecast(batch.context, 24, seed=1, num_samples=3)
        assert torch.equal(found.samples, script.forecast(model, batch.context, 24, 1, 3, size)["samples"])
        assert adapter.reload().patch_size == size
    assert len(set(losses)) == 3
    assert load("moirai", folder).patch_size == 32
    for wrong in (64, 0, "large", True):
        with pytest.raises(ArgumentError, match=r"patch_size must be one of 8, 16, 32 or 'auto' .* got"):
            load("moirai", folder, patch_size=wrong)


def test_the_automatic_patch_size_is_the_packages_choice_for_each_window(folders):
    script, folder = upstream("moirai"), folders("moirai")
    generator = torch.Generator().manual_seed(0)
    context = torch.randn(12, 90, 1, generator=generator) * torch.linspace(0.1, 20, 12)[:, None, None]
    adapter, model = load("moirai", folder, patch_size="auto"), script.load(str(folder))
    found = adapter.forecast(context, 24, seed=1, num_samples=3)
    assert torch.equal(found.samples, script.forecast(model, context, 24, 1, 3, "auto")["samples"])
    assert torch.equal(adapter.loss(windows(64, 24)), load("moirai", folder).loss(windows(64, 24)))
    assert (adapter.limits.max_context, load("moirai", folder, patch_size=16).limits.max_context) == (511 * 8, 511 * 16)
    with pytest.raises(ArgumentError, match=r"context_length must be more than prediction_length \(96\)"):
        adapter.forecast(context, 96)


# --- importing the package --------------------------------------------------------------------------------------------

PROGRAM = """
import sys
import jaxtyping
if sys.argv[1] == "real":
    jaxtyping.PyTree = real = type("PyTree", (), {"__class_getitem__": classmethod(lambda cls, item: None)})
import sff_fast
assert not any(name.startswith("uni2ts") for name in sys.modules)
sff_fast.tiny("moirai")
sff_fast.tiny("moirai-2")
assert vars(jaxtyping).get("PyTree") is (real if sys.argv[1] == "real" else None)
assert "jax" not in sys.modules
"""


@pytest.mark.skipif("jax" in sys.modules, reason="needs hardware: an environment without jax")
@pytest.mark.parametrize("kind", ["absent", "real"])
def test_the_stand_in_for_an_annotation_is_gone_after_the_import_and_replaces_no_real_one(kind):
    subprocess.run([sys.executable, "-W", "ignore", "-c", PROGRAM, kind], check=True, timeout=120)


def test_a_module_of_the_package_that_is_missing_is_named():
    from sff_fast.errors import MissingPackageError

    with pytest.raises(MissingPackageError, match=r"'timecopilot-uni2ts' is not installed.*`pip install 'sff_fast\[moirai\]'"):
        uni2ts("uni2ts.absent")
