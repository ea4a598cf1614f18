"""Milliseconds an image: objects, boundaries and distances against the forms that scipy and MONAI give.

    python benchmarks/metrics.py [--repeats 15]

One thread; time of the processor, so that neighbours count little. Images of 256x256 and 1024x1024 with blobs;
every form is checked to give the same number, then all forms take turns. Printed: the median with minimum and
maximum, and the ratio of the medians. Needs scipy and MONAI (the dev extra).
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import cv2
import numpy as np
import torch
from monai.metrics import compute_hausdorff_distance
from scipy import ndimage

from masksmith.metrics import get_metric

Form = Callable[[np.ndarray, np.ndarray], float]
EIGHT = np.ones((3, 3), int)


def blobs(rng: np.random.Generator, size: int, noise: np.ndarray) -> np.ndarray:
    field = cv2.GaussianBlur(noise + 0.35 * rng.normal(size=(size, size)), (0, 0), 5.0)
    return (field > 0.6 * field.std()).astype(np.uint8)


def ours(name: str) -> Form:
    metric = get_metric(name)
    return lambda pred, target: metric.score(metric.stats(pred, target)[None])


def dsb_scipy(pred: np.ndarray, target: np.ndarray) -> float:
    """Scipy's labels and a dense table of overlaps, the form of the public kernels."""
    found, num_found = ndimage.label(pred, EIGHT)
    there, num_there = ndimage.label(target, EIGHT)
    table = np.histogram2d(
        found.ravel(), there.ravel(), bins=(np.arange(num_found + 2), np.arange(num_there + 2))
    )[0]
    union = table.sum(axis=1, keepdims=True) + table.sum(axis=0, keepdims=True) - table
    share = (table / union)[1:, 1:]
    hits = [(share > k / 20 + 1e-12).sum() for k in range(10, 20)]
    return float(np.mean([hit / (num_found + num_there - hit) for hit in hits]))


def edges(*masks: np.ndarray) -> list[np.ndarray]:
    return [mask.astype(bool) & ~ndimage.binary_erosion(mask) for mask in masks]


def boundary_scipy(pred: np.ndarray, target: np.ndarray) -> float:
    near = 0.0075 * np.hypot(*pred.shape)
    found, there = edges(pred, target)
    precise = (ndimage.distance_transform_edt(~there)[found] <= near).mean()
    complete = (ndimage.distance_transform_edt(~found)[there] <= near).mean()
    return float(2 * precise * complete / (precise + complete))


def hausdorff_scipy(pred: np.ndarray, target: np.ndarray) -> float:
    found, there = edges(pred, target)
    sides = ((found, there), (there, found))
    return float(
        max(np.percentile(ndimage.distance_transform_edt(~other)[edge], 95) for edge, other in sides)
    )


def hausdorff_monai(pred: np.ndarray, target: np.ndarray) -> float:
    pair = [torch.from_numpy(mask[None, None].astype(np.float32)) for mask in (pred, target)]
    return float(compute_hausdorff_distance(*pair, include_background=True, percentile=95))


FORMS: dict[str, dict[str, Form]] = {
    "dsb_map": {"ours": ours("dsb_map"), "scipy": dsb_scipy},
    "boundary_f1": {"ours": ours("boundary_f1"), "scipy": boundary_scipy},
    "hausdorff_95": {
        "ours": ours("hausdorff_95"),
        "scipy": hausdorff_scipy,
        "MONAI": hausdorff_monai,
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", category=FutureWarning, module="monai")
    rng = np.random.default_rng(0)
    for size in (256, 1024):
        noise = rng.normal(size=(size, size))
        pred, target = blobs(rng, size, noise), blobs(rng, size, noise)
        print(f"{size}x{size}, {ndimage.label(target, EIGHT)[1]} objects")
        for name, forms in FORMS.items():
            results = {form: work(pred, target) for form, work in forms.items()}
            assert np.allclose(list(results.values()), results["ours"], atol=1e-4), results
            times: dict[str, list[float]] = {form: [] for form in forms}
            for _ in range(repeats):
                for form, work in forms.items():
                    start = time.process_time()
                    work(pred, target)
                    times[form].append(1000 * (time.process_time() - start))
            base = statistics.median(times["ours"])
            for form, taken in times.items():
                middle = statistics.median(taken)
                print(
                    f"  {name:13s} {form:6s} {middle:8.2f} ms ({min(taken):.2f} to {max(taken):.2f}, n={repeats}), "
                    f"{middle / base:.1f} times ours"
                )


if __name__ == "__main__":
    main()
