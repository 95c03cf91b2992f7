"""Constructors as people write them, each traced, checked against really constructed models, and replayed or refused."""

from __future__ import annotations

import copy
import io
import math
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import sff_fast
from sff_fast.errors import PlanError
from sff_fast.tracing import trace
from sff_fast.verification import verify


class Holder(nn.Module):
    """A module with the given parameters."""

    def __init__(self, **tensors):
        super().__init__()
        for name, value in tensors.items():
            setattr(self, name, value if isinstance(value, (nn.Module, nn.Parameter)) else nn.Parameter(value))


def traced(factory, seeds=(1, 2, 3)):
    """The plan of a factory, checked against really constructed models."""
    plan = trace(factory)
    report = verify(factory, plan, seeds)
    assert report.ok, f"\n{report}"
    return plan


def texts(plan):
    """Name -> the distributions of its segments as text, each once, in order."""
    return {name: " ".join(dict.fromkeys(str(s.distribution) for s in p.segments)) for name, p in plan.parameters.items()}


def assert_replayed(factory, plan, seed=5):
    """Smoothing with torch's numbers has the bits of a second model; each parameter is a copy, since some share memory."""
    torch.manual_seed(0)
    ours = _copies(factory())
    expected = {name: p.clone() for name, p in ours.named_parameters()}
    sff_fast.smooth_(ours, plan, seed=seed, rng="torch")
    torch.manual_seed(seed)
    second = {name: q.detach() for name, q in factory().named_parameters()}
    for name, p in ours.named_parameters():
        want = expected[name] * 0.7 + second[name] * (1 - 0.7)
        same = p.eq(want.to(p.dtype)) | (p.isnan() & want.isnan())
        assert bool(same.all()), name


def _copies(model):
    """Modules of the same names with parameters in memory of their own."""
    root = nn.Module()
    for name, p in model.named_parameters():
        *path, last = name.split(".")
        at = root
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at._modules[part]
        at.register_parameter(last, nn.Parameter(p.detach().clone(), requires_grad=False))
    return root


CASES = {}
"""Name -> (factory, texts of the plan): what stays elementwise and has to replay."""

FALLBACKS = {}
"""Name -> (factory, parameter -> part of the reason): what is redrawn with the factory."""


def case(**expected):
    """Register a constructor with what its plan has to say."""

    def register(factory):
        CASES[factory.__name__] = factory, expected
        return factory

    return register


def fallback(**reasons):
    """Register a constructor some of whose parameters are no elementwise draws."""

    def register(factory):
        FALLBACKS[factory.__name__] = factory, reasons
        return factory

    return register


# ---------------------------------------------------------------------- init functions
@case(
    **{
        "emb.weight": "Normal(0, 0.02) Constant(0)",
        "l.weight": "Normal(0, 0.01)",
        "l.bias": "Constant(0)",
        "ln.weight": "Constant(1)",
        "ln.bias": "Constant(0)",
        "c.weight": "Normal(0, 0.02)",
        "c.bias": "Constant(0)",
    }
)
def init_weights_through_data():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.l = nn.Embedding(30, 8, padding_idx=1), nn.Linear(8, 16)
            self.ln, self.c = nn.LayerNorm(8), nn.Conv1d(8, 8, 3)
            self.apply(self._init_weights)
            for name, p in self.named_parameters():
                if name == "l.weight":
                    p.data.normal_(0.0, 0.02 / math.sqrt(4))

        def _init_weights(self, module):
            if isinstance(module, (nn.Linear, nn.Conv1d)):
                module.weight.data.normal_(mean=0.0, std=0.02)
                module.bias.data.zero_()
            elif isinstance(module, nn.Embedding):
                module.weight.data.normal_(0.0, 0.02)
                module.weight.data[module.padding_idx].zero_()
            elif isinstance(module, nn.LayerNorm):
                module.bias.data.zero_()
                module.weight.data.fill_(1.0)

    return Net()


@case(weight="Uniform(-0.0125, 0.0125)", bias="Uniform(0.75, 1.25)")
def scaled_after_drawing():
    layer = nn.Linear(16, 30)
    with torch.no_grad():
        layer.weight.mul_(0.1)
        layer.weight /= 2
        layer.bias.add_(1).clamp_(min=0)
    return layer


