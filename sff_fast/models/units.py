"""UniTS: one encoder for forecasting, imputation and anomaly detection, told by prompt tokens what the data is.

Own implementation of the published architecture. Names, shapes and order of the parameters, and the distributions that
the constructor draws them from, are those of the official source, so that its checkpoints load, a fixed seed draws the
same weights, and Smoothed Full Fine-tuning mixes in the same random model.

A window is cut into patches for each channel on its own. The encoder works on tokens [B, C, N, d_model]: the learned
prompts of the data set come first, then the patches, then, in forecasting, a token for every patch to come. Its blocks
attend along the tokens and along the channels, and mix along the tokens by linear maps that are stretched to their number.

Source:
    Gao et al., "UniTS: A Unified Multi-Task Time Series Model", NeurIPS 2024, arXiv:2403.00131.
    Instance normalisation: Liu et al., "Non-stationary Transformers", NeurIPS 2022, arXiv:2205.14415.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sff_fast.errors import ArgumentError

#: Added to the variance in the instance normalisation.
NORMALISATION_EPS = 1e-5
#: Rows of the table of positions: the most patches of context and forecast together.
MAX_PATCHES = 5000
#: Tokens that the linear maps between tokens are made for; for another number they are stretched.
BASE_TOKENS = 128
# Fields of a task and of a model in the published configurations.
_STATED = ("task_name", "dataset", "enc_in", "num_class", "seq_len", "pred_len")
_SIZES = (
    "d_model",
    "n_heads",
    "e_layers",
    "patch_len",
    "stride",
    "prompt_num",
    "dropout",
    "pretrain",
    "right_prob",
    "min_mask_ratio",
    "max_mask_ratio",
)
#: Hidden units a unit of width in the feed-forward layers.
MLP_RATIO = 8


@dataclass(frozen=True)
class UniTSTask:
    """A data set and what is done with it, as the published configurations list them.

    Args:
        name: The task's name, such as ``"LTF_ETTh1_p96"``; classification tokens go by it.
        dataset: The data set's name; prompts and mask tokens go by it.
        enc_in: Channels of the data set.
        task_name: ``"long_term_forecast"``, ``"imputation"``, ``"anomaly_detection"`` or ``"classification"``.
        num_class: Classes of a classification task, or None.
        seq_len: Context length of the task, or None where it is not stated.
        pred_len: Prediction length of the task, or None where it is not stated.
        more: Whatever else the published configuration says of the task; kept, not looked at.
    """

    name: str
    dataset: str
    enc_in: int
    task_name: str = "long_term_forecast"
    num_class: int | None = None
    seq_len: int | None = None
    pred_len: int | None = None
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("name", "dataset", "task_name"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value or "." in value:
                raise ArgumentError(f"UniTSTask: {name} must be a string without dots, not empty, got {value!r}")
        _check_integer("UniTSTask", "enc_in", self.enc_in)
        for name in ("num_class", "seq_len", "pred_len"):
            if getattr(self, name) is not None:
                _check_integer("UniTSTask", name, getattr(self, name), 0 if name == "pred_len" else 1)
        if self.task_name == "classification" and self.num_class is None:
            raise ArgumentError(f"UniTSTask: num_class is missing for the classification task {self.name!r}")

    @classmethod
    def from_list(cls, pair: Any) -> UniTSTask:
        """The task of a pair [name, fields] of a published configuration.

        Raises:
            ArgumentError: It is no such pair, or a field is missing or out of range.
        """
        fine = isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[1], Mapping)
        if not fine or not {"dataset", "enc_in"} <= set(pair[1]):
            raise ArgumentError(f"UniTSTask: expected [name, {{'dataset': ..., 'enc_in': ..., ...}}], got {pair!r}")
        own, more = _split(pair[1], _STATED)
        return cls(pair[0], **own, more=more)

    def to_list(self) -> list[Any]:
        """The pair [name, fields] of a published configuration; what is not stated is left out."""
        own = {name: getattr(self, name) for name in _STATED if getattr(self, name) is not None}
        return [self.name, {**own, **self.more}]


@dataclass(frozen=True)
class UniTSConfig:
    """Sizes of a UniTS and the data sets that it has tokens for; the defaults are those of the published x64 model.

    Args:
        tasks: The tasks, at least one; a data set may have several.
        d_model: Width of the tokens, even, a multiple of ``n_heads`` and more than half of ``prompt_num``. Default 64.
        n_heads: Number of attention heads, default 8.
        e_layers: Number of blocks, default 3.
        patch_len: Values a patch, default 16.
        stride: Steps from one patch to the next. Default: ``patch_len``, which forecasting needs.
        prompt_num: Prompt tokens a channel, below 128. Default 10.
        dropout: Probability in [0, 1) of every dropout, default 0.1.
        pretrain: Whether there are the parameters of the masked pre-training: a second head, and a classification token
            for every task. Default False.
        right_prob: Kept for the published configurations; only their pre-training uses it. Default 0.5.
        min_mask_ratio: Likewise. Default 0.5.
        max_mask_ratio: Likewise. Default 0.8.
        more: Whatever else a published configuration says of the model; kept, not looked at.

    Raises:
        ArgumentError: A value lies outside of what is allowed, or tasks contradict each other.
    """

    tasks: tuple[UniTSTask, ...]
    d_model: int = 64
    n_heads: int = 8
    e_layers: int = 3
    patch_len: int = 16
    stride: int | None = None
    prompt_num: int = 10
    dropout: float = 0.1
    pretrain: bool = False
    right_prob: float = 0.5
    min_mask_ratio: float = 0.5
    max_mask_ratio: float = 0.8
    more: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.stride is None:
            object.__setattr__(self, "stride", self.patch_len)
        for name in ("d_model", "n_heads", "e_layers", "patch_len", "stride", "prompt_num"):
            _check_integer("UniTSConfig", name, getattr(self, name))
        if self.d_model % 2:
            raise ArgumentError(f"UniTSConfig: d_model must be even (sines and cosines alternate), got {self.d_model}")
        if self.d_model % self.n_heads:
            raise ArgumentError(
                f"UniTSConfig: d_model must be a multiple of n_heads, got d_model={self.d_model}, n_heads={self.n_heads}"
            )
        most = min(BASE_TOKENS, MLP_RATIO * self.d_model // 4)
        if self.prompt_num >= most:
            raise ArgumentError(f"UniTSConfig: prompt_num must be below {most} for d_model={self.d_model}, got {self.prompt_num}")
        if self.stride > self.patch_len:
            raise ArgumentError(f"UniTSConfig: stride must be at most patch_len={self.patch_len}, got {self.stride}")
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ArgumentError(f"UniTSConfig: dropout must lie in [0, 1), got {self.dropout!r}")
        if not isinstance(self.pretrain, bool):
            raise ArgumentError(f"UniTSConfig: pretrain must be True or False, got {self.pretrain!r}")
        if not self.tasks:
            raise ArgumentError("UniTSConfig: tasks must name at least one task")
        self._check_tasks()

    @property
    def datasets(self) -> dict[str, int]:
        """The data sets that there are prompts for, with their channels, in the order in which they come."""
        return {task.dataset: task.enc_in for task in self.tasks}

    @classmethod
    def from_dict(cls, config: Any) -> UniTSConfig:
        """The configuration of ``{"model": sizes, "tasks": [[name, fields], ...]}``.

        Raises:
            ArgumentError: It has another form, or a value is out of range.
        """
        if not isinstance(config, Mapping) or not {"model", "tasks"} <= set(config):
            raise ArgumentError("UniTSConfig: expected the entries 'model' and 'tasks'")
        sizes, tasks = config["model"], config["tasks"]
        if not isinstance(sizes, Mapping) or not isinstance(tasks, (list, tuple)):
            raise ArgumentError("UniTSConfig: 'model' must be an object of sizes and 'tasks' a list")
        own, more = _split(sizes, _SIZES)
        return cls(tuple(UniTSTask.from_list(pair) for pair in tasks), **own, more=more)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values: ``{"model": sizes, "tasks": [[name, fields], ...]}``."""
        sizes = {name: getattr(self, name) for name in _SIZES}
        return {"model": {**sizes, **self.more}, "tasks": [task.to_list() for task in self.tasks]}

    def _check_tasks(self) -> None:
        names: set[str] = set()
        channels: dict[str, int] = {}
        for task in self.tasks:
            if task.name in names:
                raise ArgumentError(f"UniTSConfig: two tasks have the name {task.name!r}: rename one")
            names.add(task.name)
            if channels.setdefault(task.dataset, task.enc_in) != task.enc_in:
                raise ArgumentError(
                    f"UniTSConfig: the data set {task.dataset!r} has {channels[task.dataset]} channels in one task and "
                    f"{task.enc_in} in another: they share their prompts"
                )


