"""Runs constructors under the tracer."""

from __future__ import annotations

import contextlib
import importlib.metadata
import math
import sys
import warnings
from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from sff_fast.boxes import Box, positions
from sff_fast.distributions import Constant, Materialized
from sff_fast.errors import PlanError
from sff_fast.plan import InitPlan, ParameterPlan, Segment, base_versions
from sff_fast.replay.generate import FILLERS
from sff_fast.replay.program import DrawRecord, DrawTarget
from sff_fast.tracing.build import Built, Draft, build, compare, concrete, decide, read_model
from sff_fast.tracing.draws import UNSEEN, Draw, derived_seed
from sff_fast.tracing.memory import Piece
from sff_fast.tracing.patches import patched
from sff_fast.tracing.state import LOCK, HostGenerators, preserved, uncollected
from sff_fast.tracing.tracer import Tracer
from sff_fast.tracing.values import Data

Factory = Callable[[], nn.Module]

MORE_SEEDS = 8
"""Further runs with other seeds of a constructor that looks at random values, or draws from NumPy or Python."""


class Run:
    """One run of a constructor under the tracer.

    Args:
        factory: The constructor.
        seed: Seed of everything that is drawn for real.
        source: See :class:`sff_fast.tracing.draws.DrawProgram`.
    """

    def __init__(
        self,
        factory: Factory,
        seed: int,
        source: Callable[[Draw, Callable[[], torch.Tensor]], torch.Tensor | None] | None = None,
    ) -> None:
        self.tracer = Tracer(seed, source)
        with LOCK, uncollected(), preserved(), _disable_current_modes(), patched():
            host = HostGenerators(seed, self.tracer.generator_seed)
            on_cpu = contextlib.nullcontext() if torch.get_default_device().type == "cpu" else torch.device("cpu")
            with on_cpu, self.tracer:
                model = factory()
            self.host = host.used()
            self.drafts = read_model(model, self.tracer)
        self.versions = _versions(model)

    @property
    def calls(self) -> list[tuple]:
        """The operations that drew random numbers, in order."""
        return [(draw.op, draw.shape, draw.dtype) for draw in self.tracer.program.draws]

    @property
    def differs_with_seed(self) -> bool:
        """Whether more than its recorded draws may differ from one seed to the next."""
        return bool(self.host or self.tracer.observed)

    @property
    def holds_external(self) -> bool:
        """Whether values from outside of torch reached a parameter."""
        return self.tracer.read_external or any(
            isinstance(piece.value, Data) and piece.value.origin.external for draft in self.drafts for piece in draft.pieces
        )


def trace(factory: Factory) -> InitPlan:
    """Find out how a constructor draws every parameter, without drawing it.

    Runs the constructor on the CPU. Memory is committed for what the constructor itself reads only. Where it looks at
    random values, or takes values from NumPy, Python or files, it runs again with other seeds to tell fixed values from
    random ones. The global generators of torch, NumPy and Python, the default dtype and everything that is patched
    meanwhile are left as found, also when the constructor raises.

    Args:
        factory: Called without arguments, returns a new model.

    Returns:
        The plan. It keeps the factory, in memory only, to draw opaque values for other seeds.

    Raises:
        PlanError: A parameter is uninitialised memory, lazy or on the meta device, or the model has other parameters for
            another seed.
        TypeError: ``factory`` cannot be called, or is a model.
    """
    expected = "factory must be a function that returns a new model"
    if isinstance(factory, nn.Module):
        raise TypeError(f"{expected}, got a model: pass what makes it, lambda: {type(factory).__name__}(…)")
    if not callable(factory):
        raise TypeError(f"{expected}, got {type(factory).__name__}")
    run = Run(factory, 0)
    decide(run.drafts, run.tracer)
    notes = _notes(run)
    same_draws = True
    if run.differs_with_seed or run.holds_external:
        for seed in range(1, 1 + (MORE_SEEDS if run.differs_with_seed else 1)):
            other = Run(factory, seed)
            compare(run.drafts, run.tracer, other.drafts, other.tracer, run.host)
            same_draws &= run.calls == other.calls
    built = build(run.drafts, run.tracer)
    redraw = _Redraw(factory, built, run, same_draws)
    return InitPlan(
        built.parameters,
        tables=built.tables,
        versions=run.versions,
        notes=notes,
        program=_program(run, built, same_draws),
        factory=factory,
        redraw=redraw if redraw.keys else None,
    )


def _notes(run: Run) -> list[str]:
    notes = []
    if run.tracer.reseeded:
        notes.append("the constructor seeds torch's generator itself: what it draws after that is fixed and kept as a table")
        warnings.warn(f"sff_fast.trace: {notes[-1]}; seed outside of the factory to have it drawn", stacklevel=3)
    if any(draw.after is not None for draw in run.tracer.program.draws):
        notes.append(
            "the constructor puts torch's generator back to an earlier state: draws that repeat earlier ones in shape and "
            "numbers are one draw, others are taken as independent"
        )
    if run.tracer.observed:
        notes.append(f"the constructor looks at random values: it was compared over {1 + MORE_SEEDS} seeds")
    return notes


def _versions(model: nn.Module) -> dict[str, str]:
    """Versions of the packages whose modules the model is made of."""
    versions = base_versions()
    classes = {cls for module in model.modules() for cls in type(module).__mro__}
    for package in sorted({cls.__module__.partition(".")[0] for cls in classes} - set(sys.stdlib_module_names)):
        version = getattr(sys.modules.get(package), "__version__", None)
        if version is None:
            try:
                version = importlib.metadata.version(package)
            except importlib.metadata.PackageNotFoundError:
                continue
        versions.setdefault(package, str(version))
    return versions


