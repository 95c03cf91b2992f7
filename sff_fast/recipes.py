"""Tensors that torch draws as a whole: orthogonal matrices, sparse columns."""

from __future__ import annotations

import hashlib
import math

import torch

from sff_fast.distributions import Materialized


def draw_recipe(recipe: Materialized, draw: str, seed: int) -> torch.Tensor:
    """Draw an orthogonal or sparse tensor.

    Equal bits on one platform and torch version only: the matrix decomposition is the platform's.

    Args:
        recipe: What to draw.
        draw: Name of the draw.
        seed: Seed of the random stream.

    Returns:
        fp32 tensor of ``recipe.shape``.
    """
    key = hashlib.blake2b(draw.encode(), digest_size=8, key=(seed % 2**64).to_bytes(8, "little")).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key, "little") % 2**63)
    values = torch.empty(recipe.shape, dtype=torch.float32)
    if recipe.recipe == "orthogonal":
        return torch.nn.init.orthogonal_(values, gain=recipe.gain, generator=generator)
    # torch.nn.init.sparse_ takes its permutations from the global generator whatever generator it is given.
    rows, columns = recipe.shape
    zeros = math.ceil(recipe.sparsity * rows)
    values.normal_(0, recipe.std, generator=generator)
    for column in range(columns):
        values[torch.randperm(rows, generator=generator)[:zeros], column] = 0
    return values.mul_(recipe.gain)
