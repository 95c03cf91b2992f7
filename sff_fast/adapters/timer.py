"""The family ``timer``: the model of the Large-Time-Series-Model repository, which the SFF paper fine-tunes."""

from __future__ import annotations

import os
import re
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sff_fast import files
from sff_fast.adapters import archive
from sff_fast.adapters.archive import Layout
from sff_fast.adapters.base import Adapter, Forecast, Limits, as_dtype
from sff_fast.adapters.checkpoint import existing_path, load_exactly, read_config, weight_file
from sff_fast.errors import ArgumentError, CheckpointError
from sff_fast.models.timer import Timer, TimerConfig

# In front of a name: DistributedDataParallel, the published checkpoint, the official model around its backbone.
_PREFIXES = ("module.", "model.", "backbone.")
_ROOTS = ("patch_embedding.", "decoder.", "proj.")
_FIELDS = tuple(field.name for field in fields(TimerConfig))
# Names of a file that was made here: as published in an archive, the model's own in safetensors.
_WRAPPER = "state_dict"
_PUBLISHED = {"ckpt": Layout("ckpt", "model.", wrapper=_WRAPPER), "safetensors": Layout("safetensors")}
_TINY = TimerConfig(patch_len=96, d_model=32, d_ff=64, e_layers=2, n_heads=4)


