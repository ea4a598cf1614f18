"""Optimizers and learning-rate schedules: dicts of functions.

Sources:
    AdamW: Loshchilov and Hutter 2017, https://arxiv.org/abs/1711.05101
    One-cycle: Smith and Topin 2017, https://arxiv.org/abs/1708.07120
    Cosine: Loshchilov and Hutter 2016, https://arxiv.org/abs/1608.03983
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from masksmith.training.config import OptimizerConfig, ScheduleConfig


def _cosine_from(start: float, end: float, progress: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * progress))


def constant(progress: float, *, warmup_frac: float, final_frac: float) -> float:
    """Rise in a line to 1, stay there."""
    del final_frac
    return min(1.0, progress / warmup_frac) if warmup_frac else 1.0


def cosine(progress: float, *, warmup_frac: float, final_frac: float) -> float:
    """Rise in a line to 1, fall along half a cosine to ``final_frac``."""
    if progress < warmup_frac:
        return progress / warmup_frac
    return _cosine_from(1.0, final_frac, (progress - warmup_frac) / (1 - warmup_frac))


def one_cycle(progress: float, *, warmup_frac: float, final_frac: float) -> float:
    """Rise along half a cosine from 1/25 to 1, fall along half a cosine to ``final_frac``."""
    if progress < warmup_frac:
        return _cosine_from(1 / 25, 1.0, progress / warmup_frac)
    return _cosine_from(1.0, final_frac, (progress - warmup_frac) / (1 - warmup_frac))


SCHEDULES: dict[str, Callable[..., float]] = {"constant": constant, "cosine": cosine, "one_cycle": one_cycle}


def lr_factor(config: ScheduleConfig, progress: float) -> float:
    """Return the factor of the learning rate at ``progress`` (0…1 of the schedule's span)."""
    return SCHEDULES[config.name](progress, warmup_frac=config.warmup_frac, final_frac=config.final_frac)


def _adamw(groups: list[dict[str, Any]], config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.AdamW(groups, lr=config.lr, fused=fused)


def _sgd(groups: list[dict[str, Any]], config: OptimizerConfig, fused: bool) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9, nesterov=True, fused=fused)


OPTIMIZERS: dict[str, Callable[[list[dict[str, Any]], OptimizerConfig, bool], torch.optim.Optimizer]] = {
    "adamw": _adamw,
    "sgd": _sgd,
}


def build_optimizer(
    model: nn.Module, config: OptimizerConfig, *, fused: bool = True
) -> torch.optim.Optimizer:
    """Return the optimizer; every group carries its peak rate as ``peak_lr``.

    Weights of one dimension (biases, normalisation) get no weight decay; names that begin with "encoder." get
    ``encoder_lr_frac`` of the rate. ``fused`` kernels are faster, but cannot be clipped under gradient scaling.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, weight in model.named_parameters():
        lr = config.lr * (config.encoder_lr_frac if name.startswith("encoder.") else 1.0)
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


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to ``factor`` times its peak; return the largest."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
    return max(group["lr"] for group in optimizer.param_groups)
