"""The CUDA backend from Python: what it says where it cannot run, and on a GPU the bits of the reference."""

from __future__ import annotations

import numpy as np
import optim_cases as cases
import pytest
import torch
from conftest import HARDWARE
from kernel_cases import DISTRIBUTIONS, DTYPES, bits, tasks_for, weights

import sff_fast
from sff_fast import FusedAdamW, backends, table
from sff_fast.backends import cuda, reference
from sff_fast.errors import ArgumentError, BackendError

needs_gpu = pytest.mark.skipif(bool(cuda.why_absent()), reason=f"{HARDWARE}no GPU that the CUDA kernels run on")
needs_no_gpu = pytest.mark.skipif(not cuda.why_absent(), reason=f"{HARDWARE}this machine has a GPU")


@needs_no_gpu
def test_where_it_cannot_run_it_says_why_and_the_others_work():
    why = cuda.why_absent()
    assert why.startswith(("compiled for sm_", "not compiled ("))
    assert backends.available_backends()["cuda"] == f"absent: {why}"
    with pytest.raises(BackendError, match="backend='cuda' is absent: "):
        backends.choose("cuda", torch.device("cuda"))
    assert backends.choose("auto", torch.device("cpu"))[0] == "cpu"


def test_without_the_module_the_reason_of_the_build_is_told(monkeypatch):
    monkeypatch.setattr(cuda, "_cuda", None)
    monkeypatch.setattr(cuda, "_why_absent", "not compiled (no nvcc was found when this was built): …")
    assert "no nvcc was found" in backends.available_backends()["cuda"]


def test_parameters_on_the_cpu_are_refused():
    with pytest.raises(ArgumentError, match="expected boxes on one GPU, got cpu"):
        cuda.Prepared(tasks_for(torch.zeros(4), DISTRIBUTIONS["normal"]))


class _Module:
    """A compiled module as if of another version, or on a machine with GPUs."""

    TASK_BYTES = table.TASK_DTYPE.itemsize
    ARCHITECTURES = "sm_80 sm_90"

    def __init__(self, count: int = 1, error: str = "", why: str = "") -> None:
        self._answers = (count, error), why

    def devices(self) -> tuple[int, str]:
        return self._answers[0]

    def why_not(self, device: int) -> str:
        return self._answers[1]


def test_a_machine_without_a_driver_or_a_gpu_is_told_apart(monkeypatch):
    monkeypatch.setattr(cuda, "_cuda", _Module(0, "cudaErrorInsufficientDriver: too old"))
    assert "no usable GPU or driver (cudaErrorInsufficientDriver" in cuda.why_absent()
    monkeypatch.setattr(cuda, "_cuda", _Module(0))
    assert "this machine shows no GPU" in cuda.why_absent()


def test_a_module_of_another_version_is_refused(monkeypatch):
    module = _Module()
    module.TASK_BYTES = 8
    monkeypatch.setattr(cuda, "_cuda", module)
    assert "compiled from another version" in cuda.why_absent()


