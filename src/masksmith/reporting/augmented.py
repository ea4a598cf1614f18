"""What each augmentation makes of an image, by the code that training uses."""

from collections.abc import Callable
from functools import partial
from typing import Any

import cv2
import numpy as np
from jaxtyping import Shaped

from masksmith.augment.appearance import LOOKS, apply_looks, clahe, cutout, draw_looks
from masksmith.augment.geometry import GeometryConfig, draw_affine, draw_more
from masksmith.augment.intensity import IntensityConfig, draw_table
from masksmith.augment.mixing import (
    Batch,
    CopyPasteConfig,
    CutmixConfig,
    MixupConfig,
    copy_paste,
    cutmix,
    mixup,
)
from masksmith.augment.warp import warp
from masksmith.core.arrays import Mask, UInt8

RGB = UInt8[np.ndarray, "h w 3"]
Values = Shaped[np.ndarray, "h w 3"]
"""Of 0…255, in any type."""
Made = Callable[[RGB, Mask, int], tuple[Values, Mask]]
"""(image, mask, seed) -> what becomes of both."""

SIDE = 128
"""Of the drawn images, in pixels."""
_ON = {"probability": 1.0}

GEOMETRY: dict[str, Any] = {
    "hflip": {"hflip": 1.0},
    "vflip": {"vflip": 1.0},
    "transpose": {"transpose": 1.0},
    "rot90": {"rot90": 1.0},
    "rotate_deg": {"rotate_deg": 30.0},
    "scale_range": {"scale_range": (0.6, 0.7)},
    "aspect_range": {"aspect_range": (1.5, 1.6)},
    "shear_deg": {"shear_deg": 25.0},
    "shift_frac": {"shift_frac": 0.3},
    "crop_zoom": {"crop_zoom": {**_ON, "side_frac_range": (0.7, 0.75)}},
    "perspective": {"perspective": {**_ON, "corner_frac": 0.2}},
    "piecewise_affine": {"piecewise_affine": {**_ON, "shift_frac": 0.05}},
    "elastic": {"elastic": {**_ON, "shift_frac": 0.04}},
    "grid": {"grid": {**_ON, "limit": 0.7}},
    "optical": {"optical": {**_ON, "strength": 0.6}},
    "pincushion": {"pincushion": {**_ON, "strength": 0.6}},
    "heavy": "heavy",
}
"""Field of GeometryConfig -> values that show what it does; ``heavy`` is the preset."""

TABLES: dict[str, dict[str, float]] = {
    "brightness": {"brightness": 0.4},
    "contrast": {"contrast": 0.7},
    "gamma": {"gamma": 0.6},
    "invert": {"invert": 1.0},
}
"""The same of the changes of intensity that are a look-up table."""

STRONG: dict[str, Any] = {
    "hsv": {**_ON, "hue_deg": 120.0},
    "channel_shuffle": 1.0,
    "channel_scale": {**_ON, "multiply": 0.4, "add": 0.2},
    "blur": {**_ON, "sigma_px_range": (2.0, 2.0)},
    "motion_blur": {**_ON, "length_px": 15},
    "noise": {**_ON, "sigma_range": (0.1, 0.1)},
}
"""The same of those that are not."""


def moved(part: Any, image: RGB, mask: Mask, seed: int) -> tuple[Values, Mask]:  # noqa: ANN401
    """Return image and mask after the geometry of a configuration."""
    config, rng = GeometryConfig.model_validate(part), np.random.default_rng(seed)
    motion = draw_more(config, draw_affine(config, rng), rng)
    found, labels = warp(image, mask, motion, canvas_hw=(mask.shape[0], mask.shape[1]))
    return found, labels


def _tabled(part: dict[str, float], image: RGB, mask: Mask, seed: int) -> tuple[Values, Mask]:
    table = draw_table(IntensityConfig.model_validate(part), np.random.default_rng(seed), max_value=255)
    return table[image] * 255, mask


def _equalised(image: RGB, mask: Mask, seed: int) -> tuple[Values, Mask]:
    config = IntensityConfig.model_validate({"clahe": {"probability": 1.0, "clip_range": (4.0, 4.0)}}).clahe
    return clahe(image, config, np.random.default_rng(seed)), mask


