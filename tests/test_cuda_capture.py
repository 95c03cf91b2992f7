"""``capturable=True``: steps that the device counts, with the whole CUDA module compiled for the CPU.

A CUDA graph's place takes a list of the launches that a step makes: captured ones are put down and not run, a replay runs them.
"""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
import optim_cases as cases
import pytest
import torch
from cuda_shim.device import Graph, as_gpu

from sff_fast.backends import cuda
from sff_fast.errors import ArgumentError, BackendError
from sff_fast.optim import FusedAdam, FusedAdamW, capture, kernels
from sff_fast.optim import cuda as optim_cuda
from sff_fast.optim.task import ADAMW_DTYPE, OPTIONS_DTYPE, power, set_coefficients, set_options

SIZES = ((1,), (7,), (0,), (257,), (16, 64))


@pytest.fixture
def graph(monkeypatch):
    """A graph that is captured on the CPU in a GPU's place."""
    as_gpu(monkeypatch)
    monkeypatch.setattr(torch.Tensor, "pin_memory", None)  # nothing of a step comes through the host's memory
    return Graph()


def _gradients(params, step: int) -> None:
    """The gradients of a step, in the memory where those of the step before were."""
    before = [p.grad for p in params]
    cases.give_gradients(params, step)
    for p, old in zip(params, before):
        if old is not None:
            p.grad = old.copy_(p.grad)


def _plain(dtype, steps: int, kind=FusedAdamW, **options: object) -> list[torch.Tensor]:
    """Parameters and states after some steps that the CPU made and counted."""
    params = cases.parameters(dtype, SIZES)
    optimizer = kind(params, **options)
    cases.train(optimizer, params, steps)
    return cases.everything(optimizer, params)


CASES = [
    (torch.float32, {}),
    (torch.float32, {"state_dtype": "bfloat16", "amsgrad": True, "maximize": True, "seed": (1 << 64) - 3}),
    (torch.bfloat16, {"state_dtype": "int8", "stochastic_rounding": True, "max_norm": 0.5}),
    (torch.bfloat16, {"state_dtype": "bfloat16", "compensation": "kahan", "max_norm": 0.5, "seed": 5}),
    (torch.float16, {"eps": 1e-4, "weight_decay": 0.0}),
]


@pytest.mark.parametrize(("dtype", "options"), CASES, ids=lambda v: str(v).removeprefix("torch."))
@pytest.mark.parametrize("kind", [FusedAdamW, FusedAdam])
def test_steps_that_the_device_counts_have_the_bits_of_those_that_the_host_counts(graph, kind, dtype, options):
    expected = _plain(dtype, 5, kind, lr=1e-2, **options)
    params = cases.parameters(dtype, SIZES)
    optimizer = kind(params, lr=1e-2, capturable=True, **options)
    for step in range(5):
        _gradients(params, step)
        optimizer.step()
    cases.assert_equal_bits(cases.everything(optimizer, params), expected)
    assert optimizer.state[params[1]]["step"] == 5


@pytest.mark.parametrize(("dtype", "options"), CASES, ids=lambda v: str(v).removeprefix("torch."))
@pytest.mark.parametrize("new_gradients", [False, True], ids=["gradients stay", "gradients of the graph's own"])
def test_every_replay_is_a_step_of_its_own(graph, dtype, options, new_gradients, monkeypatch):
    expected = _plain(dtype, 6, lr=1e-2, **options)
    params = cases.parameters(dtype, SIZES)
    optimizer = FusedAdamW(params, lr=1e-2, capturable=True, **options)
    _gradients(params, 0)
    optimizer.step()
    before = cases.everything(optimizer, params)
    eager = [p.grad for p in params]
    if new_gradients:
        for p in params:
            p.grad = torch.zeros_like(p)
    with monkeypatch.context() as patch:
        patch.setattr(capture._Tables, "of", None)  # nothing is allocated
        with graph:
            optimizer.step()
    cases.assert_equal_bits(cases.everything(optimizer, params), before)
    wanted = ["prepare", *(["clip"] if "max_norm" in options else []), "step"]
    assert graph.names() == (["write"] if new_gradients else []) + wanted
    graphs = [p.grad for p in params]
    for step in range(1, 6):
        for p, own, other in zip(params, graphs, eager):
            p.grad = own if step != 3 else other  # in between a step outside of the graph
        _gradients(params, step)
        optimizer.step() if step == 3 else graph.replay()
    cases.assert_equal_bits(cases.everything(optimizer, params), expected)


