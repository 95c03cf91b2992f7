"""Smoothing with the reference's own random numbers, bit for bit.

The reference builds a second model after ``torch.manual_seed(seed)`` and sets ``p.copy_(p * alpha + q * (1 - alpha))``. Here
every draw of its constructor is repeated in order on a generator of its own, and mixed into the elements that hold it as
soon as it is there: no second model, one scratch tensor at a time.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from sff_fast.boxes import Box, positions
from sff_fast.distributions import Constant, Materialized
from sff_fast.errors import PlanError
from sff_fast.plan import InitPlan, ParameterPlan, Segment
from sff_fast.replay.generate import FILLERS, generate, scratch_bytes
from sff_fast.table import Pair, boxes
from sff_fast.tracing.values import apply

CHUNK = 1 << 16
"""Elements that are mixed at a time, so that products and sums take no memory worth speaking of."""


@dataclass(frozen=True)
class Part:
    """A box of a parameter's memory and the numbers that go into it.

    Args:
        tensor: The parameter.
        dtype: The dtype that the constructor gave it.
        size: Sizes of the box.
        memory: Strides and offset of its elements in the parameter's memory.
        source: Strides and offset of the values: elements of the draw or of the table, row-major.
        shrink: Factor of the old values; None where they are not read.
        perturb: Factor of the new ones; 1 where the old ones are not read.
        value: The constant, or None.
        table: The table, flat, or None.
        operations: What follows the draw.
    """

    tensor: torch.Tensor
    dtype: torch.dtype
    size: tuple[int, ...]
    memory: tuple[tuple[int, ...], int]
    source: tuple[tuple[int, ...], int]
    shrink: float | None
    perturb: float
    value: float | None = None
    table: torch.Tensor | None = None
    operations: tuple = ()


class Replay:
    """Everything that smoothing by replay needs, checked before the first write.

    Args:
        pairs: What lies where.
        plan: The whole plan.
        fill: Whether the parameters become the draws, whatever they held; the factors are not looked at then. Default False.

    Raises:
        PlanError: The plan holds no draw program, or a draw or a parameter cannot be replayed; the message names it.
    """

    def __init__(self, pairs: Sequence[Pair], plan: InitPlan, fill: bool = False) -> None:
        self._fill = fill
        self._by_draw: dict[int, list[Part]] = {}
        self._fixed: list[Part] = []
        sources = _sources(plan)
        for pair in pairs:
            self._lay_out(pair, plan, sources)
        last = max(self._by_draw, default=-1)
        self._program = [r for r in plan.program[: last + 1] if r.generator not in ("own", "none")]
        observed = next((r for r in plan.program if r.observed), None)
        if observed is not None:
            raise PlanError(f"rng='torch' cannot replay {observed}: {observed.obstacle}; use rng='philox'")
        for record in self._program:
            if record.generator != "default":
                raise PlanError(
                    f"rng='torch' cannot replay {record}: it comes from the generator of {record.generator}, expected the CPU's; "
                    f"use rng='philox'"
                )
            if record.obstacle or record.op not in FILLERS:
                raise PlanError(f"rng='torch' cannot replay {record}: {record.obstacle or 'unknown'}; use rng='philox'")

    def _lay_out(self, pair: Pair, plan: InitPlan, sources: dict[tuple[str, int], list[tuple[int, Segment, tuple]]]) -> None:
        parameter, tensor, shrink, perturb, region = pair
        segments: list[tuple[Segment, int, tuple]] = []
        origin: list[int] = []
        for i, segment in enumerate(parameter.segments):
            held = sources.get((parameter.name, i))
            if held is None:
                _refuse_without_source(parameter, segment, plan)
                held = [(-1, segment, ())]
            for draw, piece, operations in held:
                segments.append((piece, draw, operations))
                origin.append(i)
        if not parameter.numel:
            return
        pieces = tuple(piece for piece, _, _ in segments)
        laid = ParameterPlan(parameter.name, parameter.shape, parameter.dtype, pieces)
        for k, size, (memory, drawn, _), (memory_at, drawn_at, _) in boxes(laid, tensor, region):
            piece, draw, operations = segments[k]
            value = piece.distribution.value if draw < 0 and isinstance(piece.distribution, Constant) else None
            table = plan.table(parameter.name, origin[k]) if draw < 0 and value is None else None
            part = Part(
                tensor.detach(),
                parameter.dtype,
                size,
                (memory, tensor.storage_offset() + memory_at),
                (drawn, drawn_at),
                None if self._fill else shrink,
                1.0 if self._fill else perturb,
                value,
                table,
                operations,
            )
            (self._fixed if draw < 0 else self._by_draw.setdefault(draw, [])).append(part)

    def run(self, seed: int) -> None:
        """Mix the draws into the parameters, as the reference does after ``torch.manual_seed(seed)``."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for part in self._fixed:
                _mix(part, part.table)
            # One buffer for all draws: freed ones of several sizes would add up in the allocator.
            scratch = torch.empty(max(map(scratch_bytes, self._program), default=0), dtype=torch.uint8, device="cpu")
            returns = {record.after for record in self._program}
            states = {-1: generator.get_state()}
            for record in self._program:
                if record.after is not None:
                    generator.set_state(states[record.after])
                drawn = generate(record, generator, scratch)
                if record.index in returns:
                    states[record.index] = generator.get_state()
                for part in self._by_draw.get(record.index, ()):
                    _mix(part, drawn)


