"""Pictures of a segmentation."""

import cv2
import numpy as np

from masksmith.core.arrays import AnyMask, Image, UInt8
from masksmith.data.target import Target

_COLOURS = np.array(
    [
        *((230, 60, 60), (60, 160, 255), (60, 200, 90), (250, 190, 40), (170, 90, 230), (0, 200, 200)),
        *((255, 120, 180), (150, 110, 60), (120, 220, 40), (90, 90, 255), (255, 140, 0), (130, 130, 130)),
    ],
    np.uint8,
)


def picture_of(image: Image) -> UInt8[np.ndarray, "h w 3"]:
    """Return an image of any type and bands as a picture: the first three bands, or the first alone, stretched."""
    shown = image[..., :3] if image.shape[2] >= 3 else image[..., :1]
    if shown.dtype != np.uint8:
        values = shown.astype(np.float32)
        low, high = np.nanpercentile(values, (2, 98), axis=(0, 1))
        values = np.nan_to_num((values - low) / np.maximum(high - low, 1e-6))
        shown = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    return np.repeat(shown, 3, axis=2) if shown.shape[2] == 1 else shown


def overlay(image: Image, mask: AnyMask, target: Target, *, alpha: float = 0.5) -> UInt8[np.ndarray, "h w 3"]:
    """Return the image with the mask over it; of a class map the first class, the background, is left clear."""
    picture = picture_of(image).astype(np.float32)
    if target.task == "instances":
        layers = [(mask > 0, _COLOURS[(mask - 1) % len(_COLOURS)])]
    elif mask.ndim == 3:
        layers = [(mask[..., at] > 0, _COLOURS[at % len(_COLOURS)]) for at in range(mask.shape[2])]
    else:
        palette = _COLOURS[np.arange(max(len(target.classes), 2)) - 1]
        layers = [(mask > 0, palette[mask.clip(max=len(palette) - 1)])]
    for inside, colours in layers:
        picture = np.where(inside[..., None], (1 - alpha) * picture + alpha * colours, picture)
    return picture.round().astype(np.uint8)


def png(picture: UInt8[np.ndarray, "h w 3"]) -> bytes:
    """Return a picture as a PNG file."""
    done, raw = cv2.imencode(".png", np.ascontiguousarray(picture[..., ::-1]))
    assert done
    return bytes(raw.tobytes())
