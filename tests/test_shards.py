"""Sharded parameters: which elements a rank holds, and that smoothing fills them with the unsharded model's bits.

Groups of pretended ranks, one at a time in this process; test_shards_gloo.py has real ones.
"""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import bits
from sharding import MESHES, PLANS, S0, S1, R, mesh_of, pretrained, rank_of, shard_, split
from test_table import CASES, N
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Shard, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

import sff_fast
from sff_fast import shards, table
from sff_fast.backends import cpu
from sff_fast.errors import PlanError
from sff_fast.plan import ParameterPlan, Segment


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(bits(a), bits(b))


# ---------------------------------------------------------------------- which elements
@st.composite
def layouts(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], tuple]:
    shape = tuple(draw(st.lists(st.integers(0, 11), min_size=1, max_size=3)))
    mesh = tuple(draw(st.lists(st.integers(1, 4), min_size=1, max_size=3)))
    placements = []
    for _ in mesh:
        axis = draw(st.integers(-1, len(shape) - 1))
        factor = draw(st.sampled_from([0, 0, 2, 3]))
        placements.append(R if axis < 0 else _StridedShard(axis, split_factor=factor) if factor else Shard(axis))
    return shape, mesh, tuple(placements)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(layouts())
def test_the_pieces_of_every_rank_hold_the_elements_that_torch_puts_there(layout):
    shape, mesh_shape, placements = layout
    world = math.prod(mesh_shape)
    numbers = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    for rank in range(world):
        with rank_of(rank, world):
            held = split(numbers, mesh_of(mesh_shape), placements)
            try:
                found = shards.pieces("w", held)
            except PlanError as error:
                if "do not tell in which order" not in str(error):
                    raise
                return
            seen = 0
            for piece in found:
                where = piece.region or tuple((0, n) for n in shape)
                assert torch.equal(piece.tensor, numbers[tuple(slice(a, b) for a, b in where)])
                seen += piece.tensor.numel()
            assert seen == held.to_local().numel()
            plain = not any(isinstance(p, _StridedShard) for p in placements)
            if plain and found:
                _, offset = compute_local_shape_and_global_offset(shape, held.device_mesh, placements)
                begin = tuple(a for a, _ in found[0].region or ((0, n) for n in shape))
                assert len(found) == 1
                assert begin == tuple(offset)


def test_pieces_are_views_of_the_ranks_memory():
    with rank_of(1, 3):
        held = split(torch.zeros(9, 4), mesh_of((3,)), (_StridedShard(0, split_factor=2),))
        found = shards.pieces("w", held)
        # chunks of 5 and 4 rows, of each the middle third
        assert [piece.region for piece in found] == [((2, 4), (0, 4)), ((7, 9), (0, 4))]
        for piece in found:
            piece.tensor.fill_(1.0)
        assert (held.to_local() == 1).all()


def _reversed(tensor: torch.Tensor) -> torch.Tensor:
    order = tuple(reversed(range(tensor.ndim)))
    return tensor.permute(order).contiguous().permute(order)


@pytest.mark.parametrize("label", CASES)
@pytest.mark.parametrize("seed", range(3))
def test_boxes_of_a_region_are_the_boxes_of_the_whole_inside_it(label, seed):
    shape, segments = CASES[label]
    parameter = ParameterPlan("w", shape, torch.float32, tuple(segments))
    old = torch.linspace(-1, 1, math.prod(shape)).reshape(shape)
    whole = old.clone()
    cpu.run(table.build([(parameter, whole, 0.5, 0.5)], None, 3))
    generator = np.random.default_rng(seed)
    low = [int(generator.integers(0, n)) for n in shape]
    region = tuple((a, int(generator.integers(a + 1, n + 1))) for a, n in zip(low, shape))
    inside = tuple(slice(a, b) for a, b in region)
    for layout in (torch.clone, lambda t: torch.stack([t, t], -1)[..., 0], _reversed):
        part = layout(old[inside])
        cpu.run(table.build([table.Pair(parameter, part, 0.5, 0.5, region)], None, 3))
        assert same(part, whole[inside]), region


def test_a_region_of_a_draw_costs_one_task_whatever_the_axis():
    parameter = ParameterPlan("w", (1000, 64), torch.float32, (Segment.whole(N, 64000, "w"),))
    for region in (((10, 20), (0, 64)), ((0, 1000), (7, 9)), ((3, 900), (1, 60))):
        part = torch.zeros([b - a for a, b in region])
        assert len(table.build([table.Pair(parameter, part, 0.5, 0.5, region)], None, 0)) == 1


