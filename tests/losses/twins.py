"""Every loss once more: slow, in float64, by its definition, one pixel after the other."""

import itertools
import math

import numpy as np


class Plane:
    """One class of one image: its judged pixels, by place."""

    def __init__(self, scores, probs, labels):
        self.places = [place for place, label in np.ndenumerate(labels) if label != 255]
        self.scores = {place: float(scores[place]) for place in self.places}
        self.probs = {place: float(probs[place]) for place in self.places}
        self.truth = {place: bool(labels[place] == 1) for place in self.places}
        self.hw = labels.shape


def planes(logits, target):
    """A list of classes for each image."""
    scores, target = logits.double().numpy(), target.numpy()
    num_images, num_classes = scores.shape[:2]
    exclusive = target.ndim == 3 and num_classes > 1
    powers = np.exp(scores)
    probs = powers / powers.sum(1, keepdims=True) if exclusive else powers / (1 + powers)
    found = []
    for i in range(num_images):
        found.append([])
        for c in range(num_classes):
            labels = target[i, c] if target.ndim == 4 else target[i]
            if exclusive:
                labels = np.where(labels == 255, 255, labels == c)
            found[-1].append(Plane(scores[i, c], probs[i, c], labels))
    return found


def pixels(logits, target):
    return [(plane, at) for image in planes(logits, target) for plane in image for at in plane.places]


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values) if values else 0.0


def log1pexp(x):
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def bce_of(score, true, pos_weight=1.0, label_smoothing=0.0):
    truth = true * (1 - label_smoothing) + label_smoothing / 2
    return pos_weight * truth * log1pexp(-score) + (1 - truth) * log1pexp(score)


def bce(logits, target, **params):
    return mean(bce_of(plane.scores[at], plane.truth[at], **params) for plane, at in pixels(logits, target))


def balanced_bce(logits, target):
    by_class = []
    for classes in zip(*planes(logits, target), strict=True):
        kinds = {False: [], True: []}
        for plane in classes:
            for at in plane.places:
                kinds[plane.truth[at]].append(bce_of(plane.scores[at], plane.truth[at]))
        if any(kinds.values()):
            by_class.append(mean(mean(values) for values in kinds.values() if values))
    return mean(by_class)


def focal_of(prob_of_truth, gamma, weight=1.0):
    return -weight * (1 - prob_of_truth) ** gamma * math.log(prob_of_truth)


def focal(logits, target, *, gamma=2.0, alpha=None):
    values = []
    exclusive = target.ndim == 3 and logits.shape[1] > 1
    for plane, at in pixels(logits, target):
        if exclusive and plane.truth[at]:
            values.append(focal_of(plane.probs[at], gamma))
        elif not exclusive:
            prob = plane.probs[at] if plane.truth[at] else 1 - plane.probs[at]
            weight = 1.0 if alpha is None else (alpha if plane.truth[at] else 1 - alpha)
            values.append(focal_of(prob, gamma, weight))
    return mean(values)


def cross_entropy(logits, target, *, class_weights="none", label_smoothing=0.0):
    values = []
    for image in planes(logits, target):
        for at in image[0].places:
            shares = [
                (1 - label_smoothing) * plane.truth[at] + label_smoothing / len(image) for plane in image
            ]
            values.append(
                -sum(share * math.log(plane.probs[at]) for share, plane in zip(shares, image, strict=True))
            )
    return mean(values)


def mse(logits, target):
    return mean((plane.probs[at] - plane.truth[at]) ** 2 for plane, at in pixels(logits, target))


def smooth_l1(logits, target, *, beta=1.0):
    errors = [abs(plane.probs[at] - plane.truth[at]) for plane, at in pixels(logits, target)]
    return mean(error**2 / (2 * beta) if error < beta else error - beta / 2 for error in errors)


