"""Turns panels into pictures: one PNG a figure for files, one inline SVG a panel for the page.

The SVG is drawn once with placeholder colours, which become CSS variables, so the same drawing follows the page into
dark mode. Its text stays text: it is read aloud, found by a search, and set in the reader's own font.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from sff_fast.errors import require
from sff_fast.files import atomic_write
from sff_fast.report import theme
from sff_fast.report.panels import Panel, legend_columns, shorten

_SVG = "{http://www.w3.org/2000/svg}"
_XLINK = "{http://www.w3.org/1999/xlink}"

#: Width of a panel in inches; at 72 units an inch it is about as wide as a phone's column, so text keeps its size.
_WIDTH = 4.9
_HEIGHT = 3.4
_PNG_DPI = 160


def to_svg(panel: Panel, name: str) -> str:
    """One panel as inline SVG, coloured by the page's CSS variables.

    Args:
        panel: What to draw.
        name: A word that is unique on the page; it keeps the ids inside of the drawing apart from other drawings'.

    Returns:
        An ``<svg>`` element with an accessible name, without XML prologue.
    """
    with _figure([panel], 1, theme.PLACEHOLDERS, {"svg.hashsalt": name, "savefig.transparent": True}) as (figure, axes):
        panel.draw(axes[0], theme.PLACEHOLDERS)
        _dress(axes[0], theme.PLACEHOLDERS)
        buffer = io.StringIO()
        _save(figure, buffer, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(buffer.getvalue(), name, panel.alt)


def to_png(path: Path, panels: Sequence[Panel], columns: int) -> None:
    """Panels in one picture, in light colours.

    Args:
        path: File to write; it is replaced only once the picture is complete.
        panels: What to draw, row by row.
        columns: Number of panels beside each other.
    """
    with _figure(panels, min(columns, len(panels)), theme.LIGHT, {}) as (figure, axes):
        for panel, ax in zip(panels, axes, strict=True):
            panel.draw(ax, theme.LIGHT)
            _dress(ax, theme.LIGHT)
            legend = ax.get_legend()
            names = [] if legend is None else [text.get_text() for text in legend.get_texts()]
            lines = -(-len(names) // legend_columns(names)) if names else 0
            pad = 8 + 17 * lines
            ax.set_title(panel.title, loc="left", fontsize=12, fontweight="bold", color=theme.LIGHT["ink"], pad=pad)
        buffer = io.BytesIO()
        _save(figure, buffer, format="png", dpi=_PNG_DPI, metadata={"Software": None})
    with atomic_write(path) as file:
        file.write(buffer.getvalue())


@contextmanager
def _figure(
    panels: Sequence[Panel], columns: int, palette: theme.Palette, extra: dict[str, Any]
) -> Iterator[tuple[Any, list[Any]]]:
    """A figure with the house style and axes for each panel, off screen, without touching pyplot's global state."""
    matplotlib = require("matplotlib", "cli")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    settings = {
        "font.family": ["DejaVu Sans"],
        "font.size": 11,
        "axes.labelsize": 10.5,
        "xtick.labelsize": 10.5,
        "ytick.labelsize": 10.5,
        "legend.fontsize": 10.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.unicode_minus": True,
        "lines.solid_capstyle": "round",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "text.usetex": False,
        "figure.facecolor": palette["surface"],
        "axes.facecolor": "none",
        "path.simplify_threshold": 0.2,
        **extra,
    }
    with matplotlib.rc_context({**matplotlib.rcParamsDefault, "backend": "agg", **settings}):
        rows = -(-len(panels) // columns)
        figure = Figure(figsize=(columns * _WIDTH, rows * (_HEIGHT + 0.25)), layout="constrained")
        figure.get_layout_engine().set(w_pad=0.08, h_pad=0.1, hspace=0.04, wspace=0.03)
        FigureCanvasAgg(figure)
        cells = enumerate(panels, start=1)
        yield figure, [figure.add_subplot(rows, columns, cell, projection=panel.projection) for cell, panel in cells]


def _dress(ax: Any, palette: theme.Palette) -> None:
    """Quiet axes: muted lines and ticks, text in ink."""
    for spine in ax.spines.values():
        spine.set_color(palette["muted"])
        spine.set_linewidth(0.8)
    ax.tick_params(colors=palette["muted"], labelcolor=palette["ink"], width=0.8)
    ax.xaxis.label.set_color(palette["muted"])
    ax.yaxis.label.set_color(palette["muted"])
    ax.xaxis.get_offset_text().set_color(palette["muted"])
    ax.yaxis.get_offset_text().set_color(palette["muted"])
    if ax.name == "3d":
        ax.zaxis.label.set_color(palette["muted"])
        ax.zaxis.get_offset_text().set_color(palette["muted"])
        ax.patch.set_visible(False)
        for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
            axis.pane.set_visible(False)
            axis.line.set_color(palette["muted"])
            axis._axinfo["grid"].update(color=palette["grid"], linewidth=0.7)


def _save(figure: Any, target: Any, **options: Any) -> None:
    """Save; a channel's name may hold characters that the PNG's font lacks, which is worth no warning a letter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .*missing from font", category=UserWarning)
        figure.savefig(target, **options)


def _inline(svg: str, name: str, alt: str) -> str:
    """Rewrite matplotlib's document for use inside of an HTML page: own ids, colours by role, the page's font."""
    root = ElementTree.fromstring(svg)
    for parent in root.iter():
        for child in list(parent):
            if child.tag in (f"{_SVG}metadata", f"{_SVG}style"):
                parent.remove(child)
    for element in root.iter():
        element.tag = element.tag.removeprefix(_SVG)
        element.attrib = {key.removeprefix(_XLINK): _attribute(key, text, name) for key, text in element.attrib.items()}
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.set("role", "img")
    root.set("aria-label", shorten(alt, 1000))
    root.set("font-family", "var(--font)")
    return ElementTree.tostring(root, encoding="unicode")


def _attribute(key: str, text: str, name: str) -> str:
    if key == "id":
        return f"{name}-{text}"
    if key.removeprefix(_XLINK) == "href":
        return text.replace("#", f"#{name}-", 1)
    if key == "clip-path":
        return text.replace("url(#", f"url(#{name}-", 1)
    if key == "style":
        for role, colour in theme.PLACEHOLDERS.items():
            text = text.replace(colour, f"var(--{role})")
        return re.sub(r"font: ((?:\w+ )*?[\d.]+px) [^;]+", r"font: \1 var(--font)", text)
    return text
