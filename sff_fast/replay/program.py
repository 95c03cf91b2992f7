"""The constructor's ordered draw program, as a plan keeps it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sff_fast.errors import PlanError


@dataclass(frozen=True)
class DrawTarget:
    """Elements of a parameter that hold elements of a draw.

    For the multi-index ``m`` in ``size``: element ``offset + sum(m * strides)`` of the parameter takes element
    ``draw_offset + sum(m * draw_strides)`` of the draw, both row-major logical indices.

    Args:
        parameter: The parameter.
        segment: Number of the plan's segment that these elements belong to.
        size: Sizes of the box.
        strides: Steps of the parameter's element number.
        offset: The parameter's element at ``m = 0``.
        draw_strides: Steps of the draw's element number.
        draw_offset: The draw's element at ``m = 0``.
        operations: What the constructor did to the values after the draw: a name, then its numbers or its dtype.
    """

    parameter: str
    segment: int
    size: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    draw_strides: tuple[int, ...]
    draw_offset: int
    operations: tuple[tuple[Any, ...], ...] = ()


@dataclass(frozen=True)
class DrawRecord:
    """One call of the constructor's ordered draw program.

    Args:
        index: Position in the program.
        op: The operation that consumed random numbers, such as ``"uniform_"``.
        shape: Shape of the tensor it drew.
        strides: That tensor's strides: torch's generator walks memory, not logical indices.
        dtype: That tensor's dtype.
        arguments: The operation's numbers in order, such as ``(low, high)``.
        targets: Where parameters hold it elementwise; empty for a draw that nothing kept.
        feeds: Parameters that hold values which were computed from it in another way.
        generator: ``"default"`` for torch's CPU generator, ``"own"`` for one that the constructor seeded itself, ``"none"``
            for a draw on the meta device, which consumes nothing, else the device's type.
        obstacle: Why the call cannot be repeated; empty where it can.
        observed: Whether the constructor looks at its values: everything after it may depend on them.
        after: Number of the draw after which the constructor had put torch's generator back, -1 for the beginning; None
            where the generator goes on from the draw before.
    """

    index: int
    op: str
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: torch.dtype
    arguments: tuple[Any, ...]
    targets: tuple[DrawTarget, ...] = ()
    feeds: tuple[str, ...] = ()
    generator: str = "default"
    obstacle: str = ""
    observed: bool = False
    after: int | None = None

    @property
    def replayable(self) -> bool:
        """Whether shape, dtype and arguments say all that is needed to repeat the call."""
        return not self.obstacle

    def __str__(self) -> str:
        numbers = "".join(f", {x:g}" for x in self.arguments)
        return f"draw {self.index} ({self.op} of shape {self.shape}{numbers})"


# ---------------------------------------------------------------------- JSON
def _plain(value: Any) -> Any:
    """A dtype by name and an infinite number as text: JSON has neither."""
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return repr(value) if isinstance(value, float) and not math.isfinite(value) else value


def _operation(content: Sequence[Any]) -> tuple[Any, ...]:
    name, *arguments = content
    if name == "to":
        return (name, dtype_named(arguments[0]))
    return (name, *(float(x) if isinstance(x, str) else x for x in arguments))


def dtype_named(name: Any) -> torch.dtype:
    """The dtype of a name such as ``"bfloat16"``.

    Raises:
        ValueError: There is none.
    """
    dtype = getattr(torch, str(name), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"unknown dtype {name!r}")
    return dtype


def program_to_json(program: Iterable[DrawRecord]) -> list[dict[str, Any]]:
    """JSON-able dicts that :func:`program_from_json` reads back; what is empty or usual is left out."""
    content = []
    for record in program:
        item: dict[str, Any] = {
            "op": record.op,
            "shape": list(record.shape),
            "strides": list(record.strides),
            "dtype": _plain(record.dtype),
            "arguments": [_plain(x) for x in record.arguments],
            "targets": [
                [t.parameter, t.segment, list(t.size), list(t.strides), t.offset, list(t.draw_strides), t.draw_offset]
                + ([[[_plain(x) for x in operation] for operation in t.operations]] if t.operations else [])
                for t in record.targets
            ],
        }
        if record.feeds:
            item["feeds"] = list(record.feeds)
        if record.generator != "default":
            item["generator"] = record.generator
        if record.obstacle:
            item["obstacle"] = record.obstacle
        if record.observed:
            item["observed"] = True
        if record.after is not None:
            item["after"] = record.after
        content.append(item)
    return content


def program_from_json(content: Sequence[Mapping[str, Any]]) -> tuple[DrawRecord, ...]:
    """The program that :func:`program_to_json` wrote.

    Raises:
        KeyError: An entry lacks a field.
        TypeError: A field has the wrong type.
        ValueError: A field has a value that cannot be.
    """
    program = []
    for i, item in enumerate(content):
        targets = []
        for name, segment, size, strides, offset, draw_strides, draw_offset, *rest in item["targets"]:
            operations = tuple(map(_operation, rest[0] if rest else ()))
            box = tuple(size), tuple(strides), offset
            targets.append(DrawTarget(name, segment, *box, tuple(draw_strides), draw_offset, operations))
        program.append(
            DrawRecord(
                i,
                item["op"],
                tuple(item["shape"]),
                tuple(item["strides"]),
                dtype_named(item["dtype"]),
                tuple(float(x) for x in item["arguments"]),
                tuple(targets),
                tuple(item.get("feeds", ())),
                item.get("generator", "default"),
                item.get("obstacle", ""),
                item.get("observed", False),
                item.get("after"),
            )
        )
    return tuple(program)


def program_digest(content: Sequence[Mapping[str, Any]]) -> str:
    """Hex sha256 of a program's JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()).hexdigest()


def read_program(entry: Mapping[str, Any] | None, path: str) -> tuple[DrawRecord, ...]:
    """The program in a plan's file.

    Args:
        entry: ``{"sha256", "draws"}``, or None for a file without a program.
        path: The file, for messages.

    Raises:
        PlanError: The entry is damaged.
    """
    if entry is None:
        return ()
    try:
        program = program_from_json(entry["draws"])
        recorded, found = entry["sha256"], program_digest(entry["draws"])
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(f"{path!r} has no valid draw program: {error}") from error
    if found != recorded:
        raise PlanError(f"{path!r} was changed: its draw program does not have the recorded sha256")
    return program
