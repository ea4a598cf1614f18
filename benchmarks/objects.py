"""The watershed of postprocess.objects against OpenCV's, on the planes of true objects, blurred and with noise.

MASKSMITH_SHARED=... python benchmarks/objects.py
"""

import argparse
import os
import time
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np

from masksmith.augment.object_planes import object_planes
from masksmith.core.arrays import DISTANCE_TOP
from masksmith.data.decode.pictures import decode_image
from masksmith.data.instances import objects_of_files
from masksmith.data.layouts import read_catalog
from masksmith.data.tree import Tree
from masksmith.metrics import get_metric
from masksmith.postprocess import objects
from masksmith.prediction.store import to_codes


def read_labels(folder: Path, every: int):
    """Yield the label map of every so-many-th training image."""
    catalog, tree = read_catalog(folder), Tree(folder)
    for sample in catalog.train[::every]:
        image = decode_image(tree.read(sample.image), where=sample.image)
        files = ((path, tree.read(path)) for path in sample.objects)
        yield objects_of_files(files, shape=image.shape[:2]).labels


def rough_codes(labels, *, blur: float, noise: float, rng):
    """Return what a model that blurs and errs would say."""
    planes = object_planes(labels) / np.array([1, 1, DISTANCE_TOP], np.float32)
    if blur:
        planes = cv2.GaussianBlur(planes, (0, 0), blur)
        planes = planes + 4 * noise * cv2.GaussianBlur(rng.normal(size=planes.shape), (0, 0), 2)
    return to_codes(np.clip(planes, 0, 1))


def opencv_flood(regions, seeds, height):
    """Flood by cv2.watershed; what it gives to none has the number of a neighbour."""
    lone = int(seeds.max(initial=0)) + regions
    seeded = np.isin(regions, np.unique(regions[seeds > 0]))
    markers = np.pad(np.where(seeded, seeds, lone * (regions > 0)), 1).astype(np.int32)
    surface = np.pad(np.where(regions > 0, height * 4 + 128, 0), 1).astype(np.uint8)
    cv2.watershed(cv2.merge([surface] * 3), markers)
    labels = np.where(regions > 0, markers[1:-1, 1:-1], 0)
    while (hole := (regions > 0) & (labels <= 0)).any():
        grown = cv2.dilate(np.maximum(labels, 0).astype(np.float32), np.ones((3, 3), np.uint8))
        labels = np.where(hole, grown, labels)
    return labels.astype(np.int32)


def main():
    """Print the score and the time of an image under each rule."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=3, help="which images are taken")
    every = parser.parse_args().every
    cv2.setNumThreads(1)
    truth = list(read_labels(Path(os.environ["MASKSMITH_SHARED"]) / "data" / "dsb2018", every))
    metric, plain = get_metric("dsb_map"), objects.PLAIN_OBJECTS
    rules = {"ours": (plain, objects.flood), "OpenCV": (plain, opencv_flood)}
    rules["regions"] = (objects.ObjectRule(plain.foreground, objects.MAX_CODE), objects.flood)
    print("| blur | noise | rule | dsb_map | ms an image |\n|---|---|---|---|---|")
    for blur, noise in ((0.0, 0.0), (1.5, 0.0), (1.5, 0.1), (2.0, 0.2)):
        rng = np.random.default_rng(0)
        codes = [rough_codes(labels, blur=blur, noise=noise, rng=rng) for labels in truth]
        for name, (rule, flood) in rules.items():
            with patch.object(objects, "flood", flood):
                start = time.perf_counter()
                found = [rule.apply(one) for one in codes]
                spent = 1000 * (time.perf_counter() - start) / len(codes)
            rows = [metric.stats(*pair) for pair in zip(found, truth, strict=True)]
            print(f"| {blur} | {noise} | {name} | {metric.score(np.stack(rows)):.3f} | {spent:.1f} |")


if __name__ == "__main__":
    main()