class StretchedLinear(nn.Module):
    """A linear map between tokens that is stretched to any number of them.

    The map is made for ``in_features`` inputs and ``out_features`` outputs; for other numbers its matrix is interpolated
    like an image, the columns of the prompts and those of the other tokens each on their own, and its bias like a line.

    ``weights`` [out_features, in_features] and ``bias`` are both U(-1/sqrt(in_features), 1/sqrt(in_features)), drawn in
    this order as ``nn.Linear`` does.

    Args:
        in_features: Inputs that it is made for.
        out_features: Outputs that it is made for.
        fixed_in: First inputs, the prompts, whose number never changes.

    Source: arXiv:2403.00131, section 4 ("DyLinear").
    """

    def __init__(self, in_features: int, out_features: int, fixed_in: int) -> None:
        super().__init__()
        self.fixed_in = fixed_in
        self.weights = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        nn.init.kaiming_uniform_(self.weights, a=math.sqrt(5))
        bound = 1 / math.sqrt(in_features)
        nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, out_features: int) -> Tensor:
        """[..., n] to [..., out_features], n at least one more than the prompts."""
        inputs = x.shape[-1]
        rows, columns = self.weights.shape
        if (out_features, inputs) == (rows, columns):
            return F.linear(x, self.weights, self.bias)
        parts = self.weights.split((self.fixed_in, columns - self.fixed_in), dim=1)
        widths = (self.fixed_in, inputs - self.fixed_in)
        weights = torch.cat(
            [
                F.interpolate(part[None, None], size=(out_features, width), mode="bilinear", align_corners=False)[0, 0]
                for part, width in zip(parts, widths, strict=True)
            ],
            dim=1,
        )
        bias = self.bias
        if out_features != rows:
            bias = F.interpolate(bias[None, None], size=out_features, mode="linear", align_corners=False)[0, 0]
        return F.linear(x, weights, bias)


