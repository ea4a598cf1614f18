"""How far an exported file is from the model that it was made of."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masksmith.core.arrays import Codes, Image, Shaped
from masksmith.core.errors import InputError
from masksmith.core.progress import track
from masksmith.core.randomness import stream
from masksmith.data.array_store import ArrayStore
from masksmith.data.look import is_constant
from masksmith.deploy.exported import ExportedSegmenter, ExportFacts, open_file
from masksmith.deploy.listing import list_items
from masksmith.deploy.segmenter import Segmenter
from masksmith.postprocess.classes import ClassRule
from masksmith.postprocess.labels import LabelRules
from masksmith.postprocess.objects import ObjectRule
from masksmith.postprocess.rules import AnyRule, decision_of
from masksmith.prediction.store import MAX_CODE

_MOST_IMAGES = 16
_MOST_SIDE = 1024
_NEAR = 0.005


@dataclass(frozen=True)
class Bounds:
    """How far an exported file may be from the bundle's model in float32."""

    largest: float
    """Difference of a probability."""
    mean: float
    flips: float
    """Share of the pixels that change sides although their probability is farther than ``mean`` from where they do."""


RESIZED = Bounds(1, 0.005, 0.0025)
"""Of fp32, where images are resized: OpenCV resizes those of 8 bits with weights of 11 bits."""
BOUNDS = {
    "fp32": Bounds(1e-3, 1e-3, 0.0025),
    "fp16": Bounds(1, 0.005, 0.0025),
    "bf16": Bounds(1, 0.005, 0.0025),
}
"""Precision -> its bounds."""
UNBOUNDED = Bounds(1, 1, 1)
"""Of int8, which is judged by its score (see export)."""


@dataclass(frozen=True)
class Parity:
    """How an exported file differed from the bundle's model, both seeing one view of each image."""

    images: str
    """In words."""
    largest: float | None
    """Difference of a probability; None: masks were compared."""
    mean: float | None
    flips: float
    """Share of the pixels that change sides of the rule's threshold, or their class."""
    far_flips: float
    """Of these, those that are farther from where they change than ``Bounds.mean``, 0.005 at most."""
    seconds: float
    """For an image; the first of each size apart."""
    torch_seconds: float

    def __str__(self) -> str:
        told = f"{self.flips:.4%} of the pixels change sides ({self.far_flips:.4%} not near the threshold)"
        if self.largest is not None:
            told = f"largest difference {self.largest:.2g}, mean {self.mean:.2g}, {told}"
        speed = f"{self.seconds:.3f} s an image, torch {self.torch_seconds:.3f} s"
        return f"against torch on {self.images}: {told}; {speed}"


def samples_of(
    model: Segmenter, images: Sequence[str | Path], known: Mapping[str, Image]
) -> tuple[dict[str, Image], str]:
    """Return what a file is compared on, and what that is, in words.

    Args:
        model: The bundle.
        images: Files, folders, archives or patterns.
        known: Images to take where none are named, as they are and cut to odd sizes; none: generated textures.

    Raises:
        InputError: All images are of one value each, or one cannot be used.
    """
    if images:
        found = _images_of(model, images)
    else:
        found = {**known, **{f"{name}, cut": _odd(image) for name, image in known.items()}} or textures(model)
    given = {
        name: image for name, image in found.items() if not is_constant(image)
    }  # those are not looked at
    if not given:
        raise InputError(
            f"--images: all {len(found)} images are of one value each; expected some with content"
        )
    sizes = sorted({one.shape[:2] for one in given.values()})
    shown = " … ".join(f"{height}x{width}" for height, width in dict.fromkeys((sizes[0], sizes[-1])))
    return given, f"{len(given)} {'images' if images or known else 'generated textures'} ({shown})"


def _images_of(model: Segmenter, inputs: Sequence[str | Path]) -> dict[str, Image]:
    """Return images of files, evenly taken, as the model takes them.

    Raises:
        InputError: There is none, or one cannot be used.
    """
    items, found = list_items(inputs), {}
    chosen = [items[at] for at in sorted({round(at) for at in np.linspace(0, len(items) - 1, _MOST_IMAGES)})]
    for item in track(chosen, total=len(chosen), what="reading images"):
        path = item.path if item.reader.count(item.path) == 1 else f"{item.path}#0"
        found[item.id] = model.fit(item.reader.image(path), where=item.path)
    return found


