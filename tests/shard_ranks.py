"""What the ranks of test_shards_gloo.py run: one group for all cases, each case checked by gathering."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from kernel_cases import bits
from sharding import PLANS, S0, S1, R, mesh_of, pretrained, split
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module

import sff_fast

WORLD = 4
LAYOUTS = {
    "one axis": ((4,), (S0,)),
    "the other axis": ((4,), (S1,)),
    "repeated": ((4,), (R,)),
    "hybrid": ((2, 2), (R, S0)),
    "hybrid transposed": ((2, 2), (S0, R)),
    "both axes": ((2, 2), (S0, S1)),
    "one axis twice": ((2, 2), (S0, S0)),
    "two of the ranks": ((2,), (S0,)),
}
CASES: dict[str, Callable[[Path], None]] = {}


def case(function: Callable[[Path], None]) -> Callable[[Path], None]:
    """Register what all ranks run."""
    CASES[function.__name__.replace("_", " ")] = function
    return function


@contextmanager
def alone(folder: Path, label: str) -> Iterator[None]:
    """One rank at a time: whatever communicates inside waits for the others until the group's time is over."""
    rank, label = dist.get_rank(), f"{folder.name} {label}"
    store = dist.distributed_c10d._get_default_store()
    if rank:
        store.wait([f"{label}/{rank - 1}"], timedelta(seconds=60))
    try:
        yield
    finally:
        store.set(f"{label}/{rank}", "done")


def agree(model: nn.Module, expected: nn.Module) -> None:
    """Every parameter, gathered, has the bits of the unsharded model."""
    for name, q in expected.named_parameters():
        p = model.get_parameter(name)
        p = p.full_tensor() if isinstance(p, DTensor) else p
        assert torch.equal(bits(p.detach()), bits(q.detach())), name


def smoothed(width: int, dtype: torch.dtype = torch.float32, rounding: str = "nearest") -> nn.Module:
    model = pretrained(width, dtype)
    sff_fast.smooth_(model, PLANS[width], seed=3, rounding=rounding)
    return model


def scattered(model: nn.Module, mesh: DeviceMesh, placements: tuple) -> nn.Module:
    """Shards of what the mesh's first rank has; the other ranks' values are not looked at."""
    source = int(mesh.mesh.flatten()[0])
    for module in model.modules():
        for name, p in list(module._parameters.items()):
            if p is None:
                continue
            if dist.get_rank() != source:
                p = torch.zeros_like(p)
            fitting = [q if getattr(q, "dim", -1) < p.ndim else R for q in placements]
            module._parameters[name] = nn.Parameter(distribute_tensor(p.detach(), mesh, fitting), requires_grad=p.requires_grad)
    return model


def _layout(label: str) -> Callable[[Path], None]:
    def run(folder: Path) -> None:
        shape, placements = LAYOUTS[label]
        mesh = mesh_of(shape) if shape != (2,) else DeviceMesh("cpu", [1, 3])
        for width, dtype, rounding in ((7, torch.float32, "nearest"), (8, torch.bfloat16, "stochastic")):
            model = scattered(pretrained(width, dtype), mesh, placements)
            with alone(folder, f"{label} {width}"):
                sff_fast.smooth_(model, PLANS[width], seed=3, rounding=rounding)
            if mesh.get_coordinate() is not None:
                agree(model, smoothed(width, dtype, rounding))

    return run


CASES.update({f"layout: {label}": _layout(label) for label in LAYOUTS})


