"""Writes ``docs/kernel-limits.md``: what bounds the CPU kernels, from their machine code and from runs inside the cache.

For the main loop of each distribution: instructions and vector operations an element counted in the object code, the cycles
that the vector ports need for them (operations a cycle are measured), the model of llvm-mca where it is installed, and the
measured time on a buffer that stays in the second-level cache. Then every figure of ``benchmarks/results/smooth.csv`` that is
not reached, beside what the kernel could reach if arithmetic and memory overlapped wholly, and beside what the blank loop
reaches (``tools/blank_loop.cpp``): the same bytes and as many vector operations that wait for nothing.

Needs objdump and g++, and about a minute; run from the repository root on an idle machine, after the benchmark:
``python tools/kernel_limits.py``. Where valgrind is installed callgrind counts the instructions that the AVX2 path really takes
an element (half a minute, on any machine); ``--callgrind`` prints these alone.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "benchmarks")]

from flat import MANY  # noqa: E402
from kernel_cases import DISTRIBUTIONS, forced_isa, tasks_for  # noqa: E402
from models import Many  # noqa: E402
from timing import latest_rows, machine  # noqa: E402

from sff_fast import table  # noqa: E402
from sff_fast.backends import cpu  # noqa: E402

PAGE = ROOT / "docs" / "kernel-limits.md"
KINDS = {"constant": 0, "uniform": 1, "normal": 2, "trunc_normal": 3}
TYPES = {"float": torch.float32, "BFloat16": torch.bfloat16}
MAINLY = {"Timer-67M": ("uniform", "float32"), "Chronos-T5-base": ("normal", "float32")}
# Namespace, lane class, forced name, elements an iteration (2 * lanes * interleave of csrc/cpu/lanes_*.h), register.
ISAS = {"avx512bf16": ("Avx512", "avx512", 192, "zmm"), "avx2": ("Avx2", "avx2", 96, "ymm")}
BLANK = ROOT / "tools" / "blank_loop.cpp"
LINE = 64  # bytes
COUNTER = ROOT / "tools" / "callgrind_count.py"
COUNTED = 960_000  # elements of a task under callgrind
CLOCK = """
#include <chrono>
#include <cstdio>
template <class F>
double fastest(int operations, F f) {
    double best = 0;
    for (int k = 0; k < 50; ++k) {
        const auto begin = std::chrono::steady_clock::now();
        for (int i = 0; i < 100000; ++i) f();
        const double ns = std::chrono::duration<double, std::nano>(std::chrono::steady_clock::now() - begin).count();
        if (100000 * operations / ns > best) best = 100000 * operations / ns;
    }
    return best;
}
#define EACH(op, r) \\
    op " %%" r "0,%%" r "1,%%" r "2\\n" op " %%" r "0,%%" r "1,%%" r "3\\n" op " %%" r "0,%%" r "1,%%" r "4\\n" \\
    op " %%" r "0,%%" r "1,%%" r "5\\n" op " %%" r "0,%%" r "1,%%" r "6\\n" op " %%" r "0,%%" r "1,%%" r "7\\n"