def _looking(name: str, image: RGB, mask: Mask, seed: int) -> tuple[Values, Mask]:
    config = IntensityConfig.model_validate({name: STRONG[name]})
    found = image.astype(np.float32) / 255
    apply_looks(found, mask.copy(), config, draw_looks(config, np.random.default_rng(seed)))
    return found * 255, mask


def cut_out(mode: str, image: RGB, mask: Mask, seed: int) -> tuple[Values, Mask]:
    """Return both with rectangles cut out; ``mode`` says what becomes of the mask: keep, zero or ignore."""
    part = {**_ON, "count_range": (4, 4), "side_frac_range": (0.2, 0.35), "mask": mode}
    found, hidden = image.astype(np.float32), mask.copy()
    cutout(
        found, hidden, IntensityConfig.model_validate({"cutout": part}).cutout, np.random.default_rng(seed)
    )
    return found, hidden


def _mixed(how: str, image: RGB, mask: Mask, seed: int) -> tuple[Values, Mask]:
    """Mix with the other drawn image, brought to this one's size."""
    other, other_mask = patterned(1)
    size = (image.shape[1], image.shape[0])
    other = cv2.resize(other, size, interpolation=cv2.INTER_AREA).astype(np.uint8)
    other_mask = cv2.resize(other_mask, size, interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    made = mixed([(image, mask), (other, other_mask)], seed)[how]
    return made.image[0].transpose(1, 2, 0), made.mask[0]


def mixed(
    pairs: list[tuple[RGB, Mask]], seed: int = 0, *, cutmix_seed: int | None = None
) -> dict[str, Batch]:
    """Return what mixing makes of two images and their masks: the first of each batch got something of the second."""
    images = np.stack([image for image, _ in pairs]).astype(np.float32).transpose(0, 3, 1, 2)
    batch, partner = Batch(images, np.stack([mask for _, mask in pairs])), np.array([1, 0])
    rng, chosen = np.random.default_rng, np.array([True, False])
    cut = rng(seed if cutmix_seed is None else cutmix_seed)
    return {
        "mixup": mixup(batch, MixupConfig(alpha=20.0), rng(seed), partner=partner),
        "cutmix": cutmix(batch, CutmixConfig(), cut, partner=partner),
        "copy_paste": copy_paste(batch, CopyPasteConfig(), rng(seed), partner=partner, chosen=chosen),
    }


INTENSITY: dict[str, Made] = {
    **{name: partial(_tabled, part) for name, part in TABLES.items()},
    "clahe": _equalised,
    **{name: partial(_looking, name) for name in LOOKS},
    "cutout": partial(cut_out, "keep"),
}
"""Field of IntensityConfig -> what it does."""

MIXING: dict[str, Made] = {name: partial(_mixed, name) for name in ("mixup", "cutmix", "copy_paste")}
"""Field of MixingConfig -> what it does."""


def patterned(seed: int) -> tuple[RGB, Mask]:
    """Return a drawn coloured image with a grid of lines, and a mask of two bodies."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIDE, :SIDE]
    waves = np.sin(y / 5 + 2 * np.sin(x / 25 + seed)) * 35
    image = np.stack([140 + waves, 150 + waves / 2, 120 - waves], -1)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    for at in ((38 + 8 * seed, 44), (88, 90 - 10 * seed)):
        cv2.ellipse(mask, at, (22, 14), 30.0 + 60 * seed, 0, 360, 1, -1)
    image[mask == 1] = (200, 120, 60)
    image += rng.normal(0, 6, image.shape)
    image[::16], image[:, ::16] = 235, 235
    return np.clip(image, 0, 255).astype(np.uint8), mask


def outlined(image: Values, mask: Mask) -> RGB:
    """Return an image with the outline of its mask in pink."""
    shown = np.clip(np.rint(image), 0, 255).astype(np.uint8).copy()
    edges, _ = cv2.findContours((mask == 1).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(shown, edges, -1, (255, 0, 200), 1)
    return shown
