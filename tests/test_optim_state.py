"""State dicts: bit-exact reload, torch's format both ways, conversion between precisions, and refusals."""

from __future__ import annotations

import io
from collections.abc import Callable

import optim_cases as cases
import pytest
import torch

from sff_fast.errors import CheckpointError
from sff_fast.optim.fused_adamw import FusedAdam, FusedAdamW

PAIRS = ((FusedAdamW, torch.optim.AdamW), (FusedAdam, torch.optim.Adam))


def through_a_file(state: dict[str, object]) -> dict[str, object]:
    """What ``torch.save`` and ``torch.load`` make of it."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {"stochastic_rounding": True, "seed": 9}),
        (torch.bfloat16, {"compensation": "kahan"}),
    ],
)
@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
def test_a_reloaded_optimizer_goes_on_to_the_same_bits(
    state_dtype: str, dtype: torch.dtype, options: dict[str, object], amsgrad: bool
) -> None:
    straight, stopped = cases.parameters(dtype), cases.parameters(dtype)
    kwargs = {"lr": 1e-2, "state_dtype": state_dtype, "amsgrad": amsgrad, **options}
    a = FusedAdamW(straight, **kwargs)
    cases.train(a, straight, 8)
    b = FusedAdamW(stopped, **kwargs)
    cases.train(b, stopped, 4)
    saved = through_a_file(b.state_dict())
    again = [torch.nn.Parameter(p.detach().clone()) for p in stopped]
    c = FusedAdamW(again, **{**kwargs, "lr": 5.0, "seed": 77})  # options come from the checkpoint
    c.load_state_dict(saved)
    cases.assert_equal_bits(cases.everything(b, stopped), cases.everything(c, again))
    cases.train(c, again, 4, first=4)
    cases.assert_equal_bits(cases.everything(a, straight), cases.everything(c, again))


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize(("ours", "theirs"), PAIRS)
@pytest.mark.parametrize("from_torch", [True, False])
def test_switching_in_the_middle_of_training_goes_on_as_if_nothing_happened(
    ours: type, theirs: type, from_torch: bool, amsgrad: bool
) -> None:
    straight, switched = cases.parameters(), cases.parameters()
    kwargs = {"lr": 1e-2, "weight_decay": 0.05, "amsgrad": amsgrad}
    cases.train(theirs(straight, **kwargs), straight, 100)
    before = (theirs if from_torch else ours)(switched, **kwargs)
    cases.train(before, switched, 50, skip=())
    after = (ours if from_torch else theirs)(switched)
    after.load_state_dict(before.state_dict() if from_torch else before.to_torch_state_dict())
    assert after.param_groups[0]["lr"] == 1e-2
    assert after.param_groups[0]["amsgrad"] == amsgrad
    cases.train(after, switched, 50, first=50)
    for a, b in zip(straight, switched):
        assert (a - b).norm() <= 1e-6 * a.norm()


def test_torch_takes_the_states_of_bfloat16_exactly() -> None:
    params = cases.parameters(torch.bfloat16)
    optimizer = FusedAdamW(params, state_dtype="bfloat16")
    cases.train(optimizer, params, 3)
    peer = torch.optim.AdamW(params)
    peer.load_state_dict(optimizer.to_torch_state_dict())
    for p in params:
        for name in ("exp_avg", "exp_avg_sq"):
            assert peer.state[p][name].dtype == torch.bfloat16
            assert torch.equal(peer.state[p][name], optimizer.state[p][name])
        assert float(peer.state[p]["step"]) == 3.0


def test_int8_states_survive_the_way_through_torchs_format() -> None:
    params = cases.parameters()
    optimizer = FusedAdamW(params, state_dtype="int8")
    cases.train(optimizer, params, 5)
    exported = optimizer.to_torch_state_dict()
    assert exported["state"][6]["exp_avg"].dtype == torch.float32
    torch.optim.AdamW(params).load_state_dict(exported)
    again = FusedAdamW(params, state_dtype="int8")
    again.load_state_dict(exported)
    cases.assert_equal_bits(cases.everything(optimizer, params), cases.everything(again, params))


@pytest.mark.parametrize("saved", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("wanted", ["float32", "bfloat16", "int8"])
def test_states_convert_to_the_precision_of_the_optimizer_that_loads_them(saved: str, wanted: str) -> None:
    params = cases.parameters()
    source = FusedAdamW(params, state_dtype=saved)
    cases.train(source, params, 5)
    target = FusedAdamW(params, state_dtype=wanted)
    target.load_state_dict(source.state_dict())
    assert target.param_groups[0]["state_dtype"] == wanted
    exact, got = source.to_torch_state_dict()["state"], target.to_torch_state_dict()["state"]
    for i in exact:
        for name in ("exp_avg", "exp_avg_sq"):
            scale = exact[i][name].abs().max() if exact[i][name].numel() else 0.0
            assert torch.allclose(exact[i][name], got[i][name], rtol=2**-4, atol=float(scale) * 2.0**-12)


def test_a_parameter_that_had_no_step_has_no_state() -> None:
    params = cases.parameters()
    optimizer = FusedAdamW(params)
    cases.train(optimizer, params, 2, skip=[1, 4])
    for state in (optimizer.state_dict(), optimizer.to_torch_state_dict()):
        assert sorted(state["state"]) == [0, 2, 3, 5, 6, 7, 8]
    again = FusedAdamW(params)
    again.load_state_dict(optimizer.state_dict())
    assert params[1] not in again.state


def test_the_state_dict_of_float32_is_torchs() -> None:
    params = cases.parameters()
    optimizer = FusedAdamW(params)
    cases.train(optimizer, params, 2)
    peer = torch.optim.AdamW(params)
    peer.load_state_dict(optimizer.state_dict())
    assert torch.equal(peer.state[params[2]]["exp_avg"], optimizer.state[params[2]]["exp_avg"])


def test_hooks_on_loading_are_called() -> None:
    params = cases.parameters()
    optimizer, calls = FusedAdamW(params), []
    optimizer.register_load_state_dict_pre_hook(lambda o, state: calls.append("before"))
    optimizer.register_load_state_dict_post_hook(lambda o: calls.append("after"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["before", "after"]


def without(name: str) -> Callable[[dict], None]:
    return lambda state: state["state"][2].pop(name)


def reshaped(name: str) -> Callable[[dict], None]:
    return lambda state: state["state"][2].update({name: state["state"][2][name].reshape(-1)[:5]})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without("exp_avg"), "optimizer state of parameter 2: exp_avg is missing"),
        (without("step"), "optimizer state of parameter 2: step is missing"),
        (reshaped("exp_avg_sq"), r"parameter 2: exp_avg_sq has the shape \(5,\), the parameter \(3, 11\)"),
        (without("exp_avg_scale"), "exp_avg of uint8 and exp_avg_scale belong together"),
        (lambda s: s["state"][2].update(exp_avg_scale=torch.ones(7)), r"exp_avg_scale has the shape \(7,\)"),
        (lambda s: s["param_groups"][0].update(amsgrad=True), "parameter 0: max_exp_avg_sq is missing"),
        (lambda s: s["param_groups"][0]["params"].pop(), r"groups have \[9\] parameters, the loaded state's \[8\]"),
        (lambda s: s["param_groups"].pop(), r"groups have \[9\] parameters, the loaded state's \[\]"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_changes_nothing(damage: Callable[[dict], None], message: str) -> None:
    params = cases.parameters()
    optimizer = FusedAdamW(params, state_dtype="int8", lr=0.25)
    cases.train(optimizer, params, 2)
    before = cases.everything(optimizer, params)
    bad = through_a_file(optimizer.state_dict())
    bad["param_groups"][0]["lr"] = 0.5
    damage(bad)
    with pytest.raises(CheckpointError, match=message):
        optimizer.load_state_dict(bad)
    cases.assert_equal_bits(before, cases.everything(optimizer, params))
    assert optimizer.param_groups[0]["lr"] == 0.25
    cases.train(optimizer, params, 1, first=2)


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16", "int8"])
def test_states_take_the_bytes_that_the_documentation_says(state_dtype: str) -> None:
    params = cases.parameters(sizes=[(1024, 512)])
    optimizer = FusedAdamW(params, state_dtype=state_dtype)
    cases.train(optimizer, params, 1)
    total = sum(v.numel() * v.element_size() for name, v in optimizer.state[params[0]].items() if name != "step")
    assert total / params[0].numel() == {"float32": 8.0, "bfloat16": 4.0, "int8": 2.03125}[state_dtype]


def test_state_tensors_that_are_replaced_from_outside_count() -> None:
    a, b = cases.parameters(), cases.parameters()
    ours, theirs = FusedAdamW(a), torch.optim.AdamW(b)
    for optimizer, params in ((ours, a), (theirs, b)):
        cases.train(optimizer, params, 2)
        for p in params[:5]:
            state = optimizer.state[p]
            state.update({name: value.clone() for name, value in state.items()})
            state["exp_avg"] = torch.full_like(p, 0.25)
        optimizer.state.pop(params[6])
        cases.train(optimizer, params, 3, first=2)
    for p, q in zip(a, b):
        assert (p - q).norm() <= 1e-6 * q.norm()
        assert float(ours.state[p]["step"]) == float(theirs.state[q]["step"])
        assert torch.allclose(ours.state[p]["exp_avg"], theirs.state[q]["exp_avg"], rtol=1e-5, atol=1e-9)


def test_a_state_without_compensation_starts_it_at_zero() -> None:
    params = cases.parameters(torch.bfloat16)
    optimizer = FusedAdamW(params, compensation="kahan")
    cases.train(optimizer, params, 3)
    assert bool((optimizer.state[params[8]]["compensation"] != 0).any())
    del optimizer.state[params[8]]["compensation"]
    params[8].grad = None
    optimizer.load_state_dict(optimizer.state_dict())
    assert bool((optimizer.state[params[8]]["compensation"] == 0).all())
    cases.train(optimizer, params, 1)
    del optimizer.state[params[8]]["compensation"]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    cases.train(optimizer, params, 1)
    assert bool((optimizer.state[params[8]]["compensation"] == 0).all())
