"""The torch.library operators: the bits of the eager calls, torch.compile, and torch's own checks of operators."""

from __future__ import annotations

import subprocess
import sys

import optim_cases as cases
import pytest
import torch

import sff_fast
from sff_fast import ops
from sff_fast.errors import ArgumentError, PlanError
from sff_fast.optim import FusedAdam, FusedAdamW, kernels


class Net(torch.nn.Module):
    """Uniform, normal and constant parameters, and one that is stored (not elementwise)."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(7, 5)
        self.norm = torch.nn.LayerNorm(5)
        self.table = torch.nn.Parameter(torch.empty(6, 6))
        torch.nn.init.orthogonal_(self.table)
        self.noise = torch.nn.Parameter(torch.randn(301))


@pytest.fixture(scope="module")
def plan():
    return sff_fast.trace(Net)


def net(dtype: torch.dtype = torch.float32) -> Net:
    torch.manual_seed(3)
    return Net().to(dtype)


def _bucket(model, plan, **options):
    named = {name: p.detach() for name, p in model.named_parameters()}
    return list(named.values()), ops.bucket(named, plan, 0.7, 1 - 0.7, 5, **options)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_operator_gives_the_bits_of_smooth_(plan, dtype, rounding):
    expected, model = net(dtype), net(dtype)
    sff_fast.smooth_(expected, plan, alpha=0.7, seed=5, rounding=rounding)
    params, made = _bucket(model, plan, rounding=rounding)
    before = [p._version for p in params]
    torch.ops.sff_fast.smooth_(params, made.table, made.values)
    assert made.values, "the orthogonal parameter is stored"
    cases.assert_equal_bits(params, list(expected.parameters()))
    assert all(p._version > version for p, version in zip(params, before))


def test_a_compiled_function_smooths_within_one_graph(plan):
    expected, model = net(), net()
    sff_fast.smooth_(expected, plan, alpha=0.7, seed=5)
    _, made = _bucket(model, plan)

    def step(params: list[torch.Tensor]) -> torch.Tensor:
        doubled = params[0] * 2
        torch.ops.sff_fast.smooth_(params, made.table, made.values)
        return doubled.sum() + params[0].sum()

    params = [p.detach() for p in model.parameters()]
    first = params[0].clone()
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(params)
    cases.assert_equal_bits(params, list(expected.parameters()))
    assert torch.equal(got, (first * 2).sum() + params[0].sum())


def test_torchs_checks_accept_smooth_(plan):
    params, made = _bucket(net(), plan)
    results = torch.library.opcheck(torch.ops.sff_fast.smooth_.default, (params, made.table, made.values))
    assert set(results.values()) == {"SUCCESS"}


def test_without_parameters_there_is_nothing_to_do(plan):
    made = ops.bucket({}, plan, 0.5, 0.5, 0)
    torch.ops.sff_fast.smooth_([], made.table, made.values)


def test_what_does_not_fit_is_refused_before_the_first_write(plan):
    params, made = _bucket(net(), plan)
    copies = [p.clone() for p in params]
    for wrong, message in (
        ([params[0].double(), *params[1:]], r"params\[0\] is torch.float64 of 36 elements, the table was made for 36 elem"),
        ([params[0][:4], *params[1:]], r"params\[0\] is torch.float32 of 24 elements"),
        ([params[0].t(), *params[1:]], r"params\[0\] has the strides \(1, 6\): expected a contiguous tensor"),
        (params[:2], "expected at least 3 tensors"),
    ):
        with pytest.raises(ArgumentError, match=message):
            torch.ops.sff_fast.smooth_(wrong, made.table, made.values)
    with pytest.raises(ArgumentError, match="expected tensors on one device, got cpu, meta"):
        ops.smooth_._init_fn([*params[:-1], params[-1].to("meta")], made.table, made.values)
    with pytest.raises(ArgumentError, match=r"table must be Bucket\.table"):
        torch.ops.sff_fast.smooth_(params, made.table[:-1], made.values)
    cases.assert_equal_bits(params, copies)


def test_a_bucket_is_checked_when_it_is_made(plan):
    named = dict(net().named_parameters())
    with pytest.raises(ArgumentError, match="rounding must be one of nearest, stochastic, got 'up'"):
        ops.bucket(named, plan, 0.5, 0.5, 0, rounding="up")
    with pytest.raises(PlanError, match="'other' is not in the plan"):
        ops.bucket({"other": torch.zeros(3)}, plan, 0.5, 0.5, 0)


# ---------------------------------------------------------------------- the optimizer's step
STEPS = (
    (torch.float32, "float32", "nearest", False, True),
    (torch.float32, "int8", "nearest", True, False),
    (torch.bfloat16, "bfloat16", "stochastic", False, True),
    (torch.bfloat16, "int8", "kahan", True, True),
    (torch.float16, "float32", "kahan", False, False),
)


def _step_arguments(params, optimizer, step: int, storing: str, amsgrad: bool, decoupled: bool):
    """Arguments of ``adamw_`` that work on the states of an optimizer."""
    states = [optimizer.state[p] for p in params]
    moments = ["exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if amsgrad else [])]
    lists = {name: [state[name] for state in states] for name in moments}
    scales = [state[f"{name}_scale"] for name in moments for state in states if f"{name}_scale" in state]
    group = optimizer.param_groups[0]
    return (
        [p.detach() for p in params],
        [p.grad for p in params],
        lists["exp_avg"],
        lists["exp_avg_sq"],
        lists.get("max_exp_avg_sq", []),
        scales,
        [state["compensation"] for state in states] if storing == "kahan" else [],
        [torch.tensor(float(step)) for _ in params],
        group["lr"],
        *group["betas"],
        group["eps"],
        group["weight_decay"],
        decoupled,
        False,
        1.0,
        storing,
        group["seed"],
        ops.round_streams([str(i) for i in range(len(params))]) if storing == "stochastic" else [],
    )


def _trained(dtype, state, storing, amsgrad, decoupled, steps: int):
    params = cases.parameters(dtype)
    options = {"stochastic_rounding": storing == "stochastic", "compensation": "kahan" if storing == "kahan" else None}
    cls = FusedAdamW if decoupled else FusedAdam
    optimizer = cls(params, lr=1e-2, weight_decay=0.1, state_dtype=state, amsgrad=amsgrad, seed=(1 << 63) + 5, **options)
    cases.train(optimizer, params, steps)
    return params, optimizer


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(("dtype", "state", "storing", "amsgrad", "decoupled"), STEPS)
def test_the_operator_gives_the_bits_of_the_optimizers_step(
    dtype, state, storing, amsgrad, decoupled, native, compiled, monkeypatch
):
    if not native:
        monkeypatch.setattr(kernels, "available", lambda device: False)
    expected, optimizer = _trained(dtype, state, storing, amsgrad, decoupled, 3)
    params, other = _trained(dtype, state, storing, amsgrad, decoupled, 2)
    cases.give_gradients(params, 2)
    arguments = list(_step_arguments(params, other, 3, storing, amsgrad, decoupled))
    arguments[-2] -= 1 << 64  # the seed as a signed number
    run = torch.ops.sff_fast.adamw_
    if compiled:
        run = torch.compile(lambda *a: torch.ops.sff_fast.adamw_(*a), fullgraph=True, backend="aot_eager")
    run(*arguments)
    changed = [*params, *(v for p in params for name, v in sorted(other.state[p].items()) if name != "step")]
    wanted = [*expected, *(v for p in expected for name, v in sorted(optimizer.state[p].items()) if name != "step")]
    cases.assert_equal_bits(changed, wanted)


def _two_models(rate: torch.Tensor) -> tuple:
    made = []
    for lr in (rate, rate.clone()):
        params = cases.parameters(torch.float32)
        made.append((params, lr, FusedAdamW(params, lr=lr, state_dtype="int8", max_norm=1.0)))
    return tuple(made)


@pytest.fixture
def never_again():
    """Compiling a function a second time is an error."""
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


def test_a_compiled_step_is_one_graph_that_a_tensor_learning_rate_never_compiles_again(never_again):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    (params, lr, optimizer), (expected, other_lr, other) = _two_models(torch.tensor(1e-2))
    run = torch.compile(optimizer.step, fullgraph=True, backend=backend)
    for step in range(4):
        for some in (params, expected):
            cases.give_gradients(some, step)
        run()
        other.step()
        for rate in (lr, other_lr):
            rate.mul_(0.5)
    assert len(graphs) == 1
    calls = [node for node in graphs[0].graph.nodes if node.op == "call_function" and "optimizer_step_" in str(node.target)]
    assert len(calls) == 1
    assert [int(optimizer.state[p]["step"]) for p in params] == [4] * len(params)
    cases.assert_equal_bits(params, expected)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_compiled_step_takes_what_the_function_wrote_before_and_shows_what_it_did(never_again, backend):
    (params, _, optimizer), (expected, _, other) = _two_models(torch.tensor(1e-2))

    def halve_and_step(some, stepper):
        with torch.no_grad():
            for p in some:
                p.mul_(0.5)
        stepper.step()
        return torch.stack([p.detach().double().sum() for p in some])

    run = torch.compile(halve_and_step, fullgraph=True, backend=backend)
    for step in range(2):
        for some in (params, expected):
            cases.give_gradients(some, step)
        kept = [p.grad for p in params]
        sums = run(params, optimizer)
        assert torch.equal(sums, halve_and_step(expected, other))
        assert all(p.grad is grad for p, grad in zip(params, kept))
    cases.assert_equal_bits(params, expected)


def test_a_step_with_given_gradients_leaves_the_parameters_own_where_they_were():
    (params, _, optimizer), (expected, _, other) = _two_models(torch.tensor(1e-2))
    cases.give_gradients(expected, 0)
    expected[1].grad = None  # not given: then it has none, whatever the parameter itself holds
    places = [i for i, p in enumerate(expected) if p.grad is not None]
    given = [expected[i].grad.clone() for i in places]
    kept = [torch.full_like(p, 5.0) for p in params]
    for p, grad in zip(params, kept):
        p.grad = grad
    with torch.no_grad():
        optimizer.step_given([params[i].detach() for i in places], given, places)
    other.step()
    assert all(p.grad is grad for p, grad in zip(params, kept))
    cases.assert_equal_bits(params, expected)


def test_a_compiled_step_skips_a_parameter_without_gradient(never_again):
    (params, _, optimizer), (expected, _, other) = _two_models(torch.tensor(1e-2))
    for some in (params, expected):
        cases.give_gradients(some, 0)
        some[1].grad = None
    torch.compile(optimizer.step, fullgraph=True, backend="aot_eager")()
    other.step()
    assert params[1] not in optimizer.state
    cases.assert_equal_bits(params, expected)


@pytest.mark.parametrize(("dtype", "state", "storing", "amsgrad", "decoupled"), STEPS[1:3])
def test_torchs_checks_accept_adamw_(dtype, state, storing, amsgrad, decoupled):
    params, optimizer = _trained(dtype, state, storing, amsgrad, decoupled, 1)
    cases.give_gradients(params, 1)
    arguments = list(_step_arguments(params, optimizer, 2, storing, amsgrad, decoupled))
    arguments[-2] = 7
    results = torch.library.opcheck(torch.ops.sff_fast.adamw_.default, tuple(arguments))
    assert set(results.values()) == {"SUCCESS"}


def test_lists_that_do_not_fit_are_refused():
    params, optimizer = _trained(torch.bfloat16, "float32", "nearest", False, True, 1)
    cases.give_gradients(params, 1)
    good = list(_step_arguments(params, optimizer, 2, "nearest", False, True))
    good[-2] = 0
    for place, value, message in (
        (1, good[1][:-1], "grads: expected 9, one for each parameter, got 8"),
        (1, [g.float() for g in good[1]], r"grads\[0\] is torch.float32 .*expected contiguous torch.bfloat16"),
        (2, [m.double() for m in good[2]], "exp_avgs must be float32, bfloat16 or uint8"),
        (3, [m.bfloat16() for m in good[3]], r"exp_avg_sqs\[0\] is torch.bfloat16"),
        (7, good[7][:1], "state_steps: expected 9"),
        (16, "up", "storing must be one of nearest, stochastic, kahan, got 'up'"),
        (16, "stochastic", "streams: expected 9"),
        (16, "kahan", "compensations: expected 9"),
    ):
        wrong = list(good)
        wrong[place] = value
        with pytest.raises(ArgumentError, match=message):
            torch.ops.sff_fast.adamw_(*wrong)


def test_the_schemas_say_what_is_written():
    smooth, step = str(torch.ops.sff_fast.smooth_.default._schema), str(torch.ops.sff_fast.adamw_.default._schema)
    assert smooth == "sff_fast::smooth_(Tensor(a0!)[] params, Tensor table, Tensor[] values) -> ()"
    for name in ("params", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "scales", "compensations"):
        assert f"!)[] {name}," in step
    assert "Tensor[] grads, " in step


def test_the_eager_path_imports_neither_the_operators_nor_the_compiler():
    code = """
