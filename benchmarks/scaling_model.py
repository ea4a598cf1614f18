"""A model of cost from the points of ``scaling.py``, and what a million images or a country would take by it.

    python benchmarks/scaling_model.py [--lines benchmarks/scaling.jsonl]

Each stage's seconds and memory are a + b n + c n² (n images) or a + b p (p megapixels of one image), fitted to relative
errors with no coefficient below zero; the largest relative residual is printed. Then the stages of two large works on
1, 10 and 100 nodes, as masksmith is (training and prediction on all nodes, the rest in the driver's process) and if all
stages were tasks, with what each stage waits for. The node and the store that are counted with are assumptions: NODE.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Point = dict[str, Any]
LINES = Path(__file__).with_name("scaling.jsonl")


def read_lines(path: Path) -> list[Point]:
    """Return the points; of two of one place the later."""
    found: dict[str, Point] = {}
    for row in path.read_text().splitlines():
        point = json.loads(row)
        where = ("axis", "stage", "images", "side", "bands", "recipe", "batch", "folds")
        if point["axis"] == "sides" and point["stage"] != "step":
            where = ("axis", "stage", "side", "bands")
        found[str([point.get(key) for key in where])] = point
    return list(found.values())


def fit(xs: list[float], ys: list[float], powers: tuple[int, ...]) -> tuple[list[float], float]:
    """Return the coefficients of a sum of powers, none below zero, and the largest relative residual.

    The relative errors are made small, so that the small points count as much as the large ones.
    """
    import numpy as np
    from scipy.optimize import nnls

    x, y = np.asarray(xs, float), np.asarray(ys, float)
    table = np.stack([x**power for power in powers], axis=1)
    scale = table.max(axis=0)  # the powers differ by ten orders
    found, _ = nnls(table / scale / y[:, None], np.ones(len(y)))
    found = found / scale
    return found.tolist(), float(np.abs(table @ found / y - 1).max())


def models(points: list[Point]) -> list[tuple[str, str, str, list[float], float, int]]:
    """Return (axis, stage, quantity, coefficients of 1, x, x², largest residual, points) of all that was measured.

    ``images``: seconds and MiB above the libraries, x = images. ``sides``: of one image, x = megapixels.
    """
    table = []
    for axis, unit in (("images", "images"), ("sides", "megapixels")):
        own = [one for one in points if one["axis"] == axis and one["stage"] != "write"]
        own = [one for one in own if one.get("bands", 1) == 1 and one.get("recipe", "smoke") == "smoke"]
        for stage in dict.fromkeys(one["stage"] for one in own):
            each = sorted(
                (one for one in own if one["stage"] == stage),
                key=lambda one: one.get("side", one.get("images")),
            )
            if len(each) < 2 or (
                axis == "sides" and stage in ("duplicates", "neighbours", "folds", "search")
            ):
                continue  # what the pixels do not decide, or too few sides
            if axis == "images":
                xs, num = [one["images"] for one in each], [1] * len(each)
            else:
                xs = [one.get("canvas", one["side"]) ** 2 / 1e6 for one in each]
                num = [one.get("images", 1) for one in each]
            powers = (0, 1, 2) if axis == "images" and len(each) > 2 else (0, 1)
            seconds = [one["seconds"] / count for one, count in zip(each, num, strict=True)]
            grown = [max(one["peak_mib"] - one["base_mib"], 0.1) for one in each]
            for quantity, ys in ((f"s, {unit}", seconds), (f"MiB, {unit}", grown)):
                found, worst = fit(xs, ys, powers)
                table.append((axis, stage, quantity, found + [0.0] * (3 - len(found)), worst, len(each)))
    count = [one for one in points if one["stage"] == "compete"]
    if len(count) > 1:
        found, worst = fit([one["folds"] for one in count], [one["seconds"] for one in count], (0, 1))
        table.append(("folds", "compete", "s, folds", [*found, 0.0], worst, len(count)))
    return table


# --- large works on paper -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A machine of a cluster, as it is assumed."""

    cores: int = 16
    memory_gb: float = 64.0
    disk_tb: float = 2.0
    network_gbs: float = 1.25
    """GB/s to the store that all nodes share (10 Gbit/s)."""


NODE, STORE_GBS = Node(), 5.0
"""GB/s of the store for all nodes together."""
OVERLAP = 1.5
"""Pixels of tiles for one of the image, tiles of 512 with an overlap of a quarter, on images of 1024 and more."""


