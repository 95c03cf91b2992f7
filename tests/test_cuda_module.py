"""The CUDA backends of smoothing and the optimizer from Python to the kernels, with the whole module compiled for the CPU.

What takes a GPU's place here: tensors on the CPU, one stream, and memory that is pinned by itself.
"""

from __future__ import annotations

import types

import adamw_tables as tables
import numpy as np
import optim_cases as cases
import pytest
import torch
from cuda_shim.module import load
from kernel_cases import DISTRIBUTIONS, bits, tasks_for, weights

from sff_fast import backends, table
from sff_fast.backends import cuda, reference
from sff_fast.errors import BackendError
from sff_fast.optim import FusedAdamW, kernels
from sff_fast.optim import cuda as optim_cuda
from sff_fast.optim.task import NEAREST

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def module():
    return load()


@pytest.fixture
def device(module, monkeypatch):
    """The CPU as a GPU; returns the number of uploads so far."""
    monkeypatch.setattr(cuda, "_cuda", module)
    monkeypatch.setattr(cuda, "index", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: types.SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor.clone())
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: None)
    monkeypatch.setattr(optim_cuda, "_plans", type(optim_cuda._plans)())
    return CPU


def test_the_module_offers_what_the_backends_ask_for(device):
    assert cuda.why_absent() == optim_cuda.why_absent() == ""
    assert backends.available_backends()["cuda"] == "the shim, 1 GPU"
    cuda.check_device(device)


def _prepared(tasks):
    """A prepared table whose boxes lie on the CPU, which the class itself refuses."""
    prepared = cuda.Prepared.__new__(cuda.Prepared)
    prepared.device, prepared._values = CPU, ()
    prepared._table = cuda._cuda.Table(table.pack(tasks))
    with pytest.raises(RuntimeError, match=r"load\(\) comes first"):
        prepared._table.launch(0, 0, 0)
    prepared._table.load(0)
    prepared._image = torch.from_numpy(prepared._table.image())
    prepared.launches = prepared._table.launches
    return prepared


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_table_runs_any_number_of_times_with_the_references_bits(device, dtype):
    old, new = weights(40_007, dtype), weights(40_007, dtype)
    prepared = _prepared(tasks_for(new[3:], DISTRIBUTIONS["normal"], rounding="stochastic", shift=3))
    for _ in range(2):
        reference.run(tasks_for(old[3:], DISTRIBUTIONS["normal"], rounding="stochastic", shift=3))
        prepared.run()
    assert torch.equal(bits(new), bits(old))
    assert prepared.launches == 1


def _on_the_module(monkeypatch):
    monkeypatch.setattr(kernels, "step", optim_cuda.step)
    monkeypatch.setattr(kernels, "clips", lambda device: True)
    monkeypatch.setattr(kernels, "sum_of_squares", optim_cuda.sum_of_squares)


