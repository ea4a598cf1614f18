"""What is wrong, or worth knowing, about a data set: findings a person reads before training."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from masksmith.core.arrays import Shaped, foreground_pixels, judged_pixels
from masksmith.data.cache import Cache
from masksmith.data.catalog import Catalog
from masksmith.data.findings import LEVELS, Finding, some
from masksmith.data.groups import Likeness, find_likeness
from masksmith.data.heads import table_heads
from masksmith.data.leaks import leak_findings
from masksmith.data.look import are_constant, band_range, hash_of_parts, number_names
from masksmith.data.shift import Shift, measure_shift, shift_finding
from masksmith.data.store import Store
from masksmith.data.target import BINARY, Target

MAX_NAMES = 64
"""A band with no more different whole values may hold names (classes of land cover, flags) in the place of amounts."""
FEW_IMAGES = 5
"""A class in fewer images cannot be in every one of five folds."""
RARE_SHARE = 0.001
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
        lines += map(str, self.findings)
        return "\n".join(lines)


def constant_ids(images: Store) -> list[str]:
    """Return the ids of the images without any content (all black, say); damage could make more of them."""
    return [name for name in images if are_constant(images.parts(name))]


def duplicate_groups(images: Store) -> dict[str, list[str]]:
    """Return pixel hash -> ids for every image; a list longer than one is a set of identical images."""
    groups: dict[str, list[str]] = {}
    for name in images:
        shape = (*images.shape(name), images.channels)
        groups.setdefault(hash_of_parts(images.parts(name), shape, images.dtype), []).append(name)
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


@dataclass(frozen=True)
class MaskFacts:
    """What the masks of the training images hold."""

    shares: dict[str, float]
    """Id -> share of foreground (of any label) among the judged pixels, 0 where none is judged."""
    images: list[int]
    """Of each class or label, the images that hold it; none for one foreground and for objects."""
    pixels: list[float]
    """Of each, its share of the judged pixels."""
    examples: list[str]
    """Of each, the first image that holds it."""


def mask_facts(masks: Store, target: Target) -> MaskFacts:
    """Look at every mask once."""
    classes = len(target.classes) if target.task in ("multiclass", "multilabel") else 0
    shares, total = {}, 0
    images, pixels, examples = np.zeros(classes, int), np.zeros(classes, int), [""] * classes
    for name in masks:
        mask = masks[name]
        judged = int(judged_pixels(mask).any(axis=-1).sum())
        shares[name] = float(foreground_pixels(mask).any(axis=-1).sum() / judged) if judged else 0.0
        total += judged
        if target.exclusive:
            found = np.bincount(mask.ravel(), minlength=classes)[:classes]
        elif classes:
            found = (mask == 1).sum(axis=(0, 1))
        else:
            continue
        images += found > 0
        pixels += found
        examples = [known or (name if count else "") for known, count in zip(examples, found, strict=True)]
    return MaskFacts(shares, images.tolist(), (pixels / max(total, 1)).tolist(), examples)


def coverage(masks: Store) -> dict[str, float]:
    """Return id -> share of foreground (of any label) among the judged pixels (0 where none is judged)."""
    return mask_facts(masks, BINARY).shares


def check_data(catalog: Catalog, cache: Cache, *, scaling: str, beyond: Sequence[str] = ()) -> CheckReport:
    """Look for leaks, contradictory and surprising masks, rare classes, shift, and what a person should know.

    Args:
        catalog: What the data set holds.
        cache: Its decoded images and masks.
        scaling: What input.scaling "auto" makes of the images, in words.
        beyond: Test images with values outside its limits.
    """
    alike = find_likeness(cache.train_images, cache.test_images)
    masks = mask_facts(cache.train_masks, cache.target)
    picture = is_picture(cache.train_images)
    bands = band_facts(cache.train_images, names=not picture)
    facts = _facts(catalog, cache, masks, bands, scaling)
    findings = leak_findings(catalog, cache, alike)
    findings += _constant_findings(alike, masks.shares)
    findings += [*cache.mask_findings, *_mask_findings(masks.shares), *_class_findings(masks, cache.target)]
    if catalog.submission.doubt:
        findings.append(Finding("warning", "run-length dialect", catalog.submission.doubt))
    findings += [] if picture else _band_findings(bands, cache.no_data)
    if beyond:
        detail = (
            f"more than a hundredth of {len(beyond)} test images ({some(beyond)}) lies outside the training images' "
            "limits and is clipped to them; look at the images, or set input.low and input.high (input.scaling: fixed)"
        )
        findings.append(Finding("warning", "test images beyond the scaling's limits", detail, list(beyond)))
    shift = shift_of(alike, cache.channels)
    if shift is not None:
        facts["train against test"] = f"AUC {shift.auc:.2f} ({shift.low:.2f} to {shift.high:.2f}; 0.5: alike)"
    findings += shift_finding(shift)
    findings += [*_size_findings(alike), *catalog.findings, *_shared_id_findings(catalog)]
    findings += [
        Finding("note", "left out", note) for note in dict.fromkeys([*catalog.notes, *catalog.left_out])
    ]
    return CheckReport(catalog.layout, facts, by_harm(findings))


def by_harm(findings: Sequence[Finding]) -> list[Finding]:
    """Return errors first, then warnings, then notes, each in the order given: leaks, masks, classes, images, files."""
    return sorted(findings, key=lambda one: LEVELS.index(one.level))


def shift_of(alike: Likeness, channels: int) -> Shift | None:
    """Return how well training and test images are told apart; constant images are left out."""
    kept, at = ~alike.seen.constant, alike.num_train
    numbers = alike.seen.numbers
    return measure_shift(numbers[:at][kept[:at]], numbers[at:][kept[at:]], number_names(channels))


def _facts(
    catalog: Catalog, cache: Cache, masks: MaskFacts, bands: list[BandFacts], scaling: str
) -> dict[str, Any]:
    sizes = Counter(f"{h}x{w}" for h, w in map(cache.train_images.shape, cache.train_images))
    empty = sum(share == 0 for share in masks.shares.values())
    facts = {
        "training images": len(catalog.train),
        "test images": len(catalog.test),
        "size": ", ".join(f"{size} ({count})" for size, count in sizes.most_common(3)),
        "shape": ", ".join(
            f"{name} {_shape_text(store)}"
            for name, store in (("training", cache.train_images), ("test", cache.test_images))
            if len(store)
        ),
        "channels": cache.channels,
        "bits": _bits(cache.train_images.dtype),
        "task": _task_text(cache.target),
        "empty masks": f"{empty} ({empty / len(masks.shares):.1%})",
        "mean coverage": f"{np.mean(list(masks.shares.values())):.3f}",
        "submission": f"{catalog.submission.source} ({len(catalog.submission.ids)} ids, {catalog.submission.dialect})",
    }
    if catalog.submission.reason:
        facts["run-lengths"] = f"{catalog.submission.dialect}: {catalog.submission.reason}"
    facts["values"] = _ranges_text(bands)
    if catalog.test:
        facts["values (test)"] = _ranges_text(band_facts(cache.test_images, names=False))
    facts["scaling"] = scaling
    return facts | table_heads(catalog)


def _shape_text(images: Store) -> str:
    """Return (images, height, width, channels), with the range of sides where images have several sizes."""
    heights, widths = (sorted({images.shape(name)[axis] for name in images}) for axis in (0, 1))
    sides = [f"{side[0]}" if len(side) == 1 else f"{side[0]}…{side[-1]}" for side in (heights, widths)]
    return f"({len(images)}, {sides[0]}, {sides[1]}, {images.channels})"


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


def _band_findings(bands: list[BandFacts], declared: float | None) -> list[Finding]:
    named = {at: band.values for at, band in enumerate(bands) if len(band.values) > 2}
    findings = []
    if named:
        shown = "; ".join(f"band {at}: {_some_values(values)}" for at, values in named.items())
        detail = f"{shown}; if they are classes or flags, leave the band out (input.bands) or name it in input.one_hot"
        findings.append(Finding("note", "bands of few whole values", detail))
    missing = [
        (at, band.low) for at, band in enumerate(bands) if band.low in SENTINELS and band.low != declared
    ]
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


def _constant_findings(alike: Likeness, shares: dict[str, float]) -> list[Finding]:
    findings = []
    fates = {"training": "kept out of training and predicted empty", "test": "predicted empty"}
    parts = {"training": slice(0, alike.num_train), "test": slice(alike.num_train, None)}
    for split, part in parts.items():
        blank = alike.seen.names[part][alike.seen.constant[part]].tolist()
        if blank:
            detail = (
                f"{len(blank)} {split} images have one value only; they are {fates[split]}: {some(blank)}"
            )
            findings.append(Finding("warning", f"{split} images without content", detail, blank))
        if split == "training" and (marked := [name for name in blank if shares[name] > 0]):
            detail = f"{len(marked)} images ({some(marked)}): nothing is seen there; take them out, or mend the image"
            findings.append(Finding("warning", "masks on images without content", detail, marked))
    return findings


def _mask_findings(shares: dict[str, float]) -> list[Finding]:
    full = [name for name, share in shares.items() if share == 1]
    if not full:
        return []
    detail = f"{len(full)} images ({some(full)}); look at a few: a mask may be inverted"
    return [Finding("note", "masks that cover the whole image", detail, full)]


def _class_findings(masks: MaskFacts, target: Target) -> list[Finding]:
    """Return the classes that fewer images hold than there are folds, or less than a thousandth of the pixels."""
    rows = [
        row for row in zip(target.classes, masks.images, masks.pixels, masks.examples, strict=False) if row[1]
    ]
    findings = []
    if few := [row for row in rows if row[1] < FEW_IMAGES]:
        shown = some([f"{name} in {images} (for example {example!r})" for name, images, _, example in few])
        detail = (
            f"{len(few)} of {len(target.classes)} classes are in fewer than {FEW_IMAGES} images: {shown}; a fold may "
            "have none to learn from or to be scored on: add images, join classes, or make fewer folds"
        )
        findings.append(Finding("warning", "classes in few images", detail, [row[3] for row in few]))
    if small := [row for row in rows if row[2] < RARE_SHARE and row not in few]:
        shown = some([f"{name} {share:.3%}" for name, _, share, _ in small])
        detail = (
            f"{len(small)} of {len(target.classes)} classes have less than {RARE_SHARE:.1%} of the pixels: {shown}; "
            "weigh them in the loss, or sample images that hold them more often"
        )
        findings.append(Finding("note", "classes of few pixels", detail, [row[3] for row in small]))
    return findings


def _size_findings(alike: Likeness) -> list[Finding]:
    """Return that the sizes differ much, or that the test set has sizes of its own."""
    train = {tuple(size) for size in alike.seen.sizes[: alike.num_train].tolist()}
    unseen = [
        alike.id(at)
        for at in range(alike.num_train, len(alike.seen))
        if tuple(alike.seen.sizes[at].tolist()) not in train
    ]
    if not unseen or len(train) > 3:
        return []
    first = alike.seen.sizes[alike.seen.names.tolist().index(unseen[0], alike.num_train)].tolist()
    detail = (
        f"{len(unseen)} test images are of a size that no training image has (for example {unseen[0]!r}: "
        f"{first[0]}x{first[1]}); if they were resized, say at what scale the objects are to be found"
    )
    return [Finding("note", "test images of other sizes", detail, unseen)]
