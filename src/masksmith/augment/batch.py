"""A training batch, made from the cache by counter: the same numbers give the same batch.

The order of one sample: flips and the other geometry (one warp), CLAHE and a callable of the user's on integers, the
look-up table to float32, the other intensity changes, cut-out. Then the batch is mixed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import cv2
import numpy as np

from masksmith.augment.appearance import apply_looks, clahe, draw_looks, has_looks
from masksmith.augment.geometry import (
    GeometryConfig,
    Motion,
    draw_affine,
    draw_more,
    inverse_of,
    motion_matrix,
    scale_geometry,
    unturn,
)
from masksmith.augment.intensity import IntensityConfig, Table, apply_table, draw_table, scale_intensity
from masksmith.augment.mixing import Batch, MixingConfig, mix
from masksmith.augment.object_planes import object_planes
from masksmith.augment.sampling import (
    AugmentConfig,
    CallableAugment,
    class_of,
    draw_focus,
    draw_place,
    places_by_class,
    strengths_by_frequency,
)
from masksmith.augment.warp import warp
from masksmith.core.arrays import IGNORE, AnyMask, Float, Image, Int, UInt8
from masksmith.core.errors import InputError
from masksmith.core.randomness import stream
from masksmith.data.store import Arrays, Stored
from masksmith.preprocess import TRUE_SIZE, SizeConfig

_LARGE_PX = (
    2**18
)  # pixels of an image above which it is read in parts; the checksum of the whole is compared once
_AGAIN, _FOCUS, _CUSTOM, _LOOKS, _MIXING, _CROP, _SOFT = range(
    7
)  # numbers of the random streams besides a sample's own


class Drawn(Stored):
    """A mask that is drawn from probabilities 0…255: foreground is what lies above a level, of which 0…255 is drawn.

    Each pixel is foreground as often as its probability says, those of one draw together.
    """

    def __init__(self, store: Arrays, name: str, level: float = 0.0) -> None:
        super().__init__(store, name, flat=True)
        self.level = level

    def __getitem__(self, part: tuple[slice, slice]) -> UInt8[np.ndarray, "h w"]:
        return (super().__getitem__(part) > self.level).astype(np.uint8)


@dataclass(frozen=True)
class Task:
    """What batches of one training stage are made from."""

    images: Arrays
    masks: Arrays
    geometry: GeometryConfig
    intensity: IntensityConfig
    canvas_hw: tuple[int, int]
    scale: float
    """Zoom of the stage, on top of the size rule."""
    size: SizeConfig = TRUE_SIZE
    scalars: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Id -> numbers for the model; empty where it takes none."""
    mixing: MixingConfig = field(default_factory=MixingConfig)
    strength: float = 1.0
    """Factor on the ranges of geometry and intensity."""
    strengths: Mapping[str, float] = field(default_factory=dict)
    """Id -> a further factor (``strengths_by_frequency``); 1 where an id is missing."""
    positive_windows: float = 0.0
    """Probability that a window is centred on foreground."""
    mirrored_from: int | None = None
    """Samples with this index or a higher one are mirror images; None: there are no copies."""
    custom: CallableAugment | None = None
    """A callable of the user's."""
    mirror: tuple[int, ...] = ()
    """The class that each class becomes in a mirror image; empty where none changes."""
    soft: Mapping[str, Drawn] = field(default_factory=dict)
    """Id -> its probabilities, where its mask is drawn from them anew each time."""
    places: dict[str, list[np.ndarray]] = field(default_factory=dict, compare=False)
    """Id -> pixels of each class of a large mask, remembered from the first time a window is centred on one."""

    def is_large(self, name: str) -> bool:
        """Whether only the part of an image and its mask that a window shows is read."""
        height, width = self.images.shape(name)
        return height * width > _LARGE_PX


@runtime_checkable
class Augmented(Protocol):
    """What ``check_augmentation`` reads: the training's configuration, or one like it."""

    @property
    def geometry(self) -> GeometryConfig: ...  # noqa: D102
    @property
    def intensity(self) -> IntensityConfig: ...  # noqa: D102
    @property
    def mixing(self) -> MixingConfig: ...  # noqa: D102
    @property
    def augment(self) -> AugmentConfig: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102


