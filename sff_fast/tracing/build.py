"""Turns what a run of a constructor left in memory into plans of its parameters."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from sff_fast.boxes import Box, Unrepresentable, coalesce, nested, paint, positions
from sff_fast.distributions import Constant, Distribution, Materialized
from sff_fast.errors import PlanError
from sff_fast.plan import ParameterPlan, Segment, digest, uninitialised_message, unused_name
from sff_fast.tracing.draws import DrawProgram
from sff_fast.tracing.memory import FROM_OUTSIDE, Piece, uniform_piece
from sff_fast.tracing.tracer import Tracer
from sff_fast.tracing.values import Const, Data, Random, Taint


@dataclass
class Draft:
    """What one run of the constructor says about one parameter.

    Args:
        name: First name in ``named_parameters()``.
        aliases: Its other names.
        parameter: The parameter; its memory is concrete only where something made it so.
        pieces: Its visible values over its logical indices.
        reasons: Why the piece of the same number is opaque, where it is.
    """

    name: str
    aliases: tuple[str, ...]
    parameter: torch.Tensor
    pieces: list[Piece]
    reasons: list[str | None] = field(default_factory=list)


def read_model(model: nn.Module, tracer: Tracer) -> list[Draft]:
    """Read the parameters of a model that was constructed under a tracer.

    Args:
        model: The model.
        tracer: The tracer, which is no longer active.

    Returns:
        One draft a parameter, in the order of ``named_parameters()``.

    Raises:
        PlanError: A parameter is lazy, on the meta device, of a layout that is not strided, or uninitialised.
    """
    if not isinstance(model, nn.Module):
        raise PlanError(f"the factory must return a torch.nn.Module, got {type(model).__name__}")
    names: dict[int, list[str]] = {}
    tensors: dict[int, torch.Tensor] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
        tensors[id(parameter)] = parameter
    drafts = []
    for key, parameter in tensors.items():
        first, *aliases = names[key]
        _check_readable(first, parameter, model)
        drafts.append(Draft(first, tuple(aliases), parameter, _visible(first, parameter, tracer)))
    return drafts


def _check_readable(name: str, parameter: torch.Tensor, model: nn.Module) -> None:
    if nn.parameter.is_lazy(parameter):
        owner = model.get_submodule(name.rpartition(".")[0])
        raise PlanError(
            f"the parameter {name!r} of {type(owner).__name__} has no shape yet: run a dry forward in the factory, such "
            f"as model(example) under torch.no_grad(), before it returns the model"
        )
    if parameter.device.type == "meta":
        raise PlanError(
            f"the parameter {name!r} is on the meta device, where nothing is drawn: let the factory build the model on "
            f"the CPU, or call model.to_empty(device='cpu') and initialise it there"
        )
    if parameter.layout != torch.strided or parameter.is_quantized:
        raise PlanError(f"the parameter {name!r} has layout {parameter.layout}: only strided tensors can be planned")
    if type(parameter).__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl:
        raise PlanError(
            f"the parameter {name!r} is a {type(parameter).__name__}, a tensor type with memory of its own: trace the "
            f"model before it is sharded or quantised"
        )


def _visible(name: str, parameter: torch.Tensor, tracer: Tracer) -> list[Piece]:
    """The pieces of a parameter that no later piece hides."""
    if parameter.numel() == 0:
        return []
    whole = Box((parameter.numel(),), (1,), 0)
    record = tracer.memory.record(parameter)
    if record.leaked:
        tracer.memory.force(parameter)
        return [uniform_piece(whole, Data(tracer.memory.taint(parameter) | Taint(external=True)))]
    try:
        pieces = tracer.memory.resolve(parameter)
    except Unrepresentable:
        tracer.memory.force(parameter)
        return [uniform_piece(whole, Data(tracer.memory.taint(parameter)))]
    pieces = [_tidy(piece) for piece in pieces]
    if len(pieces) == 1 and pieces[0].box == whole and not pieces[0].value.taint().uninitialised:
        return pieces
    owner, unit = paint(parameter.numel(), [piece.box for piece in pieces])
    bad = [i for i, piece in enumerate(pieces) if piece.value.taint().uninitialised]
    missing = np.flatnonzero(np.isin(owner, [-1, *bad]))
    if missing.size:
        raise PlanError(uninitialised_message(name, tuple(parameter.shape), missing, unit))
    shown = set(np.unique(owner).tolist())
    return [piece for i, piece in enumerate(pieces) if i in shown]


def _tidy(piece: Piece) -> Piece:
    """The same piece with as few dimensions as possible, in ascending order of logical index."""
    if len(piece.box.size) == 1 and piece.box.size != (1,):
        return piece
    size, strides, draw_strides = coalesce(piece.box.size, piece.box.strides, piece.draw_strides)
    if piece.box.numel == 1:
        draw_strides = (int(isinstance(piece.value, Random)),)
    return Piece(Box(size, strides, piece.box.offset), piece.value, draw_strides, piece.draw_offset)


# ---------------------------------------------------------------------- what each piece is
def decide(drafts: list[Draft], tracer: Tracer) -> None:
    """Find the pieces that only the factory can draw, and write down why."""
    signs: dict[int, bool] = {}
    for draft in drafts:
        draft.reasons = []
        for piece in draft.pieces:
            draft.reasons.append(_opaque_reason(piece, draft, tracer, signs))


def _opaque_reason(piece: Piece, draft: Draft, tracer: Tracer, signs: dict[int, bool]) -> str | None:
    value = piece.value
    if isinstance(value, Random):
        if value.draw in tracer.observed:
            return "the constructor looks at the values of this draw"
        try:
            value.law.distribution(tracer.program.draws[value.draw].shape)
        except PlanError as error:
            return str(error)
        if signs.setdefault(value.draw, value.scale > 0) != (value.scale > 0):
            return "the negative of a draw that is in use elsewhere"
        return None
    if isinstance(value, Data):
        taint = value.origin
        if taint.draws:
            return f"random values through {' > '.join(taint.operations) or 'an unknown operation'}"
    return None


def compare(drafts: list[Draft], tracer: Tracer, others: list[Draft], other: Tracer, host: Sequence[str] = ()) -> None:
    """Mark as opaque what differs between two runs with different seeds.

    Args:
        drafts: The first run, decided; changed in place.
        tracer: Its tracer.
        others: The second run.
        other: Its tracer.
        host: Whose generators besides torch's the constructor drew from: ``"NumPy"``, ``"Python"``.

    Raises:
        PlanError: The runs have different parameters.
    """
    first = [(d.name, tuple(d.parameter.shape), d.parameter.dtype) for d in drafts]
    second = [(d.name, tuple(d.parameter.shape), d.parameter.dtype) for d in others]
    if first != second:
        odd = next((p for p, q in zip(first, second) if p != q), (first + second)[min(len(first), len(second))])
        raise PlanError(f"the constructor makes different parameters for different seeds: {odd[0]!r} of shape {odd[1]} differs")
    pairs: dict[int, int] = {}
    for mine, theirs in zip(drafts, others):
        same = len(mine.pieces) == len(theirs.pieces) and all(_alike(p, q, pairs) for p, q in zip(mine.pieces, theirs.pieces))
        for i, piece in enumerate(mine.pieces):
            if mine.reasons[i] is not None:
                continue
            if not same:
                also = f": random numbers of {' and '.join(host)}" if host else ""
                mine.reasons[i] = f"differs from one seed to the next in more than its draws{also}"
            elif isinstance(piece.value, Data) and not _equal(
                concrete(mine.parameter, piece.box, tracer), concrete(theirs.parameter, piece.box, other)
            ):
                source = f"random numbers of {' and '.join(host)}" if host else "random numbers from outside of torch"
                through = [step for step in piece.value.origin.operations if step != FROM_OUTSIDE]
                mine.reasons[i] = source + (f" through {' > '.join(through)}" if through else "")


def _alike(mine: Piece, theirs: Piece, pairs: dict[int, int]) -> bool:
    """Whether two runs put the same kind of value into the same place."""
    if mine.box != theirs.box or type(mine.value) is not type(theirs.value):
        return False
    if isinstance(mine.value, Random):
        if mine.value.law != theirs.value.law or pairs.setdefault(mine.value.draw, theirs.value.draw) != theirs.value.draw:
            return False
        return (mine.draw_strides, mine.draw_offset) == (theirs.draw_strides, theirs.draw_offset)
    if isinstance(mine.value, Const):
        return mine.value == theirs.value or mine.value.value != mine.value.value
    return True


def _equal(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    return bool(((mine == theirs) | ((mine != mine) & (theirs != theirs))).all())


def concrete(parameter: torch.Tensor, box: Box, tracer: Tracer) -> torch.Tensor:
    """The values of a box of a parameter, one-dimensional, in the box's row-major order."""
    tracer.memory.force(parameter)
    with torch.no_grad():
        flat = parameter.detach().reshape(-1).contiguous()  # what has one dimension keeps its stride otherwise
        # as_strided counts from the start of the storage, which a parameter may share with others.
        return torch.as_strided(flat, box.size, box.strides, flat.storage_offset() + box.offset).reshape(-1).cpu().clone()