@case(
    a="Constant(0) Constant(1)",
    b="Constant(0) Constant(1)",
    c="sparse(sparsity=0.2, std=0.01)",
    d="Normal(0, 0.451524)",
    e="Uniform(-0.774597, 0.774597)",
    f="orthogonal(gain=1)",
)
def every_kind_of_nn_init():
    init = nn.init
    return Holder(
        a=init.dirac_(torch.empty(8, 4, 3), groups=2),
        b=init.eye_(torch.empty(5, 7)),
        c=init.sparse_(torch.empty(20, 9), 0.2),
        d=init.kaiming_normal_(torch.empty(9, 20), a=0.3, mode="fan_out", nonlinearity="leaky_relu"),
        e=init.xavier_uniform_(torch.empty(6, 4)),
        f=init.orthogonal_(torch.empty(4, 6)),
    )


@case(a="Uniform(-1, 1)", b="Normal(0, 0.1)", c="Constant(0)", d="table")
def legacy_constructors():
    return Holder(
        a=torch.FloatTensor(40, 10).uniform_(-1, 1),
        b=nn.init.normal_(torch.Tensor(3, 3), 0, 0.1),
        c=torch.zeros(3, 3).float(),
        d=torch.Tensor([1.0, 2.0, 4.0]),
    )


@case(w="Normal(0, 0.1) Normal(0, 0.2) Normal(0, 0.3)")
def rows_of_different_spread():
    w = torch.empty(3, 4)
    for i in range(3):
        nn.init.normal_(w[i], std=0.1 * (i + 1))
    return Holder(w=w)


@case(weight_ih_l0="Uniform(-0.420084, 0.420084)", weight_hh_l0="orthogonal(gain=1)", bias_ih_l0="Constant(0) Constant(1)")
def gates_of_a_recurrent_layer():
    lstm = nn.LSTM(6, 7)
    for name, p in lstm.named_parameters():
        if "weight_ih" in name:
            nn.init.xavier_uniform_(p.data, gain=1.0)
        elif "weight_hh" in name:
            for gate in p.chunk(4):
                nn.init.orthogonal_(gate)
        else:
            p.data.fill_(0)
            p.data[7:14].fill_(1)
    return lstm


# ---------------------------------------------------------------------- masks and parts
@case(a="Normal(0, 1) Constant(0)", b="Normal(0, 1) Constant(0)", c="Uniform(0, 1) Constant(-1)", d="Normal(0, 1) Constant(2)")
def fixed_masks():
    w = torch.randn(9, 9)
    w[torch.triu(torch.ones(9, 9, dtype=torch.bool), 1)] = 0
    return Holder(
        a=w,
        b=torch.randn(9, 9).masked_fill(torch.eye(9).bool(), 0.0),
        c=torch.where(torch.arange(9)[:, None] > 5, torch.rand(9, 9), -1.0),
        d=torch.where(torch.arange(9) > 5, torch.full((), 2.0), torch.randn(4, 9)),
    )


@case(a="Normal(0, 1) Constant(0)", b="Normal(0, 1) Constant(0)", c="Uniform(0, 1) Constant(0)")
def triangles():
    return Holder(a=torch.randn(9, 9).tril(), b=torch.randn(7, 9).triu_(1), c=torch.rand(3, 4, 4).tril(-1))


@case(w="Constant(0) Constant(1)", b="Constant(-4.59512)")
def centres_of_a_kernel():
    w = torch.zeros(4, 4, 3, 3)
    for i in range(4):
        w[i, i, 1, 1] = 1
    return Holder(w=w, b=torch.full((4,), -math.log((1 - 0.01) / 0.01)))


@case(**{"0.weight": "Uniform(-0.25, 0.25)", "0.bias": "Constant(0)", "1.weight": "Uniform(-0.5, 0.5)", "1.bias": "Normal(0, 1)"})
def lists_of_tensors():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    parameters = [p.data for p in model.parameters()]
    torch._foreach_mul_(parameters[:1], 0.5)
    torch._foreach_zero_(parameters[1:2])
    torch._foreach_copy_(parameters[3:], [torch.randn(3)])
    return model


# ---------------------------------------------------------------------- views, copies, ties
@case(a="Normal(0, 1)", b="Normal(0, 1)", c="Normal(0, 1)", d="table")
def views_of_one_tensor():
    flat, fixed = torch.randn(60), torch.arange(30.0)
    model = nn.Module()
    model.a, model.b = nn.Parameter(flat[:20].view(4, 5)), nn.Parameter(flat[20:40].view(5, 4).t())
    model.c, model.d = nn.Parameter(flat[::3][:5]), nn.Parameter(fixed[1::4][:5])
    return model


