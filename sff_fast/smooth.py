"""Smoothing in place: every parameter becomes ``shrink * theta_pre + perturb * theta_rand``.

Source: Smoothed Full Fine-tuning, "Lost in the Non-convex Loss Landscape: How to Fine-tune the Large Time Series Model?",
ICLR 2026, with shrink = alpha and perturb = 1 - alpha; in other words shrink-and-perturb (Ash & Adams, "On warm-starting
neural network training", NeurIPS 2020).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import torch
from torch import nn

from sff_fast import backends, prepared, table
from sff_fast.backends import cpu
from sff_fast.errors import ArgumentError
from sff_fast.inspect_parameters import check_parameters
from sff_fast.names import named_parameters, unwrap
from sff_fast.plan import InitPlan, ParameterPlan
from sff_fast.resolve import resolve_plan
from sff_fast.stream import STREAM_VERSION, check_seed

ROUNDINGS = ("nearest", "stochastic")
RNGS = ("philox", "torch")
_RECORD = "_sff_fast_smoothing"
VOLATILE = ("seconds", "threads")
"""What differs between the reports of equal calls."""


@dataclass(frozen=True)
class SmoothReport:
    """What :func:`smooth_` did.

    Attributes:
        seed: Seed of the random stream.
        stream_version: Version of the random stream.
        plan_hash: Content hash of the init plan.
        shrink: Parameter name to the factor of the pre-trained weights, for every parameter that was changed.
        perturb: Parameter name to the factor of the random draw.
        untouched: Parameters that stayed as they were, because no pattern matched or alpha was 1.
        rounding: ``"nearest"`` or ``"stochastic"``.
        backends: Device to the backend that ran there.
        threads: Threads that took part on the CPU.
        elements: Elements that were changed.
        seconds: Wall time of checking, table and kernels.
        dtypes: Parameters whose dtype in the model differs from the plan's, as ``"name: plan -> model"``.
        rng: ``"philox"`` (the random stream) or ``"torch"`` (the constructor's draws from torch's generator).
    """

    seed: int
    stream_version: int
    plan_hash: str
    shrink: dict[str, float]
    perturb: dict[str, float]
    untouched: tuple[str, ...]
    rounding: str
    backends: dict[str, str]
    threads: int
    elements: int
    seconds: float
    dtypes: tuple[str, ...]
    rng: str = "philox"

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; only the fields of :data:`VOLATILE` differ between equal calls."""
        return {name: dict(value) if isinstance(value, dict) else value for name, value in vars(self).items()}


def smooth_(
    model: nn.Module,
    plan: InitPlan | Callable[[], nn.Module] | None = None,
    alpha: float | Mapping[str, float] | None = None,
    seed: int = 0,
    *,
    shrink: float | Mapping[str, float] | None = None,
    perturb: float | Mapping[str, float] | None = None,
    backend: str = "auto",
    rng: str = "philox",
    rounding: str = "nearest",
    threads: int | None = None,
    prefix: str = "",
    again: bool = False,
    subset: bool = False,
) -> SmoothReport:
    """Interpolate every parameter with a fresh random initialisation, in place, without building a second model.

    Equivalent to (with the constructor's own distributions, from a random stream of its own)::

        random_model = factory()
        for p, r in zip(model.parameters(), random_model.parameters()):
            p.copy_(alpha * p + (1 - alpha) * r)

    Frozen parameters are included, tied ones are done once, buffers stay. The result depends on (seed, name, index) alone:
    not on device, threads or the order of parameters. Everything is checked before the first write.

    Args:
        model: Any module, also inside wrappers (DDP, torch.compile, …).
        plan: An :class:`InitPlan`, a constructor without arguments, or None for a model that says itself how it is built
            (see :func:`sff_fast.resolve.resolve_plan`).
        alpha: Factor of the pre-trained weights in [0, 1], the perturbation gets ``1 - alpha``; or a mapping of
            shell-style name patterns to factors: the first match counts, what matches nothing stays. Default 0.7. 1.0
            skips a parameter, also one that the plan does not know.
        seed: Seed of the random stream, default 0.
        shrink: Factor of the pre-trained weights, instead of ``alpha``; a number or a mapping of patterns.
        perturb: Factor of the random draw, together with ``shrink``; a number or a mapping of the same patterns.
        backend: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"reference"``.
        rng: ``"philox"`` (default): the random stream of sff_fast. ``"torch"``: bit for bit what the lines above give after
            ``torch.manual_seed(seed)``, by repeating the constructor's draws in order on a torch CPU generator of its own;
            as slow as torch draws. It takes no other ``backend``, ``rounding`` or ``threads`` than the defaults.
        rounding: ``"nearest"`` (even) or ``"stochastic"`` for bfloat16 and float16 parameters.
        threads: CPU threads, default ``torch.get_num_threads()``.
        prefix: What the plan's names begin with before the model's names.
        again: Allow smoothing a model that was smoothed before.
        subset: Allow plan entries that the model lacks (a pipeline stage), default False.

    Returns:
        A :class:`SmoothReport`, which is recorded on the model too (see :func:`smoothing_of`).

    Raises:
        ArgumentError: An argument is out of range, a pattern matches nothing, or the model was smoothed before.
        PlanError: The plan does not fit the model, or a parameter cannot be smoothed in place; nothing was written.
        BackendError: The backend is absent.
    """
    begin = time.perf_counter()
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if smoothing_of(model) and not again:
        last = smoothing_of(model)[-1]
        raise ArgumentError(
            f"the model was smoothed before (seed {last['seed']}, plan {last['plan_hash'][:12]}): load the pre-trained weights "
            f"into a new model, or pass again=True (--again)"
        )
    factors = _factors(alpha, shrink, perturb)
    report = _apply(model, plan, factors, seed, backend, rounding, threads, prefix, subset, begin, rng)
    _records(model).append(report.to_json())
    return report


