"""The family ``chronos``, variant ``chronos-t5``: a language model over the bins of scaled values."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sff_fast.adapters._chronos import ChronosAdapter, as_series, check_lengths, pieces
from sff_fast.adapters._series import from_series
from sff_fast.adapters.base import Forecast
from sff_fast.errors import CheckpointError, require

_IGNORED = -100


class ChronosT5Adapter(ChronosAdapter):
    """Chronos-T5: transformers' T5 over tokens, trained by cross-entropy, which forecasts by sampling.

    The loss is that of the package's training: the labels are the tokens of the target, scaled as the context, and the
    end token. Forecasts are the package's own sample paths with the temperature, top_k and top_p of the checkpoint; their
    mean is the point forecast.
    """

    variant: ClassVar[str] = "chronos-t5"
    default_variant: ClassVar[bool] = False
    architecture: ClassVar[str] = "T5ForConditionalGeneration"
    # arXiv:2403.07815, section 5.5.2, and scripts/README.md of the repository: fine-tuning begins with 1e-3.
    default_lr: ClassVar[float] = 1e-3
    # num_samples in every published config.json.
    default_num_samples: ClassVar[int | None] = 20
    marks: ClassVar[tuple[str, ...]] = (
        "shared.weight",
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        "decoder.block.0.layer.1.EncDecAttention.q.weight",
    )

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The projection to tokens, which T5 shares with the embedding of tokens.

        Source: ``_tied_weights_keys`` of transformers' T5: ``lm_head.weight`` is ``shared.weight``.
        """
        return [("shared.weight", self.model.lm_head.weight)]

    @classmethod
    def _make(cls, config: dict[str, Any]) -> Any:
        transformers = require("transformers", cls.extra, cls.package)
        return transformers.T5ForConditionalGeneration(transformers.T5Config.from_dict(config))

    @classmethod
    def _tiny_config(cls) -> dict[str, Any]:
        return {
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 64,
            "num_layers": 2,
            "num_heads": 4,
            "vocab_size": 512,
            "initializer_factor": 0.05,
            "decoder_start_token_id": 0,
            "chronos_config": {
                "tokenizer_class": "MeanScaleUniformBins",
                "tokenizer_kwargs": {"low_limit": -15.0, "high_limit": 15.0},
                "n_tokens": 512,
                "n_special_tokens": 2,
                "pad_token_id": 0,
                "eos_token_id": 1,
                "use_eos_token": True,
                "model_type": "seq2seq",
                "context_length": 512,
                "prediction_length": 64,
                "num_samples": 20,
                "temperature": 1.0,
                "top_k": 50,
                "top_p": 1.0,
            },
        }

    @classmethod
    def _check(cls, model: Any, path: Path) -> None:
        check_lengths(model, ("context_length", "prediction_length", "n_tokens"), path)
        settings = model.config.chronos_config
        if settings.get("model_type") != "seq2seq":
            raise CheckpointError(f"{str(path)!r}: model_type must be 'seq2seq', got {settings.get('model_type')!r}")
        if settings["n_tokens"] > model.config.vocab_size:
            raise CheckpointError(
                f"{str(path)!r}: n_tokens must be at most vocab_size ({model.config.vocab_size}), got {settings['n_tokens']}"
            )
        try:
            _settings(settings).create_tokenizer()
        except (TypeError, AttributeError, AssertionError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{str(path)!r}: chronos_config describes no tokenizer ({reason}): replace it") from error

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        total = torch.zeros((), device=context.device)
        for past, future in pieces(as_series(context), as_series(target), self._settings["prediction_length"]):
            total = total + self._tokens_loss(past, future) * future.shape[1]
        return total / target.shape[1]

    def _tokens_loss(self, context: Tensor, target: Tensor) -> Tensor:
        """Cross-entropy over the tokens of [N, L] and [N, H]."""
        # The tokenizer takes targets of the configured length only, and works on the CPU.
        settings = dataclasses.replace(_settings(self._settings), prediction_length=target.shape[1])
        tokenizer = settings.create_tokenizer()
        tokens, mask, scale = tokenizer.context_input_transform(context.cpu())
        labels, observed = tokenizer.label_input_transform(target.cpu(), scale)
        labels[~observed] = _IGNORED
        device = context.device
        return self.model(input_ids=tokens.to(device), attention_mask=mask.to(device), labels=labels.to(device)).loss

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        chronos = require("chronos", self.extra, self.package)
        settings = _settings(self._settings)
        pipeline = chronos.ChronosPipeline(settings.create_tokenizer(), chronos.ChronosModel(settings, self.model))
        paths = pipeline.predict(as_series(context).cpu(), prediction_length, num_samples)
        samples = from_series(paths.to(context.device), context.shape[2])
        return Forecast(samples.mean(dim=1), samples=samples)


def _settings(fields: dict[str, Any]) -> Any:
    return require("chronos", ChronosAdapter.extra, ChronosAdapter.package).ChronosConfig(**fields)
