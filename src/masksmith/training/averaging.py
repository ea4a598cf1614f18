"""Averages of the weights: exponential moving (EMA), and equal over several epochs or cycles (SWA).

Sources:
    EMA: Polyak and Juditsky 1992; the warm-up of the decay as in TensorFlow's ExponentialMovingAverage.
    SWA: Izmailov et al. 2018, https://arxiv.org/abs/1803.05407

In the EMA batch norm's running statistics are averaged with the weights: copied ones belong to the newest weights, and
in the first epochs of a one-cycle schedule those are far from the average. The points that SWA averages lie far
apart, so there the statistics are measured again.
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Generic, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

Model = TypeVar("Model", bound=nn.Module)
Item = TypeVar("Item")


class MovingAverage(Generic[Model]):
    """Keeps ``self.model``, a copy whose weights and statistics are the moving average."""

    def __init__(self, model: Model, *, decay: float) -> None:
        self.model: Model = copy.deepcopy(model).requires_grad_(False).eval()
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def restart(self, model: nn.Module) -> None:
        """Begin again with the weights and statistics of ``model``."""
        for own, new in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            own.copy_(new)
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


class EqualMean(Generic[Model]):
    """Keeps ``self.model``, a copy whose weights are the mean of all models that were added."""

    def __init__(self, model: Model) -> None:
        self.model: Model = copy.deepcopy(model).requires_grad_(False).eval()
        self.count = 0

    @torch.no_grad()
    def add(self, model: nn.Module) -> None:
        """Count ``model`` in; whole numbers (batch norm's counts of batches) are copied."""
        self.count += 1
        for own, new in zip(self.model.state_dict().values(), model.state_dict().values(), strict=True):
            if own.is_floating_point():
                own.lerp_(new, 1 / self.count)
            else:
                own.copy_(new)


def first_averaged(start: int | float, num_epochs: int) -> int:
    """Return the first epoch (1, 2, …) that SWA averages: ``start`` itself, or the one after that share of all."""
    return start if isinstance(start, int) else int(start * num_epochs + 1e-9) + 1


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of a model that keep statistics."""
    return [one for one in model.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]


@contextmanager
def _measuring(model: nn.Module, norms: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let the norms average the statistics of all batches equally, and nothing else be as in training."""
    momenta, training = [norm.momentum for norm in norms], model.training
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's sign for the equal mean
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        model.train(training)


@torch.no_grad()
def measure_norms(
    model: nn.Module, norms: Sequence[_BatchNorm], batches: Iterable[Item], forward: Callable[[Item], object]
) -> None:
    """Measure batch norm's statistics again, as the equal mean over the batches; without norms nothing is done.

    Args:
        model: Changed in place.
        norms: Those of its batch norms that are measured.
        batches: Training batches, at least one.
        forward: Passes a batch through the model.
    """
    if not norms:
        return
    with _measuring(model, norms):
        for batch in batches:
            forward(batch)
