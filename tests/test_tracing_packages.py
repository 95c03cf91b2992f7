"""The tracer on what other packages build: timm, Lightning, and models with the init hooks of transformers."""

from __future__ import annotations

import contextlib
import functools
import importlib.machinery
import importlib.util
import sys
import types
import warnings

import pytest
import torch
from torch import nn

import sff_fast
from sff_fast.tracing import trace
from sff_fast.verification import verify


def traced(factory, seeds=(1, 2)):
    """The plan of a factory, checked against really constructed models."""
    plan = trace(factory)
    report = verify(factory, plan, seeds)
    assert report.ok, f"\n{report}"
    return plan


def assert_replayed(factory, plan):
    """Filling with torch's numbers gives the bits of a new model."""
    torch.manual_seed(1)
    ours = factory()
    sff_fast.fill_(ours, plan, seed=3, rng="torch")
    torch.manual_seed(3)
    for (name, p), q in zip(ours.named_parameters(), factory().parameters(), strict=True):
        assert torch.equal(p, q), name


def kinds(plan):
    return {s.distribution.kind for p in plan.parameters.values() for s in p.segments}


# ---------------------------------------------------------------------- timm
class _Absent(type):
    """A class with every attribute, for what is only looked up when timm is imported."""

    def __getattr__(cls, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return name


def _absent(module, name):
    if name.startswith("__"):
        raise AttributeError(name)
    return vars(module).setdefault(name, _Absent(name, (), {}))


class _Finder:
    """Finds every module of torchvision, each with every class; timm's models use none of them."""

    def find_spec(self, name, path=None, target=None):
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if name.split(".")[0] == "torchvision" else None

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = functools.partial(_absent, module)
        return module

    def exec_module(self, module):
        pass


@contextlib.contextmanager
def _without_torchvision():
    """timm imports torchvision, whose compiled part belongs to one build of torch; models and their init need none of it."""
    if importlib.util.find_spec("torchvision") is not None:
        yield
        return
    finder = _Finder()
    sys.meta_path.append(finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]


@pytest.fixture(scope="module")
def timm():
    with _without_torchvision(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("timm", reason="timm is not installed: make models-env")


VIT = dict(depth=2, embed_dim=48, num_heads=3, img_size=32)

TIMM = {
    "vit": ("vit_tiny_patch16_224", VIT, {"constant", "normal", "trunc_normal", "uniform"}),
    "vit as in jax": ("vit_tiny_patch16_224", VIT | {"weight_init": "jax"}, {"constant", "normal", "trunc_normal", "uniform"}),
    "vit as in moco": ("vit_tiny_patch16_224", VIT | {"weight_init": "moco", "init_values": 1e-5, "reg_tokens": 2},
                       {"constant", "normal", "trunc_normal", "uniform"}),
    "beit": ("beit_base_patch16_224", VIT, {"constant", "trunc_normal", "uniform"}),
    "cait": ("cait_xxs24_224", VIT, {"constant", "trunc_normal", "uniform"}),
    "convnext": ("convnext_atto", dict(depths=(1, 1, 1, 1), dims=(8, 16, 16, 24)), {"constant", "trunc_normal"}),
    "swin": ("swin_tiny_patch4_window7_224", dict(depths=(1, 1, 1, 1), embed_dim=24), {"constant", "trunc_normal", "uniform"}),
    "resnet": ("resnet10t", dict(channels=(8, 16, 16, 24)), {"constant", "normal", "uniform"}),
    "mobilenet": ("mobilenetv3_small_050", dict(num_classes=10), {"constant", "normal", "uniform"}),
}  # fmt: skip


@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm_are_elementwise_and_replayed(timm, name):
    model, options, expected = TIMM[name]

    def factory():
        return timm.create_model(model, **options)

    plan = traced(factory)
    assert kinds(plan) == expected
    assert plan.notes == ()
    assert "timm" in plan.versions
    assert_replayed(factory, plan)


def test_the_truncated_normals_of_timm_are_recognised(timm):
    from timm.layers import trunc_normal_, trunc_normal_tf_

    def factory():
        model = nn.Module()
        model.a = nn.Parameter(trunc_normal_(torch.empty(3000), std=0.02))
        model.b = nn.Parameter(trunc_normal_tf_(torch.empty(3000), mean=1.0, std=0.5, a=-1.0, b=2.0))
        model.c = nn.Parameter(trunc_normal_(torch.empty(3000), mean=0.0, std=1.0, a=0.5, b=3.0))
        return model

    plan = traced(factory)
    assert [str(plan[name].segments[0].distribution) for name in "abc"] == [
        "TruncNormal(0, 0.02, -2, 2)",
        "TruncNormal(1, 0.5, 0.5, 2)",
        "TruncNormal(0, 1, 0.5, 3)",
    ]
    assert_replayed(factory, plan)


# ---------------------------------------------------------------------- Lightning
def test_a_lightning_module_is_traced_with_its_hyperparameters_and_metrics():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning", reason="lightning is not installed: make models-env")

    class Net(lightning.LightningModule):
        def __init__(self, width=16, dropout=0.1):
            super().__init__()
            self.save_hyperparameters()
            self.example_input_array = torch.randn(2, width)
            self.body = nn.Sequential(nn.Linear(width, 8), nn.GELU(), nn.Dropout(dropout))
            self.head = nn.Linear(8, 2)
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            self.register_buffer("scale", torch.rand(3))
            self.loss = nn.CrossEntropyLoss(weight=torch.ones(2))

        def training_step(self, batch, index):
            return self.loss(self.head(self.body(batch)), torch.zeros(len(batch), dtype=torch.long))

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters())

    plan = traced(Net)
    assert {name: str(p.segments[0].distribution) for name, p in plan.parameters.items()} == {
        "body.0.weight": "Uniform(-0.25, 0.25)",
        "body.0.bias": "Uniform(-0.25, 0.25)",
        "head.weight": "TruncNormal(0, 0.02, -2, 2)",
        "head.bias": "Uniform(-0.353553, 0.353553)",
    }
    assert plan.program[0].targets == ()  # the example input is drawn first
    assert "lightning" in plan.versions
    assert_replayed(Net, plan)


def test_a_lightning_module_that_seeds_everything_has_fixed_values():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lightning = pytest.importorskip("lightning", reason="lightning is not installed: make models-env")

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            lightning.seed_everything(7, verbose=False)
            self.head = nn.Linear(8, 2)

    with pytest.warns(UserWarning, match="seeds torch's generator itself"):
        plan = traced(Net)
    assert kinds(plan) == {"table"}


# ---------------------------------------------------------------------- transformers
def test_a_model_with_init_hooks_of_transformers_is_traced():
    pytest.importorskip("transformers", reason="transformers is not installed: make models-env")
    from transformers import PretrainedConfig, PreTrainedModel

    class Config(PretrainedConfig):
        model_type = "little"

        def __init__(self, width=16, initializer_range=0.02, **more):
            super().__init__(**more)
            self.width, self.initializer_range = width, initializer_range

    class Net(PreTrainedModel):
        config_class = Config

        def __init__(self, config):
            super().__init__(config)
            self.embedding = nn.Embedding(40, config.width, padding_idx=3)
            self.body = nn.Linear(config.width, config.width)
            self.norm = nn.LayerNorm(config.width)
            self.head = nn.Linear(config.width, 40, bias=False)
            self.free = nn.Parameter(torch.empty(config.width))
            self.post_init()

        def _init_weights(self, module):
            if isinstance(module, nn.Linear):
                module.weight.data.normal_(mean=0.0, std=self.config.initializer_range / 2)
                if module.bias is not None:
                    module.bias.data.fill_(0.25)
            elif isinstance(module, nn.Embedding):
                nn.init.trunc_normal_(module.weight, std=self.config.initializer_range)
                module.weight.data[module.padding_idx].zero_()
            elif isinstance(module, Net):
                nn.init.uniform_(module.free, -0.5, 0.5)

    def factory():
        return Net(Config(tie_word_embeddings=False))

    plan = traced(factory)
    assert {name: " ".join(str(s.distribution) for s in p.segments) for name, p in plan.parameters.items()} == {
        "embedding.weight": "TruncNormal(0, 0.02, -2, 2) Constant(0)",
        "body.weight": "Normal(0, 0.01)",
        "body.bias": "Constant(0.25)",
        "norm.weight": "Constant(1)",
        "norm.bias": "Constant(0)",
        "head.weight": "Normal(0, 0.01)",
        "free": "Uniform(-0.5, 0.5)",
    }
    assert_replayed(factory, plan)
    assert sff_fast.smooth_(factory(), seed=1).plan_hash == plan.hash  # no plan given: from class and config
