"""Generated scenes for every task: discs, boxes and bars on a patterned ground, some touching, some cut by the edge.

Of several labels the shapes are half transparent and overlap. Otherwise they hide each other: the same scene gives a
class map (ground, disc, box, bar), the labels of its discs as objects, and their union. What is seen depends on shape
alone: all shapes have colours from one range, so that a threshold of brightness cannot tell the classes apart.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from masksmith.core.arrays import Labels, Mask, UInt8

CLASSES = ("ground", "disc", "box", "bar")


@dataclass(frozen=True)
class Scene:
    """An image and what is in it."""

    image: UInt8[np.ndarray, "h w 3"]
    classes: Mask
    """0 ground, 1 disc, 2 box, 3 bar."""
    discs: Labels
    """A number for each disc that is seen."""


def make_scene(
    rng: np.random.Generator, hw: tuple[int, int], *, shapes: int, only_discs: bool = False
) -> Scene:
    """Draw a scene.

    Args:
        rng: What it is drawn by.
        hw: Height and width in pixels.
        shapes: About so many shapes; later ones lie over earlier ones.
        only_discs: Whether all shapes are discs, many of which touch.
    """
    height, width = hw
    ground = cv2.GaussianBlur(rng.standard_normal((height, width, 3)), (0, 0), 6)
    image = 110 + 25 * ground / max(ground.std(), 1e-6)
    classes, discs = np.zeros(hw, np.uint8), np.zeros(hw, np.int32)
    radius = float(np.clip(np.sqrt(height * width / max(shapes, 1)) / 4, 4, 40))
    centre = rng.uniform((0, 0), (width, height))
    for number in range(1, shapes + 1):
        kind = 1 if only_discs else int(rng.integers(1, len(CLASSES)))
        if only_discs and rng.random() < 0.5:  # beside the one before, so that they touch
            turn = rng.uniform(0, 2 * np.pi)
            centre = centre + 1.9 * radius * np.array([np.cos(turn), np.sin(turn)])
        else:
            centre = rng.uniform((0, 0), (width, height))
        whole = np.zeros(hw, np.uint8)
        _draw(whole, kind, centre, radius * rng.uniform(0.7, 1.3), rng)
        around = _around(centre, 4 * radius + 2, hw)
        drawn = whole[around]
        inside = drawn > 0
        colour = rng.uniform(60, 220, 3)
        shade = 1 - 0.35 * cv2.erode(drawn, np.ones((3, 3), np.uint8))[inside, None]  # a rim is brighter
        image[around][inside] = 0.25 * image[around][inside] + 0.75 * colour * (1.25 * shade)
        classes[around][inside] = kind
        discs[around][inside] = number if kind == 1 else 0
    image = cv2.GaussianBlur(image, (0, 0), 0.7) + rng.normal(0, 8, image.shape)
    return Scene(np.clip(image, 0, 255).astype(np.uint8), classes, discs)


@dataclass(frozen=True)
class LabelScene:
    """An image and its shapes, which are seen through each other."""

    image: UInt8[np.ndarray, "h w 3"]
    labels: UInt8[np.ndarray, "h w 3"]
    """Layers of 0 and 1: disc, box, bar."""


def make_label_scene(rng: np.random.Generator, hw: tuple[int, int], *, shapes: int) -> LabelScene:
    """Draw a scene of half-transparent shapes, most of which lie over others; one time in four a kind is absent.

    Args:
        rng: What it is drawn by.
        hw: Height and width in pixels.
        shapes: So many shapes; bars are rarer than the others.
    """
    height, width = hw
    ground = cv2.GaussianBlur(rng.standard_normal((height, width, 3)), (0, 0), 6)
    image = 110 + 20 * ground / max(ground.std(), 1e-6)
    labels = np.zeros((*hw, 3), np.uint8)
    radius = float(np.clip(np.sqrt(height * width / max(shapes, 1)) / 3, 4, 40))
    shares = np.array([0.4, 0.4, 0.2]) * (rng.random(3) > 0.25)
    centre = rng.uniform((0, 0), (width, height))
    for _ in range(shapes if shares.any() else 0):
        kind = int(rng.choice(3, p=shares / shares.sum()))
        if rng.random() < 0.5:  # over the one before
            centre = centre + radius * rng.uniform(-1.2, 1.2, 2)
        else:
            centre = rng.uniform((0, 0), (width, height))
        drawn = np.zeros(hw, np.uint8)
        _draw(drawn, kind + 1, centre, radius * rng.uniform(0.7, 1.3), rng)
        inside, rim = drawn > 0, drawn - cv2.erode(drawn, np.ones((3, 3), np.uint8))
        image[inside] = 0.5 * image[inside] + 0.5 * rng.uniform(60, 220, 3)
        image[rim > 0] += 35  # the shape stays to be seen below others
        labels[..., kind] |= drawn
    image = cv2.GaussianBlur(image, (0, 0), 0.7) + rng.normal(0, 6, image.shape)
    return LabelScene(np.clip(image, 0, 255).astype(np.uint8), labels)


def _around(centre: np.ndarray, reach: float, hw: tuple[int, int]) -> tuple[slice, slice]:
    """Return the part of an image, not empty, that a shape around ``centre`` (x, y) may cover: the rest is not read."""
    low = [min(max(0, int(at - reach)), side - 1) for at, side in zip(centre[::-1], hw, strict=True)]
    high = [max(first + 1, int(at + reach) + 1) for first, at in zip(low, centre[::-1], strict=True)]
    return slice(low[0], high[0]), slice(low[1], high[1])


def _draw(target: Mask, kind: int, centre: np.ndarray, radius: float, rng: np.random.Generator) -> None:
    at = (round(float(centre[0])), round(float(centre[1])))
    if kind == 1:
        axes = (max(2, round(radius)), max(2, round(radius * rng.uniform(0.75, 1))))
        cv2.ellipse(target, at, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
        return
    sides = (1.7 * radius, 1.7 * radius) if kind == 2 else (4 * radius, 0.55 * radius)
    corners = cv2.boxPoints((at, sides, float(rng.uniform(0, 180))))
    cv2.fillPoly(target, [np.rint(corners).astype(np.int32)], 1)
