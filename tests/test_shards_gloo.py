"""Sharded smoothing in four processes: every layout has the bits of the unsharded model, and nothing is communicated."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import shard_ranks


@pytest.fixture(scope="module")
def failures(tmp_path_factory) -> dict[str, dict[str, str]]:
    """What went wrong in which case, by rank: one group of processes runs them all."""
    folder = tmp_path_factory.mktemp("ranks")
    context = multiprocessing.get_context("forkserver")  # the imports are made once, not once a rank
    context.set_forkserver_preload(["shard_ranks"])
    ranks = [context.Process(target=shard_ranks.serve, args=(k, str(folder))) for k in range(shard_ranks.WORLD)]
    for rank in ranks:
        rank.start()
    for rank in ranks:
        rank.join(240)
    stuck = [rank for rank in ranks if rank.is_alive()]
    for rank in stuck:
        rank.kill()
    found: dict[str, dict[str, str]] = {}
    for k in range(shard_ranks.WORLD):
        path = Path(folder) / f"rank-{k}.json"
        if not path.exists():
            pytest.fail(f"rank {k} ended with code {ranks[k].exitcode} and wrote nothing")
        for label, text in json.loads(path.read_text()).items():
            found.setdefault(label, {})[f"rank {k}"] = text
    return found


@pytest.mark.parametrize("label", shard_ranks.CASES)
def test_four_ranks_have_the_bits_of_one(failures, label):
    assert label not in failures, "\n".join(f"{rank}: {text}" for rank, text in failures[label].items())
    if failures:  # a failed case ends the others
        before = list(shard_ranks.CASES).index(label) < min(list(shard_ranks.CASES).index(other) for other in failures)
        assert before, f"did not run, since {', '.join(failures)} failed before"