# ---------------------------------------------------------------------- the plan
@dataclass
class Built:
    """Plans of all parameters, and what belongs to them.

    Args:
        parameters: The plans.
        tables: Fixed values.
        links: For each draw the segments that hold it: ``(parameter, index of the segment, piece)``.
    """

    parameters: list[ParameterPlan]
    tables: dict[tuple[str, int], torch.Tensor]
    links: dict[int, list[tuple[str, int, Piece]]]


def build(drafts: list[Draft], tracer: Tracer) -> Built:
    """Name the draws and make the plans.

    Args:
        drafts: The parameters, decided.
        tracer: The tracer of their run.

    Returns:
        The plans.
    """
    names = _draw_names(drafts, tracer.program)
    tables: dict[tuple[str, int], torch.Tensor] = {}
    links: dict[int, list[tuple[str, int, Piece]]] = {}
    parameters = []
    for draft in drafts:
        entries: list[tuple[Segment, torch.Tensor | None, list[Piece]]] = []
        for piece, reason in zip(draft.pieces, draft.reasons):
            segment, table = _segment(draft, piece, reason, names, tracer)
            entries.append((segment, table, [piece] if isinstance(piece.value, Random) else []))
        merged = _merged(entries)
        segments = []
        for i, (segment, table, pieces) in enumerate(merged):
            segments.append(segment)
            if table is not None:
                tables[(draft.name, i)] = table
            for piece in pieces:
                links.setdefault(piece.value.draw, []).append((draft.name, i, piece))
        parameters.append(
            ParameterPlan(draft.name, tuple(draft.parameter.shape), draft.parameter.dtype, tuple(segments), draft.aliases)
        )
    return Built(parameters, tables, links)


