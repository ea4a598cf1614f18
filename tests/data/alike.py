"""Generated pictures, and stores of them, for what compares images."""

import cv2
import numpy as np

from masksmith.data.store import Store, StoreWriter


def texture(seed, *, h=64, w=64, c=1, shared=60.0):
    """A picture with a texture of its own on a gradient that all share."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(rng.standard_normal((8, 8)).astype(np.float32), (w, h), interpolation=cv2.INTER_CUBIC)
    image = 120 + np.linspace(-shared, shared, w) + 15 * coarse + 10 * rng.standard_normal((h, w))
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], c, axis=2)


def store_of(path, images):
    """A store of a mapping id -> image."""
    dtype = next(iter(images.values())).dtype.type if images else np.uint8
    writer = StoreWriter(path, [(name, image.shape) for name, image in images.items()], dtype=dtype)
    for name, image in images.items():
        writer.write(name, image)
    writer.close()
    return Store(path)
