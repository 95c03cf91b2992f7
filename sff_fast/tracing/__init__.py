"""Finds out how a constructor draws every parameter, without drawing it."""

from sff_fast.tracing.run import trace

__all__ = ["trace"]
