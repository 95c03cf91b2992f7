"""Memory that is not enough: how Python and torch say so, and the one line that says what to do."""

from __future__ import annotations

import contextlib
import functools
import traceback
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from .errors import ExhaustedError, SffFastError

_WORDS = ("can't allocate memory", "cannot allocate memory", "not enough memory", "out of memory", "bad_alloc")
"""Words of the messages of the RuntimeErrors with which torch says so, a plain one on the CPU."""

P = ParamSpec("P")
R = TypeVar("R")


def is_exhaustion(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, and has not been turned into a message yet."""
    if isinstance(error, SffFastError):
        return False
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


def exhausted(why: str, advice: str) -> ExhaustedError:
    """The error that says in one line what was asked for, by :func:`reason`, and what to do."""
    return ExhaustedError(f"out of memory ({why}): {advice}")


def reason(error: BaseException) -> str:
    """What the allocator said, without its advice about itself."""
    text = " ".join(str(error).split()) or type(error).__name__
    for begin in ("DefaultCPUAllocator: ", "CUDA out of memory. "):
        text = text.partition(begin)[2] or text
    return text.partition(". ")[0].partition(" Error code")[0][:160].rstrip(".")


@contextlib.contextmanager
def told(advice: str) -> Iterator[None]:
    """Say what to do where the memory does not do for what the block does.

    Raises:
        ExhaustedError: It does not.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_exhaustion(error):
            raise
        # What was held is held by the frames of the traceback.
        traceback.clear_frames(error.__traceback__)
        raise exhausted(reason(error), advice) from None


def advised(advice: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """:func:`told` for a whole function."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapped(*arguments: P.args, **options: P.kwargs) -> R:
            with told(advice):
                return function(*arguments, **options)

        return wrapped

    return decorate
