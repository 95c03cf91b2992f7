"""What was done to a model's weights is kept beside them."""

from __future__ import annotations

import json

import pytest

import sff_fast
from sff_fast.adapters.provenance import FILE
from sff_fast.errors import ArgumentError, CheckpointError


@pytest.mark.parametrize("family", ["timer", "ttm"])
def test_a_smoothed_model_says_so_after_saving_and_loading(tmp_path, family):
    adapter = sff_fast.tiny(family)
    adapter.save(tmp_path / "pristine")
    assert not (tmp_path / "pristine" / FILE).exists()

    report = sff_fast.smooth_(adapter.model, adapter.plan(), alpha=0.6, seed=5)
    adapter.save(tmp_path / "smoothed")
    loaded = sff_fast.load(family, tmp_path / "smoothed")
    (record,) = sff_fast.smoothing_of(loaded.model)
    assert (record["seed"], record["plan_hash"], record["stream_version"]) == (5, report.plan_hash, 1)
    assert set(record["shrink"].values()) == {0.6}
    with pytest.raises(ArgumentError, match=r"was smoothed before \(seed 5"):
        sff_fast.smooth_(loaded.model, loaded.plan())
    assert sff_fast.smoothing_of(loaded.reload().model) == [record]

    sff_fast.fill_(loaded.model, loaded.plan())
    loaded.save(tmp_path / "random")
    assert not (tmp_path / "random" / FILE).exists()


@pytest.mark.parametrize("content", ["[]", "{}", '{"smoothing": 3}', '{"smoothing": [{"seed": 1}]}', "{"])
def test_a_damaged_record_is_refused_by_name(tmp_path, content):
    adapter = sff_fast.tiny("timer")
    adapter.save(tmp_path / "model")
    (tmp_path / "model" / FILE).write_text(content)
    with pytest.raises(CheckpointError, match=rf"{FILE}"):
        sff_fast.load("timer", tmp_path / "model")


def test_the_record_is_plain_json(tmp_path):
    adapter = sff_fast.tiny("timer")
    sff_fast.smooth_(adapter.model, adapter.plan())
    adapter.save(tmp_path / "model")
    content = json.loads((tmp_path / "model" / FILE).read_text())
    assert content["sff_fast"] == sff_fast.__version__
    (said,) = json.loads(json.dumps(sff_fast.smoothing_of(adapter.model)))
    assert content["smoothing"] == [{k: v for k, v in said.items() if k not in ("seconds", "threads")}]
