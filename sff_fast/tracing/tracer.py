"""The dispatch mode under which a constructor runs."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from sff_fast.boxes import Unrepresentable, nested
from sff_fast.tracing.draws import UNSEEN, Draw, DrawProgram, derived_seed
from sff_fast.tracing.memory import Memory, covers_storage, tensor_box
from sff_fast.tracing.ops import HANDLERS
from sff_fast.tracing.values import CLEAN, Taint

_active = threading.local()

OVERWRITES = {
    "copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "cauchy_", "log_normal_",
    "geometric_",
}  # fmt: skip
"""In-place operations that do not read what they write to."""

FRESH = torch.Generator().manual_seed(0).get_state().numpy()[8:24].tobytes()
"""Where the state of torch's CPU generator counts: after its seed (8 bytes) and before its 624 words."""

DEFERRED_FROM = 1 << 16
"""Elements from which on an elementwise function is put off."""

HELD_MOST = 16 << 20
"""Bytes at most that deferred functions keep alive to read them."""

DESCRIBES_ONLY = {"is_same_size", "is_pinned", "is_set_to", "_has_compatible_shallow_copy_type"}
"""Operations that look at a tensor's shape and not at its values."""


def active_tracer() -> Tracer | None:
    """The innermost tracer that runs in this thread."""
    stack = getattr(_active, "stack", None)
    return stack[-1] if stack else None


