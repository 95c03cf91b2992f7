"""FusedAdamW inside the fine-tuning loop: training, stopping and resuming."""

from __future__ import annotations

from pathlib import Path

import pytest
import training_fakes
from training_fakes import FakeAdapter, StopAt, assert_same_run, make_data

from sff_fast.cli.options import OPTIMIZER_STATES
from sff_fast.errors import ArgumentError
from sff_fast.optim.task import STATE_TYPES
from sff_fast.training import finetune

quick = training_fakes.quick
pytestmark = pytest.mark.usefixtures("quick")
OPTIONS = {"epochs": 3, "batch_size": 25, "seed": 3, "patience": None, "weight_decay": 0.1}


@pytest.mark.parametrize(("name", "state"), [("fused-adam", None), ("fused-adamw", "int8")])
def test_a_run_with_a_fused_optimizer_resumes_to_the_same_bits(tmp_path: Path, name: str, state: str | None) -> None:
    data, whole, parts = make_data(), tmp_path / "whole", tmp_path / "parts"
    finetune(FakeAdapter.tiny(), data, "ff", out=whole, optimizer=name, optimizer_state=state, **OPTIONS)
    for count in (8, 5):
        with pytest.raises(SystemExit):
            finetune(
                FakeAdapter.tiny(),
                data,
                "ff",
                out=parts,
                optimizer=name,
                optimizer_state=state,
                resume=count == 5,
                progress=StopAt("train", count, training_fakes.signal.SIGTERM),
                **OPTIONS,
            )
    finetune(FakeAdapter.tiny(), data, "ff", out=parts, optimizer=name, optimizer_state=state, resume=True, **OPTIONS)
    assert_same_run(whole, parts)


@pytest.mark.parametrize(("fused", "plain"), [("fused-adam", "adam"), ("fused-adamw", "adamw")])
def test_the_loop_learns_what_it_learns_with_torchs_optimizer(tmp_path: Path, fused: str, plain: str) -> None:
    data = make_data()
    ours = finetune(FakeAdapter.tiny(), data, "ff", optimizer=fused, **OPTIONS)
    theirs = finetune(FakeAdapter.tiny(), data, "ff", optimizer=plain, **OPTIONS)
    assert ours.test_mse == pytest.approx(theirs.test_mse, rel=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"optimizer": "adam", "optimizer_state": "int8"},
            r"optimizer_state='int8' needs an optimizer that can choose \(fused-adam, fused-adamw\), got optimizer='adam'",
        ),
        (
            {"optimizer": "fused-adam", "optimizer_state": "int4"},
            "optimizer_state must be one of float32, bfloat16, int8, got 'int4'",
        ),
    ],
)
def test_a_precision_that_the_optimizer_does_not_have_is_refused(options: dict[str, str], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        finetune(FakeAdapter.tiny(), make_data(), "ff", **OPTIONS, **options)


def test_the_command_line_knows_every_precision() -> None:
    assert tuple(STATE_TYPES) == OPTIMIZER_STATES