class PatchEmbedding(nn.Module):
    """Patches to tokens: a bias-free ``nn.Linear``, U(-1/sqrt(patch_len), 1/sqrt(patch_len)), then dropout."""

    def __init__(self, config: UniTSConfig) -> None:
        super().__init__()
        self.value_embedding = nn.Linear(config.patch_len, config.d_model, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, patches: Tensor) -> Tensor:
        """[..., patch_len] to [..., d_model]."""
        return self.dropout(self.value_embedding(patches))


class PositionEmbedding(nn.Module):
    """A trained table of positions, ``pe`` [1, 1, 5000, d_model], that begins as sines and cosines.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.5, for the values at the beginning.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        position = torch.arange(MAX_PATCHES, dtype=torch.float32)
        frequency = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float32) * -(math.log(10000.0) / d_model))
        # Each frequency twice, and a choice between sine and cosine: smoothing knows the table as one piece, not two.
        angle = torch.outer(position, frequency.repeat_interleave(2))
        table = torch.where(torch.arange(d_model) % 2 == 0, angle.sin(), angle.cos())
        self.pe = nn.Parameter(table.view(1, 1, MAX_PATCHES, d_model))

    def forward(self, tokens: Tensor) -> Tensor:
        """Add the first rows to tokens [B, C, N, d_model]."""
        return tokens + self.pe[:, :, : tokens.shape[2]]


class Gate(nn.Module):
    """Scales each token by a number in (0, 1) that ``nn.Linear(d_model, 1)`` finds for it."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] to the same."""
        return self.gate(x).sigmoid() * x


