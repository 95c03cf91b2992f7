"""A second call on a model takes over what the first one found out, and nothing that may have changed.

Each test runs with either of those that are asked whether the parameters are what they were.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import weakref
from collections import OrderedDict
from collections.abc import Callable

import pytest
import torch
from test_smooth import PLAN, Net, pretrained, same, state
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

import sff_fast
from sff_fast import backends, prepared, table
from sff_fast.backends import cpu
from sff_fast.distributions import Normal
from sff_fast.errors import BackendError, PlanError
from sff_fast.observed import observe

API = "__dlpack_c_exchange_api__"
OFFERED = hasattr(nn.Parameter, API)
"""Whether this torch has what the native module asks; without it every test below asks the columns."""


@pytest.fixture(autouse=True, params=["native", "columns"])
def asked(request, monkeypatch) -> str:
    """Who is asked whether the parameters are what they were."""
    if request.param == "native" and OFFERED:
        return "native"
    monkeypatch.setattr(nn.Parameter, API, None, raising=False)
    return "columns"


@pytest.fixture
def laid(monkeypatch) -> list[int]:
    """One entry a call that laid a plan over memory."""
    calls: list[int] = []
    build = table.build

    def counted(*arguments, **keywords):
        calls.append(1)
        return build(*arguments, **keywords)

    monkeypatch.setattr(table, "build", counted)
    return calls


def _warm() -> Net:
    """A model that was smoothed once, with its weights as before."""
    net = pretrained()
    sff_fast.smooth_(net, PLAN, seed=1)
    net.load_state_dict(pretrained().state_dict())
    return net


def _expect(net: nn.Module, plan: object = PLAN, **arguments: object) -> dict:
    """What a model that was never smoothed becomes; the reference backend takes nothing over."""
    fresh = copy.deepcopy(net)
    sff_fast.smooth_(fresh, plan, **arguments, again=True, backend="reference")
    return state(fresh)


@pytest.mark.parametrize("seed", [0, 1, 7, -3, (1 << 64) - 1])
def test_another_seed_uses_the_table_of_the_call_before(laid, seed):
    net = _warm()
    expected = _expect(net, seed=seed)
    before = len(laid)
    report = sff_fast.smooth_(net, PLAN, seed=seed, again=True)
    assert len(laid) == before
    assert same(state(net), expected)
    assert report.seed == seed % (1 << 64)


def test_the_report_of_a_call_that_took_things_over_is_the_same():
    first = sff_fast.smooth_(pretrained(), PLAN, {"linear.*": 0.5, "norm.*": 1.0}, seed=3).to_json()
    net = pretrained()
    sff_fast.smooth_(net, PLAN, {"linear.*": 0.5, "norm.*": 1.0}, seed=4)
    second = sff_fast.smooth_(net, PLAN, {"linear.*": 0.5, "norm.*": 1.0}, seed=3, again=True).to_json()
    for name in ("seconds", "threads"):
        del first[name], second[name]
    assert first == second


def test_reports_do_not_share_their_dicts():
    net = pretrained()
    sff_fast.smooth_(net, PLAN, seed=1).shrink.clear()
    report = sff_fast.smooth_(net, PLAN, seed=1, again=True)
    report.shrink.clear()
    assert sff_fast.smooth_(net, PLAN, seed=1, again=True).shrink["frozen"] == 0.7


@pytest.mark.parametrize(
    "arguments",
    [
        {"alpha": 0.4},
        {"alpha": {"embed*": 0.4, "*": 0.9}},
        {"alpha": {"linear.*": 0.7}},
        {"shrink": 0.7, "perturb": 0.1},
        {"plan": PLAN.override("linear.*", Normal(0, 0.5))},
        {"plan": Net},
    ],
    ids=["alpha", "patterns", "fewer parameters", "perturb", "plan", "constructor"],
)
def test_other_arguments_lay_the_plan_again(laid, arguments):
    net = _warm()
    expected = _expect(net, **{"plan": PLAN, "seed": 1, **arguments})
    before = len(laid)
    sff_fast.smooth_(net, **{"plan": PLAN, "seed": 1, **arguments}, again=True)
    assert len(laid) == before + 1
    assert same(state(net), expected)


def _moved(net: Net) -> None:
    net.linear.weight.data = net.linear.weight.data.clone()


def _transposed(net: Net) -> None:
    net.linear.weight.data = net.linear.weight.data.t()  # the same address and shape, other strides


def _replaced(net: Net) -> None:
    net.linear.weight = nn.Parameter(torch.ones(8, 8))


def _narrowed(net: Net) -> None:
    net.to(torch.bfloat16)


def _widened(net: Net) -> None:
    net.frozen.data = net.frozen.data.to(torch.float64)


def _resized(net: Net) -> None:
    net.linear.weight.data = net.linear.weight.data[:4]  # the same address


def _reshaped(net: Net) -> None:
    net.linear.weight.data = net.linear.weight.data.view(4, 16)


def _flattened(net: Net) -> None:
    net.linear.weight.data = net.linear.weight.data.view(-1)


def _column(net: Net) -> None:
    net.linear.weight.data = net.linear.weight.data[:, 0]  # its size and stride are the first two of the numbers before


def _halved(net: Net) -> None:
    halves = net.linear.weight.data.view(torch.float16)  # no dtype of its own kind but another size, else all the same
    net.linear.weight.data = halves.as_strided((8, 8), (8, 1))


def _swapped(net: Net) -> None:
    net.norm.weight, net.norm.bias = net.norm.bias, net.norm.weight


def _renamed(net: Net) -> None:
    net.linear._parameters = {"scale" if name == "weight" else name: p for name, p in net.linear._parameters.items()}


def _child_renamed(net: Net) -> None:
    net._modules = {"other" if name == "linear" else name: child for name, child in net._modules.items()}


def _reordered(net: Net) -> None:
    net._modules = dict(reversed(net._modules.items()))  # another name of the tied parameter comes first


def _child_replaced(net: Net) -> None:
    net.linear = nn.Linear(8, 8)
    nn.init.constant_(net.linear.weight, 0.5)
    nn.init.constant_(net.linear.bias, 0.5)


def _child_twice(net: Net) -> None:
    net.again = net.linear


def _tied(net: Net) -> None:
    net.norm.bias = net.norm.weight


def _untied(net: Net) -> None:
    net.out.weight = nn.Parameter(torch.ones(11, 8))


def _gone(net: Net) -> None:
    del net.frozen


def _none(net: Net) -> None:
    net.frozen = None


def _added(net: Net) -> None:
    net.extra = nn.Parameter(torch.ones(3))


def _child_gone(net: Net) -> None:
    net.norm = None


def _shared(net: Net) -> None:
    net.linear.bias.data = net.norm.bias.data


def _subclass(net: Net) -> None:
    net.linear.weight.__class__ = type("Sharded", (nn.Parameter,), {})


def _flat(net: Net) -> None:
    net.linear.weight.__class__ = type("FlatParameter", (nn.Parameter,), {})


def _partitioned(net: Net) -> None:
    net.linear.weight.ds_id = 3


def _unsharded(net: Net) -> None:
    net.linear.weight._unpadded_unsharded_size = torch.Size([8, 8])


def _inference(net: Net) -> None:
    with torch.inference_mode():
        over = torch.from_numpy(net.linear.weight.detach().numpy())
    net.linear.weight.data = over  # the same memory


def _sparse(net: Net) -> None:
    torch.utils.swap_tensors(net.linear.weight, nn.Parameter(torch.eye(8).to_sparse()))


def _meta(net: Net) -> None:
    torch.utils.swap_tensors(net.linear.weight, nn.Parameter(torch.ones(8, 8, device="meta")))


def _wrapped(net: Net) -> None:
    net.linear = checkpoint_wrapper(nn.Linear(8, 8))
    for p in net.linear.parameters():
        nn.init.constant_(p, 0.5)


class Kind(nn.Linear):
    """A class that a library has put in the place of another one."""


def _other_class(net: Net) -> None:
    net.linear.__class__ = Kind


def _dict_of_its_own(net: Net) -> None:
    net.norm._parameters = OrderedDict(net.norm._parameters)
    net.norm._parameters.move_to_end("weight")  # which those who read it as a plain dict do not see


CHANGES = [
    _moved, _transposed, _replaced, _narrowed, _widened, _resized, _reshaped, _flattened, _column, _halved, _swapped, _renamed,
    _child_renamed, _reordered, _child_replaced, _child_twice, _tied, _untied, _gone, _none, _added, _child_gone, _shared,
    _subclass, _flat, _partitioned, _unsharded, _inference, _sparse, _meta, _wrapped, _other_class, _dict_of_its_own,
]  # fmt: skip


def _outcome(net: Net, **arguments: object) -> dict | str:
    """What smoothing makes of a model, or the message, which comes before the first write."""
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    try:
        sff_fast.smooth_(net, PLAN, seed=2, again=True, **arguments)
    except PlanError as error:
        after = dict(net.named_parameters())
        if not any(p.is_meta or p.is_sparse for p in after.values()):
            assert same(before, {name: p.detach() for name, p in after.items()})
        return str(error)
    return state(net)


@pytest.mark.parametrize("change", CHANGES)
def test_parameters_that_changed_are_looked_at_as_in_a_first_call(change, asked):
    net, fresh = _warm(), pretrained()
    change(net)
    change(fresh)
    if asked == "native":
        assert prepared._LAST[net].observed.parameters(net) is None
    expected, found = _outcome(fresh, backend="reference"), _outcome(net)
    assert found == expected if isinstance(expected, str) else same(found, expected)


@pytest.mark.parametrize("change", [_moved, _transposed, _replaced, _narrowed, _widened])
def test_parameters_that_changed_have_the_plan_laid_again(laid, change):
    net = _warm()
    change(net)
    before = len(laid)
    sff_fast.smooth_(net, PLAN, seed=2, again=True)
    assert len(laid) == before + 1


def test_the_same_bytes_as_another_dtype_are_looked_at_again():
    net = pretrained().to(torch.bfloat16)
    sff_fast.smooth_(net, PLAN, seed=1)
    net.linear.weight.data = net.linear.weight.data.view(torch.float16)
    expected = _expect(net, seed=2)
    sff_fast.smooth_(net, PLAN, seed=2, again=True)
    assert same(state(net), expected)


def test_rounding_is_part_of_what_is_taken_over():
    net = _warm().to(torch.bfloat16)
    for seed, rounding in enumerate(("nearest", "stochastic", "stochastic")):
        expected = _expect(net, seed=seed, rounding=rounding)
        sff_fast.smooth_(net, PLAN, seed=seed, rounding=rounding, again=True)
        assert same(state(net), expected)


class Orthogonal(nn.Module):
    """A value that is not elementwise: it is stored in a table, which depends on the seed."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(6, 6))
        nn.init.orthogonal_(self.w)


