"""Every metric once more, slowly, by its definition: sets of pixels and loops, no code of the library."""

import math
from itertools import pairwise

import numpy as np

THRESHOLDS = [(k, 20) for k in range(10, 20)]  # exact fractions


def pixels(pred, target):
    """The predicted and the true foreground and all judged pixels, as sets."""
    judged = {spot for spot in np.ndindex(target.shape) if target[spot] != 255}
    return (
        {spot for spot in judged if pred[spot]},
        {spot for spot in judged if target[spot] == 1},
        judged,
    )


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def pool(pairs):
    """The sets of several images as one image."""
    pools = [set(), set(), set()]
    for at, pair in enumerate(pairs):
        for whole, part in zip(pools, pixels(*pair), strict=True):
            whole |= {(at, *spot) for spot in part}
    return pools


def iou(found, truth, judged, empty):
    return len(found & truth) / len(found | truth) if found | truth else empty


def dice(found, truth, judged, empty):
    return 2 * len(found & truth) / (len(found) + len(truth)) if found | truth else empty


def precision(found, truth, judged, empty):
    if not found and not truth:
        return empty
    return len(found & truth) / len(found) if found else 0.0


def recall(found, truth, judged, empty):
    if not found and not truth:
        return empty
    return len(found & truth) / len(truth) if truth else 0.0


def accuracy(found, truth, judged, empty):
    wrong = found ^ truth
    return (len(judged) - len(wrong)) / len(judged) if judged else empty


def tgs(found, truth, judged, empty):
    both, either = len(found & truth), len(found | truth)
    return mean(1.0 if not either else float(both * whole > k * either) for k, whole in THRESHOLDS)


def binary_miou(found, truth, judged, empty):
    classes = [(found, truth), (judged - found, judged - truth)]
    present = [(p, t) for p, t in classes if p | t]
    return mean(len(p & t) / len(p | t) for p, t in present) if present else empty


def binary_mdice(found, truth, judged, empty):
    classes = [(found, truth), (judged - found, judged - truth)]
    present = [(p, t) for p, t in classes if p | t]
    return mean(2 * len(p & t) / (len(p) + len(t)) for p, t in present) if present else empty


def binary_fw_iou(found, truth, judged, empty):
    classes = [(found, truth), (judged - found, judged - truth)]
    whole = len(judged)
    return sum(len(t) * len(p & t) / len(p | t) for p, t in classes if t) / whole if whole else empty


def per_image(measure, empty=1.0):
    return lambda pairs, groups: mean(measure(*pixels(*pair), empty) for pair in pairs)


def pooled(measure, empty=1.0):
    return lambda pairs, groups: measure(*pool(pairs), empty)


def by_group(score):
    def twin(pairs, groups):
        parts = [
            [pair for pair, own in zip(pairs, groups, strict=True) if own == group] for group in set(groups)
        ]
        return mean(score(part, None) for part in parts)

    return twin


def components(spots, steps):
    """Connected components of a set of pixels by flood fill."""
    left, found = set(spots), []
    while left:
        front = [left.pop()]
        grown = set(front)
        while front:
            i, j = front.pop()
            for di, dj in steps:
                spot = (i + di, j + dj)
                if spot in left:
                    left.remove(spot)
                    grown.add(spot)
                    front.append(spot)
        found.append(grown)
    return found


FOUR = [(-1, 0), (1, 0), (0, -1), (0, 1)]
EIGHT = [*FOUR, (-1, -1), (-1, 1), (1, -1), (1, 1)]


def hits(found, there, k, whole):
    """Most pairs of objects with an IoU above k / whole, each object in one pair, by trying every assignment."""
    fits = [[whole * len(p & t) > k * len(p | t) for t in there] for p in found]

    def best(at, free):
        if at == len(fits):
            return 0
        taken = [1 + best(at + 1, free - {j}) for j in free if fits[at][j]]
        return max([best(at + 1, free), *taken])

    return best(0, frozenset(range(len(there))))


def of_objects(score, steps=EIGHT):
    def twin(pairs, groups):
        values = []
        for pair in pairs:
            found, truth, _ = pixels(*pair)
            values.append(score(components(found, steps), components(truth, steps)))
        return mean(values)

    return twin


