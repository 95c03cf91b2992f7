"""DTensor parameters: FSDP2 over processes, each stepping its own shard."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from sff_fast.errors import ArgumentError
from sff_fast.optim import shards
from sff_fast.optim.fused_adamw import FusedAdamW

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="needs hardware: torch without gloo"
)


def net() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(20, 48), torch.nn.Tanh(), torch.nn.Linear(48, 9), torch.nn.LayerNorm(9))


def batch(step: int) -> torch.Tensor:
    return torch.randn(6, 20, generator=torch.Generator().manual_seed(step))


def train(
    model: torch.nn.Module, optimizer: FusedAdamW, steps: int, windows: Callable[[int], torch.Tensor] = batch
) -> list[float]:
    norms = []
    for step in range(steps):
        optimizer.zero_grad()
        optimizer.backward(lambda step=step: (model(windows(step)) - 1).square().mean())
        optimizer.step()
        norms.append(optimizer.grad_norm)
    return norms


def leave() -> None:
    """Leave the process group once nothing refers to it: gloo's threads must not outlive it into the interpreter's end."""
    gc.collect()
    dist.barrier()
    dist.destroy_process_group()


def sharded(rank: int, world: int, rendezvous: str, out: str) -> None:
    """One process: FSDP2 with every way of stepping, the whole parameters written by process 0."""
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    mesh = dist.device_mesh.init_device_mesh("cpu", (world,))
    results = {}
    for name, options in VARIANTS.items():
        model = net()
        for layer in (model[0], model[2]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
        optimizer = FusedAdamW(model.named_parameters(), lr=1e-2, **options)
        norms = train(model, optimizer, 3)
        again = FusedAdamW(model.named_parameters(), lr=1e-2, **options)
        again.load_state_dict(optimizer.state_dict())
        peer = torch.optim.AdamW(model.parameters())
        peer.load_state_dict(again.to_torch_state_dict())
        moments = [peer.state[p]["exp_avg"].full_tensor() for p in model.parameters()]
        parameters = [p.full_tensor().detach() for p in model.parameters()]
        labels = [None] * world
        dist.all_gather_object(labels, [shards.label_of("w", p) for p in model.parameters()])
        results[name] = {"parameters": parameters, "moments": moments, "norms": norms, "labels": labels}
        del model, optimizer, again, peer
    if rank == 0:
        torch.save(results, out)
    leave()


def replicated(rank: int, world: int, rendezvous: str, out: str) -> None:
    """One process of DDP, each with a batch of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    results = {}
    for name, options in VARIANTS.items():
        model = torch.nn.parallel.DistributedDataParallel(net())
        optimizer = FusedAdamW(model.module.named_parameters(), lr=1e-2, **options)
        norms = train(model, optimizer, 3, lambda step: batch(step)[3 * rank : 3 * rank + 3])
        results[name] = {"parameters": [p.detach() for p in model.module.parameters()], "norms": norms}
        del model, optimizer
    if rank == 1:
        torch.save(results, out)
    leave()


@pytest.mark.slow
def test_ddp_over_two_processes_gives_the_trajectory_of_one_process_on_both_batches(tmp_path: Path) -> None:
    out = tmp_path / "result.pt"
    torch.multiprocessing.spawn(replicated, (2, str(tmp_path / "rendezvous"), str(out)), nprocs=2)
    results = torch.load(out)
    for name, options in VARIANTS.items():
        model = net()
        norms = train(model, FusedAdamW(model.named_parameters(), lr=1e-2, **options), 3)
        for p, other in zip(model.parameters(), results[name]["parameters"], strict=True):
            # Means over three windows and over two processes are rounded elsewhere than one over six, which Adam turns into
            # more where a gradient is nearly 0; a hundredth of a learning rate is the allowance.
            torch.testing.assert_close(other, p.detach(), rtol=1e-4, atol=1e-4 if name != "int8" else 1e-2)
        if "clipped" in name:
            assert results[name]["norms"] == pytest.approx(norms, rel=1e-4)


