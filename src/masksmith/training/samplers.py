"""Samplers: which images an epoch is made of, drawn by counter. A dict of pure functions.

Sources:
    Class-aware sampling: Shen et al. 2015, https://arxiv.org/abs/1512.05830
    Sliding share of non-empty images: first place of SIIM-ACR Pneumothorax, 0.8 → 0.4
    Curriculum: Bengio et al. 2009, https://doi.org/10.1145/1553374.1553380
    The worst batch again: Statoil/C-CORE Iceberg, second place, 1 of 10

Images that are drawn more often than once go through a permutation of their pool before one comes again, so that no
image of a pool is seen twice as often as another by chance.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from masksmith.core.arrays import Float, Int, judged_pixels
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.data.store import Arrays
from masksmith.folds.table import coverage_class
from masksmith.training.config import SamplerConfig

Order = Int[np.ndarray, " drawn"]
Pool = Int[np.ndarray, " pool"]


@dataclass(frozen=True)
class ImageFacts:
    """What samplers know of the training images, in the order of their ids."""

    coverage: Float[np.ndarray, " n"]
    """Foreground of the pixels that are not ignored, 0…1."""
    classes: Int[np.ndarray, " n"]
    """Coverage class 0 (empty) … 10."""


def image_facts(masks: Arrays, ids: list[str]) -> ImageFacts:
    """Read the coverage of every image from its mask; every judged value but 0 is foreground."""
    coverage, classes = np.zeros(len(ids)), np.zeros(len(ids), np.int64)
    for at, name in enumerate(ids):
        mask = masks[name]
        counted = int(judged_pixels(mask).sum())
        foreground = counted - int((mask == 0).sum())
        coverage[at] = foreground / max(1, counted)
        classes[at] = coverage_class(foreground, counted)
    return ImageFacts(coverage, classes)


def class_pixels(masks: Arrays, ids: list[str], classes: int) -> list[int]:
    """Count the judged pixels of each class in class maps."""
    counts = np.zeros(classes, np.int64)
    for name in ids:
        counts += np.bincount(masks[name].ravel(), minlength=classes)[:classes]
    return counts.tolist()


@dataclass(frozen=True)
class Draw:
    """What an epoch's images are drawn from."""

    facts: ImageFacts
    losses: Float[np.ndarray, " n"]
    """Loss of each image when it was last seen before this epoch; infinite where it never was."""
    stage_at: float
    """Where the epoch lies in its stage, 0…1."""
    rng: np.random.Generator

    @property
    def count(self) -> int:
        """Images to draw: as many as there are."""
        return len(self.facts.classes)


def _in_turn(pool: Pool, count: int, rng: np.random.Generator) -> Order:
    """Draw ``count`` of a pool: one permutation of it after the other."""
    if not count:
        return np.zeros(0, np.int64)
    return np.concatenate([rng.permutation(pool) for _ in range(-(-count // len(pool)))])[:count]


def _by_class(draw: Draw, shares: Float[np.ndarray, " classes"]) -> Order:
    """Draw a class by ``shares`` for each place, then images of the class in turn."""
    drawn = draw.rng.choice(len(shares), size=draw.count, p=shares / shares.sum())
    order = np.zeros(draw.count, np.int64)
    for number in np.unique(drawn):
        places = drawn == number
        order[places] = _in_turn(np.flatnonzero(draw.facts.classes == number), int(places.sum()), draw.rng)
    return order


def plain(config: SamplerConfig, draw: Draw) -> Order:
    """Every image once."""
    del config
    return draw.rng.permutation(draw.count)


def class_aware(config: SamplerConfig, draw: Draw) -> Order:
    """A coverage class uniformly among those that there are, then an image of it."""
    del config
    return _by_class(draw, (np.bincount(draw.facts.classes, minlength=11) > 0).astype(np.float64))


def weighted(config: SamplerConfig, draw: Draw) -> Order:
    """Images with probabilities in proportion to the weights of their coverage classes."""
    assert config.class_weights is not None
    return _by_class(draw, np.bincount(draw.facts.classes, minlength=11) * np.array(config.class_weights))


def non_empty(config: SamplerConfig, draw: Draw) -> Order:
    """A share of images with foreground that moves in a line over the stage; the others are empty."""
    first, last = config.non_empty_frac
    share = first + (last - first) * draw.stage_at
    with_foreground = round(share * draw.count)
    filled = _in_turn(np.flatnonzero(draw.facts.classes > 0), with_foreground, draw.rng)
    empty = _in_turn(np.flatnonzero(draw.facts.classes == 0), draw.count - with_foreground, draw.rng)
    return draw.rng.permutation(np.concatenate([filled, empty]))


def curriculum(config: SamplerConfig, draw: Draw) -> Order:
    """Images of the easiest share, which grows in a line over the stage to all; equal ones in a drawn order."""
    difficulty = draw.losses if config.by == "loss" else -draw.facts.coverage
    share = config.start_frac + (1 - config.start_frac) * draw.stage_at
    if config.by == "loss" and np.isinf(difficulty).all():
        share = 1.0  # nothing is known yet
    ties = draw.rng.permutation(draw.count)
    easiest = ties[np.argsort(difficulty[ties], kind="stable")][: max(1, round(share * draw.count))]
    return _in_turn(easiest, draw.count, draw.rng)


SAMPLERS: dict[str, Callable[[SamplerConfig, Draw], Order]] = {
    "class_aware": class_aware,
    "curriculum": curriculum,
    "non_empty": non_empty,
    "plain": plain,
    "weighted": weighted,
}


def draw_order(config: SamplerConfig, draw: Draw) -> Order:
    """Return the positions of the images of an epoch, in the order of training."""
    return look_up(SAMPLERS, config.name, where="training.sampler.name")(config, draw)


def refuse_impossible(config: SamplerConfig, facts: ImageFacts, *, where: str) -> None:
    """Refuse a sampler that asks for images that are not there.

    Raises:
        InputError: It asks for empty images, images with foreground or classes that the fold does not have.
    """
    counts = np.bincount(facts.classes, minlength=11)
    if config.name == "non_empty":
        filled, empty = int(counts[1:].sum()), int(counts[0])
        if (max(config.non_empty_frac) > 0 and not filled) or (min(config.non_empty_frac) < 1 and not empty):
            raise InputError(
                f"{where}.non_empty_frac: {list(config.non_empty_frac)}, but of {len(facts.classes)} training images "
                f"{filled} have foreground and {empty} are empty; expected a share that they can give, or 'plain'"
            )
    if config.name == "weighted" and not (counts * np.array(config.class_weights)).sum():
        present = [int(number) for number in np.flatnonzero(counts)]
        raise InputError(
            f"{where}.class_weights: {config.class_weights} gives no weight to any coverage class that there is; "
            f"expected weights for {present}"
        )


def seen_before(order: Order) -> Order:
    """Return how often each place's image came at earlier places: 0 wherever every image comes once."""
    by_image = np.argsort(order, kind="stable")
    _, first, counts = np.unique(order[by_image], return_index=True, return_counts=True)
    seen = np.empty(len(order), np.int64)
    seen[by_image] = np.arange(len(order)) - np.repeat(first, counts)
    return seen


def is_repeat(step: int, repeat_worst_of: int | None) -> bool:
    """Whether a step of an epoch is the worst of the steps before it, made again."""
    return repeat_worst_of is not None and step % (repeat_worst_of + 1) == repeat_worst_of


def fresh_before(step: int, repeat_worst_of: int | None) -> int:
    """Return how many steps of an epoch before ``step`` were made of new batches."""
    return step - step // (repeat_worst_of + 1) if repeat_worst_of else step
