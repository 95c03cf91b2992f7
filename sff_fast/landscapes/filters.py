"""What a filter of a parameter is, for the normalisation of random directions.

Source: Li, Xu, Taylor, Studer, Goldstein, "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, section 4: each
filter of a random direction gets the norm of the same filter of the weights, and biases and the parameters of
normalisation layers stay as they are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import nn

from sff_fast.names import named_parameters

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.modules.batchnorm._NormBase)


@dataclass(frozen=True)
class Filters:
    """How the elements of a parameter, in row-major order, are divided into filters.

    They are ``rows`` rows of ``width`` elements, and row ``r`` belongs to filter ``r % count``.

    Args:
        rows: Number of rows.
        width: Elements in a row.
        count: Number of filters.
    """

    rows: int
    width: int
    count: int

    @property
    def numel(self) -> int:
        """Elements of the parameter."""
        return self.rows * self.width


def filters_of(model: nn.Module) -> dict[str, tuple[nn.Parameter, Filters]]:
    """The parameters that directions move, with their filters.

    * The weight of a convolution: all that makes one output channel, ``weight[j]`` (of a transposed one ``weight[:, j]``).
    * Any other parameter with two axes or more: each vector along its last axis. That is one neuron of a linear layer, one
      row of an embedding, one position of a table of positions, one neuron of one expert in a stack of experts.
    * Parameters with one axis or none (biases, gains of norms, scalars) and those of normalisation layers: none; they stay.

    Args:
        model: Any module, also inside of wrappers. Frozen parameters are included, tied ones are there once.

    Returns:
        The plan's name of each parameter that moves, to the parameter and its filters.
    """
    owners: dict[int, nn.Module] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), module)
    found = {}
    for name, parameter in named_parameters(model).items():
        owner = owners[id(parameter)]
        if parameter.dim() < 2 or parameter.numel() == 0 or isinstance(owner, _NORMS):
            continue
        shape = tuple(parameter.shape)
        if isinstance(owner, _CONVOLUTIONS):
            filters = Filters(shape[0], math.prod(shape[1:]), shape[0])
        elif isinstance(owner, _TRANSPOSED):
            filters = Filters(shape[0] * shape[1], math.prod(shape[2:]), shape[1])
        else:
            rows = math.prod(shape[:-1])
            filters = Filters(rows, shape[-1], rows)
        found[name] = (parameter, filters)
    return found


def norms(rows: torch.Tensor, first: int, into: torch.Tensor) -> None:
    """Add the squares of some rows to their filters' sums.

    Args:
        rows: [n, width], of any floating dtype.
        first: Number of the first one.
        into: float64 [count], on the same device; the sums so far.
    """
    numbers = torch.arange(first, first + len(rows), device=rows.device) % len(into)
    into.index_add_(0, numbers, rows.double().square().sum(dim=1))
