"""States and step on the CPU: the logic, with parameters that are on the CPU too, and a device that is only pretended."""

from __future__ import annotations

import copy

import optim_cases as cases
import pytest
import torch

from sff_fast.optim.fused_adamw import FusedAdamW
from sff_fast.optim.offload import Pipe

SIZES = (1000, 3, 70_000, 12, 5000)


def parameters(dtype: torch.dtype) -> list[torch.nn.Parameter]:
    generator = torch.Generator().manual_seed(4)
    return [torch.nn.Parameter(torch.randn(n, generator=generator).to(dtype)) for n in SIZES]


def train(params: list[torch.nn.Parameter], optimizer: FusedAdamW, steps: int, skip: int | None = None) -> None:
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        for i, p in enumerate(params):
            grad = torch.randn(p.shape, generator=generator).to(p.dtype)
            p.grad = None if i == skip else grad
        optimizer.step()


@pytest.mark.parametrize("skip", [None, 2])
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.float32, {"state_dtype": "int8", "maximize": True}),
        (torch.bfloat16, {"state_dtype": "int8", "stochastic_rounding": True}),
        (torch.bfloat16, {"state_dtype": "bfloat16", "compensation": "kahan"}),
    ],
)
@pytest.mark.parametrize("bucket_bytes", [1, 30_000, 1 << 30])
def test_offloading_gives_the_bits_of_stepping_in_place(
    dtype: torch.dtype, options: dict[str, object], bucket_bytes: int, skip: int | None
) -> None:
    results = []
    for offload in (False, True):
        params = parameters(dtype)
        optimizer = FusedAdamW(params, lr=1e-2, bucket_bytes=bucket_bytes, offload=offload, **options)
        train(params, optimizer, 3, skip)
        results.append(cases.everything(optimizer, params))
    cases.assert_equal_bits(*results)


def test_parameters_that_somebody_writes_between_steps_are_taken_over() -> None:
    results = []
    for offload in (False, True):
        params = parameters(torch.float32)
        optimizer = FusedAdamW(params, lr=1e-2, offload=offload)
        train(params, optimizer, 2)
        with torch.no_grad():
            params[2].mul_(0.5)
        params[0].data = params[0].data.clone() + 1
        train(params, optimizer, 2)
        results.append(cases.everything(optimizer, params))
    cases.assert_equal_bits(*results)


def test_a_step_bumps_versions_and_copies_what_it_changed_alone() -> None:
    params = parameters(torch.float32)
    optimizer = FusedAdamW(params, offload=True)
    train(params, optimizer, 1)
    versions = [p._version for p in params]
    copies = [c.clone() for bucket in optimizer._buckets() for c in bucket.copies]
    train(params, optimizer, 1, skip=1)
    for i, (p, version, before) in enumerate(zip(params, versions, copies)):
        assert (p._version > version) == (i != 1)
        assert torch.equal(p, before) == (i == 1)


def test_clipping_release_and_state_dicts_work_offloaded() -> None:
    results = []
    for offload in (False, True):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(30, 40), torch.nn.ReLU(), torch.nn.Linear(40, 5))
        options = {"lr": 1e-2, "release_gradients": True, "max_norm": 0.1, "bucket_bytes": 1000}
        optimizer = FusedAdamW(model.named_parameters(), offload=offload, **options)
        for step in range(4):
            x = torch.randn(7, 30, generator=torch.Generator().manual_seed(step))
            optimizer.backward(lambda model=model, x=x: model(x).square().mean())
            optimizer.step()
            if step == 1:
                state = copy.deepcopy(optimizer.state_dict())
                optimizer.stop_releasing()
                optimizer = FusedAdamW(model.named_parameters(), offload=offload, **options)
                optimizer.load_state_dict(state)
        results.append([p.detach() for p in model.parameters()])
    for a, b in zip(*results, strict=True):  # the norm is summed in another order
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_the_next_buckets_gradients_are_fetched_before_a_bucket_is_stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    events = []
    fetch, step = Pipe._fetch, Pipe._step
    monkeypatch.setattr(Pipe, "_fetch", lambda self, part, slot: events.append(f"fetch {slot}") or fetch(self, part, slot))
    monkeypatch.setattr(Pipe, "_step", staticmethod(lambda part, grads: events.append("step") or step(part, grads)))
    params = parameters(torch.float32)[:3]
    train(params, FusedAdamW(params, bucket_bytes=1, offload=True), 1)
    assert events == ["fetch 0", "fetch 1", "step", "fetch 0", "step", "step"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs hardware: a CUDA device")
def test_a_cuda_model_is_stepped_on_the_cpu() -> None:
    results = []
    for device, offload in (("cpu", False), ("cuda", True)):
        params = [torch.nn.Parameter(p.detach().to(device)) for p in parameters(torch.float32)]
        optimizer = FusedAdamW(params, lr=1e-2, bucket_bytes=30_000, offload=offload)
        generator = torch.Generator().manual_seed(5)
        for _ in range(3):
            for p in params:
                p.grad = torch.randn(p.shape, generator=generator).to(device)
            optimizer.step()
        assert all(values.device.type == "cpu" for state in optimizer.state.values() for values in state.values())
        results.append([p.detach().cpu() for p in params])
    cases.assert_equal_bits(*results)