@case(**{"0.weight": "Normal(0, 0.3)", "1.bias": "Uniform(-0.447214, 0.447214)"})
def tied_after_drawing():
    model = nn.Sequential(nn.Embedding(9, 5), nn.Linear(5, 9))
    nn.init.normal_(model[1].weight, std=0.3)
    model[0].weight = model[1].weight
    return model


@case(**dict.fromkeys(("m.weight", "m.bias", "t.weight", "t.bias", "l.weight", "l.bias"), "Uniform(-0.5, 0.5)"))
def copies_of_a_state():
    m, other = nn.Linear(4, 4), nn.Linear(4, 4)
    with torch.device("meta"):
        late = nn.Linear(4, 4)
    other.load_state_dict(m.state_dict())
    late.load_state_dict(m.state_dict(), assign=True)
    return Holder(m=m, t=other, l=late)


@case(**dict.fromkeys(("0.weight", "0.bias", "1.weight", "1.bias"), "Normal(0, 0.1)"))
def one_vector_for_all():
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3))
    nn.utils.vector_to_parameters(torch.randn(5 * 4 + 4 + 4 * 3 + 3) * 0.1, model.parameters())
    return model


@case(weight="Normal(0, 0.5)", bias="Uniform(0, 1)")
def replaced_memory():
    layer = nn.Linear(8, 8)
    layer.weight.data = torch.randn_like(layer.weight)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(8, 8).mul(0.5))
        layer.weight[:4].copy_(layer.weight[4:])
        layer.bias.set_(torch.rand(8))
    return layer


@case(**{"l.0": "Normal(0, 1)", "l.1": "Normal(0, 1)", "d.x": "Uniform(0, 1)", "d.y": "Constant(0)"})
def lists_and_dictionaries_of_parameters():
    model = nn.Module()
    model.l = nn.ParameterList([nn.Parameter(torch.randn(3, i + 1)) for i in range(2)])
    model.d = nn.ParameterDict({"x": torch.rand(7), "y": nn.Parameter(torch.zeros(2))})
    return model


@case(a="table", b="Normal(0, 1)", c="Constant(2)")
def buffers_that_parameters_are_made_of():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("positions", torch.arange(6.0).sin())
            self.register_buffer("drawn", torch.randn(6))
            self.register_buffer("two", torch.full((3,), 2.0))
            self.a, self.b = nn.Parameter(self.positions * 2), nn.Parameter(self.drawn.clone())
            self.c = nn.Parameter(self.two.clone())

    return Net()


# ---------------------------------------------------------------------- fixed values
@case(a="table", b="table", c="table", d="table", e="Constant(1e-06)", f="table")
def ramps_and_windows():
    return Holder(
        a=torch.linspace(0, 1, 9),
        b=torch.logspace(-1, 1, 5),
        c=torch.log(torch.arange(1, 17).float()).repeat(8, 1),
        d=torch.hann_window(8),
        e=1e-6 * torch.ones(5),
        f=torch.from_numpy(np.linspace(0, 1, 9)).float(),
    )


@case(a="Constant(2)", b="", c="", d="table", e="Normal(0, 1)")
def scalars_and_empty_tensors():
    return Holder(a=torch.tensor(2.0), b=torch.empty(0, 3), c=torch.randn(0), d=torch.tensor(math.nan), e=torch.randn(()))


# ---------------------------------------------------------------------- dtypes
@case(
    **{
        "a.weight": "Uniform(-0.125, 0.125)",
        "b.weight": "Uniform(-0.125, 0.125)",
        "c": "Normal(0, 0.02)",
        "d": "TruncNormal(0, 1, -2, 2)",
        "e": "Uniform(-1, 1)",
        "f": "Normal(0, 0.5)",
        "g": "Uniform(0, 1)",
    }
)
def half_precision_from_the_start():
    return Holder(
        a=nn.Linear(64, 3, bias=False, dtype=torch.float16),
        b=nn.Linear(64, 3, bias=False, dtype=torch.bfloat16),
        c=torch.randn(50, dtype=torch.half) * 0.02,
        d=nn.init.trunc_normal_(torch.empty(50, dtype=torch.bfloat16)),
        e=torch.rand(60, dtype=torch.bfloat16) * 2 - 1,
        f=torch.randn(30).double().mul(0.5).float(),
        g=torch.rand(50).half().float(),
    )


@case(weight="Uniform(-0.125, 0.125)")
def half_precision_by_default():
    torch.set_default_dtype(torch.bfloat16)
    try:
        return nn.Linear(64, 5, bias=False)
    finally:
        torch.set_default_dtype(torch.float32)