def check_augmentation(
    config: Augmented,
    *,
    channels: int,
    classes: int = 1,
    custom: CallableAugment | None = None,
    where: str = "training",
    batch_size: int | None = None,
) -> None:
    """Refuse an augmentation that these images cannot have; to be called when a recipe is resolved.

    Args:
        config: The training's configuration.
        channels: Channels of the images.
        classes: Classes of the model: 1 where a mask is foreground or not.
        custom: The callable that was given.
        where: Path of what has the geometry and the intensity, for messages: a stage may have its own.
        batch_size: Images a batch; None: those of the configuration.

    Raises:
        InputError: HSV without three channels, a shuffle of one, mixing in batches of one, a strength that leaves a
            range, or a callable's name without the callable.
    """
    assert classes >= 1, classes
    if config.intensity.hsv.probability and channels != 3:
        raise InputError(
            f"{where}.intensity.hsv.probability: {config.intensity.hsv.probability:g} needs images of 3 channels, "
            f"these have {channels}; set it to 0, or use channel_scale"
        )
    if config.intensity.channel_shuffle and channels == 1:
        raise InputError(
            f"{where}.intensity.channel_shuffle: {config.intensity.channel_shuffle:g} has nothing to shuffle: "
            "the images have 1 channel; set it to 0"
        )
    size = config.batch_size if batch_size is None else batch_size
    if config.mixing.is_on and size < 2:
        raise InputError(
            f"training.mixing: a batch of {size} image has no partner to mix with; "
            "set the batch_size in force (training's, or the stage's own) to 2 or more, or the probabilities to 0"
        )
    strength, own = config.augment.strength, "" if where == "training" else f", with the ranges of {where}"
    scale_geometry(config.geometry, strength, where=f"training.augment.strength{own}")
    scale_intensity(config.intensity, strength, where=f"training.augment.strength{own}")
    _check_custom(config.augment.custom, custom)


def _check_custom(name: str | None, custom: CallableAugment | None) -> None:
    given = None if custom is None else custom.name
    if name != given:
        raise InputError(
            f"training.augment.custom: the recipe names {name!r}, the callable given from Python is {given!r}; "
            "they must be the same, or neither there"
        )


def build_task(
    config: Augmented,
    *,
    images: Arrays,
    masks: Arrays,
    ids: Sequence[str],
    canvas_hw: tuple[int, int],
    scale: float = 1.0,
    size: SizeConfig = TRUE_SIZE,
    scalars: Mapping[str, Sequence[float]] | None = None,
    custom: CallableAugment | None = None,
    mirror: tuple[int, ...] = (),
    soft: Mapping[str, Drawn] | None = None,
) -> Task:
    """Return the task of a training stage, with what depends on the training set (copies, class frequencies).

    Args:
        config: The training's configuration (of the stage, where it has its own).
        images: The images.
        masks: Their masks.
        ids: The training images of the fold, in the order that indices count.
        canvas_hw: Height and width that is trained at.
        scale: Zoom of the stage.
        size: The size rule.
        scalars: Id -> numbers for the model.
        custom: The callable that ``augment.custom`` names.
        mirror: The class that each class becomes in a mirror image.
        soft: Id -> its probabilities, where its mask is drawn from them.

    Raises:
        InputError: As check_augmentation.
    """
    augment = config.augment
    check_augmentation(config, channels=images.channels, custom=custom)
    strengths: dict[str, float] = {}
    if augment.rare_power:
        classes = {name: class_of(masks[name]) for name in ids}
        strengths = strengths_by_frequency(classes, augment.rare_power)
    return Task(
        images,
        masks,
        config.geometry,
        config.intensity,
        canvas_hw,
        scale,
        size,
        scalars or {},
        mixing=config.mixing,
        strength=augment.strength,
        strengths=strengths,
        positive_windows=augment.positive_windows,
        mirrored_from=len(ids) if augment.append_flips else None,
        custom=custom,
        mirror=mirror,
        soft=soft or {},
    )


