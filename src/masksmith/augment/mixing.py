"""Mixing of the images of a batch: copy-paste of objects, CutMix and mixup.

Sources: mixup, Zhang et al. 2018, https://arxiv.org/abs/1710.09412; CutMix, Yun et al. 2019,
https://arxiv.org/abs/1905.04899; simple copy-paste, Ghiasi et al. 2021, https://arxiv.org/abs/2012.07177 (objects are
here the connected components of a class, as semantic masks have no instances).

A mixed image depends on its batch, everything before on its own counters only. The draws come from a generator that
belongs to the step, so that a training that goes on makes the same batches.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from pydantic import Field, model_validator

from masksmith.augment.distortions import Probability
from masksmith.core.arrays import IGNORE, Float, UInt8
from masksmith.core.config import Config
from masksmith.core.errors import InputError

Masks = UInt8[np.ndarray, "b h w *k"]


@dataclass(frozen=True)
class Batch:
    """Images in 0…1 (a little beyond after augmentation) and their masks."""

    image: Float[np.ndarray, "b c h w"]
    mask: UInt8[np.ndarray, "b h w *k"]
    """Classes (b, h, w), or layers (b, h, w, k)."""
    scalars: Float[np.ndarray, "b s"] | None = None
    """Numbers of each image (such as a depth), as in the table; the model standardises them."""
    other_mask: UInt8[np.ndarray, "b h w *k"] | None = None
    """Masks of what was mixed in: the loss is share · loss(mask) + (1 - share) · loss(other_mask)."""
    share: float = 1.0
    """Weight of ``mask``, 0…1."""

    def of_rows(self, rows: Sequence[int]) -> "Batch":
        """Return the images of these rows, in their order; one may come twice."""
        at = list(rows)
        scalars, other = (None if one is None else one[at] for one in (self.scalars, self.other_mask))
        return Batch(self.image[at], self.mask[at], scalars, other, self.share)


class MixupConfig(Config):
    """Two images, added with weights λ and 1 - λ; so are the losses."""

    probability: Probability = 0.0
    """How often a batch is mixed."""
    alpha: float = Field(default=0.4, gt=0)
    """λ is drawn from Beta(alpha, alpha), one for the batch."""


class CutmixConfig(Config):
    """A rectangle of another image and its mask; the mask is mixed itself, so the loss stays as it is."""

    probability: Probability = 0.0
    """How often a batch is mixed."""
    alpha: float = Field(default=1.0, gt=0)
    """λ is drawn from Beta(alpha, alpha); the rectangle has 1 - λ of the area before it is cut at the edges."""


class CopyPasteConfig(Config):
    """Objects of another (augmented) image of the batch, pasted at their own place."""

    probability: Probability = 0.0
    """How often an image gets objects."""
    max_objects: int = Field(default=3, ge=1)
    """From 1 to this many objects are drawn without replacement (all, if there are fewer)."""
    min_area_px: int = Field(default=4, ge=1)
    """Objects with fewer pixels on the canvas are left where they are."""


class MixingConfig(Config):
    """How images of a batch are mixed; as it stands here they are not."""

    mixup: MixupConfig = MixupConfig()
    """The weighted mean of two images, with the loss of both masks."""
    cutmix: CutmixConfig = CutmixConfig()
    """A rectangle of another image, with its mask."""
    copy_paste: CopyPasteConfig = CopyPasteConfig()
    """Objects of another image, with their masks."""

    @model_validator(mode="after")
    def _one_of_two(self) -> "MixingConfig":
        total = self.mixup.probability + self.cutmix.probability
        if total > 1:
            raise ValueError(
                f"the probabilities of mixup and cutmix make {total:g}; a batch gets one of the two: expected 1 at most"
            )
        return self

    @property
    def is_on(self) -> bool:
        """Whether anything can be mixed."""
        return any((self.mixup.probability, self.cutmix.probability, self.copy_paste.probability))


def mix(batch: Batch, config: MixingConfig, rng: np.random.Generator) -> Batch:
    """Mix the images of a batch: objects are pasted first, then there is CutMix or mixup or neither.

    The partner of place i is place i + d, with d drawn for the batch: never i itself. Where a sampler drew an image
    more than once, both places can have it, augmented in two ways.

    Raises:
        InputError: Mixing is asked for, and the batch has one image.
    """
    if not config.is_on:
        return batch
    num = len(batch.image)
    if num < 2:
        raise InputError(
            "training.mixing: a batch of 1 image has no partner to mix with; give 2 or more, or no mixing"
        )
    partner = (np.arange(num) + int(rng.integers(1, num))) % num
    kind, pasted = rng.random(), rng.random(num) < config.copy_paste.probability
    paste_rng, mix_rng = rng.spawn(2)
    if pasted.any():
        batch = copy_paste(batch, config.copy_paste, paste_rng, partner=partner, chosen=pasted)
    if kind < config.cutmix.probability:
        return cutmix(batch, config.cutmix, mix_rng, partner=partner)
    if kind < config.cutmix.probability + config.mixup.probability:
        return mixup(batch, config.mixup, mix_rng, partner=partner)
    return batch


def _channels_last(image: Float[np.ndarray, "b c h w"]) -> Float[np.ndarray, "b c h w"]:
    """Return a copy of the images as a view of (b, h, w, c), the layout that batches have."""
    return np.array(image.transpose(0, 2, 3, 1), order="C").transpose(0, 3, 1, 2)


def mixup(batch: Batch, config: MixupConfig, rng: np.random.Generator, *, partner: np.ndarray) -> Batch:
    """Return λ · image + (1 - λ) · partner, with both masks and λ as ``share``; scalars are mixed alike."""
    share = float(rng.beta(config.alpha, config.alpha))
    weight = np.float32(share)
    scalars = batch.scalars
    return replace(
        batch,
        image=_channels_last(batch.image * weight + batch.image[partner] * (1 - weight)),
        scalars=None if scalars is None else scalars * weight + scalars[partner] * (1 - weight),
        other_mask=batch.mask[partner],
        share=share,
    )


def cutmix(batch: Batch, config: CutmixConfig, rng: np.random.Generator, *, partner: np.ndarray) -> Batch:
    """Return the batch with one rectangle of each partner, in image and mask; its centre is anywhere in the image."""
    height, width = batch.image.shape[2:]
    side = np.sqrt(1 - rng.beta(config.alpha, config.alpha))
    (top, bottom), (left, right) = (
        np.clip(np.rint(at * size + np.array([-0.5, 0.5]) * side * size), 0, size).astype(int)
        for at, size in zip(rng.random(2), (height, width), strict=True)
    )
    image, mask = _channels_last(batch.image), batch.mask.copy()
    image[:, :, top:bottom, left:right] = batch.image[partner, :, top:bottom, left:right]
    mask[:, top:bottom, left:right] = batch.mask[partner, top:bottom, left:right]
    return replace(batch, image=image, mask=mask)


def copy_paste(
    batch: Batch,
    config: CopyPasteConfig,
    rng: np.random.Generator,
    *,
    partner: np.ndarray,
    chosen: np.ndarray,
) -> Batch:
    """Return the batch with objects of its partner pasted into each chosen image, hard-edged.

    With layers an object is a component of one layer; where it lands all layers are those of the partner.
    """
    image, mask = _channels_last(batch.image), batch.mask.copy()
    for at in np.flatnonzero(chosen):
        seen = _draw_objects(batch.mask[partner[at]], config, rng)
        image[at][:, seen] = batch.image[partner[at]][:, seen]
        mask[at][seen] = batch.mask[partner[at]][seen]
    return replace(batch, image=image, mask=mask)


def _draw_objects(
    mask: UInt8[np.ndarray, "h w *k"], config: CopyPasteConfig, rng: np.random.Generator
) -> np.ndarray:
    """Return (h, w) of bool: the pixels of the drawn objects, none where there are none."""
    layers = [mask] if mask.ndim == 2 else list(cv2.split(mask))
    objects: list[np.ndarray] = []
    for layer in layers:
        for value in np.unique(layer):
            if value in (0, IGNORE):
                continue
            _, labels, stats, _ = cv2.connectedComponentsWithStats(
                (layer == value).view(np.uint8), connectivity=8
            )
            large = np.flatnonzero(stats[1:, cv2.CC_STAT_AREA] >= config.min_area_px) + 1
            objects += [labels == label for label in large]
    seen = np.zeros(mask.shape[:2], bool)
    if objects:
        count = min(len(objects), int(rng.integers(1, config.max_objects + 1)))
        for number in rng.choice(len(objects), count, replace=False):
            seen |= objects[number]
    return seen
