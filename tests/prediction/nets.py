"""A small net and a store of images of several sizes."""

import numpy as np
import torch

from masksmith.data.store import Store, StoreWriter
from masksmith.models.config import ModelConfig
from masksmith.models.segmentation import build_model

SIZES = [("a", (21, 30)), ("b", (16, 16)), ("c", (21, 30)), ("d", (21, 30)), ("e", (9, 40)), ("f", (21, 30))]


def tiny(channels=1, encoder="tu-test_resnet", architecture="unet"):
    config = ModelConfig(
        architecture=architecture,
        encoder=encoder,
        encoder_weights="none",
        encoder_depth=3,
        decoder_channels=[8, 8, 8],
    )
    model = build_model(config, in_channels=channels, seed=0)
    with torch.no_grad():
        model.head.weight.mul_(20)  # probabilities away from 0.5, so that differences would show
    return model


def planes_of(batch, channels, h, w):
    return np.random.default_rng(0).random((batch, channels, h, w), np.float32)


def image_store(path, channels, *, sizes=SIZES):
    shapes = [(name, (*hw, channels)) for name, hw in sizes]
    writer = StoreWriter(path, shapes, dtype=np.uint8)
    rng = np.random.default_rng(0)
    for name, shape in shapes:
        writer.write(name, rng.integers(0, 255, shape).astype(np.uint8))
    writer.close()
    return Store(path)
