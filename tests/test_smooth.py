"""smooth_ and fill_: what a user sees."""

from __future__ import annotations

import copy
import warnings

import numpy as np
import pytest
import torch
from kernel_cases import bits
from torch import nn

import sff_fast
from sff_fast import backends
from sff_fast.errors import ArgumentError, BackendError, PlanError
from sff_fast.smooth import resolve_plan


class Net(nn.Module):
    """Uniform, normal, truncated normal, constant, a padding row, a frozen and a tied parameter, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=3)
        self.linear = nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)
        self.frozen = nn.Parameter(torch.zeros(5, 4), requires_grad=False)
        nn.init.trunc_normal_(self.frozen, std=0.02, a=-0.04, b=0.04)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embed.weight
        self.register_buffer("steps", torch.arange(4.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.linear(self.embed(x))))


def pretrained() -> Net:
    """A net whose weights are far from any initialisation."""
    torch.manual_seed(5)
    net = Net()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.linspace(-1, 1, p.numel()).reshape(p.shape))
    return net


def state(net: nn.Module) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in net.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return list(a) == list(b) and all(torch.equal(bits(a[k]), bits(b[k])) for k in a)


PLAN = sff_fast.trace(Net)


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_smoothing_interpolates_with_the_sample_of_the_plan(backend):
    net, before = pretrained(), state(pretrained())
    report = sff_fast.smooth_(net, PLAN, alpha=0.7, seed=9, backend=backend)
    for name, p in net.named_parameters():
        random = PLAN.sample(name, 9)
        expected = np.float32(0.7) * before[name].double().numpy() + np.float32(0.3) * random.double().numpy()
        # one rounding of the product b * r and one of the sum, at most
        assert np.abs(p.detach().double().numpy() - expected).max() <= 2.0**-23 * 1.5
    assert (PLAN.sample("embed.weight", 9)[3] == 0).all()
    assert torch.equal(net.steps, torch.arange(4.0))
    assert net.out.weight is net.embed.weight
    assert report.backends == {"cpu": backend}
    assert report.elements == sum(p.numel() for p in net.parameters())
    assert report.shrink["frozen"] == 0.7
    assert report.perturb["frozen"] == 1 - 0.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_backends_give_the_same_bits_for_a_whole_model(dtype, rounding):
    nets = [pretrained().to(dtype) for _ in range(3)]
    sff_fast.smooth_(nets[0], PLAN, backend="cpu", threads=1, rounding=rounding)
    sff_fast.smooth_(nets[1], PLAN, backend="cpu", threads=2, rounding=rounding)
    sff_fast.smooth_(nets[2], PLAN, backend="reference", rounding=rounding)
    assert same(state(nets[0]), state(nets[1]))
    assert same(state(nets[0]), state(nets[2]))


def test_seeds_differ_and_repeat():
    nets = [pretrained() for _ in range(3)]
    for net, seed in zip(nets, (1, 1, 2)):
        sff_fast.smooth_(net, PLAN, seed=seed)
    assert same(state(nets[0]), state(nets[1]))
    assert not same(state(nets[0]), state(nets[2]))


def test_the_result_does_not_depend_on_order_layout_or_neighbours():
    net, other = pretrained(), pretrained()
    other.linear.weight.data = other.linear.weight.data.t().contiguous().t()
    sff_fast.smooth_(net, PLAN)
    sff_fast.smooth_(other, PLAN, alpha={"linear.*": 0.7, "*": 0.7})
    assert same(state(net), state(other))


def test_a_plan_may_be_a_constructor_or_come_from_the_models_config():
    by_plan, by_factory = pretrained(), pretrained()
    sff_fast.smooth_(by_plan, PLAN)
    sff_fast.smooth_(by_factory, Net)
    assert same(state(by_plan), state(by_factory))

    class Configured(nn.Linear):
        def __init__(self, config: dict) -> None:
            super().__init__(**config)
            self.config = config

    model = Configured({"in_features": 3, "out_features": 2})
    assert resolve_plan(model, None) == sff_fast.trace(lambda: Configured({"in_features": 3, "out_features": 2}))


def test_a_model_that_does_not_say_how_it_is_built_needs_a_plan():
    with pytest.raises(PlanError, match=r"Net does not say how it is built: pass plan=sff_fast\.trace"):
        sff_fast.smooth_(pretrained())


def test_fill_equals_smoothing_with_shrink_zero_and_reads_nothing():
    net, other = pretrained(), pretrained()
    with torch.no_grad():
        for p in net.parameters():
            p.fill_(float("nan"))
    report = sff_fast.fill_(net, PLAN, seed=4)
    sff_fast.smooth_(other, PLAN, shrink=0.0, perturb=1.0, seed=4)
    assert same(state(net), state(other))
    assert torch.equal(net.linear.weight, PLAN.sample("linear.weight", 4))
    assert set(report.perturb.values()) == {1.0}
    assert sff_fast.smoothing_of(net) == []
    sff_fast.fill_(other, PLAN)
    assert sff_fast.smoothing_of(other) == []


# ---------------------------------------------------------------------- factors
def test_alpha_one_changes_no_bit_and_alpha_zero_gives_the_random_model():
    net, before = pretrained(), state(pretrained())
    report = sff_fast.smooth_(net, PLAN, alpha=1.0)
    assert same(state(net), before)
    assert report.elements == 0
    assert set(report.untouched) == {n for n, _ in net.named_parameters()}
    sff_fast.smooth_(net, PLAN, alpha=0.0, seed=3, again=True)
    assert torch.equal(net.linear.bias, PLAN.sample("linear.bias", 3))


def test_the_first_pattern_that_matches_counts_and_the_rest_stays():
    net, before = pretrained(), state(pretrained())
    report = sff_fast.smooth_(net, PLAN, alpha={"linear.weight": 1.0, "linear.*": 0.25, "norm.*": 0.5})
    after = state(net)
    assert report.shrink == {"linear.bias": 0.25, "norm.weight": 0.5, "norm.bias": 0.5}
    assert set(report.untouched) == {"linear.weight", "embed.weight", "frozen"}
    for name in before:
        assert torch.equal(before[name], after[name]) == (name not in report.shrink)


def test_shrink_and_perturb_are_the_other_form():
    net, other, third = pretrained(), pretrained(), pretrained()
    sff_fast.smooth_(net, PLAN, alpha=0.75)
    sff_fast.smooth_(other, PLAN, shrink=0.75, perturb=0.25)
    sff_fast.smooth_(third, PLAN, shrink={"*": 0.75}, perturb=0.25)
    assert same(state(net), state(other))
    assert same(state(net), state(third))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.5}, "alpha must be a number from 0 to 1"),
        ({"alpha": -0.1}, "alpha must be a number from 0 to 1"),
        ({"alpha": float("nan")}, "alpha must be a finite number"),
        ({"alpha": "0.7"}, "alpha must be a finite number"),
        ({"alpha": True}, "alpha must be a finite number"),
        ({"alpha": {}}, "alpha is an empty mapping"),
        ({"alpha": {3: 0.5}}, "maps name patterns"),
        ({"alpha": {"nothing.*": 0.5}}, r"no parameter matches the pattern 'nothing\.\*'"),
        ({"shrink": 0.5}, "go together"),
        ({"perturb": 0.5}, "go together"),
        ({"alpha": 0.5, "shrink": 0.5, "perturb": 0.5}, "not both"),
        ({"shrink": {"*": 1.0}, "perturb": {"linear.*": 1.0}}, "same patterns"),
        ({"seed": 1.5}, "seed must be an integer"),
        ({"backend": "gpu"}, "backend must be one of"),
        ({"rounding": "up"}, "rounding must be one of"),
        ({"threads": 0}, "threads must be"),
        ({"threads": 1.5}, "threads must be"),
        ({"plan": 3}, "plan must be"),
        ({"prefix": "model."}, "not in the plan"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_before_anything_is_written(arguments, message):
    net, before = pretrained(), state(pretrained())
    versions = [p._version for p in net.parameters()]
    with pytest.raises((ArgumentError, PlanError), match=message):
        sff_fast.smooth_(net, **{"plan": PLAN, **arguments})
    assert same(state(net), before)
    assert versions == [p._version for p in net.parameters()]
    assert sff_fast.smoothing_of(net) == []


def test_something_that_is_no_module_is_refused():
    with pytest.raises(ArgumentError, match=r"must be a torch.nn.Module, got dict"):
        sff_fast.smooth_({}, PLAN)


# ---------------------------------------------------------------------- plan against model
def test_a_parameter_that_the_plan_does_not_know_is_an_error_that_names_it():
    net = pretrained()
    net.extra = nn.Parameter(torch.ones(2))
    before = state(net)
    with pytest.raises(PlanError, match="'extra' is not in the plan"):
        sff_fast.smooth_(net, PLAN)
    assert same(state(net), before)
    report = sff_fast.smooth_(net, PLAN, alpha={"extra": 1.0, "*": 0.7})
    assert "extra" in report.untouched


def test_a_model_that_lacks_a_parameter_of_the_plan_is_an_error_unless_it_is_a_part():
    class Part(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(8, 8)

    part, whole = Part(), pretrained()
    with torch.no_grad():
        part.linear.weight.copy_(whole.linear.weight)
        part.linear.bias.copy_(whole.linear.bias)
    with pytest.raises(PlanError, match=r"4 differences.*'frozen' is missing in the model; 'embed.weight' is.*subset=True"):
        sff_fast.smooth_(part, PLAN)
    sff_fast.smooth_(part, PLAN, subset=True)
    sff_fast.smooth_(whole, PLAN)
    assert torch.equal(part.linear.weight, whole.linear.weight)


def test_a_shape_that_differs_is_an_error_and_a_dtype_is_reported():
    net = pretrained()
    net.linear = nn.Linear(8, 9)
    with pytest.raises(PlanError, match=r"'linear.weight' has shape \(9, 8\), the plan has \(8, 8\)"):
        sff_fast.smooth_(net, PLAN)
    report = sff_fast.smooth_(pretrained().to(torch.bfloat16), PLAN)
    assert "linear.bias: float32 -> bfloat16" in report.dtypes


def test_a_part_of_a_model_is_addressed_by_a_prefix():
    outer = nn.Sequential()
    outer.add_module("inner", pretrained())
    sff_fast.smooth_(outer, PLAN, prefix="-inner.")
    net = pretrained()
    sff_fast.smooth_(net, PLAN)
    assert same(state(outer.inner), state(net))
    alone = pretrained()
    plan = sff_fast.trace(lambda: nn.ModuleDict({"inner": Net()}))
    sff_fast.smooth_(alone, plan, prefix="inner.")
    wrapped = nn.ModuleDict({"inner": pretrained()})
    sff_fast.smooth_(wrapped, plan)
    assert same(state(alone), state(wrapped["inner"]))


# ---------------------------------------------------------------------- records and autograd
def test_smoothing_twice_is_an_error_unless_again_is_given():
    net = pretrained()
    sff_fast.smooth_(net, PLAN, seed=1)
    after = state(net)
    with pytest.raises(ArgumentError, match=r"was smoothed before \(seed 1, plan [0-9a-f]{12}\).*again=True"):
        sff_fast.smooth_(net, PLAN, seed=2)
    assert same(state(net), after)
    with pytest.raises(ArgumentError, match="was smoothed before"):
        sff_fast.smooth_(copy.deepcopy(net), PLAN)
    sff_fast.smooth_(net, PLAN, seed=2, again=True)
    records = sff_fast.smoothing_of(net)
    assert [r["seed"] for r in records] == [1, 2]
    assert records[0]["plan_hash"] == PLAN.hash
    assert records[0]["stream_version"] == sff_fast.STREAM_VERSION
    assert records[0]["shrink"]["norm.weight"] == 0.7


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_a_write_between_forward_and_backward_raises(backend):
    net = pretrained()
    loss = net(torch.tensor([1, 2])).sum()
    sff_fast.smooth_(net, PLAN, backend=backend)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_gradients_optimizer_and_requires_grad_stay_as_they_were():
    net = pretrained()
    net(torch.tensor([1, 2])).sum().backward()
    grads = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
    pointers = {n: p.data_ptr() for n, p in net.named_parameters()}
    sff_fast.smooth_(net, PLAN)
    assert all(torch.equal(p.grad, grads[n]) for n, p in net.named_parameters() if n in grads)
    assert pointers == {n: p.data_ptr() for n, p in net.named_parameters()}
    assert not net.frozen.requires_grad
    assert net.linear.weight.requires_grad


def test_global_random_state_is_neither_read_nor_changed():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    sff_fast.smooth_(pretrained_without_seed := copy.deepcopy(PRETRAINED), PLAN)
    assert torch.equal(torch.get_rng_state(), before)
    assert pretrained_without_seed is not PRETRAINED


PRETRAINED = pretrained()


# ---------------------------------------------------------------------- parameters that cannot be written
class Two(nn.Module):
    """Two parameters of a shape."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.zeros(4, 4))
        self.b = nn.Parameter(torch.ones(4, 4))