def test_values_that_are_stored_are_drawn_again_for_another_seed(laid):
    plan, net = sff_fast.trace(Orthogonal), Orthogonal()
    sff_fast.smooth_(net, plan, seed=1)
    expected = _expect(net, plan, seed=2)
    before = len(laid)
    sff_fast.smooth_(net, plan, seed=2, again=True)
    assert len(laid) == before + 1
    assert same(state(net), expected)


def test_the_version_counters_rise_each_time():
    net = _warm()
    before = {name: p._version for name, p in net.named_parameters()}
    sff_fast.smooth_(net, PLAN, seed=2, again=True)
    assert all(p._version == before[name] + 1 for name, p in net.named_parameters())


def test_a_backend_that_was_taken_away_is_not_taken_over(monkeypatch):
    net = _warm()
    expected = _expect(net, seed=2)
    monkeypatch.setattr(backends.cpu, "why_absent", lambda: "not compiled")
    monkeypatch.setattr(backends, "_said", set())
    with pytest.warns(RuntimeWarning, match="slow reference backend"):
        report = sff_fast.smooth_(net, PLAN, seed=2, again=True)
    assert report.backends == {"cpu": "reference"}
    assert same(state(net), expected)


def test_nothing_is_kept_for_a_model_that_is_gone():
    net = _warm()
    count = len(prepared._LAST)
    assert net in prepared._LAST
    del net
    assert len(prepared._LAST) == count - 1