def _place(task: Task, name: str, index: int, key: tuple[int, ...], drawn: Motion) -> Motion:
    """Return the motion with what depends on more than its draws: the window, and the mirrored copy."""
    if task.mirrored_from is not None and index >= task.mirrored_from:
        drawn = replace(drawn, hflip=not drawn.hflip)
    if task.positive_windows:
        drawn = replace(drawn, focus=_draw_focus(task, name, stream(*key, _FOCUS)))
    return drawn


def _draw_focus(task: Task, name: str, rng: np.random.Generator) -> tuple[float, float] | None:
    if not task.is_large(name):
        return draw_focus(_mask_of(task, name), task.positive_windows, rng)
    if name not in task.places:
        task.places[name] = places_by_class(_mask_of(task, name))
    return draw_place(task.places[name], task.masks.shape(name), task.positive_windows, rng)


def _mask_of(task: Task, name: str) -> AnyMask:
    mask = task.masks.checked(name)
    return mask[..., 0] if mask.shape[2] == 1 else mask


def _draw(task: Task, name: str, index: int, key: tuple[int, ...]) -> tuple[Motion, IntensityConfig, Table]:
    """Draw the geometry of a sample and its look-up table, and return its intensity ranges."""
    rng = stream(*key)
    strength = task.strength * task.strengths.get(name, 1.0)
    geometry, intensity = scale_geometry(task.geometry, strength), scale_intensity(task.intensity, strength)
    affine = draw_affine(geometry, rng)
    table = draw_table(intensity, rng, max_value=int(np.iinfo(task.images.dtype).max))
    return _place(task, name, index, key, draw_more(geometry, affine, rng)), intensity, table


def mirror_classes(mask: UInt8[np.ndarray, "h w *k"], mirror: Sequence[int]) -> UInt8[np.ndarray, "h w *k"]:
    """Return a class map, or the layers of several labels, with the classes that a mirror image has."""
    if mask.ndim == 3:
        return mask[..., list(mirror)]
    table = np.arange(IGNORE + 1, dtype=np.uint8)
    table[: len(mirror)] = mirror
    return table[mask]


def _read(task: Task, name: str, key: tuple[int, ...]) -> tuple[Image | Stored, AnyMask | Stored]:
    """Return an image and its mask; of large ones only what is looked at will be read."""
    large, image, mask = task.is_large(name), task.images, task.masks
    if (soft := task.soft.get(name)) is not None:
        drawn = Drawn(soft.store, soft.name, stream(*key, _SOFT).random() * 255)
        height, width = drawn.shape
        whole = slice(0, height), slice(0, width)
        return (Stored(image, name), drawn) if large else (image.checked(name), drawn[whole])
    if not large:
        return image.checked(name), _mask_of(task, name)
    return Stored(image, name), Stored(mask, name, flat=mask.channels == 1)


def _window(task: Task, name: str, key: tuple[int, ...]) -> tuple[slice, slice]:
    """Draw the window that ``size.chain`` crops of an image; the whole where it crops none."""
    hw = task.images.shape(name)
    inner = task.size.window_hw(hw)
    rng = stream(*key, _CROP)
    top, left = (
        int(rng.integers(whole - part, endpoint=True)) for whole, part in zip(hw, inner, strict=True)
    )
    return slice(top, top + inner[0]), slice(left, left + inner[1])