VARIANTS = {
    "plain": {},
    "clipped": {"max_norm": 0.05},
    "released": {"release_gradients": True},
    "clipped and released": {"max_norm": 0.05, "release_gradients": True},
    "int8": {"state_dtype": "int8"},
}


@pytest.mark.slow
def test_fsdp2_over_two_processes_gives_the_trajectory_of_one_process(tmp_path: Path) -> None:
    out = tmp_path / "result.pt"
    torch.multiprocessing.spawn(sharded, (2, str(tmp_path / "rendezvous"), str(out)), nprocs=2)
    results = torch.load(out)
    for name, options in VARIANTS.items():
        model = net()
        optimizer = FusedAdamW(model.named_parameters(), lr=1e-2, **options)
        norms = train(model, optimizer, 3)
        # Shards of one parameter have random bits of their own.
        first, second = results[name]["labels"]
        assert not set(first) & set(second)
        assert first[0] == "w[0,0]"
        assert second[0] == "w[24,0]"
        # Both processes see the same batch; the mean of two equal gradients may differ in the last bit. Blocks of int8
        # states end elsewhere, so that single elements move by up to a learning rate otherwise.
        tolerance = {"rtol": 1e-5, "atol": 1e-6} if name != "int8" else {"rtol": 0, "atol": 1e-2}
        for p, whole, moment in zip(model.parameters(), results[name]["parameters"], results[name]["moments"], strict=True):
            torch.testing.assert_close(whole, p.detach(), **tolerance)
            assert float((whole - p.detach()).abs().mean()) < 3e-4
            if name != "int8":
                torch.testing.assert_close(moment, optimizer.state[p]["exp_avg"], rtol=1e-4, atol=1e-7)
        if "clipped" in name:
            assert results[name]["norms"] == pytest.approx(norms, rel=1e-5)


@pytest.fixture
def mesh() -> Iterator[object]:
    """A mesh of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        yield dist.device_mesh.init_device_mesh("cpu", (1,))
        dist.destroy_process_group()


def test_a_dtensor_is_stepped_as_the_tensor_that_it_holds(mesh: object) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    plain = [torch.nn.Parameter(torch.arange(1.0, 601).reshape(30, 20) / 100), torch.nn.Parameter(torch.ones(7))]
    spread = [torch.nn.Parameter(distribute_tensor(p.detach().clone(), mesh, [Shard(0)])) for p in plain]
    ordinary = [torch.nn.Parameter(torch.ones(5)) for _ in range(2)]  # in both, with a gradient that counts in the norm
    versions = [(p._version, p.to_local()._version) for p in spread]
    optimizers = [
        FusedAdamW([*params, other], state_dtype="int8", max_norm=1.0) for params, other in zip((plain, spread), ordinary)
    ]
    gradients = [torch.sin(p.detach()) for p in plain]
    for step in range(3):
        for p, q, gradient in zip(plain, spread, gradients):
            p.grad = gradient * (step + 1)
            q.grad = distribute_tensor(gradient * (step + 1), mesh, [Shard(0)])
        for other in ordinary:
            other.grad = torch.full((5,), 7.0 * (step + 1))
        for optimizer in optimizers:
            optimizer.step()
    assert optimizers[0].grad_norm == pytest.approx(optimizers[1].grad_norm, rel=1e-12)
    assert torch.equal(*ordinary)
    for p, q, (version, of_shard) in zip(plain, spread, versions):
        assert torch.equal(p, q.full_tensor())
        assert q._version > version
        assert q._local_tensor._version > of_shard
        assert torch.equal(optimizers[0].state[p]["exp_avg"], optimizers[1].state[q]["exp_avg"])


def test_a_gradient_that_is_spread_otherwise_is_refused(mesh: object) -> None:
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    p = torch.nn.Parameter(distribute_tensor(torch.ones(4, 4), mesh, [Shard(0)]))
    p.grad = distribute_tensor(torch.ones(4, 4), mesh, [Replicate()])
    with pytest.raises(ArgumentError, match="redistribute it before the step"):
        FusedAdamW([p]).step()
