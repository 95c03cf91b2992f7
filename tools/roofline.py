"""Writes the tables of docs/cuda.md: what limits each vector loop of the CUDA kernels, by a model.

The model: a loop takes the longer of two times an element, its bytes at the memory's peak bandwidth and its instructions at
one a cycle for each of a multiprocessor's four schedulers. Instructions are counted in nvcc's machine code. Nothing here was
measured on a GPU; latency, occupancy and the slower rate of wide integer multiplications are left out.

Source of the figures: NVIDIA's data sheets of the H100 SXM and the H200 SXM (bandwidth, multiprocessors, boost clock).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from cuda_code import ADAMW_SOURCE, adamw_name, compile_kernels, functions  # noqa: E402

PAGE = ROOT / "docs" / "cuda.md"
GPUS = {"H100": (3.35e12, 132, 1.98e9), "H200": (4.8e12, 132, 1.98e9)}
"""Bytes a second, multiprocessors, clock."""
LANES = 4 * 32
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}
STATE_BYTES = {"float32": 4, "bfloat16": 2, "int8": 1 + 4 / 256}
"""Of a moment, with its share of a block's scale."""


def main() -> None:
    """Write the page's tables anew."""
    page = PAGE.read_text() + "\n"  # so that an empty line ends the last table too
    for table in (list(smoothing()), list(optimizer())):
        begin = page.index(table[0])
        page = page[:begin] + "\n".join(table) + page[page.index("\n\n", begin) :]
    PAGE.write_text(page[:-1])
    print(f"written to {PAGE.relative_to(ROOT)}")


def smoothing() -> Iterator[str]:
    """Lines of the table of the smoothing kernels: compiled for sm_90, and counted."""
    cubin, _ = compile_kernels("sm_90", "cubin")
    found = functions(cubin)
    yield from _header("dtype", "draw")
    for dtype, size in BYTES.items():
        unit = 8 if size == 2 else 4
        for draw, loop in _named(found, dtype, unit):
            yield _row((dtype, draw), loop.path / unit, 2 * size)


def optimizer() -> Iterator[str]:
    """Lines of the table of AdamW's kernels without amsgrad."""
    cubin, _ = compile_kernels("sm_90", "cubin", ADAMW_SOURCE)
    yield from _header("parameter", "states", "stored")
    for name, loops in sorted(functions(cubin, adamw_name).items(), key=str):
        if not loops or name[3]:
            continue
        dtype, state, storing, _ = name
        unit = 4 if dtype == state == "float32" else 8
        moved = BYTES[dtype] * (5 if storing == "compensated" else 3) + 4 * STATE_BYTES[state]
        yield _row((dtype, state, storing), loops[0].path / unit, moved)


def _header(*names: str) -> tuple[str, str]:
    columns = [*names, "bytes an element", "instructions an element", *(f"{gpu} ps/element, limit" for gpu in GPUS)]
    return "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"


def _row(names: tuple[str, ...], instructions: float, moved: float) -> str:
    cells = [*names, f"{moved:g}", f"{instructions:.1f}"]
    for bandwidth, processors, clock in GPUS.values():
        memory = moved / bandwidth
        issue = instructions / (processors * LANES * clock)
        cells.append(f"{max(memory, issue) * 1e12:.2f}, {'memory' if memory > issue else 'instructions'}")
    return "| " + " | ".join(cells) + " |"


def _named(found, dtype, unit):
    """The loops with one block for four elements, by what they draw."""
    for variant, names in (("plain", ("uniform", "normal")), ("truncated", ("truncated normal", "truncated normal, tails"))):
        loops = [x for x in found[dtype, False, variant] if 4 * round(x.count(r"IMAD\.WIDE\.U32") / 18) == unit]
        # The kernel of truncated normals has the others too, which are shorter.
        yield from zip(names, sorted(loops, key=lambda loop: loop.path)[-2:])


if __name__ == "__main__":
    main()