def test_a_gpu_whose_architecture_is_not_compiled_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(cuda, "_cuda", _Module(1, "", "cudaErrorNoKernelImageForDevice: no kernel image"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(BackendError, match="cuda:0 is of architecture sm_75, the CUDA kernels are compiled for sm_80 sm_90"):
        cuda.check_device(torch.device("cuda:0"))


@pytest.mark.skipif(
    cuda._cuda is None, reason="the CUDA module is not built: `make cuda-tools`, then SFF_FAST_CUDA=on pip install -e ."
)
def test_the_module_checks_and_cuts_tables_without_a_gpu():
    tasks = [*tasks_for(weights(100_000, torch.float32), DISTRIBUTIONS["normal"])]
    made = cuda._cuda.Table(table.pack(tasks))
    assert made.launches == 1
    assert made.chunks >= 100_000 // (1 << 14)
    assert made.image().nbytes == table.TASK_DTYPE.itemsize + 32 * made.chunks
    with pytest.raises(ValueError, match="multiple of"):
        cuda._cuda.Table(np.zeros(7, np.uint8))
    with pytest.raises(ValueError, match="task 1: writes memory that task 0 writes too"):
        cuda._cuda.Table(table.pack(tasks * 2))


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_a_gpu_gives_the_references_bits(dtype, name):
    for n in (1, 3, 129, 1025, 100_003):
        for lead in range(16 // dtype.itemsize):
            old = weights(n + lead, dtype)
            new = old.cuda()
            reference.run(tasks_for(old[lead:], DISTRIBUTIONS[name], rounding="stochastic", shift=lead % 5))
            cuda.run(tasks_for(new[lead:], DISTRIBUTIONS[name], rounding="stochastic", shift=lead % 5))
            assert torch.equal(bits(new.cpu()), bits(old))


@needs_gpu
def test_a_captured_graph_replays_the_smoothing():
    x, y = weights(5000, torch.float32).cuda(), weights(5000, torch.float32).cuda()
    cuda.run(tasks_for(x, DISTRIBUTIONS["normal"]))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        cuda.run(tasks_for(x, DISTRIBUTIONS["normal"]))
    x.copy_(y)
    graph.replay()
    cuda.run(tasks_for(y, DISTRIBUTIONS["normal"]))
    assert torch.equal(x, y)


@needs_gpu
@pytest.mark.parametrize("state", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_gpu_steps_with_the_cpus_bits(dtype, state):
    results = []
    for device in ("cpu", "cuda"):
        params = [torch.nn.Parameter(p.detach().to(device)) for p in cases.parameters(dtype)]
        optimizer = FusedAdamW(params, lr=1e-2, state_dtype=state, amsgrad=True, max_norm=0.5)
        for step in range(4):
            stand_ins = cases.parameters(dtype)
            cases.give_gradients(stand_ins, step)
            for p, q in zip(params, stand_ins):
                p.grad = q.grad.to(device)
            optimizer.step()
        results.append(([x.cpu() for x in cases.everything(optimizer, params)], optimizer.grad_norm))
    cases.assert_equal_bits(results[0][0], results[1][0])
    assert results[0][1] == results[1][1]


@needs_gpu
def test_an_overflow_that_a_scaler_finds_skips_the_step():
    p = torch.nn.Parameter(torch.ones(300, device="cuda", dtype=torch.float32))
    optimizer, scaler = FusedAdamW([p]), torch.amp.GradScaler("cuda", init_scale=4.0)
    for bad in (True, False):
        before = p.detach().clone()
        scaler.scale((p * (float("inf") if bad else 1.0)).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(before, p) == bad


@needs_gpu
def test_a_step_under_capture_is_refused():
    p = torch.nn.Parameter(torch.ones(300, device="cuda"))
    p.grad = torch.ones_like(p)
    optimizer = FusedAdamW([p])
    optimizer.step()
    with pytest.raises(BackendError, match="with capturable=True, or call"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


@needs_gpu
def test_a_whole_training_step_in_a_graph_gives_the_bits_of_steps_without_one():
    results = []
    for captured in (False, True):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 5000, device="cuda"))
        rate = torch.tensor(1e-2, device="cuda")
        optimizer = FusedAdamW([p], lr=rate, capturable=True, max_norm=1.0)

        def train(p=p, optimizer=optimizer):
            (p.sin() * p).sum().backward()
            optimizer.step()

        for step in range(6):
            rate.fill_(1e-2 / (step + 1))
            if captured and step > 0:
                if step == 1:
                    optimizer.zero_grad(set_to_none=True)
                    graph = torch.cuda.CUDAGraph()
                    with torch.cuda.graph(graph):
                        train()
                graph.replay()
            else:
                optimizer.zero_grad(set_to_none=True)
                train()
        results.append([x.cpu() for x in cases.everything(optimizer, [p])])
    cases.assert_equal_bits(*results)


@needs_gpu
def test_a_scaler_is_not_waited_for_by_a_capturable_step():
    p = torch.nn.Parameter(torch.ones(300, device="cuda"))
    optimizer, scaler = FusedAdamW([p], capturable=True), torch.amp.GradScaler("cuda", init_scale=4.0)
    for bad in (False, True, False):  # the first one allocates
        before, steps = p.detach().clone(), float(optimizer.state[p]["step"]) if optimizer.state else 0.0
        scaler.scale((p * (float("inf") if bad else 1.0)).sum()).backward()
        torch.cuda.set_sync_debug_mode("error" if optimizer.state else "default")
        try:
            scaler.step(optimizer)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        scaler.update()
        optimizer.zero_grad()
        assert torch.equal(before, p) == bad
        assert float(optimizer.state[p]["step"]) == steps + (not bad)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason=f"{HARDWARE}fewer than two GPUs")
def test_a_model_on_two_gpus_is_smoothed_where_its_parameters_lie():
    def factory() -> torch.nn.Module:
        return torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.Linear(40, 50))

    expected, model = factory(), factory()
    model.load_state_dict(expected.state_dict())
    model[0].to("cuda:0")
    model[1].to("cuda:1")
    sff_fast.smooth_(expected, factory, seed=1)
    report = sff_fast.smooth_(model, factory, seed=1, backend="cuda")
    assert set(report.backends) == {"cuda:0", "cuda:1"}
    for a, b in zip(expected.parameters(), model.parameters()):
        assert torch.equal(a, b.cpu())