def _replaced(**values: torch.Tensor) -> Two:
    model = Two()
    for name, value in values.items():
        setattr(model, name, nn.Parameter(value, requires_grad=value.is_floating_point()))
    return model


FLAT = torch.zeros(64)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _replaced(a=torch.zeros(4, 1).expand(4, 4)), r"'a'.*strides \(1, 0\) put several elements at one address"),
        (lambda: _replaced(a=torch.zeros(7).as_strided((4, 4), (1, 1))), "'a'.*one address"),
        (lambda: _replaced(a=torch.zeros(4, 4, dtype=torch.int64)), "'a'.*dtype is int64, expected one of float32"),
        (lambda: _replaced(a=torch.zeros(4, 4, dtype=torch.complex64)), "'a'.*dtype is complex64"),
        (lambda: _replaced(a=torch.zeros(4, 4).to_sparse()), "'a'.*layout is torch.sparse_coo"),
        (lambda: _replaced(b=torch.zeros(4, 4, device="meta")), "'b'.*meta device"),
        (
            lambda: _replaced(a=FLAT[:16].view(4, 4), b=FLAT[15:31].view(4, 4)),
            "'a' and 'b' are distinct parameters that share memory",
        ),
        (lambda: _replaced(a=FLAT[:16].view(4, 4), b=FLAT[:16].view(4, 4)), "share memory"),
        (lambda: _replaced(a=FLAT.view(8, 8)[:4, :4], b=FLAT.view(8, 8)[3:7, 3:7]), "share memory"),
    ],
    ids=[
        "stride 0",
        "overlapping strides",
        "int",
        "complex",
        "sparse",
        "meta",
        "partly shared",
        "wholly shared",
        "interleaved shared",
    ],
)
def test_parameters_that_cannot_be_written_in_place_are_refused_by_name(make, message):
    plan = sff_fast.trace(Two)
    with pytest.raises(PlanError, match=message):
        sff_fast.smooth_(make(), plan)


