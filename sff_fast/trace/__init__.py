"""Finds out how a constructor draws every parameter, without drawing it."""

from sff_fast.trace.run import trace

__all__ = ["trace"]
