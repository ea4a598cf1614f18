"""What is wrong, or worth knowing, about a data set: findings a person reads before training."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from masksmith.core.arrays import Image, Shaped, foreground_pixels, judged_pixels
from masksmith.data.cache import Cache
from masksmith.data.catalog import Catalog
from masksmith.data.findings import Finding, some
from masksmith.data.store import Store
from masksmith.data.target import Target

MAX_NAMES = 64
"""A band with no more different whole values may hold names (classes of land cover, flags) in the place of amounts."""
SENTINELS = (-9999.0, -32768.0, -999.0)
"""What files that say nothing about it often mean by "no data"."""


@dataclass(frozen=True)
class CheckReport:
    """Facts and findings about a data set."""

    layout: str
    facts: dict[str, Any]
    findings: list[Finding]

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and lists for ``check.json``."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"layout: {self.layout}"]
        lines += [f"{name}: {value}" for name, value in self.facts.items()]
        lines += [f"{finding.level}: {finding.title}: {finding.detail}" for finding in self.findings]
        return "\n".join(lines)


def pixel_hash(image: Image) -> str:
    """Return a hash of an image's size, type and pixels (not of its file)."""
    return _hash_of_parts([image], image.shape, image.dtype)


def _hash_of_parts(parts: Iterable[Image], shape: tuple[int, ...], dtype: np.dtype) -> str:
    state = hashlib.blake2b(f"{shape}{dtype}".encode(), digest_size=16)
    for part in parts:
        state.update(np.ascontiguousarray(part).data)
    return state.hexdigest()


def band_range(image: Image) -> tuple[Shaped[np.ndarray, " c"], Shaped[np.ndarray, " c"]]:
    """Return the least and the largest value of each band; NaN (no data) does not count, and is there where all is."""
    height, width, channels = image.shape
    lines = image.reshape(height, width * channels)  # many times faster than both axes at once
    low, high = (one.reduce(lines).reshape(width, channels) for one in (np.fmin, np.fmax))
    return np.fmin.reduce(low), np.fmax.reduce(high)


def is_constant(image: Image) -> bool:
    """Whether every band of an image has one value only, or no data: there is nothing in it."""
    return _is_constant(*band_range(image))


def _is_constant(low: Shaped[np.ndarray, " c"], high: Shaped[np.ndarray, " c"]) -> bool:
    return bool(((low == high) | (low != low)).all())


def _range_of_parts(parts: Iterable[Image]) -> tuple[Shaped[np.ndarray, " c"], Shaped[np.ndarray, " c"]]:
    lows, highs = zip(*map(band_range, parts), strict=True)
    return np.fmin.reduce(lows), np.fmax.reduce(highs)


def constant_ids(images: Store) -> list[str]:
    """Return the ids of the images without any content (all black, say); damage could make more of them."""
    return [name for name in images if _is_constant(*_range_of_parts(images.parts(name)))]


def duplicate_groups(images: Store) -> dict[str, list[str]]:
    """Return pixel hash -> ids for every image; a list longer than one is a set of identical images."""
    groups: dict[str, list[str]] = {}
    for name in images:
        shape = (*images.shape(name), images.channels)
        groups.setdefault(_hash_of_parts(images.parts(name), shape, images.dtype), []).append(name)
    return groups


@dataclass(frozen=True)
class BandFacts:
    """What one band holds over a set of images."""

    low: float
    """Least value, NaN where there is none."""
    high: float
    """Largest value."""
    values: tuple[int, ...]
    """The values themselves where they are whole and at most MAX_NAMES: they may be names, not amounts."""
    no_data: bool
    """Whether it has pixels without data (NaN)."""