def groups(logits, target, *, per_image, skip_empty):
    """Lists of (score, probability, truth), one for each plane that counts."""
    images = planes(logits, target)
    if per_image:
        members = [[plane] for image in images for plane in image]
    else:
        members = [list(classes) for classes in zip(*images, strict=True)]
    for member in members:
        listed = [
            (plane.scores[at], plane.probs[at], plane.truth[at]) for plane in member for at in plane.places
        ]
        if listed and (not skip_empty or any(true for _, _, true in listed)):
            yield listed


def region(of_counts):
    """A loss of (true positives, false positives, false negatives), soft."""

    def twin(logits, target, *, per_image=True, skip_empty=False, **params):
        values = []
        for listed in groups(logits, target, per_image=per_image, skip_empty=skip_empty):
            tp = math.fsum(prob for _, prob, true in listed if true)
            fp = math.fsum(prob for _, prob, true in listed if not true)
            fn = math.fsum(1 - prob for _, prob, true in listed if true)
            values.append(of_counts(tp, fp, fn, **params))
        return mean(values)

    return twin


def dice_coefficient(tp, fp, fn, smooth=1.0):
    return (2 * tp + smooth) / (2 * tp + fp + fn + smooth)


def tversky_index(tp, fp, fn, alpha=0.3, beta=0.7, smooth=1.0):
    return (tp + smooth) / (tp + alpha * fp + beta * fn + smooth)


def focal_tversky(tp, fp, fn, gamma=4 / 3, **params):
    return (1 - tversky_index(tp, fp, fn, **params)) ** (1 / gamma)


def jaccard_loss(tp, fp, fn, smooth=1e-5):
    return 1 - (tp + smooth) / (tp + fp + fn + smooth)


def lovasz(error_of, *, skips=False):
    """The Lovász extension by its definition: Jaccard losses of the growing sets of the worst pixels."""

    def twin(logits, target, *, per_image=True, skip_empty=skips):
        values = []
        for listed in groups(logits, target, per_image=per_image, skip_empty=skip_empty):
            errors = [error_of(*one) for one in listed]
            positive = {at for at, (_, _, true) in enumerate(listed) if true}
            value, before, chosen = 0.0, 0.0, set()
            for at in sorted(range(len(errors)), key=lambda at: -errors[at]):
                chosen.add(at)
                now = len(chosen) / len(positive | chosen)
                value += errors[at] * (now - before)
                before = now
            values.append(value)
        return mean(values)

    return twin


def hinge(score, _prob, true):
    return max(0.0, 1 - score * (1 if true else -1))


def elu_hinge(score, _prob, true):
    error = 1 - score * (1 if true else -1)
    return error + 1 if error > 0 else math.exp(error)


def distance(labels, at):
    """From a pixel to the nearest of the other label, by looking at all; 0 where there is none."""
    others = [math.dist(at, other) for other in labels if labels[other] != labels[at]]
    return min(others, default=0.0)


def boundary_bce(logits, target, *, w0=10.0, sigma=5.0):
    values = []
    for plane, at in pixels(logits, target):
        far = distance(plane.truth, at)
        weight = 1 + (w0 * math.exp(-(far**2) / (2 * sigma**2)) if far else 0)
        values.append(weight * bce_of(plane.scores[at], plane.truth[at]))
    return mean(values)


def band_bce(logits, target, *, radius=10, extra=2.0):
    total = weights = 0.0
    for plane, (row, column) in pixels(logits, target):
        steps = range(-radius, radius + 1)
        window = [(row + down, column + right) for down, right in itertools.product(steps, steps)]
        share = mean(plane.truth[at] for at in window if at in plane.truth)
        weight = 1 + extra * (0.005 < share < 0.995)
        total += weight * bce_of(plane.scores[row, column], plane.truth[row, column])
        weights += weight
    return total / weights if weights else 0.0


