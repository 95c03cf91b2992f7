"""Timer: a decoder-only Transformer that predicts the next patch of every patch of a time series.

Own implementation of the architecture of the Large-Time-Series-Model repository. Names, shapes and order of the
parameters, and the distributions that the constructor draws them from, are those of the official source, so that its
checkpoints load, a fixed seed draws the same weights, and Smoothed Full Fine-tuning mixes in the same random model.

Source:
    Liu et al., "Timer: Generative Pre-trained Transformers Are Large Time Series Models", ICML 2024, arXiv:2402.02368.
    Instance normalisation: Liu et al., "Non-stationary Transformers", NeurIPS 2022, arXiv:2205.14415.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sff_fast.errors import ArgumentError

#: Added to the variance in the instance normalisation.
NORMALISATION_EPS = 1e-5

_ACTIVATIONS = {"gelu": F.gelu, "relu": F.relu}


@dataclass(frozen=True)
class TimerConfig:
    """Sizes of a Timer; the defaults are those of the published 67M-parameter model.

    Args:
        patch_len: Values a patch (token), default 96.
        d_model: Width of the hidden states, even and a multiple of ``n_heads``, default 1024.
        d_ff: Width of the feed-forward layer, default 2048.
        e_layers: Number of layers, default 8.
        n_heads: Number of attention heads, default 8.
        dropout: Probability in [0, 1) of every dropout (embedding, attention weights, residuals), default 0.1.
        factor: Kept for the published ``config.json``; full attention has no use for it. Default 3.
        activation: ``"gelu"`` (exact) or ``"relu"``, default ``"gelu"``.
        max_patches: Rows of the fixed table of positions, default 5000 as published. It is stored in the checkpoint,
            so a small model saves space with a smaller one.

    Raises:
        ArgumentError: A value lies outside of what is allowed.
    """

    patch_len: int = 96
    d_model: int = 1024
    d_ff: int = 2048
    e_layers: int = 8
    n_heads: int = 8
    dropout: float = 0.1
    factor: int = 3
    activation: str = "gelu"
    max_patches: int = 5000

    def __post_init__(self) -> None:
        for name in ("patch_len", "d_model", "d_ff", "e_layers", "n_heads", "max_patches"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ArgumentError(f"TimerConfig: {name} must be an integer of at least 1, got {value!r}")
        if self.d_model % 2:
            raise ArgumentError(f"TimerConfig: d_model must be even (sines and cosines alternate), got {self.d_model}")
        if self.d_model % self.n_heads:
            raise ArgumentError(
                f"TimerConfig: d_model must be a multiple of n_heads, got d_model={self.d_model}, n_heads={self.n_heads}"
            )
        if isinstance(self.dropout, bool) or not isinstance(self.dropout, (int, float)) or not 0 <= self.dropout < 1:
            raise ArgumentError(f"TimerConfig: dropout must lie in [0, 1), got {self.dropout!r}")
        if self.activation not in _ACTIVATIONS:
            raise ArgumentError(f"TimerConfig: activation must be one of {sorted(_ACTIVATIONS)}, got {self.activation!r}")

    def to_dict(self) -> dict[str, int | float | str]:
        """The fields as plain values, in the order and with the names of the published ``config.json``."""
        return asdict(self)


class PositionEmbedding(nn.Module):
    """Fixed sine and cosine positions, a buffer and so never trained or smoothed.

    Args:
        d_model: Width, even.
        max_patches: Rows of the table.

    Source: Vaswani et al., "Attention Is All You Need", 2017, section 3.5.
    """

    pe: Tensor

    def __init__(self, d_model: int, max_patches: int) -> None:
        super().__init__()
        position = torch.arange(max_patches, dtype=torch.float32)
        frequency = torch.exp(torch.arange(0, d_model, 2, dtype=torch.float32) * -(math.log(10000.0) / d_model))
        angle = torch.outer(position, frequency)
        # Straight into the table: half the memory and half the time of stacking two halves.
        table = torch.empty(max_patches, d_model // 2, 2)
        sines, cosines = table.unbind(-1)
        torch.sin(angle, out=sines)
        torch.cos(angle, out=cosines)
        self.register_buffer("pe", table.view(1, max_patches, d_model))

    def forward(self, n_patches: int) -> Tensor:
        """The first ``n_patches`` rows, [1, n_patches, d_model]."""
        return self.pe[:, :n_patches]


class PatchEmbedding(nn.Module):
    """Patches to tokens: a bias-free linear map plus the position, then dropout.

    ``value_embedding.weight`` [d_model, patch_len] is drawn as ``nn.Linear`` draws it: Kaiming-uniform with
    a = sqrt(5), which is U(-1/sqrt(patch_len), 1/sqrt(patch_len)).
    """

    def __init__(self, config: TimerConfig) -> None:
        super().__init__()
        self.value_embedding = nn.Linear(config.patch_len, config.d_model, bias=False)
        self.position_embedding = PositionEmbedding(config.d_model, config.max_patches)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, patches: Tensor) -> Tensor:
        """[B, N, patch_len] to [B, N, d_model]."""
        return self.dropout(self.value_embedding(patches) + self.position_embedding(patches.shape[1]))


class CausalAttention(nn.Module):
    """Full causal multi-head self-attention.

    The four projections are ``nn.Linear(d_model, d_model)``: weight and bias both U(-1/sqrt(d_model), 1/sqrt(d_model)).
    """

    def __init__(self, config: TimerConfig) -> None:
        super().__init__()
        self.query_projection = nn.Linear(config.d_model, config.d_model)
        self.key_projection = nn.Linear(config.d_model, config.d_model)
        self.value_projection = nn.Linear(config.d_model, config.d_model)
        self.out_projection = nn.Linear(config.d_model, config.d_model)
        self.n_heads = config.n_heads
        self.dropout = config.dropout

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, d_model] to [B, N, d_model]; token n sees the tokens 0 to n."""
        query, key, value = (
            projection(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for projection in (self.query_projection, self.key_projection, self.value_projection)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
        return self.out_projection(mixed.transpose(1, 2).flatten(-2))


class PointwiseConv1d(nn.Conv1d):
    """``nn.Conv1d`` with a kernel of one, computed as the matrix product that it is.

    Weight [out, in, 1] and bias are drawn by ``nn.Conv1d``: both U(-1/sqrt(in), 1/sqrt(in)). Inputs and outputs are
    [B, channels, N] as with any ``nn.Conv1d``; the transposes are views.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in, N] to [B, out, N]."""
        return F.linear(x.transpose(1, 2), self.weight.squeeze(-1), self.bias).transpose(1, 2)


class DecoderLayer(nn.Module):
    """Post-norm Transformer layer: attention, then a feed-forward net of two pointwise convolutions.

    The two ``nn.LayerNorm`` have weight 1 and bias 0; see :class:`CausalAttention` and :class:`PointwiseConv1d` for the
    rest. The modules are constructed in the official order, which fixes the order of the draws.
    """

    def __init__(self, config: TimerConfig) -> None:
        super().__init__()
        self.attention = CausalAttention(config)
        self.conv1 = PointwiseConv1d(config.d_model, config.d_ff)
        self.conv2 = PointwiseConv1d(config.d_ff, config.d_model)
        self.norm1 = nn.LayerNorm(config.d_model)
        self.norm2 = nn.LayerNorm(config.d_model)
        self.dropout = nn.Dropout(config.dropout)
        self.activation = _ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, d_model] to [B, N, d_model]."""
        x = self.norm1(x + self.dropout(self.attention(x)))
        hidden = self.dropout(self.activation(self.conv1(x.transpose(1, 2))))
        return self.norm2(x + self.dropout(self.conv2(hidden).transpose(1, 2)))


class Decoder(nn.Module):
    """The stack of layers and a last ``nn.LayerNorm`` (weight 1, bias 0)."""

    def __init__(self, config: TimerConfig) -> None:
        super().__init__()
        self.attn_layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.e_layers))
        self.norm = nn.LayerNorm(config.d_model)

    def forward(self, x: Tensor) -> Tensor:
        """[B, N, d_model] to [B, N, d_model]."""
        for layer in self.attn_layers:
            x = layer(x)
        return self.norm(x)


class Timer(nn.Module):
    """Timer, with the parameter names of the published checkpoint (less its ``model.`` prefix).

    Equals, per channel: normalise over time, cut into patches, embed, causal Transformer, project every token back to
    ``patch_len`` values, undo the normalisation. Output patch n is the model's prediction of input patch n + 1 (as
    pre-trained and in forecasting) or whatever the task fine-tunes it to.

    ``proj`` is ``nn.Linear(d_model, patch_len)``: weight and bias U(-1/sqrt(d_model), 1/sqrt(d_model)). Every other
    parameter's distribution is stated by its module's docstring. After ``torch.manual_seed(s)`` the constructor draws
    the same weights as the official source's does.

    Args:
        config: Sizes. Default: the published 67M-parameter model.

    Source: arXiv:2402.02368.
    """

    def __init__(self, config: TimerConfig | None = None) -> None:
        super().__init__()
        self.config = config or TimerConfig()
        self.patch_embedding = PatchEmbedding(self.config)
        self.decoder = Decoder(self.config)
        self.proj = nn.Linear(self.config.d_model, self.config.patch_len)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Predict the patch after every patch; with a mask, reconstruct what is masked.

        Means and standard deviations are constants in the backward pass, as in the official source. They are taken in
        at least float32, whatever the dtype of the weights.

        Args:
            x: [B, L, C] floating point, any scale; L a multiple of ``patch_len``, at most ``max_patches`` of them.
            mask: None, or [B, L, C] with 1 (or True) where ``x`` is observed and 0 where it is missing; then means and
                deviations are those of the observed values. A channel with no observed value is normalised by mean 0.

        Returns:
            [B, L, C], in the scale of ``x``; float32, or float64 where ``x`` or the weights are.

        Raises:
            ArgumentError: ``x`` or ``mask`` has another shape or dtype.
        """
        self._check(x, mask)
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, std = _statistics(x.detach(), mask)
        centred = x - mean if mask is None else (x - mean).masked_fill(mask == 0, 0)

        batch, length, channels = x.shape
        patches = (centred / std).transpose(1, 2).reshape(batch * channels, -1, self.config.patch_len)
        tokens = self.patch_embedding(patches.to(self.proj.weight.dtype))
        output = self.proj(self.decoder(tokens)).reshape(batch, channels, length).transpose(1, 2)
        return output * std + mean

    def forecast(self, x: Tensor) -> Tensor:
        """The next patch of every patch: [B, L, C] to [B, L, C]; the last ``patch_len`` rows lie in the future."""
        return self(x)

    def imputation(self, x: Tensor, mask: Tensor) -> Tensor:
        """Reconstruct [B, L, C] where ``mask`` [B, L, C] is 0; the values of ``x`` there are not looked at."""
        return self(x, mask)

    def anomaly_detection(self, x: Tensor) -> Tensor:
        """Reconstruct [B, L, C]; the squared distance to ``x`` (a patch later, or aligned) is the anomaly score."""
        return self(x)

    def _check(self, x: Tensor, mask: Tensor | None) -> None:
        patch_len, most = self.config.patch_len, self.config.max_patches
        if x.dim() != 3 or not x.is_floating_point():
            raise ArgumentError(
                f"Timer: x must be a floating-point tensor [batch, time, channel], got {x.dtype} of shape {tuple(x.shape)}"
            )
        length = x.shape[1]
        if length == 0 or length % patch_len:
            raise ArgumentError(
                f"Timer: the length of x must be a multiple of patch_len={patch_len}, got {length}: "
                f"cut it to the last {length // patch_len * patch_len or patch_len} values "
                "or choose another context_length"
            )
        if length > patch_len * most:
            raise ArgumentError(f"Timer: x holds {length // patch_len} patches, the table of positions only {most}")
        if mask is not None and mask.shape != x.shape:
            raise ArgumentError(f"Timer: mask must have the shape of x, {tuple(x.shape)}, got {tuple(mask.shape)}")


def _statistics(x: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and (population) standard deviation over time, of the observed values: two tensors [B, 1, C]."""
    if mask is None:
        mean = x.mean(dim=1, keepdim=True)
        variance = x.var(dim=1, keepdim=True, unbiased=False)
    else:
        missing = mask == 0
        count = (~missing).sum(dim=1, keepdim=True).clamp(min=1)
        mean = x.masked_fill(missing, 0).sum(dim=1, keepdim=True) / count
        variance = (x - mean).masked_fill(missing, 0).square().sum(dim=1, keepdim=True) / count
    return mean, torch.sqrt(variance + NORMALISATION_EPS)