def test_neighbours_in_one_storage_are_fine():
    flat = torch.zeros(8, 8)
    model = _replaced(a=flat[:4, :4], b=flat[:4, 4:])
    sff_fast.smooth_(model, sff_fast.trace(Two), alpha=0.5)
    assert (flat[:4, 4:] == 0.5).all()
    assert (flat[:, :4] == 0).all()
    flat = torch.ones(32)
    model = _replaced(a=flat[:16].view(4, 4), b=flat[16:].view(4, 4))
    assert sff_fast.smooth_(model, sff_fast.trace(Two)).elements == 32


def test_a_lazy_parameter_is_refused():
    model = nn.LazyLinear(3)
    with pytest.raises(PlanError, match=r"'weight'.*run one forward pass first"):
        sff_fast.smooth_(model, sff_fast.trace(lambda: nn.Linear(2, 3)))


def test_empty_parameters_and_empty_models_are_fine():
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.none = nn.Parameter(torch.empty(0, 5))
            self.one = nn.Parameter(torch.ones(()))

    model = Empty()
    assert sff_fast.smooth_(model, Empty, alpha=0.5).elements == 1
    assert sff_fast.smooth_(nn.Identity(), nn.Identity).elements == 0


# ---------------------------------------------------------------------- backends
def test_available_backends_say_what_is_there_and_why_not():
    there = sff_fast.available_backends()
    assert list(there) == ["cpu", "cuda", "reference"]
    assert there["reference"] == "ok"
    assert there["cpu"].startswith(("avx512", "avx2", "baseline"))
    assert there["cuda"].startswith("absent: ")


