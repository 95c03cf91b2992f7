"""Mutation testing of the CPU kernels: breaks them one token at a time and counts how often the tests notice.

Run from the repository root: ``python tools/mutate_kernels.py --sample 100``. Each mutant is one changed operator or constant in
a header of ``csrc/core`` or ``csrc/cpu``; the one instruction set that it lives in is compiled again without optimisation, and
the native driver's fuzzed tables and the tests of :data:`TESTS` run with it until something fails. A sample is the same for the
same sources, and what has been tried is kept in ``build/mutation``, so that a stopped run goes on. Writes ``docs/mutation.md``.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks"), str(ROOT / "tests")]

PAGE = ROOT / "docs" / "mutation.md"
WORK = ROOT / "build" / "mutation"
DRIVER, MODULE = WORK / "driver", WORK / "_cpu.so"
UNITS = ("smooth_isa", "adamw_isa")
"""What is compiled once for every instruction set."""
OPTIMIZER = ("adamw.h", "adamw_loop.h", "quantize.h")
"""Headers whose mutants are compiled into the second unit; all others' into the first."""
BINDINGS = ("bindings_cpu", "bindings_observe", "bindings_optim")
FUZZ = ("fuzz", "7", "3000", "400", "2")
"""Random kernel tables against the oracle of tests/native, which has the formulas without the mutant."""
AVX2 = ("-mavx2", "-mfma", "-mf16c")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
FLAGS = {
    "portable": (),
    "avx2": ("-DSFF_LANES_AVX2", *AVX2),
    "avx512": ("-DSFF_LANES_AVX512", *AVX512),
    "avx512bf16": ("-DSFF_LANES_AVX512", "-DSFF_NATIVE_BF16", *AVX512, "-mavx512bf16"),
}
COMMON = ("-std=c++17", "-O0", "-fPIC", "-w", "-ffp-contract=off", "-fno-math-errno", "-fvisibility=hidden")
HEADERS = (
    *(f"csrc/core/{name}.h" for name in ("adamw", "distributions", "dtypes", "philox", "quantize", "scalar")),
    *(f"csrc/cpu/{name}.h" for name in ("adamw_loop", "lanes_portable", "lanes_avx2", "lanes_together", "smooth_loop")),
)
TESTS = {
    "smooth_isa": ("test_known_answers.py", "test_kernels.py", "test_kernel_edges.py"),
    "adamw_isa": ("test_optim_quantize.py", "test_fused_adamw.py", "test_kernel_edges.py"),
}
LEFT_OUT = "not avx512 and not mebibyte and not python_threads_run and not follow_torch and not have_their_distribution"
"""What does not run the mutated instruction sets, or takes long where a known answer sees a mutant sooner."""
SECONDS = 100
"""Of processor time; with more a mutant counts as noticed: it does not end."""

SWAPS = {
    "+": "-", "-": "+", "*": "+", "/": "*", "&": "|", "|": "&", "^": "|", "<<": ">>", ">>": "<<", "%": "+",
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==", "&&": "||", "||": "&&", "+=": "-=", "-=": "+=",
}  # fmt: skip
OPERATOR = re.compile(r"(?<= )(<<|>>|<=|>=|==|!=|&&|\|\||\+=|-=|[-+*/&|^%<>])(?= )")
NUMBER = re.compile(
    r"(?<![\w.])(0x[0-9a-fA-F]+(?:\.[0-9a-fA-F]*)?(?:p[-+]?\d+)?|\d+\.\d*(?:e[-+]?\d+)?|\d+)(?=[uUlLfF]*(?![\w.]))"
)


@dataclass(frozen=True)
class Mutant:
    """One change: ``text`` at ``column`` of ``line`` (from 1) in ``file`` becomes ``instead``."""

    file: str
    line: int
    column: int
    text: str
    instead: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column + 1} `{self.text}` -> `{self.instead}`"

    def applied(self, content: str) -> str:
        """The file's content with the change."""
        lines = content.splitlines(keepends=True)
        old = lines[self.line - 1]
        assert old[self.column :].startswith(self.text), str(self)
        lines[self.line - 1] = old[: self.column] + self.instead + old[self.column + len(self.text) :]
        return "".join(lines)