class Attention(nn.Module):
    """The projections of an attention: ``qkv`` without a bias, ``proj`` with one; both drawn by ``nn.Linear``.

    Source: arXiv:2403.00131, section 4.
    """

    def __init__(self, config: UniTSConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=False)
        self.proj = nn.Linear(config.d_model, config.d_model)
        self.proj_drop = nn.Dropout(config.dropout)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[B, C, N, d_model] to three tensors [B, C, N, heads, width of a head]."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.n_heads, -1)).unbind(3)
        return query, key, value


class TokenAttention(Attention):
    """Every token of a channel attends to all tokens of that channel."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N, d_model] to the same."""
        query, key, value = (part.transpose(2, 3) for part in self.heads(x))
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj_drop(self.proj(mixed.transpose(2, 3).flatten(-2)))


class ChannelAttention(Attention):
    """Every channel attends to all channels, with one pattern for all tokens: queries and keys are averaged over them."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N, d_model] to the same."""
        query, key, value = self.heads(x)
        query, key = (part.mean(dim=2).transpose(1, 2) for part in (query, key))
        tokens = value.shape[2]
        # [B, heads, C, width * N]: what moves from channel to channel is the whole of its tokens.
        value = value.permute(0, 3, 1, 4, 2).flatten(-2)
        mixed = F.scaled_dot_product_attention(query, key, value).unflatten(-1, (-1, tokens))
        return self.proj_drop(self.proj(mixed.permute(0, 2, 4, 1, 3).flatten(-2)))


class TokenBlock(nn.Module):
    """Pre-norm residual attention along the tokens, gated.

    ``proj`` is in the published checkpoints, and unused in the published model.
    """

    def __init__(self, config: UniTSConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model)
        self.attn_seq = TokenAttention(config)
        self.ls1 = Gate(config.d_model)
        self.proj = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N, d_model] to the same."""
        return x + self.ls1(self.attn_seq(self.norm1(x)))


class ChannelBlock(nn.Module):
    """Pre-norm residual attention along the channels, gated; ``proj`` as in :class:`TokenBlock`."""

    def __init__(self, config: UniTSConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.d_model)
        self.attn_var = ChannelAttention(config)
        self.ls1 = Gate(config.d_model)
        self.proj = nn.Linear(config.d_model, config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N, d_model] to the same."""
        return x + self.ls1(self.attn_var(self.norm1(x)))


