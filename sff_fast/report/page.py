"""The HTML page: one file, no network, no script, readable on a phone and in the dark."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sff_fast.errors import require
from sff_fast.report import render, theme
from sff_fast.report.panels import Panel

_TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Args:
        role: The colour of its mark.
        cells: Its text; an empty one is shown as a dash.
        tag: A word beside the first cell, or empty; a tagged row stands out.
    """

    role: str
    cells: Sequence[str]
    tag: str = ""


@dataclass(frozen=True)
class Table:
    """Figures of a page.

    Args:
        name: A word, unique on the page, used as its anchor.
        title: Heading.
        note: What the figures are.
        columns: Headings of the columns.
        rows: The lines.
        legend: Name and meaning of what the rows are.
        remarks: Sentences under it.
    """

    name: str
    title: str
    note: str
    columns: Sequence[str]
    rows: Sequence[Row]
    legend: Sequence[tuple[str, str]] = ()
    remarks: Sequence[str] = ()


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
    verdict: str,
    version: str,
    tables: Sequence[Table],
    sections: Sequence[Section],
    facts: Sequence[tuple[str, str]],
    title: str,
    subtitle: str,
    command: str | None,
) -> str:
    """The whole page as text.

    Args:
        verdict: What comes first.
        version: Version of sff_fast.
        tables: The figures, in reading order.
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
        verdict=verdict,
        version=version,
        title=title,
        subtitle=subtitle,
        tables=tables,
        sections=drawn,
        facts=facts,
        command=command,
        light=theme.LIGHT,
        dark=theme.DARK,
    )