def code_of(line: str) -> str:
    """A line without comment and string; empty for directives, declarations, assertions of the compiler and prefetches."""
    if re.match(r"\s*(#|template|using|static_assert|namespace|SFF_UNROLL|prefetch)", line):
        return ""
    line = re.sub(r'"[^"]*"', lambda m: " " * len(m[0]), line)
    return line.split("//", maxsplit=1)[0]


def mutants_of(file: str, content: str, compiled: set[int]) -> Iterator[Mutant]:
    """All mutants of a file's ``compiled`` lines: each operator with blanks around it, each number."""
    for number, line in enumerate(content.splitlines(), start=1):
        if number not in compiled:
            continue
        code = code_of(line)
        for found in OPERATOR.finditer(code):
            yield Mutant(file, number, found.start(), found[0], SWAPS[found[0]])
        for found in NUMBER.finditer(code):
            yield Mutant(file, number, found.start(), found[0], _other_number(found[0]))


def _other_number(text: str) -> str:
    if text.startswith("0x") and "p" not in text:
        return hex(int(text, 16) + 1)
    if text.startswith("0x") or "." in text:
        value = float.fromhex(text) if text.startswith("0x") else float(text)
        return repr(value * 1.001 if value else 1.0)
    return str(int(text) + 1)


def isa_of(file: str) -> str:
    """The instruction set that a header's mutants are compiled for."""
    return "avx2" if file.endswith("lanes_avx2.h") else "portable"


def unit_of(file: str) -> str:
    """The unit that a header's mutants are compiled into."""
    return UNITS[Path(file).name in OPTIMIZER]


def compiled_lines(file: str) -> set[int]:
    """The lines of a header that become machine code of its instruction set, as gcov counts them."""
    lines: set[int] = set()
    note = fixed_objects()[0].parent / f"{unit_of(file)}-{isa_of(file)}.gcno"
    command = ["gcov", "--json-format", "--stdout", str(note)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[0])
    for source in found["files"]:
        if (ROOT / source["file"]).resolve() == ROOT / file:
            lines |= {line["line_number"] for line in source["lines"]}
    return lines


def sample(size: int, files: tuple[str, ...] = HEADERS) -> tuple[list[Mutant], int]:
    """So many mutants of all headers, in a shuffled order that depends on the sources alone; and how many there are."""
    everything = [m for file in files for m in mutants_of(file, (ROOT / file).read_text(), compiled_lines(file))]
    random.Random(0).shuffle(everything)
    return everything[:size], len(everything)


def sources_hash() -> str:
    """Content hash of what the mutants are made of and of the tests that judge them."""
    files = sorted(
        (
            *ROOT.glob("csrc/c*/*.h"),
            *ROOT.glob("csrc/cpu/*.cpp"),
            *(ROOT / "tests" / name for names in TESTS.values() for name in names),
        )
    )
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]


@functools.cache
def fixed_objects() -> tuple[Path, ...]:
    """Everything that is compiled once: driver, bindings, checks, and all instruction sets as they are."""
    import pybind11

    folder = WORK / "objects" / sources_hash()
    folder.mkdir(parents=True, exist_ok=True)
    include = (f"-I{pybind11.get_include()}", f"-I{sysconfig.get_paths()['include']}")
    jobs = [(ROOT / "tests/native/driver.cpp", "driver", ("-DSFF_ISA=oracle",))]
    jobs += [(ROOT / f"csrc/{name}.cpp", name, include) for name in BINDINGS]
    jobs += [(path, path.stem, ()) for path in sorted(ROOT.glob("csrc/cpu/*.cpp")) if path.stem not in UNITS]
    for isa, flags in FLAGS.items():
        notes = ("-ftest-coverage",) if isa in ("portable", "avx2") else ()
        jobs += [(ROOT / f"csrc/cpu/{unit}.cpp", f"{unit}-{isa}", (*flags, *notes, f"-DSFF_ISA={isa}")) for unit in UNITS]
    for path, name, flags in jobs:
        if not (folder / f"{name}.o").exists():
            subprocess.run(["g++", *COMMON, *flags, "-c", str(path), "-o", f"{name}.o"], cwd=folder, check=True)
    return tuple(folder / f"{name}.o" for _, name, _ in jobs)