#define TWICE(op, r) EACH(op, r) EACH(op, r)
#define USES "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7"
int main() {
    unsigned long x = 1;
    std::printf("%.3f ", fastest(12, [&] { asm volatile("imul %0,%0\\nimul %0,%0\\nimul %0,%0\\nimul %0,%0" : "+r"(x)); }));
    std::printf("%.3f ", fastest(12, [] { asm volatile(TWICE("vpxor", "ymm")::: USES); }));
    const bool wide = __builtin_cpu_supports("avx512f");
    std::printf("%.3f", wide ? fastest(12, [] { asm volatile(TWICE("vpxord", "zmm")::: USES); }) : 0.0);
}
"""


@dataclass(frozen=True)
class Loop:
    """The main loop of a kernel.

    Attributes:
        body: Its instructions as objdump prints them.
    """

    body: tuple[str, ...]

    @property
    def arithmetic(self) -> int:
        """Vector instructions that need an arithmetic or shuffle port: all but moves, broadcasts and conversions in memory."""
        vector = [line for line in self.body if re.search(r"%[zy]mm", line)]
        moves = re.compile(r"^(vmov(?!sh|sl)|vbroadcast\S+ +[^%]*\(|vpbroadcast\S+ +[^%]*\()")
        return sum(not moves.match(line) for line in vector)


def disassembled() -> dict[str, list[tuple[int, str]]]:
    """Function to (address, instruction) for all of the native module."""
    done = subprocess.run(
        ["objdump", "-d", "-C", "--no-show-raw-insn", cpu._cpu.__file__], capture_output=True, text=True, check=True
    )
    functions: dict[str, list[tuple[int, str]]] = {}
    current: list[tuple[int, str]] = []
    for line in done.stdout.splitlines():
        if line.endswith(">:"):
            current = functions.setdefault(line.split(" ", 1)[1][1:-2], [])
        elif ":\t" in line:
            address, text = line.split(":\t", 1)
            current.append((int(address, 16), re.sub(r"\s+", " ", text.split("#")[0].split("<")[0]).strip()))
    return functions


def main_loop(code: list[tuple[int, str]]) -> Loop:
    """The innermost loop with most prefetches."""
    found: list[tuple[int, ...]] = []
    place = {address: i for i, (address, _) in enumerate(code)}
    for i, (_, text) in enumerate(code):
        jump = re.match(r"j\w+ ([0-9a-f]+)$", text)
        begin = place.get(int(jump.group(1), 16), i) if jump else i
        if begin < i:
            lines = sum(t.startswith("prefetch") for _, t in code[begin : i + 1])
            found.append((lines, begin, i))
    inner = [f for f in found if not any(f[1] <= g[1] and g[2] <= f[2] and g != f and g[0] > 0 for g in found)]
    _, begin, end = max(inner)
    return Loop(tuple(text for _, text in code[begin : end + 1]))


def model_cycles(loop: Loop) -> float | None:
    """Cycles an iteration by llvm-mca's model of Sapphire Rapids, None where it is not installed."""
    program = next((found for name in ("llvm-mca", "llvm-mca-16") if (found := shutil.which(name))), None)
    if program is None:
        return None
    body = "\n".join(text for text in loop.body if not re.match(r"(j\w+|call) ", text))
    command = [program, "-mcpu=sapphirerapids", "-iterations=100"]
    done = subprocess.run(command, input=body + "\n", capture_output=True, text=True, check=False)
    total = re.search(r"Total Cycles: +(\d+)", done.stdout)
    return int(total.group(1)) / 100 if total else None


def resident_ns(label: str, dtype: torch.dtype, isa: str) -> float:
    """Nanoseconds an element within the second-level cache: the slope between two lengths, smallest times of many."""
    lengths = (64_512, 193_536)  # 0.25 and 0.75 MiB in fp32; whole loop iterations
    tensors = [torch.zeros(n, dtype=dtype) for n in lengths]
    packed = [table.pack(tasks_for(x, DISTRIBUTIONS[label])) for x in tensors]
    best = [float("inf")] * 2
    with forced_isa(isa):
        for _ in range(400):
            for i, records in enumerate(packed):
                begin = time.perf_counter_ns()
                cpu._cpu.smooth(records, 1, isa)
                best[i] = min(best[i], time.perf_counter_ns() - begin)
    return (best[1] - best[0]) / (lengths[1] - lengths[0])


def callgrind_counts(elements: int = COUNTED) -> dict[tuple[str, str], float] | None:
    """Instructions an element that the AVX2 path takes, by distribution and dtype; None where valgrind is not installed.

    Callgrind counts what runs, the ends of runs and the calls included, where the object code shows the main loop alone.

    Args:
        elements: Elements of each task.
    """
    if shutil.which("valgrind") is None:
        return None
    cases = [(label, dtype) for dtype in TYPES.values() for label, kind in KINDS.items() if kind]
    memory = [torch.zeros(elements, dtype=dtype) for _, dtype in cases]
    records = [table.pack(tasks_for(x, DISTRIBUTIONS[label])) for (label, _), x in zip(cases, memory)]
    with tempfile.TemporaryDirectory() as folder:
        tables, output = Path(folder) / "tables.npy", Path(folder) / "out"
        np.save(tables, np.stack(records))
        command = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}", "--compress-strings=no", "--compress-pos=no"]
        command += [sys.executable, str(COUNTER), cpu._cpu.__file__, str(tables)]
        subprocess.run(command, capture_output=True, text=True, check=True)
        own = own_instructions(output.read_text())
    found = {}
    for label, dtype in cases:
        name = next(name for name, kind in TYPES.items() if kind == dtype)
        shown = name if name == "float" else f"sff::avx2::{name}"
        run = f"draw_run<sff::avx2::Avx2, {shown}, {KINDS[label]}, false>("
        total = sum(count for function, count in own.items() if run in function)
        found[label, str(dtype).removeprefix("torch.")] = total / elements
    return found


