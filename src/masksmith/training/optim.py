"""Optimizers and learning-rate schedules: dicts of functions.

Sources:
    Adam: Kingma and Ba 2014, https://arxiv.org/abs/1412.6980
    AdamW: Loshchilov and Hutter 2017, https://arxiv.org/abs/1711.05101
    RMSprop: Tieleman and Hinton 2012, lecture 6.5 of "Neural Networks for Machine Learning"
    One-cycle: Smith and Topin 2017, https://arxiv.org/abs/1708.07120
    Cosine and its restarts: Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983
    Cyclic: Smith 2015, https://arxiv.org/abs/1506.01186
    Polynomial: Chen et al. 2016 (DeepLab), https://arxiv.org/abs/1606.00915
    Rates that fall from layer to layer: Howard and Ruder 2018, https://arxiv.org/abs/1801.06146
"""

import math
import re
from collections.abc import Callable, Iterable
from itertools import groupby
from typing import Any

import torch
from torch import nn

from masksmith.training.config import OptimizerConfig, ScheduleConfig

_EPSILON = 1e-9  # of the span; far less than a step


# --- schedules: (configuration, progress 0…1 of the span) -> factor of the peak rate -------------------------

Schedule = Callable[[ScheduleConfig, float], float]


def _cosine_from(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def _warmed(config: ScheduleConfig, progress: float, shape: Callable[[float], float]) -> float:
    """Rise in a line from 0 to ``shape(0)``, then follow ``shape`` over the rest of the span."""
    if progress < config.warmup_frac:
        return progress / config.warmup_frac * shape(0.0)
    return shape((progress - config.warmup_frac) / (1 - config.warmup_frac))


def constant(config: ScheduleConfig, progress: float) -> float:
    """Rise in a line to 1, stay there."""
    return _warmed(config, progress, lambda _: 1.0)


def cosine(config: ScheduleConfig, progress: float) -> float:
    """Rise in a line to 1, fall along half a cosine to ``final_frac``."""
    return _warmed(config, progress, lambda rest: _cosine_from(1.0, config.final_frac, rest))


def one_cycle(config: ScheduleConfig, progress: float) -> float:
    """Rise along half a cosine from 1/25 to 1, fall along half a cosine to ``final_frac``."""
    if progress < config.warmup_frac:
        return _cosine_from(1 / 25, 1.0, progress / config.warmup_frac)
    return cosine(config, progress)


def polynomial(config: ScheduleConfig, progress: float) -> float:
    """Rise in a line to 1, fall to ``final_frac`` as (1 - rest) to the ``power``."""
    fall = 1 - config.final_frac
    return _warmed(
        config, progress, lambda rest: config.final_frac + fall * max(0.0, 1 - rest) ** config.power
    )


def step(config: ScheduleConfig, progress: float) -> float:
    """Rise in a line to 1; times ``gamma`` at each of the ``milestones``, which are shares of the whole span."""
    passed = sum(milestone <= progress + _EPSILON for milestone in config.milestones)
    return _warmed(config, progress, lambda _: 1.0) * config.gamma**passed


def plateau(config: ScheduleConfig, progress: float) -> float:
    """Rise in a line to 1; what stalled meanwhile has multiplied the rate already (see Progress.rate_scale)."""
    return constant(config, progress)


def finished_cycles(progress: float, cycles: int) -> int:
    """Return how many of ``cycles`` equal cycles lie behind; a sum of steps that fell short by rounding counts."""
    return int(progress * cycles + _EPSILON)


def cosine_restarts(config: ScheduleConfig, progress: float) -> float:
    """Cosine in equal cycles, each from 1 to ``final_frac``; the warm-up is a part of the first."""
    done = min(finished_cycles(progress, config.cycles), config.cycles - 1)
    inside = min(1.0, max(0.0, progress * config.cycles - done))
    warmup = config.warmup_frac * config.cycles if done == 0 else 0.0
    if inside < warmup:
        return inside / warmup
    return _cosine_from(1.0, config.final_frac, (inside - warmup) / (1 - warmup))


def cyclic(config: ScheduleConfig, progress: float) -> float:
    """Rise in a line to ``final_frac``, then triangles from there to 1 and back."""
    low, cycles = config.final_frac, config.cycles
    return _warmed(config, progress, lambda rest: low + (1 - low) * (1 - abs(2 * ((rest * cycles) % 1) - 1)))


SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "cosine": cosine,
    "cosine_restarts": cosine_restarts,
    "cyclic": cyclic,
    "one_cycle": one_cycle,
    "plateau": plateau,
    "polynomial": polynomial,
    "step": step,
}


