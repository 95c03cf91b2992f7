"""Runs one launch of a kernel."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from ptx.instructions import TYPES, function_of, integer_of
from ptx.memory import Memory, Region
from ptx.parse import Instruction, Kernel, PtxError

WARP = 32
_ADDRESS = re.compile(r"\[([%\w$.]+)(?:\+(-?\d+))?\]")


class Launch:
    """One launch of a kernel.

    Args:
        kernel: What runs.
        argument: Bytes of its parameters.
        regions: The memory that it may touch.
        grid: Blocks.
        block: Threads a block.

    Attributes:
        executed: Instruction's text to the number of threads that executed it.
    """

    MOST = 200_000
    """Instructions that a launch may take: a fault in the code may make it endless."""

    def __init__(self, kernel: Kernel, argument: bytes, regions: Sequence[Region], grid: int, block: int) -> None:
        self._kernel, self._block = kernel, block
        self._argument = np.frombuffer(argument, np.uint8).copy()
        base = self._argument.ctypes.data
        self._symbols = {name: base + offset for name, offset in kernel.parameters.items()}
        self.parameters = Memory([Region(base, len(argument), writable=False)])
        self.memory = Memory(regions)
        index = np.arange(grid * block, dtype=np.uint64)
        self._registers: dict[str, np.ndarray] = {
            "%tid.x": index % np.uint64(block),
            "%ctaid.x": index // np.uint64(block),
            "%ntid.x": np.full(grid * block, block, np.uint64),
            "%nctaid.x": np.full(grid * block, grid, np.uint64),
        }
        self._steps = [(i, function_of(i)) if i.name[0] not in ("bra", "ret", "exit") else (i, None) for i in kernel.code]
        self.executed: Counter[str] = Counter()

    # ------------------------------------------------------------------ operands
    def read(self, operand: str, type_: str, threads: np.ndarray) -> np.ndarray:
        """An operand's values as a type's numpy dtype; ``"pred"`` gives booleans."""
        if operand in self._registers:
            bits = self._registers[operand][threads]
        else:
            bits = np.full(len(threads), self._constant(operand), np.uint64)
        return bits != 0 if type_ == "pred" else bits.astype(integer_of(type_)).view(TYPES[type_])

    def _constant(self, operand: str) -> int:
        if operand in self._symbols:
            return self._symbols[operand]
        if operand[:2] in ("0f", "0d"):
            return int(operand[2:], 16)
        if operand in ("true", "false"):
            return int(operand == "true")
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", operand):
            return int(operand.rstrip("U"), 0) & (1 << 64) - 1
        raise PtxError(f"a register that nothing has written, or an unknown operand: {operand}")

    def write(self, register: str, type_: str, values: np.ndarray, threads: np.ndarray) -> None:
        """Set a register of some threads; signed integers are extended by their sign, all else by zeros."""
        if register == "_":
            return
        if type_ != "pred" and values.dtype.kind == "i":
            bits = values.astype(np.int64).view(np.uint64)
        elif type_ == "pred":
            bits = values.astype(np.uint64)
        else:
            bits = np.ascontiguousarray(values).view(integer_of(type_)).astype(np.uint64)
        if register not in self._registers:
            self._registers[register] = np.zeros(len(self._registers["%tid.x"]), np.uint64)
        self._registers[register][threads] = bits

    def address(self, operand: str, threads: np.ndarray) -> np.ndarray:
        """The addresses that an operand in brackets stands for."""
        found = _ADDRESS.fullmatch(operand)
        if not found:
            raise PtxError(f"unknown address: {operand}")
        return self.read(found[1], "u64", threads) + np.uint64(int(found[2] or 0) & (1 << 64) - 1)

    def warps(self, threads: np.ndarray, mask: str, text: str) -> Iterator[np.ndarray]:
        """Positions in ``threads`` of each whole warp that executes an instruction of warps.

        Raises:
            PtxError: The mask names lanes that are not here, or not all that there are.
        """
        wanted = self.read(mask, "u32", threads)
        group = threads // self._block * (1 << 20) + threads % self._block // WARP
        for one in np.unique(group):
            warp = np.flatnonzero(group == one)
            if len(warp) != WARP or (wanted[warp] != 0xFFFFFFFF).any():
                raise PtxError(f"{len(warp)} lanes of a warp where its mask expects others: {text}")
            yield warp

    # ------------------------------------------------------------------ running
    def run(self) -> Launch:
        """Run all threads to their end.

        Raises:
            PtxError: An access, an instruction or the number of instructions is not what it may be.
        """
        total = len(self._registers["%tid.x"])
        counter, ended = np.zeros(total, np.int64), np.zeros(total, bool)
        joins = set(self._kernel.labels.values())
        left = self.MOST
        with np.errstate(all="ignore"):
            while not ended.all():
                at = int(counter[~ended].min())
                threads = np.flatnonzero(~ended & (counter == at))
                while True:  # on until a branch, or a place where threads come together
                    left -= 1
                    if left < 0:
                        raise PtxError(f"{self.MOST} instructions and no end")
                    if at == len(self._steps):
                        ended[threads] = True
                        break
                    i, function = self._steps[at]
                    at += 1
                    active = self._guarded(i, threads)
                    self.executed[i.text] += len(active)
                    if function is None:
                        counter[threads] = at
                        if i.name[0] == "bra":
                            counter[active] = self._kernel.labels[i.operands[0]]
                        else:
                            ended[active] = True
                        break
                    if len(active):
                        function(self, i, active)
                    if at in joins:
                        counter[threads] = at
                        break
        return self

    def _guarded(self, i: Instruction, threads: np.ndarray) -> np.ndarray:
        if not i.guard:
            return threads
        return threads[self.read(i.guard, "pred", threads) != i.negated]
