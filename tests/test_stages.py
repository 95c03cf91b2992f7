"""Where a run gives freed memory back: between its stages."""

from __future__ import annotations

import pytest
import training_fakes
from training_fakes import make_table

from sff_fast.adapters import tiny
from sff_fast.data import ForecastData
from sff_fast.training import finetune, loop, stages
from sff_fast.training.stages import Stages

quick = training_fakes.quick


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened, in order; "back" where freed memory was given back."""
    seen: list[str] = []
    monkeypatch.setattr(stages, "return_freed_memory", lambda: seen.append("back"))
    return seen


def test_memory_is_given_back_when_a_phase_begins_and_after_its_first_step_alone(events: list[str]) -> None:
    of, counts = Stages("cpu"), []
    for event in (of.loaded, of.stepped, of.begin_phase, of.stepped, of.stepped, of.begin_phase, of.stepped, of.stepped):
        event()
        counts.append(len(events))
    assert counts == [1, 1, 2, 3, 3, 4, 5, 5]


def test_a_run_on_another_device_gives_nothing_back(events: list[str]) -> None:
    of = Stages("cuda:0")
    for event in (of.loaded, of.begin_phase, of.stepped):
        event()
    with of.evaluating():
        pass
    assert not events


@pytest.mark.usefixtures("quick")
def test_a_run_gives_freed_memory_back_before_and_after_every_evaluation(
    events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = tiny("timer")
    forecast, step = type(adapter).forecast, loop.Stepper.step

    def forecasting(*arguments: object, **others: object) -> object:
        if events[-1] != "forecasts":
            events.append("forecasts")
        return forecast(*arguments, **others)

    def stepping(self: object, *arguments: object) -> float:
        events.append("step")
        return step(self, *arguments)

    monkeypatch.setattr(type(adapter), "forecast", forecasting)
    monkeypatch.setattr(loop.Stepper, "step", stepping)
    data = ForecastData(make_table(300), "0.5,0.25,0.25", 96, 24, stride=4)
    finetune(adapter, data, "ff", batch_size=len(data.train), epochs=3, eval_batch_size=2)
    evaluation = ["back", "forecasts", "back"]
    loaded, begins, first = ["back"], ["back"], ["step", "back"]
    assert events == [
        *loaded,
        *2 * evaluation,
        *begins,
        *first,
        *evaluation,
        "step",
        *evaluation,
        "step",
        *2 * evaluation,
    ]
