"""Steps inside the backward pass: a bucket is stepped as soon as its gradients are there, and they are freed.

Source: Lv et al., "Full parameter fine-tuning for large language models with limited resources" (LOMO), 2023: the update
fused into the backward pass; here with Adam's states and a bucket at a time.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from sff_fast.resident import Ceiling, return_freed_memory

from .buckets import Bucket
from .shards import Layout, is_sharded, local


def is_reduced_later(p: torch.Tensor) -> bool:
    """Whether a parameter's gradient may be averaged over processes after autograd has accumulated it, as DDP does.

    Nothing on a parameter tells whether DDP holds it: where there are several processes, every ordinary tensor may be.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return distributed and torch.distributed.get_world_size() > 1 and not is_sharded(p)


class GradientRelease:
    """Hooks on parameters that step their bucket during backward.

    Args:
        step: Steps some buckets with the gradients that are there; told whether that is inside backward.
        buckets: Gives all buckets of the optimizer, as they are now.
        limit: Bytes of gradients that may wait for their buckets to be complete; beyond them all that wait are stepped, as
            they must be where experts that were not chosen leave every bucket incomplete. None: no limit.
        slack: Bytes of freed memory on the CPU that may stay resident during a backward pass. glibc's heap keeps the
            pieces that freed activations and gradients leave, and the next ones may not fit into them.
    """

    def __init__(
        self,
        step: Callable[[list[Bucket], bool], None],
        buckets: Callable[[], list[Bucket]],
        limit: int | None,
        slack: int,
    ) -> None:
        self._step, self._buckets, self._limit = step, buckets, limit
        self._ceiling = Ceiling(slack)
        self._handles: dict[int, torch.utils.hooks.RemovableHandle] = {}
        self._home: dict[int, tuple[Bucket, int]] = {}
        self._came: dict[int, set[int]] = {}  # parameters of each bucket whose gradient came in this backward pass
        self._waiting: dict[int, tuple[Bucket, int]] = {}  # buckets with gradients that were not used, and their bytes
        self._flush_queued = False
        self._accumulating = False
        self._said_accumulating = self._said_reduced = False
        self._squares: list[tuple[Layout, float]] | None = None

    def attach(self) -> None:
        """Put hooks on all parameters that require a gradient and have none; forget former buckets."""
        buckets = self._buckets()
        self._home = {id(p): (bucket, i) for bucket in buckets for i, p in enumerate(bucket.params)}
        self._came = {id(bucket): set() for bucket in buckets}
        self._waiting = {}
        for bucket in buckets:
            for p in bucket.params:
                if p.requires_grad and id(p) not in self._handles:
                    self._handles[id(p)] = p.register_post_accumulate_grad_hook(self._gradient_is_there)

    def remove(self) -> None:
        """Take all hooks away."""
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    @contextmanager
    def accumulating(self) -> Iterator[None]:
        """Keep gradients of the backward passes inside; the first one outside uses and frees them."""
        if not self._said_accumulating:
            self._said_accumulating = True
            logging.getLogger("sff_fast").info(
                "release_gradients: accumulation keeps the whole gradient, only the last backward pass frees it"
            )
        self._accumulating = True
        try:
            yield
        finally:
            self._accumulating = False

    @property
    def keeps_gradients(self) -> bool:
        """Whether gradients are kept until the step at present: all of them, or those of parameters that DDP may reduce."""
        return self._accumulating or any(is_reduced_later(p) for bucket in self._buckets() for p in bucket.params)

    @contextmanager
    def measuring(self) -> Iterator[list[tuple[Layout, float]]]:
        """Square, sum and free the gradients of the backward pass inside instead of stepping.

        Yields:
            For every gradient how its parameter is spread, and the sum of squares of this process's part.
        """
        self._squares = []
        try:
            yield self._squares
        finally:
            self._squares = None

    def flush(self) -> None:
        """Step what has gradients left, after the backward pass."""
        self._step_left(in_backward=False)

    def _end_of_backward(self) -> None:
        """Step buckets some of whose parameters took no part in the backward pass."""
        self._step_left(in_backward=True)
        if any(bucket.device.type == "cpu" for bucket in self._buckets()):
            return_freed_memory()  # or the next forward pass would take new memory beside it

    def _step_left(self, in_backward: bool) -> None:
        self._flush_queued = False
        for came in self._came.values():
            came.clear()
        left = [bucket for bucket in self._buckets() if any(p.grad is not None for p in bucket.params)]
        if left:
            self._finish(left, in_backward)

    def _gradient_is_there(self, p: torch.Tensor) -> None:
        if self._accumulating or self._waits_for_others(p):
            return
        bucket, i = self._home[id(p)]
        if self._squares is not None:
            self._squares.append((bucket.layout, bucket.squares(i)))
            p.grad = None
            return
        if not self._flush_queued:
            self._flush_queued = True
            self._ceiling.begin()
            torch.autograd.Variable._execution_engine.queue_callback(self._end_of_backward)
        came = self._came[id(bucket)]
        came.add(id(p))
        waiting = self._waiting.get(id(bucket), (bucket, 0))[1]
        self._waiting[id(bucket)] = (bucket, waiting + local(p.grad).nbytes)
        if len(came) == sum(q.requires_grad for q in bucket.params):
            self._finish([bucket], in_backward=True)
            came.clear()
        elif self._limit is not None and sum(size for _, size in self._waiting.values()) > self._limit:
            self._finish([other for other, _ in self._waiting.values() if self._is_of_this_pass(other)], in_backward=True)

    def _is_of_this_pass(self, bucket: Bucket) -> bool:
        """Whether all gradients of a bucket came in this backward pass: accumulated ones may still grow."""
        came = self._came[id(bucket)]
        return all(p.grad is None or id(p) in came for p in bucket.params)

    def _waits_for_others(self, p: torch.Tensor) -> bool:
        """Whether the gradient that is there is this process's own yet; said once."""
        if not is_reduced_later(p):
            return False
        if not self._said_reduced:
            self._said_reduced = True
            logging.getLogger("sff_fast").info(
                "release_gradients: several processes with ordinary parameters (DDP) keep the whole gradient until step(); "
                "FSDP2's parameters free it"
            )
        return True

    def _finish(self, buckets: list[Bucket], in_backward: bool) -> None:
        for bucket in buckets:
            self._waiting.pop(id(bucket), None)
        self._step(buckets, in_backward)
        for bucket in buckets:
            for p in bucket.params:
                p.grad = None
        if in_backward and any(bucket.device.type == "cpu" for bucket in buckets):
            self._ceiling.check()