def _draw_names(drafts: list[Draft], program: DrawProgram) -> dict[int, tuple[str, bool]]:
    """The name of each draw, and whether its elements are numbered by the parameter's logical index."""
    holders: dict[int, list[tuple[Draft, Piece]]] = {}
    for draft in drafts:
        for piece, reason in zip(draft.pieces, draft.reasons):
            if isinstance(piece.value, Random) and reason is None:
                holders.setdefault(piece.value.draw, []).append((draft, piece))
    used = {name for draft in drafts for name in (draft.name, *draft.aliases)}
    names: dict[int, tuple[str, bool]] = {}
    for draw in sorted(holders):
        held = holders[draw]
        first = held[0][0]
        recipe = held[0][1].value.law.kind in ("orthogonal", "sparse")
        numel = math.prod(program.draws[draw].shape)
        alone = len({draft.name for draft, _ in held}) == 1
        if alone and not recipe and _distinct(first, draw, numel):
            names[draw] = (first.name, True)
            continue
        piece = held[0][1]
        identity = Piece(Box((numel,), (1,), 0), piece.value, (1,), 0)
        if len(first.pieces) == 1 and first.parameter.numel() == numel and piece == identity:
            names[draw] = (first.name, False)
        else:
            name = unused_name(first.name, used)
            used.add(name)
            names[draw] = (name, False)
    return names