def fill_(
    model: nn.Module,
    plan: InitPlan | Callable[[], nn.Module] | None = None,
    seed: int = 0,
    *,
    backend: str = "auto",
    rounding: str = "nearest",
    threads: int | None = None,
    prefix: str = "",
) -> SmoothReport:
    """Give every parameter a fresh random initialisation, in place: the start of training from scratch.

    The same draws as :func:`smooth_` mixes in with this seed. Old values are not read. Records of earlier smoothing are
    removed from the model. Buffers stay.

    Args:
        model: Any module.
        plan: As for :func:`smooth_`.
        seed: Seed of the random stream, default 0.
        backend: As for :func:`smooth_`.
        rounding: As for :func:`smooth_`.
        threads: As for :func:`smooth_`.
        prefix: As for :func:`smooth_`.

    Returns:
        A :class:`SmoothReport` with shrink 0 and perturb 1.

    Raises:
        ArgumentError: An argument is out of range.
        PlanError: The plan does not fit the model; nothing was written.
        BackendError: The backend is absent.
    """
    report = _apply(model, plan, [("*", 0.0, 1.0)], seed, backend, rounding, threads, prefix, False, time.perf_counter())
    _records(model).clear()
    return report


def smoothing_of(model: nn.Module) -> list[dict[str, Any]]:
    """What :func:`smooth_` did to a model so far: one :meth:`SmoothReport.to_json` a call."""
    return list(getattr(unwrap(model), _RECORD, []))


def remember_smoothing(model: nn.Module, records: list[dict[str, Any]]) -> None:
    """Set what :func:`smoothing_of` says of a model: its weights were loaded from where these records were kept."""
    _records(model)[:] = records


def _records(model: nn.Module) -> list[dict[str, Any]]:
    inner = unwrap(model)
    if not hasattr(inner, _RECORD):
        object.__setattr__(inner, _RECORD, [])
    return getattr(inner, _RECORD)


# ---------------------------------------------------------------------- factors
def _factors(alpha: Any, shrink: Any, perturb: Any) -> list[tuple[str, float, float]]:
    """(pattern, shrink, perturb) in order."""
    if shrink is None and perturb is None:
        alphas = _by_pattern("alpha", 0.7 if alpha is None else alpha)
        for pattern, value in alphas.items():
            if not 0.0 <= value <= 1.0:
                raise ArgumentError(
                    f"alpha must be a number from 0 to 1 (the share of the pre-trained weights), got {value!r} for {pattern!r}"
                )
        return [(pattern, value, 1.0 - value) for pattern, value in alphas.items()]
    if alpha is not None:
        raise ArgumentError("pass alpha, or shrink and perturb, not both")
    if shrink is None or perturb is None:
        raise ArgumentError(f"shrink and perturb go together, got shrink={shrink!r} and perturb={perturb!r}")
    shrinks, perturbs = _by_pattern("shrink", shrink), _by_pattern("perturb", perturb)
    patterns = list(shrinks if isinstance(shrink, Mapping) else perturbs)
    for label, given, values in (("shrink", shrink, shrinks), ("perturb", perturb, perturbs)):
        if isinstance(given, Mapping) and list(values) != patterns:
            raise ArgumentError(
                f"shrink and perturb need the same patterns in the same order, {label} has {list(values)}, expected {patterns}"
            )
    return [
        (
            p,
            shrinks[p] if isinstance(shrink, Mapping) else shrinks["*"],
            perturbs[p] if isinstance(perturb, Mapping) else perturbs["*"],
        )
        for p in patterns
    ]


def _by_pattern(label: str, given: Any) -> dict[str, float]:
    items = dict(given) if isinstance(given, Mapping) else {"*": given}
    if not items:
        raise ArgumentError(f"{label} is an empty mapping: give at least one pattern")
    for pattern, value in items.items():
        if not isinstance(pattern, str):
            raise ArgumentError(f"{label} maps name patterns to numbers, got the key {pattern!r}")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise ArgumentError(f"{label} must be a finite number, got {value!r} for {pattern!r}")
    return {pattern: float(value) for pattern, value in items.items()}


