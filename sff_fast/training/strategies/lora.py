"""``lora``: low-rank updates of the linear layers through peft, merged into the family's own layout when saved."""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from ...errors import ArgumentError, require
from ..runtime import seeded
from .method import Method, replaced

_ADAPTER = "default"


def check_lora(adapter: Any) -> None:
    """Check that peft is there and the model has layers for it.

    Raises:
        MissingPackageError: peft is not installed.
        ArgumentError: The model has no linear layer that could be adapted.
    """
    require("peft", "lora")
    if not linear_layers(adapter.model):
        raise ArgumentError(f"the model of the family {adapter.family!r} has no linear layers: lora cannot be used")


def linear_layers(model: nn.Module) -> list[str]:
    """Names of the linear layers that can be adapted.

    Those inside of ``nn.MultiheadAttention`` are not: it reads their weights without calling them. Nor are those that stand in
    several places, or share their weight with another module: an update of one of them would tear them apart.
    """
    inside = {
        f"{name}.{child}"
        for name, module in model.named_modules()
        if isinstance(module, nn.MultiheadAttention)
        for child, _ in module.named_modules()
    }
    owners = collections.Counter(
        id(parameter) for _, module in model.named_modules(remove_duplicate=False) for parameter in module._parameters.values()
    )
    found = [(name, module) for name, module in model.named_modules() if type(module) is nn.Linear and name not in inside]
    return [name for name, module in found if owners[id(module.weight)] == 1]


class LowRank(Method):
    """``theta = theta_pre + B A`` for the weights of linear layers, with A [rank, in] and B [out, rank] trained alone.

    The scale alpha / rank is 1, B begins with zeros and there is no dropout, as peft has it for its rank 8. A is drawn by peft
    from torch's generator, seeded with the run's seed. For evaluation and saving the updates are merged into the weights and
    the layers of peft are taken out of the model, which then has the family's own structure.

    Takes ``rank * (in + out)`` parameters a layer with their gradients and states, instead of ``in * out``; and while it is
    evaluated one set of the adapted weights.

    Source: Hu et al., "LoRA: low-rank adaptation of large language models", ICLR 2022, equation 3; peft.
    """

    _attached = False

    def attach(self, resumed: bool) -> None:
        """Put peft's layers into the model; nothing but their matrices is trained."""
        check_lora(self.adapter)
        import peft

        model, rank = self.adapter.model, self.settings.lora_rank
        self._required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        for parameter, _ in self._required:
            parameter.requires_grad_(False)
        names = linear_layers(model)
        # peft is shown the layers alone: what it asks of a whole model, such as its embeddings, not every family can tell.
        alone = nn.ModuleList(model.get_submodule(name) for name in names)
        config = peft.LoraConfig(r=rank, lora_alpha=rank, target_modules=[str(i) for i in range(len(names))])
        with seeded(self.settings.seed, self.settings.device):
            peft.inject_adapter_in_model(config, alone, adapter_name=_ADAPTER)
        self._layers = dict(zip(names, alone, strict=True))
        for layer in self._layers.values():
            layer.train(layer.base_layer.training)
        self._place(self._layers)
        self._attached = True

    @contextlib.contextmanager
    def evaluating(self) -> Iterator[None]:
        """Show the family's own structure with merged weights."""
        weights = {name: layer.base_layer.weight for name, layer in self._layers.items()}
        with replaced(weights, {}):
            with torch.no_grad():
                for name, layer in self._layers.items():
                    weights[name].add_(layer.get_delta_weight(_ADAPTER).to(weights[name].dtype))
            self._place({name: layer.base_layer for name, layer in self._layers.items()})
            for layer in self._layers.values():
                layer.base_layer.train(self.adapter.model.training)
            try:
                yield
            finally:
                self._place(self._layers)
                for layer in self._layers.values():
                    layer.train(layer.base_layer.training)

    def detach(self) -> None:
        """Take peft's layers out for good; the weights are the pre-trained ones then."""
        if not self._attached:
            return
        self._place({name: layer.base_layer for name, layer in self._layers.items()})
        for parameter, required in self._required:
            parameter.requires_grad_(required)
        self._attached = False

    def _place(self, modules: dict[str, nn.Module]) -> None:
        for name, module in modules.items():
            owner, _, leaf = name.rpartition(".")
            setattr(self.adapter.model.get_submodule(owner), leaf, module)
