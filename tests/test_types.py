"""Types: what is public has known types, and the stubs say what the native module has."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sff_fast
from sff_fast.backends import cpu

ROOT = Path(__file__).resolve().parents[1]
OPEN = {"FusedAdam", "FusedAdamW"}
"""Public names with an unknown part: what torch leaves open in the base class of its optimizers."""


def pyright(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run pyright, at the root and with this interpreter's packages."""
    pytest.importorskip("pyright", reason="pyright is not installed: make test-slow installs it")
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def _arguments(node: ast.Module | ast.ClassDef) -> dict[str, list[str]]:
    return {f.name: [a.arg for a in f.args.args] for f in node.body if isinstance(f, ast.FunctionDef)}


def test_the_stub_of_the_native_module_names_what_it_has():
    stub = ast.parse((ROOT / "sff_fast" / "_cpu.pyi").read_text())
    classes = {node.name: _arguments(node) for node in stub.body if isinstance(node, ast.ClassDef)}
    numbers = {node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)}
    module = cpu._cpu
    assert {name for name in dir(module) if not name.startswith("_")} == _arguments(stub).keys() | classes.keys() | numbers
    for owner, functions in ((module, _arguments(stub)), *((getattr(module, name), found) for name, found in classes.items())):
        assert owner is module or {name for name in dir(owner) if not name.startswith("_")} == functions.keys() - {"__init__"}
        for name, arguments in functions.items():
            signature = getattr(owner, name).__doc__.split("\n")[0]
            assert [part.split(":")[0].strip() for part in signature[len(name) + 1 :].split(", ") if ":" in part] == arguments


def test_the_package_says_that_it_has_types():
    assert (ROOT / "sff_fast" / "py.typed").exists()


@pytest.mark.slow
def test_the_files_of_the_list_pass_pyrights_strict_mode():
    done = pyright()
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_the_types_of_the_public_names_are_known():
    found = json.loads(pyright("--verifytypes", "sff_fast", "--ignoreexternal", "--outputjson").stdout)["typeCompleteness"]
    known = {symbol["name"].removeprefix("sff_fast."): symbol["isTypeKnown"] for symbol in found["symbols"]}
    names = set(sff_fast.__all__) - {"__version__"}
    assert names <= known.keys()
    assert {name for name in names if not known[name]} <= OPEN
