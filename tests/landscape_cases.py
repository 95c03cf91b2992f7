"""Models for the tests of the landscape whose loss and Hessian are known in closed form, and an independent random stream."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import nn
from training_fakes import FakeAdapter


class Bowl(nn.Module):
    """Weights of 3 x 4 and a bias of 3: the loss is a quadratic form of all 15 of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)


def hessian() -> np.ndarray:
    """Symmetric, 15 x 15, with the eigenvalues -2, 0, 1, ..., 12 and 20 in a random basis."""
    basis, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(15, 15)))
    return basis @ np.diag([-2.0, *range(13), 20.0]) @ basis.T


class BowlAdapter(FakeAdapter):
    """Its loss is ``5 + theta . H theta / 2``, whatever the windows are."""

    variant = "bowl"

    @classmethod
    def tiny(cls, seed: int = 0) -> BowlAdapter:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return cls(Bowl().eval())

    def build(self) -> Bowl:
        return Bowl()

    def _loss(self, context: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        theta = torch.cat([parameter.reshape(-1) for parameter in self.model.parameters()])
        return 5 + theta @ torch.from_numpy(hessian()).to(theta) @ theta / 2


def theta_of(model: nn.Module) -> np.ndarray:
    """All parameters as one float64 vector."""
    return np.concatenate([parameter.detach().double().numpy().ravel() for parameter in model.parameters()])


def philox(seed: int, stream: int, blocks: int) -> np.ndarray:
    """The words of Philox4x32-10 with this key and counters (block, stream), in plain integers: [blocks, 4]."""
    mask = 0xFFFFFFFF
    out = np.zeros((blocks, 4), dtype=np.uint64)
    for block in range(blocks):
        c, key = [block & mask, block >> 32, stream & mask, stream >> 32], [seed & mask, seed >> 32]
        for _ in range(10):
            first, second = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
            c = [(second >> 32) ^ c[1] ^ key[0], second & mask, (first >> 32) ^ c[3] ^ key[1], first & mask]
            key = [(key[0] + 0x9E3779B9) & mask, (key[1] + 0xBB67AE85) & mask]
        out[block] = c
    return out


def standard_normal(seed: int, name: str, purpose: bytes, count: int) -> np.ndarray:
    """The normal numbers of a stream by Box and Muller in float64, as section 3 of the design defines them."""
    stream = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8, person=purpose).digest(), "little")
    words = philox(seed, stream, -(-count // 4)).reshape(-1, 2)
    radius = np.sqrt(-2 * np.log(((words[:, 0] >> np.uint64(1)) | np.uint64(1)).astype(float) * 2.0**-31))
    low = (words[:, 1] << np.uint64(2)).astype(np.uint32).astype(np.int32)
    angle = low * 2.0**-31 * np.pi / 4
    cosine, sine = np.cos(angle), np.sin(angle)
    cosine = np.where(words[:, 1] >> np.uint64(30) & np.uint64(1), -cosine, cosine)
    swapped = (words[:, 1] >> np.uint64(31) & np.uint64(1)).astype(bool)
    pair = np.where(swapped, [sine, cosine], [cosine, sine])
    return (radius * pair).T.reshape(-1)[:count]
