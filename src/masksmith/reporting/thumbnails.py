"""Small pictures of a data set: images, masks, true masks over images, and tiles side by side, as data URIs."""

from dataclasses import dataclass

import cv2
import numpy as np

from masksmith.core.arrays import Bool, Image, Shaped, UInt8, foreground_pixels
from masksmith.data.look import thinned
from masksmith.data.pairs import Pair, Place
from masksmith.data.store import Store
from masksmith.data.target import Target
from masksmith.reporting.pictures import RGB, class_colours, data_uri, jpeg_uri, to_rgb

SIDE = 160
"""Longest side in pixels."""
LEAST = 48
"""Smaller ones are enlarged to so much, each pixel as a square."""
_PIXELS = 2**20  # of larger images every few rows and columns are looked at
_GREEN = np.array((0, 158, 96), np.float32)
_EDGE = (0, 255, 140)


Small = UInt8[np.ndarray, "_ _ 3"]
"""A picture of a size of its own."""


@dataclass(frozen=True)
class Shown:
    """A picture and what is said below it; ``src`` is a data URI."""

    id: str
    src: str
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """Makes the pictures of a data set."""

    train: Store
    masks: Store
    test: Store
    target: Target

    def image(self, place: Place, note: str = "") -> Shown:
        """Return an image."""
        return Shown(place[1], jpeg_uri(_small(self._rgb(place))), note)

    def mask(self, name: str, note: str = "") -> Shown:
        """Return a training image's mask: white on black, or classes, labels and objects in their colours."""
        mask = self._mask(name)
        if self.target.task == "binary":
            plane = mask[..., 0]
            grey = np.where(plane == 1, 255, np.where(plane == 0, 0, 110)).astype(np.uint8)
            picture = np.repeat(grey[..., None], 3, axis=2)
        else:
            picture = self._coloured(np.zeros((*mask.shape[:2], 3), np.uint8), mask, strength=1)
        return Shown(name, data_uri(_small(picture, exact=True)), note)

    def overlay(self, name: str, note: str = "", only: int | None = None) -> Shown:
        """Return a training image with its true mask, or one class alone, in green, or its classes in colours."""
        rgb, mask = self._rgb(("train", name)), self._mask(name)
        if only is not None:
            plane = (
                mask[..., 0] == only
                if self.target.exclusive
                else np.asarray(foreground_pixels(mask[..., only]))
            )
            return Shown(name, jpeg_uri(_outlined(_small(rgb), plane)), note)
        if self.target.task == "binary":
            return Shown(name, jpeg_uri(_outlined(_small(rgb), mask[..., 0] == 1)), note)
        if self.target.task == "instances":
            return Shown(name, jpeg_uri(_outlined(_small(rgb), mask[..., 0])), note)
        return Shown(name, jpeg_uri(_small(self._coloured(rgb, mask, strength=0.5))), note)

    def any(self, place: Place, note: str = "") -> Shown:
        """Return a test image as it is, a training image with its mask."""
        return self.image(place, note) if place[0] == "test" else self.overlay(place[1], note)

    def joined(self, pair: Pair) -> Shown:
        """Return two neighbouring tiles as one picture."""
        pictures = [_small(self._rgb(place)) for place in (pair.first, pair.second)]
        whole = np.concatenate(pictures, axis=1 if pair.lies == "beside" else 0)
        return Shown(f"{pair.first[1]} + {pair.second[1]}", jpeg_uri(whole), pair.lies)

    def _image(self, place: Place) -> Image:
        return thinned(self.train if place[0] == "train" else self.test, place[1], _PIXELS)

    def _rgb(self, place: Place) -> RGB:
        return to_rgb(self._image(place))

    def _mask(self, name: str) -> Shaped[np.ndarray, "h w c"]:
        return thinned(self.masks, name, _PIXELS)

    def _coloured(self, rgb: RGB, mask: Shaped[np.ndarray, "h w c"], *, strength: float) -> RGB:
        colours = class_colours(self.target)
        if self.target.exclusive:
            lut = np.full((256, 3), 128, np.float32)
            lut[: len(colours)] = colours
            return _mixed(rgb, lut[mask[..., 0]], np.ones(mask.shape[:2], bool), strength)
        if self.target.task == "instances":
            labels = mask[..., 0]
            hue = np.maximum(labels, 0).astype(np.float64) * 180 * 0.618034 % 180
            hsv = np.stack([hue, np.full(hue.shape, 170), np.full(hue.shape, 240)], axis=2).astype(np.uint8)
            return _mixed(rgb, cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).astype(np.float32), labels > 0, strength)
        there = mask == 1
        count = there.sum(axis=-1)
        tint = there.astype(np.float32) @ colours.astype(np.float32) / np.maximum(count, 1)[..., None]
        return _mixed(rgb, tint, count > 0, strength)


def _mixed(
    rgb: RGB, tint: Shaped[np.ndarray, "h w 3"], where: Bool[np.ndarray, "h w"], strength: float
) -> RGB:
    mixed = rgb * (1 - strength) + tint * strength
    return np.rint(np.where(where[..., None], mixed, rgb)).astype(np.uint8)


def _outlined(rgb: Small, mask: Shaped[np.ndarray, "_ _"]) -> Small:
    """Return a small picture with a mask in green and the outline of each object; the mask may be larger."""
    height, width = rgb.shape[:2]
    rows = (np.arange(height) * 2 + 1) * mask.shape[0] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * mask.shape[1] // (2 * width)
    small = np.where(mask > 0, mask, 0)[np.ix_(rows, columns)].astype(np.int32)
    inside = small > 0
    found = _mixed(rgb, np.broadcast_to(_GREEN, rgb.shape), inside, 0.3)
    edge = np.zeros(inside.shape, bool)
    edge[1:] |= small[1:] != small[:-1]
    edge[:, 1:] |= small[:, 1:] != small[:, :-1]
    edge[:-1] |= (small[:-1] != small[1:]) & inside[:-1]
    edge[:, :-1] |= (small[:, :-1] != small[:, 1:]) & inside[:, :-1]
    found[edge & inside] = _EDGE
    return found


def _small(rgb: Small, *, exact: bool = False) -> Small:
    """Return a picture of at most SIDE pixels a side, and at least LEAST; ``exact`` keeps its colours."""
    longest = max(rgb.shape[:2])
    if longest > SIDE:
        size = [max(1, round(length * SIDE / longest)) for length in rgb.shape[1::-1]]
        shrunk = cv2.resize(rgb, size, interpolation=cv2.INTER_NEAREST if exact else cv2.INTER_AREA)
        return np.asarray(shrunk, np.uint8)
    times = max(1, -(-LEAST // longest))
    return np.ascontiguousarray(rgb.repeat(times, axis=0).repeat(times, axis=1))