def own_instructions(output: str) -> dict[str, int]:
    """Function to the instructions counted in itself, of what callgrind writes without compression."""
    counts: dict[str, int] = {}
    function, inclusive = "", False
    for line in output.splitlines():
        if line.startswith("fn="):
            function = line[3:]
        elif line.startswith("calls="):
            inclusive = True  # the next line has the cost of what was called
        elif line[:1].isdigit() or line[:2] == "0x":
            if not inclusive:
                counts[function] = counts.get(function, 0) + int(line.split()[-1])
            inclusive = False
    return counts


def speed() -> dict[str, float]:
    """GHz from a chain of multiplications of three cycles each, and exclusive-ors a cycle on ymm and zmm registers."""
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder) / "clock.cpp", Path(folder) / "clock"
        source.write_text(CLOCK)
        subprocess.run(["g++", "-O1", str(source), "-o", str(program)], check=True)
        printed = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout
    ghz, ymm, zmm = map(float, printed.split())
    return {"GHz": ghz, "ymm": round(ymm / ghz), "zmm": round(zmm / ghz)}


FAR, NEAR = 400_000_000, 1 << 20
"""Bytes that lie in memory, and that stay in the second-level cache."""


def blank_ns(operations: float, width: int, isa: str, threads: int, size: int = FAR) -> float:
    """Nanoseconds an element of the blank loop.

    Args:
        operations: Vector operations an element of the kernel that it stands for.
        width: Bytes an element.
        isa: The instruction set, whose registers it takes.
        threads: Threads.
        size: Bytes that it goes over.
    """
    multiplies = 1 if isa == "avx512" else 2
    count = max(0, round(operations * LINE / width) - multiplies)
    flags = ["-mavx2", *(["-mavx512f"] if isa == "avx512" else []), "-pthread", "-std=c++17", f"-DOPS={count}"]
    with tempfile.TemporaryDirectory() as folder:
        program = str(Path(folder) / "blank_loop")
        subprocess.run(["g++", "-O2", *flags, str(BLANK), "-o", program], check=True)
        command = [program, str(threads), str(size // LINE), "9" if size == FAR else "399"]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout) * width / LINE


def rows(
    here: dict[str, float],
    scale: dict[tuple[str, str], float],
    counted: dict[tuple[str, str], float],
) -> tuple[list[str], dict[tuple[str, str, str], tuple[float, float]]]:
    """The table's lines; nanoseconds in the cache and vector operations, an element, by distribution, dtype and instruction set.

    Args:
        here: From :func:`speed`.
        scale: Nanoseconds an element of the in-place scale on one thread, by distribution and dtype, where it was measured.
        counted: From :func:`callgrind_counts`, empty where it was not.
    """
    functions, lines, resident = disassembled(), [], {}
    ghz = here["GHz"]
    for namespace, (lanes, isa, per, register) in ISAS.items():
        ports = here[register]
        for type_name, dtype in TYPES.items():
            shown = type_name if type_name == "float" else f"sff::{namespace}::{type_name}"
            for label, kind in KINDS.items():
                prefix = f"void sff::{namespace}::draw_run<sff::{namespace}::{lanes}, {shown}, {kind}, false>("
                code = next((code for name, code in functions.items() if name.startswith(prefix)), None)
                if code is None or kind == 0:
                    continue  # constants are a run of loads, one multiply-add and stores, inlined elsewhere
                loop = main_loop(code)
                cycles, measured = model_cycles(loop), resident_ns(label, dtype, isa)
                name = str(dtype).removeprefix("torch.")
                resident[label, name, isa] = measured, loop.arithmetic / per
                limit = scale.get((label, name))
                least = f"{limit:.3f} | {max(1.0, measured / limit):.2f}" if limit else "not measured | "
                ran = f"{counted[label, name]:.2f}" if isa == "avx2" and (label, name) in counted else ""
                lines.append(
                    f"| {label} | {name} | {isa} | {len(loop.body) / per:.2f} | {ran} | {loop.arithmetic / per:.2f} "
                    f"| {loop.arithmetic / per / ports:.2f} | {f'{cycles / per:.2f}' if cycles else 'no llvm-mca'} "
                    f"| {measured * ghz:.2f} | {measured:.3f} | {least} |"
                )
                print(lines[-1], flush=True)
    return lines, resident


def missed(found: list[dict[str, str]], resident: dict[tuple[str, str, str], tuple[float, float]]) -> list[str]:
    """A line for every figure of the benchmark that is not reached.

    Args:
        found: Rows of the benchmark.
        resident: From :func:`rows`.
    """
    limits = {(r["case"], r["isa"], r["threads"]): float(r["peer_ns"]) for r in found if r["peer"] == "limit"}
    blank: dict[tuple, tuple[float, float]] = {}
    lines = []
    for r in found:
        if r["holds"] != "no":
            continue
        label, dtype = MAINLY.get(r["case"], tuple([*r["case"].split(), ""][:2]))
        isa, threads = "avx2" if r["isa"] == "avx2" else "avx512", int(r["threads"])
        limit = limits.get((r["case"], r["isa"], r["threads"]))
        cells = ["", "", "", "", ""]
        if r["case"] == MANY:
            kernels = next(
                (k["ratio"] for k in found if (k["case"], k["threads"], k["peer"]) == (MANY, r["threads"], "one kernel")), ""
            )
            each = (float(r["ours_ns"]) - float(r["peer_ns"])) * int(r["elements"]) / Many.COUNT / 1000
            cells[-1] = "asking every tensor what it is before the first write, and its version counter: "
            cells[-1] += f"{each:.1f} us a tensor with its kernel's start; the kernels alone are at {kernels}"
        if (label, dtype, isa) in resident and limit is not None:
            alone, operations = resident[label, dtype, isa]
            key = operations, getattr(torch, dtype).itemsize, isa, threads
            if key not in blank:
                blank[key] = blank_ns(*key), blank_ns(*key[:-1], 1, NEAR) / threads
            far, near = blank[key]
            times = alone / threads, limit, far
            cells = [*(f"{ns:.3f}" for ns in times), *_reason(r, *times, far - near)]
        figure = f"{r['case']}, {r['isa']}, against {r['peer']}"
        cells = [r["ours_ns"], f"{needed_ns(r):.4f}" if r["peer_ns"] else "", *cells]  # memory has no time
        lines.append(f"| {figure} | {threads} | {r['must']} | {r['ratio']} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return lines


EVERY = """
## Every figure that was asked for

The latest of each in `benchmarks/results/smooth.csv`. *Ours / peer* must be at most, *peer / ours* at least what is wanted.

| figure | threads | ratio | wanted | measured | what stops it | date, UTC |
|---|---|---|---|---|---|---|
"""


def every_figure(found: list[dict[str, str]], stopped: list[str]) -> str:
    """The page's last part: a line for every figure that has a limit, whether it holds or not.

    Args:
        found: Rows of the benchmark.
        stopped: From :func:`missed`.
    """
    reasons = {tuple(cells[1:3]): cells[-2] for line in stopped if (cells := [cell.strip() for cell in line.split("|")])}
    lines = []
    for r in (r for r in found if r["must"]):
        figure = f"{r['case']}, {r['isa']}, against {r['peer']}"
        why = "holds" if r["holds"] == "yes" else reasons[figure, r["threads"]] or "**not shown**"
        lines.append(f"| {figure} | {r['threads']} | {r['of']} | {r['must']} | {r['ratio']} | {why} | {r['date']} |\n")
    return EVERY + "".join(lines)


def needed_ns(r: dict[str, str]) -> float:
    """Nanoseconds an element of ours with which a figure would hold, its peer being as fast as it was."""
    peer, wanted = float(r["peer_ns"]), float(r["must"].split()[1])
    return wanted * peer if r["must"].startswith("<=") else peer / wanted


def _reason(r: dict[str, str], arithmetic: float, limit: float, blank: float, added: float) -> tuple[str, str]:
    """What a figure would be with the blank loop's time, and what stops it.

    Args:
        r: The figure.
        arithmetic: Nanoseconds an element of the kernel in the cache, and so below.
        limit: The in-place scale.
        blank: The blank loop over memory.
        added: What that is above the blank loop in the cache.
    """
    upper, wanted = r["must"].startswith("<="), float(r["must"].split()[1])
    ours, peer, needed = float(r["ours_ns"]), float(r["peer_ns"]), needed_ns(r)

    def figure(ns: float) -> float:
        return ns / peer if upper else peer / ns

    def holds(ns: float) -> bool:
        return figure(ns) <= wanted if upper else figure(ns) >= wanted

    if not holds(arithmetic):
        why = "the arithmetic"
    elif not holds(limit):
        why = "the memory"
    elif not holds(blank):
        why = "the overlap of the two"
    elif not holds(arithmetic + added):
        why = f"the arithmetic, and the {added:.3f} ns that memory adds to the blank loop's"
    else:
        alone, name = max((arithmetic, "arithmetic"), (limit, "scale"))
        why = "waiting within the arithmetic" if arithmetic > blank else "the order of arithmetic and memory"
        why += f", with {needed / alone:.2f} times the {name} needed"
    return f"{figure(blank):.2f}", f"{why}; {ours / blank:.2f} times the blank loop"


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--output", type=Path, default=PAGE, help="where to write, default docs/kernel-limits.md")
    parser.add_argument("--callgrind", action="store_true", help="only count the AVX2 path's instructions, and print them")
    options = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.pop("SFF_FAST_ISA", None)
    counted = callgrind_counts()
    if options.callgrind:
        if counted is None:
            raise SystemExit("valgrind is absent: apt-get install -y --no-install-recommends valgrind")
        for (label, dtype), count in counted.items():
            print(f"{label} {dtype}: {count:.2f} instructions an element on AVX2")
        return
    measured, here = speed(), machine()
    found = latest_rows("smooth")
    near = {(r["case"], r["threads"]): r for r in found if r["peer"] == "limit" and r["isa"] == "widest"}
    scale = {tuple(case.split()): float(r["peer_ns"]) for (case, threads), r in near.items() if threads == "1"}
    lines, resident = rows(measured, scale, counted or {})
    one, two = (near["normal float32", threads]["ours_ns"] for threads in ("1", "2"))
    head = f"""# What bounds the CPU kernels

Written by `python tools/kernel_limits.py` on {here["date"]} UTC: {here["cpu"]} at {measured["GHz"]:.2f} GHz that does
{measured["zmm"]} exclusive-ors of 512 bits or {measured["ymm"]} of 256 a cycle (measured), one thread, torch {here["torch"]}.

A kernel that computes longer than memory needs cannot reach the speed of an in-place scale, however it is written. The columns:
instructions and vector arithmetic of the main loop an element, counted in the object code; instructions that callgrind sees the
whole AVX2 path take (`python tools/kernel_limits.py --callgrind`; valgrind knows no AVX-512); cycles an element that the vector
ports need for the arithmetic alone; cycles by llvm-mca's model, which lets some 512-bit operations use a third port that the
measurement above does not find; cycles and time measured in the second-level cache; the in-place scale of 10^8 elements in
memory, from the benchmark; and the least ratio to it that one thread can reach.

Threads have vector ports of their own where they run on cores of their own: normal fp32, which is bound by them, takes {one} ns
an element on one thread and {two} on two.

| draw | dtype | ISA | instructions | callgrind | vector | cycles: ports | model | measured | ns | scale, ns | least ratio |
|---|---|---|---|---|---|---|---|---|---|---|---|
"""
    tail = f"""
## Figures that are not reached

From `benchmarks/results/smooth.csv` ({found[-1]["date"]} UTC, `python benchmarks/bench_smooth.py`); all times are nanoseconds
an element. *Needed* is the time with which the figure would hold beside a peer as fast as it was. *Arithmetic* is the time of the
table above over the threads, *scale* the in-place scale. The *blank loop* is `tools/blank_loop.cpp`: the same bytes with the
kernel's two streams and prefetch, and beside each line as many vector operations as the kernel has, which read nothing that was
loaded and wait for nothing. It is what the machine lets overlap of the two, with no formula in the way. *With it* is the figure
that a kernel of that time would have. What stops a figure is the first of arithmetic, scale and blank loop that by itself is too
slow for it; then the arithmetic with what memory adds to the blank loop, whose own operations are timed in the second-level
cache too. Where none is, the arithmetic would have to hide the memory wholly and wait for nothing of its own: how little the
needed time leaves above the longer of the two stands there.

| figure | threads | wanted | measured | ours | needed | arithmetic | scale | blank loop | with it | what stops it |
|---|---|---|---|---|---|---|---|---|---|---|
"""
    stopped = missed(found, resident)
    options.output.write_text(head + "\n".join(lines) + "\n" + tail + "\n".join(stopped) + "\n" + every_figure(found, stopped))
    print(f"written to {options.output}")


if __name__ == "__main__":
    main()