class TokenMixingMlp(nn.Module):
    """A feed-forward net that also mixes tokens: a convolution over three of them, then linear maps over all.

    ``fc1`` is ``nn.Conv1d`` of kernel 3, ``fc2`` ``nn.Linear``, both drawn by torch. Half of the hidden units pass by
    the maps between the tokens: ``prompt_fc`` makes the new prompts and ``seq_fc`` the other new tokens, each from all.

    Source: arXiv:2403.00131, section 4 ("Dynamic FFN").
    """

    def __init__(self, config: UniTSConfig) -> None:
        super().__init__()
        hidden, prompts = MLP_RATIO * config.d_model, config.prompt_num
        self.prompts = prompts
        self.fc1 = nn.Conv1d(config.d_model, hidden, kernel_size=3, padding=1)
        self.drop1 = nn.Dropout(config.dropout)
        self.seq_fc = StretchedLinear(hidden // 4, hidden // 4, fixed_in=prompts)
        self.prompt_fc = StretchedLinear(hidden // 4, prompts, fixed_in=prompts)
        self.fc2 = nn.Linear(hidden, config.d_model)
        self.drop2 = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N, d_model] to the same."""
        hidden = self.fc1(x.flatten(0, 1).transpose(1, 2))
        mixed, passed = hidden.chunk(2, dim=1)
        prompts, tokens = self.prompt_fc(mixed, self.prompts), self.seq_fc(mixed, mixed.shape[-1] - self.prompts)
        hidden = torch.cat((torch.cat((prompts, tokens), dim=2), passed), dim=1)
        hidden = self.drop1(F.gelu(hidden)).transpose(1, 2).unflatten(0, x.shape[:2])
        return self.drop2(self.fc2(hidden))


class Mlp(nn.Module):
    """A plain feed-forward net with exact GELU; both layers are drawn by ``nn.Linear``."""

    def __init__(self, config: UniTSConfig, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.d_model, hidden)
        self.drop1 = nn.Dropout(config.dropout)
        self.fc2 = nn.Linear(hidden, config.d_model)
        self.drop2 = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """[..., d_model] to the same."""
        return self.drop2(self.fc2(self.drop1(F.gelu(self.fc1(x)))))


class FeedForward(nn.Module):
    """Pre-norm residual feed-forward net, gated."""

    def __init__(self, config: UniTSConfig, mlp: nn.Module) -> None:
        super().__init__()
        self.norm2 = nn.LayerNorm(config.d_model)
        self.mlp = mlp
        self.ls2 = Gate(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N, d_model] to the same."""
        return x + self.ls2(self.mlp(self.norm2(x)))


class Block(nn.Module):
    """Attention along the tokens, attention along the channels, feed-forward net; constructed in the official order."""

    def __init__(self, config: UniTSConfig) -> None:
        super().__init__()
        self.seq_att_block = TokenBlock(config)
        self.var_att_block = ChannelBlock(config)
        self.dynamic_mlp = FeedForward(config, TokenMixingMlp(config))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, N, d_model] to the same."""
        return self.dynamic_mlp(self.var_att_block(self.seq_att_block(x)))


class CrossAttention(nn.Module):
    """Parameters of the classification head's attention, drawn by ``nn.Linear``."""

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.q = nn.Linear(d_model, d_model, bias=False)
        self.kv = nn.Linear(d_model, 2 * d_model, bias=False)
        self.proj = nn.Linear(d_model, d_model)


class ClassificationHead(nn.Module):
    """Parameters of the head for classification, a task that sff_fast has not; loaded, smoothed and saved with the rest."""

    def __init__(self, config: UniTSConfig) -> None:
        super().__init__()
        self.proj_in = nn.Linear(config.d_model, config.d_model)
        self.cross_att = CrossAttention(config.d_model)
        self.mlp = FeedForward(config, Mlp(config, MLP_RATIO * config.d_model))


class ForecastHead(nn.Module):
    """Tokens back to values: each token, plus a map over all of them, through a feed-forward net to its patch."""

    def __init__(self, config: UniTSConfig) -> None:
        super().__init__()
        self.patch_len, self.stride = config.patch_len, config.stride
        self.proj_in = nn.Linear(config.d_model, config.d_model)
        self.mlp = Mlp(config, 4 * config.d_model)
        self.proj_out = nn.Linear(config.d_model, config.patch_len)
        self.pos_proj = StretchedLinear(BASE_TOKENS, BASE_TOKENS, fixed_in=config.prompt_num)

    def forward(self, x: Tensor, tokens: int, length: int) -> Tensor:
        """The last ``tokens`` of [B, C, N, d_model] to values [B, length, C]; overlapping patches add up."""
        x = self.proj_in(x)
        mixed = self.pos_proj(x.transpose(-1, -2), tokens).transpose(-1, -2)
        patches = self.proj_out(self.mlp(mixed + x[:, :, -tokens:]))
        batch, channels = patches.shape[:2]
        columns = patches.flatten(0, 1).transpose(1, 2)
        values = F.fold(columns, output_size=(length, 1), kernel_size=(self.patch_len, 1), stride=(self.stride, 1))
        return values.view(batch, channels, length).transpose(1, 2)


