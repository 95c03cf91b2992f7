"""A model of what a power cut leaves of a folder: what was not flushed may be lost, in part or as a whole.

While a block runs, the calls that change or flush the folder are noted. What a file held, and which names a folder had, is
sure to be found again only as it was at the last ``fsync`` of that file or that folder. Since then a file may have kept any
part of what was written, and a folder the effect of none, some or all of its changes, in their order; one file or folder
independently of another. Before every such call the states that a cut could leave there are put together.

Sources: POSIX.1-2017, fsync; Pillai et al., "All file systems are not created equal", OSDI 2014.
"""

from __future__ import annotations

import functools
import hashlib
import os
import random
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from sff_fast.files import temporaries

Tree = dict[str, "bytes | None"]
"""Path to the content of a file, or None for a folder."""

CHANGING = ("mkdir", "rename", "replace", "unlink", "rmdir", "pwrite")


@dataclass(frozen=True)
class Cut:
    """What a power cut leaves.

    Args:
        when: Which call it came before, for messages.
        kind: What was kept.
        tree: The folder.
        note: What :meth:`Disk.note` had been told last.
    """

    when: str
    kind: str
    tree: Tree
    note: Any

    def restore(self, folder: Path) -> None:
        """Put it on the disk."""
        folder.mkdir(exist_ok=True)
        for path, content in self.tree.items():
            if content is None:
                (folder / path).mkdir(parents=True)
            else:
                (folder / path).write_bytes(content)


class Disk:
    """Watches a folder; everything that is in it at the beginning is on the disk.

    Args:
        root: The folder; it stays itself.
        deaf: Names of functions whose calls of ``fsync`` have no effect from the first :meth:`note` on, to see what they are for.
        mixtures: How many mixtures of what reached the disk are drawn before every call, beside the extremes.
    """

    def __init__(self, root: Path, deaf: tuple[str, ...] = (), mixtures: int = 1) -> None:
        self.root, self.deaf, self.mixtures = root, deaf, mixtures
        self.cuts: dict[str, Cut] = {}
        self.calls = 0
        self._note: Any = None
        self._ids: dict[int, int] = {}  # inode to number; inodes are used again, numbers are not
        self._next = 0
        # Since the last flush, which is the first entry: contents of files, names of folders.
        self._contents: dict[int, list[bytes]] = {}
        self._names: dict[int, list[dict[str, int]]] = {}
        self._top = self._look()
        for histories in (self._contents, self._names):
            for history in histories.values():
                del history[:-1]

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what the block does, and put together what a cut could leave at any moment of it."""
        with pytest.MonkeyPatch.context() as patch:
            for name in CHANGING:
                patch.setattr(os, name, self._before(getattr(os, name), name))
            patch.setattr(temporaries, "exchange", self._before(temporaries.exchange, "exchange"))
            patch.setattr(os, "fsync", self._fsync)
            patch.setattr(os, "fdatasync", self._fsync)
            yield
        self._cut("the end")

    def note(self, what: Any) -> None:
        """Something that the cuts from here on carry: what must not be lost any more."""
        self._note = what

    # --- what is noted --------------------------------------------------------------------------------------------------

    def _before(self, real: Callable[..., Any], name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self._cut(f"{name} {arguments[:2]}")
            done = real(*arguments, **options)
            self._look()
            return done

        return call

    def _fsync(self, fd: int) -> None:
        path = os.readlink(f"/proc/self/fd/{fd}")
        self._cut(f"fsync {path}")
        number = self._ids.get(os.fstat(fd).st_ino)
        deaf = self._note is not None and sys._getframe(1).f_code.co_name in self.deaf
        if number is None or deaf:
            return
        history = self._names[number] if stat.S_ISDIR(os.fstat(fd).st_mode) else self._contents[number]
        del history[:-1]

    def _look(self) -> int:
        """Take over what is there now; returns the number of the root."""
        seen: set[int] = set()

        def visit(path: str) -> int:
            status = os.lstat(path)
            seen.add(status.st_ino)
            number = self._ids.get(status.st_ino)
            if number is None:
                number = self._ids[status.st_ino] = self._next
                self._next += 1
            if stat.S_ISDIR(status.st_mode):
                now: Any = {name: visit(os.path.join(path, name)) for name in sorted(os.listdir(path))}
                history: list[Any] = self._names.setdefault(number, [{}])
            else:
                with open(path, "rb") as file:
                    now = file.read()
                history = self._contents.setdefault(number, [b""])
            if history[-1] != now:
                history.append(now)
            return number

        top = visit(str(self.root))
        self._ids = {inode: number for inode, number in self._ids.items() if inode in seen}
        return top

    # --- what a cut leaves ----------------------------------------------------------------------------------------------

    def _cut(self, when: str) -> None:
        self._look()
        self.calls += 1
        ways: dict[str, tuple[Callable[[list[Any]], Any], Callable[[list[bytes]], bytes]]] = {
            "only what was flushed": (_first, _first),
            "all names, only flushed contents": (_last, _first),
            "all names, contents torn": (_last, _torn),
            "all contents, only flushed names": (_first, _last),
            "everything": (_last, _last),
        }
        for mixture in range(self.mixtures):
            draw = random.Random(self.calls * 1000 + mixture)
            ways[f"mixture {mixture}"] = (draw.choice, functools.partial(_mixed, draw))
        for kind, (names, contents) in ways.items():
            tree: Tree = {}
            self._build(self._top, "", names, contents, tree)
            key = hashlib.sha256(repr((sorted(tree.items()), self._note)).encode()).hexdigest()
            self.cuts.setdefault(key, Cut(when, kind, tree, self._note))

    def _build(self, number: int, path: str, names: Callable[..., Any], contents: Callable[..., bytes], tree: Tree) -> None:
        for name, inner in names(self._names[number]).items():
            if ".sff-tmp" in name:
                continue  # what is under such a name is removed by the next run, whatever it is
            at = f"{path}{name}"
            if inner in self._names:
                tree[at] = None
                self._build(inner, f"{at}/", names, contents, tree)
            else:
                tree[at] = contents(self._contents[inner])


def _first(history: list[Any]) -> Any:
    return history[0]


def _last(history: list[Any]) -> Any:
    return history[-1]


def _torn(history: list[bytes]) -> bytes:
    """Flushed content, and half of what came since."""
    flushed, now = history[0], history[-1]
    if len(flushed) == len(now):  # overwritten in place
        return now[: len(now) // 2] + flushed[len(now) // 2 :]
    return now[: (len(flushed) + len(now)) // 2] if now.startswith(flushed) else now[: len(now) // 2]


def _zeros(history: list[bytes]) -> bytes:
    """The right length, and zeros instead of what was not flushed."""
    flushed, now = history[0], history[-1]
    if len(flushed) == len(now):
        return flushed
    return (flushed if now.startswith(flushed) else b"").ljust(len(now), b"\0")


def _mixed(draw: random.Random, history: list[bytes]) -> bytes:
    """One of the above."""
    return draw.choice((_first, _last, _torn, _zeros))(history)
