"""Inputs of the tests: every loss with every kind of target that it reads, and some of its parameters."""

from typing import NamedTuple

import numpy as np
import torch

from masksmith.losses.build import IMAGE_LOSSES, LOSSES

CLASSES = {"binary": 1, "multilabel": 3, "classes": 3, "objects": 3}
ALONE = {"bce", "balanced_bce", "lovasz", "lovasz_elu", "boundary_bce", "band_bce"}  # each class judged alone

PARAMS = {
    "bce": [{"pos_weight": 3.0, "label_smoothing": 0.1}],
    "focal": [{"gamma": 0.5}, {"gamma": 0.0}],
    "cross_entropy": [{"label_smoothing": 0.2}, {"class_weights": "effective_number"}],
    "smooth_l1": [{"beta": 0.3}],
    "dice": [{"smooth": 0.1, "per_image": False}, {"skip_empty": True}],
    "log_dice": [{"smooth": 0.1, "per_image": False, "skip_empty": True}],
    "jaccard": [{"smooth": 1.0, "per_image": False}, {"skip_empty": True}],
    "tversky": [{"alpha": 0.6, "beta": 0.2, "smooth": 0.1, "per_image": False}, {"skip_empty": True}],
    "focal_tversky": [{"gamma": 0.75, "per_image": False}, {"skip_empty": True, "alpha": 0.9}],
    "lovasz": [{"per_image": False}, {"skip_empty": True}],
    "lovasz_elu": [{"per_image": False}, {"skip_empty": True}],
    "lovasz_softmax": [{"per_image": False}, {"skip_empty": False}],
    "boundary_bce": [{"w0": 3.0, "sigma": 1.5}],
    "band_bce": [{"radius": 1, "extra": 4.0}],
    "hausdorff": [{"alpha": 1.0}],
    "active_contour": [{"region_weight": 3.0}],
    "objects": [{"border_weight": 3.0, "distance_weight": 0.5}],
    "image_bce": [{"pos_weight": 3.0, "label_smoothing": 0.1}],
    "image_focal": [{"gamma": 1.0, "alpha": 0.25}],
}


class Case(NamedTuple):
    name: str
    kind: str
    params: dict

    def __call__(self, logits, target):
        return LOSSES[self.name](logits, target, **self.params)

    def __str__(self):
        return "-".join([self.name, self.kind, *(f"{key}={value}" for key, value in self.params.items())])

    def sample(self, seed, **options):
        return sample(self.kind, seed, of_image=self.name in IMAGE_LOSSES, **options)


def kinds_of(name):
    if name == "cross_entropy":
        return ["classes"]
    if name == "objects":
        return ["objects"]
    return ["binary", "multilabel"] if name in ALONE else ["binary", "multilabel", "classes"]


PLAIN = [Case(name, kind, {}) for name in LOSSES for kind in kinds_of(name)]
CASES = [*PLAIN, *(Case(one.name, one.kind, params) for one in PLAIN for params in PARAMS.get(one.name, []))]
CASES += [Case("focal", kind, {"alpha": 0.25}) for kind in ("binary", "multilabel")]


def plain_case(name, kind=None):
    """Return the case of a loss with its defaults, and of a kind or its first one."""
    return next(one for one in PLAIN if one.name == name and kind in (None, one.kind))


def sample(kind, seed, *, ignore=0.2, shape=(3, 5, 6), of_image=False):
    """Random logits and target; in every third sample an image is empty, in every fifth one is not judged at all."""
    rng = np.random.default_rng(seed)
    classes, (b, h, w) = CLASSES[kind], shape
    logits = rng.normal(size=(b, classes) if of_image else (b, classes, h, w)).astype(np.float32)
    full = (b, classes, h, w) if kind in ("multilabel", "objects") else shape
    target = rng.integers(0, classes if kind == "classes" else 2, full).astype(np.uint8)
    if kind == "objects":
        target[:, -1] = rng.integers(0, 255, shape)
    if seed % 3 == 0:
        target[0] = 0
    target[rng.random(full) < ignore] = 255
    if seed % 5 == 0 and ignore:
        target[-1] = 255
    return torch.from_numpy(logits), torch.from_numpy(target)


def ignored_logits(logits, target):
    """Where logits belong to an ignored pixel."""
    planes = target if target.ndim == 4 else target[:, None]
    return (planes == 255).expand_as(logits)
