"""A few numbers of an image by which one that is unlike the training set is found."""

from collections.abc import Mapping

import numpy as np

from masksmith.core.arrays import Image
from masksmith.data.array_store import Images

_SIDE = 512
MARGIN = 0.25
"""An image is unlike the training set where a number lies further beyond its range there than this share of it."""


def thinned(images: Images, name: str, step: int) -> Image:
    """Return every ``step``-th row and column of an image, reading no others."""
    height, width = images.shape(name)
    if step == 1:
        return images[name]
    lines = (images.window(name, slice(row, row + 1), slice(0, width)) for row in range(0, height, step))
    return np.concatenate([line[:, ::step] for line in lines])


def features(images: Images, name: str) -> dict[str, float]:
    """Return size, and darkness, brightness and fine detail of each band; NaN does not count."""
    height, width = images.shape(name)
    values = thinned(images, name, max(1, min(height, width) // _SIDE)).astype(np.float32)
    values[~np.isfinite(values)] = np.nan
    found = {"height": float(height), "width": float(width)}
    if np.isnan(values).all():
        return found
    for band in range(values.shape[2]):
        plane = values[..., band]
        if np.isnan(plane).all():
            continue
        low, middle, high = np.nanpercentile(plane, (2, 50, 98))
        found |= {f"band {band} dark": low, f"band {band} middle": middle, f"band {band} bright": high}
        if min(plane.shape) > 1:
            found[f"band {band} detail"] = float(np.nanmean(np.abs(np.diff(plane, axis=1))))
    return {name: float(value) for name, value in found.items()}


def widen(ranges: dict[str, list[float]], found: Mapping[str, float]) -> None:
    """Widen ranges so that they hold an image's numbers."""
    for name, value in found.items():
        low, high = ranges.get(name, [value, value])
        ranges[name] = [min(low, value), max(high, value)]


def unlike(found: Mapping[str, float], ranges: Mapping[str, list[float]]) -> list[str]:
    """Return what of an image lies far outside the training set, in words."""
    said = []
    for name, value in found.items():
        if name not in ranges:
            continue
        low, high = ranges[name]
        margin = MARGIN * max(high - low, 0.1 * max(abs(low), abs(high)), 1e-6)
        if not low - margin <= value <= high + margin:
            said.append(f"{name} {value:.4g} (training {low:.4g} to {high:.4g})")
    return said