def test_a_table_is_written_once_for_the_same_addresses_and_options(graph, monkeypatch):
    written = []
    plain = optim_cuda.Plan.write
    monkeypatch.setattr(optim_cuda.Plan, "write", lambda *arguments: written.append(1) or plain(*arguments))
    params = cases.parameters(torch.float32, SIZES)
    rate = torch.tensor(1e-2)
    optimizer = FusedAdamW(params, lr=rate, capturable=True)
    for step in range(4):
        _gradients(params, step)
        optimizer.step()
        rate.mul_(0.5)  # read on the device: no reason to write
    assert len(written) == 1
    optimizer.param_groups[0]["weight_decay"] = 0.5
    optimizer.step()
    params[0].grad = params[0].grad.clone()
    optimizer.step()
    assert len(written) == 3


@pytest.mark.parametrize("rate_dtype", [torch.float32, torch.float64], ids=str)
def test_a_learning_rate_on_the_device_is_read_at_every_step(graph, rate_dtype):
    results = []
    for capturable in (False, True):
        params = cases.parameters(torch.float32, SIZES)
        rate = torch.tensor(1e-2, dtype=rate_dtype)
        optimizer = FusedAdamW(params, lr=rate, capturable=capturable)
        for step in range(3):
            _gradients(params, step)
            optimizer.step()
            rate.mul_(0.5)
        results.append(cases.everything(optimizer, params))
    cases.assert_equal_bits(*results)


class _NotWaitedFor(torch.Tensor):
    """A number that the host must not read."""

    def __float__(self) -> float:
        raise AssertionError("the host waits for the device")

    item = __bool__ = tolist = __float__


def test_an_overflow_and_the_loss_scale_are_read_on_the_device(graph):
    expected = _plain(torch.float32, 2, lr=1e-2)
    params = cases.parameters(torch.float32, SIZES)
    optimizer = FusedAdamW(params, lr=1e-2, capturable=True)
    found = torch.zeros(1).as_subclass(_NotWaitedFor)
    optimizer.grad_scale, optimizer.found_inf = torch.full((), 4.0).as_subclass(_NotWaitedFor), found
    for step, overflow in ((0, False), (7, True), (1, False)):
        _gradients(params, step)
        for p in params:
            p.grad.mul_(4.0)
        found.fill_(float(overflow))
        before = cases.everything(optimizer, params)
        optimizer.step()
        if overflow:
            cases.assert_equal_bits(cases.everything(optimizer, params), before)
    cases.assert_equal_bits(cases.everything(optimizer, params), expected)


def test_clipping_takes_the_loss_scale_into_the_norm(graph):
    expected = _plain(torch.float32, 1, max_norm=0.25)
    params = cases.parameters(torch.float32, SIZES)
    optimizer = FusedAdamW(params, max_norm=0.25, capturable=True)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(8.0), torch.tensor(0.0)
    _gradients(params, 0)
    plain = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in params))
    for p in params:
        p.grad.mul_(8.0)
    optimizer.step()
    assert optimizer.grad_norm == pytest.approx(plain, rel=1e-12)  # fp64 sums in another order
    cases.assert_equal_bits(cases.everything(optimizer, params), expected)


def test_two_graphs_of_one_optimizer_do_not_share_what_changes(graph):
    expected = _plain(torch.float32, 4, lr=1e-2)
    params = cases.parameters(torch.float32, SIZES)
    optimizer = FusedAdamW(params, lr=1e-2, capturable=True)
    graphs = []
    for step in range(2):  # a step of its own before each capture
        for p in params:
            p.grad = None
        cases.give_gradients(params, step)
        optimizer.step()
        for p in params:
            p.grad = torch.zeros_like(p)
        graphs.append((Graph(), [p.grad for p in params]))
        with graphs[-1][0]:
            optimizer.step()
    for step, (made, grads) in zip((2, 3), reversed(graphs)):
        for p, grad in zip(params, grads):
            p.grad = grad
        _gradients(params, step)
        made.replay()
    cases.assert_equal_bits(cases.everything(optimizer, params), expected)


# ---------------------------------------------------------------------- coefficients
@pytest.mark.parametrize("decoupled", [True, False])
@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.0, 0.95), (0.5, 0.9999999)])
def test_the_devices_coefficients_have_the_hosts_bits(graph, betas, decoupled):
    counts = np.float32([1, 2, 3, 4, 7, 100, 999, 1000, 12_345, 1_000_000, 16_000_000])
    options = {"lr": 3e-4, "betas": betas, "eps": 1e-8, "weight_decay": 0.1, "maximize": decoupled, "seed": (1 << 63) + 5}
    expected, got = np.zeros(len(counts), ADAMW_DTYPE), np.zeros(len(counts), ADAMW_DTYPE)
    set_coefficients(expected, counts.astype(np.float64), options, 1.0 / float(np.float32(3.0)), decoupled)
    steps, scale = counts - 1, np.float32([3.0])
    rows = np.zeros(len(counts), OPTIONS_DTYPE)
    set_options(rows, steps.ctypes.data + 4 * np.arange(len(counts)), options, decoupled)
    cuda._cuda.prepare(got.ctypes.data, rows.ctypes.data, len(counts), scale.ctypes.data, 0, 0, 0)
    assert got.tobytes() == expected.tobytes()
    assert (steps == counts).all()


