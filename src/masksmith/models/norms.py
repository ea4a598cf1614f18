"""Batch norm replaced by another normalisation in a net of a library."""

from typing import Any, cast

import torch
from timm.layers import BatchNormAct2d, GroupNormAct
from torch import Tensor, nn

from masksmith.models.layers import norm_layer


def _replacement(norm: nn.BatchNorm2d, name: str, *, pooled: bool) -> nn.Module:
    """Return what takes a batch norm's place, with its scale and offset."""
    channels = norm.num_features
    # one channel of perhaps one pixel (at the bottom of PAN's attention) would have nothing to be compared with
    new = norm_layer("none" if channels == 1 else name, channels)
    if name == "group" and pooled:  # one pixel: a group of one channel would always give zero
        new = nn.GroupNorm(1, channels)
    if isinstance(norm, BatchNormAct2d):  # timm's, which bears an activation
        kept: Any = GroupNormAct(channels, cast(Any, new).num_groups, apply_act=False)
        kept.drop, kept.act = norm.drop, norm.act
        new = kept
    if norm.affine and hasattr(new, "weight"):
        cast(Any, new).load_state_dict({"weight": norm.weight.detach(), "bias": norm.bias.detach()})
    return new


def _is_global_pool(module: nn.Module) -> bool:
    return isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1))


def replace_batch_norm(module: nn.Module, name: str, *, pooled: bool = False) -> int:
    """Replace every batch norm within ``module``; return how many there were.

    Statistics are lost; scale and offset stay. Without normalisation ("none") the convolution before it gets a bias.

    Args:
        module: Changed in place.
        name: "group" or "none".
        pooled: Whether its maps are means over all pixels; each group then holds all channels.
    """
    count, conv = 0, None
    in_order = isinstance(module, nn.Sequential)
    pooled = pooled or (in_order and any(_is_global_pool(child) for child in module.children()))
    for key, child in list(module.named_children()):
        if isinstance(child, nn.Conv2d | nn.ConvTranspose2d):
            conv = child
        if isinstance(child, nn.BatchNorm2d):
            setattr(module, key, _replacement(child, name, pooled=pooled))
            if isinstance(getattr(module, key), nn.Identity):
                _give_bias(conv or _last_conv(module, before=key))
            count += 1
        else:
            count += replace_batch_norm(child, name, pooled=pooled)
    return count


def _last_conv(module: nn.Module, *, before: str) -> nn.Module:
    """Return the last convolution within the parts before a norm, such as that of a separable convolution."""
    found: list[nn.Module] = []
    for key, child in module.named_children():
        if key == before:
            break
        found += [one for one in child.modules() if isinstance(one, nn.Conv2d | nn.ConvTranspose2d)]
    return found[-1]


def _give_bias(conv: nn.Module) -> None:
    if cast(Any, conv).bias is None:
        channels = cast(Any, conv).out_channels
        conv.bias = nn.Parameter(torch.zeros(channels, dtype=cast(Tensor, conv.weight).dtype))
