"""What is drawn on images, polygons and run-lengths, made into masks.

A pixel belongs to a polygon if its centre does, by the even-odd rule over all rings of the shape: a box from (5, 5) to
(15, 15) covers 10x10 pixels. COCO's own code (https://github.com/cocodataset/cocoapi, common/maskApi.c) differs from
that by less than a pixel along edges. What leaves the image is cut off.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from masksmith.core.arrays import IGNORE, UNJUDGED, Int, Mask, Shaped, UInt8
from masksmith.core.errors import InputError
from masksmith.data.catalog import BACKGROUND, Sample, Shape
from masksmith.data.findings import Finding, refuse_all, some
from masksmith.data.instances import Objects, paint_objects
from masksmith.data.target import BINARY, OBJECTS, Target, Task

_MOST_CLASSES = 254
"""Of a class map of 8 bits besides the background: 255 is what is not judged."""
_MARGIN = 1.0
"""Pixels by which a polygon may leave its image without a word."""
_SHOWN = 20


@dataclass(frozen=True)
class _Window:
    """The pixels of a shape, in the part of the image that holds them."""

    top: int
    left: int
    inside: Shaped[np.ndarray, "h w"]

    @property
    def place(self) -> tuple[slice, slice]:
        height, width = self.inside.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


_NOWHERE = _Window(0, 0, np.zeros((0, 0), bool))


# --- one shape --------------------------------------------------------------------------------------------


def _window(shape: Shape, shape_hw: tuple[int, int]) -> _Window:
    """Return the pixels of a shape, which check_drawings has seen."""
    if shape.runs is not None:
        return _runs_window(shape.runs, shape.box or [0, 0, *shape_hw], shape_hw)
    return _rings_window(shape, shape_hw)


def _rings_window(shape: Shape, shape_hw: tuple[int, int]) -> _Window:
    """Fill rings by the even-odd rule: each edge switches, in the rows that it crosses, all pixels to its right."""
    height, width = shape_hw
    points = np.array([one for ring in shape.rings for one in ring], np.float64).reshape(-1, 2)
    if shape.relative:
        points *= (width, height)
    xs, ys = points[:, 0], points[:, 1]
    after = np.arange(1, len(points) + 1)  # the next point of the ring
    start = 0
    for ring in shape.rings:
        start, first = start + len(ring) // 2, start
        after[start - 1] = first
    # an edge crosses row r if the row's centre r + 0.5 lies in [lower end, upper end)
    rows_of = np.minimum(np.maximum(np.ceil(ys - 0.5), 0), height).astype(np.int64)
    lower, counts = np.minimum(rows_of, rows_of[after]), np.abs(rows_of[after] - rows_of)
    crossed = np.flatnonzero(counts)
    if not len(crossed):
        return _NOWHERE
    lower, counts, after = lower[crossed], counts[crossed], after[crossed]
    down = ys[after] > ys[crossed]  # an edge of two neighbours is the same edge, whichever way it goes
    upper_end, lower_end = np.where(down, crossed, after), np.where(down, after, crossed)
    slope = (xs[lower_end] - xs[upper_end]) / (ys[lower_end] - ys[upper_end])
    begins = xs[upper_end] + (0.5 - ys[upper_end]) * slope
    rows = np.arange(int(counts.sum())) + np.repeat(lower - counts.cumsum() + counts, counts)
    crossings = np.repeat(begins, counts) + rows * np.repeat(slope, counts)
    columns = np.minimum(np.maximum(np.ceil(crossings - 0.5), 0), width).astype(np.int64)
    top, left = int(rows.min()), int(columns.min())
    size = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    switches = np.bincount((rows - top) * size[1] + columns - left, minlength=size[0] * size[1]) & 1
    inside = np.bitwise_xor.accumulate(switches.reshape(size).astype(bool), axis=1)
    return _Window(top, left, inside[:, : width - left])


def _runs_window(runs: Sequence[int], box: Sequence[int], shape_hw: tuple[int, int]) -> _Window:
    top, left, height, width = box
    lengths = np.asarray(runs, np.int64)
    assert lengths.sum() == height * width
    ends = lengths.cumsum()
    there = lengths[1::2] > 0
    if not height or not there.any():
        return _NOWHERE
    starts, stops = ends[:-1:2][there], ends[1::2][there]
    skipped, end = (
        int(starts[0]) // height,
        -(-int(stops[-1]) // height),
    )  # columns: those without it are not made
    switches = np.zeros(height * (end - skipped) + 1, np.int8)
    np.add.at(switches, starts - skipped * height, 1)
    np.add.at(switches, stops - skipped * height, -1)
    inside = switches[:-1].cumsum(dtype=np.int8).astype(bool).reshape(end - skipped, height).T
    return _cut(_Window(top, left + skipped, inside), shape_hw)


def _cut(window: _Window, shape_hw: tuple[int, int]) -> _Window:
    top, left = max(0, -window.top), max(0, -window.left)
    bottom, right = max(0, shape_hw[0] - window.top), max(0, shape_hw[1] - window.left)
    return _Window(window.top + top, window.left + left, window.inside[top:bottom, left:right])


def ellipse_ring(
    x: float, y: float, radius_x: float, radius_y: float, *, degrees: float = 0, points: int = 72
) -> list[float]:
    """Return the outline of an ellipse, turned clockwise, as a ring of a Shape."""
    turn = math.radians(degrees)
    ring = []
    for at in range(points):
        angle = 2 * math.pi * at / points
        along, across = radius_x * math.cos(angle), radius_y * math.sin(angle)
        ring += [
            x + along * math.cos(turn) - across * math.sin(turn),
            y + along * math.sin(turn) + across * math.cos(turn),
        ]
    return ring


def runs_of(mask: Shaped[np.ndarray, "h w"]) -> list[int]:
    """Return a mask as the runs of a Shape."""
    flat = np.ravel(mask != 0, order="F")
    edges = np.flatnonzero(np.diff(flat, prepend=False))
    found: list[int] = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    return found


def runs_of_rows(counts: Sequence[int], size_hw: tuple[int, int], *, where: str) -> list[int]:
    """Return the runs of a Shape from those that go row by row.

    Raises:
        InputError: They are not of that size.
    """
    if min(counts, default=0) < 0 or sum(counts) != size_hw[0] * size_hw[1]:
        raise InputError(
            f"{where}: run-lengths of {sum(counts)} pixels; expected {size_hw[0]}x{size_hw[1]} pixels; export it again"
        )
    flags = np.repeat(np.arange(len(counts)) % 2, np.asarray(counts, np.int64))
    return runs_of(flags.reshape(size_hw))


# --- all shapes of an image -------------------------------------------------------------------------------


def draw_classes(shapes: Iterable[Shape], classes: Mapping[str, int], shape_hw: tuple[int, int]) -> Mask:
    """Draw shapes over each other into a class map; what is nowhere drawn is 0.

    Args:
        shapes: In their order.
        classes: Label -> class; BACKGROUND is 0.
        shape_hw: (height, width) of the image.
    """
    drawn = np.zeros(shape_hw, np.uint8)
    for shape in shapes:
        window = _window(shape, shape_hw)
        drawn[window.place][window.inside] = (
            IGNORE if shape.unjudged else 0 if shape.label == BACKGROUND else classes[shape.label]
        )
    return drawn


def draw_layers(
    shapes: Iterable[Shape], labels: Sequence[str], shape_hw: tuple[int, int]
) -> UInt8[np.ndarray, "h w k"]:
    """Draw shapes into a layer of 0, 1 and IGNORE for each label.

    BACKGROUND, and what is not judged and has none of the labels, is drawn into all of them.
    """
    layers = np.zeros((*shape_hw, len(labels)), np.uint8)
    places = {label: at for at, label in enumerate(labels)}
    for shape in shapes:
        window = _window(shape, shape_hw)
        view = layers[window.place]
        value = IGNORE if shape.unjudged else int(shape.label != BACKGROUND)
        if shape.label in places:
            view[window.inside, places[shape.label]] = value
        else:
            view[window.inside] = value
    return layers


def draw_objects(shapes: Sequence[Shape], shape_hw: tuple[int, int]) -> Objects:
    """Draw shapes as objects; where two claim a pixel, the smaller one has it (see instances.py).

    A shape of BACKGROUND, or one that is not judged, takes its pixels from the objects before it.
    """
    width = shape_hw[1]
    taken = np.full(shape_hw, -1, np.int32).ravel()  # by which shape last
    unjudged = np.zeros(taken.shape, bool)
    parts: dict[tuple[str, int], list[tuple[int, Int[np.ndarray, " _"]]]] = {}
    names: dict[tuple[str, int], str] = {}
    for at, shape in enumerate(shapes):
        window = _window(shape, shape_hw)
        rows, columns = np.nonzero(window.inside)
        spots = ((rows + window.top) * width + columns + window.left).astype(np.int32)
        if shape.unjudged or shape.label == BACKGROUND:
            taken[spots] = at
            unjudged[spots] = shape.unjudged
            continue
        key = ("shape", at) if shape.object is None else ("object", shape.object)
        names.setdefault(key, f"shape {at + 1} ({shape.label!r})")
        parts.setdefault(key, []).append((at, spots))
    found, empty = [], []
    for key, own in parts.items():
        kept = [spots[taken[spots] < at] for at, spots in own]
        spots = kept[0] if len(kept) == 1 else np.unique(np.concatenate(kept))
        if len(spots):
            found.append((names[key], spots))
        else:
            empty.append(names[key])
    objects = paint_objects(found, shape_hw, empty=empty)
    objects.labels[(objects.labels == 0) & unjudged.reshape(shape_hw)] = UNJUDGED
    return objects


# --- a data set -------------------------------------------------------------------------------------------


def drawn_target(task: Task | None, classes: Sequence[str], *, where: str) -> Target:
    """Return what drawn shapes are learnt as.

    Args:
        task: None: objects.
        classes: Labels in their order, without the background.
        where: The data folder, for messages.

    Raises:
        InputError: A class map of more classes than 8 bits hold.
    """
    if task == "multilabel":
        return Target("multilabel", tuple(classes))
    if task == "binary":
        return BINARY
    if task != "multiclass":
        return OBJECTS
    if len(classes) > _MOST_CLASSES:
        raise InputError(
            f"{where}: {len(classes)} classes; a class map holds at most {_MOST_CLASSES} and the background; name "
            "fewer in dataset.yaml (classes:), or take --task instances"
        )
    names = (BACKGROUND, *classes)
    return Target("multiclass", names, tuple(range(len(names))))


def class_numbers(target: Target, labels: Iterable[str]) -> dict[str, int]:
    """Return label -> value in a mask of that target."""
    if target.task == "multiclass":
        return {name: at for at, name in enumerate(target.classes)}
    return dict.fromkeys(labels, 1)


def check_drawings(samples: Iterable[Sample], sizes: Mapping[str, tuple[int, int]]) -> list[Finding]:
    """Return what is to be known of where shapes lie in their images.

    Args:
        samples: Those with shapes.
        sizes: Image -> (height, width) as decoded.

    Raises:
        InputError: The file of the shapes states another size of an image, or shapes lie wholly outside their image;
            all of them are named.
    """
    problems, beyond, ids = [], [], []
    for sample in samples:
        size = sizes[sample.image]
        if sample.drawn_hw is not None and tuple(sample.drawn_hw) != size:
            problems.append(_other_size(sample, size))
            continue
        for at, shape in enumerate(sample.shapes or ()):
            name = f"{sample.image}: shape {at + 1} ({shape.label!r})"
            if shape.runs is not None and sum(shape.runs) != math.prod((shape.box or (0, 0, *size))[2:]):
                problems.append(
                    f"{name}: run-lengths of {sum(shape.runs)} pixels; expected those of {size[0]}x{size[1]}; export "
                    "the shapes again for this image"
                )
                continue
            low, high = _extent(shape, size)
            if min(high[0], high[1], size[1] - low[0], size[0] - low[1]) <= 0:
                problems.append(
                    f"{name} lies outside of the image of {size[0]}x{size[1]}: from x {low[0]:g}, y {low[1]:g} to "
                    f"x {high[0]:g}, y {high[1]:g}; expected pixels of this image; correct it or take it out"
                )
            elif max(-low[0], -low[1], high[0] - size[1], high[1] - size[0]) > _MARGIN:
                beyond.append(name)
                ids.append(sample.id)
    refuse_all(problems, what="drawings")
    if not beyond:
        return []
    detail = (
        f"{len(beyond)} shapes leave their image and are cut off at its edge: {some(beyond, most=_SHOWN)}"
    )
    return [Finding("warning", "shapes that leave their image", detail, list(dict.fromkeys(ids)))]


def _extent(shape: Shape, size: tuple[int, int]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the least and the largest x and y of a shape, in pixels."""
    if shape.runs is not None:
        top, left, height, width = shape.box or (0, 0, *size)
        return (left, top), (left + width, top + height)
    across, down = size[::-1] if shape.relative else (1, 1)
    xs = [x for ring in shape.rings for x in ring[::2]]
    ys = [y for ring in shape.rings for y in ring[1::2]]
    return (min(xs) * across, min(ys) * down), (max(xs) * across, max(ys) * down)


def _other_size(sample: Sample, size: tuple[int, int]) -> str:
    height, width = sample.drawn_hw or size
    return (
        f"{sample.image}: it is {size[0]}x{size[1]}, but the file with its shapes says {height}x{width}; "
        "expected equal sizes; export the shapes again for these images"
    )