# ---------------------------------------------------------------------- parametrizations
class Symmetric(nn.Module):
    def forward(self, x):
        return x.triu() + x.triu(1).transpose(-1, -2)


class Halved(nn.Module):
    def forward(self, x):
        return torch.matrix_exp(x - x.mT)

    def right_inverse(self, x):
        return x * 0.5


@case(**{"a.bias": "Uniform(-0.5, 0.5)", "b.bias": "Uniform(-0.5, 0.5)"} | {
    "a.parametrizations.weight.original": "Uniform(-0.5, 0.5)", "b.parametrizations.weight.original": "Uniform(-0.25, 0.25)"
})  # fmt: skip
def parametrizations_of_ones_own():
    a, b = nn.Linear(4, 4), nn.Linear(4, 4)
    parametrize.register_parametrization(a, "weight", Symmetric())
    parametrize.register_parametrization(b, "weight", Halved())
    return Holder(a=a, b=b)


@case(**dict.fromkeys(("a.weight_orig", "a.bias", "b.weight_orig", "b.bias"), "Uniform(-0.5, 0.5)"))
def pruned_layers():
    a, b = nn.Linear(4, 9), nn.Linear(4, 9)
    prune.l1_unstructured(a, "weight", 0.5)
    prune.ln_structured(b, "weight", 0.3, n=2, dim=0)
    return Holder(a=a, b=b)


@case(**{f"{name}.parametrizations.weight.original": "Constant(0) Constant(-1)" for name in "abc"})
def orthogonal_parametrizations():
    # The matrix is a buffer, and the parameter its distance from there.
    orthogonal = parametrizations.orthogonal
    return Holder(
        a=orthogonal(nn.Linear(9, 5)),
        b=orthogonal(nn.Linear(5, 9), orthogonal_map="cayley"),
        c=orthogonal(nn.Linear(9, 5), orthogonal_map="householder"),
    )


# ---------------------------------------------------------------------- generators
@case(a="Normal(0, 1)", b="Uniform(0, 1)")
def torchs_own_generator_given_by_name():
    own = torch.default_generator
    return Holder(a=nn.init.normal_(torch.empty(40), generator=own), b=torch.rand(30, generator=own))


@case(a="table", b="table", c="Normal(0, 1)", d="table", e="table")
def generators_of_ones_own():
    own = torch.Generator().manual_seed(3)
    return Holder(
        a=nn.init.normal_(torch.empty(9), generator=own),
        b=torch.rand(9, generator=own),
        c=torch.randn(5),
        d=nn.init.trunc_normal_(torch.empty(9), generator=own),
        e=nn.init.orthogonal_(torch.empty(4, 4), generator=own),
    )


@case(a="Normal(0, 1)", b="Normal(0, 1)")
def a_forked_generator():
    with torch.random.fork_rng(devices=[]):
        a = torch.randn(20)
    return Holder(a=a, b=torch.randn(20))


@case(a="Normal(0, 1)", x="Uniform(0, 1)", b="Normal(0, 2)", c="Normal(0, 1)", d="Uniform(0, 1)", e="Normal(0, 1)")
def a_generator_put_back_and_used_otherwise():
    start = torch.get_rng_state()
    a, x = torch.randn(20), torch.rand(3)
    later = torch.get_rng_state()
    torch.set_rng_state(start)
    b, c = torch.randn(20) * 2, torch.randn(7)
    torch.set_rng_state(later)
    d = torch.rand(5)
    torch.set_rng_state(start)
    return Holder(a=a, x=x, b=b, c=c, d=d, e=torch.randn(33))


@case(
    a="Normal(0, 1)",
    b="Normal(0, 1)",
    c="orthogonal(gain=1)",
    d="orthogonal(gain=1)",
    e="TruncNormal(0, 1, -2, 2)",
    f="TruncNormal(0, 1, -2, 2)",
)
def a_generator_put_back_for_the_same_draw_in_another_form():
    state = torch.get_rng_state()
    a, c, e = torch.randn(4, 6), nn.init.orthogonal_(torch.empty(4, 6)), nn.init.trunc_normal_(torch.empty(30))
    torch.set_rng_state(state)
    b, d = torch.empty(24).normal_(), nn.init.orthogonal_(torch.empty(6, 4))
    torch.set_rng_state(state)
    torch.randn(24), nn.init.orthogonal_(torch.empty(4, 6))
    return Holder(a=a, b=b, c=c, d=d, e=e, f=nn.init.trunc_normal_(torch.empty(5, 6)))


