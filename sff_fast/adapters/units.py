"""The family ``units``: UniTS, one model for forecasting, imputation and anomaly detection."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import replace
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
from sff_fast.models.units import MAX_PATCHES, UniTS, UniTSConfig, UniTSTask

# In front of a name: DistributedDataParallel and other wrappers.
_PREFIXES = ("module.", "model.", "_orig_mod.")
_TOKENS = ("prompt_tokens.", "mask_tokens.", "cls_tokens.")
_WRAPPER = "student"
_PUBLISHED = {"ckpt": Layout("ckpt", wrapper=_WRAPPER), "safetensors": Layout("safetensors")}
_TINY = UniTSConfig((UniTSTask("tiny", "tiny", 1),), d_model=16, n_heads=4, e_layers=2)


class UniTSAdapter(Adapter):
    """UniTS, fine-tuned on windows of all channels as the published code does.

    Checkpoints: a file written by ``torch.save`` (``.pth .pt .ckpt .bin``) with ``{"student": tensors}`` or the tensors
    themselves, or a ``.safetensors`` file; or a folder with one such file and perhaps a ``config.json``
    (``{"model": sizes, "tasks": [[name, fields], ...]}``, as in the published code's arguments). Names may carry the
    prefixes ``module.`` and ``model.``, and ``cls_prompts``, which the published code drops, are kept aside. Everything
    is saved under the names and in the format that it was loaded from.

    **Data sets.** A UniTS has prompts for each data set that it knows, and for its channels. ``dataset`` of :meth:`load`
    chooses one; without it, the only one with as many channels as the data is taken. Prompts for one channel are used
    for every channel on its own. A data set that the checkpoint does not know is added with ``dataset`` and ``channels``:
    as in the published code, its prompts are drawn at random, so fine-tune before you forecast.

    **Lengths.** At the prediction length of a task of the data set in ``config.json`` forecast and loss are those of the
    published code, which knows whole patches only and forecasts the mean of the window beyond the last one. At any other
    length as many patches are forecast as it takes, and the surplus is cut off.

    Source: Gao et al., "UniTS: A Unified Multi-Task Time Series Model", NeurIPS 2024, arXiv:2403.00131;
    https://github.com/mims-harvard/UniTS
    """

    family: ClassVar[str] = "units"
    variant: ClassVar[str] = "units"
    tasks: ClassVar[frozenset[str]] = frozenset({"forecast", "imputation", "anomaly"})
    channel_independent: ClassVar[bool] = False
    # Alpha, learning rate and precision are the base's, those of the SFF paper.
    marks: ClassVar[tuple[str, ...]] = ("prompt2forecat.weights", "forecast_head.pos_proj.weights")

    model: UniTS

    def __init__(
        self,
        model: UniTS,
        source: Path | None = None,
        origin: Any = None,
        layout: Layout = _PUBLISHED["safetensors"],
        dataset: str | None = None,
    ) -> None:
        super().__init__(model, source, origin)
        self._layout = layout
        self._dataset = dataset

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        dataset: str | None = None,
        channels: int | None = None,
        seed: int = 0,
        n_heads: int | None = None,
        stride: int | None = None,
        dropout: float | None = None,
        dtype: torch.dtype | str | None = None,
        format: str | None = None,
    ) -> UniTSAdapter:
        """Load a UniTS; sizes come from the shapes of the tensors, or from a ``config.json`` beside them.

        Args:
            path: A file of weights, or a folder that holds one.
            dataset: The data set whose prompts to use. Default: the one with as many channels as the data.
            channels: Channels of ``dataset`` where the checkpoint has no prompts for it; they are added.
            seed: Seed of the prompts that are added.
            n_heads: Number of attention heads, which no shape tells. Default: that of ``config.json``, else 8 as
                published.
            stride: Steps from patch to patch. Default: that of ``config.json``, else the length of a patch.
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
        options = {"dataset": dataset, "channels": channels, "seed": seed, "dtype": dtype, "format": format}
        sizes = {"n_heads": n_heads, "stride": stride, "dropout": dropout}
        source = existing_path(path)
        weights = weight_file(source, ("units.pth", "model.safetensors")) if source.is_dir() else source
        state, layout = archive.read(weights, _WRAPPER, _own_name, lambda key: "cls_prompts" in key)
        config = _configure(state, weights, {name: value for name, value in sizes.items() if value is not None})
        config = _with_dataset(config, state, dataset, channels, seed)
        with torch.device("meta"):
            model = UniTS(config)
        load_exactly(model, state, weights, cls.family)
        if format not in (None, layout.format):
            layout = _PUBLISHED[format]
        origin = partial(cls.load, source, **sizes, **options)
        return cls(model.to(dtype).eval(), source, origin, layout, dataset)

    @classmethod
    def tiny(cls, seed: int = 0) -> UniTSAdapter:
        """A random UniTS of patches of 16 values, width 16 and 2 blocks, for any number of channels."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = UniTS(_TINY)
        return cls(model.eval(), origin=partial(cls.tiny, seed))

    def build(self) -> UniTS:
        """A new random UniTS of these sizes, with tokens for the same data sets."""
        return UniTS(self.model.config)

    @property
    def limits(self) -> Limits:
        """Contexts of any length, and forecasts as far as the table of positions reaches."""
        return Limits(max_context=(MAX_PATCHES - 1) * self.model.config.stride)

    def head_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The head that turns tokens into values, shared by all tasks and data sets.

        Source: arXiv:2403.00131, section 4 ("GEN tower").
        """
        return [(f"forecast_head.{name}", parameter) for name, parameter in self.model.forecast_head.named_parameters()]

    def config(self) -> dict[str, Any]:
        """The family, every size, the tasks and the data set that was chosen."""
        return {"family": self.family, "variant": self.variant, **self.model.config.to_dict(), "dataset": self._dataset}

    def _write(self, folder: Path) -> None:
        """Write ``config.json`` and ``units.pth`` or ``model.safetensors``, with the names that were loaded.

        ``units.pth`` carries ``{"student": tensors}`` as published. A model that was made in memory is written as
        ``model.safetensors`` under its own names.
        """
        files.write_json(folder / "config.json", self.model.config.to_dict())
        archive.write(self.model, self._layout, folder, "units.pth")

    def _loss(self, context: Tensor, target: Tensor) -> Tensor:
        """Mean squared error of the forecast, as in the published code's fine-tuning."""
        prediction = self._predict(context, target.shape[1])
        return F.mse_loss(prediction, target.to(prediction.dtype))

    def _forecast(self, context: Tensor, prediction_length: int, num_samples: int | None) -> Forecast:
        return Forecast(self._predict(context, prediction_length))

    def _impute(self, values: Tensor, mask: Tensor) -> Tensor:
        return self._run(values, lambda x, dataset: self.model.imputation(x, _folded(mask, x), dataset))

    def _reconstruct(self, values: Tensor) -> Tensor:
        return self._run(values, self.model.anomaly_detection)

    def _predict(self, context: Tensor, prediction_length: int) -> Tensor:
        def predict(x: Tensor, dataset: str) -> Tensor:
            published = any(
                task.dataset == dataset
                and "forecast" in task.task_name
                and task.pred_len == prediction_length
                and task.seq_len in (None, x.shape[1])
                for task in self.model.config.tasks
            )
            whole = prediction_length if published else self.model.whole_prediction(x.shape[1], prediction_length)
            return self.model.forecast(x, dataset, whole)[:, :prediction_length]

        return self._run(context, predict)

    def _run(self, values: Tensor, call: Callable[[Tensor, str], Tensor]) -> Tensor:
        """Call the model with the right prompts; those for one channel see every channel as a window of its own."""
        dataset = self._choose(values.shape[2])
        if self.model.config.datasets[dataset] == values.shape[2]:
            return call(values, dataset)
        result = call(values.transpose(1, 2).reshape(-1, values.shape[1], 1), dataset)
        return result.view(len(values), values.shape[2], -1).transpose(1, 2)

    def _choose(self, channels: int) -> str:
        datasets = self.model.config.datasets
        if self._dataset is not None:
            if datasets[self._dataset] in (1, channels):
                return self._dataset
            raise ArgumentError(
                f"units: the prompts of the data set {self._dataset!r} are for {datasets[self._dataset]} channels, got data "
                f"with {channels}: load it with another dataset, or with a new name and channels={channels}"
            )
        fitting = [name for name, count in datasets.items() if count == channels]
        fitting = fitting or [name for name, count in datasets.items() if count == 1]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise ArgumentError(
                f"units: prompts for {channels} channels are there for several data sets: load it with dataset= one of "
                f"{', '.join(fitting)}"
            )
        known = ", ".join(f"{name} ({count})" for name, count in datasets.items())
        raise ArgumentError(
            f"units: there are no prompts for {channels} channels, only for {known}: load it with dataset=NEW_NAME and "
            f"channels={channels} to add some, and fine-tune them"
        )


def _folded(mask: Tensor, x: Tensor) -> Tensor:
    """The mask in the shape of ``x``, whose channels may have become windows."""
    return mask if mask.shape == x.shape else mask.transpose(1, 2).reshape(x.shape)


def _own_name(key: str) -> str:
    """The model's name for a tensor of a file; a name that is no UniTS's stays as it is."""
    name = key
    while name.startswith(_PREFIXES):
        name = name.split(".", 1)[1]
    return name


def _configure(state: dict[str, Tensor], path: Path, options: dict[str, Any]) -> UniTSConfig:
    """The ``config.json`` beside the weights, or what the shapes tell; then the options."""
    beside = path.parent / "config.json"
    config = _inferred(state, path)
    if config is None:
        with torch.device("meta"):  # Another family's: the names that differ from those of any UniTS are told.
            load_exactly(UniTS(_TINY), state, path, UniTSAdapter.family)
    if beside.exists():
        try:
            config = UniTSConfig.from_dict(read_config(beside))
        except (ArgumentError, TypeError) as error:
            raise CheckpointError(f"{str(beside)!r}: {error}") from error
    return replace(config, **options)


def _inferred(state: dict[str, Tensor], path: Path) -> UniTSConfig | None:
    """The configuration that the shapes tell, or None where the tensors are not those of a UniTS."""
    embedding = state.get("patch_embeddings.value_embedding.weight")
    prompts = _tokens(state, "prompt_tokens.")
    if embedding is None or embedding.dim() != 2 or not prompts:
        return None
    blocks = {int(found[1]) for name in state if (found := re.match(r"blocks\.(\d+)\.", name))}
    try:
        return UniTSConfig(
            tuple(_inferred_tasks(state, path)),
            d_model=embedding.shape[0],
            e_layers=len(blocks),
            patch_len=embedding.shape[1],
            prompt_num=next(iter(prompts.values())).shape[2],
            pretrain=any(name.startswith("pretrain_head.") for name in state),
        )
    except ArgumentError as error:
        raise CheckpointError(f"{str(path)!r}: {error}") from error


def _inferred_tasks(state: dict[str, Tensor], path: Path) -> list[UniTSTask]:
    """A task for every token that goes by a task's name, and for every data set that has none of them."""
    datasets = {name: tokens.shape[1] for name, tokens in _tokens(state, "prompt_tokens.").items()}
    classes = {name: tokens.shape[2] for name, tokens in _tokens(state, "category_tokens.").items()}
    found: dict[str, list[UniTSTask]] = {dataset: [] for dataset in datasets}
    for name, tokens in {**_tokens(state, "cls_tokens."), **_tokens(state, "category_tokens.")}.items():
        channels = tokens.shape[1]
        fitting = [dataset for dataset, count in datasets.items() if count == channels]
        if not fitting:
            raise CheckpointError(
                f"{str(path)!r}: the task {name!r} has tokens for {channels} channels, and no data set has as many: "
                "put the config.json with the tasks beside it"
            )
        # Task names hold the data set's, such as LTF_ETTh1_p96; the longest one that fits is meant.
        dataset = max(fitting, key=lambda dataset: (dataset in name) * len(dataset))
        kind = "classification" if name in classes else "long_term_forecast"
        found[dataset].append(UniTSTask(name, dataset, channels, kind, num_class=classes.get(name)))
    return [task for dataset, count in datasets.items() for task in found[dataset] or [UniTSTask(dataset, dataset, count)]]


def _tokens(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tokens [1, channels, n, d_model] of a kind, by the name of their data set or task."""
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix) and tensor.dim() == 4}


def _with_dataset(
    config: UniTSConfig, state: dict[str, Tensor], dataset: str | None, channels: int | None, seed: int
) -> UniTSConfig:
    """The configuration with the data set that was asked for; new tokens are put into the state."""
    if dataset is None:
        if channels is not None:
            raise ArgumentError(f"channels={channels!r} says how wide a new data set is: give its name as dataset too")
        return config
    known = config.datasets
    if dataset in known:
        if channels not in (None, known[dataset]):
            raise ArgumentError(
                f"the data set {dataset!r} has {known[dataset]} channels in this units checkpoint, got channels={channels!r}"
            )
        return config
    if channels is None:
        raise ArgumentError(
            f"this units checkpoint has no prompts for the data set {dataset!r}, only for {', '.join(known)}: give channels "
            "too to add some, drawn at random"
        )
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ArgumentError(f"seed must be an integer, got {seed!r}")
    added = UniTSTask(dataset, dataset, channels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        drawn = UniTS(replace(config, tasks=(added,))).state_dict()
    kind = next(iter(state.values())).dtype
    state.update({name: tensor.to(kind) for name, tensor in drawn.items() if name.startswith(_TOKENS)})
    return replace(config, tasks=(*config.tasks, added))
