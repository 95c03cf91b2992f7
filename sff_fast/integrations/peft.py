"""peft: smooth the base model, tune adapters on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from torch import nn

from sff_fast.errors import ArgumentError, require
from sff_fast.names import named_parameters
from sff_fast.smooth import SmoothReport, smooth_

require("peft", "integrations")
from peft import PeftModel  # noqa: E402  (behind the message that says how to install it)
from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: E402
from peft.utils.other import AuxiliaryTrainingWrapper  # noqa: E402

if TYPE_CHECKING:
    from sff_fast.plan import InitPlan


def smooth_base_(
    model: PeftModel,
    plan: InitPlan | Callable[[], nn.Module] | None = None,
    alpha: float | Mapping[str, float] | None = None,
    seed: int = 0,
    **options: Any,
) -> SmoothReport:
    """Smooth the frozen base of a peft model in place; adapters stay as they are.

    The base gets the bits that ``smooth_(base, ...)`` gives before ``get_peft_model``. Where an adapter was computed from
    the base's weights that order is the only right one, and this function refuses.

    Args:
        model: What ``peft.get_peft_model`` returned.
        plan: The plan of the base model, its constructor, or None for a base that says itself how it is built.
        alpha: As for :func:`sff_fast.smooth_`, patterns match the base's names. Default 0.7.
        seed: Seed of the random stream, default 0.
        **options: Further arguments of :func:`sff_fast.smooth_`.

    Returns:
        The report; adapters are among its ``untouched``.

    Raises:
        ArgumentError: ``model`` is no peft model, an adapter is merged into the base, or depends on its weights.
    """
    if not isinstance(model, PeftModel):
        raise ArgumentError(f"model must be a peft.PeftModel, got {type(model).__name__}: use sff_fast.smooth_")
    for name, module in model.named_modules():
        reason = _why_not(module)
        if reason:
            raise ArgumentError(f"{name!r} {reason}: smooth the base model with sff_fast.smooth_ before get_peft_model")
    for name, config in model.peft_config.items():
        start = getattr(config, "init_lora_weights", True)
        if start not in (True, False, "gaussian", "orthogonal"):
            raise ArgumentError(
                f"the adapter {name!r} was begun from the base's weights (init_lora_weights={start!r}): smooth the base model "
                f"with sff_fast.smooth_ before get_peft_model"
            )
    adapters = _adapter_parameters(model)
    # Named one by one and first, so that no pattern of the caller's reaches an adapter.
    kept = {_literal(name): 1.0 for name, parameter in named_parameters(model).items() if id(parameter) in adapters}
    base = {"*": 0.7 if alpha is None else alpha} if not isinstance(alpha, Mapping) else dict(alpha)
    return smooth_(model, plan, {**kept, **base}, seed, **options)


def _why_not(module: nn.Module) -> str:
    """Why a module's base weights cannot change any more; empty where they can."""
    if isinstance(module, AuxiliaryTrainingWrapper):
        return "trains a copy of a layer of the base (modules_to_save, trainable tokens)"
    if isinstance(module, BaseTunerLayer):
        if module.merged:
            return "has its adapter merged into the base"
        if any(getattr(module, "use_dora", {}).values()):
            return "has magnitudes that were computed from the base's weights (use_dora)"
    return ""


def _adapter_parameters(model: nn.Module) -> set[int]:
    """The parameters that belong to adapters, by identity."""
    found: set[int] = set()
    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            base = {id(p) for p in layer.get_base_layer().parameters()}
            found |= {id(p) for p in layer.parameters()} - base
    return found


def _literal(name: str) -> str:
    """A shell-style pattern that matches this name alone."""
    return "".join(f"[{character}]" if character in "*?[" else character for character in name)
