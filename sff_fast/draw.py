"""One parameter of the auxiliary random model, alone."""

from __future__ import annotations

import torch

from sff_fast import backends, table
from sff_fast.errors import PlanError
from sff_fast.plan import InitPlan, ParameterPlan
from sff_fast.stream import check_seed


def draw(parameter: ParameterPlan, seed: int, plan: InitPlan | None = None, backend: str = "auto") -> torch.Tensor:
    """The values that a fresh random initialisation gives one parameter.

    Args:
        parameter: How it is drawn.
        seed: Seed of the random stream.
        plan: The whole plan; needed where some values are not elementwise.
        backend: ``"auto"``, ``"cpu"`` or ``"reference"``.

    Returns:
        A tensor of the parameter's shape and dtype on the CPU.

    Raises:
        PlanError: The dtype is not one that can be smoothed, the values are not elementwise and ``plan`` is not given, or a
            seed needs the factory.
    """
    if parameter.dtype not in table.DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in table.DTYPES)
        raise PlanError(
            f"{parameter.name!r} has dtype {str(parameter.dtype).removeprefix('torch.')}, which no sample is drawn in: expected "
            f"one of {expected}"
        )
    out = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu")
    _, run = backends.choose(backend, out.device)
    run(table.build([(parameter, out, 0.0, 1.0)], plan, check_seed(seed)), None)
    return out