@dataclass(frozen=True)
class Stage:
    """What a stage of a large work needs."""

    name: str
    core_s: float
    store_gb: float
    """Read from and written to the shared store."""
    tasks: int
    """Into how many parts it falls; 1: it is one process."""
    memory_gb: float
    """Of each of them."""
    parts: int = 0
    """Into how many it could fall if it were tasks; 0: no more than now."""
    wide: int = 1
    """Cores that a task can use."""

    def takes(self, nodes: int, *, as_tasks: bool) -> tuple[float, str]:
        """Return hours, and what decides them."""
        tasks = self.parts if as_tasks else self.tasks
        slots = min(tasks, nodes * NODE.cores // self.wide)
        cpu = self.core_s / tasks / self.wide * -(-tasks // slots)
        bandwidth = min(STORE_GBS, min(nodes, slots) * NODE.network_gbs)
        store = self.store_gb / bandwidth
        if store > cpu:
            name = "store" if bandwidth == STORE_GBS else "network of the node"
        elif tasks == 1:
            name = "one process"
        else:
            name = "number of tasks" if slots == tasks else "processors"
        return max(cpu, store) / 3600, name


class Costs:
    """The fitted coefficients, by what is asked of them."""

    def __init__(self, points: list[Point]) -> None:
        self.points = points
        self.table = {
            (axis, stage, what.split(",")[0]): found for axis, stage, what, found, *_ in models(points)
        }

    def of_image(self, stage: str, megapixels: float, what: str = "s") -> float:
        """Return seconds (or MiB) of one image."""
        a, b, _ = self.table["sides", stage, what]
        return a + b * megapixels

    def of_set(self, stage: str, images: float, what: str = "s") -> float:
        """Return seconds (or MiB) of a set of images of 101x101."""
        a, b, c = self.table["images", stage, what]
        return a + b * images + c * images**2

    def net_s(self, *, training: bool) -> float:
        """Return seconds a megapixel of `auto`'s net, from its largest canvas in batches of 4."""
        found = max(
            (one for one in self.points if one.get("recipe") == "auto"), key=lambda one: one["canvas"]
        )
        return found["seconds" if training else "forward_s"] / found["batch"] / (found["canvas"] ** 2 / 1e6)

    def search_s(self, megapixels: float) -> float:
        """Return seconds of one image in the search: of the small images, and what larger ones take beyond them."""
        fixed_s, small_s, _ = self.table["images", "search", "s"]
        large = max(
            (one for one in self.points if one["stage"] == "search" and "side" in one),
            key=lambda one: one["side"],
        )
        beyond = (large["seconds"] - fixed_s) / large["images"] - small_s
        return small_s + max(0.0, beyond) * megapixels / (large["side"] ** 2 / 1e6)


def million(costs: Costs) -> list[Stage]:
    """A million grey images of 1024x1024 with masks; five folds of ten epochs on windows of half the side."""
    num, mpx = 1_000_000, 1024**2 / 1e6
    gb = num * mpx / 1e3  # one byte a pixel
    files = max(
        (one for one in costs.points if one["stage"] == "write" and one.get("bands") == 1),
        key=lambda one: one["side"],
    )
    files_gb = files["files_mib"] / 1024 / files["images"] / (files["side"] ** 2 / 1e6) * mpx * num
    image_s = {stage: costs.of_image(stage, mpx) for stage in ("catalogue", "cache", "look")}
    image_kb = costs.table["images", "check", "MiB"][1] * 1024
    rows_kb = costs.table["images", "search", "MiB"][1] * 1024
    looks = 5 * 10 * 0.8 / 4  # five folds, ten epochs, four fifths of the images, a quarter of the pixels
    kb = num / 2**20  # GB of a kB an image
    decode_s = num * (image_s["catalogue"] + image_s["cache"])
    return [
        Stage("catalogue and cache", decode_s, files_gb + 2 * gb, 1, kb * image_kb, 4000),
        Stage("look", num * image_s["look"], gb, 1, kb, 4000),
        Stage("near-duplicates", costs.of_set("pairs", num), 2.0, 1, kb, 500),
        Stage("training", looks * num * mpx * costs.net_s(training=True), looks * 2 * gb, 5, 4.0, wide=NODE.cores),
        Stage("prediction out of fold", num * mpx * OVERLAP * costs.net_s(training=False), 3 * gb, 4000, 1.5),
        Stage("joining the shards", 0.0, 4 * gb, 1, 0.5),
        Stage("search, 255 x 30", num * costs.search_s(mpx), 3 * gb, 1, kb * rows_kb, 4000),
    ]  # fmt: skip


def country(costs: Costs, dates: int) -> list[Stage]:
    """Germany from Sentinel-2: 60 tiles of 10,980x10,980 pixels, ten bands of 16 bits at 10 m, a trained model."""
    tiles = 60 * dates
    mpx = tiles * 10_980**2 / 1e6
    several = [one for one in costs.points if one["stage"] == "cache" and one.get("bands") == 10]
    decode_s = costs.table["sides", "cache", "s"][1] * 10  # ten bands, where they were not measured
    if several:
        decode_s = several[-1]["seconds"] / several[-1]["images"] / (several[-1]["side"] ** 2 / 1e6)
    return [
        Stage("decoding", mpx * decode_s, mpx * 20 / 1e3, tiles, 0.5),
        Stage("prediction", mpx * OVERLAP * costs.net_s(training=False), mpx * 22 / 1e3, tiles, 1.5, 16 * tiles),
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lines", type=Path, default=LINES)
    points = read_lines(parser.parse_args().lines)
    for axis, stage, quantity, (a, b, c), worst, num in models(points):
        print(
            f"{axis:7s} {stage:11s} {quantity:15s} {a:10.4g} + {b:10.4g} x + {c:10.4g} x²   "
            f"within {worst:4.0%} ({num})"
        )
    costs = Costs(points)
    works = {
        "a million images of 1024x1024": million(costs),
        "Germany once": country(costs, 1),
        "Germany, 73 dates": country(costs, 73),
    }
    for title, stages in works.items():
        print(f"\n{title}")
        for stage in stages:
            for as_tasks in (False, True) if stage.parts > stage.tasks else (False,):
                cells = [
                    f"{hours:10.2f} h ({why})"
                    for hours, why in (stage.takes(nodes, as_tasks=as_tasks) for nodes in (1, 10, 100))
                ]
                name = f"  {stage.name}, as {stage.parts} tasks" if as_tasks else stage.name
                memory = "" if as_tasks else f"{stage.memory_gb:6.1f} GB"
                print(
                    f"{name:40s} {stage.core_s / 3600:9.2f} core-h {stage.store_gb:9.0f} GB {memory:>9s}",
                    *cells,
                )


if __name__ == "__main__":
    main()