def lr_factor(config: ScheduleConfig, progress: float) -> float:
    """Return the factor of the learning rate at ``progress`` (0…1 of the schedule's span)."""
    return SCHEDULES[config.name](config, progress)


# --- optimizers ---------------------------------------------------------------------------------------------

Groups = list[dict[str, Any]]


def _adamw(groups: Groups, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)


def _adam(groups: Groups, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups, lr=config.lr, fused=fused)


def _sgd(groups: Groups, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    momentum = config.settled_momentum
    return torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=config.nesterov, fused=fused)


def _rmsprop(groups: Groups, config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    del fused  # torch has no fused kernel for it
    # alpha 0.9: of the lecture and of Keras; torch's own 0.99 averages ten times as long
    return torch.optim.RMSprop(
        groups, lr=config.lr, alpha=0.9, momentum=config.settled_momentum, foreach=True
    )


OPTIMIZERS: dict[str, Callable[[Groups, OptimizerConfig, bool], torch.optim.Optimizer]] = {
    "adam": _adam,
    "adamw": _adamw,
    "rmsprop": _rmsprop,
    "sgd": _sgd,
}


def num_moments(config: OptimizerConfig) -> int:
    """Return how many tensors of the size of the weights an optimizer keeps."""
    if config.name in ("adamw", "adam"):
        return 2
    return (config.name == "rmsprop") + (config.settled_momentum > 0)


def _block_of(name: str) -> str:
    """Return the block of a weight: up to the first part that ends in a digit; "" for layers that stand alone."""
    if name.count(".") <= 2:
        return ""  # encoder.conv1.weight, encoder.bn1.weight: a stem
    numbered = re.match(r".*?\d(?=\.)", name)
    return numbered[0] if numbered else name.rsplit(".", 1)[0]


def encoder_depths(names: Iterable[str]) -> dict[str, int]:
    """Return for each weight of the encoder how many blocks lie behind it; the last block has 0.

    Blocks are told by their names, such as layer2, features.3, blocks.1 or stages_0, in the order of the weights, in
    which encoders list their layers.
    """
    encoder = [name for name in names if name.startswith("encoder.")]
    blocks = [list(block) for _, block in groupby(encoder, key=_block_of)]
    return {name: len(blocks) - 1 - number for number, block in enumerate(blocks) for name in block}


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, fused: bool = True
) -> torch.optim.Optimizer:
    """Return the optimizer; every group carries its peak rate as ``peak_lr``.

    Weights of one dimension (biases, normalisation) get no weight decay; names that begin with "encoder." get
    ``encoder_lr_frac`` of the rate, times ``encoder_layer_decay`` for each block that lies behind them. ``fused``
    kernels are faster, but cannot be clipped under gradient scaling.
    """
    depths = encoder_depths(name for name, _ in model.named_parameters())
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        lr = config.lr
        if name in depths:
            lr *= config.encoder_lr_frac * config.encoder_layer_decay ** depths[name]
        decay = 0.0 if weight.ndim <= 1 else config.weight_decay
        groups.setdefault((lr, decay), []).append(weight)
    return OPTIMIZERS[config.name](
        [
            {"params": weights, "lr": lr, "peak_lr": lr, "weight_decay": decay}
            for (lr, decay), weights in groups.items()
        ],
        config,
        fused,
    )


def fill_momentum(optimizer: torch.optim.Optimizer) -> None:
    """Give weights that were frozen until now the momentum 0 of a first step: SGD wants one for a whole group."""
    if not isinstance(optimizer, torch.optim.SGD) or not optimizer.state:
        return
    for group in optimizer.param_groups:
        for weight in group["params"]:
            if group["momentum"] and optimizer.state[weight].get("momentum_buffer") is None:
                optimizer.state[weight]["momentum_buffer"] = torch.zeros_like(weight)


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to ``factor`` times its peak; return the largest."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)