def build(mutant: Mutant | None) -> bool:
    """The module and the driver with a mutant in them (None: as they are); false where that does not compile."""
    objects = {path.stem: str(path) for path in fixed_objects()}
    if mutant is not None:
        tree, isa = WORK / "tree", isa_of(mutant.file)
        shutil.rmtree(tree, ignore_errors=True)
        shutil.copytree(ROOT / "csrc", tree)
        target = tree / Path(mutant.file).relative_to("csrc")
        target.write_text(mutant.applied(target.read_text()))
        unit, made = unit_of(mutant.file), str(WORK / "mutant.o")
        command = ["g++", *COMMON, *FLAGS[isa], f"-DSFF_ISA={isa}", "-c", str(tree / "cpu" / f"{unit}.cpp"), "-o", made]
        if subprocess.run(command, capture_output=True, check=False).returncode != 0:
            return False
        del objects[f"{unit}-{isa}"]
        objects = {"mutant": made, **objects}  # first: of functions that both units have the linker takes the first
    kernels = [path for name, path in objects.items() if name not in ("driver", *BINDINGS)]
    for kind, names, output in (((), ("driver",), DRIVER), (("-shared",), BINDINGS, MODULE)):
        subprocess.run(["g++", *kind, "-pthread", *(objects[n] for n in names), *kernels, "-o", str(output)], check=True)
    return True


def noticed(unit: str) -> str | None:
    """What notices a mutant of a unit first, the driver or a test in a child of this process; None where all pass."""
    if unit == "smooth_isa" and (why := _failure(lambda: os.execv(DRIVER, [str(DRIVER), *FUZZ]))):
        return "the driver's tables" if why == "failure" else why
    report = WORK / "first.txt"
    report.write_text("it ended the process")
    why = _failure(lambda: _judge(unit, report))
    return report.read_text() if why == "failure" else why


def _failure(action: Callable[[], int]) -> str | None:
    """Run something in a silent child: None where it ends well, ``"failure"``, or that it does not end."""
    child = os.fork()
    if child == 0:
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
        os._exit(action())
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "it does not end" if status == -signal.SIGXCPU else "failure" if status else None


def _judge(unit: str, path: Path) -> int:
    import importlib.machinery
    import importlib.util

    import pytest

    import sff_fast

    class First:
        """Writes down the first failure."""

        def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
            if report.failed:
                path.write_text(report.nodeid.split("::")[-1])

    spec = importlib.util.spec_from_loader("sff_fast._cpu", importlib.machinery.ExtensionFileLoader("sff_fast._cpu", str(MODULE)))
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    sys.modules["sff_fast._cpu"] = sff_fast._cpu = loaded
    tests = [str(ROOT / "tests" / name) for name in TESTS[unit]]
    return int(pytest.main([*tests, "-x", "-q", "-p", "no:cacheprovider", "-k", LEFT_OUT], plugins=[First()]))


HEAD = """# Mutation testing of the CPU kernels

Written by `python tools/mutate_kernels.py --sample {asked}`: one operator or constant of a header is changed, the module is
compiled with it, and the native driver's fuzzed tables and the fast known-answer and bit tests run until one fails:
{tests}.
Of the instruction sets the portable one carries the mutants, AVX2 those of its own lanes. Prefetches are left out.

| | |
|---|---|
| date | {date} UTC |
| sources | {sources} |
| mutants possible | {possible} |
| tried, in a random order | {tried} |
| do not compile | {broken} |
| noticed | {killed} of {valid}: {share:.1f} % |
| not noticed | {survived} |
{explained}
| header | noticed | tried |
|---|---|---|
"""


