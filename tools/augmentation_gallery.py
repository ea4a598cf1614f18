"""Draw the pictures of docs/augmentation.md from drawn images: one sheet a group of augmentations.

python tools/augmentation_gallery.py
"""

from pathlib import Path

import cv2
import numpy as np

from masksmith.augment.appearance import LOOKS
from masksmith.reporting.augmented import (
    GEOMETRY,
    INTENSITY,
    TABLES,
    cut_out,
    mixed,
    moved,
    outlined,
    patterned,
)

OUT = Path(__file__).parents[1] / "docs" / "augmentation"


def tile(image: np.ndarray, mask: np.ndarray, title: str) -> np.ndarray:
    """Return an image of 0…255 with the outline of its mask and a title above it."""
    shown = outlined(image, mask)
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
    image, mask = patterned(0)
    parts = {"as it is": {}, **GEOMETRY}
    sheet("geometry", [tile(*moved(part, image, mask, 4), title) for title, part in parts.items()])


def intensity() -> None:
    """One picture for each field of IntensityConfig."""
    image, mask = patterned(0)
    tiles = [tile(image, mask, "as it is")]
    seeds = dict.fromkeys(TABLES, 7) | {"clahe": 0} | dict.fromkeys(LOOKS, 15)
    tiles += [tile(*INTENSITY[name](image, mask, seed), name) for name, seed in seeds.items()]
    tiles += [tile(*cut_out(mode, image, mask, 11), f"cutout, {mode}") for mode in ("keep", "zero")]
    sheet("intensity", tiles)


def mixing() -> None:
    """Two images, and what mixing makes of them."""
    pairs = [patterned(0), patterned(1)]
    tiles = [
        tile(image, mask, title) for (image, mask), title in zip(pairs, ("first", "second"), strict=True)
    ]
    made = mixed(pairs, 0, cutmix_seed=6)
    tiles += [tile(one.image[0].transpose(1, 2, 0), one.mask[0], title) for title, one in made.items()]
    sheet("mixing", tiles)


if __name__ == "__main__":
    geometry()
    intensity()
    mixing()
