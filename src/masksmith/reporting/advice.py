"""Advice on a data set in plain words, each with the key of a recipe that follows it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from masksmith.core.arrays import Float
from masksmith.data.catalog import BACKGROUND
from masksmith.data.columns import Column
from masksmith.data.groups import Likeness
from masksmith.data.shift import Shift
from masksmith.data.tally import MaskTally, area_quantiles
from masksmith.data.target import Target

MOSTLY_EMPTY = 0.3
SMALL_OBJECT = 100
"""Pixels of a median object, below which a smaller scale of the first stages loses it."""
LARGE_SIDE = 768
RARE_TIMES = 50
"""A class that is so many times rarer than the commonest one."""
FEW_IMAGES = 200
_UPRIGHT = 0.3  # difference of the mean masks and their mirror images upside down, 0…1
_LEAST_RELATED = 0.1  # rank correlation of a column with the coverage


@dataclass(frozen=True)
class Advice:
    """What the data suggest, and what to try, to be judged out of fold like everything else."""

    text: str
    settings: list[str]
    """KEY=VALUE of a recipe, each for a ``--set``."""


def advise(
    target: Target,
    sizes: Sequence[tuple[int, int]],
    masks: MaskTally,
    columns: Sequence[Column],
    shift: Shift | None,
    alike: Likeness,
) -> list[Advice]:
    """Return what the numbers of a data set suggest.

    Args:
        target: Task and classes.
        sizes: Height and width of each training image.
        masks: What the masks hold.
        columns: Of the side tables.
        shift: How well training and test images are told apart; None: not known.
        alike: Which images are alike.
    """
    found = [
        *_empty(masks),
        *_rare(target, masks),
        *_small_objects(target, masks),
        *_large(sizes),
        *_flips(masks),
        *_columns(columns, masks),
        *_few(masks),
    ]
    if shift is not None and shift.is_worth_saying:
        text = (
            f"Test images look unlike training images (AUC {shift.auc:.2f}). Hold out the training images that look "
            "most like the test set, so that the score says something about it."
        )
        settings = ["folds.stratify=like_test", "folds.holdout_frac=0.2", "folds.count=2", "folds.train=1"]
        found.insert(0, Advice(text, settings))
    if alike.neighbours.sure:
        text = (
            f"{len(alike.neighbours.pairs)} pairs of tiles lie side by side in larger pictures. If the test images "
            "come from other pictures, keep neighbours in one fold; if from the same ones, leave the folds as they are."
        )
        found.append(Advice(text, ["folds.group_by=neighbours()"]))
    num_test = len(alike.seen) - alike.num_train
    if num_test > alike.num_train and not (shift is not None and shift.is_worth_saying):
        text = (
            f"There are {num_test:,} images without masks and {alike.num_train:,} with masks, and they look alike: "
            "once a model is good, a student that also learns from its labels may be better; `masksmith pseudo PROJECT`"
            " tries it, and keeps it only if it is."
        )
        found.append(Advice(text, []))
    return found


def _empty(masks: MaskTally) -> list[Advice]:
    empty = float((masks.coverage == 0).mean())
    if empty < MOSTLY_EMPTY:
        return []
    text = (
        f"{empty:.0%} of the images have an empty mask. Show images with foreground more often in the first epochs, "
        'and let a second output answer "is there anything?".'
    )
    return [Advice(text, ["training.sampler.name=non_empty", "model.image_head=avg"])]


def _rare(target: Target, masks: MaskTally) -> list[Advice]:
    there = masks.shares[masks.shares > 0]
    if len(target.classes) < 2 or len(there) < 2 or there.max() < RARE_TIMES * there.min():
        return []
    rarest = int(np.where(masks.shares > 0, masks.shares, np.inf).argmin())
    text = (
        f"{masks.names[rarest]!r} has {masks.shares[rarest]:.2%} of the pixels, the commonest class "
        f"{there.max() / there.min():,.0f} times as many. Train on windows that are centred on each class in turn; the "
        "cross-entropy alone would learn the common classes."
    )
    return [Advice(text, ["training.crop_hw=[256,256]", "training.augment.positive_windows=0.5"])]


def _small_objects(target: Target, masks: MaskTally) -> list[Advice]:
    if len(target.classes) > 1:  # the slivers of class maps are no objects
        return []
    quantiles = area_quantiles(masks.areas[0], (0.05, 0.5))
    if not quantiles or quantiles[1] >= SMALL_OBJECT:
        return []
    low, middle = quantiles
    text = (
        f"Half of the objects have at most {middle:,} pixels, one in twenty at most {low:,}. Train at full scale from "
        "the first stage: a smaller scale loses them."
    )
    more = [f"tuning.min_object_areas=[0,{low}]"] if target.task == "instances" and low > 1 else []
    return [Advice(text, ["training.stages.0.scale=1.0", *more])]


def _large(sizes: Sequence[tuple[int, int]]) -> list[Advice]:
    largest = max(sizes, key=max)
    if max(largest) <= LARGE_SIDE:
        return []
    text = (
        f"Images have up to {largest[0]} x {largest[1]} pixels. Train on windows and predict on overlapping tiles; a "
        "whole image needs much memory, and a smaller one loses detail."
    )
    return [Advice(text, ["training.crop_hw=[512,512]", "prediction.tile_hw=[1024,1024]"])]


def _flips(masks: MaskTally) -> list[Advice]:
    """Say where masks lie higher or lower as a rule; little is known of few images."""
    kinds = [at for at, name in enumerate(masks.names) if name != BACKGROUND]
    grid = np.asarray(masks.mean_masks[kinds])
    filled = int((masks.coverage > 0).sum())
    if filled < 100:
        return []
    differs = _difference(grid, grid[:, ::-1])
    if differs > _UPRIGHT:
        text = (
            "What is looked for lies higher or lower in the image as a rule (see the mean mask): up and down mean "
            "something here. Do not flip images upside down."
        )
        return [Advice(text, ["training.geometry.vflip=0.0"])]
    return []


def _difference(one: Float[np.ndarray, "k h w"], other: Float[np.ndarray, "k h w"]) -> float:
    return float(np.abs(one - other).sum() / max(float((one + other).sum()), 1e-9))


def _columns(columns: Sequence[Column], masks: MaskTally) -> list[Advice]:
    coverage = dict(zip(masks.ids, masks.coverage.tolist(), strict=True))
    found = []
    for column in columns:
        if column.shifted:
            text = f"The column {column.name!r} differs between training and test images: do not give it to the model."
            found.append(Advice(text, ["model.scalars=[]"]))
        elif column.numeric and column.test and len(column.train) == len(masks.ids):
            related = related_to_coverage(column, coverage)
            if abs(related) >= _LEAST_RELATED:
                text = (
                    f"The coverage goes with the column {column.name!r} (rank correlation {related:+.2f}), which test "
                    "images have too. Give it to the model."
                )
                found.append(Advice(text, [f"model.scalars=[{column.name}]"]))
    return found


def related_to_coverage(column: Column, coverage: dict[str, float]) -> float:
    """Return Spearman's rank correlation of a column of numbers with the coverage; 0 where either is constant."""
    from scipy.stats import rankdata  # type: ignore[import-untyped]

    names = list(column.train)
    ranks = [
        rankdata(values)
        for values in ([column.train[one] for one in names], [coverage[one] for one in names])
    ]
    if min(one.std() for one in ranks) == 0:
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def _few(masks: MaskTally) -> list[Advice]:
    filled = int((masks.coverage > 0).sum())
    if filled >= FEW_IMAGES:
        return []
    text = (
        f"Only {filled} images have foreground. Begin with pretrained weights and change the images more in training; "
        "scores of so few images scatter, so look at their intervals."
    )
    return [Advice(text, ["model.encoder_weights=auto", "training.augment.strength=1.5"])]
