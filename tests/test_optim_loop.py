"""FusedAdamW inside the fine-tuning loop: training, stopping and resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import training_fakes
from training_fakes import FakeAdapter, StopAt, assert_same_run, make_data

from sff_fast.training import finetune

quick = training_fakes.quick
pytestmark = pytest.mark.usefixtures("quick")
OPTIONS = {"epochs": 3, "batch_size": 25, "seed": 3, "patience": None, "weight_decay": 0.1}


@pytest.mark.parametrize("name", ["fused-adam", "fused-adamw"])
def test_a_run_with_a_fused_optimizer_resumes_to_the_same_bits(tmp_path: Path, name: str) -> None:
    data, whole, parts = make_data(), tmp_path / "whole", tmp_path / "parts"
    finetune(FakeAdapter.tiny(), data, "ff", out=whole, optimizer=name, **OPTIONS)
    for count in (8, 5):
        with pytest.raises(SystemExit):
            finetune(
                FakeAdapter.tiny(),
                data,
                "ff",
                out=parts,
                optimizer=name,
                resume=count == 5,
                progress=StopAt("train", count, training_fakes.signal.SIGTERM),
                **OPTIONS,
            )
    finetune(FakeAdapter.tiny(), data, "ff", out=parts, optimizer=name, resume=True, **OPTIONS)
    assert_same_run(whole, parts)


@pytest.mark.parametrize(("fused", "plain"), [("fused-adam", "adam"), ("fused-adamw", "adamw")])
def test_the_loop_learns_what_it_learns_with_torchs_optimizer(tmp_path: Path, fused: str, plain: str) -> None:
    data = make_data()
    ours = finetune(FakeAdapter.tiny(), data, "ff", optimizer=fused, **OPTIONS)
    theirs = finetune(FakeAdapter.tiny(), data, "ff", optimizer=plain, **OPTIONS)
    assert ours.test_mse == pytest.approx(theirs.test_mse, rel=1e-4)
