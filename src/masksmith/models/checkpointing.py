"""Gradient checkpointing: blocks keep their input alone, and compute the rest again in the backward pass.

Source: Chen et al. 2016, https://arxiv.org/abs/1604.06174, as ``torch.utils.checkpoint``. Computing a block
twice must not count twice in its statistics: buffers (of batch norm, say) are put back after the second time.
"""

import contextlib
from collections.abc import Iterator
from functools import cache, partial
from typing import Any, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@contextlib.contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Put the buffers of ``module`` back at the end."""
    kept = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        for buffer, value in kept:
            buffer.data.copy_(value)  # through .data: the graph of the first pass holds these buffers too


def _contexts(module: nn.Module) -> tuple[Any, Any]:
    return contextlib.nullcontext(), _statistics_kept(module)


@cache
def _checkpointed(kind: Any) -> type[nn.Module]:  # noqa: ANN401
    """Return a subclass of a block's class that keeps no activations in training."""

    class Checkpointed(kind):
        def forward(self, *inputs: Any, **options: Any) -> Any:  # noqa: ANN401
            if not (self.training and torch.is_grad_enabled()):
                return super().forward(*inputs, **options)
            return checkpoint(
                super().forward, *inputs, use_reentrant=False, context_fn=partial(_contexts, self), **options
            )

    Checkpointed.__name__ = kind.__name__
    Checkpointed.__qualname__ = kind.__qualname__
    return Checkpointed


def checkpoint_blocks(module: nn.Module, *, inside: bool = False) -> int:
    """Make the blocks of an encoder or decoder recompute their activations; return how many there are.

    A block is a module with parts in a list of modules (a residual block, a transformer block, a
    decoder block). Weights and their names stay as they are.

    Args:
        module: Whose parts are looked through.
        inside: Whether ``module`` is itself in a list.
    """
    count = 0
    for child in module.children():
        is_list = isinstance(child, _LISTS) and type(child).forward in {one.forward for one in _LISTS}
        if inside and not is_list and next(child.children(), None) is not None:
            child.__class__ = _checkpointed(cast(Any, type(child)))  # the same weights; only forward differs
            count += 1
        elif next(child.children(), None) is not None:
            count += checkpoint_blocks(child, inside=is_list)
    return count
