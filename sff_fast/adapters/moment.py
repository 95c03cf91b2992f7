"""The family ``moment``: a T5 encoder over patches that was trained to reconstruct what is masked."""

from __future__ import annotations

import copy
import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sff_fast import files
from sff_fast.adapters import _huggingface as huggingface
from sff_fast.adapters.base import Adapter, Forecast, Limits, as_dtype
from sff_fast.adapters.checkpoint import load_exactly
from sff_fast.errors import ArgumentError, CheckpointError, require

_RECONSTRUCTION, _FORECASTING = "reconstruction", "forecasting"
_SIZES = ("seq_len", "patch_len", "patch_stride_len")
_T5_SIZES = ("d_model", "d_kv", "d_ff", "num_layers", "num_heads")
# momentfm pins numpy==1.25.2, transformers==4.33.3 and huggingface-hub==0.24.0, and runs with newer ones.
_INSTALL = "pip install --no-deps momentfm==0.1.4 && pip install transformers huggingface-hub"
_TINY = {
    "task_name": _RECONSTRUCTION,
    "model_name": "MOMENT",
    "transformer_type": "encoder_only",
    "transformer_backbone": "google/flan-t5-small",
    "d_model": None,
    "seq_len": 128,
    "patch_len": 8,
    "patch_stride_len": 8,
    "t5_config": {
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 64,
        "num_layers": 2,
        "num_heads": 4,
        "vocab_size": 64,
        "feed_forward_proj": "gated-gelu",
        "is_gated_act": True,
        "dense_act_fn": "gelu_new",
        "dropout_rate": 0.1,
        "relative_attention_num_buckets": 32,
        "tie_word_embeddings": False,
        "model_type": "t5",
    },
}


