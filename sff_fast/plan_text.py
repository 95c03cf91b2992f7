"""A plan as a table for people."""

from __future__ import annotations

from sff_fast.boxes import coalesce
from sff_fast.distributions import Materialized
from sff_fast.plan import InitPlan, ParameterPlan, Segment


def plan_text(plan: InitPlan) -> str:
    """One row a parameter, then totals, hash and notes."""
    rows = [("parameter", "shape", "dtype", "distribution", "draw", "note")]
    rows += map(_row, plan.parameters.values())
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([*lines, "", *_totals(plan), *(f"note: {note}" for note in plan.notes)])


def _totals(plan: InitPlan) -> list[str]:
    totals = plan.totals()
    parts = ", ".join(f"{kind}: {count['tensors']} ({count['elements']:,})" for kind, count in totals.items())
    elements = sum(count["elements"] for count in totals.values())
    return [
        f"{len(plan)} parameters, {elements:,} elements" + (f"; tensors (elements) {parts}" if parts else ""),
        f"hash {plan.hash}",
    ]


def _row(parameter: ParameterPlan) -> tuple[str, ...]:
    shown = parameter.segments[:3]
    text = "; ".join(f"{s.distribution}{_box_text(s, parameter.numel)}" for s in shown)
    if len(parameter.segments) > len(shown):
        text += f"; {len(parameter.segments) - len(shown)} more boxes"
    draws = list(dict.fromkeys(s.draw for s in parameter.segments if s.draw and s.draw != parameter.name))
    draw = ", ".join(draws[:2]) + (", …" if len(draws) > 2 else "")
    reasons = list(dict.fromkeys(s.distribution.reason for s in parameter.segments if isinstance(s.distribution, Materialized)))
    notes = [*(f"also {alias}" for alias in parameter.aliases), *reasons[:2]]
    shape = "x".join(map(str, parameter.shape)) or "scalar"
    return parameter.name, shape, str(parameter.dtype).removeprefix("torch."), text or "empty", draw, "; ".join(notes)


def _box_text(segment: Segment, numel: int) -> str:
    size, strides = coalesce(segment.size, segment.strides)
    if segment.numel == numel:
        return ""
    if size == (1,):
        return f" at {segment.offset}"
    spans = ",".join(f"{n}:{s}" for n, s in zip(size, strides))
    return f" at {segment.offset}+[{spans}]"
