"""FusedAdamW with flat_parameters: parameters side by side in memory, a bucket at a time, and those that may not move."""

from __future__ import annotations

import copy
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import optim_cases as cases
import pytest
import torch
import torch.distributed as dist

from sff_fast.optim.flat import why_it_stays
from sff_fast.optim.fused_adamw import FusedAdamW
from sff_fast.training.runtime import CAN_RESET_PEAK

COVERED = [i for i, size in enumerate(cases.SIZES) if np.prod(size)]


def home(p: torch.Tensor) -> int:
    """Where the memory begins that a parameter lies in."""
    return p.untyped_storage().data_ptr()


# ---------------------------------------------------------------------- moving
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.float32, {"amsgrad": True, "max_norm": 0.5}),
        (torch.bfloat16, {"stochastic_rounding": True, "seed": 9}),
        (torch.float16, {"compensation": "kahan"}),
    ],
)
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("bucket_bytes", [1, 3000, 1 << 30])
def test_parameters_that_moved_step_to_the_same_bits(
    bucket_bytes: int, state_dtype: str, dtype: torch.dtype, options: dict[str, object]
) -> None:
    results = []
    for flat in (False, True):
        params = cases.parameters(dtype)
        optimizer = FusedAdamW(
            params, lr=1e-2, state_dtype=state_dtype, bucket_bytes=bucket_bytes, flat_parameters=flat, **options
        )
        cases.train(optimizer, params, 2)
        cases.train(optimizer, params, 2, first=2, skip=(3, 6))
        results.append(cases.everything(optimizer, params))
    cases.assert_equal_bits(*results)


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
def test_states_and_flat_parameters_begin_at_cache_lines(state_dtype: str) -> None:
    # Large enough that NumPy and glibc take pages of their own, whose first bytes are glibc's.
    params = [torch.nn.Parameter(torch.zeros(n)) for n in (1 << 18, 77, 1 << 20)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = FusedAdamW(params, state_dtype=state_dtype, flat_parameters=True)
    optimizer.step()
    begins = [state[name].data_ptr() for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert {begin % 64 for begin in begins} | {p.data_ptr() % 64 for p in params} == {0}


def test_the_parameters_of_a_bucket_lie_side_by_side_with_their_values_as_soon_as_the_optimizer_is_made() -> None:
    params, before = cases.parameters(), cases.parameters()
    old = [p.data_ptr() for p in params]
    FusedAdamW(params, flat_parameters=True)
    cases.assert_equal_bits(before, params)
    assert len({home(params[i]) for i in COVERED}) == 1
    assert all(params[i].data_ptr() != old[i] for i in COVERED)
    places = [params[i].data_ptr() - home(params[i]) for i in COVERED]
    ends = [place + params[i].nbytes for place, i in zip(places, COVERED)]
    # Every part begins at the next multiple of 64 elements of 4 bytes.
    assert places == [0, *(-(-end // 256) * 256 for end in ends[:-1])]


def test_every_bucket_has_memory_of_its_own_and_its_gradients_stay_where_they_are() -> None:
    params = [torch.nn.Parameter(torch.ones(1000)) for _ in range(6)]
    cases.give_gradients(params, 0)
    gradients = [p.grad for p in params]
    optimizer = FusedAdamW(params, flat_parameters=True, bucket_bytes=8000)
    optimizer.step()
    assert [home(p) for p in params[::2]] == [home(p) for p in params[1::2]]
    assert len({home(p) for p in params}) == 3
    assert all(p.grad is grad for p, grad in zip(params, gradients))


def test_without_the_option_everything_stays() -> None:
    params = cases.parameters()
    old = [p.data_ptr() for p in params]
    cases.train(FusedAdamW(params), params, 1)
    assert [p.data_ptr() for p in params] == old


PEAK = """
import json, sys
import torch
from sff_fast.optim.fused_adamw import FusedAdamW
from sff_fast.resident import resident_memory
from sff_fast.training.runtime import peak_memory, reset_peak_memory

# Pieces of half a megabyte lie in glibc's heap once one of them was freed: the worse place, which keeps what is freed.
del_me = torch.ones(1 << 23)
del del_me
params = [torch.nn.Parameter(torch.full((1 << 17,), float(i))) for i in range(256)]
FusedAdamW([torch.nn.Parameter(torch.ones(1000))], flat_parameters=True)  # what is loaded once
before = resident_memory()
reset_peak_memory("cpu")
FusedAdamW(params, flat_parameters=True, bucket_bytes=int(sys.argv[1]))
print(json.dumps({"peak": peak_memory("cpu") - before, "after": resident_memory() - before}))
assert all(p[-1].item() == i for i, p in enumerate(params))
"""


@pytest.mark.skipif(not CAN_RESET_PEAK, reason="needs hardware: a Linux that lets a process reset its peak memory")
def test_moving_takes_no_more_than_one_bucket_of_extra_memory() -> None:
    """128 MiB of parameters in buckets of 16; 4 more are for the interpreter, and two buckets would take 32."""
    found = {}
    for mebibytes in (16, 128):
        command = [sys.executable, "-c", PEAK, str(mebibytes << 20)]
        environment = {"PYTHONPATH": str(Path(__file__).parents[1]), "PATH": ""}
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
        found[mebibytes] = json.loads(output)
    assert found[16]["peak"] <= 20 << 20, found
    assert found[128]["peak"] >= 64 << 20, found  # the measurement sees memory that is taken
    assert found[16]["after"] <= 4 << 20, found


# ---------------------------------------------------------------------- staying
def _shared() -> torch.Tensor:
    return torch.ones(50).share_memory_()


STAYING: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "transposed": (lambda: torch.ones(5, 6).t(), "not contiguous"),
    "view": (lambda: torch.ones(60)[:50], "a part of a larger tensor"),
    "numpy": (lambda: torch.from_numpy(np.ones(50, np.float32)), "in memory of a file or of another library"),
    "shared": (_shared, "in memory that processes share"),
}


@pytest.mark.parametrize("kind", STAYING)
def test_a_parameter_that_may_not_move_is_reached_where_it_is(kind: str) -> None:
    make, reason = STAYING[kind]
    p, q = torch.nn.Parameter(make()), torch.nn.Parameter(torch.ones(100))
    old = p.data_ptr()
    assert why_it_stays(p) == reason
    optimizer = FusedAdamW([p, q], lr=0.5, weight_decay=0.0, flat_parameters=True)
    cases.train(optimizer, [p, q], 1)
    assert p.data_ptr() == old
    assert why_it_stays(q) == "a part of a larger tensor"  # it has moved
    assert bool(((p - 1).abs() > 0.4).all())  # lr, in the direction of the gradient


def test_parameters_of_a_mapped_file_stay(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(5000)}, tmp_path / "w.pt")
    p = torch.nn.Parameter(torch.load(tmp_path / "w.pt", mmap=True)["weight"])
    assert why_it_stays(p) == "in memory of a file or of another library"


@pytest.fixture
def mesh() -> Iterator[object]:
    """A mesh of this process alone."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
        yield dist.device_mesh.init_device_mesh("cpu", (1,))
        dist.destroy_process_group()


def test_a_dtensor_stays(mesh: object) -> None:
    from torch.distributed.tensor import Shard, distribute_tensor

    p = torch.nn.Parameter(distribute_tensor(torch.ones(40, 3), mesh, [Shard(0)]))
    old = p.to_local().data_ptr()
    optimizer = FusedAdamW([p], flat_parameters=True)
    p.grad = distribute_tensor(torch.ones(40, 3), mesh, [Shard(0)])
    optimizer.step()
    assert p.to_local().data_ptr() == old
    assert bool((p.to_local() < 1).all())


def test_weights_tied_by_their_memory_stay_tied_and_those_tied_as_one_object_move_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    a, b, c = (torch.nn.Linear(8, 8, bias=False) for _ in range(3))
    b.weight = torch.nn.Parameter(a.weight.data, requires_grad=False)  # by memory
    d = torch.nn.Linear(8, 8, bias=False)
    d.weight = c.weight  # one object
    old = c.weight.data_ptr()
    with caplog.at_level("INFO", logger="sff_fast"):
        optimizer = FusedAdamW([("a", a.weight), ("c", c.weight)], flat_parameters=True)
        for _ in range(3):
            d(c(b(a(torch.ones(2, 8))))).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(a.weight, b.weight)
    assert a.weight.data_ptr() == b.weight.data_ptr()
    assert d.weight is c.weight
    assert c.weight.data_ptr() != old
    assert [r.message for r in caplog.records if "stay where" in r.message] == [
        "FusedAdamW: 1 parameter(s) stay where they are and are reached by their pointers, "
        "the first one a (in memory that another tensor or a graph holds too)"
    ]


def test_a_kept_state_dict_and_a_graph_that_is_not_done_keep_what_they_hold() -> None:
    kept, used = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    weights = kept.state_dict()
    loss = used(used(torch.ones(2, 4))).square().sum()
    optimizer = FusedAdamW([*kept.parameters(), *used.parameters()], flat_parameters=True)
    loss.backward()
    optimizer.step()
    assert weights["weight"].data_ptr() == kept.weight.data_ptr()


# ---------------------------------------------------------------------- afterwards
def test_a_parameter_that_moves_away_is_followed_and_never_fetched_back(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sff_fast.optim.buckets._said_moved", set())
    still, moving = cases.parameters(), cases.parameters()
    a, b = FusedAdamW(still), FusedAdamW(moving, flat_parameters=True)
    with caplog.at_level("INFO", logger="sff_fast"):
        for step in range(3):
            cases.train(a, still, 1, step)
            old = moving[3].data
            moving[3].data = old.clone()
            old.fill_(99.0)
            cases.train(b, moving, 1, step)
            assert bool((old == 99.0).all())
    place = moving[3].data_ptr()
    b.load_state_dict(b.state_dict())  # makes the buckets anew
    cases.train(b, moving, 1, 3)
    cases.train(a, still, 1, 3)
    assert moving[3].data_ptr() == place
    assert home(moving[3]) != home(moving[8]) == home(moving[1])
    cases.assert_equal_bits(still, moving)
    assert len([r for r in caplog.records if "moved in memory" in r.message]) == 1


def test_a_model_that_went_to_another_dtype_and_back_is_followed() -> None:
    still, moving = torch.nn.Linear(30, 20), torch.nn.Linear(30, 20)
    moving.load_state_dict(still.state_dict())
    a, b = FusedAdamW(still.parameters()), FusedAdamW(moving.parameters(), flat_parameters=True)
    for step in range(3):
        for model, optimizer in ((still, a), (moving, b)):
            cases.train(optimizer, list(model.parameters()), 1, step)
        moving.double().float()
    cases.assert_equal_bits(list(still.parameters()), list(moving.parameters()))


@pytest.mark.parametrize("through", ["deepcopy", "file"])
def test_a_copy_of_model_and_optimizer_goes_on_by_itself_in_memory_of_its_own(through: str) -> None:
    params = cases.parameters()
    optimizer = FusedAdamW(params, state_dtype="int8", flat_parameters=True)
    cases.train(optimizer, params, 3)
    if through == "deepcopy":
        other, others = copy.deepcopy((optimizer, params))
    else:
        file = io.BytesIO()
        torch.save((optimizer, params), file)
        file.seek(0)
        other, others = torch.load(file, weights_only=False)
    assert other.flat_parameters
    before = cases.everything(optimizer, params)
    cases.train(other, others, 3, first=3)
    cases.assert_equal_bits(before, cases.everything(optimizer, params))
    cases.train(optimizer, params, 3, first=3)
    cases.assert_equal_bits(cases.everything(optimizer, params), cases.everything(other, others))
    assert home(params[8]) != home(others[8])


def test_state_dicts_of_the_model_load_into_the_same_memory() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(5, 6), torch.nn.Linear(6, 3))
    optimizer = FusedAdamW(model.parameters(), flat_parameters=True)
    places = [p.data_ptr() for p in model.parameters()]
    values = {name: torch.full_like(value, 2.0) for name, value in model.state_dict().items()}
    model.load_state_dict(values)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert [p.data_ptr() for p in model.parameters()] == places
    assert all(bool((value == 2.0).all()) for value in torch.load(file, weights_only=True).values())
    cases.train(optimizer, list(model.parameters()), 1)
    assert all(bool((p != 2.0).all()) for p in model.parameters())


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("release", [False, True])
def test_a_mixture_with_frozen_layers_follows_the_unmoved_one(release: bool, set_to_none: bool) -> None:
    results = []
    for flat in (False, True):
        torch.manual_seed(4)
        experts = torch.nn.ModuleList(torch.nn.Linear(12, 12) for _ in range(5))
        experts[4].requires_grad_(False)
        optimizer = FusedAdamW(experts.parameters(), release_gradients=release, flat_parameters=flat, bucket_bytes=700)
        for step in range(6):
            x = torch.ones(3, 12)
            for i in {step % 5, 2, 4}:  # the others have no gradient, or zeros
                x = torch.tanh(experts[i](x)) + x
            x.sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=set_to_none)
        results.append(cases.everything(optimizer, list(experts.parameters())))
    cases.assert_equal_bits(*results)


def test_a_group_added_later_moves_in_with_the_next_step() -> None:
    first, second = torch.nn.Parameter(torch.ones(10)), torch.nn.Parameter(torch.ones(10))
    optimizer = FusedAdamW([first], flat_parameters=True)
    optimizer.add_param_group({"params": [second], "lr": 0.5})
    cases.train(optimizer, [first, second], 1)
    assert why_it_stays(second) == "a part of a larger tensor"


def test_a_parameter_that_is_refused_keeps_all_others_from_moving() -> None:
    good, bad = torch.nn.Parameter(torch.ones(10)), torch.nn.Parameter(torch.ones(10, dtype=torch.float64))
    old = good.data_ptr()
    with pytest.raises(ValueError, match=r"parameter 1 is torch\.float64"):
        FusedAdamW([good, bad], flat_parameters=True)
    assert good.data_ptr() == old


def test_offloaded_states_step_moved_parameters() -> None:
    results = []
    for flat in (False, True):
        params = cases.parameters()
        optimizer = FusedAdamW(params, offload=True, flat_parameters=flat)
        cases.train(optimizer, params, 3)
        results.append(cases.everything(optimizer, params))
    cases.assert_equal_bits(*results)