def page(rows: dict[str, dict], possible: int, asked: int, notes: dict[str, str], date: str) -> str:
    """The page as Markdown.

    Args:
        rows: Of each mutant that was tried ``file`` and ``by``: the test that noticed it, ``""`` for none, ``"compiler"``.
        possible: How many mutants there are.
        asked: The sample's size.
        notes: Why a mutant that was not noticed changes nothing that a test could see.
        date: When.
    """
    valid = {name: row for name, row in rows.items() if row["by"] != "compiler"}
    survivors = [name for name, row in valid.items() if not row["by"]]
    killed = len(valid) - len(survivors)
    same = sum(name in notes for name in survivors)
    effective = max(len(valid) - same, 1)
    explained = f"| of these without any effect (reasons below) | {same} |\n" if same else ""
    explained += f"| **noticed of those with an effect** | **{killed} of {effective}: {100 * killed / effective:.1f} %** |\n"
    head = HEAD.format(
        asked=asked,
        tests=", ".join(f"`{name}`" for name in sorted({name for names in TESTS.values() for name in names})),
        date=date,
        sources=sources_hash(),
        possible=possible,
        tried=len(rows),
        broken=len(rows) - len(valid),
        killed=killed,
        valid=len(valid),
        share=100 * killed / max(len(valid), 1),
        survived=len(survivors),
        explained=explained,
    )
    files = sorted({row["file"] for row in valid.values()})
    counts = {f: [bool(row["by"]) for row in valid.values() if row["file"] == f] for f in files}
    table = "".join(f"| `{f}` | {sum(counts[f])} | {len(counts[f])} |\n" for f in files)
    tail = "\n## Not noticed\n\n" + "".join(f"* {name}: {notes.get(name, '')}".rstrip(": ") + "\n" for name in sorted(survivors))
    return head + table + (tail if survivors else "")


def main() -> int:
    """Try a sample, write the page; the exit code is 0 where at least 90 % of those with an effect were noticed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--sample", type=int, default=100, help="how many mutants to try, default 100")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no further mutant after so long, default 60")
    parser.add_argument("--output", type=Path, default=PAGE, help="where to write, default docs/mutation.md")
    options = parser.parse_args()
    import numpy  # noqa: F401  (imported before the children are made, so that each need not)
    import torch

    torch.set_num_threads(1)
    os.chdir(ROOT)
    WORK.mkdir(parents=True, exist_ok=True)
    build(None)
    for unit in UNITS:
        if (first := noticed(unit)) is not None:
            raise SystemExit(f"the tests fail without any mutant, in {first}: mend that first")
    kept = WORK / f"{sources_hash()}.json"
    rows: dict[str, dict] = json.loads(kept.read_text()) if kept.exists() else {}
    chosen, possible = sample(options.sample)
    end = time.monotonic() + 60 * options.minutes
    for mutant in chosen:
        if str(mutant) in rows or time.monotonic() > end:
            continue
        by = (noticed(unit_of(mutant.file)) or "") if build(mutant) else "compiler"
        rows[str(mutant)] = {**asdict(mutant), "by": by}
        kept.write_text(json.dumps(rows, indent=0))
        print(f"{mutant}: {by or 'NOT NOTICED'}", flush=True)
    notes_file = ROOT / "tools" / "mutants_without_effect.json"
    notes = json.loads(notes_file.read_text()) if notes_file.exists() else {}
    text = page(rows, possible, options.sample, notes, time.strftime("%Y-%m-%d %H:%M", time.gmtime()))
    options.output.write_text(text)
    valid = [row for name, row in rows.items() if row["by"] != "compiler" and (row["by"] or name not in notes)]
    return 0 if sum(bool(row["by"]) for row in valid) >= 0.9 * len(valid) else 1


if __name__ == "__main__":
    raise SystemExit(main())
