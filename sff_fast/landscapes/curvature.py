"""The Hessian of the loss: its greatest eigenvalue and its trace, from products with vectors; no matrix is formed.

A product is the derivative of ``gradient . vector``, so the model is differentiated twice. Attention runs by torch's plain
formula meanwhile, since its fused kernels have no second derivative.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sff_fast.errors import SffFastError, require
from sff_fast.landscapes.objective import Objective

LANCZOS_VECTORS = 12
"""Vectors of the weights' size, in float32, that the eigenvalue's computation keeps."""
RESTARTS = 30
TOLERANCE = 1e-3
_NO_SECOND_DERIVATIVE = ("derivative for", "once_differentiable", "double backward", "double-backward")
_TRAP = "torch::autograd::Error"
"""Name of the graph node that torch puts behind a function that can be differentiated once only."""


class NoHessian(SffFastError):
    """The Hessian cannot be had of this model; the message says why."""


@dataclass(frozen=True)
class Curvature:
    """What is known of the Hessian at some weights.

    Attributes:
        top_eigenvalue: The greatest eigenvalue, algebraically; None where it did not converge, or products are not finite.
        residual: Norm of ``H v - eigenvalue v`` for the unit vector v that was found: an eigenvalue lies that close.
        trace: Estimate of the trace, the mean over probes.
        trace_error: Its standard error; None for a single probe.
        probes: Random vectors of the trace.
        products: Products of the Hessian with a vector that were taken.
        elements: Its size: elements of all parameters that the loss depends on or not, frozen ones included.
    """

    top_eigenvalue: float | None
    residual: float | None
    trace: float
    trace_error: float | None
    probes: int
    products: int
    elements: int

    def to_json(self) -> dict[str, Any]:
        """As ``landscape.json`` holds it."""
        return asdict(self)


def packages() -> tuple[Any, Any]:
    """The libraries that the Hessian needs.

    Raises:
        MissingPackageError: One is not installed.
    """
    linalg = require("scipy.sparse.linalg", "landscape", "scipy")
    return linalg, require("hessian_eigenthings", "landscape", "hessian-eigenthings")


def curvature(objective: Objective, *, probes: int, seed: int, told: Callable[[int], None] = lambda n: None) -> Curvature:
    """Greatest eigenvalue and trace of the Hessian at the model's present weights.

    The eigenvalue comes from ARPACK's implicitly restarted Lanczos method (``scipy.sparse.linalg.eigsh``), relative
    tolerance 1e-3, the trace from ``hessian_eigenthings.hutchinson``: the mean of ``v . H v`` over vectors of random signs.
    The products are made here: the latter's own refuse a parameter that the loss does not depend on, give a last, smaller
    batch the weight of a whole one, and know nothing of attention's fused kernels.

    Args:
        objective: The loss; the model is in float32 or float64.
        probes: Random vectors of the trace, at least 1.
        seed: Seed of these and of the first Lanczos vector.
        told: Called with 1 after every product.

    Returns:
        The figures.

    Raises:
        NoHessian: The weights are too coarse, or something in the model has no second derivative.
        MissingPackageError: scipy or hessian-eigenthings is not installed.
        Interrupted: A stop was asked for.

    Source: Lehoucq, Sorensen, Yang, "ARPACK users' guide", 1998; Hutchinson, "A stochastic estimator of the trace of the
    influence matrix for Laplacian smoothing splines", 1989.
    """
    linalg, eigenthings = packages()
    model = objective.adapter.model
    coarse = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.dtype.itemsize < 4})
    if coarse:
        raise NoHessian(f"the weights are in {', '.join(coarse)}, too coarse to differentiate twice: load them in float32")
    with _differentiable(model) as parameters:
        product = _Product(objective, parameters, told)
        generator = torch.Generator().manual_seed(seed % (1 << 63))
        start = torch.randn(product.size, generator=generator).numpy()
        operator = eigenthings.LambdaOperator(lambda vector: torch.from_numpy(product(vector.numpy())), product.size)
        trace = eigenthings.hutchinson(operator, num_samples=probes, seed=seed % (1 << 63))
        value, residual = _greatest(linalg, product, start)
    error = trace.stderr if probes > 1 else None
    return Curvature(value, residual, trace.estimate, error, probes, product.count, product.size)


class _Product:
    """Multiplies the Hessian with float32 vectors of the length of all parameters."""

    def __init__(self, objective: Objective, parameters: list[nn.Parameter], told: Callable[[int], None]) -> None:
        self._objective, self._parameters, self._told = objective, parameters, told
        self._sizes = [parameter.numel() for parameter in parameters]
        self.size = sum(self._sizes)
        self.count = 0

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        flat = torch.from_numpy(np.ascontiguousarray(vector, dtype=np.float32).reshape(-1))
        parts = [part.view(p.shape).to(p) for part, p in zip(flat.split(self._sizes), self._parameters, strict=True)]
        total = np.zeros(self.size, dtype=np.float32)
        with sdpa_kernel(SDPBackend.MATH):
            for share, loss in self._objective.terms():
                begin = 0
                for size, piece in zip(self._sizes, self._differentiate(loss, parts), strict=True):
                    if piece is not None:
                        total[begin : begin + size] += share * piece.detach().reshape(-1).float().cpu().numpy()
                    begin += size
        self.count += 1
        self._told(1)
        return total

    def _differentiate(self, loss: torch.Tensor, parts: list[torch.Tensor]) -> list[torch.Tensor | None]:
        """The Hessian of one loss times the vector, by parameter; None where it is zero."""
        try:
            gradients = torch.autograd.grad(loss, self._parameters, create_graph=True, allow_unused=True)
            used = [(g, part) for g, part in zip(gradients, parts, strict=True) if g is not None and g.requires_grad]
            if not used:  # the loss is linear in the weights
                return [None] * len(parts)
            outputs, vectors = zip(*used, strict=True)
            if not self.count:
                _refuse_trap(outputs)
            return list(torch.autograd.grad(outputs, self._parameters, vectors, allow_unused=True))
        except RuntimeError as error:  # torch has no class of its own for this
            reason = str(error).partition("\n")[0]
            if any(mark in reason for mark in _NO_SECOND_DERIVATIVE):
                raise NoHessian(f"something in the model has no second derivative: {reason}") from error
            raise


def _refuse_trap(gradients: Sequence[torch.Tensor]) -> None:
    """Refuse a graph of gradients that passes through a function that is marked as differentiable once only.

    torch puts a node there that raises. But it has no path to the parameters, so ``torch.autograd.grad`` leaves it out and
    gives a product that lacks this function's share, without a word.
    """
    seen: set[Any] = set()
    waiting = [gradient.grad_fn for gradient in gradients]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.name() == _TRAP:
            raise NoHessian("something in the model has no second derivative: a function of it is marked @once_differentiable")
        waiting += [following for following, _ in node.next_functions]


def _greatest(linalg: Any, product: _Product, start: np.ndarray) -> tuple[float | None, float | None]:
    """The greatest eigenvalue and its residual; None where it did not converge or products are not finite."""
    n = product.size
    if n == 1:  # nothing to iterate over
        return float(product(np.ones(1, dtype=np.float32))[0]), 0.0
    first = product(start)
    if not np.isfinite(first).all():
        return None, None
    if not first.any():  # of a random vector: the Hessian is zero, and ARPACK would have nowhere to go
        return 0.0, 0.0
    operator = linalg.LinearOperator((n, n), matvec=product, dtype=np.float32)
    try:
        values, vectors = linalg.eigsh(
            operator, k=1, which="LA", v0=start, ncv=min(n, LANCZOS_VECTORS), maxiter=RESTARTS, tol=TOLERANCE
        )
    except linalg.ArpackNoConvergence:
        return None, None
    value, vector = float(values[0]), vectors[:, 0] / np.linalg.norm(vectors[:, 0])
    return value, float(np.linalg.norm(product(vector) - value * vector))


@contextlib.contextmanager
def _differentiable(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """All floating-point parameters, frozen ones thawed for as long as the block lasts."""
    parameters = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
    frozen = [parameter for parameter in parameters if not parameter.requires_grad]
    for parameter in frozen:
        parameter.requires_grad_(True)
    try:
        yield parameters
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
