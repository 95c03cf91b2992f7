"""Blocks of code in the documentation: where they stand, and what becomes of them in the tests.

A block is run unless a comment on the line before it says otherwise: ``<!-- only parsed: reason -->`` (commands: name and options
are checked; Python: compiled) or ``<!-- not run: reason -->``. Blocks of a page share one namespace and one folder.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MARK = re.compile(r"<!-- (only parsed|not run): (.+) -->")
COMMANDS = ("sff-fast", "make", "python", "pip", "pytest", "torchrun", "bash")
"""What a line of a shell block begins with, settings of the environment left out."""


@dataclass(frozen=True)
class Block:
    """A block of code.

    Args:
        page: The file, from the repository's root.
        line: Where it begins, from 1.
        language: ``"python"``, ``"sh"``, another one, or ``""``.
        text: What it holds.
        mark: ``""`` (to be run), ``"only parsed"`` or ``"not run"``.
        reason: Why it is marked.
    """

    page: str
    line: int
    language: str
    text: str
    mark: str
    reason: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each line of a shell block, settings of the environment and comments left out; [] of other blocks."""
        if self.language not in ("", "sh", "bash", "shell", "console"):
            return []
        lines = [shlex.split(line, comments=True) for line in self.text.replace("\\\n", " ").splitlines()]
        lines = [[word for word in line if not re.match(r"[A-Z_]+=", word)] for line in lines]
        return [line for line in lines if line and line[0] in COMMANDS]


def blocks(page: Path) -> list[Block]:
    """The fenced and indented blocks of a page, formulas (indented, and no command in them) left out."""
    found, before, lines = [], "", page.read_text().splitlines()
    name, i = page.relative_to(ROOT).as_posix(), 0
    while i < len(lines):
        begin = i
        if fence := re.fullmatch(r"```([\w-]*).*", lines[i]):
            end = next(j for j in range(i + 1, len(lines)) if lines[j].startswith("```"))
            language, text, i = fence[1], "\n".join(lines[i + 1 : end]) + "\n", end + 1
        elif lines[i].startswith("    ") and (i == 0 or not lines[i - 1].strip()):
            while i < len(lines) and (lines[i].startswith("    ") or not lines[i].strip()):
                i += 1
            language, text = "", "\n".join(line[4:] for line in lines[begin:i]) + "\n"
        else:
            before = lines[i] or before
            i += 1
            continue
        mark = MARK.fullmatch(before.strip())
        block = Block(name, begin + 1, language, text, *(mark.groups() if mark else ("", "")))
        if lines[begin].startswith("```") or block.commands:
            found.append(block)
        before = ""
    return found


def pages() -> list[Path]:
    """The pages that may hold code."""
    return sorted(
        [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md", ROOT / "csrc" / "README.md"]
    )
