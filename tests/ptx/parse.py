"""PTX text to instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{]*)\{", re.S)
_PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\s+(?:\.\w+\s+)?\.align\s+\d+\s+)?([\w$]+)(?:\[(\d+)\])?"
)
_LABEL = re.compile(r"([$\w]+):\s*")
_STATEMENT = re.compile(r"(?:@(!?)([%\w]+)\s+)?([a-z][\w.:]*)\s*(.*)$", re.S)
_IGNORED = (".reg", ".pragma", ".loc", ".file")
_SPACES = (".local", ".shared")


class PtxError(Exception):
    """The code did what a GPU would not allow, or is nothing that the interpreter knows."""


@dataclass(frozen=True)
class Instruction:
    """One instruction: opcode and modifiers, operands, and the predicate that guards it (empty: none)."""

    name: tuple[str, ...]
    operands: tuple[str, ...]
    guard: str
    negated: bool
    text: str

    @property
    def type(self) -> str:
        """The last modifier, which is the type of most instructions."""
        return self.name[-1]


@dataclass(frozen=True)
class Kernel:
    """A kernel: its parameters in order with their offsets, instructions, and the instruction that each label stands before."""

    name: str
    parameters: dict[str, int]
    code: tuple[Instruction, ...]
    labels: dict[str, int]


_BYTES = {"b8": 1, "u8": 1, "u16": 2, "u32": 4, "f32": 4, "b32": 4, "u64": 8, "b64": 8, "f64": 8}


def kernels(text: str) -> dict[str, Kernel]:
    """The kernels of a PTX file by symbol.

    Raises:
        PtxError: The text has local or shared memory, or a statement that cannot be read.
    """
    text = _COMMENT.sub("", text)
    result = {}
    for found in _ENTRY.finditer(text):
        depth, end = 1, found.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(text[end], 0)
            end += 1
        code, labels = _body(text[found.end() : end - 1])
        result[found[1]] = Kernel(found[1], _parameters(found[2]), code, labels)
    return result


def _parameters(text: str) -> dict[str, int]:
    offsets, at = {}, 0
    for found in _PARAMETER.finditer(text):
        width = _BYTES[found[2]]
        alignment = int(found[1] or width)
        at = -(-at // alignment) * alignment
        offsets[found[3]] = at
        at += width * int(found[4] or 1)
    return offsets


def _body(text: str) -> tuple[tuple[Instruction, ...], dict[str, int]]:
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for part in text.split(";"):
        statement = " ".join(part.split())
        while True:  # what may stand before a statement: labels, and the braces of a scope of its own
            label = _LABEL.match(statement)
            if label and not statement.startswith("."):
                labels[label[1]] = len(code)
                statement = statement[label.end() :]
            elif statement.startswith(("{ ", "}")) or statement == "{":
                statement = statement[1:].lstrip()
            else:
                break
        if not statement or statement.startswith(_IGNORED):
            continue
        if statement.startswith(_SPACES):
            raise PtxError(f"local or shared memory, which the kernels do not use: {statement}")
        found = _STATEMENT.match(statement)
        if not found:
            raise PtxError(f"cannot be read: {statement}")
        negated, guard, name, operands = found[1] == "!", found[2] or "", tuple(found[3].split(".")), _operands(found[4])
        code.append(Instruction(name, operands, guard, negated, statement))
    return tuple(code), labels


def _operands(text: str) -> tuple[str, ...]:
    """Operands, a vector in braces being one."""
    return tuple(part.strip() for part in re.split(r",(?![^{]*\})", text) if part.strip())


def vector(operand: str) -> tuple[str, ...]:
    """The registers of an operand: those between its braces, or itself."""
    return tuple(part.strip() for part in operand.strip("{}").split(","))
