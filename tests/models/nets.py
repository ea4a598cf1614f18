"""Small models for tests: every architecture on the smallest encoder that it takes."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from masksmith.models.architectures import ARCHITECTURES
from masksmith.models.config import ModelConfig
from masksmith.models.published import OWN_NETS
from masksmith.models.segmentation import build_model

NAMES = sorted(ARCHITECTURES)
TAKE_ENCODERS = [name for name in NAMES if name not in OWN_NETS]


def config_of(name, **changes):
    """The smallest sensible configuration of an architecture."""
    vit = name == "dpt"
    depth = changes.get("encoder_depth", 4)
    levels = ARCHITECTURES[name].decoder_channels == "levels"
    own = name in OWN_NETS
    values = {
        "architecture": name,
        "encoder": "own" if own else "test_vit" if vit else "tu-test_resnet",
        "encoder_weights": "none",
        "encoder_depth": depth,
        "decoder_channels": [16] * depth if levels else [8 if own else 32],
    }
    return ModelConfig(**(values | changes))


def net_of(name, *, in_channels=3, classes=1, **changes):
    return build_model(config_of(name, **changes), in_channels=in_channels, classes=classes, seed=0)


@functools.cache
def still_net(name):
    """The net with the defaults, in evaluation mode; many tests share it, so none may change it."""
    return net_of(name).eval()


def sides_of(model):
    """Height and width that the model takes, neither square nor powers of two; odd where it takes any size."""
    if model.divisor == 1:
        return 51, 34
    return 3 * model.divisor, 2 * model.divisor


def ramp(channels, height, width):
    """An image that does not depend on torch's generator."""
    return torch.linspace(0, 1, channels * height * width).reshape(1, channels, height, width)


def bring_to_life(module):
    """Biases, scales and statistics that are not 0 and 1, so that a forgotten one shows; in evaluation mode."""
    generator = torch.Generator().manual_seed(1)

    def draw(value, low, high):
        nn.init.uniform_(value, low, high, generator=generator)

    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            draw(layer.weight, 0.5, 1.5)
            draw(layer.running_var, 0.5, 1.5)
            draw(layer.running_mean, -0.1, 0.1)
        if getattr(layer, "bias", None) is not None:
            draw(layer.bias, -0.1, 0.1)
    return module.eval()


def keras_norm(layer, features):
    """Keras's batch norm when it predicts, with the weights of ours."""
    mean, var = layer.running_mean, layer.running_var
    return F.batch_norm(features, mean, var, layer.weight, layer.bias, eps=1e-3)


def keras_up(layer, features, hw):
    """Keras's transposed convolution of stride 2, with the weights of ours.

    As a sum over the input's pixels: each adds the kernel at twice its place; what is beyond the size is cut off.
    """
    batch, _, height, width = features.shape
    side = layer.kernel_size[0]
    out = torch.zeros(batch, layer.out_channels, 2 * height + 1, 2 * width + 1)
    for row in range(height):
        for column in range(width):
            spot = out[:, :, 2 * row : 2 * row + side, 2 * column : 2 * column + side]
            spot += torch.einsum("bi,iokl->bokl", features[:, :, row, column], layer.weight)
    return out[:, :, : hw[0], : hw[1]] + layer.bias[:, None, None]


def assert_drawn_as_in_keras(module):
    """Glorot's uniform rule, biases at 0, Keras's constants of batch norm."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            pixels = layer.kernel_size[0] ** 2
            bound = (6 / (pixels * (layer.in_channels + layer.out_channels))) ** 0.5
            most = layer.weight.abs().max().item()
            assert 0.5 * bound < most <= bound
            assert layer.bias is None or not layer.bias.any()
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.eps, layer.momentum) == (1e-3, 0.01)