# ---------------------------------------------------------------------- the rest
@case(w="Normal(0, 2)")
def inference_mode():
    with torch.inference_mode():
        w = torch.randn(9) * 2
    return Holder(w=w.clone())


@case(weight="Uniform(-1, 1)", bias="Uniform(-0.5, 0.5)")
def a_function_over_rows():
    layer = nn.Linear(4, 4)
    layer.weight = nn.Parameter(torch.func.vmap(lambda row: row * 2)(layer.weight.detach()))
    return layer


@pytest.mark.parametrize("name", CASES)
def test_a_constructor_is_traced_as_it_draws_and_replayed_bit_for_bit(name):
    factory, expected = CASES[name]
    plan = traced(factory)
    found = texts(plan)
    assert {key: found[key] for key in expected} == expected
    assert "opaque" not in " ".join(found.values())
    assert_replayed(factory, plan)


def test_what_a_forked_generator_draws_twice_is_one_draw():
    plan = trace(a_forked_generator)
    assert plan["b"].segments[0].draw == plan["a"].segments[0].draw == "a"
    assert len(plan.program) == 1
    assert plan.notes == ()
    form = trace(a_generator_put_back_for_the_same_draw_in_another_form)
    assert (form["b"].segments[0].draw, form["f"].segments[0].draw) == ("a", "e")
    assert form["d"].segments[0].draw == "d"
    other = trace(a_generator_put_back_and_used_otherwise)
    assert other["b"].segments[0].draw == "a"
    assert [record.after for record in other.program] == [None, None, 0, 1, -1]
    assert "puts torch's generator back" in other.notes[0]


def test_a_program_with_a_generator_put_back_survives_its_file(tmp_path):
    plan = trace(a_generator_put_back_and_used_otherwise)
    plan.save(tmp_path / "plan.json")
    loaded = sff_fast.InitPlan.load(tmp_path / "plan.json")
    assert loaded.program == plan.program
    assert_replayed(a_generator_put_back_and_used_otherwise, loaded)


# ---------------------------------------------------------------------- what is no elementwise draw
@fallback(a="mul", b="abs", c="exp > clamp > add", d="linalg_vector_norm > div", e="lerp", f="_linalg_svd > mm")
def arithmetic_of_random_tensors():
    r, w = torch.randn(6), torch.randn(9, 5)
    dt = torch.exp(torch.rand(8) * 4.6 - 6.9).clamp(min=1e-4)
    u, _, v = torch.linalg.svd(torch.randn(6, 6))
    return Holder(
        a=r * torch.arange(6.0),
        b=r.abs(),
        c=dt + torch.log(-torch.expm1(-dt)),
        d=w / w.norm(dim=1, keepdim=True),
        e=torch.lerp(torch.zeros(50), torch.randn(50), 0.3),
        f=u @ v,
    )


@fallback(a="flip", b="roll", c="index_select", d="constant_pad_nd", e="bmm", f="random values through clone")
def elements_put_elsewhere():
    return Holder(
        a=torch.randn(4, 6).flip(0),
        b=torch.randn(12).roll(3),
        c=torch.randn(4, 5).index_select(0, torch.tensor([2, 1])),
        d=nn.functional.pad(torch.randn(3, 3), (1, 1)),
        e=torch.einsum("ij,jk->ik", torch.randn(3, 4), torch.randn(4, 3)),
        f=torch.randn(4, 6).unfold(1, 3, 1).clone(),  # overlapping windows
    )


@fallback(b="add", c="clamp")
def sums_of_draws_and_clamps_that_cut():
    a = torch.randn(40)
    return Holder(a=a, b=torch.randn(40) + torch.randn(40), c=torch.randn(40).clamp(-1, 1))


@fallback(**{"a.parametrizations.weight.original0": "norm", "b.weight_g": "norm"})
def weight_norm_old_and_new():
    with pytest.warns(FutureWarning, match="weight_norm"):
        old = nn.utils.weight_norm(nn.Linear(9, 5))
    return Holder(a=parametrizations.weight_norm(nn.Linear(9, 5)), b=old)


@fallback(**{"parametrizations.weight.original": "geqrf"})
def an_orthogonal_parametrization_that_reads_values():
    return parametrizations.orthogonal(nn.Linear(9, 5), use_trivialization=False)