import sys, torch, sff_fast
for name in sff_fast.__all__:
    getattr(sff_fast, name)
model = torch.nn.Linear(3, 2)
sff_fast.smooth_(model, lambda: torch.nn.Linear(3, 2))
assert "sff_fast.ops" not in sys.modules
import sff_fast.ops
assert "torch._dynamo" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------------- compiled models and torch.func
def learner() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))


@pytest.mark.parametrize("options", [{}, {"flat_parameters": True}, {"release_gradients": True}])
def test_a_compiled_model_is_trained_without_another_graph_or_compilation(never_again, options):
    graphs, results = [], []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    for compiled in (False, True):
        model = learner()
        rate = torch.tensor(1e-2)
        optimizer = FusedAdamW(model.parameters(), lr=rate, **options)
        run = torch.compile(model, fullgraph=True, backend=backend) if compiled else model
        for step in range(3):
            run(torch.full((2, 6), 1.0 + step)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
            rate.mul_(0.5)
        results.append(cases.everything(optimizer, list(model.parameters())))
    assert len(graphs) == 1
    cases.assert_equal_bits(*results)


def test_gradients_of_torch_func_are_stepped_within_one_graph(never_again):
    model, other = learner(), learner()
    optimizer = FusedAdamW(other.parameters(), lr=1e-2)
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    first, second = ([torch.zeros_like(value) for value in values.values()] for _ in range(2))
    number = [torch.tensor(0.0) for _ in values]

    def loss(some, x):
        return torch.func.functional_call(model, some, (x,)).square().sum()

    def train(x):
        for count in number:
            count.add_(1)
        grads = torch.func.grad(loss)(values, x)
        torch.ops.sff_fast.adamw_(
            list(values.values()),
            [grads[name] for name in values],
            first,
            second,
            [],
            [],
            [],
            number,
            1e-2,
            0.9,
            0.999,
            1e-8,
            0.01,
        )

    run = torch.compile(train, fullgraph=True, backend="aot_eager")
    for step in range(3):
        x = torch.full((2, 6), 1.0 + step)
        run(x)
        other(x).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    cases.assert_equal_bits(list(values.values()), list(other.parameters()))
    assert not torch.equal(next(iter(values.values())), next(model.parameters()))
