"""What `check` takes: time and memory by the number of images, and near-duplicates against a plain loop.

    python benchmarks/check.py [--images 1000 20000] [--side 128] [--memory] [--data DIR ...]

Generated pairs of PNG (128x128), textures of one layout (a gradient) so that all look alike from afar; one image in
twenty is a near-duplicate of another (brighter, from JPEG, noisier, of half the size and back, of other gamma) and one
in a hundred an equal copy. Each number of images is checked in a fresh process. Printed: seconds of the processor (and
of the clock) of the whole check, those of a loop that only opens the same files with Pillow, those of the search for
near-duplicates, the largest memory of the process, and how many of the planted near-duplicates were joined and how
many images wrongly. The search is compared with a plain loop over all pairs of the same thumbnails (numpy). With
``--memory``: only the memory of reading the catalogue and of the whole check. With ``--data``: what is found in those
folders.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from masksmith.data.cache import build_cache
from masksmith.data.groups import find_likeness, suggestions
from masksmith.data.layouts import read_catalog
from masksmith.data.look import look, thumbnail
from masksmith.data.near_duplicates import near_groups
from masksmith.steps.check import check_folder

SIDE = 128


def texture(rng: np.random.Generator, side: int = SIDE) -> np.ndarray:
    """Return a picture: a gradient that all share, a coarse and a fine texture of its own."""
    coarse = cv2.resize(
        rng.standard_normal((12, 12)).astype(np.float32), (side, side), interpolation=cv2.INTER_CUBIC
    )
    fine = rng.standard_normal((side, side))
    image = np.linspace(40, 200, side) + 15 * coarse + 10 * fine
    return np.clip(image, 0, 255).astype(np.uint8)


def changed(image: np.ndarray, kind: int, rng: np.random.Generator) -> np.ndarray:
    """Return the same picture as somebody else would store it."""
    if kind == 0:
        return np.clip(image.astype(int) + 1, 0, 255).astype(np.uint8)
    if kind == 1:
        return cv2.imdecode(
            cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 75])[1], cv2.IMREAD_GRAYSCALE
        )
    if kind == 2:
        return np.clip(image + 4 * rng.standard_normal(image.shape), 0, 255).astype(np.uint8)
    if kind == 3:
        side = len(image)
        half = cv2.resize(image, (side // 2, side // 2), interpolation=cv2.INTER_AREA)
        return cv2.resize(half, (side, side))
    return (255 * (image / 255.0) ** 0.8).astype(np.uint8)


def generate(root: Path, num: int, side: int = SIDE) -> dict[str, str]:
    """Write the pairs; return id -> id of the image that it is a near-duplicate of."""
    rng = np.random.default_rng(0)
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    same, last = {}, texture(rng, side)
    for at in range(num):
        if at % 20 == 1:
            image, same[str(at)] = changed(last, at // 20 % 5, rng), str(at - 1)
        elif at % 100 == 50:
            image = last
            same[str(at)] = str(at - 1)
        else:
            image = texture(rng, side)
        last = image
        cv2.imwrite(str(root / "images" / f"{at}.png"), image)
        mask = np.zeros((side, side), np.uint8)
        top, left = at % (side // 3), side // 6
        mask[top : top + side // 3, left : left + side // 2] = 255
        cv2.imwrite(str(root / "masks" / f"{at}.png"), mask)
    return same


def pillow_seconds(root: Path) -> float:
    """Return the seconds of opening every file with Pillow."""
    began = time.process_time()
    for path in sorted(root.glob("*/*.png")):
        with Image.open(path) as image:
            np.asarray(image).mean()
    return time.process_time() - began


def peak_mb() -> float:
    """Return the largest memory of the process until now, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(num: int, side: int) -> None:
    """Read the catalogue of generated images and check them in this process; print the largest memory after each."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        generate(root / "data", num, side)
        before = peak_mb()
        read_catalog(root / "data")
        read = peak_mb()
        began = time.process_time()
        check_folder(root / "data", root / "out", dialect=None)
        seconds = time.process_time() - began
    print(
        f"{num:7d} of {side}x{side}: before {before:.0f} MB, catalogue read {read:.0f} MB, checked {peak_mb():.0f} MB, "
        f"{1000 * seconds / num:.2f} s of the processor per 1,000"
    )


def one(num: int) -> None:
    """Check generated images in this process, and print a line."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        same = generate(root / "data", num)
        plain = pillow_seconds(root / "data")
        before = peak_mb()
        began, clock = time.process_time(), time.perf_counter()
        check_folder(root / "data", root / "out", dialect=None)
        whole, clock = time.process_time() - began, time.perf_counter() - clock
        after = peak_mb()
        cache = build_cache(read_catalog(root / "data"), root / "out" / "cache")
        (root / "out" / "cache" / "train_images.look.npz").unlink()
        began = time.process_time()
        seen = look(cache.train_images)
        groups = near_groups(seen, lambda at: thumbnail(cache.train_images[str(seen.names[at])]))
        near = time.process_time() - began
        at = {str(name): number for number, name in enumerate(seen.names)}
        found = sum(groups[at[a]] == groups[at[b]] for a, b in same.items())
        for a, b in same.items():
            groups[at[a]] = groups[at[b]] = at[a]
        wrong = num - len(np.unique(groups)) - len(same)
    print(
        f"{num:7d}  check {whole:6.1f} s (clock {clock:.1f}; {1000 * whole / num:.2f} per 1,000, Pillow alone "
        f"{1000 * plain / num:.2f})  near-duplicates {near:5.1f} s  memory {before:.0f} -> "
        f"{after:.0f} MB  planted {found} of {len(same)}, joined wrongly {wrong}"
    )