@pytest.mark.parametrize("state", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("max_norm", [None, 0.5])
def test_steps_of_the_optimizer_give_the_cpus_bits(device, state, max_norm, monkeypatch):
    results, norms = [], []
    for gpu in (False, True):
        if gpu:
            _on_the_module(monkeypatch)
        params = cases.parameters(torch.bfloat16) + cases.parameters(torch.float32, sizes=((70_000,), (3, 5)))
        optimizer = FusedAdamW(params, lr=1e-2, state_dtype=state, amsgrad=True, max_norm=max_norm, stochastic_rounding=True)
        cases.train(optimizer, params, 4, skip=(2,))
        results.append(cases.everything(optimizer, params))
        norms.append(optimizer.grad_norm)
        assert norms[-1] is None or isinstance(norms[-1], float)
    cases.assert_equal_bits(*results)
    assert norms[0] == norms[1]
    assert (norms[0] is None) == (max_norm is None)


def test_the_norm_of_gradients_on_two_devices_adds_up(device):
    made = [tables.arrays(torch.float32, NEAREST, "float32", False, n) for n in (1000, 100_000)]
    rows = tables.table(made, NEAREST, "float32")
    assert optim_cuda.sum_of_squares(rows, device) == kernels.sum_of_squares(rows, CPU) > 0


def test_chunks_are_cut_once_for_tables_of_the_same_shapes(device, monkeypatch):
    made, kept = [], []
    plain = cuda._cuda.AdamWPlan
    proxy = types.SimpleNamespace(**{name: getattr(cuda._cuda, name) for name in dir(cuda._cuda) if not name.startswith("__")})
    proxy.AdamWPlan = lambda packed: made.append(1) or plain(packed)
    monkeypatch.setattr(cuda, "_cuda", proxy)
    for n in (100, 100, 200, 100):
        tensors = tables.arrays(torch.float32, NEAREST, "float32", False, n, seed=n)
        kept.append(tensors)
        optim_cuda.step(tables.table([tensors], NEAREST, "float32"), device)
    assert len(made) == 2


def test_a_table_that_is_wrong_is_refused_before_it_is_sent(device):
    made = tables.arrays(torch.float32, NEAREST, "float32", False, 100)
    rows = tables.table([made, made], NEAREST, "float32")
    with pytest.raises(ValueError, match="task 1: writes memory that task 0 writes too"):
        optim_cuda.step(rows, device)
    before = tables.copy(made)
    good = tables.table([made], NEAREST, "float32")
    optim_cuda.plan_of(good, device)
    good["grad"] = 0
    with pytest.raises(ValueError, match="grad is null"):
        optim_cuda.step(good, device)
    tables.assert_equal_bits(made, before)


def test_a_step_under_capture_is_refused(device, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    made = tables.arrays(torch.float32, NEAREST, "float32", False, 8)
    rows = tables.table([made], NEAREST, "float32")
    with pytest.raises(BackendError, match=r"one step's bias correction: make the optimizer with capturable=True"):
        optim_cuda.step(rows, device)


def test_a_launch_that_fails_names_the_cuda_error(device, monkeypatch):
    made = tables.arrays(torch.float32, NEAREST, "float32", False, 8)
    rows = tables.table([made], NEAREST, "float32")
    optim_cuda.plan_of(rows, device)
    monkeypatch.setattr(cuda, "index", lambda device: 5)
    with pytest.raises(BackendError, match=r"cudaSetDevice\(5\): cudaErrorInvalidValue \(invalid argument\)"):
        optim_cuda.step(rows, device)


def test_a_gpu_whose_architecture_is_not_compiled_is_refused_by_name(device, monkeypatch):
    names = {name: getattr(cuda._cuda, name) for name in dir(cuda._cuda) if not name.startswith("__")}
    names["why_not"] = lambda index: "cudaErrorNoKernelImageForDevice: no kernel image"
    monkeypatch.setattr(cuda, "_cuda", types.SimpleNamespace(**names))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    made = tables.arrays(torch.float32, NEAREST, "float32", False, 8)
    before = tables.copy(made)
    with pytest.raises(BackendError, match=r"is of architecture sm_75, the CUDA kernels are compiled for the shim and later"):
        optim_cuda.step(tables.table([made], NEAREST, "float32"), device)
    tables.assert_equal_bits(made, before)


def test_a_module_of_another_version_is_refused(device, monkeypatch):
    monkeypatch.setattr(optim_cuda, "ADAMW_DTYPE", np.dtype("u8"))
    assert "compiled from another version (optimizer entries of" in optim_cuda.why_absent()


def test_parameters_are_routed_by_their_device(device, monkeypatch):
    ran = []
    monkeypatch.setattr(optim_cuda, "step", lambda table, device: ran.append(device.type))
    made = tables.arrays(torch.float32, NEAREST, "float32", False, 8)
    rows = tables.table([made], NEAREST, "float32")
    kernels.step(rows, torch.device("cuda:0"))
    kernels.step(rows, CPU)
    assert ran == ["cuda"]
    assert kernels.available(torch.device("cuda:0"))
    assert not kernels.available(torch.device("meta"))