def _sources(plan: InitPlan) -> dict[tuple[str, int], list[tuple[int, Segment, tuple]]]:
    """For each segment that holds draws: number of the draw, the box as a segment of it, operations; in writing order."""
    found: dict[tuple[str, int], list[tuple[int, Segment, tuple]]] = {}
    for record in plan.program:
        for t in record.targets:
            # The distribution is not looked at here, it only has to be one that takes its values from a draw.
            piece = Segment(_DRAWN, t.size, t.strides, t.offset, str(record.index), t.draw_strides, t.draw_offset)
            found.setdefault((t.parameter, t.segment), []).append((record.index, piece, t.operations))
    return found


_DRAWN = Constant(0.0)


def _refuse_without_source(parameter: ParameterPlan, segment: Segment, plan: InitPlan) -> None:
    distribution = segment.distribution
    if isinstance(distribution, Constant) or (isinstance(distribution, Materialized) and distribution.kind == "table"):
        return
    opaque = isinstance(distribution, Materialized) and distribution.kind == "opaque"
    if not plan.program and not opaque:
        raise PlanError(
            f"rng='torch' needs the constructor's draws, and this plan of {parameter.name!r} holds none: trace the "
            f"factory again with sff_fast.trace"
        )
    blame = next((str(r) for r in plan.program if parameter.name in r.feeds), None)
    if opaque:
        through = f"{blame}, which {parameter.name!r} holds as" if blame else f"{parameter.name!r}:"
        raise PlanError(f"rng='torch' cannot replay {through} {distribution.reason}; use rng='philox'")
    raise PlanError(
        f"rng='torch' cannot replay {parameter.name!r}: no draw of the constructor gives {distribution}, it was overridden; "
        f"use rng='philox', or leave it out of alpha"
    )


def _cells(
    size: tuple[int, ...], forms: tuple[tuple[int, ...], ...], offsets: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[tuple[int, ...], ...], tuple[int, ...]]]:
    """The box cut into boxes of at most :data:`CHUNK` elements."""
    numel = math.prod(size)
    if numel <= CHUNK:
        yield size, forms, offsets
        return
    inner = numel // size[0]
    rows = CHUNK // inner
    for k in range(0, size[0], max(rows, 1)):
        moved = tuple(offset + k * form[0] for form, offset in zip(forms, offsets))
        if rows:
            yield (min(rows, size[0] - k), *size[1:]), forms, moved
        else:
            yield from _cells(size[1:], tuple(form[1:] for form in forms), moved)


def _mix(part: Part, values: torch.Tensor | None) -> None:
    """``p.copy_(p * shrink + q * perturb)``, with one rounding to the dtypes of p and q after each operation.

    Where p is not read it is ``p.copy_(q)``: a sum would turn -0 into 0, and keep what is not finite in p.
    """
    forms, offsets = (part.memory[0], part.source[0]), (part.memory[1], part.source[1])
    for size, (memory, source), (memory_at, source_at) in _cells(part.size, forms, offsets):
        p = torch.as_strided(part.tensor, size, memory, memory_at)
        if values is None:
            q = torch.full(size, part.value, dtype=part.dtype)
        elif values.is_contiguous() and min(source, default=0) >= 0:
            q = torch.as_strided(values, size, source, source_at)
        else:
            q = torch.take(values, torch.from_numpy(positions(Box(size, source, source_at)))).reshape(size)
        for operation in part.operations:
            q = apply(q, operation)
        p.copy_(q if part.shrink is None else p * part.shrink + q.to(p.device) * part.perturb)
