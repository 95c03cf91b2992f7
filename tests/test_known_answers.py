"""Known answers: the files in tests/data, read by every backend."""

from __future__ import annotations

import numpy as np
import pytest
from golden import GOLDEN, KAT, golden_tasks, stored_bits, word
from kernel_cases import BACKENDS, DISTRIBUTIONS, bits, philox, run


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vector", KAT, ids=[v["counter"][0] for v in KAT])
def test_philox_gives_random123s_known_answers(backend, vector):
    c, k = vector["counter"], vector["key"]
    words = philox(backend)(word(*k), word(c[2], c[3]), word(c[0], c[1]), 1)
    assert [f"{w:08x}" for w in words[0].tolist()] == vector["result"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", GOLDEN["cases"], ids=lambda c: f"{c['distribution']}-{c['dtype']}-{c['rounding']}")
def test_every_backend_gives_the_golden_bits_of_stream_version_1(backend, case):
    tensor, tasks = golden_tasks(case)
    run(backend, tasks)
    expected = stored_bits(case, "new")
    assert np.array_equal(bits(tensor).numpy().view(expected.dtype), expected)


def test_the_golden_file_covers_every_distribution_dtype_and_rounding():
    seen = {(c["distribution"], c["dtype"], c["rounding"]) for c in GOLDEN["cases"]}
    assert len(seen) == len(DISTRIBUTIONS) * 6
    assert GOLDEN["stream_version"] == 1
