"""Tables of the optimizer's kernels made by hand: parameters, gradients and states at any address."""

from __future__ import annotations

from collections.abc import Sequence

import kernel_cases
import numpy as np
import torch

from sff_fast.backends import cpu
from sff_fast.optim.task import ADAMW_DTYPE, BLOCK, COMPENSATED, NEAREST, PARAM_DTYPES, STATE_TYPES, STOCHASTIC, set_coefficients

STORING = (
    (torch.float32, NEAREST),
    (torch.bfloat16, NEAREST),
    (torch.bfloat16, STOCHASTIC),
    (torch.bfloat16, COMPENSATED),
    (torch.float16, NEAREST),
    (torch.float16, COMPENSATED),
)
"""dtype of the parameter and how it is stored."""
KINDS = [(*pair, state, amsgrad) for pair in STORING for state in STATE_TYPES for amsgrad in (False, True)]
_STATES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.uint8}


def label(value: object) -> str:
    """A short name of a part of :data:`KINDS` for test ids."""
    return str(value).removeprefix("torch.")


def arrays(
    dtype: torch.dtype, storing: int, state: str, amsgrad: bool, n: int, leads: Sequence[int] = (0,), seed: int = 1
) -> dict[str, torch.Tensor]:
    """Tensors of one parameter, by the names of the table's columns.

    Args:
        dtype: Of parameter and gradient.
        storing: How the parameter is stored.
        state: ``"float32"``, ``"bfloat16"`` or ``"int8"``.
        amsgrad: With the largest second moment.
        n: Elements.
        leads: Elements ahead of each array in its memory, in turn.
        seed: Of the values.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal() -> torch.Tensor:
        return torch.randn(n, generator=generator)

    def codes() -> torch.Tensor:
        return torch.randint(0, 256, (n,), generator=generator, dtype=torch.uint8)

    moments = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
    made = {"param": (1 + normal()).to(dtype), "grad": (normal() * 10.0 ** (normal() * 2)).to(dtype)}
    made["grad"][n // 3 :: 5] = 0
    if storing == COMPENSATED:
        made["compensation"] = (normal() * 1e-3).to(dtype)
    for name in moments:
        values = normal() * 0.1 if name == "exp_avg" else normal().square() * 0.01
        made[name] = codes() if state == "int8" else values.to(_STATES[state])
        if state == "int8":
            scales = torch.rand(-(-n // BLOCK), generator=generator) + 0.01
            scales[1::3] = 0  # blocks that were zero so far
            made[f"{name}_scale"] = scales
    result = {}
    for k, (name, values) in enumerate(made.items()):
        lead = leads[k % len(leads)] % 16
        result[name] = torch.cat([values.new_zeros(lead), values])[lead:]
    return result


def table(parameters: Sequence[dict[str, torch.Tensor]], storing: int, state: str, step: int = 3, **options) -> np.ndarray:
    """The kernel table of some parameters of :func:`arrays`; ``options`` replace those of the step."""
    rows = np.zeros(len(parameters), ADAMW_DTYPE)
    for row, tensors in zip(rows, parameters):
        for name, tensor in tensors.items():
            row[name] = tensor.data_ptr()
        row["elements"], row["param_dtype"] = tensors["param"].numel(), PARAM_DTYPES[tensors["param"].dtype]
    rows["state_type"], rows["storing"], rows["round_stream"] = STATE_TYPES[state], storing, 0x123456789ABCDEF
    grad_scale, decoupled = options.pop("grad_scale", 1.0), options.pop("decoupled", True)
    chosen = {"lr": 1e-2, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1, "maximize": False, "seed": 7, **options}
    set_coefficients(rows, np.full(len(rows), float(step)), chosen, grad_scale, decoupled)
    return rows


def step_on_cpu(rows: np.ndarray) -> None:
    """One step by the compiled CPU kernels."""
    cpu._cpu.adamw(rows.view(np.uint8), 1, "")


def copy(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies at addresses of the same alignment."""
    result = {}
    for name, tensor in tensors.items():
        lead = tensor.storage_offset()
        result[name] = torch.cat([tensor.new_zeros(lead), tensor])[lead:]
        assert (result[name].data_ptr() - tensor.data_ptr()) % 16 == 0
    return result


def assert_equal_bits(got: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    """Every array bit by bit."""
    for name, tensor in expected.items():
        assert torch.equal(kernel_cases.bits(got[name]), kernel_cases.bits(tensor)), name