def _odd(image: Image) -> Shaped[np.ndarray, "n m c"]:
    """Return most of an image, of odd height and width."""
    height, width = (max(1, side - side // 7) | 1 for side in image.shape[:2])
    return np.ascontiguousarray(image[:height, :width])


def textures(model: Segmenter) -> dict[str, Image]:
    """Return generated images of the training set's sizes and of odd ones, in the range of its values."""
    facts = model.bundle.facts
    dtype, ranges = np.dtype(facts.dtype), facts.ranges
    sizes = dict.fromkeys(_sizes_of(model))
    found: dict[str, Image] = {}
    for at, (height, width) in enumerate(sizes):
        random = stream(0, 0, 0, at)
        planes = []
        for band in range(facts.channels):
            low = ranges.get(f"band {band} dark", [0.0])[0]
            high = ranges.get(f"band {band} bright", [255.0 if dtype == np.uint8 else 1000.0])[-1]
            coarse = (
                random.random((height // 8 + 1, width // 8 + 1)).repeat(8, 0).repeat(8, 1)[:height, :width]
            )
            unit = 0.8 * coarse + 0.2 * random.random((height, width))
            planes.append(low + (high - low) * unit)
        found[f"{height}x{width}"] = np.stack(planes, 2).astype(dtype)
    return found


def _sizes_of(model: Segmenter) -> Iterator[tuple[int, int]]:
    ranges, most = model.bundle.facts.ranges, _MOST_SIDE
    for recipe in model.bundle.recipes:
        most = min(most, recipe.size.largest_side or most)
    sides = [
        [min(round(side), most) for side in ranges.get(name, [128, 256])] for name in ("height", "width")
    ]
    (low_h, high_h), (low_w, high_w) = sides
    yield from ((low_h, low_w), (high_h, high_w))
    least = min(most, 33)
    for height, width in ((low_h + 1, high_w + 7), (high_h - 7, low_w * 2 + 1), (3 * low_h // 2, low_w - 1)):
        yield min(max(height | 1, least), most), min(max(width | 1, least), most)


def sides(rule: AnyRule, codes: Codes) -> Shaped[np.ndarray, "..."]:
    """Return on which side of its rule's thresholds each pixel lies, or its class."""
    rule = decision_of(rule)
    if isinstance(rule, ClassRule):
        return rule.apply(codes)
    if isinstance(rule, ObjectRule):
        return (codes[..., :1] > rule.foreground).astype(np.uint8)
    rules = rule.rules if isinstance(rule, LabelRules) else (rule,)
    return (codes[..., : len(rules)] > np.array([one.bottom for one in rules])).astype(np.uint8)


def margin(rule: AnyRule, codes: Codes) -> Shaped[np.ndarray, "..."]:
    """Return how far each probability is from where its pixel changes sides (see sides), 0…1."""
    rule = decision_of(rule)
    if isinstance(rule, ClassRule):
        first, second = np.sort(codes * np.array(rule.weights), axis=2)[..., :-3:-1].transpose(2, 0, 1)
        return (first - second) / 2 / MAX_CODE
    if isinstance(rule, ObjectRule):
        return np.abs(codes[..., :1].astype(np.float64) - rule.foreground) / MAX_CODE
    rules = rule.rules if isinstance(rule, LabelRules) else (rule,)
    bottoms = np.array([one.bottom for one in rules], np.float64)
    return np.abs(codes[..., : len(rules)] - bottoms) / MAX_CODE


def compare(
    model: Segmenter, path: Path, facts: ExportFacts, samples: Mapping[str, Image], said: str, bounds: Bounds
) -> Parity:
    """Compare a file (of masks: without its FILE.json) with the model that it was made of."""
    numbers = {name: dict.fromkeys(model.scalars, 0.0) for name in samples}

    def of(segmenter: Segmenter) -> Predict:
        return lambda name, image: segmenter.predict(ArrayStore({name: image}), [name], scalars=numbers)[name]

    exact, torch_seconds = _timed(of(model), samples, "segmenting with torch")
    largest = mean = None
    if facts.mask:
        expected = {name: model.rule.apply(codes) for name, codes in exact.items()}
        run, zeros = open_file(path, facts), np.zeros((1, len(model.model_scalars)), np.float32)
        more = {"scalars": zeros} if model.model_scalars else {}
        found, seconds = _timed(
            lambda _, image: run({"image": image[None]} | more)[0], samples, "making masks"
        )
    else:
        expected = {name: sides(model.rule, codes) for name, codes in exact.items()}
        codes, seconds = _timed(of(ExportedSegmenter(path)), samples, "segmenting with the file")
        apart = [np.abs(one.astype(np.float64) - exact[name]) / MAX_CODE for name, one in codes.items()]
        largest, mean = max(float(one.max()) for one in apart), float(np.mean([one.mean() for one in apart]))
        found = {name: sides(model.rule, one) for name, one in codes.items()}
    near = min(bounds.mean, _NEAR)
    flipped = {name: found[name].reshape(one.shape) != one for name, one in expected.items()}
    far = (one & (margin(model.rule, exact[name]).reshape(one.shape) > near) for name, one in flipped.items())
    return Parity(said, largest, mean, _share(flipped.values()), _share(far), seconds, torch_seconds)


Predict = Callable[[str, Image], np.ndarray]


def _timed(predict: Predict, samples: Mapping[str, Image], what: str) -> tuple[dict[str, np.ndarray], float]:
    """Return what is predicted of each image, and the median of the seconds."""
    found, seconds = {}, []
    for name, image in track(samples.items(), total=len(samples), what=what):
        start = time.perf_counter()
        found[name] = predict(name, image)
        seconds.append(time.perf_counter() - start)
    return found, float(np.median(seconds))


def _share(each: Iterable[Shaped[np.ndarray, "..."]]) -> float:
    """Return the share of true pixels."""
    counts = [(int(one.sum()), one.size) for one in each]
    return sum(true for true, _ in counts) / sum(size for _, size in counts)


def need_parity(parity: Parity, bounds: Bounds, out: Path) -> None:
    """Refuse a file that is too far from its model.

    Raises:
        InputError: One of the bounds is passed.
    """
    measured = {
        "largest difference": (parity.largest, bounds.largest),
        "mean difference": (parity.mean, bounds.mean),
        f"share of pixels that change sides, {bounds.mean:g} and more from there": (
            parity.far_flips,
            bounds.flips,
        ),
    }
    for name, (value, most) in measured.items():
        if value is not None and not value <= most:
            raise InputError(
                f"{out}: the {name} is {value:.4g}, more than {most:g} ({parity}); the file was removed, choose "
                "another precision or format"
            )
