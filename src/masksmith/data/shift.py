"""Do the test images look like the training images? Adversarial validation.

A classifier learns to tell the two sets apart by a few numbers of each image (percentiles, contrast and gradient of
each band, height and width). Where it succeeds on images that it did not learn from, the sets differ, and a score of
training images is no estimate for the test set.

Source: FastML 2016, Adversarial validation, http://fastml.com/adversarial-validation-part-one/
"""

from dataclasses import dataclass

import numpy as np

from masksmith.core.arrays import Float, Int, Shaped
from masksmith.core.randomness import stream
from masksmith.data.findings import Finding

LEAST_IMAGES = 20
"""Of each set: with fewer nothing can be told."""
FOLDS = 5
WORTH_SAYING = 0.65
"""AUC from which shift is a finding, where the lower end of its interval is above SURE."""
SURE = 0.55
_PENALTY = 1.0
_ROUNDS = 25


@dataclass(frozen=True)
class Shift:
    """How well the two sets are told apart."""

    auc: float
    """0.5: not at all; 1: always."""
    low: float
    """Of its 95% interval."""
    high: float
    reasons: list[str]
    """What gives it away, the most telling first."""
    likeness: Float[np.ndarray, " n"]
    """Of each training image the probability of the test set, from a classifier that did not learn from it."""

    @property
    def is_worth_saying(self) -> bool:
        """Whether the sets differ by more than chance, and by much."""
        return self.auc > WORTH_SAYING and self.low > SURE

    @property
    def weights(self) -> Float[np.ndarray, " n"]:
        """Weight of each training image, mean 1, by which the training set resembles the test set."""
        odds = self.likeness / (1 - self.likeness)
        return np.asarray(odds / odds.mean())


def measure_shift(
    train: Float[np.ndarray, "n k"], test: Float[np.ndarray, "m k"], names: list[str], *, seed: int = 0
) -> Shift | None:
    """Tell training and test images apart by numbers, and say by which; None where a set has too few images.

    Each number is replaced by its rank among all images, so that no scale matters; a logistic regression on the ranks
    and their squares (ridge penalty 1, both sets of equal weight) is fitted to four fifths of the images and tried
    on the rest, five times. The interval is that of Hanley & McNeil 1982, Radiology 143.

    Args:
        train: Numbers of each training image; NaN is not known.
        test: Of each test image.
        names: What the numbers are called.
        seed: Of the division into fifths.
    """
    if min(len(train), len(test)) < LEAST_IMAGES:
        return None
    numbers = np.concatenate([train, test]).astype(np.float64)
    is_test = np.arange(len(numbers)) >= len(train)
    ranks = _ranks(numbers)
    ranks = ranks[:, ranks.std(axis=0) > 0]
    points = np.concatenate([ranks, ranks**2, np.ones((len(ranks), 1))], axis=1)
    probs = np.zeros(len(points))
    part = stream(seed).permutation(len(points)) % FOLDS
    for fold in range(FOLDS):
        fit = part != fold
        probs[~fit] = _sigmoid(points[~fit] @ _fit(points[fit], is_test[fit]))
    auc = area(probs, is_test)
    half = 1.96 * _standard_error(auc, len(test), len(train))
    likeness = np.clip(probs[~is_test], 0.01, 0.99)
    return Shift(auc, max(auc - half, 0.0), min(auc + half, 1.0), _reasons(train, test, names), likeness)


def _ranks(numbers: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Replace each number by its rank in its column, -1 to 1; what is not known is 0."""
    ranks = np.zeros_like(numbers)
    for at, column in enumerate(numbers.T):
        known = np.isfinite(column)
        ordered = np.sort(column[known])
        ends = [np.searchsorted(ordered, column[known], side) for side in ("left", "right")]
        ranks[known, at] = (ends[0] + ends[1]) / max(len(ordered), 1) - 1
    return ranks


def _sigmoid(scores: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    return np.asarray(1 / (1 + np.exp(-np.clip(scores, -30, 30))))


def _fit(points: Float[np.ndarray, "n k"], labels: Shaped[np.ndarray, " n"]) -> Float[np.ndarray, " k"]:
    """Return the weights of a logistic regression by Newton's method."""
    weight = np.where(labels, 0.5 / max(labels.sum(), 1), 0.5 / max((~labels).sum(), 1)) * len(labels)
    penalty = np.eye(points.shape[1]) * _PENALTY
    found = np.zeros(points.shape[1])
    for _ in range(_ROUNDS):
        probs = _sigmoid(points @ found)
        slope = points.T @ (weight * (probs - labels)) + penalty @ found
        curve = (points * (weight * probs * (1 - probs))[:, None]).T @ points + penalty
        step = np.linalg.solve(curve, slope)
        found -= step
        if np.abs(step).max() < 1e-6:
            break
    return found


def area(scores: Float[np.ndarray, " n"], labels: Shaped[np.ndarray, " n"]) -> float:
    """Return the area under the ROC curve: how often a positive has the higher score; equal ones count half."""
    ordered, ours = np.sort(scores[~labels]), scores[labels]
    lower: Int[np.ndarray, " m"] = np.searchsorted(ordered, ours, "left")
    upper = np.searchsorted(ordered, ours, "right")
    return float((lower + upper).sum() / (2 * max(len(ordered) * len(ours), 1)))


def _standard_error(auc: float, positives: int, negatives: int) -> float:
    """Return the standard error of an area under the ROC curve (Hanley & McNeil 1982)."""
    one, two = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (positives - 1) * (one - auc**2) + (negatives - 1) * (two - auc**2)
    return float(np.sqrt(max(spread, 0) / (positives * negatives)))


def _reasons(train: Float[np.ndarray, "n k"], test: Float[np.ndarray, "m k"], names: list[str]) -> list[str]:
    """Return the three numbers that alone tell the sets apart best, with their medians in both."""
    found = []
    for name, ours, theirs in zip(names, train.T, test.T, strict=True):
        ours, theirs = ours[np.isfinite(ours)], theirs[np.isfinite(theirs)]
        if not len(ours) or not len(theirs):
            continue
        both = np.concatenate([ours, theirs]).astype(np.float64)
        alone = area(both, np.arange(len(both)) >= len(ours))
        strength = max(alone, 1 - alone)
        text = f"{name}: train {np.median(ours):.3g}, test {np.median(theirs):.3g} (AUC {strength:.2f} alone)"
        found.append((strength, text))
    return [text for _, text in sorted(found, key=lambda one: -one[0])[:3]]


def shift_finding(shift: Shift | None) -> list[Finding]:
    """Return the finding that test images look unlike training images, where they do."""
    if shift is None or not shift.is_worth_saying:
        return []
    detail = (
        f"a classifier tells them from training images with AUC {shift.auc:.2f} (95% interval {shift.low:.2f} to "
        f"{shift.high:.2f}; 0.5 is chance). What gives it away: {'; '.join(shift.reasons)}. Out-of-fold scores say "
        "less about such a test set; hold out the training images that look most like it: "
        "--set folds.stratify=like_test --set folds.holdout_frac=0.2 --set folds.count=2 --set folds.train=1"
    )
    return [Finding("warning", "test images that look unlike training images", detail)]
