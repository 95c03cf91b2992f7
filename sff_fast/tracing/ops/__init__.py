"""Handlers of the operations that the tracer records instead of running."""

from sff_fast.tracing.ops import arithmetic, constants, copies, lists, masks, random
from sff_fast.tracing.ops.random import record_draw
from sff_fast.tracing.ops.registry import HANDLERS

__all__ = ["HANDLERS", "arithmetic", "constants", "copies", "lists", "masks", "random", "record_draw"]