# ---------------------------------------------------------------------- smoothing
@pytest.mark.parametrize(("mesh_shape", "placements"), MESHES, ids=str)
@pytest.mark.parametrize("width", PLANS)
def test_every_rank_has_its_part_of_the_unsharded_model(mesh_shape, placements, width):
    expected = pretrained(width)
    sff_fast.smooth_(expected, PLANS[width], seed=5)
    for rank in range(math.prod(mesh_shape)):
        with rank_of(rank, math.prod(mesh_shape)):
            mesh = mesh_of(mesh_shape)
            model = shard_(pretrained(width), mesh, placements)
            report = sff_fast.smooth_(model, PLANS[width], seed=5)
            assert report.elements == sum(p.numel() for p in expected.parameters())
            for (name, p), q in zip(model.named_parameters(), expected.parameters()):
                assert same(p.to_local(), split(q, mesh, p.placements).to_local()), (rank, name)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_rounding_backends_patterns_and_fill_agree_with_the_unsharded_model(rounding, backend):
    arguments = {"seed": 2, "rounding": rounding, "backend": backend}
    expected, filled = pretrained(7, torch.bfloat16), pretrained(7, torch.bfloat16)
    sff_fast.smooth_(expected, PLANS[7], alpha={"linear.*": 0.5, "qkv": 0.9, "steps": 0.2}, **arguments)
    sff_fast.fill_(filled, PLANS[7], **arguments)
    for rank in range(4):
        with rank_of(rank, 4):
            mesh = mesh_of((2, 2))
            model = shard_(pretrained(7, torch.bfloat16), mesh, (S0, S1))
            sff_fast.smooth_(model, PLANS[7], alpha={"linear.*": 0.5, "qkv": 0.9, "steps": 0.2}, **arguments)
            for (name, p), q in zip(model.named_parameters(), expected.parameters()):
                assert same(p.to_local(), split(q, mesh, p.placements).to_local()), name
            sff_fast.fill_(model, PLANS[7], **arguments)
            for (name, p), q in zip(model.named_parameters(), filled.parameters()):
                assert same(p.to_local(), split(q, mesh, p.placements).to_local()), name


def test_torchs_own_draws_are_replayed_on_shards():
    expected = pretrained(7)
    without = {"orthogonal": 1.0, "*": 0.7}  # a decomposition is no draw
    sff_fast.smooth_(expected, PLANS[7], alpha=without, rng="torch", seed=8)
    for rank in range(4):
        with rank_of(rank, 4):
            mesh = mesh_of((2, 2))
            model = shard_(pretrained(7), mesh, (_StridedShard(0, split_factor=2), S0))
            sff_fast.smooth_(model, PLANS[7], alpha=without, rng="torch", seed=8)
            for (name, p), q in zip(model.named_parameters(), expected.parameters()):
                assert same(p.to_local(), split(q, mesh, p.placements).to_local()), name


class Block(nn.Module):
    """What the usual tensor-parallel plan shards."""

    def __init__(self, width: int, vocabulary: int = 7) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 2 * width - 1)
        self.down = nn.Linear(2 * width - 1, width)


TP = {"embed": RowwiseParallel(), "norm": SequenceParallel(), "up": ColwiseParallel(), "down": RowwiseParallel()}


def _cut_by_hand(tensor: torch.Tensor, tp: tuple[int, int, int] | None, dp: tuple[int, int]) -> torch.Tensor:
    """Tensor parallelism first, then FSDP along axis 0, by torch.chunk."""
    parts = [tensor]
    if tp is not None:
        axis, count, k = tp
        parts = list(tensor.chunk(count, axis))
        tensor = parts[k] if k < len(parts) else tensor.narrow(axis, 0, 0)
    count, k = dp
    parts = list(tensor.chunk(count))
    return parts[k] if k < len(parts) else tensor[:0]