def dsb(found, there):
    if not found and not there:
        return 1.0
    values = []
    for k, whole in THRESHOLDS:
        right = hits(found, there, k, whole)
        values.append(right / (right + (len(found) - right) + (len(there) - right)))
    return mean(values)


def f_at(found, there, beta, k, whole):
    if not found and not there:
        return 1.0
    right = hits(found, there, k, whole)
    false, missed = len(found) - right, len(there) - right
    return (1 + beta**2) * right / ((1 + beta**2) * right + beta**2 * missed + false)


def f_mean(beta):
    return lambda found, there: mean(f_at(found, there, beta, *at) for at in THRESHOLDS)


def edge(spots):
    return {(i, j) for i, j in spots if any((i + di, j + dj) not in spots for di, dj in FOUR)}


def gaps(spots, others):
    return [min(math.dist(spot, other) for other in others) for spot in spots]


def boundary_f1(share):
    def one(pred, target):
        found, truth, _ = pixels(pred, target)
        if not found and not truth:
            return 1.0
        if not found or not truth:
            return 0.0
        near = share * math.hypot(*target.shape)
        precise, complete = (
            mean(gap <= near for gap in gaps(edge(one), edge(other)))
            for one, other in ((found, truth), (truth, found))
        )
        return 2 * precise * complete / (precise + complete) if precise + complete else 0.0

    return lambda pairs, groups: mean(one(*pair) for pair in pairs)


def percentile_95(values):
    """Linear between the two nearest ranks."""
    ordered = sorted(values)
    at = 0.95 * (len(ordered) - 1)
    if len(ordered) == 1:
        return ordered[0]
    below, above = list(pairwise(ordered))[min(int(at), len(ordered) - 2)]
    return below + (above - below) * (at - min(int(at), len(ordered) - 2))


def hausdorff(pred, target):
    found, truth, _ = pixels(pred, target)
    if not found and not truth:
        return 0.0
    if not found or not truth:
        return math.hypot(*target.shape)
    return max(percentile_95(gaps(edge(one), edge(other))) for one, other in ((found, truth), (truth, found)))


TWINS = {
    "tgs_map": per_image(tgs),
    "dice_per_image": per_image(dice),
    "dice_per_image(empty_score=0)": per_image(dice, 0.0),
    "dice_pooled": pooled(dice),
    "f1_per_image": per_image(dice),
    "f1_pooled": pooled(dice),
    "iou_per_image": per_image(iou),
    "iou_per_image(empty_score=0.25)": per_image(iou, 0.25),
    "iou_pooled": pooled(iou),
    "iou_by_group": by_group(pooled(iou, 0.0)),
    "iou_by_group(empty_score=1)": by_group(pooled(iou, 1.0)),
    "iou_per_image_by_group": by_group(per_image(iou, 0.0)),
    "precision_per_image": per_image(precision),
    "precision_pooled": pooled(precision),
    "recall_per_image": per_image(recall),
    "recall_pooled": pooled(recall),
    "accuracy": pooled(accuracy),
    "accuracy_per_image": per_image(accuracy),
    "accuracy(background=0)": pooled(recall),
    "miou": pooled(binary_miou),
    "miou(background=0)": pooled(iou),
    "mdice": pooled(binary_mdice),
    "mdice(background=0)": pooled(dice),
    "fw_iou": pooled(binary_fw_iou),
    "dsb_map": of_objects(dsb),
    "dsb_map(connectivity=4)": of_objects(dsb, FOUR),
    "f_beta_objects": of_objects(f_mean(2)),
    "f_beta_objects(beta=0.5, connectivity=4)": of_objects(f_mean(0.5), FOUR),
    "f_beta_objects_at": of_objects(lambda found, there: f_at(found, there, 1, 10, 20)),
    "f_beta_objects_at(iou=0.65, beta=2)": of_objects(lambda found, there: f_at(found, there, 2, 13, 20)),
    "boundary_f1": boundary_f1(0.0075),
    "boundary_f1(tolerance_frac=0.2)": boundary_f1(0.2),
    "hausdorff_95": lambda pairs, groups: mean(hausdorff(*pair) for pair in pairs),
}
