"""A training batch, made from the cache by counter: the same numbers give the same batch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from masksmith.arrays import Float, UInt8
from masksmith.augment.geometry import GeometryConfig, draw_motion, warp
from masksmith.augment.intensity import IntensityConfig, draw_table
from masksmith.data.store import Store
from masksmith.preprocess import TRUE_SIZE, SizeConfig
from masksmith.randomness import stream


@dataclass(frozen=True)
class Batch:
    """Images in 0…1 (a little beyond after augmentation) and their masks."""

    image: Float[np.ndarray, "b c h w"]
    mask: UInt8[np.ndarray, "b h w"]
    scalars: Float[np.ndarray, "b s"] | None = None
    """Numbers that go with each image (a depth), as they stand in the table; the model standardises them."""
    other_mask: UInt8[np.ndarray, "b h w"] | None = None
    """Masks of what was mixed in: the loss is share · loss(mask) + (1 - share) · loss(other_mask)."""
    share: float = 1.0
    """Weight of ``mask``, 0…1."""


@dataclass(frozen=True)
class Task:
    """What batches of one training stage are made from."""

    images: Store
    masks: Store
    geometry: GeometryConfig
    intensity: IntensityConfig
    canvas_hw: tuple[int, int]
    scale: float
    """Zoom of the stage, on top of the size rule."""
    size: SizeConfig = TRUE_SIZE
    scalars: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Id -> numbers for the model; empty where it takes none."""


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
        image, mask = warp(
            whole,
            drawn,
            motion,
            canvas_hw=task.canvas_hw,
            zoom_yx=task.size.zoom_yx(drawn.shape, task.scale),
            border=task.size.border,
        )
        images.append(table[image])
        masks.append(mask)
    stacked = np.stack(images)  # (b, h, w, c): viewed as (b, c, h, w) it is channels-last already
    scalars = np.array([task.scalars[name] for name in names], np.float32) if task.scalars else None
    return Batch(stacked.transpose(0, 3, 1, 2), np.stack(masks), scalars)
