"""Exponential moving average of the weights.

Sources:
    Polyak and Juditsky 1992; the warm-up of the decay as in TensorFlow's ExponentialMovingAverage.

Batch norm's running statistics are averaged with the weights: copied ones belong to the newest weights, and
in the first epochs of a one-cycle schedule those are far from the average.
"""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

Model = TypeVar("Model", bound=nn.Module)


class MovingAverage(Generic[Model]):
    """Keeps ``self.model``, a copy whose weights and statistics are the moving average."""

    def __init__(self, model: Model, *, decay: float) -> None:
        self.model: Model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move towards ``model`` by 1 - min(decay, (1 + n) / (10 + n)) after n updates."""
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        self.steps += 1
        pairs = list(zip(self.model.state_dict().values(), model.state_dict().values(), strict=True))
        floats = [pair for pair in pairs if pair[0].is_floating_point()]
        torch._foreach_lerp_([own for own, _ in floats], [new for _, new in floats], 1 - decay)
        for own, new in pairs:
            if not own.is_floating_point():
                own.copy_(new)
