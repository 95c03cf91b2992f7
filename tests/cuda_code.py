"""What nvcc makes of the kernels: compiling for one architecture, and reading the machine code."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
from cuda_shim import files_of

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "csrc" / "cuda" / "smooth.cu"
ADAMW_SOURCE = SOURCE.with_name("adamw.cu")
CACHE = ROOT / "build" / "cuda-tests"
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
NAMES = {"f": "float32", "d": "float64", "BFloat16": "bfloat16", "Float16": "float16"}
_BRANCH = re.compile(r"\b(?:BRA|BRX|JMP)\b")
_TARGET = re.compile(r"(0x[0-9a-f]+)\s*$")


def tool(name: str) -> str:
    """A program of the CUDA toolkit: the machine's, or the one that ``make cuda-tools`` installs; skips without."""
    site = Path(sysconfig.get_paths()["purelib"]) / "nvidia"
    found = shutil.which(name) or next((str(p) for p in sorted(site.glob(f"*/bin/{name}"))), None)
    if not found:
        pytest.skip(f"{name} is not installed: `make cuda-tools` brings it")
    return found


def flags() -> list[str]:
    """The flags that the build compiles the kernels with, from ``cmake/cuda.cmake``."""
    text = (ROOT / "cmake" / "cuda.cmake").read_text()
    return re.search(r"set\(SFF_CUDA_FLAGS ([^)]*)\)", text)[1].split()


@functools.cache
def _version() -> str:
    return subprocess.run([tool("nvcc"), "--version"], capture_output=True, text=True, check=True).stdout


def _cached(source: Path, what: str) -> Path:
    """Where the result of compiling a source goes: a name that changes with every file and flag that it depends on."""
    digest = hashlib.blake2b(" ".join([_version(), what, *flags()]).encode(), digest_size=12)
    for path in (path for path in files_of([source], "-DSHIM_WARPS") if "csrc" in path.parts):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return CACHE / f"{source.stem}-{digest.hexdigest()}-{what.replace(' ', '-')}"