def test_an_explicit_backend_that_is_absent_raises_with_what_to_do(monkeypatch):
    with pytest.raises(BackendError, match="backend='cuda' is absent"):
        sff_fast.smooth_(pretrained(), PLAN, backend="cuda")
    monkeypatch.setattr(backends.cpu, "_cpu", None)
    monkeypatch.setattr(backends.cpu, "_why_absent", "not compiled: reinstall")
    assert sff_fast.available_backends()["cpu"] == "absent: not compiled: reinstall"
    with pytest.raises(BackendError, match="backend='cpu' is absent: not compiled: reinstall"):
        sff_fast.smooth_(pretrained(), PLAN, backend="cpu")


def test_without_compiled_kernels_auto_says_once_that_it_is_slow_and_gives_the_same_bits(monkeypatch):
    net, expected = pretrained(), pretrained()
    sff_fast.smooth_(expected, PLAN)
    monkeypatch.setattr(backends.cpu, "_cpu", None)
    monkeypatch.setattr(backends.cpu, "_why_absent", "not compiled")
    monkeypatch.setattr(backends, "_said", set())
    with pytest.warns(RuntimeWarning, match="slow reference backend"):
        sff_fast.smooth_(net, PLAN)
    assert same(state(net), state(expected))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sff_fast.smooth_(pretrained(), PLAN)


def test_an_isa_that_does_not_exist_is_refused_by_name(monkeypatch):
    monkeypatch.setenv("SFF_FAST_ISA", "sse9")
    assert "SFF_FAST_ISA must be one of baseline, avx2, avx512, got 'sse9'" in sff_fast.available_backends()["cpu"]
    with pytest.raises(BackendError, match="SFF_FAST_ISA must be one of"):
        sff_fast.smooth_(pretrained(), PLAN, backend="cpu")


def test_reports_are_json():
    import json

    report = sff_fast.smooth_(pretrained(), PLAN)
    assert json.loads(json.dumps(report.to_json()))["seed"] == 0
