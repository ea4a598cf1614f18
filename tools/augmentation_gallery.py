"""Draw the pictures of docs/augmentation.md from drawn images: one sheet a group of augmentations.

python tools/augmentation_gallery.py
"""

from pathlib import Path

import cv2
import numpy as np

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

SIDE = 128
OUT = Path(__file__).parents[1] / "docs" / "augmentation"
ON = {"probability": 1.0}
GEOMETRY = {
    "as it is": {},
    "hflip": {"hflip": 1.0},
    "vflip": {"vflip": 1.0},
    "transpose": {"transpose": 1.0},
    "rot90": {"rot90": 1.0},
    "rotate_deg": {"rotate_deg": 30.0},
    "scale_range": {"scale_range": (0.6, 0.7)},
    "aspect_range": {"aspect_range": (1.5, 1.6)},
    "shear_deg": {"shear_deg": 25.0},
    "shift_frac": {"shift_frac": 0.3},
    "crop_zoom": {"crop_zoom": {**ON, "side_frac_range": (0.7, 0.75)}},
    "perspective": {"perspective": {**ON, "corner_frac": 0.2}},
    "piecewise_affine": {"piecewise_affine": {**ON, "shift_frac": 0.05}},
    "elastic": {"elastic": {**ON, "shift_frac": 0.04}},
    "grid": {"grid": {**ON, "limit": 0.7}},
    "optical": {"optical": {**ON, "strength": 0.6}},
    "pincushion": {"pincushion": {**ON, "strength": 0.6}},
    "heavy": "heavy",
}


def picture(seed: int) -> tuple[np.ndarray, np.ndarray]:
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


def tile(image: np.ndarray, mask: np.ndarray, title: str) -> np.ndarray:
    """Return an image of 0…255 with the outline of its mask and a title above it."""
    shown = np.clip(np.rint(image), 0, 255).astype(np.uint8).copy()
    edges, _ = cv2.findContours((mask == 1).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(shown, edges, -1, (255, 0, 200), 1)
    framed = cv2.copyMakeBorder(shown, 18, 4, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))
    cv2.putText(framed, title, (3, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    return framed


def sheet(name: str, tiles: list[np.ndarray]) -> None:
    """Write tiles in rows of four."""
    tiles = tiles + [np.full_like(tiles[0], 255)] * (-len(tiles) % 4)
    rows = [np.concatenate(tiles[at : at + 4], 1) for at in range(0, len(tiles), 4)]
    OUT.mkdir(parents=True, exist_ok=True)
    whole = cv2.cvtColor(np.concatenate(rows), cv2.COLOR_RGB2BGR)
    cv2.imwrite(str(OUT / f"{name}.jpg"), whole, [cv2.IMWRITE_JPEG_QUALITY, 85])


def geometry() -> None:
    """One picture for each field of GeometryConfig."""
    image, mask = picture(0)
    tiles = []
    for title, part in GEOMETRY.items():
        config, rng = GeometryConfig.model_validate(part), np.random.default_rng(4)
        motion = draw_more(config, draw_affine(config, rng), rng)
        tiles.append(tile(*warp(image, mask, motion, canvas_hw=(SIDE, SIDE)), title))
    sheet("geometry", tiles)


def intensity() -> None:
    """One picture for each field of IntensityConfig."""
    image, mask = picture(0)
    tiles = [tile(image, mask, "as it is")]
    for title, part in {
        "brightness": {"brightness": 0.4},
        "contrast": {"contrast": 0.7},
        "gamma": {"gamma": 0.6},
        "invert": {"invert": 1.0},
    }.items():
        table = draw_table(IntensityConfig.model_validate(part), np.random.default_rng(7), max_value=255)
        tiles.append(tile(table[image] * 255, mask, title))
    clahe_config = IntensityConfig(clahe={"probability": 1.0, "clip_range": (4.0, 4.0)}).clahe
    tiles.append(tile(clahe(image, clahe_config, np.random.default_rng(0)), mask, "clahe"))
    strong = {
        "hsv": {**ON, "hue_deg": 120.0},
        "channel_shuffle": 1.0,
        "channel_scale": {**ON, "multiply": 0.4, "add": 0.2},
        "blur": {**ON, "sigma_px_range": (2.0, 2.0)},
        "motion_blur": {**ON, "length_px": 15},
        "noise": {**ON, "sigma_range": (0.1, 0.1)},
    }
    for name in LOOKS:
        config, found = IntensityConfig(**{name: strong[name]}), image.astype(np.float32) / 255
        apply_looks(found, mask.copy(), config, draw_looks(config, np.random.default_rng(15)))
        tiles.append(tile(found * 255, mask, name))
    for mode in ("keep", "zero"):
        config = IntensityConfig(
            cutout={**ON, "count_range": (4, 4), "side_frac_range": (0.2, 0.35), "mask": mode}
        ).cutout
        found, hidden = image.astype(np.float32), mask.copy()
        cutout(found, hidden, config, np.random.default_rng(11))
        tiles.append(tile(found, hidden, f"cutout, {mode}"))
    sheet("intensity", tiles)


def mixing() -> None:
    """Two images, and what mixing makes of them."""
    pairs = [picture(0), picture(1)]
    images = np.stack([image for image, _ in pairs]).astype(np.float32).transpose(0, 3, 1, 2)
    batch, partner = Batch(images, np.stack([mask for _, mask in pairs])), np.array([1, 0])
    rng, chosen = np.random.default_rng, np.array([True, False])
    tiles = [
        tile(image, mask, title) for (image, mask), title in zip(pairs, ("first", "second"), strict=True)
    ]
    made = {
        "mixup": mixup(batch, MixupConfig(alpha=20.0), rng(0), partner=partner),
        "cutmix": cutmix(batch, CutmixConfig(), rng(6), partner=partner),
        "copy_paste": copy_paste(batch, CopyPasteConfig(), rng(0), partner=partner, chosen=chosen),
    }
    tiles += [tile(one.image[0].transpose(1, 2, 0), one.mask[0], title) for title, one in made.items()]
    sheet("mixing", tiles)


if __name__ == "__main__":
    geometry()
    intensity()
    mixing()
