"""The known answers of tests/data, unpacked for the backends and for the native driver."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from kernel_cases import DISTRIBUTIONS, tasks_for

from sff_fast import table

DATA = Path(__file__).parent / "data"
KAT = json.loads((DATA / "philox_kat.json").read_text())["vectors"]
GOLDEN = json.loads((DATA / "stream_v1.json").read_text())


def word(low: str, high: str) -> int:
    """The 64-bit number of two halves in hexadecimal."""
    return int(high, 16) << 32 | int(low, 16)


def stored_bits(case: dict, key: str) -> np.ndarray:
    """The ``"old"`` or ``"new"`` values of a case of the golden file, as unsigned integers of the dtype's width."""
    return np.array([int(h, 16) for h in case[key]], dtype=f"u{len(case[key][0]) // 2}")


def golden_tasks(case: dict) -> tuple[torch.Tensor, list[table.BoxTask]]:
    """A tensor with the old values of a case, and the tasks that make them the new ones."""
    tensor = torch.from_numpy(stored_bits(case, "old")).view(getattr(torch, case["dtype"]))
    options = {key: GOLDEN[key] for key in ("shrink", "perturb", "seed", "shift")}
    return tensor, tasks_for(tensor, DISTRIBUTIONS[case["distribution"]], rounding=case["rounding"], **options)