def test_a_plan_whose_factory_knows_the_model_does_not_keep_it_alive():
    net = pretrained()

    def factory(known: nn.Module = net) -> nn.Module:
        return Net()

    sff_fast.smooth_(net, sff_fast.trace(factory), seed=1)
    assert net in prepared._LAST
    alive = weakref.ref(net)
    del net, factory
    gc.collect()
    assert alive() is None


def test_another_plan_at_the_same_address_is_not_mistaken_for_the_one_before():
    net = pretrained()
    plan = sff_fast.trace(Net)
    sff_fast.smooth_(net, plan, seed=1)
    key = prepared._LAST[net].key
    assert prepared.recall(net, key, "") is not None
    del plan
    gc.collect()
    assert prepared.recall(net, key, "") is None


# ---------------------------------------------------------------------- who is asked
def test_the_native_module_is_asked_where_torch_offers_it_and_nothing_else_then(monkeypatch, asked):
    net = _warm()
    assert (prepared._LAST[net].observed is not None) == (asked == "native")
    expected = _expect(net, seed=2)
    if asked == "native":
        monkeypatch.setattr(prepared, "named_parameters", None)
    sff_fast.smooth_(net, PLAN, seed=2, again=True)
    assert same(state(net), expected)


@pytest.mark.parametrize("prefix", ["", "net."])
def test_the_parameters_that_are_found_are_those_of_the_names_in_order(asked, prefix):
    net = pretrained()
    net.linear.weight._is_hf_initialized = True  # an attribute that means nothing here
    plan = PLAN if not prefix else sff_fast.trace(lambda: nn.ModuleDict({"net": Net()}))
    sff_fast.smooth_(net, plan, seed=1, prefix=prefix)
    last = prepared._LAST[net]
    assert last.names == tuple(prefix + name for name, _ in net.named_parameters())
    found = prepared.recall(net, last.key, prefix).versioned
    assert [*map(id, found)] == [*map(id, net.parameters())]
    if asked == "native":
        assert [*map(id, last.observed.parameters(net))] == [*map(id, net.parameters())]


