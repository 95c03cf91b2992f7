"""Smoothing in place: every parameter becomes ``shrink * theta_pre + perturb * theta_rand``.

Source: Smoothed Full Fine-tuning, "Lost in the Non-convex Loss Landscape: How to Fine-tune the Large Time Series Model?",
ICLR 2026, with shrink = alpha and perturb = 1 - alpha; in other words shrink-and-perturb (Ash & Adams, "On warm-starting
neural network training", NeurIPS 2020).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sff_fast import backends, mapped, prepared, shards, table
from sff_fast.backends import cpu
from sff_fast.errors import ArgumentError
from sff_fast.factors import Factors, match_factors, parse_factors
from sff_fast.inspect_parameters import check_parameters
from sff_fast.names import named_parameters, unwrap
from sff_fast.plan import InitPlan
from sff_fast.resolve import resolve_plan
from sff_fast.stream import STREAM_VERSION, check_seed
from sff_fast.table import Pair

if TYPE_CHECKING:
    from sff_fast import _cpu

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
        elements: Elements of the parameters that were changed; of sharded ones those of all ranks.
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

    Equivalent to (with the constructor's own distributions, from a random stream of its own):

        random_model = factory()
        for p, r in zip(model.parameters(), random_model.parameters()):
            p.copy_(alpha * p + (1 - alpha) * r)

    Frozen parameters are included, tied ones are done once, buffers stay. The result depends on (seed, name, index) alone:
    not on device, threads, sharding or the order of parameters. Everything is checked before the first write. Of sharded
    parameters (DTensor: FSDP2, tensor parallelism) each rank fills its own part in place, without communication.

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
    factors = parse_factors(alpha, shrink, perturb)
    report = _apply(model, plan, factors, seed, backend, rounding, threads, prefix, subset, begin, rng, fill=False)
    _records(model).append(report.to_json())
    return report


def fill_(
    model: nn.Module,
    plan: InitPlan | Callable[[], nn.Module] | None = None,
    seed: int = 0,
    *,
    backend: str = "auto",
    rng: str = "philox",
    rounding: str = "nearest",
    threads: int | None = None,
    prefix: str = "",
    subset: bool = False,
) -> SmoothReport:
    """Give every parameter a fresh random initialisation, in place: the start of training from scratch.

    The same draws as :func:`smooth_` mixes in with this seed. Old values are not read. Records of earlier smoothing are
    removed from the model. Buffers stay.

    Args:
        model: Any module.
        plan: As for :func:`smooth_`.
        seed: Seed of the random stream, default 0.
        backend: As for :func:`smooth_`.
        rng: ``"philox"`` (default), or ``"torch"``: bit for bit the parameters that building the model gives after
            ``torch.manual_seed(seed)``; see :func:`smooth_`.
        rounding: As for :func:`smooth_`.
        threads: As for :func:`smooth_`.
        prefix: As for :func:`smooth_`.
        subset: As for :func:`smooth_`.

    Returns:
        A :class:`SmoothReport` with shrink 0 and perturb 1.

    Raises:
        ArgumentError: An argument is out of range.
        PlanError: The plan does not fit the model; nothing was written.
        BackendError: The backend is absent.
    """
    factors = [("*", 0.0, 1.0)]
    begin = time.perf_counter()
    report = _apply(model, plan, factors, seed, backend, rounding, threads, prefix, subset, begin, rng, fill=True)
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


# ---------------------------------------------------------------------- doing it
def _apply(
    model: nn.Module,
    plan: InitPlan | Callable[[], nn.Module] | None,
    factors: Factors,
    seed: int,
    backend: str,
    rounding: str,
    threads: int | None,
    prefix: str,
    subset: bool,
    begin: float,
    rng: str,
    fill: bool,
) -> SmoothReport:
    key = check_seed(seed)
    _check_rng(rng, backend, rounding, threads)
    backends.check(backend)
    if rounding not in ROUNDINGS:
        raise ArgumentError(f"rounding must be one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ArgumentError(f"threads must be an integer of at least 1, got {threads!r}")
    shards.reshard(model)
    known = prepared.key_of(plan, tuple(factors), prefix, backend, rounding, subset) if rng == "philox" else None
    recalled = prepared.recall(model, known, prefix)
    if recalled is not None and backends.choose(backend, torch.device("cpu"))[0] == "cpu":
        call = recalled.call
        # Before the kernels, which push these objects out of the caches; a count too many would do no harm.
        torch.autograd.graph.increment_version(recalled.versioned)
        used, ran = cpu.run_table(recalled.table, key, threads), {"cpu": "cpu"}
    else:
        parameters = named_parameters(model, prefix)
        matched = match_factors(list(parameters), factors)
        changed = {name: parameters[name] for name, (a, b) in matched.items() if (a, b) != (1.0, 0.0)}
        check_parameters({name: shards.local(parameter) for name, parameter in changed.items()})
        plan = resolve_plan(model, plan)
        plan.check(changed, subset=subset, others=parameters)
        pairs = [
            Pair(plan[name], piece.tensor, *matched[name], piece.region)
            for name, parameter in changed.items()
            for piece in shards.pieces(name, parameter)
        ]
        if rng == "torch":
            reusable, (used, ran) = None, _replay(pairs, plan, key, fill)
        else:
            used, ran, reusable = _run_kernels(pairs, plan, key, backend, rounding, threads)
        call = prepared.Prepared(
            plan_hash=plan.hash,
            shrink={name: matched[name][0] for name in changed},
            perturb={name: matched[name][1] for name in changed},
            untouched=tuple(name for name in parameters if name not in changed),
            dtypes=tuple(
                f"{name}: {str(plan[name].dtype).removeprefix('torch.')} -> {str(p.dtype).removeprefix('torch.')}"
                for name, p in changed.items()
                if plan[name].dtype != p.dtype
            ),
            elements=sum(p.numel() for p in changed.values()),
        )
        prepared.remember(model, known, plan, call, parameters, reusable)
        _bump_versions([p for p in changed.values() if not p.is_inference()])
    return SmoothReport(
        seed=key,
        stream_version=STREAM_VERSION,
        plan_hash=call.plan_hash,
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


def _bump_versions(parameters: list[nn.Parameter]) -> None:
    """Tell autograd that parameters were written, and the memory of sharded ones; all of them have a version counter."""
    torch.autograd.graph.increment_version(parameters)
    if {nn.Parameter, *map(type, parameters)} != {nn.Parameter}:
        torch.autograd.graph.increment_version([memory for p in parameters if (memory := shards.local(p)) is not p])


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


def _replay(pairs: list[Pair], plan: InitPlan, seed: int, fill: bool) -> tuple[int, dict[str, str]]:
    """Repeat the constructor's draws; returns threads and backends."""
    from sff_fast.replay.smoothing import Replay

    Replay(pairs, plan, fill).run(seed)
    return torch.get_num_threads(), {str(pair.tensor.device): "torch" for pair in pairs}


def _run_kernels(
    pairs: list[Pair], plan: InitPlan, key: int, backend: str, rounding: str, threads: int | None
) -> tuple[int, dict[str, str], _cpu.Table | None]:
    """Run one kernel a device; returns threads, backends, and the table where all of it serves another seed on the CPU."""
    groups: dict[torch.device, list[Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair.tensor.device, []).append(pair)
    # Tables and backends of all devices first: whatever is wrong shows before the first write.
    ready = [
        (device, *backends.choose(backend, device), table.build(group, plan, key, rounding)) for device, group in groups.items()
    ]
    used, ran, reusable = 1, {}, None
    for device, name, run, tasks in ready:
        if run is cpu.run and tasks:
            mapped.populate((pair.tensor for pair in groups[device]), threads)
            checked = cpu.checked(tasks)
            used = max(used, cpu.run_table(checked, key, threads))
            # Stored values depend on the seed.
            reusable = checked if len(ready) == 1 and all(task.table is None for task in tasks) else None
        else:
            used = max(used, run(tasks, threads))
        ran[str(device)] = name
    return used, ran, reusable
