"""Builders of the upstream classes that the eight families are made of, at tiny and at published sizes.

``BUILDERS[name](size)`` gives a new model; ``SIZES[name]`` lists the sizes, ``"tiny"`` first. `make models-env` installs the
packages. What is set around the classes is what their packages need to be imported, and touches no parameter.
"""

from __future__ import annotations

import dataclasses
import typing
import warnings
from argparse import Namespace
from collections.abc import Callable

import pytest
from torch import nn

BUILDERS: dict[str, Callable[[str], nn.Module]] = {}
SIZES: dict[str, tuple[str, ...]] = {}

DEPENDENCY = {
    "timer": None,
    "units": None,
    "timer_hf": "sktime",
    "timesfm": "timesfm",
    "timesfm3": "timesfm3",
    "timesfm2_hf": "transformers",
    "timesfm25_hf": "transformers",
    "moment": "momentfm",
    "moirai": "uni2ts",
    "moirai2": "uni2ts",
    "moirai_moe": "uni2ts",
    "chronos_t5": "transformers",
    "chronos_bolt": "chronos",
    "chronos2": "chronos",
    "ttm": "tsfm_public",
    "sundial": "sktime",
}
"""The module that a builder needs, or None."""


FAST = ("timer", "units", "moment", "moirai2", "chronos_bolt", "ttm")
"""Builders whose tests run in `make test`; the others run in `make test-slow`."""


def marked() -> list:
    """The names of all builders as parameters of a test, slow ones marked."""
    return [name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in BUILDERS]


def builder(*sizes: str) -> Callable[[Callable[[str], nn.Module]], Callable[[str], nn.Module]]:
    """Register a function under its own name; warnings of the packages' own making are not the tests' business."""

    def register(build: Callable[[str], nn.Module]) -> Callable[[str], nn.Module]:
        def quiet(size: str) -> nn.Module:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return build(size)

        BUILDERS[build.__name__], SIZES[build.__name__] = quiet, sizes
        return quiet

    return register


# ---------------------------------------------------------------------- Timer
@builder("tiny", "67m")
def timer(size: str) -> nn.Module:
    from sff_fast.models import Timer, TimerConfig

    if size == "67m":
        return Timer(TimerConfig())
    return Timer(TimerConfig(d_model=32, d_ff=64, e_layers=2, n_heads=4, max_patches=64))


@builder("tiny", "84m")
def timer_hf(size: str) -> nn.Module:
    from sktime.libs.timer.modeling_timer import TimerConfig, TimerForPrediction

    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, max_position_embeddings=64)
    large = dict(hidden_size=1024, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8)
    return TimerForPrediction(
        TimerConfig(input_token_len=96, output_token_lens=[96], use_cache=False, **(small if size == "tiny" else large))
    )


# ---------------------------------------------------------------------- UniTS
@builder("tiny", "x32", "x64", "x128")
def units(size: str) -> nn.Module:
    from sff_fast.models import UniTS, UniTSConfig, UniTSTask

    if size == "tiny":
        tasks = (UniTSTask("a", "A", 2, num_class=3, task_name="classification"), UniTSTask("b", "B", 1))
        return UniTS(UniTSConfig(tasks, d_model=16, n_heads=4, e_layers=1, prompt_num=4, pretrain=True))
    return UniTS(UniTSConfig((UniTSTask("LTF_ETTh1_p96", "ETTh1", 7),), d_model=int(size[1:])))


# ---------------------------------------------------------------------- TimesFM
@builder("tiny", "200m")
def timesfm(size: str) -> nn.Module:
    from timesfm.timesfm_2p5.timesfm_2p5_torch import TimesFM_2p5_200M_torch_module

    if size == "200m":
        return TimesFM_2p5_200M_torch_module()
    # The class takes no argument: its configuration is an attribute of the class.
    published = TimesFM_2p5_200M_torch_module.config
    layers, narrow = published.stacked_transformers, dict(input_dims=32, hidden_dims=32)
    layer = dataclasses.replace(layers.transformer, model_dims=32, hidden_dims=32, num_heads=4)
    config = dataclasses.replace(
        published,
        tokenizer=dataclasses.replace(published.tokenizer, hidden_dims=32, output_dims=32),
        stacked_transformers=dataclasses.replace(layers, num_layers=2, transformer=layer),
        output_projection_point=dataclasses.replace(published.output_projection_point, **narrow),
        output_projection_quantiles=dataclasses.replace(published.output_projection_quantiles, **narrow),
    )
    return type("TinyTimesFM", (TimesFM_2p5_200M_torch_module,), {"config": config})()