def _program(run: Run, built: Built, same_draws: bool) -> list[DrawRecord]:
    """The draw program with what became of each draw."""
    feeds: dict[int, dict[str, None]] = {}
    for draft in run.drafts:
        for piece in draft.pieces:
            if isinstance(piece.value, Data):
                for index in sorted(piece.value.origin.draws):
                    feeds.setdefault(index, {})[draft.name] = None
    records = []
    for draw in run.tracer.program.draws:
        targets = tuple(
            DrawTarget(
                name, i, piece.box.size, piece.box.strides, piece.box.offset, piece.draw_strides, piece.draw_offset, operations
            )
            for name, i, piece in built.links.get(draw.index, ())
            for operations in (piece.value.operations,)
        )
        observed, obstacle = _obstacle(draw, run.tracer, same_draws)
        records.append(
            DrawRecord(
                draw.index,
                draw.op,
                draw.shape,
                draw.strides,
                draw.dtype,
                draw.arguments,
                targets,
                tuple(feeds.get(draw.index, ())),
                draw.generator,
                obstacle,
                observed,
                draw.after,
            )
        )
    return records


def _obstacle(draw: Draw, tracer: Tracer, same_draws: bool) -> tuple[bool, str]:
    """Whether the constructor looks at a draw's values, and why the draw cannot be repeated."""
    if draw.index in tracer.observed:
        return True, "the constructor looks at its values"
    if draw.generator != "default":
        return False, ""
    if draw.op == UNSEEN:
        return False, "torch's generator gave numbers in another thread, or to an operation without a name"
    if draw.law is None or draw.op not in FILLERS:
        return False, f"{draw.op} is no operation that a plan records with its arguments"
    if not same_draws and not tracer.observed:
        return True, "the constructor makes other draws with another seed of NumPy or Python"
    return False, ""


class _Redraw:
    """Draws the opaque values of a plan for a seed, by running the factory again.

    Where such values were computed from a draw that some parameter holds elementwise, the draw is taken from the random
    stream, so that both belong together as they do in a model that was really constructed.

    Args:
        factory: The constructor.
        built: The plans.
        run: The run they came from.
        same_draws: Whether the constructor makes the same calls for every seed, so that draws can be told by their number.
    """

    def __init__(self, factory: Factory, built: Built, run: Run, same_draws: bool) -> None:
        self.factory = factory
        self.plans: Mapping[str, ParameterPlan] = {plan.name: plan for plan in built.parameters}
        self.calls = run.calls
        self.may_vary = bool(run.tracer.observed)
        self.links = self._elementwise(built) if same_draws else {}
        self.keys = [
            (plan.name, i)
            for plan in built.parameters
            for i, segment in enumerate(plan.segments)
            if isinstance(segment.distribution, Materialized) and segment.distribution.kind == "opaque"
        ]

    def _elementwise(self, built: Built) -> dict[int, list[tuple[str, int, Piece]]]:
        kept: dict[int, list[tuple[str, int, Piece]]] = {}
        for draw, links in built.links.items():
            for name, i, piece in links:
                distribution = self.plans[name].segments[i].distribution
                if not isinstance(distribution, Materialized) or distribution.kind == "recipe":
                    kept.setdefault(draw, []).append((name, i, piece))
        return kept

    def __call__(self, seed: int) -> dict[tuple[str, int], torch.Tensor]:
        """Values of every opaque segment under ``(parameter, index)``, one-dimensional.

        Args:
            seed: Seed of the random stream.

        Raises:
            PlanError: The factory makes another model now.
        """
        run = Run(self.factory, derived_seed(seed, "redraw"), lambda draw, fallback: self._values(draw, fallback, seed))
        drafts: dict[str, Draft] = {draft.name: draft for draft in run.drafts}
        values = {}
        for name, i in self.keys:
            plan = self.plans[name]
            draft = drafts.get(name)
            if draft is None or tuple(draft.parameter.shape) != plan.shape:
                raise PlanError(f"the factory no longer makes the parameter {name!r} of shape {plan.shape}")
            with LOCK, _disable_current_modes():
                values[(name, i)] = concrete(draft.parameter, plan.segments[i].box, run.tracer)
        return values

    def _values(self, draw: Draw, fallback: Callable[[], torch.Tensor], seed: int) -> torch.Tensor | None:
        """A draw with the elements that parameters hold taken from the random stream."""
        from sff_fast.draw import draw as sample

        links = self.links.get(draw.index)
        if not links:
            return None
        if (draw.op, draw.shape, draw.dtype) != self.calls[draw.index]:
            if self.may_vary:
                return None
            raise PlanError(f"the factory no longer makes the same draws: number {draw.index} is {draw.op} of {draw.shape}")
        values = fallback().reshape(-1)
        for name, i, piece in links:
            held = sample(_only(self.plans[name], i), seed, plan=None).reshape(-1).to(torch.float64)
            held = torch.as_strided(held, piece.box.size, piece.box.strides, piece.box.offset)
            base = (held - piece.value.shift) / piece.value.scale
            if ("erfinv",) in piece.value.operations:
                base = torch.erf(base)
            # A repeated row writes the same values to the same elements of the draw more than once.
            held_by = positions(Box(piece.box.size, piece.draw_strides, piece.draw_offset))
            values[torch.from_numpy(held_by)] = base.reshape(-1).to(values.dtype)
        return values


def _only(plan: ParameterPlan, index: int) -> ParameterPlan:
    """The plan of the same parameter with zeros in all but one segment, so that nothing has to be materialised."""
    zeros = Segment.whole(Constant(0.0), math.prod(plan.shape), "")
    return ParameterPlan(plan.name, plan.shape, torch.float32, (zeros, plan.segments[index]))