def test_parameters_that_are_not_changed_keep_their_version():
    net = pretrained()
    for seed in (1, 2):
        sff_fast.smooth_(net, PLAN, {"linear.*": 0.5}, seed=seed, again=True)
    assert {name: p._version for name, p in net.named_parameters()} == {
        name: p._version + 2 * name.startswith("linear.") for name, p in pretrained().named_parameters()
    }


def test_nothing_is_kept_for_parameters_of_another_type():
    net = pretrained()
    _subclass(net)
    sff_fast.smooth_(net, PLAN, seed=1)
    assert net not in prepared._LAST


def test_inference_tensors_are_taken_over_within_inference_mode_and_refused_without_it(laid):
    with torch.inference_mode():
        net = pretrained()
        sff_fast.smooth_(net, PLAN, seed=1)
        expected = _expect(net, seed=2)
        before = len(laid)
        sff_fast.smooth_(net, PLAN, seed=2, again=True)
        assert len(laid) == before
        assert same(state(net), expected)
    with pytest.raises(PlanError, match="it is an inference tensor"):
        sff_fast.smooth_(net, PLAN, seed=3, again=True)


def test_new_objects_over_the_same_memory_take_the_table_over(laid):
    net = _warm()
    net.linear.weight = nn.Parameter(net.linear.weight.data)
    expected = _expect(net, seed=2)
    before = len(laid)
    sff_fast.smooth_(net, PLAN, seed=2, again=True)
    assert len(laid) == before
    assert same(state(net), expected)


def test_a_wrapper_s_call_takes_over_what_the_model_s_own_found_out(laid):
    net = _warm()
    expected = _expect(net, seed=2)
    wrapped = AveragedModel(net)
    wrapped.module = net  # not the copy
    before = len(laid)
    sff_fast.smooth_(wrapped, PLAN, seed=2, again=True)
    assert len(laid) == before
    assert same(state(net), expected)


class ByHand(nn.Module):
    """A class that answers for its attributes itself."""

    def __getattribute__(self, name: str) -> object:
        return super().__getattribute__(name)


def _by_property(name: str) -> nn.Module:
    """A module of a class that has what the module's own dict has, too."""
    cls = type("ByProperty", (nn.Linear,), {})
    net = cls(2, 2)
    setattr(cls, name, property(lambda self: {}))
    return net


def test_models_that_the_native_module_does_not_see_through_are_left_to_the_columns(asked):
    def observed(make: Callable[[], nn.Module]) -> bool:
        net = make()
        return observe(net, list(net.parameters())) is not None

    def inference() -> nn.Module:
        with torch.inference_mode():
            return nn.Linear(2, 2)

    def other_names() -> nn.Module:
        net = nn.Linear(2, 2)
        net._parameters[type("Name", (str,), {})("w")] = net._parameters.pop("weight")
        return net

    usual = nn.Linear(2, 2)
    assert observed(lambda: usual) == (asked == "native")
    for make in (ByHand, lambda: nn.Sequential(ByHand()), lambda: AveragedModel(usual), inference, other_names):
        assert not observed(make)
    assert not observed(lambda: nn.Linear(2, 2, device="meta"))
    for name in ("_parameters", "_modules"):
        net = _by_property(name)
        assert observe(net, vars(net)["_parameters"].values()) is None
    assert observe(usual, [usual.weight]) is None
    assert observe(usual, [usual.bias, usual.weight]) is None


class _Table(ctypes.Structure):
    """DLPackExchangeAPI of dlpack.h."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("older", ctypes.c_void_p),
        ("functions", ctypes.c_void_p * 5),
    )


def _capsule(table: _Table, name: bytes = b"dlpack_exchange_api") -> object:
    new = ctypes.pythonapi.PyCapsule_New
    new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
    return new(ctypes.addressof(table), name, None)


class _Tensor(ctypes.Structure):
    """DLTensor of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
    )