# ---------------------------------------------------------------------- FSDP2, tensor parallelism
class Block(nn.Module):
    """What the usual tensor-parallel plan shards; 11 rows divide by nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.norm = nn.LayerNorm(6)
        self.up = nn.Linear(6, 14)
        self.down = nn.Linear(14, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.relu(self.up(self.norm(self.embed(x)))))


def block() -> Block:
    torch.manual_seed(11)
    return Block()


PLAN = sff_fast.trace(Block)
TP = {"up": ColwiseParallel(), "down": RowwiseParallel(), "embed": RowwiseParallel(), "norm": SequenceParallel()}


def smoothed_block() -> Block:
    model = block()
    sff_fast.smooth_(model, PLAN, seed=6)
    return model


def wrap(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    for part in (model.embed, model.up, model.down):
        fully_shard(part, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def on_meta(mesh: DeviceMesh, tensor_parallel: DeviceMesh | None = None) -> nn.Module:
    """Shards without values: no rank ever holds the whole model."""
    with torch.device("meta"):
        model = Block()
    if tensor_parallel is not None:
        parallelize_module(model, tensor_parallel, {k: v for k, v in TP.items() if k != "norm"})
    return wrap(model, mesh).to_empty(device="cpu")


def whole_file(folder: Path) -> Path:
    """A checkpoint of the unsharded model, in the format of torch.distributed.checkpoint."""
    path = folder / "whole"
    dcp.save(block().state_dict(), checkpoint_id=path)
    return path


def load(model: nn.Module, path: Path) -> None:
    state = get_model_state_dict(model)
    dcp.load(state, checkpoint_id=path)
    set_model_state_dict(model, state)


@case
def meta_device_then_sharded_load_then_smoothing(folder: Path) -> None:
    path = whole_file(folder)
    grid = mesh_of((2, 2))
    for label, mesh, tensor_parallel in (
        ("fsdp", mesh_of((4,)), None),
        ("hsdp", grid, None),
        ("fsdp and tp", grid["d0"], grid["d1"]),
    ):
        model = on_meta(mesh, tensor_parallel)
        load(model, path)
        with alone(folder, label):
            sff_fast.smooth_(model, PLAN, seed=6)
        agree(model, smoothed_block())


@case
def meta_device_then_filling_draws_the_sample_of_the_plan(folder: Path) -> None:
    model = on_meta(mesh_of((4,)))
    with alone(folder, "fill"):
        sff_fast.fill_(model, PLAN, seed=6)
    expected = block()
    sff_fast.fill_(expected, PLAN, seed=6)
    agree(model, expected)


@case
def a_broadcast_state_and_training_after_smoothing(folder: Path) -> None:
    model = on_meta(mesh_of((4,)))
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, block().state_dict() if dist.get_rank() == 0 else {}, options=options)
    model(torch.tensor([1, 2]))  # leaves the root gathered
    with alone(folder, "trained"):
        sff_fast.smooth_(model, PLAN, seed=6)
    expected = smoothed_block()
    agree(model, expected)
    out, other = model(torch.tensor([1, 2])), expected(torch.tensor([1, 2]))
    assert torch.equal(out, other)
    out.square().mean().backward()
    other.square().mean().backward()
    for name, q in expected.named_parameters():
        # the mean over four equal gradients adds and divides by powers of two: no rounding
        assert torch.equal(model.get_parameter(name).grad.full_tensor(), q.grad), name


@case
def tensor_parallel_plans(folder: Path) -> None:
    for label, shape in (("four", (4,)), ("two", (2, 2))):
        mesh = mesh_of(shape)
        model = parallelize_module(block(), mesh if shape == (4,) else mesh["d1"], TP)
        with alone(folder, label):
            sff_fast.smooth_(model, PLAN, seed=6)
        agree(model, smoothed_block())


@case
def distributed_data_parallel(folder: Path) -> None:
    model = nn.parallel.DistributedDataParallel(block())
    with alone(folder, "ddp"):
        sff_fast.smooth_(model, PLAN, seed=6)
    agree(model.module, smoothed_block())


@case
def pipeline_stages(folder: Path) -> None:
    from torch.distributed.pipelining import SplitPoint, pipeline

    pipe = pipeline(
        block(), mb_args=(torch.tensor([1, 2]),), split_spec={"up": SplitPoint.BEGINNING, "down": SplitPoint.BEGINNING}
    )
    assert pipe.num_stages == 3
    stage = pipe.get_stage_module(min(dist.get_rank(), 2))
    with alone(folder, "stage"):
        sff_fast.smooth_(stage, PLAN, seed=6, subset=True)
    expected = smoothed_block()
    names = [name for name, _ in stage.named_parameters()]
    assert names
    for name in names:
        assert torch.equal(stage.get_parameter(name), expected.get_parameter(name)), name


# ---------------------------------------------------------------------- memory
def _peak() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))


@case
def a_rank_needs_at_most_a_mebibyte_beside_its_shards(folder: Path) -> None:
    width = 3001  # 36 MB a matrix, 9 MB a shard
    plan = sff_fast.trace(lambda: nn.Sequential(nn.Linear(width, width), nn.Linear(width, width)))
    for label, placements in (("rows", (S0,)), ("columns", (S1,))):
        model = nn.Sequential(nn.Linear(width, width), nn.Linear(width, width))
        mesh = mesh_of((4,))
        for module in model:
            module.weight = nn.Parameter(split(module.weight, mesh, placements))
        with alone(folder, label):
            warm = pretrained(7)
            sff_fast.smooth_(warm, PLANS[7])
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
            before = _peak()
            sff_fast.smooth_(model, plan)
            grown = _peak() - before
        assert grown <= 1 << 20, (label, grown)


# ---------------------------------------------------------------------- running
def serve(rank: int, folder: str) -> None:
    """Run every case and write what failed to ``rank-N.json``."""
    torch.set_num_threads(1)
    path = Path(folder)
    dist.init_process_group(
        "gloo", init_method=f"file://{path / 'store'}", rank=rank, world_size=WORLD, timeout=timedelta(seconds=60)
    )
    failed = {}
    for label, run in CASES.items():
        own = path / label.replace(" ", "-").replace(":", "")
        own.mkdir(exist_ok=True)
        torch.manual_seed(0)
        try:
            run(own)
            dist.barrier()
        except Exception:  # whatever went wrong is the answer to the test of this case
            failed[label] = traceback.format_exc()
            break  # the others may be waiting in a collective: this rank cannot go on with them
    (path / f"rank-{rank}.json").write_text(json.dumps(failed))
    dist.destroy_process_group()