@builder("tiny", "default")
def timesfm3(size: str) -> nn.Module:
    from timesfm3.torch import configs
    from timesfm3.torch.model import TimesFM3Torch

    if size == "default":
        return TimesFM3Torch()
    layer = configs.TransformerConfig(
        model_dims=32,
        hidden_dims=32,
        num_heads=4,
        attention_norm="rms",
        feedforward_norm="rms",
        qk_norm="rms",
        use_rope_seq=True,
        use_rope_var=False,
        use_bias=False,
        ff_activation="relu",
        deterministic=True,
    )
    return TimesFM3Torch(
        residual_block_config=configs.ResidualBlockConfig(hidden_dims=32, output_dims=32, use_bias=False, activation="relu"),
        transformer_config=configs.StackedTransformersConfig(num_layers=2, transformer=layer),
    )


@builder("tiny", "500m")
def timesfm2_hf(size: str) -> nn.Module:
    from transformers import TimesFmConfig, TimesFmModelForPrediction

    small = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
    return TimesFmModelForPrediction(TimesFmConfig(**(small if size == "tiny" else {})))


@builder("tiny", "200m")
def timesfm25_hf(size: str) -> nn.Module:
    from transformers import TimesFm2_5Config, TimesFm2_5ModelForPrediction

    small = dict(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=8)
    return TimesFm2_5ModelForPrediction(TimesFm2_5Config(**(dict(small, num_key_value_heads=4) if size == "tiny" else {})))


# ---------------------------------------------------------------------- MOMENT
@builder("tiny", "small", "base", "large")
def moment(size: str) -> nn.Module:
    from momentfm.models.moment import MOMENT

    d_model, d_kv, d_ff, layers, heads, vocabulary = {
        "tiny": (32, 8, 64, 2, 4, 64),
        "small": (512, 64, 1024, 8, 6, 32128),
        "base": (768, 64, 2048, 12, 12, 32128),
        "large": (1024, 64, 2816, 24, 16, 32128),
    }[size]
    t5 = dict(
        d_model=d_model,
        d_kv=d_kv,
        d_ff=d_ff,
        num_layers=layers,
        num_heads=heads,
        vocab_size=vocabulary,
        feed_forward_proj="gated-gelu",
        is_gated_act=True,
        dense_act_fn="gelu_new",
        dropout_rate=0.1,
        relative_attention_num_buckets=32,
        tie_word_embeddings=False,
        model_type="t5",
    )
    return MOMENT(
        Namespace(
            task_name="forecasting",
            forecast_horizon=96,
            seq_len=512,
            patch_len=8,
            patch_stride_len=8,
            d_model=d_model,
            t5_config=t5,
            transformer_backbone=f"google/flan-t5-{'small' if size == 'tiny' else size}",
            transformer_type="encoder_only",
            freeze_embedder=False,
            freeze_encoder=False,
            freeze_head=False,
            enable_gradient_checkpointing=False,
            head_dropout=0.1,
            n_channels=1,
        )
    )


# ---------------------------------------------------------------------- MOIRAI
def _without_jax() -> None:
    """uni2ts imports ``jaxtyping.PyTree``, an annotation whose lookup imports jax."""
    import jaxtyping

    if "PyTree" not in vars(jaxtyping):
        jaxtyping.PyTree = type("PyTree", (), {"__class_getitem__": classmethod(lambda cls, item: typing.Any)})


def _mixture() -> typing.Any:
    from uni2ts.distribution import (
        LogNormalOutput,
        MixtureOutput,
        NegativeBinomialOutput,
        NormalFixedScaleOutput,
        StudentTOutput,
    )

    return MixtureOutput(components=[StudentTOutput(), NormalFixedScaleOutput(), NegativeBinomialOutput(), LogNormalOutput()])


_MOIRAI = dict(max_seq_len=512, attn_dropout_p=0.0, dropout_p=0.0, scaling=True)


@builder("tiny", "small", "base", "large")
def moirai(size: str) -> nn.Module:
    _without_jax()
    from uni2ts.model.moirai.module import MoiraiModule

    width, layers = {"tiny": (64, 2), "small": (384, 6), "base": (768, 12), "large": (1024, 24)}[size]
    patches = (8, 16, 32, 64, 128)
    return MoiraiModule(distr_output=_mixture(), d_model=width, num_layers=layers, patch_sizes=patches, **_MOIRAI)


@builder("tiny", "small")
def moirai2(size: str) -> nn.Module:
    _without_jax()
    from uni2ts.model.moirai2.module import Moirai2Module

    width, inner, layers = {"tiny": (64, 128, 2), "small": (384, 1024, 6)}[size]
    levels = tuple(i / 10 for i in range(1, 10))
    return Moirai2Module(
        d_model=width, d_ff=inner, num_layers=layers, patch_size=16, num_predict_token=4, quantile_levels=levels, **_MOIRAI
    )