_Reader = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(_Tensor))


def _functions() -> _Table:
    """The table that torch offers."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    return _Table.from_address(get(getattr(nn.Parameter, API), b"dlpack_exchange_api"))


def test_a_table_of_functions_is_used_in_the_version_that_is_known_alone(asked, monkeypatch):
    if asked != "native":
        assert observe(nn.Linear(2, 2), []) is None
        return
    offered, net = _functions(), nn.Linear(2, 2)
    name = b"another_name"
    newer = _Table(offered.major + 1, 0, None, offered.functions)
    newer_with_older = _Table(offered.major + 1, 0, ctypes.addressof(offered))
    older = _Table(offered.major - 1, 9, None, offered.functions)
    without = _Table(offered.major, 0, None, (ctypes.c_void_p * 5)())
    minor = _Table(offered.major, offered.minor + 7, None, offered.functions)
    for capsule, usable in (
        (_capsule(offered), True),
        (_capsule(offered, name), False),
        (_capsule(newer), False),
        (_capsule(newer_with_older), True),
        (_capsule(older), False),
        (_capsule(without), False),
        (_capsule(minor), True),
        ("no capsule", False),
    ):
        monkeypatch.setattr(nn.Parameter, API, capsule)
        assert (observe(net, net.parameters()) is not None) == usable


@pytest.mark.parametrize("field", ["data", "device_type", "device_id", "ndim", "code", "bits", "lanes", "byte_offset"])
def test_each_field_of_a_tensor_counts(asked, monkeypatch, field):
    if asked != "native":
        return
    offered, net = _functions(), nn.Linear(2, 2)
    read, more = _Reader(offered.functions[3]), 0

    def changed(parameter: int, tensor: object) -> int:
        result = read(parameter, tensor)
        setattr(tensor.contents, field, (getattr(tensor.contents, field) or 0) - more)
        return result

    reader = _Reader(changed)
    functions = (ctypes.c_void_p * 5)()
    functions[3] = ctypes.cast(reader, ctypes.c_void_p)
    mine = _Table(offered.major, offered.minor, None, functions)
    monkeypatch.setattr(nn.Parameter, API, _capsule(mine))
    observed = observe(net, net.parameters())
    assert observed.parameters(net) is not None
    more = 1
    assert observed.parameters(net) is None
    more = 0
    assert observed.parameters(net) is not None


def test_a_child_that_is_no_module_is_left_to_those_who_refuse_it(asked):
    net = _warm()
    net._modules["linear"] = 3
    if asked == "native":
        assert prepared._LAST[net].observed.parameters(net) is None
    with pytest.raises(AttributeError, match="'int' object has no attribute"):
        sff_fast.smooth_(net, PLAN, seed=2, again=True)


def test_another_class_at_the_address_of_one_that_is_gone_is_not_mistaken_for_it(asked):
    if asked != "native":
        return
    net = nn.Linear(2, 2)
    net.__class__ = gone = type("Gone", (nn.Linear,), {})
    observed, address = observe(net, net.parameters()), id(gone)
    assert observed.parameters(net) is not None
    net.__class__ = nn.Linear
    del gone
    gc.collect()
    kinds = []
    while len(kinds) < 100 and address not in map(id, kinds):  # the first of them, as a rule
        kinds.append(type("Kind", (nn.Linear,), {}))
    net.__class__ = kinds[-1]
    assert observed.parameters(net) is None


def test_what_is_observed_is_not_kept_alive_and_children_in_a_circle_end(asked):
    if asked != "native":
        return
    net = nn.Sequential(nn.Linear(2, 2))
    net[0].register_module("parent", net)
    observed = observe(net, net.parameters())
    assert len(observed.parameters(net)) == 2
    alive = [weakref.ref(x) for x in (net, net[0], net[0].weight)]
    del net
    gc.collect()
    assert [x() for x in alive] == [None] * 3


def test_a_machine_without_what_is_asked_for_is_told_so_before_the_versions_rise(monkeypatch):
    net = _warm()
    before = {name: p._version for name, p in net.named_parameters()}
    monkeypatch.setattr(cpu, "why_absent", lambda: "not compiled")
    with pytest.raises(BackendError, match="not compiled"):
        sff_fast.smooth_(net, PLAN, seed=2, again=True, backend="cpu")
    assert {name: p._version for name, p in net.named_parameters()} == before
