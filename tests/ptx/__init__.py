"""An interpreter of the PTX that nvcc makes of the kernels, on numpy: one lane of an array for each CUDA thread.

Threads run in lockstep from the smallest program counter on, so that branches come together again. Every access is checked: it
has to lie inside a region that the launch was given, to be aligned to its own (vector) width, not to write what is read-only,
and no byte that one thread writes may be touched by another. Arithmetic is IEEE's, fused multiply-adds are rounded once.

What comes after PTX (ptxas, scheduling, caches) is not shown. Instructions, modifiers, rounding modes and memory spaces that the
kernels do not use are refused, never guessed.

``parse`` reads the text, ``memory`` checks accesses, ``arithmetic`` has what numpy lacks, ``instructions`` says what each opcode
does, ``machine`` runs a launch.

Source: NVIDIA, "Parallel Thread Execution ISA", 9.0.
"""

from ptx.machine import Launch
from ptx.memory import Region
from ptx.parse import Kernel, PtxError, kernels

__all__ = ["Kernel", "Launch", "PtxError", "Region", "kernels"]
