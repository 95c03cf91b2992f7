"""The adapter contract, the registry of families and the reading of damaged checkpoints."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import pickle
import random
import re
import shutil
import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import sff_fast.adapters as adapters
from sff_fast.adapters import Adapter, Forecast, Limits, registry
from sff_fast.adapters.base import as_dtype, evaluating
from sff_fast.errors import ArgumentError, CheckpointError
from sff_fast.models.timer import Timer, TimerConfig

needs_ttm = pytest.mark.skipif(
    importlib.util.find_spec("tsfm_public") is None, reason="granite-tsfm is not installed: pip install 'sff_fast[ttm]'"
)
FAMILIES = ["timer", pytest.param("ttm", marks=needs_ttm)]


class LineAdapter(Adapter):
    """A family of one linear layer, as a plug-in would write it."""

    family = "line"
    variant = "line"

    @classmethod
    def load(cls, path, **options):
        return cls(nn.Linear(8, 4))

    @classmethod
    def tiny(cls, seed=0):
        return cls(nn.Linear(8, 4))

    def build(self):
        return nn.Linear(8, 4)

    def _loss(self, context, target):
        return (self._forecast(context, target.shape[1], None).mean - target).square().mean()

    def _forecast(self, context, prediction_length, num_samples):
        return Forecast(self.model(context.transpose(1, 2)).transpose(1, 2)[:, :prediction_length])

    limits = Limits(min_context=8, max_context=24, multiple_of=8, max_prediction=4)

    def head_parameters(self):
        return list(self.model.named_parameters())

    def config(self):
        return {}

    def _write(self, folder):
        pass


@pytest.fixture
def clean_registry(monkeypatch):
    monkeypatch.setattr(registry, "_ADAPTERS", dict(registry._ADAPTERS))


def fake_entry_points(monkeypatch, *points):
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points if group == "sff_fast.families" else ())


# --- registry ---------------------------------------------------------------------------------------------------------


def test_the_families_of_the_package_are_listed_with_what_they_need():
    known = adapters.families()
    assert list(known) == sorted(known)
    assert (known["timer"].package, known["timer"].installed, known["timer"].channel_independent) == (None, True, True)
    assert (known["ttm"].package, known["ttm"].extra, known["ttm"].channel_independent) == (
        "granite-tsfm",
        "ttm",
        False,
    )
    assert "forecast" in known["timer"].tasks
    assert "forecast" in known["ttm"].tasks


def test_a_family_without_its_package_is_listed_as_not_installed(clean_registry):
    adapters.register(type("Absent", (LineAdapter,), {"family": "absent", "module": "no_such_module.inner"}))
    assert adapters.families()["absent"].installed is False


def test_an_unknown_family_is_refused_with_the_known_ones_and_a_guess():
    with pytest.raises(ArgumentError, match=r"unknown family 'tmier' \(did you mean 'timer'\?\): .* timer, .*ttm, units"):
        adapters.load("tmier", "x")
    with pytest.raises(ArgumentError, match="unknown family 'nothing-like-it': expected one of"):
        adapters.tiny("nothing-like-it")


def test_a_registered_family_can_be_loaded_and_its_name_is_taken(clean_registry):
    adapters.register(LineAdapter)
    adapters.register(LineAdapter)
    assert isinstance(adapters.load("line", "anywhere"), LineAdapter)
    with pytest.raises(ArgumentError, match=r"the family 'line' is taken by .*LineAdapter"):
        adapters.register(type("Other", (LineAdapter,), {}))


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (int, "must be a subclass of sff_fast.adapters.Adapter"),
        (type("Half", (LineAdapter,), {"limits": Adapter.limits, "build": Adapter.build}), "implement build, limits"),
        (type("Nameless", (LineAdapter,), {"family": None}), "must set the string 'family'"),
    ],
)
def test_a_class_that_is_no_family_is_refused(clean_registry, cls, message):
    with pytest.raises(ArgumentError, match=message):
        adapters.register(cls)


def test_an_entry_point_adds_a_family(clean_registry, monkeypatch):
    point = types.SimpleNamespace(name="line", value="plugin:LineAdapter", load=lambda: LineAdapter)
    fake_entry_points(monkeypatch, point)
    assert isinstance(adapters.tiny("line"), LineAdapter)
    assert adapters.families()["line"].adapter is LineAdapter


def test_a_broken_or_greedy_plug_in_is_left_out_with_a_warning(clean_registry, monkeypatch):
    def broken():
        raise ImportError("no module named plugin")

    greedy = type("Greedy", (LineAdapter,), {"family": "timer"})
    fake_entry_points(
        monkeypatch,
        types.SimpleNamespace(name="broken", value="plugin:Broken", load=broken),
        types.SimpleNamespace(name="greedy", value="plugin:Greedy", load=lambda: greedy),
    )
    with pytest.warns(UserWarning, match="is left out: ") as caught:
        known = adapters.families()
    messages = [str(warning.message) for warning in caught]
    assert any("'broken' (plugin:Broken) is left out: no module named plugin" in message for message in messages)
    assert any("the family 'timer' is taken" in message for message in messages)
    assert known["timer"].adapter is adapters.TimerAdapter


class RuledAdapter(LineAdapter):
    """A second variant of the family of lines, which knows its checkpoints by a file."""

    variant = "line-ruled"
    default_variant = False

    @classmethod
    def recognises(cls, path):
        return (path / "ruled").exists()


def test_a_family_of_several_variants_is_loaded_as_the_one_that_recognises_the_checkpoint(clean_registry, tmp_path):
    adapters.register(LineAdapter)
    adapters.register(RuledAdapter)
    assert type(adapters.load("line", tmp_path)) is LineAdapter
    assert type(adapters.load("line-ruled", tmp_path)) is RuledAdapter
    (tmp_path / "ruled").touch()
    assert type(adapters.load("line", tmp_path)) is RuledAdapter
    assert type(adapters.tiny("line")) is LineAdapter
    known = adapters.families()
    assert known["line"].variants == ("line", "line-ruled")
    assert (known["line"].variant, known["line-ruled"].variant) == ("line", "line-ruled")
    assert (known["line-ruled"].family, known["line-ruled"].variants) == ("line", ("line-ruled",))
    with pytest.raises(CheckpointError, match="nothing is downloaded"):
        adapters.load("line", tmp_path / "absent")


def test_a_checkpoint_of_two_variants_is_refused_with_the_choice(clean_registry, tmp_path):
    adapters.register(LineAdapter)
    adapters.register(RuledAdapter)
    adapters.register(type("Dotted", (RuledAdapter,), {"variant": "line-dotted", "__module__": __name__}))
    (tmp_path / "ruled").touch()
    with pytest.raises(ArgumentError, match=r"may be several variants .* 'line': choose one of line-ruled, line-dotted"):
        adapters.load("line", tmp_path)


def test_a_family_has_one_default_variant_and_no_name_for_two_things(clean_registry):
    adapters.register(LineAdapter)
    with pytest.raises(ArgumentError, match=r"has the default variant 'line': set default_variant to False in .*Second"):
        adapters.register(type("Second", (LineAdapter,), {"variant": "second", "__module__": __name__}))
    adapters.register(RuledAdapter)
    with pytest.raises(ArgumentError, match=r"the family 'line' is taken by .*Adapter"):
        adapters.register(type("Thief", (LineAdapter,), {"family": "curve", "variant": "line"}))


def test_an_unknown_option_is_refused_with_those_that_there_are(tmp_path):
    with pytest.raises(ArgumentError, match="'timer' has no option 'heads': it takes n_heads, dropout, dtype, format"):
        adapters.load("timer", tmp_path, heads=3)


# --- contract ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("context_length", "prediction_length", "message"),
    [
        (7, 1, "context_length must be at least 8 .* got 7"),
        (32, 1, "context_length must be at most 24 .* got 32"),
        (12, 1, "multiple of 8 .* got 12: use 8 or 16"),
        (23, 1, "multiple of 8 .* got 23: use 16 or 24"),
        (8, 5, "prediction_length must be at most 4 .* got 5"),
        (8, 0, "prediction_length must be an integer of at least 1, got 0"),
        (8.0, 1, "context_length must be an integer of at least 1, got 8.0"),
        (True, 1, "context_length must be an integer of at least 1, got True"),
    ],
)
def test_a_length_that_does_not_fit_is_refused_by_name(context_length, prediction_length, message):
    with pytest.raises(ArgumentError, match=message):
        LineAdapter.tiny().check_lengths(context_length, prediction_length)


def test_lengths_on_the_limits_are_accepted():
    for lengths in ((8, 1), (24, 4)):
        LineAdapter.tiny().check_lengths(*lengths)


@pytest.mark.parametrize(
    ("context", "target", "message"),
    [
        (torch.zeros(2, 8), torch.zeros(2, 4, 1), r"context must be .* got torch.float32 of shape \(2, 8\)"),
        (torch.zeros(2, 8, 1, dtype=torch.int32), torch.zeros(2, 4, 1), "context must be .* got torch.int32"),
        (torch.zeros(2, 8, 1), torch.zeros(3, 4, 1), r"target must be .* got \(3, 4, 1\)"),
        (torch.zeros(2, 8, 1), torch.zeros(2, 4, 2), r"target must be .* got \(2, 4, 2\)"),
    ],
)
def test_a_batch_of_the_wrong_shape_is_refused(context, target, message):
    with pytest.raises(ArgumentError, match=message):
        LineAdapter.tiny().loss(types.SimpleNamespace(context=context, target=target))


class DrawingAdapter(LineAdapter):
    """Draws sample paths; hidden points are imputed with zeros, the first point is never expected."""

    default_num_samples = 3
    tasks = frozenset({"forecast", "imputation", "anomaly"})

    def _forecast(self, context, prediction_length, num_samples):
        shape = (len(context), num_samples, prediction_length, context.shape[2])
        samples = torch.randn(shape)
        return Forecast(samples.mean(1), samples=samples)

    def _impute(self, values, mask):
        return values * 1.0

    def _reconstruct(self, values):
        return torch.cat([torch.full_like(values[:, :1], torch.nan), values[:, :-1]], dim=1)


def test_samples_depend_on_the_seed_alone_and_leave_the_generators_as_found():
    adapter = DrawingAdapter.tiny()
    torch.manual_seed(11)
    expected = torch.randn(2, 3, 4, 1)
    torch.manual_seed(3)
    state = torch.get_rng_state()
    forecast = adapter.forecast(torch.zeros(2, 8, 1), 4, seed=11)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(forecast.samples, expected)
    assert not torch.equal(adapter.forecast(torch.zeros(2, 8, 1), 4, seed=12).samples, expected)
    assert adapter.forecast(torch.zeros(2, 8, 1), 4, num_samples=5).samples.shape == (2, 5, 4, 1)


@pytest.mark.parametrize(
    ("cls", "num_samples", "message"),
    [
        (LineAdapter, 2, "line draws no sample paths: leave out num_samples, got 2"),
        (DrawingAdapter, 0, "num_samples must be an integer of at least 1, got 0"),
        (DrawingAdapter, True, "num_samples must be an integer of at least 1, got True"),
    ],
)
def test_a_wrong_number_of_samples_is_refused(cls, num_samples, message):
    with pytest.raises(ArgumentError, match=message):
        cls.tiny().forecast(torch.zeros(2, 8, 1), 4, num_samples=num_samples)


def test_what_the_mask_hides_is_not_read_and_only_that_is_scored():
    adapter = DrawingAdapter.tiny()
    values = torch.arange(8.0).reshape(1, 8, 1) + 1
    mask = values != 3
    hidden = torch.where(mask, values, torch.tensor(torch.nan))
    assert adapter.impute(hidden, mask)[0, 2] == 0
    assert torch.equal(adapter.impute(hidden, mask)[mask], values[mask])
    assert adapter.imputation_loss(values, mask) == 9


def test_anomalies_are_scored_where_something_is_expected():
    adapter = DrawingAdapter.tiny()
    values = torch.arange(8.0).reshape(1, 8, 1) * 2
    assert adapter.reconstruct(values).isnan().sum() == 1
    assert adapter.anomaly_loss(values) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, v: LineAdapter.tiny().impute(v, v > 0), "line cannot do imputation: it can do forecast; sff_fast.families"),
        (lambda a, v: LineAdapter.tiny().reconstruct(v), "line cannot do anomaly: it can do forecast"),
        (lambda a, v: a.impute(v, v), r"mask must be a bool tensor of the shape \(1, 8, 1\) of the values, got torch.float32"),
        (lambda a, v: a.impute(v, torch.ones(1, 8, dtype=torch.bool)), r"mask must be .* got torch.bool of shape \(1, 8\)"),
        (lambda a, v: a.imputation_loss(v, torch.ones_like(v, dtype=torch.bool)), "mask hides no point"),
        (lambda a, v: a.reconstruct(v[0]), r"values must be a floating-point tensor .* of shape \(8, 1\)"),
        (lambda a, v: a.anomaly_loss(v[:, :5]), "the length of a window must be at least 8 for this line model, got 5"),
    ],
)
def test_a_window_that_does_not_fit_a_task_is_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call(DrawingAdapter.tiny(), torch.zeros(1, 8, 1))


def test_forecast_restores_the_mode_of_every_module_and_tracks_no_gradient():
    adapter = adapters.tiny("timer")
    adapter.model.train()
    adapter.model.decoder.norm.eval()
    before = [module.training for module in adapter.model.modules()]
    assert True in before
    assert False in before
    first = adapter.forecast(torch.ones(1, 96, 1).cumsum(1), 5).mean
    assert [module.training for module in adapter.model.modules()] == before
    assert not first.requires_grad
    assert torch.equal(first, adapter.forecast(torch.ones(1, 96, 1).cumsum(1), 5).mean)


def test_the_mode_is_restored_after_an_exception():
    model = nn.Dropout(0.5)
    seen = []

    def fail():
        with evaluating(model):
            seen.append(model.training)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert seen == [False]
    assert model.training


def test_a_model_made_in_memory_cannot_be_reloaded():
    with pytest.raises(ArgumentError, match=r"this line model was made in memory .* save it"):
        LineAdapter(nn.Linear(1, 1)).reload()


def test_the_plan_is_traced_once_from_the_factory(monkeypatch):
    calls = []
    monkeypatch.setitem(
        sys.modules, "sff_fast.tracing", types.SimpleNamespace(trace=lambda factory: calls.append(factory) or factory())
    )
    adapter = adapters.tiny("timer")
    plan = adapter.plan()
    assert isinstance(plan, Timer)
    assert plan.config == adapter.model.config
    assert plan is not adapter.model
    assert adapter.plan() is plan
    assert len(calls) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tiny_model_depends_on_its_seed_alone(family):
    torch.manual_seed(3)
    state = torch.get_rng_state()
    models = [adapters.tiny(family, seed).model for seed in (5, 5, 6)]
    assert torch.equal(torch.get_rng_state(), state)
    first, again, other = ([parameter.detach() for parameter in model.parameters()] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert not any(model.training for model in models)


@pytest.mark.parametrize("family", FAMILIES)
def test_reload_is_pristine_and_independent_even_after_training(family):
    adapter = adapters.tiny(family, 5)
    expected = [parameter.detach().clone() for parameter in adapter.model.parameters()]
    with torch.no_grad():
        for parameter in adapter.model.parameters():
            parameter.add_(1.0)
    fresh = list(adapter.reload().model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(fresh, expected, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_build_draws_another_model_of_the_same_shapes_from_the_global_generator(family):
    adapter = adapters.tiny(family)
    torch.manual_seed(1)
    first = adapter.build()
    torch.manual_seed(1)
    again = adapter.build()
    names = [(name, parameter.shape) for name, parameter in adapter.model.named_parameters()]
    assert names == [(name, parameter.shape) for name, parameter in first.named_parameters()]
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), adapter.model.parameters(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_configuration_fits_json_and_survives_it(family):
    config = adapters.tiny(family).config()
    assert config["family"] == family
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, None), ("bfloat16", torch.bfloat16), ("torch.float16", torch.float16), (torch.float64, torch.float64)],
)
def test_a_dtype_may_be_given_by_name(given, expected):
    assert as_dtype(given) is expected


@pytest.mark.parametrize("given", ["int8", torch.int32, 16])
def test_a_dtype_that_models_are_not_kept_in_is_refused(given):
    with pytest.raises(ArgumentError, match="dtype must be one of float32, float64, float16, bfloat16, got"):
        as_dtype(given)


# --- damaged and foreign checkpoints ----------------------------------------------------------------------------------


@pytest.fixture
def published(tmp_path):
    """A folder with a small Timer in each of its two formats, each alone in a folder."""
    torch.manual_seed(0)
    model = Timer(TimerConfig(patch_len=4, d_model=8, d_ff=8, e_layers=1, n_heads=2, max_patches=6))
    for kind in ("ckpt", "safetensors"):
        folder = tmp_path / kind
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(model.config.to_dict()))
    torch.save({"state_dict": {"model." + k: v for k, v in model.state_dict().items()}}, tmp_path / "ckpt/timer.ckpt")
    save_file(model.state_dict(), tmp_path / "safetensors/model.safetensors")
    return tmp_path


def refusal(path, family="timer"):
    """The one line with which a checkpoint is refused."""
    with pytest.raises(CheckpointError) as caught:
        adapters.load(family, path, allow_pickle=True)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 700
    return message


def test_a_checkpoint_that_is_not_there_is_refused_and_nothing_is_downloaded(tmp_path):
    for family in ("timer", "ttm"):
        message = refusal(tmp_path / "absent", family)
        assert str(tmp_path / "absent") in message
        assert "nothing is downloaded" in message


@pytest.mark.parametrize("kind", ["ckpt", "safetensors"])
def test_a_truncated_file_is_refused_by_name_at_every_length(published, kind):
    path = next(path for path in (published / kind).iterdir() if path.name != "config.json")
    content = path.read_bytes()
    for length in (0, 1, 7, 8, 100, 1000, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:length])
        assert re.search(rf"{path.name}' is damaged or cut short .*copy or download it again", refusal(path.parent)), length


def test_random_damage_is_refused_in_one_line_or_still_loads(published):
    path = published / "ckpt" / "timer.ckpt"
    content = path.read_bytes()
    generator = random.Random(0)
    messages = []
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(3):
            damaged[generator.randrange(len(damaged))] ^= 1 << generator.randrange(8)
        path.write_bytes(damaged)
        try:
            adapters.load("timer", path)
        except CheckpointError as error:
            messages.append(str(error))
    assert all(path.name in message for message in messages)
    assert not any("\n" in message for message in messages)
    # Most of an archive is tensor data and padding, where a flipped bit shows nothing.
    assert len(messages) > 15


def test_a_file_that_is_no_checkpoint_is_refused(published):
    path = published / "ckpt" / "timer.ckpt"
    path.write_text("hello, this is text\n" * 10)
    assert "damaged or cut short (it is no file that torch.save wrote)" in refusal(path)


def test_pickled_objects_are_refused_by_their_name_and_not_run(published, tmp_path):
    class Payload:
        def __reduce__(self):
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    path = published / "ckpt" / "timer.ckpt"
    torch.save({"state_dict": {"model.x": Payload()}}, path)
    assert "holds pickled Python objects (exec), which can run code and are not loaded" in refusal(path)
    path.write_bytes(pickle.dumps(Payload(), protocol=2))
    assert "timer.ckpt'" in refusal(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_a_torchscript_program_is_refused_with_what_to_do(published):
    path = published / "ckpt" / "timer.pt"
    path.with_name("timer.ckpt").unlink()
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), str(path))
    assert "is a TorchScript program" in refusal(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "holds no state dict: expected names and tensors, got a int"),
        ({}, "holds no state dict: expected names and tensors, got an empty mapping"),
        ({"state_dict": {"a": 1}}, "expected names and tensors, got a int under 'a'"),
        ({"model": {"a": torch.ones(1)}}, "expected names and tensors, got a mapping with the key 'a' under 'model'"),
        ({"a": torch.ones(1, dtype=torch.int64)}, "the tensor 'a' must be dense floating point, got torch.int64"),
    ],
)
def test_a_file_without_a_state_dict_is_refused_with_what_it_holds(published, content, message):
    path = published / "ckpt" / "timer.ckpt"
    torch.save(content, path)
    assert message in refusal(path)


def test_another_suffix_and_an_unclear_folder_are_refused(published):
    other = published / "ckpt" / "weights.h5"
    other.write_bytes(b"x")
    assert "is no file of weights: expected one that ends in" in refusal(other)
    shutil.move(published / "ckpt" / "timer.ckpt", published / "ckpt" / "a.pth")
    shutil.copy(published / "ckpt" / "a.pth", published / "ckpt" / "b.pth")
    assert "holds several files of weights (a.pth, b.pth): keep one, or call it 'timer.ckpt'" in refusal(published / "ckpt")
    empty = published / "empty"
    empty.mkdir()
    assert "holds no weights: expected timer.ckpt or model.safetensors" in refusal(empty)
    assert "a run keeps its model" not in refusal(empty)
    (empty / "model").mkdir()
    assert refusal(empty).endswith(f"; a run keeps its model in '{empty}/model'")


def test_a_corrupt_configuration_is_refused_with_its_line(published):
    path = published / "ckpt" / "config.json"
    path.write_text('{"patch_len": 4,\n oops}')
    assert re.search(r"config.json' is not valid JSON \(line 2", refusal(path.parent))
    path.write_text("[1, 2]")
    assert "config.json' must hold a JSON object, got a list" in refusal(path.parent)


def test_one_name_in_common_does_not_make_a_family(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"head.base_forecast_block.weight": torch.ones(1)}, path)
    assert "1 unexpected (first 'head.base_forecast_block.weight')" in refusal(path)
    assert "looks like" not in refusal(path)
    save_file({"head.base_forecast_block.weight": torch.ones(1), "backbone.encoder.patcher.weight": torch.ones(1)}, path)
    assert refusal(path).endswith("it looks like the family 'ttm': choose that one")


def test_a_foreign_checkpoint_is_refused_with_the_first_differing_names_and_its_family(published, test_data):
    message = refusal(test_data / "granite-ttm-512-96", "timer")
    assert "does not fit the family 'timer'" in message
    assert "134 missing (first 'patch_embedding.value_embedding.weight')" in message
    assert "134 unexpected (first 'backbone.encoder.mlp_mixer_encoder" in message
    assert message.endswith("it looks like the family 'ttm': choose that one")
    message = refusal(published / "ckpt", "ttm")
    assert "model_type must be 'tinytimemixer'" in message
    assert "its first tensor is 'model.patch_embedding.value_embedding.weight'" in message
    assert message.endswith("it looks like the family 'timer': choose that one")
    message = refusal(test_data / "chronos-dummy" / "dummy-chronos-model", "timer")
    assert "unexpected (first 'decoder.block.0" in message
    assert message.endswith("it looks like the family 'chronos-t5': choose that one")
    message = refusal(test_data / "golden" / "units" / "units.pth", "timer")
    assert "units.pth" in message
