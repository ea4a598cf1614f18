"""How folds are made: the section ``folds`` of a recipe."""

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from masksmith.core.config import Config

ALL = 999
"""The "fold" of a training on all images: nothing is held out."""
NEIGHBOURS = "neighbours()"
"""Of ``group_by``: tiles whose edges continue each other."""
EVERY_GROUP = "groups()"
"""Of ``fold_by``: each group is a fold."""
_SIMILAR = re.compile(r"similar\(count=(\d{1,6})\)")


class FoldsConfig(Config):
    """How folds are made, and how many of them are trained."""

    count: int = Field(default=5, ge=2, le=100)
    """Number of folds, 2 to 100."""
    train: int | None = Field(default=None, ge=1)
    """Train only this many folds (the first ones, repeat after repeat); None trains all."""
    refit: bool = False
    """Whether one more training follows the folds: on all images, as long as theirs were (the median of their chosen
    epochs). It predicts test images only; no score can be honest about it."""
    repeats: int = Field(default=1, ge=1, le=20)
    """How often folds are made, with the seeds ``seed``, ``seed + 1`` …, 1 to 20: an image is held out once in each
    repeat, and its out-of-fold prediction is the mean over them. The second repeat begins with fold ``count``."""
    seed: int = Field(default=0, ge=0)
    """Seed of the assignment."""
    holdout_frac: float | None = Field(default=None, gt=0, lt=1)
    """One split instead of folds: this share of the images is held out (as fold 0) and the rest, fold 1, trains; count
    must be 2 and train 1. None: folds of equal size."""
    stratify: Literal["coverage", "non_empty", "none", "like_test"] = "coverage"
    """What is spread evenly: the 11 coverage classes (and the rarest class or label, and the source: folder and size,
    where there are several), images with and without foreground, or nothing (at random). "like_test": nothing; the
    share ``holdout_frac`` that is held out are the images that look most like the test set (adversarial validation)."""
    deal_by: str | None = None
    """Column of numbers in a side table: images are sorted by it and dealt out to the folds in turn (as TGS Salt's
    first place did by depth), without stratification. None: as ``stratify`` says."""
    group_by: str | None = None
    """Column of a side table (a location, a patient): images of the same value stay in one fold, and are a group of
    the metrics of groups and of the bootstrap. Where no table says so, "similar(count=10)" makes so many groups of
    images with similar bands (k-means, seeded by ``seed``), "neighbours()" one of tiles whose edges continue each
    other. None: what is bound anyway stays together: known groups, nearly equal images, patients and places."""
    fold_by: str | None = None
    """Column of a table that says the fold: the images of one value are one fold (a fold column, or a site, for
    leave-one-site-out); ``count`` is the number of values. "groups()": each group is a fold. None: folds are made."""

    @property
    def total(self) -> int:
        """Number of folds of all repeats."""
        return self.count * self.repeats

    @property
    def trained(self) -> range:
        """The folds that are trained."""
        return range(self.train or self.total)

    @property
    def similar_count(self) -> int | None:
        """How many groups of similar images are asked for; None: none are."""
        found = _SIMILAR.fullmatch(self.group_by or "")
        return int(found[1]) if found else None

    @property
    def has_column(self) -> bool:
        """Whether ``group_by`` names a column."""
        return self.group_by not in (None, NEIGHBOURS) and self.similar_count is None

    @field_validator("group_by")
    @classmethod
    def _is_spelt_right(cls, value: str | None) -> str | None:
        if value is not None and value.startswith("similar("):
            found = _SIMILAR.fullmatch(value)
            if not found or int(found[1]) < 2:
                raise ValueError(f"{value!r}; expected similar(count=N) with two groups or more")
        return value

    @property
    def kind(self) -> str:
        """The rule of the folds besides seed and groups, as text; it is kept beside the folds."""
        rule = f"holdout_frac {self.holdout_frac}, stratify {self.stratify}, deal_by {self.deal_by}"
        return rule if self.fold_by is None else f"{rule}, fold_by {self.fold_by}"

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse a single split of several folds, and two rules at once."""
        if self.holdout_frac is not None and (self.count, self.train, self.refit) != (2, 1, False):
            raise ValueError(
                f"holdout_frac: {self.holdout_frac} is one split, whose held-out part is fold 0; it goes with count 2, "
                f"train 1 and refit false, not with count {self.count}, train {self.train} and refit {self.refit}"
            )
        if self.deal_by is not None and (self.stratify != "coverage" or self.holdout_frac is not None):
            raise ValueError(
                f"deal_by: {self.deal_by!r} deals images out in their order, without stratification and to folds of "
                "equal size; leave stratify at 'coverage' and holdout_frac at null"
            )
        if self.fold_by is not None and self.kind != f"{FoldsConfig().kind}, fold_by {self.fold_by}":
            raise ValueError(
                f"fold_by: {self.fold_by!r} says the fold of each image; leave stratify at 'coverage' and deal_by and "
                "holdout_frac at null"
            )
        fixed = [key for key in ("holdout_frac", "deal_by", "fold_by") if getattr(self, key) is not None]
        if self.repeats > 1 and (fixed or self.total >= ALL):
            why = f"{fixed[0]}: {getattr(self, fixed[0])!r}" if fixed else f"{self.count} folds"
            raise ValueError(
                f"repeats: {self.repeats} with {why}; expected fewer than {ALL} folds in all, which are made at random "
                "(holdout_frac, deal_by and fold_by null), or 1"
            )
        if self.stratify == "like_test" and self.holdout_frac is None:
            raise ValueError(
                "stratify: 'like_test' holds out the images that look most like the test set; say how many with "
                "holdout_frac: 0.2, count: 2, train: 1"
            )


def fold_name(fold: int) -> str:
    """Return a fold's name for people and files."""
    return "fold_all" if fold == ALL else f"fold_{fold}"
