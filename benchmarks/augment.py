"""Images a second of augmentation on one core, against albumentations at equal channels and operations.

    python benchmarks/augment.py [--rounds 7] [--albumentations FOLDER]

albumentations is not a dependency: give the site-packages folder of an environment that has version 2.0.8 (without it
only ours is measured); our own versions of what both need win. Both get the same bytes and do: mirror 0.5, rotation
± 8°, scale 0.88 to 1.15, shift ± 6%, brightness, contrast and gamma, padding to the canvas by reflection; with
distortions one of elastic, grid and optical in 30% of the images (ours: each in 10%). Ours gives float32 in 0…1, as the
net takes it. albumentations is measured twice: as it is (bytes), and with its ToFloat; its masks are of the nearest
pixel, ours of the interpolated half.

The engines take turns image by image, on one thread, and the time of the processor is counted: what else the machine
does hits all alike. Printed: median images/s over the rounds with minimum and maximum, and the ratio of ours to each.
"""

import argparse
import os
import statistics
import sys
import time
from functools import partial

import cv2
import numpy as np

CASES = {"101->128": (101, 128), "512": (512, 512)}


def pictures(size: int, channels: int):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, size, size, channels)).astype(np.uint8)
    masks = np.zeros((16, size, size), np.uint8)
    masks[:, size // 4 : size // 2, size // 3 :] = 1
    return images, masks


def ours(size: int, canvas: int, channels: int, distort: bool):
    from masksmith.augment.geometry import GeometryConfig, draw_affine, draw_more
    from masksmith.augment.intensity import IntensityConfig, apply_table, draw_table
    from masksmith.augment.warp import warp
    from masksmith.core.randomness import stream

    part = {"probability": 0.1 if distort else 0.0}
    geometry = GeometryConfig(
        hflip=0.5,
        rotate_deg=8.0,
        scale_range=(0.88, 1.15),
        shift_frac=0.06,
        elastic=part,
        grid=part,
        optical=part,
    )
    intensity = IntensityConfig(brightness=0.06, contrast=0.1, gamma=0.2)
    target = np.empty((canvas, canvas, channels), np.float32)

    def one(image, mask, index: int) -> None:
        rng = stream(0, 0, 0, index)
        motion = draw_more(geometry, draw_affine(geometry, rng), rng)
        table = draw_table(intensity, rng, max_value=255)
        moved, _ = warp(image, mask, motion, canvas_hw=(canvas, canvas))
        apply_table(table, moved, target)

    return one


def theirs(size: int, canvas: int, channels: int, distort: bool, as_float: bool):
    import albumentations as A
    import cv2

    border = {"border_mode": cv2.BORDER_REFLECT_101}
    steps = [
        A.HorizontalFlip(p=0.5),
        A.Affine(scale=(0.88, 1.15), rotate=(-8, 8), translate_percent=(-0.06, 0.06), p=1, **border),
    ]
    if distort:
        kinds = [
            A.ElasticTransform(alpha=size * 0.3, sigma=size * 0.08),
            A.GridDistortion(),
            A.OpticalDistortion(),
        ]
        steps.append(A.OneOf(kinds, p=0.3))
    if canvas > size:
        steps.append(A.PadIfNeeded(canvas, canvas, **border))
    steps += [A.RandomBrightnessContrast(0.06, 0.1, p=1), A.RandomGamma((80, 125), p=1)]
    if as_float:
        steps.append(A.ToFloat(255))
    whole = A.Compose(steps, seed=0)

    def one(image, mask, index: int) -> None:
        whole(image=image, mask=mask)

    return one


def measure(
    engines, size: int, canvas: int, channels: int, distort: bool, rounds: int
) -> dict[str, list[float]]:
    """Return images/s of each engine in each round."""
    images, masks = pictures(size, channels)
    run = {name: make(size, canvas, channels, distort) for name, make in engines.items()}
    count, found = (160 if size < 256 else 48), {name: [] for name in engines}
    for number in range(rounds + 1):  # the first one warms up
        spent = dict.fromkeys(engines, 0.0)
        for index in range(count):
            for name, one in run.items():
                start = time.process_time()
                one(images[index % 16], masks[index % 16], number * count + index)
                spent[name] += time.process_time() - start
        if number:
            for name, seconds in spent.items():
                found[name].append(count / seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--channels", nargs="+", type=int, default=[1, 3])
    parser.add_argument("--albumentations", help="a site-packages folder that has albumentations 2.0.8")
    chosen = parser.parse_args()
    engines = {"ours": ours}
    if chosen.albumentations:
        os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
        sys.path.append(chosen.albumentations)
        engines["albumentations"] = partial(theirs, as_float=False)
        engines["albumentations, float"] = partial(theirs, as_float=True)
    cv2.setNumThreads(1)
    for channels in chosen.channels:
        for case, (size, canvas) in CASES.items():
            for distort in (False, True):
                found = measure(engines, size, canvas, channels, distort, chosen.rounds)
                print(f"{channels} channels, {case}{', distortions' if distort else ''}")
                own = statistics.median(found["ours"])
                for engine, values in found.items():
                    middle = statistics.median(values)
                    print(
                        f"  {engine:22s} {middle:7.0f} images/s ({min(values):.0f} to {max(values):.0f}), "
                        f"ours is {own / middle:.2f}x"
                    )


if __name__ == "__main__":
    main()
