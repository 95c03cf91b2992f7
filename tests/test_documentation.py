"""The documentation: every block of code runs, or says why not; every command and option in it exists.

A page's blocks run in the order of the page, in one folder with the files of :func:`folder` and in one namespace, which has
what the pages take for granted: ``build_model``, and before each block a fresh ``model``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import documentation
import numpy as np
import pytest
import torch
from documentation import ROOT, Block
from safetensors.torch import save_file
from torch import nn

import sff_fast
from sff_fast.cli import main
from sff_fast.cli.app import cli

PAGES = documentation.pages()
BLOCKS = [block for page in PAGES for block in documentation.blocks(page)]
ELSEWHERE = {
    "docs/data.md": "test_docs_commands.py",
    "docs/integrations.md": "test_docs_integrations.py",
    "docs/tasks.md": "test_docs_commands.py",
}
"""Pages whose blocks another file runs, with data of its own."""
RUN = {page: [b for b in documentation.blocks(page) if not b.mark and b.language not in ("text", "toml")] for page in PAGES}
SHORT = ("--epochs", "1", "--max-steps", "2", "--threads", "1", "--device", "cpu")
TRAINING = ("finetune", "compare")


class Net(nn.Module):
    """What ``build_model`` returns on the pages."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.body(x)))


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The current folder of a page: a table, a small Timer, and checkpoints of :class:`Net`."""
    rng = np.random.default_rng(0)
    stamps = np.datetime64("2024-01-01T00", "h") + np.arange(1600)
    load = np.stack([np.sin(np.arange(1600) / 24 * 2 * np.pi), rng.standard_normal(1600)], 1).round(4)
    rows = [f"{str(stamp).replace('T', ' ')}:00,{a},{b}" for stamp, (a, b) in zip(stamps, load)]
    (tmp_path / "load.csv").write_text("\n".join(["date,load,wind", *rows]) + "\n")
    sff_fast.tiny("timer").save(tmp_path / "timer.ckpt")
    for name in ("chronos-t5-large", "model-40b"):
        (tmp_path / name).mkdir()
        save_file(Net().state_dict(), tmp_path / name / "model.safetensors")
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield tmp_path
    torch.set_num_threads(threads)


def run_python(block: Block, names: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a block; its trainings take two steps."""
    real = sff_fast.finetune
    monkeypatch.setattr(sff_fast, "finetune", lambda *a, **k: real(*a, **{"epochs": 1, "max_steps": 2, **k}))
    names["model"] = names["build_model"]()
    exec(compile(block.text, str(block), "exec"), names)


def run_command(command: list[str]) -> None:
    """Run a line; only the program itself can be run here, so that other lines need a mark."""
    assert command[0] == "sff-fast", f"{' '.join(command)}: write <!-- not run: reason --> before the block"
    assert main([*command[1:], *(SHORT if command[1] in TRAINING else ())]) == 0, " ".join(command)


HERE = [page for page in PAGES if RUN[page] and page.relative_to(ROOT).as_posix() not in ELSEWHERE]


@pytest.mark.parametrize("page", HERE, ids=lambda p: p.relative_to(ROOT).as_posix())
def test_the_code_of_a_page_runs(page, folder, monkeypatch):
    if "families" in page.parts:
        package = sff_fast.families()[page.stem].adapter.module
        if package is not None:
            pytest.importorskip(package, reason=f"{package} is not installed: make models-env")
    names: dict[str, object] = {"build_model": Net, "torch": torch, "sff_fast": sff_fast, "alpha": 0.7, "__name__": "page"}
    for block in RUN[page]:
        if block.language == "python":
            run_python(block, names, monkeypatch)
        for command in block.commands:
            run_command(command)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_command_and_option_in_the_documentation_exists(block):
    for command in block.commands:
        check_command(command, block)
    if block.language == "python":
        compile(block.text, str(block), "exec")


