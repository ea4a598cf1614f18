"""Layers as Keras 2 makes them where its defaults are not torch's.

Source: https://github.com/keras-team/keras/tree/2.2.4, the version of the contest's time. Kernels are drawn by Glorot's
uniform rule (Glorot and Bengio 2010, https://proceedings.mlr.press/v9/glorot10a.html), biases begin at 0, batch norm
has epsilon 1e-3 and keeps 0.99 of its statistics at each step. A transposed convolution of stride 2 gives 2n rows with
padding "same" and 2n + 1 with "valid", of which "same" leaves out the last. The decoders that winners wrote in Keras
(models/decoders) have these layers, too.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from masksmith.models import layers

_NORM_EPS = 1e-3
_NORM_MOMENTUM = 0.01  # torch counts the new share, Keras the old one: 1 - 0.99


def conv(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 3x3 convolution with bias that keeps the size."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return batch norm with Keras's epsilon and momentum."""
    return nn.BatchNorm2d(channels, eps=_NORM_EPS, momentum=_NORM_MOMENTUM)


def norm_layer(name: str, channels: int) -> nn.Module:
    """Return a normalisation by the name that ``layers.norm_layer`` takes; "batch" is that of Keras.

    Raises:
        InputError: The name is unknown.
    """
    return batch_norm(channels) if name == "batch" else layers.norm_layer(name, channels)


def up_conv(in_channels: int, out_channels: int, kernel_size: int) -> nn.ConvTranspose2d:
    """Return a transposed convolution of stride 2 without padding: 2n rows of n for a kernel of 2, 2n + 1 for 3."""
    return nn.ConvTranspose2d(in_channels, out_channels, kernel_size, stride=2)


def cut_to(features: Float[Tensor, "b c _h _w"], hw: torch.Size) -> Float[Tensor, "b c _H _W"]:
    """Return the first rows and columns of a map.

    After a 3x3 ``up_conv`` this is Keras's padding "same" where the size doubles, and "valid" where one row more is
    wanted.
    """
    return features[..., : hw[0], : hw[1]]


def initialise_as_keras(module: nn.Module) -> None:
    """Draw all convolutions' weights by Glorot's uniform rule from torch's generator; biases are 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