def _make_sample(
    task: Task, name: str, index: int, key: tuple[int, ...], target: Float[np.ndarray, "h w c"]
) -> UInt8[np.ndarray, "h w *k"]:
    """Write one image into ``target`` and return its mask; ``key`` are the counters of its draws."""
    motion, intensity, table = _draw(task, name, index, key)
    image, mask = _read(task, name, key)
    if task.size.crop is not None:
        window = _window(task, name, key)
        image, mask = image[window], mask[window]
    image, mask = warp(
        image,
        mask,
        motion,
        canvas_hw=task.canvas_hw,
        zoom_yx=task.size.zoom_yx((image.shape[0], image.shape[1]), task.scale),
        border=task.size.border,
    )
    if task.mirror and motion.is_mirrored:
        mask = mirror_classes(mask, task.mirror)
    looks = draw_looks(intensity, stream(*key, _LOOKS)) if has_looks(intensity) else {}
    if "clahe" in looks:
        image = clahe(image, intensity.clahe, looks["clahe"])
    if task.custom is not None:
        image, mask = task.custom(image, mask, stream(*key, _CUSTOM))
    apply_table(table, image, target)
    if mask.dtype == np.int32:
        mask = object_planes(mask)
    apply_looks(target, mask, intensity, looks)
    return mask


def add_seen(
    coverage: Int[np.ndarray, "h w"],
    task: Task,
    name: str,
    index: int,
    *,
    counters: tuple[int, ...],
    seen: int = 0,
) -> None:
    """Add 1 to the pixels of an image that a sample of ``make_batch`` shows; distortions are left out.

    Args:
        coverage: How often each pixel was looked at so far; changed in place.
        task: Where the sample comes from.
        name: Its id.
        index: Its position in the training set.
        counters: As for make_batch.
        seen: How often the index came before in the epoch.
    """
    key = _key(counters, index, seen)
    motion, *_ = _draw(task, name, index, key)
    coverage = coverage[_window(task, name, key)]
    hw = (coverage.shape[0], coverage.shape[1])
    matrix = motion_matrix(motion, hw, task.canvas_hw, zoom_yx=task.size.zoom_yx(hw, task.scale))
    right, bottom = task.canvas_hw[1] - 1, task.canvas_hw[0] - 1
    corners = np.array([(0, 0, 1), (right, 0, 1), (right, bottom, 1), (0, bottom, 1)], np.float64)
    x, y, depth = unturn(motion, hw) @ inverse_of(matrix) @ corners.T
    looked = np.zeros(hw, np.uint8)
    if (depth <= 0).any():  # beyond the horizon
        looked[:] = 1
    else:
        cv2.fillConvexPoly(looked, np.rint(np.stack([x / depth, y / depth], axis=1)).astype(np.int32), 1)
    coverage += looked


def _key(counters: tuple[int, ...], index: int, seen: int) -> tuple[int, ...]:
    """Return the counters of a sample's draws; one that comes for the first time has none for its turn."""
    return (*counters, index, _AGAIN, seen) if seen else (*counters, index)


def make_batch(
    task: Task,
    names: Sequence[str],
    indices: Sequence[int],
    *,
    counters: tuple[int, ...],
    seen: Sequence[int] | None = None,
) -> Batch:
    """Make a batch.

    A sample depends on the counters, its index and how often that came before, not on its batch; if images are mixed,
    on the batch too, whose draws belong to its first sample (an index comes for the n-th time once an epoch). A batch
    of one image, the rest of a small training set, is left unmixed.

    Args:
        task: Where the images come from and how they are changed.
        names: Ids of the images.
        indices: Position of each image in the training set: the last counter of its draws.
        counters: (seed, fold, stage, epoch).
        seen: How often each index came before in the epoch; None: never.

    Raises:
        InputError: An image or mask was damaged since it was written, or a callable returned another form.
    """
    turns = [0] * len(names) if seen is None else seen
    keys = [_key(counters, int(index), int(turn)) for index, turn in zip(indices, turns, strict=True)]
    target = np.empty((len(names), *task.canvas_hw, task.images.channels), np.float32)
    masks = [
        _make_sample(task, name, int(index), key, image)
        for name, index, key, image in zip(names, indices, keys, target, strict=True)
    ]
    scalars = np.array([task.scalars[name] for name in names], np.float32) if task.scalars else None
    # (b, h, w, c) -> (b, c, h, w): a view, channels-last already
    batch = Batch(target.transpose(0, 3, 1, 2), np.stack(masks), scalars)
    if task.mixing.is_on and len(names) > 1:
        batch = mix(batch, task.mixing, stream(*keys[0], _MIXING))
    return batch