def _distinct(draft: Draft, draw: int, drawn: int) -> bool:
    """Whether a parameter shows no element of a draw of ``drawn`` elements twice."""
    pieces = [piece for piece in draft.pieces if isinstance(piece.value, Random) and piece.value.draw == draw]
    boxes = [Box(piece.box.size, piece.draw_strides, piece.draw_offset) for piece in pieces]
    if any(n > 1 and s <= 0 for box in boxes for n, s in zip(box.size, box.strides)):
        return False
    if len(boxes) == 1 and nested(boxes[0]):
        return True
    owner, unit = paint(drawn, boxes)
    if int((owner >= 0).sum()) * unit == sum(box.numel for box in boxes):
        return True
    owner, unit = paint(draft.parameter.numel(), [piece.box for piece in draft.pieces])
    seen = np.zeros(drawn, dtype=np.int32)
    for i, piece in enumerate(draft.pieces):
        if piece in pieces:
            shown = owner[positions(piece.box) // unit] == i
            np.add.at(seen, positions(Box(piece.box.size, piece.draw_strides, piece.draw_offset))[shown], 1)
    return int(seen.max()) <= 1


def _segment(
    draft: Draft, piece: Piece, reason: str | None, names: dict[int, tuple[str, bool]], tracer: Tracer
) -> tuple[Segment, torch.Tensor | None]:
    box, value, none = piece.box, piece.value, (0,) * len(piece.box.size)
    if reason is not None:
        return Segment(Materialized("opaque", reason), box.size, box.strides, box.offset, "", none, 0), None
    if isinstance(value, Random):
        distribution = value.law.distribution(tracer.program.draws[value.draw].shape)
        name, logical = names[value.draw]
        if logical:
            size, strides = coalesce(box.size, box.strides)
            return Segment(distribution, size, strides, box.offset, name, strides, box.offset), None
        return Segment(distribution, box.size, box.strides, box.offset, name, piece.draw_strides, piece.draw_offset), None
    given: Distribution | None = value.distribution() if isinstance(value, Const) else None
    table = None
    if given is None:
        table = concrete(draft.parameter, box, tracer)
        first = float(table[0]) if table.dtype.is_floating_point else math.nan
        if bool((table == table[0]).all()) and abs(first) < math.inf and Const(first).distribution() is not None:
            given, table = Constant(first), None
        else:
            given = Materialized("table", _table_reason(value), digest=digest(table))
    return Segment(given, box.size, box.strides, box.offset, "", none, 0), table


def _table_reason(value: Const | Data) -> str:
    if isinstance(value, Data) and value.origin.operations:
        return "fixed values through " + " > ".join(value.origin.operations)
    return "fixed values" if isinstance(value, Data) else "a value that float32 cannot hold"


def _merged(
    entries: Iterable[tuple[Segment, torch.Tensor | None, list[Piece]]],
) -> list[tuple[Segment, torch.Tensor | None, list[Piece]]]:
    """Join runs of segments of one distribution that follow each other at equal distances, such as rows of a loop."""
    result: list[tuple[Segment, torch.Tensor | None, list[Piece]]] = []
    current: list[tuple[Segment, torch.Tensor | None, list[Piece]]] = []
    for entry in entries:
        if current and not _continues(current, entry[0]):
            result += _joined(current)
            current = []
        current.append(entry)
    result += _joined(current)
    return result


def _continues(run: list[tuple[Segment, torch.Tensor | None, list[Piece]]], segment: Segment) -> bool:
    first, last = run[0][0], run[-1][0]
    if isinstance(segment.distribution, Materialized):
        return False
    same = (first.distribution, first.size, first.strides, first.draw, first.draw_strides) == (
        segment.distribution, segment.size, segment.strides, segment.draw, segment.draw_strides
    )  # fmt: skip
    if not same:
        return False
    step = segment.offset - last.offset
    draw_step = segment.draw_offset - last.draw_offset
    if step <= 0 or not nested(Box((2, *first.size), (step, *first.strides), 0)):
        return False
    if len(run) == 1:
        return draw_step >= 0
    before = run[-2][0]
    return (step, draw_step) == (last.offset - before.offset, last.draw_offset - before.draw_offset)


def _joined(
    run: list[tuple[Segment, torch.Tensor | None, list[Piece]]],
) -> list[tuple[Segment, torch.Tensor | None, list[Piece]]]:
    if len(run) < 2:
        return run
    first, second = run[0][0], run[1][0]
    box = Box((len(run), *first.size), (second.offset - first.offset, *first.strides), first.offset)
    if not nested(box):
        return run
    draw_strides = (second.draw_offset - first.draw_offset, *first.draw_strides)
    size, strides, draw_strides = coalesce(box.size, box.strides, draw_strides)
    joined = replace(first, size=size, strides=strides, draw_strides=draw_strides)
    return [(joined, None, [piece for _, _, pieces in run for piece in pieces])]