def boundary(logits, target):
    values = []
    for plane, at in pixels(logits, target):
        far = distance(plane.truth, at)
        signed = (1 - far if far else 0) if plane.truth[at] else far
        values.append(plane.probs[at] * signed)
    return mean(values)


def hausdorff(logits, target, *, alpha=2.0):
    values = []
    for plane, at in pixels(logits, target):
        found = {place: prob > 0.5 for place, prob in plane.probs.items()}
        far = distance(found, at) ** alpha + distance(plane.truth, at) ** alpha
        values.append((plane.probs[at] - plane.truth[at]) ** 2 * far)
    return mean(values)


def active_contour(logits, target, *, region_weight=1.0):
    values = []
    for plane, (row, column) in pixels(logits, target):
        prob, true = plane.probs[row, column], plane.truth[row, column]
        ahead = [plane.probs.get(at, prob) - prob for at in ((row + 1, column), (row, column + 1))]
        length = math.sqrt(ahead[0] ** 2 + ahead[1] ** 2 + 1e-8)
        values.append(length + region_weight * (prob * (true - 1) ** 2 + (1 - prob) * (true - 0) ** 2))
    return mean(values)


def presence(image_logits, target):
    """(logit, is there any?) of each image and class that has a judged pixel."""
    num_classes = image_logits.shape[1]
    for i, c in itertools.product(range(len(target)), range(num_classes)):
        labels = (target[i, c] if target.ndim == 4 else target[i]).flatten().tolist()
        judged = [label for label in labels if label != 255]
        wanted = c if target.ndim == 3 and num_classes > 1 else 1
        if judged:
            yield float(image_logits[i, c]), wanted in judged


def image_bce(image_logits, target, **params):
    return mean(bce_of(score, there, **params) for score, there in presence(image_logits, target))


def image_focal(image_logits, target, *, gamma=2.0, alpha=None):
    values = []
    for score, there in presence(image_logits, target):
        prob = math.exp(-log1pexp(-score if there else score))
        weight = 1.0 if alpha is None else (alpha if there else 1 - alpha)
        values.append(focal_of(prob, gamma, weight))
    return mean(values)


def objects(logits, target, *, border_weight=1.0, distance_weight=1.0):
    found = 0.0
    for at, weight in ((0, 1.0), (1, border_weight)):
        plane = logits[:, [at]], target[:, at]
        found += weight * (bce(*plane) + TWINS["dice"](*plane, smooth=1.0))
    scores, codes = logits[:, 2].double().numpy().ravel(), target[:, 2].numpy().ravel()
    distances = []
    for score, code in zip(scores.tolist(), codes.tolist(), strict=True):
        if code != 255:
            share = code / 254
            prob = 1 / (1 + math.exp(-score))
            both = ((share, prob), (1 - share, 1 - prob))
            distances.append(sum(true * math.log(true / guess) for true, guess in both if true))
    return found + distance_weight * mean(distances)


TWINS = {
    "bce": bce,
    "balanced_bce": balanced_bce,
    "focal": focal,
    "cross_entropy": cross_entropy,
    "mse": mse,
    "smooth_l1": smooth_l1,
    "dice": region(lambda *counts, **params: 1 - dice_coefficient(*counts, **params)),
    "log_dice": region(lambda *counts, **params: -math.log(dice_coefficient(*counts, **params))),
    "jaccard": region(jaccard_loss),
    "tversky": region(lambda *counts, **params: 1 - tversky_index(*counts, **params)),
    "focal_tversky": region(focal_tversky),
    "lovasz": lovasz(hinge),
    "lovasz_elu": lovasz(elu_hinge),
    "lovasz_softmax": lovasz(lambda _score, prob, true: abs(true - prob), skips=True),
    "boundary_bce": boundary_bce,
    "band_bce": band_bce,
    "boundary": boundary,
    "hausdorff": hausdorff,
    "active_contour": active_contour,
    "objects": objects,
    "image_bce": image_bce,
    "image_focal": image_focal,
}