def _match(names: list[str], factors: list[tuple[str, float, float]]) -> dict[str, tuple[float, float]]:
    """Name to (shrink, perturb) by the first pattern that matches."""
    matched, hit = {}, set()
    for name in names:
        hit.update(pattern for pattern, _, _ in factors if fnmatchcase(name, pattern))
        for pattern, a, b in factors:
            if fnmatchcase(name, pattern):
                matched[name] = (a, b)
                break
    idle = [pattern for pattern, _, _ in factors if pattern not in hit]
    if idle and names:
        raise ArgumentError(
            f"no parameter matches the pattern {idle[0]!r}; the model has {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        )
    return matched


# ---------------------------------------------------------------------- doing it
def _apply(
    model: nn.Module,
    plan: InitPlan | Callable[[], nn.Module] | None,
    factors: list[tuple[str, float, float]],
    seed: int,
    backend: str,
    rounding: str,
    threads: int | None,
    prefix: str,
    subset: bool,
    begin: float,
    rng: str = "philox",
) -> SmoothReport:
    key = check_seed(seed)
    _check_rng(rng, backend, rounding, threads)
    backends.check(backend)
    if rounding not in ROUNDINGS:
        raise ArgumentError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ArgumentError(f"threads must be an integer of at least 1, got {threads!r}")
    parameters = named_parameters(model, prefix)
    inner = unwrap(model)
    known = prepared.key_of(parameters, plan, tuple(factors), prefix, backend, rounding, subset) if rng == "philox" else None
    call = prepared.recall(inner, known)
    if call is not None and backends.choose(backend, torch.device("cpu"))[0] == "cpu":
        used, ran = cpu.run_packed(call.packed(key), threads), {"cpu": "cpu"}
    else:
        matched = _match(list(parameters), factors)
        changed = {name: parameters[name] for name, (a, b) in matched.items() if (a, b) != (1.0, 0.0)}
        check_parameters(changed)
        plan = resolve_plan(model, plan)
        plan.check(changed, subset=subset, others=parameters)
        pairs = [(plan[name], parameter, *matched[name]) for name, parameter in changed.items()]
        if rng == "torch":
            records, (used, ran) = None, _replay(pairs, plan, key)
        else:
            used, ran, records = _run_kernels(pairs, plan, key, backend, rounding, threads)
        call = prepared.Prepared(
            key=known,
            plan=plan,
            shrink={name: matched[name][0] for name in changed},
            perturb={name: matched[name][1] for name in changed},
            untouched=tuple(name for name in parameters if name not in changed),
            versioned=tuple(name for name, parameter in changed.items() if not parameter.is_inference()),
            dtypes=tuple(
                f"{name}: {str(plan[name].dtype).removeprefix('torch.')} -> {str(p.dtype).removeprefix('torch.')}"
                for name, p in changed.items()
                if plan[name].dtype != p.dtype
            ),
            elements=sum(p.numel() for p in changed.values()),
            records=records,
        )
        prepared.remember(inner, call)
    torch.autograd.graph.increment_version([parameters[name] for name in call.versioned])
    return SmoothReport(
        seed=key,
        stream_version=STREAM_VERSION,
        plan_hash=call.plan.hash,
        shrink=dict(call.shrink),
        perturb=dict(call.perturb),
        untouched=call.untouched,
        rounding=rounding,
        backends=ran,
        threads=used,
        elements=call.elements,
        seconds=time.perf_counter() - begin,
        dtypes=call.dtypes,
        rng=rng,
    )


def _check_rng(rng: str, backend: str, rounding: str, threads: int | None) -> None:
    if rng not in RNGS:
        raise ArgumentError(f"rng must be one of {', '.join(RNGS)}, got {rng!r}")
    if rng == "torch":
        for label, given, default in (
            ("backend", backend, "auto"),
            ("rounding", rounding, "nearest"),
            ("threads", threads, None),
        ):
            if given != default:
                raise ArgumentError(
                    f"{label} must be {default!r} with rng='torch', which computes as plain torch does, got {given!r}"
                )


Pair = tuple[ParameterPlan, torch.Tensor, float, float]


def _replay(pairs: list[Pair], plan: InitPlan, seed: int) -> tuple[int, dict[str, str]]:
    """Repeat the constructor's draws; returns threads and backends."""
    from sff_fast.replay.smoothing import Replay

    Replay(pairs, plan).run(seed)
    return torch.get_num_threads(), {str(tensor.device): "torch" for _, tensor, _, _ in pairs}


def _run_kernels(
    pairs: list[Pair], plan: InitPlan, key: int, backend: str, rounding: str, threads: int | None
) -> tuple[int, dict[str, str], np.ndarray | None]:
    """Run one kernel a device; returns threads, backends, and the table where all of it serves another seed on the CPU."""
    groups: dict[torch.device, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair[1].device, []).append(pair)
    # Tables and backends of all devices first: whatever is wrong shows before the first write.
    ready = [
        (device, *backends.choose(backend, device), table.build(group, plan, key, rounding)) for device, group in groups.items()
    ]
    used, ran, records = 1, {}, None
    for device, name, run, tasks in ready:
        if run is cpu.run and tasks:
            packed = table.pack(tasks)
            used = max(used, cpu.run_packed(packed, threads))
            records = prepared.records_of(tasks, packed) if len(ready) == 1 else None
        else:
            used = max(used, run(tasks, threads))
        ran[str(device)] = name
    return used, ran, records
