"""Where a run gives freed memory back: only where that can lower its peak."""

from __future__ import annotations

import pytest
import training_fakes
from training_fakes import make_table

from sff_fast.adapters import tiny
from sff_fast.data import ForecastData
from sff_fast.training import finetune, loop, run, stages
from sff_fast.training.evaluate import measure as measured
from sff_fast.training.stages import SLACK, Stages

quick = training_fakes.quick
MIB = 1 << 20


class Process:
    """Resident memory and its peak as a test sets them, and how often freed memory was given back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.resident = self.in_use = self.peak = self.returned = 0
        monkeypatch.setattr(stages, "resident_memory", lambda: self.resident)
        monkeypatch.setattr(stages, "peak_memory", lambda device: self.peak)
        monkeypatch.setattr(stages, "return_freed_memory", self.give_back)

    def give_back(self) -> None:
        self.returned += 1
        self.resident = self.in_use

    def evaluate(self, of: Stages, most: int, left: int = 0, windows: int = 8) -> int:
        """An evaluation that takes so much at most and leaves so much; how often memory was given back before and after."""
        returned = self.returned
        with of.evaluating(windows):
            self.peak = max(self.peak, self.resident + most)
            self.resident += left
        return self.returned - returned


def test_an_evaluation_of_unknown_size_begins_on_a_heap_that_was_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    process, of = Process(monkeypatch), Stages("cpu")
    process.resident, process.in_use = 500 * MIB, 300 * MIB
    assert process.evaluate(of, 100 * MIB) == 1
    assert process.resident == 300 * MIB
    assert process.evaluate(of, 100 * MIB, windows=9) == 1  # so many at a time are another size
    assert process.evaluate(of, 100 * MIB, windows=9) == 0


def test_memory_stays_where_an_evaluation_beside_it_hardly_raises_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    process, of = Process(monkeypatch), Stages("cpu")
    process.resident = process.in_use = 300 * MIB
    process.evaluate(of, 100 * MIB)
    process.peak = 1000 * MIB  # of a training step, which has left this much:
    process.resident = 940 * MIB
    assert process.evaluate(of, 100 * MIB) == 0
    process.peak = 1000 * MIB
    process.resident += 1  # 4 % is the limit
    assert process.evaluate(of, 100 * MIB) == 1


def test_a_run_that_saves_memory_gives_back_what_might_raise_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    process, of = Process(monkeypatch), Stages("cpu", tight=True)
    process.resident = process.in_use = 300 * MIB
    process.evaluate(of, 100 * MIB)
    process.peak = 600 * MIB  # of a training step, which has left this much:
    process.resident = 500 * MIB + SLACK
    assert process.evaluate(of, 100 * MIB) == 0
    process.peak = 600 * MIB
    process.resident += 1
    assert process.evaluate(of, 100 * MIB) == 1
    assert process.resident == 300 * MIB


def test_what_an_evaluation_leaves_beyond_the_slack_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    process, of = Process(monkeypatch), Stages("cpu", tight=True)
    process.peak = 1000 * MIB
    process.evaluate(of, 0)
    process.resident = 200 * MIB
    assert process.evaluate(of, 0, left=SLACK) == 1  # 200 + 1000 may be above the peak
    process.resident = process.in_use = 0
    assert process.evaluate(of, 0, left=SLACK) == 0
    assert process.evaluate(of, 0, left=SLACK + 1) == 1  # afterwards
    assert process.resident == 0


def test_only_evaluations_on_a_clean_heap_tell_what_they_take_and_the_least_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    process, of = Process(monkeypatch), Stages("cpu", tight=True)
    process.resident = process.in_use = 300 * MIB
    process.peak = 1000 * MIB  # of loading: the evaluation takes at most 700
    process.evaluate(of, 100 * MIB)
    process.peak = 400 * MIB  # the measurement of the peak began anew
    assert process.evaluate(of, 100 * MIB) == 1  # 300 + 700 > 400: now it is known to take 100
    process.resident = 310 * MIB
    assert process.evaluate(of, 100 * MIB) == 0
    process.peak = 1000 * MIB
    process.resident = 950 * MIB
    assert process.evaluate(of, 0) == 1  # 1000 - 300 is no news
    process.resident = 900 * MIB
    assert process.evaluate(of, 0) == 0


def test_memory_is_given_back_when_a_phase_begins_and_after_its_first_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    process, of = Process(monkeypatch), Stages("cpu")
    counts = []
    for event in (of.loaded, of.stepped, of.begin_phase, of.stepped, of.stepped, of.begin_phase, of.stepped, of.stepped):
        event()
        counts.append(process.returned)
    assert counts == [1, 1, 2, 3, 3, 4, 5, 5]


def test_a_run_on_another_device_gives_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    process, of = Process(monkeypatch), Stages("cuda:0")
    for event in (of.loaded, of.begin_phase, of.stepped):
        event()
    process.evaluate(of, MIB, left=MIB << 10)
    assert process.returned == 0


@pytest.mark.usefixtures("quick")
def test_freed_memory_goes_back_before_every_evaluation_of_a_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Process(monkeypatch)
    events: list[str] = []

    def measure(adapter: object, data: object, part: str, *arguments: object, **others: object) -> dict[str, object]:
        result = measured(adapter, data, part, *arguments, **others)
        events.append(part)
        return result

    def step(self: object, *arguments: object) -> float:
        events.append("step")
        return original(self, *arguments)

    original = loop.Stepper.step
    monkeypatch.setattr(stages, "return_freed_memory", lambda: events.append("give back"))
    monkeypatch.setattr(loop, "measure", measure)
    monkeypatch.setattr(run, "measure", measure)
    monkeypatch.setattr(loop.Stepper, "step", step)
    data = ForecastData(make_table(300), "0.5,0.25,0.25", 96, 24, stride=4)
    finetune(tiny("timer"), data, "ff", batch_size=len(data.train), epochs=3, eval_batch_size=2)
    assert [event for event in events if event != "give back"] == [
        "val",
        "test",
        "step",
        "val",
        "step",
        "val",
        "step",
        "val",
        "test",
    ]
    for place, event in enumerate(events):
        if event in ("val", "test"):
            assert events[place - 1] == "give back", (place, events)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("options", "tight"), [({}, False), ({"release_gradients": True}, True), ({"max_memory": "64G"}, True)])
def test_a_run_is_tight_where_it_was_asked_to_save_memory(
    options: dict[str, object], tight: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[bool] = []
    monkeypatch.setattr(run, "Stages", lambda device, tight, always: made.append(tight) or Stages(device, tight, always))
    data = ForecastData(make_table(300), "0.5,0.25,0.25", 96, 24, stride=4)
    finetune(tiny("timer"), data, "ff", max_steps=1, batch_size=4, **options)
    assert made == [tight]


def test_where_it_is_wanted_always_freed_memory_goes_back_around_every_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    process, of = Process(monkeypatch), Stages("cpu", always=True)
    assert [process.evaluate(of, 0) for _ in range(3)] == [2, 2, 2]
