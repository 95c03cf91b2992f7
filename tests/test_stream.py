"""Names to streams, seeds to keys."""

from __future__ import annotations

import numpy as np
import pytest

from sff_fast import stream
from sff_fast.errors import ArgumentError


def test_streams_have_their_known_values():
    # hex(int.from_bytes(hashlib.blake2b(NAME, digest_size=8, person=PURPOSE).digest(), "little"))
    assert stream.stream_id("") == 0xB4B2797457A0A6E4
    assert stream.stream_id("layer.0.weight") == 0x999C522D46D00EF0
    assert stream.stream_id("layer.0.weight", stream.ROUND) == 0xE3FD5C839F9F80FB


def test_purposes_have_streams_of_their_own():
    ids = {stream.stream_id("w", purpose) for purpose in stream.PURPOSES}
    assert len(ids) == len(stream.PURPOSES) == 6


def test_negative_seeds_wrap_like_torchs():
    assert stream.check_seed(-1) == (1 << 64) - 1
    assert stream.check_seed(np.int64(5)) == 5


@pytest.mark.parametrize("seed", [1.5, "3", None, True, 1 << 64, -(1 << 63) - 1])
def test_a_seed_that_is_no_64_bit_integer_is_refused(seed):
    with pytest.raises(ArgumentError, match="seed must"):
        stream.check_seed(seed)


def test_the_rounding_key_of_step_zero_is_the_seed_and_steps_wrap_at_64_bits():
    assert stream.rounding_key(11, 0) == 11
    assert stream.rounding_key(11, 1) == 11 + 0x9E3779B97F4A7C15
    assert stream.rounding_key((1 << 64) - 1, 1) == 0x9E3779B97F4A7C14
