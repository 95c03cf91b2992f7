"""Known answers: the files in tests/data, read by every backend."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from kernels import BACKENDS, DISTRIBUTIONS, bits, philox, run, tasks_for

DATA = Path(__file__).parent / "data"
KAT = json.loads((DATA / "philox_kat.json").read_text())["vectors"]
GOLDEN = json.loads((DATA / "stream_v1.json").read_text())


def _word(low: str, high: str) -> int:
    return int(high, 16) << 32 | int(low, 16)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vector", KAT, ids=[v["counter"][0] for v in KAT])
def test_philox_gives_random123s_known_answers(backend, vector):
    c, k = vector["counter"], vector["key"]
    words = philox(backend)(_word(*k), _word(c[2], c[3]), _word(c[0], c[1]), 1)
    assert [f"{w:08x}" for w in words[0].tolist()] == vector["result"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['distribution']}-{c['dtype']}-{c['rounding']}")
def test_every_backend_gives_the_golden_bits_of_stream_version_1(backend, case):
    dtype = getattr(torch, case["dtype"])
    width = len(case["old"][0]) // 2
    old = torch.frombuffer(bytearray(b"".join(int(h, 16).to_bytes(width, "little") for h in case["old"])), dtype=dtype)
    run(
        backend,
        tasks_for(
            old,
            DISTRIBUTIONS[case["distribution"]],
            shrink=GOLDEN["shrink"],
            perturb=GOLDEN["perturb"],
            seed=GOLDEN["seed"],
            rounding=case["rounding"],
            shift=GOLDEN["shift"],
        ),
    )
    mask = (1 << 8 * width) - 1
    assert [f"{v & mask:0{2 * width}x}" for v in bits(old).tolist()] == case["new"]


def test_the_golden_file_covers_every_distribution_dtype_and_rounding():
    seen = {(c["distribution"], c["dtype"], c["rounding"]) for c in GOLDEN["cases"]}
    assert len(seen) == len(DISTRIBUTIONS) * 6
    assert GOLDEN["stream_version"] == 1
