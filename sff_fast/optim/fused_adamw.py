"""FusedAdam and FusedAdamW: drop-in optimizers with one native call a step and states of 8, 4 or 2 bytes a parameter."""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
import weakref
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch

from sff_fast import backends
from sff_fast.backends import reference as stream_reference
from sff_fast.errors import ArgumentError
from sff_fast.resident import keep_few_kernels

from . import kernels, reference, shards
from .buckets import Bucket, make_buckets
from .capture import Resident
from .flat import Homes
from .offload import OffloadedBucket, Pipe
from .options import check_capturable, check_clipping, check_options
from .release import GradientRelease
from .replay import replayed_generators
from .task import ADAMW_DTYPE
from .torch_state import match_groups, merged_group, torch_state_dict

BUCKET_BYTES = 32 << 20
"""Bytes of parameters in a bucket: what release_gradients holds at once, besides the layer in flight."""

OPTIMIZERS: weakref.WeakValueDictionary[int, FusedAdamW] = weakref.WeakValueDictionary()
"""Living optimizers by the number under which compiled functions know them."""

_handles = itertools.count()
_OWN = ("max_norm", "clip", "release_gradients", "grad_norm", "bucket_bytes", "offload", "flat_parameters")


Part = tuple[Bucket, np.ndarray, list[torch.Tensor], np.ndarray]
"""A bucket, its parameters that have a gradient, these gradients, and the kernel table."""


def norm_of(squares: list[tuple[shards.Layout, float]]) -> float:
    """The norm of gradients, from sums of squares of this process's shards and how these are spread."""
    sums: dict[shards.Layout, list[float]] = {}
    for layout, value in squares:
        sums.setdefault(layout, []).append(value)
    return math.sqrt(math.fsum(shards.sum_over_shards(layout, math.fsum(values)) for layout, values in sums.items()))


def _by_device(parts: list[Part]) -> dict[torch.device, np.ndarray]:
    """One table for each device whose buckets the compiled kernels run."""
    tables: dict[torch.device, list[np.ndarray]] = {}
    for bucket, _, _, table in parts:
        if bucket.native:
            tables.setdefault(bucket.device, []).append(table)
    # As bytes: NumPy takes ten times as long to find that rows of equal fields may stand together.
    return {device: np.concatenate([table.view(np.uint8) for table in some]).view(ADAMW_DTYPE) for device, some in tables.items()}


def _on_one_gpu(parts: list[Part]) -> bool:
    """Whether the norm of all gradients can stay on the device that the step runs on."""
    devices = {bucket.device for bucket, *_ in parts}
    whole = all(bucket.native and bucket.layout is None for bucket, *_ in parts)
    return whole and len(devices) == 1 and kernels.clips(devices.pop())