def compile_kernels(architecture: str, kind: str, source: Path = SOURCE) -> tuple[Path, str]:
    """Compile kernels for one architecture, or take what an earlier run compiled from the same files.

    Args:
        architecture: Such as ``"sm_90"``.
        kind: ``"ptx"``, or ``"cubin"``, which is made from it: it has the bytes of one made from the source.
        source: The ``.cu`` file, in a folder beside ``core``. Default: the kernels of smoothing.

    Returns:
        The file and what ptxas said.
    """
    out = _cached(source, f"{architecture}.{kind}")
    said = out.with_name(out.name + ".txt")
    if not out.exists() or not said.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        made = out.with_name(f"{os.getpid()}-{out.name}")
        given = compile_kernels(architecture, "ptx", source)[0] if kind == "cubin" else source
        command = [tool("nvcc"), *flags(), f"-arch={architecture}", f"-{kind}", "-Xptxas", "-v", str(given), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        said.write_text(done.stderr)
        made.replace(out)  # whole or not at all
    return out, said.read_text()


def compile_for_all(kind: str, source: Path = SOURCE) -> dict[str, tuple[Path, str]]:
    """:func:`compile_kernels` for every architecture, side by side where there are several processors."""
    with ThreadPoolExecutor(len(ARCHITECTURES)) as pool:
        return dict(zip(ARCHITECTURES, pool.map(lambda name: compile_kernels(name, kind, source), ARCHITECTURES)))


VARIANTS = ("plain", "truncated", "shifted")
"""Of the kernels of smoothing, as ``sff::Variant`` counts them."""


def kernel_name(mangled: str) -> tuple[str, bool, str]:
    """dtype, stochastic and variant of a kernel from its symbol."""
    found = re.search(r"smooth_kernelI(?:N\w+6device\d+(B?Float16)E|([fd]))Lb([01])ELi([012])E", mangled)
    return NAMES[found[1] or found[2]], found[3] == "1", VARIANTS[int(found[4])]


_ADAMW = re.compile(r"adamw_kernelI(f|N\w*?8BFloat16E|N\w*?7Float16E)(f|S\d*_|N\w*?8BFloat16E|N\w*?4Int8E)Lb([01])ELi([012])E")
_STORING = ("nearest", "stochastic", "compensated")


def adamw_name(mangled: str) -> tuple[str, str, str, bool] | str:
    """dtype, states, storing and amsgrad of a kernel of the optimizer, or the name of one of the others."""
    found = _ADAMW.search(mangled)
    if not found:
        return re.search(r"\d(sum|clip)_kernel", mangled)[1]
    names = {"f": "float32", "8": "bfloat16", "7": "float16", "4": "int8", "_": "bfloat16"}
    parts = (re.search(r"(?:([478])(?:BFloat16|Float16|Int8)E|(f)|S\d*(_))$", part) for part in found.group(1, 2))
    dtype, state = (names[next(filter(None, part.groups()))] for part in parts)
    return dtype, state, _STORING[int(found[4])], found[3] == "1"


def resources(report: str, named: Callable[[str], Hashable] = kernel_name) -> dict[Hashable, dict[str, int]]:
    """Registers, stack and spilled bytes of every kernel, from what ptxas said; ``named`` makes keys of symbols."""
    result = {}
    for part in report.split("Compiling entry function '")[1:]:
        numbers = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", part)
        result[named(part.split("'")[0])] = {
            "stack": int(numbers[1]),
            "spilled": int(numbers[2]) + int(numbers[3]),
            "registers": int(re.search(r"Used (\d+) registers", part)[1]),
        }
    return result


@dataclass(frozen=True)
class Loop:
    """An innermost loop: its instructions, and how many of them run where no value is special."""

    body: tuple[str, ...]
    path: int

    def count(self, pattern: str) -> int:
        """Instructions that match."""
        return sum(bool(re.search(pattern, line)) for line in self.body)


def _target(line: str) -> int | None:
    found = _TARGET.search(line) if _BRANCH.search(line) else None
    return int(found[1], 16) if found else None


def _common_path(lines: list[tuple[int, str]]) -> int:
    """Instructions on the shortest way through a loop body that calls nothing.

    What only special values take (the square root of a denormal, the canonical NaN) lies behind a branch; the square root's
    is a call, which is never on the shortest way here.
    """
    far = 1 << 30
    place = {address: i for i, (address, _) in enumerate(lines)}
    reach = [far] * (len(lines) + 1)
    reach[0] = 0
    for i, (_, line) in enumerate(lines[:-1]):
        if reach[i] == far or line.startswith("CALL"):
            continue
        target = _target(line)
        jump = place.get(target, -1) if target is not None else -1
        if jump > i:
            reach[jump] = min(reach[jump], reach[i] + 1)
        # BRA.DIV leaves only where the warp's lanes came apart.
        if target is None or line.lstrip().startswith("@") or re.search(r"BRA\S* !?U?P\d|BRA\.DIV", line):
            reach[i + 1] = min(reach[i + 1], reach[i] + 1)
    return reach[len(lines) - 1] + 1


def functions(cubin: Path, named: Callable[[str], Hashable] = kernel_name) -> dict[Hashable, list[Loop]]:
    """The vector loops of every kernel: innermost, with 128-bit loads and stores. ``named`` makes keys of symbols."""
    path = Path(tool("nvdisasm")).parent
    done = subprocess.run(
        [tool("cuobjdump"), "-sass", str(cubin)],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": f"{path}:/usr/bin:/bin"},
    )
    result = {}
    for part in re.split(r"\n\s*Function : ", done.stdout)[1:]:
        lines = [(int(m[1], 16), m[2].strip()) for m in re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(.*?);\s*/\*", part)]
        spans = [(t, a) for a, line in lines if (t := _target(line)) is not None and t <= a]
        inner = [s for s in spans if not any(o != s and o[0] >= s[0] and o[1] <= s[1] for o in spans)]
        loops = []
        for begin, end in sorted(set(inner)):
            body = [(a, line) for a, line in lines if begin <= a <= end]
            loop = Loop(tuple(line for _, line in body), _common_path(body))
            if loop.count(r"LDG\S*\.128"):
                loops.append(loop)
        result[named(part.split("\n")[0])] = loops
    return result
