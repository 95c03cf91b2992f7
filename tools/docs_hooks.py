"""What the documentation site is made of besides the files in ``docs``; mkdocs.yml names this file.

Pages that stand elsewhere in the repository (README, CHANGELOG, CONTRIBUTING, SECURITY, benchmarks) become pages of the site with
their links mended, the command-line reference is written from the commands themselves, and pages that nobody put into the
navigation are listed at its end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
BROUGHT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
}
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)#\s]+)((?:#[^)]*)?\))")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of ``docs`` that the navigation does not name, as a section of their own."""
    named = set(_pages(config.nav))
    docs = Path(config.docs_dir)
    there = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    if further := [name for name in there if name not in named]:
        config.nav.append({"Further pages": further})
    return config


def _pages(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
        return
    for item in nav.values() if isinstance(nav, dict) else nav:
        yield from _pages(item)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that stand elsewhere, the command-line reference, and the tables that pages link to."""
    for source, name in BROUGHT.items():
        files.append(File.generated(config, name, content=(ROOT / source).read_text()))
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.csv")):
        files.append(File.generated(config, f"results/{path.name}", abs_src_path=str(path)))
    files.append(File.generated(config, "reference/cli.md", content=command_line()))
    return files


def on_page_markdown(markdown: str, page: Any, config: MkDocsConfig, files: Files) -> str:
    """Point links into the repository at the page that the site has for the file, or name the file where it has none."""
    names = {name: source for source, name in BROUGHT.items()}
    source = names.get(page.file.src_uri, f"docs/{page.file.src_uri}")
    depth = "../" * page.file.src_uri.count("/")

    def mended(found: re.Match[str]) -> str:
        before, target, rest = found.groups()
        if re.match(r"[a-z]+:|/", target):
            return found[0]
        file = (ROOT / source).parent.joinpath(target).resolve()
        if not file.is_relative_to(ROOT) or not file.exists():
            return found[0]  # mkdocs says what is wrong with it
        path = file.relative_to(ROOT).as_posix()
        if place := _place(path):
            return f"{before}{depth}{place}{rest}"
        return f"`{path}`"

    return LINK.sub(mended, markdown)


def _place(path: str) -> str | None:
    """Where the site has a file of the repository."""
    if path in BROUGHT:
        return BROUGHT[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if path.startswith("benchmarks/results/") and path.endswith(".csv"):
        return path.removeprefix("benchmarks/")
    return None


def command_line() -> str:
    """The reference of all commands as Markdown, from what the commands say of themselves."""
    from sff_fast.cli.app import cli

    parts = [
        "# Command line reference\n\nWritten from `sff-fast COMMAND --help`; "
        "[the guide](../cli.md) has examples and exit codes.\n"
    ]
    context = click.Context(cli, info_name="sff-fast")
    for name in cli.list_commands(context):
        command = cli.commands[name]
        inner = click.Context(command, info_name=name, parent=context)
        usage = " ".join(["sff-fast", name, *command.collect_usage_pieces(inner)])
        parts.append(f"\n## {name}\n\n{_plain(command.help)}\n\n```text\n{usage}\n```\n")
        rows = [record for parameter in command.get_params(inner) if (record := parameter.get_help_record(inner))]
        if rows:
            parts.append("\n| option | meaning |\n|---|---|\n")
            parts += [f"| `{option.replace('|', ' ')}` | {_plain(text)} |\n" for option, text in rows]
    return "".join(parts)


def _plain(text: str | None) -> str:
    """Help text as one paragraph of Markdown that shows it as it is."""
    words = re.sub(r"\s+", " ", (text or "").replace("\b", " ")).strip()
    return re.sub(r"([|*<>_])", r"\\\1", words)
