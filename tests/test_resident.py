"""Memory that was freed goes back to the system, and who asks for that when."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import training_fakes
from training_fakes import make_table

from sff_fast import resident
from sff_fast.adapters import tiny
from sff_fast.data import ForecastData
from sff_fast.optim import FusedAdamW, release
from sff_fast.training import finetune, run
from sff_fast.training.evaluate import evaluate
from sff_fast.training.evaluate import measure as measured

quick = training_fakes.quick
KERNELS = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


class Memory:
    """Resident memory that a test sets, and how often freed memory was given back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.resident = self.in_use = self.returned = 0
        monkeypatch.setattr(resident, "resident_memory", lambda: self.resident)
        monkeypatch.setattr(resident, "return_freed_memory", self.give_back)

    def give_back(self) -> None:
        self.returned += 1
        self.resident = self.in_use


def test_a_ceiling_gives_memory_back_when_more_than_the_slack_was_added(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, ceiling = Memory(monkeypatch), resident.Ceiling(10)
    memory.resident, memory.in_use = 100, 70
    ceiling.check()  # the first check begins
    memory.resident = 110
    ceiling.check()
    assert memory.returned == 0
    memory.resident = 111
    ceiling.check()
    assert (memory.returned, memory.resident) == (1, 70)
    memory.resident = 105  # within what it was at the beginning: memory may be used again
    ceiling.check()
    assert memory.returned == 1
    memory.resident, memory.in_use = 140, 130  # in use: the limit moves up
    ceiling.check()
    memory.resident = 140
    ceiling.check()
    assert memory.returned == 2
    memory.resident = 50
    ceiling.begin()
    memory.resident = 61
    ceiling.check()
    assert memory.returned == 3


@pytest.mark.skipif(resident._malloc_trim() is None, reason="needs hardware: glibc, whose heap keeps what was freed")
def test_freed_memory_under_a_block_in_use_goes_back_to_the_system() -> None:
    code = """
import ctypes
from sff_fast.resident import peak_resident_memory, resident_memory, return_freed_memory
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
blocks = [libc.malloc(1 << 16) for _ in range(3000)]
for block in blocks:
    ctypes.memset(block, 1, 1 << 16)
full = resident_memory()
for block in blocks[:-1]:
    libc.free(block)
kept = resident_memory()
return_freed_memory()
assert kept > full - (50 << 20), (full, kept)
assert resident_memory() < full - (150 << 20), (full, resident_memory())
assert peak_resident_memory() > full - (50 << 20), (full, peak_resident_memory())
"""
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------- oneDNN's store of kernels
def test_few_kernels_are_kept_unless_the_environment_says_how_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KERNELS, "7")
    resident.keep_few_kernels()
    assert os.environ[KERNELS] == "7"
    monkeypatch.delenv(KERNELS)
    FusedAdamW([torch.nn.Parameter(torch.ones(2))])
    assert KERNELS not in os.environ
    FusedAdamW([torch.nn.Parameter(torch.ones(2))], release_gradients=True)
    assert os.environ[KERNELS] == "64"


def test_onednn_keeps_as_many_kernels_as_the_variable_says() -> None:
    """Its own log tells which kernels it made: with room for one, two that take turns are made every time."""
    code = """
import sys, torch
if "few" in sys.argv:
    from sff_fast.resident import keep_few_kernels
    keep_few_kernels()
layers = [torch.nn.Linear(64, n, dtype=torch.bfloat16) for n in range(64, 64 + 80)]
x = torch.ones(32, 64, dtype=torch.bfloat16)
with torch.no_grad():
    for _ in range(2):
        for layer in layers:
            layer(x)
"""

    def made(*arguments: str) -> int:
        environment = {**os.environ, "ONEDNN_VERBOSE": "2"}
        environment.pop(KERNELS, None)
        command = [sys.executable, "-c", code, *arguments]
        log = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        lines = [line for line in log.splitlines() if "create:cache_miss" in line and "matmul" in line]
        return len(lines)

    plain = made()
    if plain == 0:
        pytest.skip("needs hardware: a processor on which oneDNN multiplies bfloat16 matrices")
    assert (plain, made("few")) == (80, 160)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("options", "kept"), [({"release_gradients": True}, "64"), ({"max_memory": "8G"}, "64"), ({}, None)])
def test_a_run_that_saves_memory_keeps_few_kernels_from_its_first_evaluation_on(
    options: dict[str, object], kept: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(KERNELS, raising=False)
    seen: list[str | None] = []

    def measure(*arguments: object, **others: object) -> dict[str, object]:
        seen.append(os.environ.get(KERNELS))
        return measured(*arguments, **others)

    monkeypatch.setattr(run, "measure", measure)
    data = ForecastData(make_table(300), "0.5,0.25,0.25", 96, 24, stride=4)
    finetune(tiny("timer"), data, "ff", max_steps=1, batch_size=4, **options)
    assert seen[0] == kept


# ---------------------------------------------------------------------- who gives back, and when
def test_an_evaluation_checks_after_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch)
    adapter, data = tiny("timer"), ForecastData(make_table(300), "0.5,0.25,0.25", 96, 24)
    forecast = type(adapter).forecast

    def grown(self: object, *arguments: object, **options: object) -> object:
        memory.resident += 17 << 20
        return forecast(self, *arguments, **options)

    monkeypatch.setattr(type(adapter), "forecast", grown)
    evaluate(adapter, data, "val", batch_size=len(data.val) // 4, device="cpu")
    # 17 MiB at the first batch, 34 at the second: more than 16 over the first. Then 17 and 34 again.
    assert memory.returned == 2


def _backward(model: torch.nn.Module) -> None:
    model(torch.ones(2, 4)).square().sum().backward()


def test_a_backward_pass_checks_after_every_bucket_and_gives_back_at_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    monkeypatch.setattr(resident.Ceiling, "begin", lambda self: events.append("begin"))
    monkeypatch.setattr(resident.Ceiling, "check", lambda self: events.append("check"))
    monkeypatch.setattr(release, "return_freed_memory", lambda: events.append("give back"))
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(3)))
    optimizer = FusedAdamW(model.parameters(), release_gradients=True, bucket_bytes=64)
    for _ in range(2):
        _backward(model)
        optimizer.step()
    assert events == ["begin", "check", "check", "check", "give back"] * 2
    events.clear()
    with optimizer.accumulating():
        _backward(model)
    assert events == []


def test_the_slack_of_a_backward_pass_is_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = Memory(monkeypatch)
    monkeypatch.setattr(release, "return_freed_memory", lambda: None)
    model = torch.nn.Sequential(*(torch.nn.Linear(4, 4, bias=False) for _ in range(3)))
    optimizer = FusedAdamW(model.parameters(), release_gradients=True, bucket_bytes=64)
    step = optimizer._run_released

    def grown(buckets: list[object], in_backward: bool) -> None:
        step(buckets, in_backward)
        memory.resident += 33

    optimizer._release._step = grown
    _backward(model)
    assert memory.returned == 1  # after the second bucket, by 66 bytes; then the third one adds 33 to none
