"""The float32 weights that an optimizer works on, whatever precision the model computes in.

A step of Adam moves a weight by about the learning rate, 1e-6 of it in RL: bfloat16, with 8 bits of fraction, would
round nearly every step away. So a bfloat16 model has a float32 master of each weight, gradients of all rows add up in
float32, and after a step the model takes the rounded masters. A weight that is float32 already is its own master.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn


class MasterWeights:
    """Masters of the weights of `module` that learn, made from their present values or from `values`, by name."""

    def __init__(self, module: nn.Module, values: dict[str, Tensor] | None = None) -> None:
        self._weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self._masters = {name: self._master_of(name, values or {}) for name in self._weights}

    def _master_of(self, name: str, values: dict[str, Tensor]) -> nn.Parameter:
        weight = self._weights[name]
        if weight.dtype.itemsize >= torch.float32.itemsize:
            return weight
        return nn.Parameter(values.get(name, weight).detach().to(torch.float32))

    @property
    def are_copies(self) -> bool:
        """Some weight is not its own master."""
        return any(master is not self._weights[name] for name, master in self._masters.items())

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(name, master) of each weight."""
        yield from self._masters.items()

    def parameters(self) -> list[nn.Parameter]:
        """The masters: what the optimizer gets."""
        return list(self._masters.values())

    def take_gradients(self) -> None:
        """Add what the last backward pass left on the weights to the masters' gradients."""
        for name, master in self._masters.items():
            weight = self._weights[name]
            if master is weight or weight.grad is None:
                continue
            gradient = weight.grad.to(torch.float32)
            master.grad = gradient if master.grad is None else master.grad.add_(gradient)
            weight.grad = None

    @torch.no_grad()
    def give(self) -> None:
        """Round the masters into the weights."""
        for name, master in self._masters.items():
            if master is not self._weights[name]:
                self._weights[name].copy_(master)