class MomentAdapter(Adapter):
    """MOMENT by the package's own class, all of it trainable, each channel on its own.

    **Heads.** A MOMENT has one head. The published checkpoints have the pre-trained one, which turns tokens back into
    patches. With it this adapter imputes, detects anomalies, and forecasts any number of steps below the window's length
    by reconstructing masked patches at its end (the package's ``short_forecast``), so a published checkpoint forecasts
    without anything random in it. ``prediction_length`` of :meth:`load` puts the package's linear forecasting head in
    its place, as ``MOMENTPipeline.init`` does: that one is not pre-trained but drawn at random, and must be fine-tuned
    before it is of use; a warning says so. A checkpoint that holds a forecasting head already keeps it.

    **Files.** A model with a forecasting head is saved with ``task_name`` and ``forecast_horizon`` in its
    ``config.json``, so that ``MOMENTPipeline.from_pretrained(folder)`` opens it with its head. (The package's own
    ``save_pretrained`` leaves them out, and its ``init`` after ``model_kwargs={"task_name": "forecasting", ...}`` draws
    a new head over the trained one. Both kinds of folders are read here, by the shape of the head.)

    The package freezes embedding and encoder unless told otherwise; here everything can be trained. Windows shorter than
    the model's own length are filled with zeros before their beginning that nothing attends to, as the package's data
    sets do.

    Source: Goswami et al., "MOMENT: A Family of Open Time-series Foundation Models", ICML 2024, arXiv:2402.03885;
    https://github.com/moment-timeseries-foundation-model/moment
    """

    family: ClassVar[str] = "moment"
    variant: ClassVar[str] = "moment"
    module: ClassVar[str | None] = "momentfm"
    package: ClassVar[str | None] = "momentfm"
    extra: ClassVar[str | None] = "moment"
    tasks: ClassVar[frozenset[str]] = frozenset({"forecast", "imputation", "anomaly"})
    # Alpha, learning rate and precision are the base's, those of the SFF paper.
    marks: ClassVar[tuple[str, ...]] = ("patch_embedding.mask_embedding", "encoder.block.0.layer.0.SelfAttention.q.weight")

    def __init__(
        self,
        model: nn.Module,
        config: dict[str, Any],
        source: Path | None = None,
        origin: Any = None,
        checkpointing: bool = False,
    ) -> None:
        """Wrap a model.

        Args:
            model: A ``momentfm.MOMENTPipeline``.
            config: Its ``config.json``.
            source: Where it was loaded from.
            origin: Makes a fresh adapter just like this one.
            checkpointing: Whether to trade time for memory in training (the package's gradient checkpointing).
        """
        super().__init__(model, source, origin)
        self._config = config
        model.requires_grad_(True)
        # The package computes statistics and tokens in one dtype: half-precision weights get theirs after the former.
        model.patch_embedding.register_forward_pre_hook(_as_weights)
        if checkpointing:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="`gradient_checkpointing_enable` is deprecated")
                model.encoder.gradient_checkpointing_enable()

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        prediction_length: int | None = None,
        seed: int = 0,
        dropout: float | None = None,
        head_dropout: float | None = None,
        gradient_checkpointing: bool = False,
        dtype: torch.dtype | str | None = None,
    ) -> MomentAdapter:
        """Load a folder with ``config.json`` and ``model.safetensors``. Nothing but local files is read.

        Args:
            path: The folder.
            prediction_length: Steps of a forecasting head. One of just that length in the checkpoint is kept; otherwise
                a new one is drawn. Default: the head of the checkpoint, whichever it is.
            seed: Seed of a new head.
            dropout: Dropout of embedding and encoder. Default: the checkpoint's.
            head_dropout: Dropout of the head. Default: the checkpoint's.
            gradient_checkpointing: Whether training computes activations twice to save memory. Default False.
            dtype: dtype of the parameters. Default: that of the file.

        Returns:
            The adapter, its model in eval mode.

        Raises:
            ArgumentError: An option is not allowed.
            CheckpointError: The checkpoint is missing, damaged or of another family.
            MissingPackageError: momentfm is not installed.

        Warns:
            UserWarning: A new head was drawn at random.
        """
        options = {"prediction_length": prediction_length, "seed": seed, "dropout": dropout, "head_dropout": head_dropout}
        adapter, drawn = cls._open(path, **options, gradient_checkpointing=gradient_checkpointing, dtype=as_dtype(dtype))
        if drawn:
            warnings.warn(
                f"moment: {str(adapter.source)!r} has no forecasting head for {prediction_length} steps, so a new one is "
                f"drawn at random (seed={seed}), as momentfm does: fine-tune before you forecast",
                stacklevel=2,
            )
        return adapter

    @classmethod
    def _open(
        cls,
        path: str | os.PathLike[str],
        *,
        prediction_length: int | None,
        seed: int,
        dropout: float | None,
        head_dropout: float | None,
        gradient_checkpointing: bool,
        dtype: torch.dtype | None,
    ) -> tuple[MomentAdapter, bool]:
        """The adapter, and whether its head is new."""
        _check_options(prediction_length, seed, dropout, head_dropout)
        folder, config = huggingface.open_folder(path, cls.variant)
        if not isinstance(config.get("t5_config"), dict) or "patch_len" not in config:
            huggingface.refuse(folder, cls.variant, "it must have t5_config and patch_len", f"{', '.join(config) or 'nothing'}")
        _check_config(config, folder / huggingface.CONFIG)
        state, weights = huggingface.read_state(folder)
        config = _with_head(config, state)
        if dropout is not None:
            config["patch_dropout"] = dropout
            config["t5_config"] = {**config["t5_config"], "dropout_rate": dropout}
        if head_dropout is not None:
            config["head_dropout"] = head_dropout
        _pipeline()
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                model = _make(config)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise CheckpointError(f"{str(folder / huggingface.CONFIG)!r} describes no valid MOMENT ({reason})") from error
        load_exactly(model, state, weights, cls.variant)
        kept = (_FORECASTING, prediction_length) == (config["task_name"], config.get("forecast_horizon"))
        drawn = prediction_length is not None and not kept
        if drawn:
            config.update(task_name=_FORECASTING, forecast_horizon=prediction_length)
            _replace_head(model, config, seed)
        options = {"prediction_length": prediction_length, "seed": seed, "dropout": dropout, "head_dropout": head_dropout}
        reopen = partial(cls._open, folder, **options, gradient_checkpointing=gradient_checkpointing, dtype=dtype)
        return cls(model.to(dtype).eval(), config, folder, lambda: reopen()[0], gradient_checkpointing), drawn

    @classmethod
    def tiny(cls, seed: int = 0) -> MomentAdapter:
        """A random MOMENT of windows of 128 values, width 32, two layers and the head of the published checkpoints."""
        config = copy.deepcopy(_TINY)
        _pipeline()
        with huggingface.seeded_apart(seed):
            model = _make(config)
        return cls(model.eval(), config, origin=partial(cls.tiny, seed))

    def build(self) -> nn.Module:
        """A new random model of the package's class with this one's configuration and head."""
        return _make(self._config)

    @property
    def limits(self) -> Limits:
        """Whole patches, up to the window that the model was made for; the head's horizon, or what leaves a patch to see."""
        seq_len, patch_len = self._config["seq_len"], self._config["patch_len"]
        most = self._config["forecast_horizon"] if self._forecasts else seq_len - patch_len
        return Limits(patch_len, seq_len, patch_len, most)

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The head.

        Source: the package, which freezes all but the head by default.
        """
        return [(f"head.{name}", parameter) for name, parameter in self.model.head.named_parameters()]

    def config(self) -> dict[str, Any]:
        """The family and the fields of ``config.json``."""
        return {"family": self.family, "variant": self.variant, **self._config}

    def _write(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors``, to be opened by ``MOMENTPipeline.from_pretrained``.

        The empty ``model_kwargs`` make the package take the configuration as it is where its caller gives none.
        """
        files.write_json(folder / huggingface.CONFIG, {"model_kwargs": {}, **self._config})
        files.save_safetensors(folder / huggingface.WEIGHTS[0], self.model.state_dict(), {"format": "pt"})

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of the forecast, as in the package's fine-tuning."""
        prediction = self._predict(context, target.shape[1])
        return F.mse_loss(prediction, target.to(prediction.dtype))

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        return Forecast(self._predict(context, prediction_length))

    def _predict(self, context: Tensor, prediction_length: int) -> Tensor:
        x, observed = self._window(context)
        if self._forecasts:
            forecast = self.model.forecast(x_enc=x, input_mask=observed).forecast
        else:
            forecast = self.model.short_forecast(x_enc=x, input_mask=observed, forecast_horizon=prediction_length).forecast
        return forecast[:, :, :prediction_length].transpose(1, 2)

    def _impute(self, values: Tensor, mask: Tensor) -> Tensor:
        """Every patch with a hidden point is masked as a whole. A series of which nothing is seen counts as zeros."""
        self._check_head("imputation")
        length, channels = values.shape[1:]
        # The package's mask is that of all channels: every channel becomes a window.
        series, seen = (part.transpose(1, 2).reshape(-1, length, 1) for part in (values, mask))
        x, observed = self._window(series)
        seen = (seen | ~seen.any(dim=1, keepdim=True)).squeeze(-1).to(x.dtype)
        hidden = F.pad(seen, (x.shape[-1] - length, 0), value=1.0)
        found = self.model.reconstruction(x_enc=x, input_mask=observed, mask=hidden).reconstruction
        return found[:, 0, -length:].view(-1, channels, length).transpose(1, 2)

    def _reconstruct(self, values: Tensor) -> Tensor:
        """Nothing is masked, as in the package's ``detect_anomalies``."""
        self._check_head("anomaly detection")
        x, observed = self._window(values)
        found = self.model.reconstruct(x_enc=x, input_mask=observed).reconstruction
        return found[:, :, -values.shape[1] :].transpose(1, 2)

    @property
    def _forecasts(self) -> bool:
        return self._config["task_name"] == _FORECASTING

    def _window(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """[B, L, C] to [B, C, seq_len], at least float32, and where it is observed, [B, seq_len]."""
        missing = self._config["seq_len"] - values.shape[1]
        x = F.pad(values.transpose(1, 2), (missing, 0)).to(torch.promote_types(values.dtype, torch.float32))
        observed = torch.ones_like(x[:, 0])
        observed[:, :missing] = 0
        return x, observed

    def _check_head(self, task: str) -> None:
        if self._forecasts:
            raise ArgumentError(
                f"this moment model has a forecasting head and cannot do {task}: load a checkpoint with the pre-trained head, "
                "without prediction_length"
            )


def _pipeline() -> Any:
    extra, package = MomentAdapter.extra, MomentAdapter.package
    return require("momentfm", extra, package, _INSTALL).MOMENTPipeline


def _make(config: dict[str, Any]) -> Any:
    """A model of this configuration, whose parameters are drawn as the package draws them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Only reconstruction head is pre-trained")
        return _pipeline()({**copy.deepcopy(config), "enable_gradient_checkpointing": False}, model_kwargs={})


def _replace_head(model: Any, config: dict[str, Any], seed: int) -> None:
    """Put a new forecasting head in, drawn as ``MOMENTPipeline.init`` draws it."""
    kind = next(model.parameters()).dtype
    model.task_name = model.config.task_name = _FORECASTING
    model.config.forecast_horizon = config["forecast_horizon"]
    with huggingface.seeded_apart(seed), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Only reconstruction head is pre-trained")
        model.head = model._get_head(_FORECASTING).to(kind)


def _as_weights(module: Any, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (arguments[0].to(module.value_embedding.weight.dtype), *arguments[1:])


def _with_head(config: dict[str, Any], state: dict[str, Tensor]) -> dict[str, Any]:
    """The configuration with the task and horizon of the head that the tensors are those of."""
    weight = state.get("head.linear.weight")
    width = config["d_model"] or config["t5_config"]["d_model"]
    patches = config["seq_len"] // config["patch_len"]
    if weight is not None and weight.dim() == 2 and weight.shape[1] == width * patches and patches > 1:
        return {**config, "task_name": _FORECASTING, "forecast_horizon": weight.shape[0]}
    return {**{k: v for k, v in config.items() if k != "forecast_horizon"}, "task_name": _RECONSTRUCTION}


def _check_config(config: dict[str, Any], path: Path) -> None:
    config.setdefault("d_model", None)
    sizes = [(name, config.get(name)) for name in _SIZES]
    sizes += [(f"t5_config.{name}", config["t5_config"].get(name)) for name in _T5_SIZES]
    if config["d_model"] is not None:
        sizes.append(("d_model", config["d_model"]))
    for name, value in sizes:
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CheckpointError(f"{str(path)!r}: {name} must be an integer of at least 1, got {value!r}: replace it")
    if config["patch_stride_len"] != config["patch_len"]:
        raise CheckpointError(
            f"{str(path)!r}: patch_stride_len must equal patch_len={config['patch_len']}, got {config['patch_stride_len']}: "
            "the package computes with no other"
        )
    if config["seq_len"] % config["patch_len"]:
        raise CheckpointError(
            f"{str(path)!r}: seq_len must be a multiple of patch_len={config['patch_len']}, got {config['seq_len']}: replace it"
        )
    if config.get("transformer_type") != "encoder_only":
        raise CheckpointError(
            f"{str(path)!r}: transformer_type must be 'encoder_only', got {config.get('transformer_type')!r}: "
            "the package makes no other for T5 encoders"
        )


def _check_options(prediction_length: int | None, seed: int, dropout: float | None, head_dropout: float | None) -> None:
    if prediction_length is not None and (type(prediction_length) is not int or prediction_length < 1):
        raise ArgumentError(f"prediction_length must be an integer of at least 1, got {prediction_length!r}")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ArgumentError(f"seed must be an integer, got {seed!r}")
    for name, value in (("dropout", dropout), ("head_dropout", head_dropout)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1):
            raise ArgumentError(f"{name} must lie in [0, 1), got {value!r}")
