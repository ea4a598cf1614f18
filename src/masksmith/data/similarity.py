"""Groups of images that look alike, for folds of images that carry no location.

Neighbouring or repeated scenes in two folds make a model look better than it is on a new scene. Where no table says
which images belong together, their bands do: images of the same ground, season or depth have similar values. Keeping
similar images in one fold is called environmental blocking: the score tells how a model does on scenes unlike those it
was trained on.

OpenCV clusters: scikit-learn's KMeans, for this alone, would bring 200 MB with scipy and take 3 seconds to import.

Sources:
    Roberts et al. 2017, Cross-validation strategies for data with temporal, spatial, hierarchical, or phylogenetic
    structure, https://doi.org/10.1111/ecog.02881
    Valavi et al. 2019, blockCV, https://doi.org/10.1111/2041-210X.13107
    k-means++: Arthur & Vassilvitskii 2007, SODA.
"""

import cv2
import numpy as np

from masksmith.core.arrays import Float, Image, Int
from masksmith.core.errors import InputError
from masksmith.core.randomness import stream
from masksmith.data.checks import BandFacts, band_facts
from masksmith.data.store import Store

_STARTS = 10
_MOST_ROUNDS = 100


def similar_groups(images: Store, count: int, *, seed: int) -> dict[str, str]:
    """Return id -> group ("similar 0", …): k-means of what the bands of each image hold.

    An image is described by the mean and the standard deviation of each band; by the share of each value where a
    band holds few whole values (MAX_NAMES), as classes of land cover do. Each number is replaced by its rank among the
    images, so that no single odd image makes a group, and each band counts the same. No data (NaN) does not count; an
    image with nothing else in a band has a middle rank there.

    Args:
        images: Decoded images.
        count: Number of groups.
        seed: Seed of the ten starts, of which the tightest is kept; the same images and seed give the same groups.

    Raises:
        InputError: Fewer different images than groups.
    """
    points = describe(images)
    different = len(np.unique(points, axis=0))
    if count > different:
        raise InputError(
            f"folds.group_by: {count} groups of similar images were asked for, but only {different} of the "
            f"{len(images)} images differ in their bands; ask for fewer"
        )
    labels = cluster(points, count, seed=seed)
    return {name: f"similar {label}" for name, label in zip(images, labels.tolist(), strict=True)}


def describe(images: Store) -> Float[np.ndarray, "n k"]:
    """Return what is compared of each image, one row each."""
    facts = band_facts(images)
    columns = []
    for at, band in enumerate(facts):
        numbers = np.array([_numbers(images[name], at, band) for name in images])
        columns.append(_ranked(numbers))
    return np.concatenate(columns, axis=1).astype(np.float32)


def _numbers(image: Image, at: int, band: BandFacts) -> list[float]:
    values = image[..., at].astype(np.float64)
    values = values[~np.isnan(values)]
    if band.values:
        return [float((values == one).mean()) if values.size else np.nan for one in band.values]
    return [float(values.mean()), float(values.std())] if values.size else [np.nan, np.nan]


def _ranked(numbers: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"]:
    """Replace each number by its rank in its column (0…1, the mean rank of equal ones), divided by the root of k."""
    ranked = np.full_like(numbers, 0.5)
    for at, column in enumerate(numbers.T):
        known = ~np.isnan(column)
        ordered = np.sort(column[known])
        ends = (np.searchsorted(ordered, column[known], side) for side in ("left", "right"))
        ranked[known, at] = sum(ends) / (2 * max(len(ordered), 1))
    return ranked / np.sqrt(numbers.shape[1])


def cluster(points: Float[np.ndarray, "n k"], count: int, *, seed: int) -> Int[np.ndarray, " n"]:
    """Return the cluster 0…count-1 of each point by OpenCV's k-means from k-means++ starts; none is empty.

    Equal points count once and share a cluster. Clusters are numbered by their first point. At least ``count`` points
    must differ.
    """
    different, home = np.unique(points.astype(np.float32), axis=0, return_inverse=True)
    later = int(cv2.randu(np.zeros(1, np.int32), np.array([0]), np.array([2**31 - 1]))[0])
    cv2.setRNGSeed(int(stream(seed).integers(2**31)))
    stop = (cv2.TERM_CRITERIA_MAX_ITER, _MOST_ROUNDS, 0.0)
    found = np.zeros((len(different), 1), np.int32)
    cv2.kmeans(different, count, found, stop, _STARTS, cv2.KMEANS_PP_CENTERS)
    cv2.setRNGSeed(later)  # what OpenCV draws later depends on the caller's seed as before, not on ours
    labels = found[home.ravel(), 0].tolist()
    order = list(dict.fromkeys(labels))
    return np.array([order.index(label) for label in labels])
