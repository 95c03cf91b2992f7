"""``make gpu-check`` as far as it goes without a GPU: every check and row at small sizes, on the module for the CPU."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
from pathlib import Path

import pytest
import torch
from cuda_shim.device import Graph, as_gpu
from kernel_cases import DISTRIBUTIONS, DTYPES

from sff_fast import table
from sff_fast.backends import cuda
from sff_fast.optim import cuda as optim_cuda
from sff_fast.optim import kernels

ROOT = Path(__file__).resolve().parents[1]


class _Prepared(cuda.Prepared):
    """A table whose boxes lie on the CPU, which the class itself refuses."""

    def __init__(self, tasks) -> None:
        self.device, self._values = torch.device("cpu"), ()
        self._table = cuda._cuda.Table(table.pack(tasks))
        self._table.load(0)
        self._image = torch.from_numpy(self._table.image())


class _Event:
    """Of a clock that ticks a microsecond at each record."""

    now = 0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing

    def record(self) -> None:
        _Event.now += 1
        self.at = _Event.now

    def synchronize(self) -> None:
        assert self.at

    def elapsed_time(self, end: _Event) -> float:
        return (end.at - self.at) * 1e-3


@pytest.fixture
def check(monkeypatch, tmp_path):
    """The script, with the CPU as its GPU and sizes of a moment."""
    path = ROOT / "tools" / "gpu_check.py"
    spec = importlib.util.spec_from_file_location("gpu_check", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert script.ELEMENTS >= 10**9
    assert len(script.KINDS) <= script.ELEMENTS // script.PART, "a part of every kind at least"
    for name, value in {
        "DEVICE": "cpu",
        "ELEMENTS": 42 * 500,
        "PART": 500,
        "STEPPED": (1, 300),
        "MEASURED": 600,
        "COPIED": 1 << 16,
        "PARAMETERS": (3, 300),
        "WARM": 0,
        "REPEATS": 1,
        "OUT": tmp_path / "runs" / "gpu-check.csv",
    }.items():
        assert hasattr(script, name)
        monkeypatch.setattr(script, name, value)
    as_gpu(monkeypatch)
    monkeypatch.setattr(cuda, "Prepared", _Prepared)
    monkeypatch.setattr(cuda, "_prepared", type(cuda._prepared)())
    monkeypatch.setattr(kernels, "step", optim_cuda.step)
    monkeypatch.setattr(kernels, "clips", lambda device: True)
    monkeypatch.setattr(kernels, "sum_of_squares", optim_cuda.sum_of_squares)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    for name, value in {
        "get_device_name": lambda: "the shim",
        "synchronize": lambda: None,
        "Event": _Event,
        "CUDAGraph": Graph,
        "graph": lambda graph: graph,
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return script


def _main(script, monkeypatch, tests: int = 0, tool: str | None = None) -> tuple[int, list[list[str]]]:
    """The exit code of a run whose subprocesses are put down and return ``tests``, and these."""
    commands: list[list[str]] = []

    def run(command, **options):
        commands.append(command)
        return subprocess.CompletedProcess(command, tests)

    monkeypatch.setattr(script.subprocess, "run", run)
    monkeypatch.setattr(script.shutil, "which", lambda name: tool)
    return script.main(), commands


def test_every_check_runs_and_every_row_is_printed_and_written(check, monkeypatch, capsys):
    compared, plain = [], check.cpu.run
    monkeypatch.setattr(
        check.cpu, "run", lambda tasks: compared.append((tasks[0].tensor.dtype, tasks[0].p, tasks[0].stochastic)) or plain(tasks)
    )
    code, commands = _main(check, monkeypatch)
    said = capsys.readouterr().out
    assert code == 0, said
    assert len(set(compared)) == 42, "dtypes, distributions and roundings"
    assert "compute-sanitizer: not installed, left out" in said
    assert "bits: 21000 elements equal the CPU" in said
    assert "steps: 15 kinds equal the CPU" in said
    assert "replays: equal steps without a graph" in said
    assert said.endswith("gpu-check: passed\n")
    (tests,) = commands
    assert {Path(name).name for name in tests if name.endswith(".py")} >= {"test_cuda_backend.py", "test_cuda_ptx.py"}
    with check.OUT.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["device", "torch", "what", "dtype", "case", "microseconds", "GB/s", "copy GB/s", "share"]
    assert all(len(row) == len(header) and row[0] == "the shim" for row in rows)
    kinds = [(str(dtype), name, rounding) for dtype in DTYPES for name in DISTRIBUTIONS for rounding in ("nearest", "stochastic")]
    kinds = [kind for kind in kinds if kind[2] == "nearest" or "16" in kind[0]]
    smoothed = [tuple(row[3:5]) for row in rows if row[2] == "smooth_"]
    expected = [(d, f"{name}, {r}{ahead}") for d, name, r in kinds for ahead in ("", ", 1 element ahead")]
    expected += [(str(dtype), path) for dtype in DTYPES for path in ("normal, elements apart", "stored values")]
    assert sorted(smoothed) == sorted(expected)
    for dtype, ways in (("torch.float32", 3), ("torch.bfloat16", 5)):
        stepped = [row[4] for row in rows if row[2] == "FusedAdamW" and row[3] == dtype]
        assert len(stepped) == len(set(stepped)) == 3 * ways
        assert {"float32 states", "int8 states, max_norm", "bfloat16 states, capturable"} <= set(stepped)
        assert [row[2] for row in rows if row[3] == dtype and row[2].startswith("torch")] == [
            "torch AdamW fused",
            "torch AdamW foreach",
        ]
    for row in rows:
        microseconds, reached, copied, share = map(float, row[5:])
        assert microseconds == 1
        assert copied == round(2 * check.COPIED / 1e3)
        assert abs(share - reached / copied) <= 0.5 / copied + 0.0005, "both are rounded"


def test_what_differs_or_fails_is_named_and_the_code_is_1(check, monkeypatch, capsys):
    plain = cuda.run
    monkeypatch.setattr(cuda, "run", lambda tasks: plain(tasks) and tasks[0].tensor.view(torch.uint8)[:1].bitwise_xor_(1))
    monkeypatch.setattr(check, "_trained", lambda device, dtype, n=[0], **way: n.append(0) or [torch.full((2,), float(len(n)))])
    code, commands = _main(check, monkeypatch, tests=3, tool="/opt/compute-sanitizer")
    said = capsys.readouterr().out
    assert code == 1
    assert commands[1][:3] == ["/opt/compute-sanitizer", "--error-exitcode", "1"]
    assert "bits differ: torch.float32, constant" in said
    assert "steps differ: torch.bfloat16, float32 states" in said
    assert said.endswith("gpu-check: failed: tests, sanitizer, bits, steps\n")


def test_what_the_sanitizer_looks_at_runs(check, monkeypatch):
    ran = []
    plain = cuda.run
    monkeypatch.setattr(cuda, "run", lambda tasks: ran.append(tasks[0].tensor.dtype) or plain(tasks))
    exec(compile(check.CHECKED_BY_SANITIZER.replace('device="cuda"', 'device="cpu"'), "sanitizer", "exec"), {})
    assert len(ran) == 2 * len(DTYPES) * len(DISTRIBUTIONS)
    assert set(ran) == set(DTYPES)


def test_without_a_gpu_it_says_why(check, monkeypatch, capsys):
    monkeypatch.setattr(cuda, "why_absent", lambda: "no GPU here")
    assert check.main() == 1
    assert "gpu-check: the CUDA backend cannot run here: no GPU here" in capsys.readouterr().err
