"""A training batch, made from the cache by counter: the same numbers give the same batch."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from masksmith.arrays import Float, UInt8
from masksmith.augment.geometry import GeometryConfig, draw_motion, warp
from masksmith.augment.intensity import IntensityConfig, draw_table
from masksmith.data.store import Store
from masksmith.randomness import stream


@dataclass(frozen=True)
class Batch:
    """Images in 0…1 (a little beyond after augmentation) and their masks."""

    image: Float[np.ndarray, "b c h w"]
    mask: UInt8[np.ndarray, "b h w"]


@dataclass(frozen=True)
class Task:
    """What batches of one training stage are made from."""

    images: Store
    masks: Store
    geometry: GeometryConfig
    intensity: IntensityConfig
    canvas_hw: tuple[int, int]
    scale: float


def make_batch(
    task: Task, names: Sequence[str], indices: Sequence[int], *, counters: tuple[int, ...]
) -> Batch:
    """Make a batch.

    Args:
        task: Where the images come from and how they are changed.
        names: Ids of the images.
        indices: Position of each image in the training set: the last counter of its draws.
        counters: (seed, stage, epoch).

    Raises:
        InputError: An image or mask was damaged since it was written.
    """
    max_value = int(np.iinfo(task.images.dtype).max)
    images, masks = [], []
    for name, index in zip(names, indices, strict=True):
        rng = stream(*counters, int(index))
        motion = draw_motion(task.geometry, rng)
        table = draw_table(task.intensity, rng, max_value=max_value)
        whole, drawn = task.images.checked(name), task.masks.checked(name)[..., 0]
        image, mask = warp(whole, drawn, motion, canvas_hw=task.canvas_hw, scale=task.scale)
        images.append(table[image])
        masks.append(mask)
    stacked = np.stack(images)  # (b, h, w, c): viewed as (b, c, h, w) it is channels-last already
    return Batch(stacked.transpose(0, 3, 1, 2), np.stack(masks))
