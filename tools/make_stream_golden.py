"""Writes tests/data/stream_v1.json: known answers of random stream version 1, computed by the reference backend.

Run from the repository root: ``python tools/make_stream_golden.py``. Version 1 is frozen once the file is released; a
change of the stream is a new version with a file of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from kernel_cases import DISTRIBUTIONS, DTYPES, bits, run, tasks_for  # noqa: E402

from sff_fast.stream import STREAM_VERSION  # noqa: E402

SEED, LENGTH, SHIFT = 0x123456789ABCDEF0, 37, 5


def special_weights(dtype: torch.dtype) -> torch.Tensor:
    """Ordinary numbers, then zeros, denormals, infinities, NaN and the largest finite ones."""
    info = torch.finfo(dtype)
    special = [0.0, -0.0, info.smallest_normal, info.smallest_normal / 4, -info.smallest_normal / 8]
    special += [float("inf"), -float("inf"), float("nan"), info.max, -info.max]
    plain = [(-1) ** i * (i + 1) / 64 for i in range(LENGTH - len(special))]
    return torch.tensor(plain + special, dtype=torch.float64).to(dtype)


def main() -> None:
    """Compute and write the file."""
    cases = []
    for label, distribution in DISTRIBUTIONS.items():
        for dtype in DTYPES:
            for rounding in ("nearest", "stochastic"):
                if rounding == "stochastic" and dtype in (torch.float32, torch.float64):
                    continue
                old = special_weights(dtype)
                new = old.clone()
                run(
                    "reference",
                    tasks_for(new, distribution, shrink=0.75, perturb=0.25, seed=SEED, rounding=rounding, shift=SHIFT),
                )
                width = old.element_size() * 2
                mask = (1 << 4 * width) - 1
                cases.append(
                    {
                        "distribution": label,
                        "dtype": str(dtype).removeprefix("torch."),
                        "rounding": rounding,
                        "old": [f"{v & mask:0{width}x}" for v in bits(old).tolist()],
                        "new": [f"{v & mask:0{width}x}" for v in bits(new).tolist()],
                    }
                )
    content = {"stream_version": STREAM_VERSION, "seed": SEED, "name": "w", "shift": SHIFT, "shrink": 0.75, "perturb": 0.25}
    lines = ",\n  ".join(json.dumps(case) for case in cases)
    text = json.dumps(content)[:-1] + ', "cases": [\n  ' + lines + "\n]}\n"
    (ROOT / "tests" / "data" / f"stream_v{STREAM_VERSION}.json").write_text(text)


if __name__ == "__main__":
    main()
