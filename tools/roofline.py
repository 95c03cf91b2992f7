"""Prints the table of docs/cuda.md: what limits each vector loop of the CUDA kernels, by a model.

The model: a loop takes the longer of two times an element, its bytes at the memory's peak bandwidth and its instructions at
one a cycle for each of a multiprocessor's four schedulers. Instructions are counted in nvcc's machine code. Nothing here was
measured on a GPU; latency, occupancy and the slower rate of wide integer multiplications are left out.

Source of the figures: NVIDIA's data sheets of the H100 SXM and the H200 SXM (bandwidth, multiprocessors, boost clock).
"""

from __future__ import annotations

from cuda_code import compile_kernels, functions

GPUS = {"H100": (3.35e12, 132, 1.98e9), "H200": (4.8e12, 132, 1.98e9)}
"""Bytes a second, multiprocessors, clock."""
LANES = 4 * 32
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "float64": 8}


def main() -> None:
    """Compile for sm_90, count, and print the table in Markdown."""
    cubin, _ = compile_kernels("sm_90", "cubin")
    found = functions(cubin)
    print("| dtype | draw | instructions an element | " + " | ".join(f"{gpu} ps/element, limit" for gpu in GPUS) + " |")
    print("|---|---|---|" + "---|" * len(GPUS))
    for dtype, size in BYTES.items():
        unit = 8 if size == 2 else 4
        for draw, loop in _named(found, dtype, unit):
            cells = []
            for bandwidth, processors, clock in GPUS.values():
                memory = 2 * size / bandwidth
                issue = loop.path / unit / (processors * LANES * clock)
                cells.append(f"{max(memory, issue) * 1e12:.2f}, {'memory' if memory > issue else 'instructions'}")
            print(f"| {dtype} | {draw} | {loop.path / unit:.1f} | " + " | ".join(cells) + " |")


def _named(found, dtype, unit):
    """The loops with one block for four elements, by what they draw."""
    for truncated in (False, True):
        for loop in found[dtype, False, truncated]:
            if 4 * round(loop.count(r"IMAD\.WIDE\.U32") / 19) == unit:
                roots = loop.count("MUFU")
                plain, rooted = ("truncated normal", "truncated normal, tails") if truncated else ("uniform", "normal")
                yield rooted if roots else plain, loop


if __name__ == "__main__":
    main()