def test_powers_are_those_of_exact_arithmetic_up_to_the_stated_error():
    for base in (0.9, 0.999, 0.5, 0.0):
        for count in (1, 2, 3, 10, 31, 1000, 4095):
            got, exact = power(base, count), Fraction(base) ** count
            assert abs(Fraction(got) - exact) <= exact * (2 * count + 1) * Fraction(1, 2**53) + Fraction(1, 2**1074)
    assert [power(0.5, 1), power(0.5, 10)] == [0.5, 2.0**-10]


# ---------------------------------------------------------------------- refusals and state dicts
def test_a_capture_before_any_step_is_refused_in_one_line(graph):
    params = cases.parameters(torch.float32, SIZES)
    optimizer = FusedAdamW(params, capturable=True)
    _gradients(params, 0)
    with graph, pytest.raises(BackendError, match=r"are not on the device yet: call step\(\) once outside") as said:
        optimizer.step()
    assert "\n" not in str(said.value)
    optimizer.step()
    kept = [[p.grad for p in params]]
    for p in params:
        p.grad = p.grad.clone()
    kept.append([p.grad for p in params])
    with graph:
        optimizer.step()
    for p in params:
        p.grad = p.grad.clone()
    with graph, pytest.raises(BackendError, match=r"no memory for the tables .* call step\(\) once outside"):
        optimizer.step()


def test_what_does_not_go_with_it_is_refused_by_name(graph, monkeypatch):
    params = cases.parameters(torch.float32, SIZES)
    for options, named in (
        ({"release_gradients": True}, "release_gradients=True"),
        ({"offload": True}, "offload=True"),
        ({"max_norm": 1.0, "clip": "bucket"}, "clip='bucket'"),
    ):
        with pytest.raises(ArgumentError, match=f"capturable=True and {named} exclude each other"):
            FusedAdamW(params, capturable=True, **options)
    with pytest.raises(ArgumentError, match=r"capturable must be the same in all groups, got both"):
        FusedAdamW([{"params": params[:1], "capturable": True}, {"params": params[1:]}])
    with pytest.raises(ArgumentError, match=r"lr with capturable=True must be .* got torch.bfloat16 on cpu"):
        FusedAdamW(params, lr=torch.tensor(1e-3, dtype=torch.bfloat16), capturable=True)
    monkeypatch.setattr(kernels, "captures", lambda device: False)
    optimizer = FusedAdamW(params, capturable=True)
    _gradients(params, 0)
    before = cases.everything(optimizer, params)[: len(params)]
    with pytest.raises(ArgumentError, match=r"expected parameters on GPUs .* got parameter 0 on cpu: use capturable=False"):
        optimizer.step()
    cases.assert_equal_bits([p.detach() for p in params], before)


def test_a_state_goes_to_a_capturable_optimizer_and_back(graph):
    expected = _plain(torch.float32, 4)
    params = cases.parameters(torch.float32, SIZES)
    optimizers = [FusedAdamW(params), FusedAdamW(params, capturable=True), FusedAdamW(params)]
    for step, (before, optimizer) in enumerate(zip([None, *optimizers], optimizers)):
        if before is not None:
            optimizer.load_state_dict(before.state_dict())
        assert optimizer.param_groups[0]["capturable"] == (step == 1)
        _gradients(params, step)
        optimizer.step()
    _gradients(params, 3)
    optimizers[2].step()
    cases.assert_equal_bits(cases.everything(optimizers[2], params), expected)
    assert optimizers[1].to_torch_state_dict()["param_groups"][0]["capturable"] is True


def test_a_copy_counts_on(graph):
    params = cases.parameters(torch.float32, SIZES)
    optimizer = FusedAdamW(params, capturable=True)
    _gradients(params, 0)
    optimizer.step()
    twin = copy.deepcopy(optimizer)
    twins = twin.param_groups[0]["params"]
    _gradients(params, 1)
    for p, q in zip(params, twins):
        q.grad = p.grad.clone()
    optimizer.step()
    twin.step()
    cases.assert_equal_bits(cases.everything(optimizer, params), cases.everything(twin, twins))
    assert twin.state[twins[0]]["step"] == 2