def check_command(command: list[str], block: Block) -> None:
    """That a line names what there is, without running it."""
    program, *rest = command
    words = [word for word in rest if word != "..."]
    if program == "sff-fast" and words[0] != "COMMAND":
        assert words[0] in cli.commands, f"{block}: {words[0]}"
        context = click.Context(cli.commands[words[0]], info_name=words[0])
        cli.commands[words[0]].make_parser(context).parse_args(words[1:])  # UsageError: an option that there is not
    elif program == "make":
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert {word for word in words if "=" not in word} <= targets, f"{block}: {words}"
    elif program in ("python", "pytest", "torchrun", "bash"):
        for word in words:
            if re.fullmatch(r"(tests|tools|benchmarks|examples)/[\w/*.]+(::\w+)?", word):
                assert list(ROOT.glob(word.split("::")[0])), f"{block}: {word} is not there"


def test_a_wrong_option_a_wrong_target_and_a_wrong_file_are_noticed():
    block = Block("page.md", 1, "", "", "", "")
    with pytest.raises(click.UsageError, match="--alpah"):
        check_command(["sff-fast", "finetune", "--alpah", "1"], block)
    with pytest.raises(AssertionError, match="no-such-command"):
        check_command(["sff-fast", "no-such-command"], block)
    with pytest.raises(AssertionError, match="tset"):
        check_command(["make", "tset"], block)
    with pytest.raises(AssertionError, match="is not there"):
        check_command(["python", "tools/no_such_file.py"], block)


def test_blocks_are_found_with_their_marks_and_formulas_are_none(tmp_path, monkeypatch):
    monkeypatch.setattr(documentation, "ROOT", tmp_path)
    page = tmp_path / "page.md"
    page.write_text(
        "# A\n\n    theta = alpha\n\ntext\n\n    FOO=1 python tools/x.py   # why\n\n```python\na = 1\n```\n\n"
        "<!-- not run: minutes -->\n```\nmake demo\nsff-fast demo \\\n    --out x\n```\n"
    )
    indented, python, shell = documentation.blocks(page)
    assert indented.commands == [["python", "tools/x.py"]]
    assert (str(python), python.language, python.text, python.mark) == ("page.md:9", "python", "a = 1\n", "")
    assert (shell.mark, shell.reason) == ("not run", "minutes")
    assert shell.commands == [["make", "demo"], ["sff-fast", "demo", "--out", "x"]]


def test_pages_that_are_run_elsewhere_are_named_there():
    for page, file in ELSEWHERE.items():
        assert Path(page).name in (ROOT / "tests" / file).read_text(), page


def test_a_mark_says_a_reason_in_words():
    for block in BLOCKS:
        assert not block.mark or len(block.reason.split()) >= 3, str(block)


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_its_pages_fetch_nothing(tmp_path):
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: make test-slow installs it")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stderr
    built = sorted(tmp_path.rglob("*.html"))
    assert len(built) > len(list((ROOT / "docs").rglob("*.md")))
    for page in built:
        text = page.read_text()
        fetched = re.findall(r"<(?:script|img|link|iframe)\b[^>]*?\b(?:src|href)=[\"']?((?:https?:)?//[^\"'\s>]+)", text)
        assert not fetched, (page.name, fetched)
        assert 'class="mermaid"' not in text, f"{page.name}: the theme would fetch mermaid"
    reference = (tmp_path / "reference" / "cli.html").read_text()
    for name, command in cli.commands.items():
        assert f'id="{name}"' in reference
        for option in command.params:
            assert (option.opts[0] if isinstance(option, click.Option) else option.name.upper()) in reference, (name, option.opts)
    python = (tmp_path / "reference" / "python.html").read_text()
    homes = {name: home for home, names in sff_fast._EXPORTS.items() for name in names}
    missing = {name for name in homes if not re.search(rf'id="sff_fast\.[\w.]*\b{name}"', python)}
    assert missing == {"STREAM_VERSION"}, f"add to docs/reference/python.md: {missing}"
