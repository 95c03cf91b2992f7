"""Which patches of a window are hidden for imputation: random numbers addressed by window, channel and patch."""

from __future__ import annotations

import torch

from ..backends.reference import philox
from ..stream import MASK, stream_id

_NEVER = 1 << 32


def hide_patches(seed: int, name: str, windows: torch.Tensor, hidden: torch.Tensor, patches: int, channels: int) -> torch.Tensor:
    """Choose the patches that are hidden; the first one never is.

    A number depends on (seed, name, window, channel, patch) alone, so a window has the same mask in whatever batch it
    comes, on every machine.

    Args:
        seed: Key of the random stream.
        name: Name of the draw; its stream has the purpose ``mask``.
        windows: int64 [B], numbers of the windows.
        hidden: int64 [B], how many patches of each channel to hide, from 0 to ``patches`` - 1.
        patches: Patches in a window, P.
        channels: Channels in a window, C.

    Returns:
        bool [B, P, C], True where a patch is observed.
    """
    blocks = -(-patches // 4)
    first = (windows[:, None] * channels + torch.arange(channels)) * blocks
    words = torch.stack(philox(seed, stream_id(name, MASK), first[..., None] + torch.arange(blocks)), dim=-1)
    words = words.flatten(-2)[..., :patches].clone()
    words[..., 0] = _NEVER
    order = words.argsort(dim=-1, stable=True).argsort(dim=-1, stable=True)
    return (order >= hidden[:, None, None]).transpose(1, 2)


def choose(seed: int, name: str, windows: torch.Tensor, count: int) -> torch.Tensor:
    """One of ``count`` things for each window, each as likely; int64 [B]."""
    word = philox(seed, stream_id(f"{name}/rate", MASK), windows)[0]
    return (word * count) >> 32
