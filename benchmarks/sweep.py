"""Searches of thresholds and least areas, and run-length encoding, against the straightforward ways.

    python benchmarks/sweep.py [--images 4000]

The images have 101x101 pixels, smooth noise, and as true masks that with other noise added to it; a third is empty.
An image has a mask if enough of its pixels are above the threshold (image level: 255 thresholds x 30 areas), or only
its regions that are large enough (component level: 32 thresholds x 30 areas). The straightforward way makes the mask of
each rule and image and scores it, on fewer rules and images, and is scaled up. Seconds are processor time.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import cv2
import numpy as np

from masksmith.data.rle import encode
from masksmith.metrics import get_metric
from masksmith.postprocess.config import AreaOperator, TripletOperator, TuningConfig
from masksmith.postprocess.operator_rule import Seen
from masksmith.postprocess.operator_search import make_operator_sweep
from masksmith.postprocess.operators import PLAIN
from masksmith.postprocess.search import best_rule

THRESHOLDS = [(at + 0.5) / 256 for at in range(255)]
AREAS = [round(0.001 * at, 4) for at in range(30)]
NAIVE_RULES, NAIVE_IMAGES = 24, 200


def timed(work: Callable[[], object], repeats: int) -> tuple[float, str]:
    times = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    middle = statistics.median(times)
    return middle, f"{middle:.4g} s ({min(times):.4g} to {max(times):.4g}, n={repeats})"


def smooth(rng: np.random.Generator) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.standard_normal((101, 101)).astype(np.float32), (0, 0), 7)
    return noise / noise.std()


def made(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    found = []
    for at in range(count):
        height = smooth(rng) + (-3 if at % 3 == 0 else 0)
        logits = 3 * height + smooth(rng) + 0.3 * rng.standard_normal((101, 101))
        codes = np.rint(65535 / (1 + np.exp(-logits))).astype(np.uint16)
        found.append((codes, (height > 0.3).astype(np.uint8)))
    return found


def pixel_loop(mask: np.ndarray) -> str:
    runs: list[int] = []
    previous = -2
    for at, value in enumerate(mask.T.ravel()):
        if value:
            if at > previous + 1:
                runs.extend((at + 1, 0))
            runs[-1] += 1
            previous = at
    return " ".join(map(str, runs))


def search(config: TuningConfig, images: list[tuple[np.ndarray, np.ndarray]], what: str) -> None:
    metric = get_metric("tgs_map")
    size = 0

    def ours() -> None:
        nonlocal size
        pictures = lambda: ((codes[..., None], target, Seen()) for codes, target in images)  # noqa: E731
        rules, sweep = make_operator_sweep(pictures, metric, config, plain=PLAIN)
        best_rule(sweep, rules, metric)
        size = len(rules)

    own, text = timed(ours, 3)
    print(f"{what}: {size} rules, {len(images)} images of 101x101: {text}")
    few = images[:NAIVE_IMAGES]
    pictures = lambda: ((codes[..., None], target, Seen()) for codes, target in few)  # noqa: E731
    rules, sweep = make_operator_sweep(pictures, metric, config, plain=PLAIN)
    some = rules[:: len(rules) // NAIVE_RULES][:NAIVE_RULES]

    def naive() -> list[float]:
        return [
            metric.score(np.stack([metric.stats(rule.apply(codes), target) for codes, target in few]))
            for rule in some
        ]

    assert np.allclose(naive(), [metric.score(sweep.rows_of(rule)) for rule in some])
    theirs, text = timed(naive, 3)
    whole = theirs / len(some) / len(few) * size * len(images)
    print(
        f"  every mask: {len(some)} rules, {len(few)} images: {text}; all of them {whole:.0f} s, {whole / own:.0f}x"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=4000)
    cv2.setNumThreads(1)
    images = made(parser.parse_args().images)
    triplet = TripletOperator(
        op="triplet", top=[0.0], area=AREAS, at=THRESHOLDS
    )  # the top is the threshold itself
    search(TuningConfig(operators=[triplet]), images, "image level")
    some = THRESHOLDS[4::8]
    plain = TripletOperator(op="triplet", top=[0.0], area=[0.0], at=some)
    regions = AreaOperator(op="component_area", frac=AREAS)
    search(TuningConfig(operators=[plain, regions]), images, "component level")

    blob = np.zeros((101, 101), np.uint8)
    blob[20:80, 10:60] = 1
    ours, text = timed(lambda: [encode(blob) for _ in range(100)], 5)
    print(f"encode, 100 times: {text}")
    theirs, text = timed(lambda: pixel_loop(blob), 50)
    print(f"encode, pixel loop: {text}; ratio {100 * theirs / ours:.0f}x")


if __name__ == "__main__":
    main()