def loop_seconds(num: int) -> tuple[float, float]:
    """Return the seconds of near_groups, and of a loop over all pairs of thumbnails, for so many images."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder) / "data", num)
        cache = build_cache(read_catalog(Path(folder) / "data"), Path(folder) / "cache")
        images = cache.train_images
        began = time.process_time()
        seen = look(images)
        near_groups(seen, lambda at: thumbnail(images[str(seen.names[at])]))
        ours = time.process_time() - began
        began = time.process_time()
        small = [
            np.asarray(Image.fromarray(images[name][..., 0]).resize((32, 32)), float).ravel()
            for name in images
        ]
        pairs = [
            (a, b)
            for a in range(num)
            for b in range(a)
            if np.corrcoef(small[a].ravel(), small[b].ravel())[0, 1] > 0.98
        ]
        return ours, time.process_time() - began + 0 * len(pairs)


def describe(path: Path) -> None:
    """Print what is found in a data folder."""
    with tempfile.TemporaryDirectory() as folder:
        catalog = read_catalog(path)
        cache = build_cache(catalog, Path(folder))
        began = time.process_time()
        alike = find_likeness(cache.train_images, cache.test_images)
        seconds = time.process_time() - began
    _, counts = np.unique(alike.groups, return_counts=True)
    _, equal = np.unique(alike.seen.pixels, return_counts=True)
    named = [f"{one.line}: {one.count} groups, own kind {one.own:.0%}" for one in suggestions(catalog, alike)]
    print(
        f"{path.name}: {len(alike.seen)} images in {seconds:.1f} s: {counts[counts > 1].sum()} alike in "
        f"{(counts > 1).sum()} groups, {equal[equal > 1].sum()} of them equal; {len(alike.neighbours.pairs)} pairs of "
        f"neighbours ({alike.neighbours.chance} by chance); {'; '.join(named) or 'names suggest nothing'}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, nargs="*", default=[1000, 5000, 20000])
    parser.add_argument("--data", type=Path, nargs="*", default=[])
    parser.add_argument("--side", type=int, default=SIDE, help="pixels, with --memory")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--one", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        memory(asked.one, asked.side) if asked.memory else one(asked.one)
        return
    more = ["--memory", "--side", str(asked.side)] if asked.memory else []
    for num in asked.images:
        subprocess.run([sys.executable, __file__, "--one", str(num), *more], check=True)
    if asked.images and not asked.memory:
        ours, loop = loop_seconds(1000)
        print(f"near-duplicates of 1,000 images: {ours:.2f} s, a loop over all pairs {loop:.1f} s")
    for path in asked.data:
        describe(path)


if __name__ == "__main__":
    main()
