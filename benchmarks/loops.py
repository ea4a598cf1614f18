"""The loops of public notebooks beside ours, on the same masks and with the same results; ``bench.py`` times them.

The search draws the mask of each rule; the metric loops over thresholds; small components are emptied label by label;
run-lengths are made pixel by pixel. The masks are smooth noise of 101x101 (of 1024x1024: four discs).
"""

import time
from functools import partial

import cv2
import numpy as np
from run_lengths import discs
from sweep import AREAS, PLAIN, THRESHOLDS, made

from masksmith.data.rle import encode
from masksmith.metrics import get_metric
from masksmith.postprocess.config import TripletOperator, TuningConfig
from masksmith.postprocess.operator_rule import Seen
from masksmith.postprocess.operator_search import make_operator_sweep
from masksmith.postprocess.regions import without_small
from masksmith.postprocess.search import best_rule

SECONDS = 0.5
IMAGES, RULES = 60, 10  # the loop over rules is timed on so many thresholds and areas, and scaled up


def rate(work):
    """Return calls a processor second."""
    work()
    done, start = 0, time.process_time()
    while True:
        work()
        done += 1
        spent = time.process_time() - start
        if spent > SECONDS:
            return done / spent


def tgs_loop(pred, target):
    """Score one image as the public kernels do: a table of overlaps, then threshold by threshold."""
    table = np.histogram2d(target.ravel(), pred.ravel(), bins=([0, 0.5, 1], [0, 0.5, 1]))[0]
    union = table.sum(axis=1, keepdims=True) + table.sum(axis=0, keepdims=True) - table
    if target.sum() == 0 or pred.sum() == 0:
        return float(target.sum() == pred.sum())
    iou = table[1:, 1:] / np.maximum(union[1:, 1:], 1e-9)
    precisions = []
    for threshold in np.arange(0.5, 1.0, 0.05):
        hits = iou > threshold
        true = np.sum(hits.sum(axis=1) == 1)
        false, missed = np.sum(hits.sum(axis=0) == 0), np.sum(hits.sum(axis=1) == 0)
        precisions.append(true / (true + false + missed))
    return float(np.mean(precisions))


def components_loop(mask, least):
    """Empty small components one after another."""
    count, labels = cv2.connectedComponents(mask)
    found = mask.copy()
    for label in range(1, count):
        region = labels == label
        if region.sum() < least:
            found[region] = 0
    return found


def pixel_loop(mask):
    """The first run-length encoder of the kernels: over the pixels of the mask."""
    dots = np.where(mask.T.flatten() == 1)[0]
    runs, previous = [], -2
    for dot in dots:
        if dot > previous + 1:
            runs.extend((dot + 1, 0))
        runs[-1] += 1
        previous = dot
    return " ".join(str(one) for one in runs)


def search_pair():
    images, metric = made(IMAGES), get_metric("tgs_map")
    config = TuningConfig(operators=[TripletOperator(op="triplet", top=[0.0], area=AREAS, at=THRESHOLDS)])

    def ours():
        pictures = lambda: ((codes[..., None], target, Seen()) for codes, target in images)  # noqa: E731
        rules, sweep = make_operator_sweep(pictures, metric, config, plain=PLAIN)
        return best_rule(sweep, rules, metric)

    def loop():
        for at in THRESHOLDS[:: len(THRESHOLDS) // RULES][:RULES]:
            for codes, target in images:
                mask = (codes > at * 255).astype(np.uint8)
                if mask.sum() < AREAS[5] * mask.size:
                    mask[:] = 0
                tgs_loop(mask, target)

    return ours, loop, RULES / (len(THRESHOLDS) * len(AREAS))


def metric_pair():
    images, metric = made(IMAGES), get_metric("tgs_map")
    drawn = [((codes > 127).astype(np.uint8), target) for codes, target in images]

    def ours():
        return metric.score(np.stack([metric.stats(pred, target) for pred, target in drawn]))

    def loop():
        return np.mean([tgs_loop(pred, target) for pred, target in drawn])

    assert np.isclose(ours(), loop())
    return ours, loop, 1.0


def components_pair():
    noise = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), 3)
    mask, least = (noise > 0.5 * noise.std()).astype(np.uint8), 60
    ours, loop = partial(without_small, mask, least / mask.size), partial(components_loop, mask, least)
    assert (ours() == loop()).all()
    return ours, loop, 1.0


def pairs():
    """Yield key, ours, the loop, and what part of ours one call of the loop does."""
    yield ("search/threshold-area", *search_pair())
    yield ("metric/tgs", *metric_pair())
    yield ("components", *components_pair())
    for side in (101, 1024):
        mask = discs(side)
        assert encode(mask) == pixel_loop(mask)
        yield f"rle/{side}", partial(encode, mask), partial(pixel_loop, mask), 1.0