class UniTS(nn.Module):
    """UniTS, with the parameter names of the published checkpoints.

    Every data set of the configuration has learned prompts, N(0, 0.02), and a mask token that begins as zeros; a
    classification task has tokens of its own, N(0, 0.02). Every other parameter's distribution is stated by its module's
    docstring, ``nn.LayerNorm`` being 1 and 0. After ``torch.manual_seed(s)`` the constructor draws the same weights as
    the official source's does.

    Args:
        config: Sizes and data sets.

    Source: arXiv:2403.00131.
    """

    def __init__(self, config: UniTSConfig) -> None:
        super().__init__()
        self.config = config
        self.prompt_tokens = nn.ParameterDict()
        self.mask_tokens = nn.ParameterDict()
        self.cls_tokens = nn.ParameterDict()
        self.category_tokens = nn.ParameterDict()
        for task in config.tasks:
            self._add_tokens(task)
        self.patch_embeddings = PatchEmbedding(config)
        self.position_embedding = PositionEmbedding(config.d_model)
        self.prompt2forecat = StretchedLinear(BASE_TOKENS, BASE_TOKENS, fixed_in=config.prompt_num)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.e_layers))
        self.cls_head = ClassificationHead(config)
        self.forecast_head = ForecastHead(config)
        if config.pretrain:
            self.pretrain_head = ForecastHead(config)

    def forecast(self, x: Tensor, dataset: str, prediction_length: int) -> Tensor:
        """What follows a window.

        The patches that hold the context and the forecast together are counted down to a whole one, as in the official
        source: what lies beyond the last whole patch is the mean of the window. :meth:`whole_prediction` gives a length
        that leaves nothing out. A context that is no whole number of patches is filled with its mean at the end, where
        the forecast begins.

        Args:
            x: [B, L, C] floating point, any scale.
            dataset: The data set whose prompts to use; its channels are C.
            prediction_length: Steps H.

        Returns:
            [B, H, C], in the scale of ``x``; float32, or float64 where ``x`` or the weights are.

        Raises:
            ArgumentError: ``x`` has another shape or dtype, there is no such data set, a length does not fit, or the
                patches overlap (``stride`` below ``patch_len``).
        """
        self._check(x, dataset, None)
        mean, std = _statistics(x.detach(), None)
        tokens = self._tokens((x - mean) / std)
        length = x.shape[1] + prediction_length
        ahead = self._count(length) - tokens.shape[2]
        self._check_ahead(x.shape[1], prediction_length, ahead)

        prompts = self._prompts(dataset, x)
        asked = self.mask_tokens[dataset].expand(len(x), -1, ahead, -1)
        generated = self._generate(torch.cat((prompts, tokens, asked), dim=2))[:, :, -ahead:]
        tokens = self.position_embedding(torch.cat((tokens, generated), dim=2))
        return self._decode(prompts, tokens, length)[:, x.shape[1] :] * std + mean

    def imputation(self, x: Tensor, mask: Tensor, dataset: str) -> Tensor:
        """Reconstruct a window of which points are missing.

        A patch with a missing point is replaced as a whole by a generated token. The mean is taken over all points with
        zero for the missing ones, the deviation over the observed points alone, as in the official source.

        Args:
            x: [B, L, C] floating point, any scale; what is missing is not looked at.
            mask: [B, L, C] with 1 (or True) where ``x`` is observed and 0 where it is missing.
            dataset: The data set whose prompts to use; its channels are C.

        Returns:
            [B, L, C], in the scale of ``x``; float32, or float64 where ``x`` or the weights are.

        Raises:
            ArgumentError: ``x`` or ``mask`` has another shape or dtype, or there is no such data set.
        """
        self._check(x, dataset, mask)
        missing = mask == 0
        x = x.masked_fill(missing, 0)
        mean, std = _statistics(x.detach(), missing)
        tokens = self._tokens((x - mean).masked_fill(missing, 0) / std)

        replaced = self._patches(missing.to(tokens.dtype)).amax(dim=-1, keepdim=True) > 0
        tokens = torch.where(replaced, self.mask_tokens[dataset], tokens)
        prompts = self._prompts(dataset, x)
        generated = self._generate(torch.cat((prompts, tokens), dim=2))
        tokens = self.position_embedding(torch.where(replaced, generated, tokens))
        return self._decode(prompts, tokens, self._padded(x.shape[1]))[:, : x.shape[1]] * std + mean

    def anomaly_detection(self, x: Tensor, dataset: str) -> Tensor:
        """Reconstruct a window; the squared distance to ``x`` is the anomaly score.

        Args:
            x: [B, L, C] floating point, any scale.
            dataset: The data set whose prompts to use; its channels are C.

        Returns:
            [B, L, C], in the scale of ``x``; float32, or float64 where ``x`` or the weights are.

        Raises:
            ArgumentError: ``x`` has another shape or dtype, or there is no such data set.
        """
        self._check(x, dataset, None)
        mean, std = _statistics(x.detach(), None)
        tokens = self.position_embedding(self._tokens((x - mean) / std))
        return self._decode(self._prompts(dataset, x), tokens, self._padded(x.shape[1]))[:, : x.shape[1]] * std + mean

    def forward(self, x: Tensor, dataset: str, prediction_length: int) -> Tensor:
        """The same as :meth:`forecast`."""
        return self.forecast(x, dataset, prediction_length)

    def whole_prediction(self, context_length: int, prediction_length: int) -> int:
        """The shortest length from ``prediction_length`` on whose every step is forecast by a token of its own."""
        patch_len = self.config.patch_len
        patches = -(-(context_length + prediction_length) // patch_len)
        # At least one patch must lie in the future whole.
        patches = max(patches, -(-context_length // patch_len) + 1)
        return patches * patch_len - context_length

    def _add_tokens(self, task: UniTSTask) -> None:
        """Tokens of a task and of its data set, drawn in the official order."""
        width = self.config.d_model
        if task.dataset not in self.prompt_tokens:
            self.prompt_tokens[task.dataset] = _normal(task.enc_in, self.config.prompt_num, width)
            self.mask_tokens[task.dataset] = nn.Parameter(torch.zeros(1, task.enc_in, 1, width))
        if task.num_class is not None:
            self.category_tokens[task.name] = _normal(task.enc_in, task.num_class, width)
        if task.num_class is not None or self.config.pretrain:
            self.cls_tokens[task.name] = _normal(task.enc_in, 1, width)

    def _padded(self, length: int) -> int:
        """The length made a whole number of patches."""
        return -(-length // self.config.patch_len) * self.config.patch_len

    def _count(self, length: int) -> int:
        """Whole patches in a length."""
        return (length - self.config.patch_len) // self.config.stride + 1

    def _patches(self, x: Tensor) -> Tensor:
        """[B, L, C] to [B, C, N, patch_len], filled with zeros at the end."""
        padded = F.pad(x.transpose(1, 2), (0, self._padded(x.shape[1]) - x.shape[1]))
        return padded.unfold(-1, self.config.patch_len, self.config.stride)

    def _tokens(self, x: Tensor) -> Tensor:
        """Normalised values [B, L, C] to tokens [B, C, N, d_model]."""
        patches = self._patches(x).to(self.patch_embeddings.value_embedding.weight.dtype)
        return self.patch_embeddings(patches)

    def _prompts(self, dataset: str, x: Tensor) -> Tensor:
        return self.prompt_tokens[dataset].expand(len(x), -1, -1, -1)

    def _generate(self, tokens: Tensor) -> Tensor:
        """Prompts and tokens [B, C, N, d_model] to a new token for each token that is no prompt."""
        return self.prompt2forecat(tokens.transpose(-1, -2), tokens.shape[2] - self.config.prompt_num).transpose(-1, -2)

    def _decode(self, prompts: Tensor, tokens: Tensor, length: int) -> Tensor:
        """Encode prompts and tokens; the values [B, length, C] of the tokens, normalised, at least float32."""
        x = torch.cat((prompts, tokens), dim=2)
        for block in self.blocks:
            x = block(x)
        values = self.forecast_head(x, tokens.shape[2], length)
        return values.to(torch.promote_types(values.dtype, torch.float32))

    def _check(self, x: Tensor, dataset: str, mask: Tensor | None) -> None:
        if x.dim() != 3 or not x.is_floating_point() or x.shape[1] == 0:
            raise ArgumentError(
                f"UniTS: x must be a floating-point tensor [batch, time, channel], got {x.dtype} of shape {tuple(x.shape)}"
            )
        datasets = self.config.datasets
        if dataset not in datasets:
            raise ArgumentError(f"UniTS: there are no prompts for the data set {dataset!r}: expected {', '.join(datasets)}")
        if x.shape[2] != datasets[dataset]:
            raise ArgumentError(f"UniTS: the data set {dataset!r} has {datasets[dataset]} channels, got x with {x.shape[2]}")
        if self._count(self._padded(x.shape[1])) > MAX_PATCHES:
            raise ArgumentError(
                f"UniTS: x holds {self._count(self._padded(x.shape[1]))} patches, the table of positions only {MAX_PATCHES}"
            )
        if mask is not None and mask.shape != x.shape:
            raise ArgumentError(f"UniTS: mask must have the shape of x, {tuple(x.shape)}, got {tuple(mask.shape)}")

    def _check_ahead(self, context_length: int, prediction_length: int, ahead: int) -> None:
        patch_len, stride = self.config.patch_len, self.config.stride
        if stride != patch_len:
            raise ArgumentError(
                f"UniTS: forecasting needs patches that do not overlap, got stride={stride} with patch_len={patch_len}"
            )
        if prediction_length < 1 or ahead < 1:
            least = self.whole_prediction(context_length, 1)
            raise ArgumentError(
                f"UniTS: prediction_length must be at least {least} after {context_length} steps of context, so that a "
                f"patch of {patch_len} lies ahead, got {prediction_length}"
            )
        patches = self._count(self._padded(context_length)) + ahead
        if patches > MAX_PATCHES:
            raise ArgumentError(f"UniTS: context and forecast are {patches} patches, the table of positions holds {MAX_PATCHES}")


def _statistics(x: Tensor, missing: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean over time, and (population) deviation of the observed values from it: two tensors [B, 1, C]."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    mean = x.mean(dim=1, keepdim=True)
    if missing is None:
        variance = x.var(dim=1, keepdim=True, unbiased=False)
    else:
        count = (~missing).sum(dim=1, keepdim=True).clamp(min=1)
        variance = (x - mean).masked_fill(missing, 0).square().sum(dim=1, keepdim=True) / count
    return mean, torch.sqrt(variance + NORMALISATION_EPS)


def _split(fields: Mapping[str, Any], known: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields that are known, and the others."""
    return {k: v for k, v in fields.items() if k in known}, {k: v for k, v in fields.items() if k not in known}


def _normal(channels: int, tokens: int, width: int) -> nn.Parameter:
    """Tokens [1, channels, tokens, width], drawn from N(0, 0.02)."""
    return nn.Parameter(nn.init.normal_(torch.empty(1, channels, tokens, width), std=0.02))


def _check_integer(owner: str, name: str, value: Any, least: int = 1) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{owner}: {name} must be an integer of at least {least}, got {value!r}")