@builder("tiny", "small", "base")
def moirai_moe(size: str) -> nn.Module:
    _without_jax()
    from uni2ts.model.moirai_moe.module import MoiraiMoEModule

    width, inner, layers = {"tiny": (64, 64, 2), "small": (384, 512, 6), "base": (768, 1024, 12)}[size]
    return MoiraiMoEModule(distr_output=_mixture(), d_model=width, d_ff=inner, num_layers=layers, patch_sizes=(16,), **_MOIRAI)


# ---------------------------------------------------------------------- Chronos
def _t5(size: str, **more: typing.Any) -> typing.Any:
    from transformers import T5Config

    width, inner, layers, heads, head = {
        "tiny": (32, 64, 2, 4, 8),
        "8m": (256, 1024, 4, 4, 64),
        "20m": (384, 1536, 4, 8, 64),
        "46m": (512, 2048, 6, 8, 64),
        "200m": (768, 3072, 12, 12, 64),
        "710m": (1024, 4096, 24, 16, 64),
    }[size]
    return T5Config(
        d_model=width,
        d_ff=inner,
        num_layers=layers,
        num_decoder_layers=layers,
        num_heads=heads,
        d_kv=head,
        initializer_factor=0.05,
        pad_token_id=0,
        eos_token_id=1,
        decoder_start_token_id=0,
        feed_forward_proj="relu",
        **more,
    )


@builder("tiny", "8m", "20m", "46m", "200m", "710m")
def chronos_t5(size: str) -> nn.Module:
    from transformers import T5ForConditionalGeneration

    return T5ForConditionalGeneration(_t5(size, vocab_size=4096, tie_word_embeddings=False))


@builder("tiny", "8m", "20m", "46m", "200m")
def chronos_bolt(size: str) -> nn.Module:
    from chronos.chronos_bolt import ChronosBoltModelForForecasting

    config = _t5(size, vocab_size=2, reg_token_id=1, tie_word_embeddings=True)
    config.chronos_config = dict(
        context_length=2048,
        prediction_length=64,
        input_patch_size=16,
        input_patch_stride=16,
        quantiles=[i / 10 for i in range(1, 10)],
        use_reg_token=True,
    )
    return ChronosBoltModelForForecasting(config)


@builder("tiny", "small", "base")
def chronos2(size: str) -> nn.Module:
    from chronos.chronos2.config import Chronos2CoreConfig
    from chronos.chronos2.model import Chronos2Model

    width, inner, layers, heads, head = {
        "tiny": (32, 64, 2, 4, 8),
        "small": (512, 2048, 6, 8, 64),
        "base": (768, 3072, 12, 12, 64),
    }[size]
    config = Chronos2CoreConfig(d_model=width, d_kv=head, d_ff=inner, num_layers=layers, num_heads=heads)
    config.chronos_config = dict(
        context_length=2048,
        output_patch_size=16,
        input_patch_size=16,
        input_patch_stride=16,
        quantiles=[0.01, *(i / 20 for i in range(1, 20)), 0.99],
        use_reg_token=True,
        use_arcsinh=True,
        max_output_patches=64,
        time_encoding_scale=2048,
    )
    config.reg_token_id = 1
    return Chronos2Model(config)


# ---------------------------------------------------------------------- TTM and Sundial
@builder("tiny", "r2", "r2_post_init")
def ttm(size: str) -> nn.Module:
    from tsfm_public.models.tinytimemixer import TinyTimeMixerConfig, TinyTimeMixerForPrediction

    if size == "tiny":
        config = dict(
            context_length=96,
            patch_length=8,
            patch_stride=8,
            prediction_length=24,
            num_input_channels=3,
            d_model=16,
            decoder_d_model=8,
            num_layers=2,
            decoder_num_layers=1,
        )
    else:
        config = dict(
            context_length=512,
            patch_length=64,
            patch_stride=64,
            prediction_length=96,
            num_input_channels=1,
            d_model=192,
            expansion_factor=2,
            num_layers=2,
            adaptive_patching_levels=3,
            use_decoder=True,
            decoder_num_layers=2,
            decoder_d_model=128,
            decoder_adaptive_patching_levels=0,
            decoder_mode="common_channel",
            gated_attn=True,
            post_init=size == "r2_post_init",
        )
    return TinyTimeMixerForPrediction(TinyTimeMixerConfig(**config))


@builder("tiny", "128m")
def sundial(size: str) -> nn.Module:
    from sktime.libs.sundial.modeling_sundial import SundialConfig, SundialForPrediction

    small = dict(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        output_token_lens=[96],
        flow_loss_depth=2,
        max_position_embeddings=64,
    )
    return SundialForPrediction(SundialConfig(use_cache=False, **(small if size == "tiny" else {})))