def band_facts(images: Store, *, names: bool = True) -> list[BandFacts]:
    """Return what each band of the images holds; the values themselves only where asked for."""
    count = images.channels
    low, high = np.full(count, np.nan), np.full(count, np.nan)
    known: list[set[float] | None] = [set() if names else None for _ in range(count)]
    gaps = np.zeros(count, bool)
    for image in (part for name in images for part in images.parts(name)):
        least, most = band_range(image)
        low, high = np.fmin(low, least), np.fmax(high, most)
        if image.dtype.kind == "f":
            gaps |= np.isnan(image).any(axis=(0, 1))
        known = [None if one is None else _more(one, image[..., at]) for at, one in enumerate(known)]
    return [
        BandFacts(float(low[at]), float(high[at]), tuple(sorted(map(int, known[at] or ()))), bool(gaps[at]))
        for at in range(count)
    ]


def _more(known: set[float], band: Shaped[np.ndarray, "h w"]) -> set[float] | None:
    """Return the values known of a band and those in one image; None where they are too many or not whole."""
    found = np.unique(band)
    found = found[found == found]  # NaN is none
    if len(found) > MAX_NAMES or (found % 1).any():
        return None
    union = known.union(found.tolist())
    return union if len(union) <= MAX_NAMES else None


def coverage(masks: Store) -> dict[str, float]:
    """Return id -> share of foreground (of any label) among the judged pixels (0 where none is judged)."""
    shares = {}
    for name in masks:
        mask = masks[name]
        judged = int(judged_pixels(mask).any(axis=-1).sum())
        shares[name] = float(foreground_pixels(mask).any(axis=-1).sum() / judged) if judged else 0.0
    return shares


def check_data(catalog: Catalog, cache: Cache, *, scaling: str, beyond: Sequence[str] = ()) -> CheckReport:
    """Look for duplicates, empty images, contradictory and surprising masks.

    Args:
        catalog: What the data set holds.
        cache: Its decoded images and masks.
        scaling: What input.scaling "auto" makes of the images, in words.
        beyond: Test images with values outside its limits.
    """
    train, test = duplicate_groups(cache.train_images), duplicate_groups(cache.test_images)
    shares = coverage(cache.train_masks)
    sizes = Counter(f"{h}x{w}" for h, w in map(cache.train_images.shape, cache.train_images))
    empty = [name for name, share in shares.items() if share == 0]
    facts = {
        "training images": len(catalog.train),
        "test images": len(catalog.test),
        "size": ", ".join(f"{size} ({count})" for size, count in sizes.most_common(3)),
        "channels": cache.channels,
        "bits": _bits(cache.train_images.dtype),
        "task": _task_text(cache.target),
        "empty masks": f"{len(empty)} ({len(empty) / len(shares):.1%})",
        "mean coverage": f"{np.mean(list(shares.values())):.3f}",
        "submission": f"{catalog.submission.source} ({len(catalog.submission.ids)} ids, {catalog.submission.dialect})",
    }
    if catalog.submission.reason:
        facts["run-lengths"] = f"{catalog.submission.dialect}: {catalog.submission.reason}"
    findings = [Finding("note", "left out", note) for note in catalog.notes]
    if catalog.submission.doubt:
        findings.append(Finding("warning", "run-length dialect", catalog.submission.doubt))
    findings += _shared_id_findings(catalog)
    picture = is_picture(cache.train_images)
    bands = band_facts(cache.train_images, names=not picture)
    facts["values"] = _ranges_text(bands)
    if catalog.test:
        facts["values (test)"] = _ranges_text(band_facts(cache.test_images, names=False))
    facts["scaling"] = scaling
    findings += [] if picture else _band_findings(bands)
    if beyond:
        detail = (
            f"more than a hundredth of {len(beyond)} test images lies outside the training images' limits and is "
            "clipped to them; look at the images, or set input.low and input.high (input.scaling: fixed)"
        )
        findings.append(Finding("warning", "test images beyond the scaling's limits", detail, list(beyond)))
    findings += cache.mask_findings
    findings += _constant_findings(cache, shares)
    findings += _duplicate_findings(train, test, cache)
    findings += _mask_findings(shares)
    return CheckReport(catalog.layout, facts, findings)


def _task_text(target: Target) -> str:
    if len(target.classes) == 1:
        return target.task
    return f"{target.task}: {len(target.classes)} classes ({some(target.classes, most=20)})"


