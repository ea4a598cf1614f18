"""Balance of folds: masksmith's assignment against scikit-learn's StratifiedGroupKFold.

    python benchmarks/folds.py [--sets 20] [--folds 5]        (needs scikit-learn)

Random sets of 100 to 2,000 images in 11 coverage classes, about 40% of them empty. In one half of the sets one image in
eight belongs to a group (identical images, such as black ones), in the other all do (a patient, a location); images of
a group have similar coverage. Printed for either half: the mean and the largest spread (most minus fewest images of a
fold) of the fold sizes and of the classes, and the seconds for all of its sets.
"""

import argparse
import time

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold

from masksmith.folds.assignment import assign_folds


def random_set(seed: int, *, grouped_frac: float) -> tuple[np.ndarray, list[str]]:
    """Return the class and the group of each image."""
    rng = np.random.default_rng(seed)
    classes, groups = [], []
    num = int(rng.integers(100, 2000))
    while len(classes) < num:
        size = int(rng.geometric(0.15)) if rng.random() < grouped_frac else 1
        centre = 0 if rng.random() < 0.4 else rng.integers(1, 11)
        classes += np.clip(np.rint(rng.normal(centre, 0.7, size)), 0, 10).astype(int).tolist()
        groups += [f"group {len(groups)}"] * size
    return np.array(classes), groups


def masksmith_folds(classes, groups, count, seed):
    return assign_folds(classes.tolist(), groups, count=count, seed=seed)


def sklearn_folds(classes, groups, count, seed):
    folds = np.empty(len(classes), int)
    splitter = StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    for fold, (_, held_out) in enumerate(splitter.split(classes, classes, groups)):
        folds[held_out] = fold
    return folds


def spreads(classes, folds, count) -> tuple[int, float]:
    """Return most minus fewest images of a fold, and the same of a class, mean over the classes."""
    table = np.zeros((count, 11), int)
    np.add.at(table, (folds, classes), 1)
    return int(np.ptp(table.sum(axis=1))), float(np.ptp(table, axis=0).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sets", type=int, default=20)
    parser.add_argument("--folds", type=int, default=5)
    asked = parser.parse_args()
    print("sets       method        fold size: mean  largest   class: mean  largest   seconds")
    for name, frac in (("few groups", 0.02), ("all groups", 1.0)):
        sets = [random_set(seed, grouped_frac=frac) for seed in range(asked.sets // 2)]
        for method in (masksmith_folds, sklearn_folds):
            start = time.perf_counter()
            assigned = [method(*one, asked.folds, seed) for seed, one in enumerate(sets)]
            seconds = time.perf_counter() - start
            found = [spreads(one[0], folds, asked.folds) for one, folds in zip(sets, assigned, strict=True)]
            sizes, kinds = zip(*found, strict=True)
            print(
                f"{name}  {method.__name__:15s} {np.mean(sizes):12.1f} {max(sizes):8d} "
                f"{np.mean(kinds):13.2f} {max(kinds):8.2f} {seconds:9.2f}"
            )


if __name__ == "__main__":
    main()
