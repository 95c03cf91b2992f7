"""The HTML page: one file, no network, no script, readable on a phone and in the dark."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sff_fast.errors import require
from sff_fast.report import render, rows, theme
from sff_fast.report.panels import Panel

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Section:
    """A part of the page with drawings.

    Args:
        name: A word, unique on the page, used as its anchor.
        title: Heading.
        text: One or two sentences that say how to read the drawings.
        panels: The drawings; a section without any is left out.
    """

    name: str
    title: str
    text: str
    panels: Sequence[Panel]


def build(
    metrics: Mapping[str, Any],
    sections: Sequence[Section],
    facts: Sequence[tuple[str, str]],
    title: str,
    subtitle: str,
    command: str | None,
) -> str:
    """The whole page as text.

    Args:
        metrics: The content of ``metrics.json``.
        sections: The parts with drawings, in reading order.
        facts: Name and text pairs for the provenance section.
        title: Heading of the page.
        subtitle: One line under it.
        command: Command line that reproduces the result, or None.

    Returns:
        HTML; everything that came from outside is escaped.

    Raises:
        MissingPackageError: jinja2 or matplotlib is not installed.
    """
    jinja2 = require("jinja2", "cli")
    markupsafe = require("markupsafe", "cli")
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    table = rows.result_rows(metrics)
    chosen = next((row for row in table if row.chosen), None)
    legend = {row.strategy: theme.style(row.strategy) for row in table}
    drawn = [
        {
            "name": section.name,
            "title": section.title,
            "text": section.text,
            "figures": [
                {"title": panel.title, "svg": markupsafe.Markup(render.to_svg(panel, f"{section.name}-{number}"))}
                for number, panel in enumerate(section.panels)
            ],
        }
        for section in sections
        if section.panels
    ]
    return environment.get_template("report.html").render(
        metrics=metrics,
        title=title,
        subtitle=subtitle,
        rows=table,
        columns=rows.COLUMNS,
        chosen=chosen,
        chosen_role=theme.style(chosen.strategy).role if chosen else "grid",
        legend=[look for look in legend.values() if look.meaning],
        sections=drawn,
        facts=facts,
        command=command,
        style=theme.style,
        light=theme.LIGHT,
        dark=theme.DARK,
    )