def is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has ordinary strided memory."""
    return tensor.layout == torch.strided and not tensor.is_quantized and tensor.device.type != "meta"


class Tracer(TorchDispatchMode):
    """Records what a constructor does to memory instead of doing it.

    Operations that the tracer can name (factories, draws, fills, copies, arithmetic with scalars) are recorded. Every
    other one first makes what it reads concrete, then runs for real, and its results are data that remember what they
    were computed from.

    Args:
        seed: Seed of concrete values.
        source: See :class:`DrawProgram`.
    """

    def __init__(
        self,
        seed: int,
        source: Callable[[Draw, Callable[[], torch.Tensor]], torch.Tensor | None] | None = None,
    ) -> None:
        super().__init__()
        self.seed = seed
        self.generator_seed = derived_seed(seed, "generator")
        self.program = DrawProgram(seed, source)
        self.memory = Memory(self.program)
        self.observed: set[int] = set()
        """Draws whose values the constructor itself looked at."""
        self.read_external = False
        """Whether a recorded value depends on a number that came from outside."""
        self._held: dict[int, int] = {}
        self.reseeded = False
        """Whether it seeded torch's generator itself before a draw."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # True would import torch's compiler at the first operation (1.4 s).
        return False

    def __enter__(self) -> Tracer:
        if not hasattr(_active, "stack"):
            _active.stack = []
        _active.stack.append(self)
        super().__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)
        _active.stack.pop()

    # ------------------------------------------------------------------ dispatch
    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if any(t.__torch_dispatch__ is not torch._C._disabled_torch_dispatch_impl for t in types):
            return NotImplemented
        if _is_composite(func):
            with self:
                return func.decompose(*args, **kwargs)
        handler = HANDLERS.get(func._schema.name)
        if handler is None and torch.Tag.pointwise in func.tags and torch.Tag.nondeterministic_seeded not in func.tags:
            handler = HANDLERS["pointwise"]
        if handler is not None:
            try:
                result = handler(self, func, args, kwargs)
            except Unrepresentable:
                result = NotImplemented
            if result is not NotImplemented:
                return result
        if _is_view(func):
            return func(*args, **kwargs)
        return self.run(func, args, kwargs)

    # ------------------------------------------------------------------ torch's generator
    # A recorded draw takes nothing from it. Instead it is seeded anew after each draw with a number that says after which
    # one, so that a constructor which puts an earlier state back (torch.random.fork_rng) is noticed.
    def place(self) -> int:
        """Number of the draw that torch's generator stands after; -1 before the first one."""
        return torch.default_generator.initial_seed() - self.generator_seed - 1

    def drew(self, index: int) -> None:
        """Note that the draw of this number was made from torch's generator."""
        torch.default_generator.manual_seed(self.generator_seed + 1 + index)

    def ambient(self, generator: torch.Generator | None) -> bool:
        """Whether a draw takes its numbers from torch's generator as the caller of the constructor seeded it."""
        default, program = torch.default_generator, self.program
        if generator is not None and generator._cdata != default._cdata:
            return False
        place = self.place()
        if not -1 <= place < len(program.draws):
            self.reseeded = True
            return False
        if not _is_fresh(default):
            self.drew(program.record_at(place, UNSEEN, torch.empty(0), (), None).index)
        return True

    # ------------------------------------------------------------------ running for real
    def run(self, func: Any, args: tuple, kwargs: dict) -> Any:
        """Execute an operation for real and note what its results depend on."""
        name = func._schema.name.removeprefix("aten::")
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and is_plain(x)]
        written, only_written = _written(func, args, kwargs, name)
        taint, ambient = CLEAN, None
        if self._put_off(func, args, kwargs, tensors, only_written):
            return only_written[0]
        for tensor in tensors:
            if any(tensor is w for w in only_written):
                if covers_storage(tensor):
                    self.memory.settle_readers(tensor)
                else:
                    self.memory.force(tensor)
                continue
            if name not in DESCRIBES_ONLY:
                taint = taint | self.memory.taint(tensor)
            self.memory.force(tensor)
        if torch.Tag.nondeterministic_seeded in func.tags:
            ambient = self.ambient(kwargs.get("generator"))
        if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            self.observe(taint)
        if name in ("isnan", "isinf"):
            taint = CLEAN
        before = {t.untyped_storage()._cdata for t in tensors}
        result = func(*args, **kwargs)
        if ambient is not None:
            taint = taint | self._drawn(name, ambient, [*tensors, *tree_leaves(result)])
        taint = taint.through(name)
        for tensor in written:
            self.memory.wrote(tensor, taint)
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor) or not is_plain(tensor) or tensor.numel() == 0:
                continue
            if tensor.untyped_storage()._cdata not in before:
                self.memory.define(tensor, (), True)
                self.memory.wrote(tensor, taint)
        return result

    def _put_off(self, func: Any, args: tuple, kwargs: dict, tensors: list[torch.Tensor], outs: list[torch.Tensor]) -> bool:
        """Defer an elementwise function that fills a part of memory, as tables of positions are made: few are ever read.

        Only such as keep shapes and dtypes, so that they cannot fail later.
        """
        if torch.Tag.pointwise not in func.tags or torch.Tag.nondeterministic_seeded in func.tags or len(outs) != 1:
            return False
        (out,) = outs
        reads = [tensor for tensor in tensors if tensor is not out]
        if not reads or out.numel() < DEFERRED_FROM or not nested(tensor_box(out)):
            return False
        alike = all(t.is_floating_point() and t.dtype == out.dtype and t.device.type == "cpu" for t in tensors)
        if not alike or np.broadcast_shapes(*(t.shape for t in reads)) != out.shape:
            return False
        held = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in reads}
        if sum({**self._held, **held}.values()) > HELD_MOST:
            return False
        taint = CLEAN
        for tensor in reads:
            taint = taint | self.memory.taint(tensor)

        def with_tensors(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[], Any]:
            """The operation on other tensors."""
            changed = tree_map(lambda x: change(x) if isinstance(x, torch.Tensor) else x, (args, kwargs))
            return lambda: func(*changed[0], **changed[1])

        with _disable_current_modes():
            with_tensors(lambda x: torch.ones((1,) * x.dim(), dtype=x.dtype))()  # what is wrong with it is said now
            # Other tensors of the same memory, which no set_ or resize_ of the constructor changes.
            job = with_tensors(torch.Tensor.detach)
        if not self.memory.defer(out, taint.through(func._schema.name.removeprefix("aten::")), job, reads):
            return False
        self._held.update(held)
        return True

    def _drawn(self, name: str, ambient: bool, tensors: list[Any]) -> Taint:
        """Record a draw that was just executed for real, and say what its values depend on."""
        like = next((x for x in tensors if isinstance(x, torch.Tensor) and is_plain(x)), torch.empty(0))
        if not ambient:
            self.program.record(name, like, (), None, "own")
            return Taint(external=True)
        index = self.program.record_at(self.place(), name, like, (), None).index
        self.drew(index)
        return Taint(frozenset((index,)))

    def observe(self, taint: Taint) -> None:
        """Note that the constructor looked at values: what it does next may depend on them."""
        self.observed |= taint.draws
        self.read_external |= taint.external

    def read_below(self, tensor: torch.Tensor, observes: bool, leaks: bool) -> None:
        """Prepare a tensor for somebody who reads its memory without the dispatcher.

        Args:
            tensor: The tensor.
            observes: Whether its values are shown to the constructor.
            leaks: Whether somebody may write to its memory from now on.
        """
        if not is_plain(tensor) or tensor.numel() == 0 or self.memory.find(tensor) is None:
            return
        self.memory.force(tensor)
        if observes:
            self.observe(self.memory.taint(tensor))
        if leaks:
            self.memory.leak(tensor)


def _is_fresh(generator: torch.Generator) -> bool:
    """Whether a CPU generator has given no number since it was seeded: the counters in its state say so."""
    # The method of the base class, because the tracer patches that of torch.Tensor.
    return torch._C.TensorBase.numpy(generator.get_state())[8:24].tobytes() == FRESH


@functools.cache
def _is_composite(func: Any) -> bool:
    """Whether an operation is made of others; it gets here undecomposed in inference mode only."""
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd")


@functools.cache
def _is_view(func: Any) -> bool:
    """Whether an operation changes or returns tensors' geometry only."""
    if torch.Tag.inplace_view in func.tags or func._schema.name in ("aten::set_", "aten::detach_"):
        return True
    returns = func._schema.returns
    return bool(returns) and all(r.alias_info is not None and not r.alias_info.is_write for r in returns)


def _written(func: Any, args: tuple, kwargs: dict, name: str) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The tensors that an operation writes to, and those of them that it does not read."""
    written, only_written = [], []
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        value = kwargs.get(argument.name) if argument.kwarg_only or i >= len(args) else args[i]
        found = [x for x in tree_leaves(value) if isinstance(x, torch.Tensor) and is_plain(x)]
        written += found
        if argument.kwarg_only or name in OVERWRITES:
            only_written += found
    return written, only_written