class FusedAdamW(torch.optim.Optimizer):
    """AdamW (decoupled weight decay), as ``torch.optim.AdamW``.

    Args:
        params: Parameters, named parameters or parameter groups. Names address the stochastic rounding; without them a
            parameter's number does.
        lr: Learning rate, a number or a tensor of one element. Default 1e-3.
        betas: Decay of the first and second moment. Default (0.9, 0.999).
        eps: Added to the denominator. Default 1e-8.
        weight_decay: Decoupled weight decay. Default 0.01.
        amsgrad: Divide by the largest second moment so far. Default False.
        maximize: Ascend instead. Default False.
        state_dtype: Precision of both moments: ``"float32"`` (default), ``"bfloat16"`` or ``"int8"`` (block-wise).
        stochastic_rounding: Round bfloat16 parameters stochastically (random stream v1). Default False.
        seed: Seed of the stochastic rounding and of the dither of bfloat16 and int8 second moments. Default 0.
        compensation: ``"kahan"`` keeps what rounding takes from bfloat16 and float16 parameters in a second tensor of their
            dtype. Default None.
        capturable: Count steps, and read ``lr`` where it is a tensor, on the GPU, so that a CUDA graph may hold the step and
            GradScaler's numbers are not waited for. For parameters on GPUs that the CUDA kernels run on; not with
            ``release_gradients``, ``offload`` or ``clip="bucket"``. Default False.
        release_gradients: Step inside the backward pass, a bucket at a time, and free the gradients; ``step()`` then only
            does what is left. On the CPU freed memory is given back to the system and oneDNN keeps fewer kernels. Default
            False.
        max_norm: Clip the gradient by its norm, as ``torch.nn.utils.clip_grad_norm_`` but without writing it. Default None:
            do not.
        clip: The norm that ``max_norm`` bounds: ``"global"`` (default), that of all gradients, which with
            release_gradients needs :meth:`backward`; or ``"bucket"``, that of each bucket for itself.
        bucket_bytes: Bytes of parameters a bucket holds. Default 32 MiB.
        offload: Keep the states and a copy of the parameters in the CPU's memory and step there, for parameters on CUDA
            devices; the copies overlap with the steps. Default False.
        flat_parameters: Move the parameters of each bucket into one stretch of memory (``p.data = ...``), when the optimizer
            is made and with at most one bucket of extra memory. Those whose memory somebody else holds stay, which is said;
            one that is moved away later is followed. Default False: all stay where they are.

    Every option but ``max_norm``, ``clip``, ``release_gradients``, ``bucket_bytes``, ``offload``, ``flat_parameters`` and
    ``capturable`` may differ from group to group.

    Raises:
        ArgumentError: An option or a parameter is not what it must be.

    Source: Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019.
    """

    _decoupled = True
    _peer = torch.optim.AdamW
    _step_supports_amp_scaling = True  # GradScaler hands over grad_scale and found_inf instead of unscaling by itself

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, object]] | Iterable[tuple[str, torch.Tensor]],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        amsgrad: bool = False,
        maximize: bool = False,
        state_dtype: str = "float32",
        stochastic_rounding: bool = False,
        seed: int = 0,
        compensation: str | None = None,
        capturable: bool = False,
        release_gradients: bool = False,
        max_norm: float | None = None,
        clip: str = "global",
        bucket_bytes: int = BUCKET_BYTES,
        offload: bool = False,
        flat_parameters: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "state_dtype": state_dtype,
            "stochastic_rounding": stochastic_rounding,
            "seed": seed,
            "compensation": compensation,
            "capturable": capturable,
        }
        check_options(defaults)
        check_clipping(max_norm, clip)
        if bucket_bytes < 1:
            raise ArgumentError(f"bucket_bytes must be at least 1, got {bucket_bytes}")
        self.max_norm, self.clip = max_norm, clip
        self.release_gradients, self.bucket_bytes, self.offload = release_gradients, bucket_bytes, offload
        self._expect_captures([{"capturable": capturable, "lr": 0.0, "params": ()}])
        self.flat_parameters = flat_parameters
        self._grad_norm: float | torch.Tensor | None = None  # global, of the last step, where max_norm bounds it
        self._forget_buckets()
        super().__init__(params, defaults)
        if flat_parameters:
            self._buckets()
        if release_gradients:
            keep_few_kernels()
            self._release_now()

    @property
    def grad_norm(self) -> float | None:
        """Norm of the last step's gradients where ``max_norm`` bounds it for all of them. Reading it waits for a GPU."""
        return None if self._grad_norm is None else float(self._grad_norm)

    @grad_norm.setter
    def grad_norm(self, value: float | None) -> None:
        self._grad_norm = value

    # ------------------------------------------------------------------ life
    def add_param_group(self, param_group: dict[str, object]) -> None:
        """Add a group, as ``torch.optim.Optimizer.add_param_group``.

        Raises:
            ArgumentError: An option of the group is not what it must be.
        """
        super().add_param_group(param_group)
        try:
            check_options(self.param_groups[-1])
            self._expect_captures(self.param_groups)
        except ArgumentError:
            self.param_groups.pop()
            raise
        if self._release is not None:
            self._release.attach()

    def _expect_captures(self, groups: Sequence[dict[str, object]]) -> bool:
        """Whether steps are capturable; raises where other options do not go with that."""
        by_bucket = self.max_norm is not None and self.clip == "bucket"
        others = {"release_gradients=True": self.release_gradients, "offload=True": self.offload, "clip='bucket'": by_bucket}
        return check_capturable(groups, others)

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), **{name: getattr(self, name) for name in _OWN}}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self._forget_buckets()
        if self.release_gradients:
            self._release_now()

    def _forget_buckets(self) -> None:
        """Buckets are made when they are needed, and take over what ``self.state`` holds."""
        self._handle = next(_handles)
        OPTIMIZERS[self._handle] = self
        self._bucketed: list[tuple[dict[str, object], list[torch.Tensor], list[Bucket]]] = []
        self._release: GradientRelease | None = None
        self._pipes: dict[torch.device, Pipe] = {}
        self._residents: dict[torch.device, Resident] = {}
        self._homes = Homes()
        self._measured = False  # whether grad_norm is that of the gradients to come

    def _release_now(self) -> None:
        # The norm of a bucket needs all of it: then what is incomplete waits for the end of the backward pass.
        by_bucket = self.max_norm is not None and self.clip == "bucket"
        limit = None if by_bucket else self.bucket_bytes
        self._release = GradientRelease(self._run_released, self._buckets, limit, slack=self.bucket_bytes)
        self._release.attach()

    def _buckets(self) -> list[Bucket]:
        """All buckets, made anew for groups that changed."""
        number, result = 0, []
        for k, group in enumerate(self.param_groups):
            params = group["params"]
            known = self._bucketed[k] if k < len(self._bucketed) else None
            if known is None or not self._fits(known, group):
                names = group.get("param_names") or [str(number + i) for i in range(len(params))]
                kind = OffloadedBucket if self.offload else Bucket
                move = self._homes.move_in if self.flat_parameters else None
                buckets = make_buckets(group, names, self.bucket_bytes, kind, move)
                for bucket in buckets:
                    for i, p in enumerate(bucket.params):
                        if self.state.get(p):
                            self.state[p] = bucket.load(i, self.state[p])
                known = (group, list(params), buckets)
                self._bucketed[k : k + 1] = [known]
            result += known[2]
            number += len(params)
        del self._bucketed[len(self.param_groups) :]
        self._homes.say()
        return result

    @staticmethod
    def _fits(known: tuple[dict[str, object], list[torch.Tensor], list[Bucket]], group: dict[str, object]) -> bool:
        old_group, params, buckets = known
        return (
            old_group is group
            and len(params) == len(group["params"])
            and all(map(operator.is_, params, group["params"]))
            and all(bucket.amsgrad == bool(group["amsgrad"]) for bucket in buckets)
            and all(bucket.capturable == bool(group.get("capturable")) for bucket in buckets)
        )

    # ------------------------------------------------------------------ step
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of all parameters that have a gradient.

        Args:
            closure: Computes the loss and the gradients again. Default None.

        Returns:
            The loss of the closure, if there is one.

        Raises:
            ArgumentError: A parameter or gradient is not what it must be; nothing was changed then.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_compiling() and self._release is None and not self.offload:
            self._step_as_operator()
            return loss
        self._step_now()
        return loss

    def _step_now(self) -> None:
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if self._release is not None:
            if grad_scale is not None or found_inf is not None:
                raise ArgumentError(
                    "release_gradients=True steps inside backward, before GradScaler knows of overflow: train in bfloat16 "
                    "without a scaler, or use release_gradients=False"
                )
            self._release.attach()
            self._release.flush()
        elif self._expect_captures(self.param_groups):
            self._run_resident(grad_scale, found_inf)
        elif found_inf is None or float(found_inf) == 0:
            self._run(self._buckets(), 1.0 if grad_scale is None else 1.0 / float(grad_scale))

    def _step_as_operator(self) -> None:
        """The step as one operator of the graph that torch.compile is making."""
        from sff_fast.ops import optimizer_step_

        params, grads, places, place = [], [], [], 0
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    params.append(p.detach())
                    grads.append(p.grad)
                    places.append(place)
                place += 1
        optimizer_step_(params, grads, places, self._handle)

    def step_given(self, values: Sequence[torch.Tensor], grads: Sequence[torch.Tensor], places: Sequence[int]) -> None:
        """One step with gradients that are not the parameters' ``.grad`` yet, as in a compiled function.

        Args:
            values: The parameters' present values; a compiler may have made copies of them, which are stepped too.
            grads: The gradients.
            places: Which parameters these are, counted over all groups; the others have no gradient.
        """
        params = [p for group in self.param_groups for p in group["params"]]
        before = [p.grad for p in params]
        copies = [(params[i], value) for i, value in zip(places, values) if value.data_ptr() != params[i].data_ptr()]
        for p in params:
            p.grad = None
        try:
            for p, value in copies:
                p.copy_(value)
            for i, grad in zip(places, grads):
                params[i].grad = grad
            self._step_now()
            for p, value in copies:
                value.copy_(p)
        finally:
            for p, grad in zip(params, before):
                p.grad = grad

    def backward(self, closure: Callable[[], torch.Tensor]) -> torch.Tensor:
        """Forward and backward pass of one step; with release_gradients and global clipping twice.

        Where gradients are freed before the last one is there, their norm is not known in time: a first pass measures it
        and changes nothing, a second one steps. torch's random generators are replayed, so that both see the same dropout;
        what else the closure changes (buffers of batch norm) is the caller's to put back. Gradients that were accumulated
        before are whole anyway: then there is one pass, and :meth:`step` clips and steps.

        Args:
            closure: Computes the loss; it does not call backward.

        Returns:
            The loss, detached.
        """
        if self._release is not None and self._clips_globally and not self._release.keeps_gradients:
            if any(p.grad is not None for group in self.param_groups for p in group["params"]):
                with self._release.accumulating():
                    return self.backward(closure)
            with replayed_generators({p.device for group in self.param_groups for p in group["params"]}):
                with self._release.measuring() as squares:
                    closure().backward()
                self.grad_norm = norm_of(squares)
            self._measured = True
        try:
            loss = closure()
            loss.backward()
        finally:
            self._measured = False
        return loss.detach()

    @property
    def _clips_globally(self) -> bool:
        return self.max_norm is not None and self.clip == "global"

    def stop_releasing(self) -> None:
        """Take the hooks of release_gradients off the parameters: from now on ``step()`` does the whole step."""
        if self._release is not None:
            self._release.remove()
        self.release_gradients, self._release = False, None

    def accumulating(self) -> contextlib.AbstractContextManager[None]:
        """With release_gradients: backward passes inside only accumulate, the first one outside steps.

        Raises:
            ArgumentError: The optimizer was made without release_gradients.
        """
        if self._release is None:
            raise ArgumentError(
                "accumulating() belongs to release_gradients=True: without it, call backward as often as you like"
            )
        return self._release.accumulating()

    def _work(self, buckets: list[Bucket]) -> list[tuple[Bucket, np.ndarray, list[torch.Tensor]]]:
        """Buckets, their parameters that have a gradient, and these gradients; the parameters have a state now."""
        work = [(bucket, *bucket.gradients()) for bucket in buckets]
        work = [(bucket, active, grads) for bucket, active, grads in work if len(active)]
        for bucket, active, _ in work:
            for i in active.tolist():
                p = bucket.params[i]
                state = self.state.get(p)
                if not state:
                    self.state[p] = bucket.clear(i)
                elif not bucket.holds(i, state):  # replaced from outside, as a loader that moves tensors does
                    self.state[p] = bucket.load(i, state)
        return work

    @torch.no_grad()
    def _run_resident(self, loss_scale: torch.Tensor | None, found_inf: torch.Tensor | None) -> None:
        """A step that every device counts for itself."""
        work = self._work(self._buckets())
        rows: dict[torch.device, list[tuple[np.ndarray, np.ndarray]]] = {}
        for bucket, active, grads in work:
            if not kernels.captures(bucket.home):
                raise ArgumentError(
                    f"capturable=True: expected parameters on GPUs that the CUDA kernels run on, got parameter "
                    f"{bucket.labels[0]} on {bucket.home}: use capturable=False"
                )
            rows.setdefault(bucket.device, []).append(bucket.resident_tasks(active, grads, self._decoupled))
        if self.max_norm is not None and (len(rows) > 1 or any(bucket.layout is not None for bucket, *_ in work)):
            raise ArgumentError(
                "capturable=True with max_norm: expected whole parameters on one GPU, got shards or several: clip with "
                "torch.nn.utils.clip_grad_norm_, or use capturable=False"
            )
        for device, some in rows.items():
            table, options = (np.concatenate(part) for part in zip(*some))
            resident = self._residents.setdefault(device, Resident(device))
            self._grad_norm = resident.step(table, options, loss_scale, found_inf, self.max_norm)
        self._count_writes((bucket, active) for bucket, active, _ in work)

    @staticmethod
    def _count_writes(written: Iterable[tuple[Bucket, np.ndarray]]) -> None:
        """Tell autograd that parameters changed."""
        for bucket, active in written:
            params = [bucket.params[i] for i in active.tolist()]
            torch.autograd.graph.increment_version(params)
            if bucket.layout is not None:
                torch.autograd.graph.increment_version([shards.local(p) for p in params])

    @torch.no_grad()
    def _run(self, buckets: list[Bucket], grad_scale: float = 1.0) -> None:
        work = self._work(buckets)
        if not work:
            return
        parts = [
            (bucket, active, grads, bucket.tasks(active, grads, grad_scale, self._decoupled)) for bucket, active, grads in work
        ]
        if self.offload:
            self._clip(parts, grad_scale)
            for device in {bucket.device for bucket, *_ in parts}:
                pipe = self._pipes.setdefault(device, Pipe(device))
                pipe.run([part for part in parts if part[0].device == device])
            return
        if self._clips_globally and not self._measured and _on_one_gpu(parts):
            ((device, table),) = _by_device(parts).items()
            self._grad_norm = kernels.clipped_step(table, device, grad_scale, self.max_norm)
        else:
            self._clip(parts, grad_scale)
            for device, table in _by_device(parts).items():
                kernels.step(table, device)
        self._count_writes((bucket, active) for bucket, active, _, _ in parts if bucket.native)
        for bucket, active, grads, table in parts:
            if not bucket.native:
                backends.choose("auto", bucket.device)  # says once that the slow way is taken, and why
                with stream_reference._calling_thread_alone():
                    bucket.run_reference(active, grads, table)

    def _run_released(self, buckets: list[Bucket], in_backward: bool) -> None:
        """The step of buckets whose gradients are freed afterwards."""
        if in_backward and self._clips_globally and not self._measured:
            raise ArgumentError(
                "max_norm with release_gradients=True needs the norm before the gradients are freed: "
                "call optimizer.backward(closure) instead of loss.backward(), or use clip='bucket'"
            )
        self._run(buckets)

    def _clip(self, parts: list[Part], grad_scale: float) -> None:
        """Scale the gradients of all tables as max_norm asks."""
        if self._measured:
            self._scale(parts, self.grad_norm)
        elif self._clips_globally:
            self.grad_norm = self._norm(parts) * grad_scale
            self._scale(parts, self.grad_norm)
        elif self.max_norm is not None:
            for part in parts:
                self._scale([part], self._norm([part]) * grad_scale)

    def _norm(self, parts: list[Part]) -> float:
        """Norm of the gradients of all tables."""
        native_parts = [] if self.offload else [part for part in parts if part[0].native]
        others = parts if self.offload else [part for part in parts if not part[0].native]
        squares = [(bucket.layout, reference.sum_of_squares(g)) for bucket, _, grads, _ in others for g in grads]
        native: dict[shards.Layout, list[Part]] = {}
        for part in native_parts:
            native.setdefault(part[0].layout, []).append(part)
        # One call over the tables of all buckets: its bits do not depend on how parameters are cut into buckets.
        for layout, some in native.items():
            squares += [(layout, kernels.sum_of_squares(table, device)) for device, table in _by_device(some).items()]
        return norm_of(squares)

    def _scale(self, parts: list[Part], norm: float) -> None:
        """Scale the gradients of all tables to at most max_norm, as ``torch.nn.utils.clip_grad_norm_`` would."""
        coefficient = self.max_norm / (norm + 1e-6)
        if not coefficient >= 1.0:  # NaN too: it belongs into the parameters, as with torch
            for _, _, _, table in parts:
                table["grad_scale"] *= np.float32(coefficient)

    # ------------------------------------------------------------------ state dicts
    def load_state_dict(self, state_dict: dict[str, object]) -> None:
        """Load a state of this class or of ``torch.optim.AdamW`` or ``Adam``, of any precision.

        States are converted to this optimizer's ``state_dtype``; the same precision is taken over bit for bit. Options come
        from the checkpoint, except ``state_dtype``, ``stochastic_rounding`` and ``compensation``.

        Args:
            state_dict: As ``state_dict()`` of either class returned it.

        Raises:
            CheckpointError: It belongs to other parameters or groups, or lacks something; nothing was changed then.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = hook(self, state_dict)
            if replaced is not None:
                state_dict = replaced
        saved_groups = state_dict["param_groups"]
        owners = match_groups(self.param_groups, saved_groups)
        merged = [merged_group(group, saved) for group, saved in zip(self.param_groups, saved_groups)]
        for group in merged:
            check_options(group)
        before = (self.state, [dict(group) for group in self.param_groups], self._bucketed)
        self.state = type(self.state)(dict, {owners.get(k, k): dict(v) for k, v in state_dict["state"].items()})
        for group, values in zip(self.param_groups, merged):
            group.update(values)
        self._bucketed = []
        try:
            self._buckets()
        except Exception:
            self.state, self._bucketed = before[0], before[2]
            for group, values in zip(self.param_groups, before[1]):
                group.clear()
                group.update(values)
            raise
        if self._release is not None:
            self._release.attach()
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def to_torch_state_dict(self) -> dict[str, object]:
        """The state as ``torch.optim.AdamW`` (``torch.optim.Adam`` of FusedAdam) would have saved it.

        Returns:
            A state dict of copies. float32 and bfloat16 moments are exact, int8 ones decoded to float32.
        """
        return torch_state_dict(self, self._peer)


class FusedAdam(FusedAdamW):
    """Adam with L2 regularization, as ``torch.optim.Adam``; arguments as :class:`FusedAdamW`, weight_decay 0 by default.

    Source: Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015.
    """

    _decoupled = False
    _peer = torch.optim.Adam

    def __init__(
        self,
        params: Iterable[torch.Tensor] | Iterable[dict[str, object]] | Iterable[tuple[str, torch.Tensor]],
        lr: float | torch.Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: object,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **options)