class TimerAdapter(Adapter):
    """Timer, fine-tuned on windows of one channel as the SFF paper does.

    Checkpoints: a file written by ``torch.save`` (``.ckpt .pth .pt .bin``) with ``{"state_dict": tensors}`` or the
    tensors themselves, or a ``.safetensors`` file; or a folder with one such file and perhaps a ``config.json``. Names
    may carry the prefixes ``module.``, ``model.`` and ``backbone.``, and may repeat a tensor under an alias, as in the
    checkpoints that the official code writes after fine-tuning (``decoder.*`` and ``backbone.decoder.*``,
    ``enc_embedding.*``). They are saved under the names and in the format that they were loaded from.
    """

    family: ClassVar[str] = "timer"
    variant: ClassVar[str] = "timer"
    # Alpha, learning rate and precision are the base's: the SFF paper found them with this model.
    tasks: ClassVar[frozenset[str]] = frozenset({"forecast", "imputation", "anomaly"})
    marks: ClassVar[tuple[str, ...]] = (
        "decoder.attn_layers.0.attention.query_projection.weight",
        "value_embedding.weight",
    )

    model: Timer

    def __init__(
        self, model: Timer, source: Path | None = None, origin: Any = None, layout: Layout = _PUBLISHED["safetensors"]
    ) -> None:
        super().__init__(model, source, origin)
        self._layout = layout

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        n_heads: int | None = None,
        dropout: float | None = None,
        dtype: torch.dtype | str | None = None,
        format: str | None = None,
    ) -> TimerAdapter:
        """Load a Timer; sizes come from the shapes of the tensors, and must agree with a ``config.json`` beside them.

        Args:
            path: A file of weights, or a folder that holds one.
            n_heads: Number of attention heads, which no shape tells. Default: that of ``config.json``, else 8 as
                published.
            dropout: Default: that of ``config.json``, else 0.1 as published.
            dtype: dtype of the parameters. Default: that of the file.
            format: ``"ckpt"`` or ``"safetensors"``, what :meth:`save` will write. Default: the format loaded from.

        Returns:
            The adapter, its model in eval mode.

        Raises:
            ArgumentError: An option is not allowed.
            CheckpointError: The checkpoint is missing, damaged, of another family or does not fit its ``config.json``.
        """
        dtype = as_dtype(dtype)
        archive.check_format(format)
        source = existing_path(path)
        weights = weight_file(source, ("timer.ckpt", "model.safetensors")) if source.is_dir() else source
        state, layout = archive.read(weights, _WRAPPER, _own_name)
        config = _configure(state, weights, n_heads, dropout)
        with torch.device("meta"):
            model = Timer(config)
        load_exactly(model, state, weights, cls.family)
        if format not in (None, layout.format):
            layout = _PUBLISHED[format]
        origin = partial(cls.load, source, n_heads=n_heads, dropout=dropout, dtype=dtype, format=format)
        return cls(model.to(dtype).eval(), source, origin, layout)

    @classmethod
    def tiny(cls, seed: int = 0) -> TimerAdapter:
        """A random Timer of patches of 96 values, width 32 and 2 layers (23,392 parameters)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Timer(_TINY)
        return cls(model.eval(), origin=partial(cls.tiny, seed))

    def build(self) -> Timer:
        """A new random Timer of these sizes."""
        return Timer(self.model.config)

    @property
    def limits(self) -> Limits:
        """Contexts of whole patches; forecasts of any length, since a longer one goes on from its own patches."""
        patch_len = self.model.config.patch_len
        return Limits(min_context=patch_len, max_context=patch_len * self.model.config.max_patches, multiple_of=patch_len)

    def limits_for(self, task: str) -> Limits:
        """As for forecasting; anomaly detection needs a second patch, the first that the model expects anything of."""
        limits = self.limits
        return replace(limits, min_context=2 * limits.min_context) if task == "anomaly" else limits

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The projection of the hidden states to the values of a patch."""
        return [(f"proj.{name}", parameter) for name, parameter in self.model.proj.named_parameters()]

    def config(self) -> dict[str, Any]:
        """The family and every size."""
        return {"family": self.family, "variant": self.variant, **self.model.config.to_dict()}

    def _write(self, folder: Path) -> None:
        """Write ``config.json`` and ``timer.ckpt`` or ``model.safetensors``, with the names that were loaded.

        A Timer that was made in memory is written as ``model.safetensors`` under its own names; ``timer.ckpt`` carries
        the published ``{"state_dict": {"model." + name: tensor}}``.
        """
        files.write_json(folder / "config.json", self.model.config.to_dict())
        archive.write(self.model, self._layout, folder, "timer.ckpt")

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of the forecast.

        For at most one patch this is what the SFF paper's code minimises (``use_ims=False``): only the prediction of
        the last patch counts, not that of every patch as in pre-training. Beyond one patch the error is taken over the
        patches that the model goes on to from its own predictions, just as it forecasts; gradients flow through them.
        """
        prediction = self._roll(context, target.shape[1])
        return F.mse_loss(prediction, target.to(prediction.dtype))

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        return Forecast(self._roll(context, prediction_length))

    def _impute(self, values: Tensor, mask: Tensor) -> Tensor:
        """Every output patch stands for its own input patch, as the official code fine-tunes it.

        The pre-trained model predicts the next patch instead, so before fine-tuning its values here mean little.
        """
        return self.model.imputation(values, mask)

    def _reconstruct(self, values: Tensor) -> Tensor:
        """Every patch as predicted from those before it; NaN for the first one.

        Source: arXiv:2402.02368, section 4.3, which detects anomalies by the error of the predicted next segment.
        """
        patch_len = self.model.config.patch_len
        expected = self.model.anomaly_detection(values)[:, :-patch_len]
        return torch.cat((torch.full_like(values[:, :patch_len], torch.nan, dtype=expected.dtype), expected), dim=1)

    def _roll(self, context: Tensor, prediction_length: int) -> Tensor:
        """Forecast patch after patch over a window of constant length, normalised anew at each step."""
        patch_len = self.model.config.patch_len
        patches: list[Tensor] = []
        while True:
            patches.append(self.model(context)[:, -patch_len:])
            if len(patches) * patch_len >= prediction_length:
                return torch.cat(patches, dim=1)[:, :prediction_length]
            context = torch.cat((context[:, patch_len:].to(patches[-1].dtype), patches[-1]), dim=1)


def _own_name(key: str) -> str:
    """The model's name for a tensor of a file; a name that is no Timer's stays as it is."""
    name = key
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    if name.startswith("enc_embedding."):
        name = "patch_embedding." + name.removeprefix("enc_embedding.")
    return name if name.startswith(_ROOTS) else key


def _configure(state: dict[str, Tensor], path: Path, n_heads: int | None, dropout: float | None) -> TimerConfig:
    """Sizes from the shapes, the rest from the options, the ``config.json`` beside the weights, or as published."""
    shapes = _sizes(state)
    beside = path.parent / "config.json"
    stated = read_config(beside) if beside.exists() else {}
    try:
        if unknown := [name for name in stated if name not in _FIELDS]:
            if shapes is None:
                stated = {}  # Another family's; the names of the tensors say so better.
            else:
                raise CheckpointError(f"{str(beside)!r} has the unknown field {unknown[0]!r}: expected {', '.join(_FIELDS)}")
        config = TimerConfig(**{**(shapes or {}), **stated})
    except ArgumentError as error:
        raise CheckpointError(f"{str(beside if stated else path)!r}: {error}") from error
    for name, size in (shapes or {}).items():
        if getattr(config, name) != size:
            raise CheckpointError(
                f"{str(beside)!r} says {name}={getattr(config, name)}, but {path.name} was made with {size}: "
                "check that they belong together"
            )
    options = {"n_heads": n_heads, "dropout": dropout}
    return replace(config, **{name: value for name, value in options.items() if value is not None})


def _sizes(state: dict[str, Tensor]) -> dict[str, int] | None:
    """The sizes that shapes tell, or None where the tensors are not those of a Timer."""
    embedding = state.get("patch_embedding.value_embedding.weight")
    positions = state.get("patch_embedding.position_embedding.pe")
    widening = state.get("decoder.attn_layers.0.conv1.weight")
    if embedding is None or positions is None or widening is None:
        return None
    if (embedding.dim(), positions.dim(), widening.dim()) != (2, 3, 3):
        return None
    layers = {int(found[1]) for name in state if (found := re.match(r"decoder\.attn_layers\.(\d+)\.", name))}
    return {
        "patch_len": embedding.shape[1],
        "d_model": embedding.shape[0],
        "d_ff": widening.shape[0],
        "e_layers": len(layers),
        "max_patches": positions.shape[1],
    }