@pytest.mark.parametrize(("dp", "tp"), [(2, 2), (3, 2), (2, 3), (1, 4), (4, 1)])
def test_fully_shard_over_a_tensor_parallel_plan_whatever_the_sizes(dp, tp):
    plan = sff_fast.trace(lambda: Block(5))
    expected = Block(5)
    initial = {name: p.detach().clone() for name, p in expected.named_parameters()}
    sff_fast.smooth_(expected, plan, seed=4)
    sharded_axis = {"embed.weight": 0, "up.weight": 0, "up.bias": 0, "down.weight": 1}
    for rank in range(dp * tp):
        with rank_of(rank, dp * tp):
            mesh = mesh_of((dp, tp))
            model = Block(5)
            with torch.no_grad():
                for name, p in model.named_parameters():
                    p.copy_(initial[name])
            parallelize_module(model, mesh["d1"], TP, src_data_rank=None)
            for module in (model.embed, model.up, model.down):
                fully_shard(module, mesh=mesh["d0"])
            fully_shard(model, mesh=mesh["d0"])
            sff_fast.smooth_(model, plan, seed=4)
            for name, p in model.named_parameters():
                axis = sharded_axis.get(name)
                part = _cut_by_hand(
                    expected.get_parameter(name), None if axis is None else (axis, tp, rank % tp), (dp, rank // tp)
                )
                assert same(p.to_local(), part) or part.numel() == p.to_local().numel() == 0, (rank, name, p.placements)


def test_sizes_whose_order_of_sharding_cannot_be_told_are_refused_on_every_rank():
    # 27 rows over tensor parallelism of 4 and then 3, or the other way round: row 20 or row 26 on one rank
    plan = sff_fast.trace(lambda: nn.Linear(2, 27, bias=False))
    for rank in (0, 10):
        with rank_of(rank, 12):
            model = nn.Linear(2, 27, bias=False)
            parallelize_module(model, mesh_of((3, 4))["d1"], ColwiseParallel(), src_data_rank=None)
            fully_shard(model, mesh=mesh_of((3, 4))["d0"])
            with pytest.raises(PlanError, match=r"'weight' of shape \(27, 2\) is sharded unevenly.*do not tell in which order"):
                sff_fast.smooth_(model, plan)


def test_gathered_parameters_of_fsdp_are_put_back_before_smoothing():
    # the group of one rank is the only pretended one that really gathers
    expected, plan = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), sff_fast.trace(lambda: _two())
    model = _two()
    model.load_state_dict(expected.state_dict())
    with rank_of(0, 1):
        fully_shard(model[0])
        fully_shard(model)
        model(torch.ones(1, 3))
        assert not isinstance(model[1].weight, DTensor)  # the root stays gathered after a forward pass
        sff_fast.smooth_(model, plan, seed=1)
        sff_fast.smooth_(expected, plan, seed=1)
        for p, q in zip(model.parameters(), expected.parameters()):
            assert isinstance(p, DTensor)
            assert same(p.to_local(), q)
        assert torch.equal(model(torch.ones(1, 3)), expected(torch.ones(1, 3)))


def test_parameters_that_a_module_around_the_model_has_gathered_are_refused():
    plan = sff_fast.trace(_two)
    with rank_of(0, 1):
        model = _two()
        around = fully_shard(nn.Sequential(model))
        around(torch.ones(1, 3))
        with pytest.raises(PlanError, match=r"the parameters of '0' are copies that fully_shard of a module around.*reshard\(\)"):
            sff_fast.smooth_(model, plan)
        around.reshard()
        sff_fast.smooth_(model, plan)
        around(torch.ones(1, 3))
        sff_fast.smooth_(around, plan, prefix="-0.", again=True)


def _two() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


# ---------------------------------------------------------------------- refusals and records
def _linear(weight: torch.Tensor) -> nn.Linear:
    model = nn.Linear(4, 6, bias=False)
    model.weight = nn.Parameter(weight)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda mesh: DTensor.from_local(torch.ones(6, 4), mesh, [Partial()], run_check=False),
            r"'weight' is a partial sum over mesh dimension 0 \(P\(sum\)\).*redistribute",
        ),
        (
            lambda mesh: DTensor.from_local(torch.ones(3, 4), mesh, [S0], run_check=False, shape=(6, 4), stride=(4, 1)).to(
                "meta"
            ),
            "'weight'.*meta device",
        ),
        (
            lambda mesh: DTensor.from_local(torch.ones(2, 4), mesh, [S0], run_check=False, shape=(6, 4), stride=(4, 1)),
            r"'weight' of shape \(6, 4\) has \(2, 4\) on this rank, expected \(3, 4\)",
        ),
        (
            lambda mesh: DTensor.from_local(torch.ones(3, 1).expand(3, 4), mesh, [S0], run_check=False),
            "'weight'.*several elements at one address",
        ),
        (lambda mesh: split(torch.ones(6, 5), mesh, (S0,)), r"'weight' has shape \(6, 5\), the plan has \(6, 4\)"),
    ],
    ids=["partial", "meta", "wrong size", "stride 0", "another shape"],
)
def test_what_has_no_elements_of_its_own_is_refused_by_name(make, message):
    with rank_of(0, 2):
        model = _linear(make(mesh_of((2,))))
        with pytest.raises(PlanError, match=message):
            sff_fast.smooth_(model, sff_fast.trace(lambda: nn.Linear(4, 6, bias=False)))
        assert sff_fast.smoothing_of(model) == []


