"""The threshold sweep and run-length encoding against the straightforward ways.

    python benchmarks/sweep.py

The sweep scores rules of (top threshold, pixels, bottom threshold) on 300 images of 101x101: from one histogram
an image, and by making every mask. Encoding is timed against the pixel loop of the public kernels.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

from masksmith.data.rle import encode
from masksmith.metrics import get_metric
from masksmith.postprocess.config import TuningConfig
from masksmith.postprocess.operators import apply_rule
from masksmith.postprocess.search import best_rule, candidate_rules, sweep_counts


def timed(work: Callable[[], object], repeats: int) -> tuple[float, str]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    middle = statistics.median(times)
    return middle, f"{middle:.4g} s ({min(times):.4g} to {max(times):.4g}, n={repeats})"


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


def main() -> None:
    rng = np.random.default_rng(0)
    masks = [(rng.random((101, 101)) < 0.3).astype(np.uint8) for _ in range(300)]
    pairs = [(rng.integers(0, 65536, (101, 101)).astype(np.uint16), mask) for mask in masks]
    metric = get_metric("tgs_map")
    rules = candidate_rules(TuningConfig(), median_area=10201.0)
    some = rules[:: max(1, len(rules) // 40)]

    def by_histogram() -> None:
        sweep = sweep_counts(pairs, [code for rule in rules for code in (rule.top, rule.bottom)])
        best_rule(sweep, rules, metric)

    def by_masks() -> None:
        for rule in some:
            metric.score(np.stack([metric.stats(apply_rule(codes, rule), target) for codes, target in pairs]))

    ours, text = timed(by_histogram, 3)
    print(f"sweep, histogram: {len(rules)} rules in {text}")
    theirs, text = timed(by_masks, 3)
    print(f"sweep, every mask: {len(some)} rules in {text}")
    print(f"ratio a rule: {theirs / len(some) / (ours / len(rules)):.0f}x")

    blob = np.zeros((101, 101), np.uint8)
    blob[20:80, 10:60] = 1
    ours, text = timed(lambda: encode(blob), 200)
    print(f"encode: {text}")
    theirs, text = timed(lambda: pixel_loop(blob), 50)
    print(f"encode, pixel loop: {text}; ratio {theirs / ours:.0f}x")


if __name__ == "__main__":
    main()
