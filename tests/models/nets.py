"""Small models for tests: every architecture on the smallest encoder that it takes."""

import torch

from masksmith.models import ARCHITECTURES, ModelConfig, build_model
from masksmith.models.published import OWN_NETS

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


def sides_of(model):
    """Height and width that the model takes, neither square nor powers of two; odd where it takes any size."""
    if model.divisor == 1:
        return 51, 34
    return 3 * model.divisor, 2 * model.divisor


def ramp(channels, height, width):
    """An image that does not depend on torch's generator."""
    return torch.linspace(0, 1, channels * height * width).reshape(1, channels, height, width)