@fallback(weight="mm > add_", bias="sum > add_")
def a_training_step():
    layer = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    layer(torch.ones(2, 5)).sum().backward()
    optimizer.step()
    return layer


@fallback(a="random numbers of Python and NumPy", b="random numbers of Python and NumPy")
def numbers_of_numpy_and_python():
    import random

    return Holder(
        a=torch.as_tensor(np.random.normal(size=9)).float(),
        b=torch.full((20,), random.random()),
        c=torch.tensor(np.random.default_rng(0).normal(size=9)).float(),
    )


@fallback(a="random numbers from outside of torch")
def a_generator_that_is_seeded_from_a_draw():
    seed = int(torch.randint(0, 1000, (1,)).item())
    return Holder(a=torch.randn(20, generator=torch.Generator().manual_seed(seed)), b=torch.rand(20))


@fallback(**{"b.weight": "random numbers from outside of torch", "c.weight": "random numbers from outside of torch"})
def copies_through_bytes():
    a, c = nn.Linear(5, 4), nn.Linear(5, 4)
    file = io.BytesIO()
    torch.save(a.state_dict(), file)
    file.seek(0)
    c.load_state_dict(torch.load(file))
    return Holder(a=a, b=pickle.loads(pickle.dumps(a)), c=c)


@fallback(**{"a.weight": "random numbers from outside of torch"})
def a_layer_made_in_another_thread():
    made = []
    thread = threading.Thread(target=lambda: made.append(nn.Linear(5, 4)))
    thread.start()
    thread.join()
    return Holder(a=made[0], b=nn.Linear(4, 3))


@pytest.mark.parametrize("name", FALLBACKS)
def test_what_is_not_elementwise_says_why_and_is_drawn_again_for_another_seed(name):
    factory, reasons = FALLBACKS[name]
    plan = traced(factory)
    opaque = {
        parameter.name: segment.distribution.reason
        for parameter in plan.parameters.values()
        for segment in parameter.segments
        if segment.distribution.kind == "opaque"
    }
    for parameter, reason in reasons.items():
        assert reason in opaque[parameter]
        assert not torch.equal(plan.sample(parameter, 1), plan.sample(parameter, 2))
        assert reason in str(plan)
    model = _copies(factory())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(PlanError, match="rng='torch' cannot replay"):
        sff_fast.smooth_(model, plan, rng="torch")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_only_what_is_not_elementwise_falls_back():
    assert texts(trace(sums_of_draws_and_clamps_that_cut))["a"] == "Normal(0, 1)"
    found = texts(trace(weight_norm_old_and_new))
    assert found["a.parametrizations.weight.original1"] == found["b.weight_v"] == "Uniform(-0.333333, 0.333333)"
    numbers = texts(trace(numbers_of_numpy_and_python))
    assert numbers == {"a": "opaque", "b": "opaque", "c": "table"}


def test_a_draw_in_another_thread_is_noticed_by_the_draws_after_it():
    def factory():
        a = torch.randn(5)
        thread = threading.Thread(target=torch.randn, args=(1000,))
        thread.start()
        thread.join()
        return Holder(a=a, b=torch.randn(6))

    plan = traced(factory)
    model = factory()
    with pytest.raises(PlanError, match=r"cannot replay draw 1 .*torch's generator gave numbers in another thread"):
        sff_fast.smooth_(model, plan, rng="torch")
    sff_fast.smooth_(model, plan, alpha={"a": 0.7}, rng="torch")  # it comes before


def test_dtypes_that_are_not_smoothed_are_in_the_plan_and_may_be_left_out(tmp_path):
    def factory():
        tensors = dict(
            i=torch.arange(5), c=torch.randn(4, dtype=torch.cfloat), z=torch.full((3,), 2j), r=torch.randint(0, 9, (40,))
        )
        model = Holder(w=torch.randn(9))
        for name, value in tensors.items():
            setattr(model, name, nn.Parameter(value, requires_grad=False))
        return model

    plan = traced(factory)
    assert texts(plan) == {"w": "Normal(0, 1)", "i": "table", "c": "opaque", "z": "table", "r": "opaque"}
    plan.save(tmp_path / "plan.json")
    assert sff_fast.InitPlan.load(tmp_path / "plan.json") == plan
    assert sff_fast.smooth_(factory(), plan, alpha={"w": 0.7}).elements == 9
    for name, dtype in (("i", "int64"), ("c", "complex64")):
        with pytest.raises(PlanError, match=f"'{name}' has dtype {dtype}, which no sample is drawn in: expected one of float32"):
            plan.sample(name, 1)