def is_picture(images: Store) -> bool:
    """Whether images are grey or in colours, of 8 or 16 bits without sign."""
    return images.channels in (1, 3) and images.dtype.kind == "u"


def _bits(dtype: np.dtype) -> int | str:
    return 8 * dtype.itemsize if dtype.kind == "u" else f"{8 * dtype.itemsize} ({dtype})"


def _ranges_text(bands: list[BandFacts]) -> str:
    return ", ".join(
        f"{at}: {band.low:g}…{band.high:g}{' and no data' if band.no_data else ''}"
        for at, band in enumerate(bands)
    )


def _band_findings(bands: list[BandFacts]) -> list[Finding]:
    named = {at: band.values for at, band in enumerate(bands) if len(band.values) > 2}
    findings = []
    if named:
        shown = "; ".join(f"band {at}: {_some_values(values)}" for at, values in named.items())
        detail = f"{shown}; if they are classes or flags, leave the band out (input.bands) or name it in input.one_hot"
        findings.append(Finding("note", "bands of few whole values", detail))
    missing = [(at, band.low) for at, band in enumerate(bands) if band.low in SENTINELS]
    if missing:
        shown = ", ".join(f"{low:g} in band {at}" for at, low in missing)
        detail = f"{shown}; if it means that nothing was measured there, set input.no_data to it"
        findings.append(Finding("warning", "values that may mean no data", detail))
    return findings


def _some_values(values: tuple[int, ...]) -> str:
    shown = ", ".join(map(str, values[:12]))
    return shown if len(values) <= 12 else f"{shown}, … ({len(values)})"


def _shared_id_findings(catalog: Catalog) -> list[Finding]:
    both = sorted({sample.id for sample in catalog.train} & {sample.id for sample in catalog.test})
    if not both:
        return []
    detail = (
        f"{len(both)} ids are in the training set and in the test set and name two images each; a row of a side table "
        "whose name has the word train or test is about the image of that set, a row of any other is taken for both"
    )
    return [Finding("note", "ids of both sets", detail, both)]


def _constant_findings(cache: Cache, shares: dict[str, float]) -> list[Finding]:
    findings = []
    fates = {"training": "kept out of training and predicted empty", "test": "predicted empty"}
    stores = {"training": cache.train_images, "test": cache.test_images}
    for split, images in stores.items():
        if blank := constant_ids(images):
            detail = f"{len(blank)} {split} images have one value only; they are {fates[split]}"
            findings.append(Finding("warning", f"{split} images without content", detail, blank))
    marked = [name for name in constant_ids(cache.train_images) if shares[name] > 0]
    if marked:
        findings.append(
            Finding(
                "warning", "masks on images without content", f"{len(marked)} images, see the ids", marked
            )
        )
    return findings


def _duplicate_findings(
    train: dict[str, list[str]], test: dict[str, list[str]], cache: Cache
) -> list[Finding]:
    findings = []
    doubles = [ids for ids in train.values() if len(ids) > 1]
    if doubles:
        findings.append(
            Finding(
                "warning",
                "identical training images",
                f"{sum(map(len, doubles))} images in {len(doubles)} groups (largest {max(map(len, doubles))}); "
                "a group stays in one fold",
                [name for ids in doubles for name in ids],
            )
        )
        torn = [ids for ids in doubles if len({cache.train_masks[name].tobytes() for name in ids}) > 1]
        if torn:
            findings.append(
                Finding(
                    "warning",
                    "identical images, different masks",
                    f"{len(torn)} groups; at most one mask of each can be right",
                    [name for ids in torn for name in ids],
                )
            )
    shared = [name for key, ids in test.items() if key in train for name in ids]
    if shared:
        findings.append(
            Finding("warning", "test images that are also training images", f"{len(shared)} images", shared)
        )
    return findings


def _mask_findings(shares: dict[str, float]) -> list[Finding]:
    full = [name for name, share in shares.items() if share == 1]
    if not full:
        return []
    return [Finding("note", "masks that cover the whole image", f"{len(full)} images", full)]
