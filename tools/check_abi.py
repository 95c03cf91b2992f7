"""One wheel a Python, several versions of torch: the known-answer and kernel tests against each, in environments of their own.

``python tools/check_abi.py --python PATH --torch 2.6.0,2.15.0 --python PATH …`` builds a wheel with each interpreter from the
working tree, installs the same file (its sha256 is in the table) beside each version of torch from the package index, takes the
tree's tests and not its package, and runs ``tools/check_wheel.py`` and the tests of :data:`TESTS`. Rows that are there already
stay unless they are measured again; ``--output docs/install.md`` replaces the table between the page's two marks. A torch with
CUDA libraries takes about 6 GB while it is tried; environments are removed at once. Exit code 1 where a row fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TESTS = (
    "test_known_answers.py",
    "test_kernels.py",
    "test_kernel_edges.py",
    "test_smooth.py",
    "test_prepared.py",
    "test_fused_adamw.py",
)
NEEDED = ("numpy", "safetensors", "pytest", "hypothesis", "scipy", "pyelftools")
BUILD = ("pip", "setuptools>=68", "wheel", "pybind11>=2.12", "cmake>=3.18", "ninja")
BEGIN, END = "<!-- abi -->", "<!-- /abi -->"
HEAD = "| Python | torch | numpy | wheel | sha256 | kernels | tests | date |\n|---|---|---|---|---|---|---|---|\n"
SUMMARY = re.compile(r"(?:(\d+) failed, )?(\d+) passed(?:, (\d+) skipped)?")


def run(*command: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder; what it said is the message where it fails."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{(done.stdout + done.stderr)[-3000:]}")
    return done


def environment(python: str, folder: Path, *packages: str) -> Path:
    """A new environment with packages; its interpreter."""
    run(python, "-m", "venv", folder, cwd=folder.parent)
    run(folder / "bin/python", "-m", "pip", "install", "--quiet", "--no-cache-dir", *packages, cwd=folder.parent)
    return folder / "bin/python"


def build_wheel(python: str, work: Path) -> Path:
    """The wheel of the working tree for an interpreter, without CUDA."""
    folder = work / "build"
    own = environment(python, folder, *BUILD)
    tree = work / "tree"
    ignored = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "runs", "*.so", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=ignored)
    path = f"PATH={own.parent}:/usr/bin:/bin"
    arguments = ("-m", "pip", "wheel", "--quiet", "--no-build-isolation", "--no-deps", "-w", work / "wheels", tree)
    run("env", path, "SFF_FAST_CUDA=off", own, *arguments, cwd=work)
    shutil.rmtree(tree)
    shutil.rmtree(folder)
    (wheel,) = (work / "wheels").glob("*.whl")
    return wheel


def try_torch(python: str, version: str, wheel: Path, work: Path) -> dict[str, str]:
    """One row of the table."""
    folder = work / "env"
    shutil.rmtree(folder, ignore_errors=True)
    own = environment(python, folder, f"torch=={version}", *NEEDED)
    run(own, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=work)
    tests = work / "tests"
    shutil.rmtree(tests, ignore_errors=True)
    shutil.copytree(ROOT / "tests", tests, ignore=shutil.ignore_patterns("__pycache__"))
    versions = "import json, platform, torch, numpy, sff_fast; print(json.dumps([platform.python_version(), torch.__version__, "
    versions += "numpy.__version__, sff_fast.available_backends()['cpu'].split()[0], sff_fast.__file__]))"
    found = json.loads(run(own, "-c", versions, cwd=work).stdout)
    if not found[-1].startswith(str(folder)):
        raise SystemExit(f"the package came from {found[-1]!r}, expected it from the wheel in {str(folder)!r}")
    checked = run(own, ROOT / "tools/check_wheel.py", cwd=work, check=False)
    # Without the project's settings: a warning of an older torch is none of ours.
    options = ("-q", "-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", tests, "-m", "not slow and not exhaustive")
    tested = run(own, "-m", "pytest", *options, *(tests / name for name in TESTS), cwd=work, check=False)
    summary = SUMMARY.search(tested.stdout.splitlines()[-1]) if tested.stdout else None
    good = checked.returncode == 0 and tested.returncode == 0 and summary is not None
    if not good:
        print(f"{checked.stdout}{checked.stderr}{tested.stdout[-6000:]}{tested.stderr[-2000:]}", file=sys.stderr)
    shutil.rmtree(folder)
    return {
        "python": found[0],
        "torch": found[1],
        "numpy": found[2],
        "wheel": "-".join(wheel.stem.split("-")[2:]),
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()[:12],
        "kernels": found[3],
        "tests": f"{summary[2]} passed" if good and summary else "**failed**",
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def with_rows(text: str, rows: list[dict[str, str]]) -> str:
    """A page with rows put into its table: those of the same Python and torch are replaced."""
    head, rest = text.split(BEGIN)
    table, tail = rest.split(END)
    names = [name.strip() for name in HEAD.splitlines()[0].strip("|").split("|")]
    kept = [dict(zip(names, map(str.strip, line.strip("|").split("|")))) for line in table.strip().splitlines()[2:]]
    merged = {(row["Python"], row["torch"]): row for row in kept}
    for row in rows:
        merged[row["python"], row["torch"]] = dict(zip(names, row.values()))
    lines = ["| " + " | ".join(merged[key].values()) + " |\n" for key in sorted(merged, key=_order)]
    return f"{head}{BEGIN}\n{HEAD}{''.join(lines)}{END}{tail}"


def _order(key: tuple[str, str]) -> list[list[int]]:
    return [[int(n) for n in re.findall(r"\d+", version.split("+")[0])] for version in key]


def main() -> int:
    """Try what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--python", action="append", required=True, help="an interpreter, once for each --torch")
    parser.add_argument("--torch", action="append", required=True, help="versions for it, comma-separated")
    parser.add_argument("--output", type=Path, help="the page whose table is replaced")
    options = parser.parse_args()
    if len(options.python) != len(options.torch):
        parser.error(f"expected a --torch for each --python, got {len(options.torch)} for {len(options.python)}")
    rows = []
    for python, versions in zip(options.python, options.torch):
        with tempfile.TemporaryDirectory(prefix="abi-") as name:
            wheel = build_wheel(python, Path(name))
            for version in versions.split(","):
                rows.append(try_torch(python, version, wheel, Path(name)))
                print(json.dumps(rows[-1]), flush=True)
                if options.output:
                    options.output.write_text(with_rows(options.output.read_text(), rows))
    return 0 if all("passed" in row["tests"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