def test_two_shards_in_one_memory_are_refused():
    with rank_of(0, 2):
        mesh, memory = mesh_of((2,)), torch.zeros(4, 4)
        model = nn.Module()
        model.a = nn.Parameter(DTensor.from_local(memory[:3], mesh, [S0], run_check=False))
        model.b = nn.Parameter(DTensor.from_local(memory[1:], mesh, [S0], run_check=False))
        plan = sff_fast.trace(lambda: _pair_of_parameters())
        with pytest.raises(PlanError, match="'a' and 'b' are distinct parameters that share memory"):
            sff_fast.smooth_(model, plan)


def _pair_of_parameters() -> nn.Module:
    model = nn.Module()
    model.a, model.b = nn.Parameter(torch.zeros(6, 4)), nn.Parameter(torch.ones(6, 4))
    return model


def test_a_rank_outside_of_the_mesh_has_nothing_to_do():
    with rank_of(2, 3):
        mesh = dist.device_mesh.DeviceMesh("cpu", [0, 1])
        model = _linear(distribute_tensor(torch.ones(6, 4), mesh, [S0], src_data_rank=None))
        sff_fast.smooth_(model, sff_fast.trace(lambda: nn.Linear(4, 6, bias=False)))
        assert model.weight.to_local().numel() == 0


@pytest.mark.parametrize("use", [lambda w: (w * w).to_local(), lambda w: w.to_local() * w.to_local()], ids=["whole", "local"])
def test_a_write_between_forward_and_backward_raises_for_shards_too(use):
    with rank_of(0, 2):
        model = shard_(nn.Linear(4, 6, bias=False), mesh_of((2,)), (R,))
        loss = use(model.weight).sum()
        sff_fast.smooth_(model, sff_fast.trace(lambda: nn.Linear(4, 6, bias=False)))
        with pytest.raises(RuntimeError, match=r"modified.* inplace"):
            loss.backward()


def test_records_are_equal_on_all_ranks_and_smoothing_twice_is_refused():
    records = []
    for rank in range(3):
        with rank_of(rank, 3):
            model = shard_(pretrained(7), mesh_of((3,)), (S0,))
            report = sff_fast.smooth_(model, PLANS[7]).to_json()
            records.append({key: value for key, value in report.items() if key not in ("seconds", "threads")})
            with pytest.raises(sff_fast.SffFastError, match="was smoothed before"):
                sff_fast.smooth_(model, PLANS[7])
    assert records[0] == records[1] == records[2]


def test_the_plan_of_a_sharded_model_comes_from_its_config_and_not_from_a_copy():
    class Configured(nn.Linear):
        def __init__(self, config: dict) -> None:
            super().__init__(**config)
            self.config = config

    config = {"in_features": 4, "out_features": 6}
    with rank_of(0, 2):
        model = fully_shard(Configured(config))
        sff_fast.smooth_(model)
        assert sff_fast.smoothing_of(model)[0]["plan_hash"] == sff_fast.trace(lambda: Configured(config)).hash
        with pytest.raises(PlanError, match=r"Linear does not say how it is built: pass plan=.*fully_shard"):
            sff_fast.smooth_(fully_shard(nn.Linear(4, 6)))


def test_a_pipeline_stage_is_a_subset_of_the_plan_under_a_prefix():
    def whole() -> nn.ModuleDict:
        return nn.ModuleDict({"layers": nn.ModuleList(nn.Linear(4, 4) for _ in range(4)), "head": nn.Linear(4, 2)})

    plan = sff_fast.trace(whole)
    model = whole()
    kept = nn.ModuleDict({"layers": nn.ModuleDict({"2": nn.Linear(4, 4), "3": nn.Linear(4, 4)}), "head": nn.Linear(4, 2)})
    renumbered = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        for name, p in kept.named_parameters():
            p.copy_(model.get_parameter(name))
        for k in range(2):
            for p, q in zip(renumbered[k].parameters(), model["layers"][k + 2].parameters()):
                p.copy_(q)
    sff_fast.smooth_(model, plan, seed=3)
    sff_fast.smooth_(kept, plan, seed=3, subset=True)
    for name, p in kept.named_parameters():
        assert same(p, model.get_parameter(name)), name
    for k in range(2):
        sff_fast.smooth_(renumbered[k], plan, seed=3, prefix=f"layers.{k + 2}.", subset=True)
        assert same(renumbered[k].weight, model["layers"][k + 2].weight)
        sff_fast.fill_(renumbered[k], plan, seed=3, prefix=f"layers.{k + 2}.", subset=True)
        assert same(renumbered[k].weight, plan.sample(f"layers.{k + 2}.weight", 3))


def test_nothing_distributed_is_imported_for_plain_models():
    code = (
        "import sys, torch; before = set(sys.modules)\n"
        "import sff_fast; m = torch.nn.Linear(3, 2); sff_fast.smooth_(m, lambda: torch.nn.Linear(3, 2))\n"
        "print(sorted(n for n in set(sys.modules) - before if n.startswith('torch.distributed')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
