"""What the values of mask files mean: found over the whole set and in each file, and reported.

A set can mix conventions: some files hold 0 and 1, others 0 and 255, some were saved with 16 bits, some as JPEG. The
union of all values does not tell 255 that is foreground from 255 that is not judged; the values of one file do.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from masksmith.core.arrays import IGNORE, Int32, Mask, Shaped, foreground_pixels
from masksmith.core.errors import InputError
from masksmith.data import mask_shapes
from masksmith.data.colours import look_up, look_up_nearest
from masksmith.data.decode.headers import JPEG
from masksmith.data.decode.pictures import is_grey
from masksmith.data.findings import Finding, refuse_all, some
from masksmith.data.mask_shapes import BETWEEN, TOP
from masksmith.data.target import BINARY, OBJECTS, Target, Task

THRESHOLD = 128
"""Value from which on a pixel of a JPEG mask is foreground."""
_UNJUDGED = -1
_NEARLY = 1e-3
"""By how much floating numbers of a mask may differ from whole ones: scaling and resampling leave 0.9999999."""
_MOST_EXACT = 2**24
"""Up to here float32 holds every whole number."""
_MOST_ALONE = 10  # files of 0 and 255 for each of 0, 1 and 255, where others hold 0 and 1
_OBJECT_COUNTS, _MANY_OBJECTS = 3, 8
"""Different numbers of objects in a set, and most objects in one mask, from which on numbered regions are objects."""
_MOST_VALUES = 257  # kept of a file: a mask of more is refused anyway
_MOST_CLASSES = 255
FLAT_CLASSES = 0.5
"""Share of the pixels between the least and the largest value that have an equal neighbour: more in maps of classes,
less where a binary mask was resized or smoothed."""
_MOST_GREY = 0.3
"""Most pixels between 0 and 255 in binary masks whose edges were smoothed."""
_SLOPE = 0.9
"""Least share of the pixels between that lie on slopes where edges are smooth. Measured: 0.94 to 1 in discs and
rectangles that were resized or blurred, below 0.1 in points, specks and areas of classes, 0.6 in noise."""
_FEWEST_GREYS = 8
"""Fewer values between may be thin classes, even where all of them lie on slopes and along each other."""
_MANY_CLASSES = 64


def is_lossy(raw: bytes) -> bool:
    """Whether a mask file's format changes values (JPEG)."""
    return raw.startswith(JPEG)


def mask_levels(
    mask: Shaped[np.ndarray, "h w c"], *, where: str, as_numbers: bool = False
) -> Shaped[np.ndarray, "h w"]:
    """Return a decoded mask file as one channel, with the largest 16-bit value brought to 255 unless as numbers.

    Whole numbers that were stored as floating ones are whole numbers again (int32), and NaN is -1.

    Raises:
        InputError: The channels differ (a colour-coded mask), or the values are no whole numbers.
    """
    if mask.dtype.kind == "f":
        mask = _whole_numbers(mask, where=where)
    if not is_grey(mask):
        raise InputError(f"{where}: a mask in colours; expected one channel with two values")
    levels = mask[..., 0]
    if levels.dtype == np.uint16 and not as_numbers and not (levels == IGNORE).any():
        levels = np.where(levels == TOP, IGNORE, levels)
    return levels


def _whole_numbers(mask: Shaped[np.ndarray, "h w c"], *, where: str) -> Int32[np.ndarray, "h w c"]:
    given = np.where(np.isnan(mask), np.float32(_UNJUDGED), mask)
    whole = np.rint(given)
    odd = (np.abs(given - whole) > _NEARLY) | (np.abs(whole) > _MOST_EXACT)
    if odd.any():
        raise InputError(
            f"{where}: a mask of {mask.dtype} with the value {mask[odd][0]:.6g}; expected whole numbers, threshold it "
            "and write 8 bits"
        )
    return whole.astype(np.int32)


@dataclass(frozen=True)
class MaskFile:
    """What decides the meaning of a mask file's values."""

    id: str
    path: str
    counts: dict[int, int]
    """Value -> pixels, of the least values. Of a JPEG: 0, all above it as 1, all from THRESHOLD on as 255."""
    lossy: bool = False
    between: int = 0
    """Pixels of a JPEG near neither 0 nor 255."""
    modes: tuple[int, ...] = ()
    """Values that a JPEG's areas have where some of them lie between: classes, not edges."""
    inner: tuple[int, int] = (0, 0)
    """Pixels between the least and the largest value, and how many of them have an equal neighbour."""
    loose: int = 0
    """Pixels between that have neighbours of other values than 0 alone, and none of their own."""
    ramp: int = 0
    """Pixels between that lie on a slope: a lower and a higher value are among their eight neighbours."""
    numbered: int = 0
    """Number of objects, where 0 and 1 … n are all there and each number is one connected region."""

    @property
    def values(self) -> frozenset[int]:
        """The values, without -1."""
        return frozenset(self.counts) - {_UNJUDGED}


def look_at_mask(levels: Shaped[np.ndarray, "h w"], *, name: str, path: str, lossy: bool) -> MaskFile:
    """Return what decides the meaning of a file's values (after mask_levels)."""
    if not lossy:
        values, pixels = (one[:_MOST_VALUES].tolist() for one in np.unique(levels, return_counts=True))
        counts = dict(zip(map(int, values), pixels, strict=True))
        if len(values) < 3:
            return MaskFile(name, path, counts)
        return MaskFile(
            name,
            path,
            counts,
            inner=mask_shapes.inner(heights := mask_shapes.heights(levels)),
            loose=mask_shapes.loose(levels),
            ramp=mask_shapes.ramp(heights),
            numbered=mask_shapes.numbered(levels),
        )
    between = (levels >= BETWEEN[0]) & (levels < BETWEEN[1])
    high, faint = int((levels >= THRESHOLD).sum()), int(((levels > 0) & (levels < THRESHOLD)).sum())
    counts = {0: levels.size - high - faint, 1: faint, IGNORE: high}
    return MaskFile(
        name,
        path,
        {value: count for value, count in counts.items() if count},
        lossy=True,
        between=int(between.sum()),
        modes=mask_shapes.modes(levels, between),
    )


@dataclass(frozen=True)
class MaskConvention:
    """What the values of a set's mask files mean."""

    table: dict[int, int]
    """Value -> 0 (background), 1 (foreground) or another class, or IGNORE, in files that keep values; JPEG is cut at
    THRESHOLD."""
    findings: list[Finding]
    """What was not plain, for a person to read."""
    target: Target = BINARY
    """The task and its classes."""
    colours: bool = False
    """Whether the values are packed colours (see colours.py); JPEG has the nearest ones."""

    def apply(self, levels: Shaped[np.ndarray, "h w"], *, lossy: bool) -> Mask:
        """Return a mask of classes and IGNORE from a file's values (after mask_levels), or its packed colours."""
        if self.colours:
            return look_up_nearest(levels, self.table) if lossy else look_up(levels, self.table)
        if lossy:
            return (levels >= THRESHOLD).astype(np.uint8)
        lowest = min(0, *self.table)
        lut = np.zeros(max(self.table) - lowest + 1, np.uint8)
        for value, meaning in self.table.items():
            lut[value - lowest] = meaning
        return lut[levels.astype(np.int32) - lowest]


@dataclass(frozen=True)
class MaskHints:
    """What is known of the masks besides their values."""

    task: Task | None = None
    """The task that was asked for."""
    ignore: tuple[int, ...] = ()
    """Values that are not judged."""
    names: dict[int, str] = field(default_factory=dict)
    """Value -> name of its class."""
    palette: tuple[tuple[int, int, int], ...] = ()
    """Colour of each value, where the files have a palette."""


NO_HINTS = MaskHints()


def find_convention(files: Iterable[MaskFile], *, where: str, hints: MaskHints = NO_HINTS) -> MaskConvention:
    """Decide, from *all* mask files of a set, what each value means; -1 always means "not judged".

    Files of 0 and 1 and files of 0 and 255 are one binary set. A file that holds 1 and 255 proves that 255 is not
    judged, in the whole set. Any other two values are background and foreground; three and more are the classes of a
    map.

    Args:
        files: What look_at_mask found.
        where: What to call the masks in an error.
        hints: The task that was asked for, and what else is known.

    Raises:
        InputError: A task that the values contradict, JPEG files of several classes or without contrast, or values
            that can be read in two ways.
    """
    every = list(files)
    given = hints.ignore
    if TOP in given:  # mask_levels brings it to 255
        hints = replace(hints, ignore=tuple(sorted({*hints.ignore, IGNORE})))
    lossy = [file for file in every if file.lossy]
    exact = [file for file in every if not file.lossy]
    found = sorted(frozenset().union(*(file.values for file in exact)) - set(hints.ignore))
    several = found != [0, 1, IGNORE] and any(len(file.values - {*hints.ignore}) > 2 for file in exact)
    if hints.task == "instances" and (several or (len({*found} - {0}) > 1 and {*found} - {0} != {1, IGNORE})):
        if lossy:
            _refuse_lossy(lossy, "the numbers of objects", where=where)
        return MaskConvention({}, [], replace(OBJECTS, ignore=given))  # each number is an object
    if (
        hints.task is None
        and not hints.names
        and not lossy
        and several
        and (said := _as_objects(exact, found))
    ):
        return MaskConvention({}, [said], replace(OBJECTS, ignore=given))
    if hints.task in (None, "binary") and several and (smooth := _smooth_convention(exact, found, hints)):
        return replace(smooth, findings=smooth.findings + _lossy_findings(lossy, where=where))
    classes = (several or bool(found and hints.names)) and not lossy and found[0] >= 0
    if hints.task == "multiclass" or (hints.task is None and classes):
        return _class_convention(exact, lossy, found, hints, where=where)
    table, findings = _exact_convention(exact, found, hints, where=where)
    target = OBJECTS if hints.task == "instances" else BINARY
    return MaskConvention(table, findings + _lossy_findings(lossy, where=where), target)


def _as_objects(files: Sequence[MaskFile], found: Sequence[int]) -> Finding | None:
    """Return what to say where the values are numbers of objects, None where they are classes.

    They are where there are more of them than classes can be, and not because edges are smooth; or where every file
    numbers its regions from 1 on, and they are many, and not equally many.
    """
    several = [file for file in files if len(file.values) > 2]
    inner, loose = sum(file.inner[0] for file in several), sum(file.loose for file in several)
    counts = {file.numbered for file in several}
    numbered = 0 not in counts and len(counts) >= _OBJECT_COUNTS and max(counts) >= _MANY_OBJECTS
    many = len(found) > _MOST_CLASSES and 2 * loose < inner and not _on_slopes(several)
    if found[0] < 0 or not (numbered or many):
        return None
    if numbered:
        reason = (
            f"each mask numbers its regions, from 1 to {min(counts)} in one and to {max(counts)} in another"
        )
    else:
        reason = f"there are more than {_MOST_CLASSES} values"
    return Finding(
        "note",
        "masks of numbered objects",
        f"{reason}: each value is read as one object; if they are classes, name the task: --task multiclass",
    )


# --- class maps -------------------------------------------------------------------------------------------


def _class_convention(
    files: Sequence[MaskFile], lossy: Sequence[MaskFile], found: list[int], hints: MaskHints, *, where: str
) -> MaskConvention:
    if lossy:
        _refuse_lossy(lossy, "classes", where=where)
    if found and found[0] < 0:
        raise InputError(
            f"{where}: the value {found[0]}; expected classes from 0 on, and -1 where it is not judged"
        )
    if hints.task is None:
        _refuse_smooth(files, found, where=where)
    if len(found) > _MOST_CLASSES:
        raise InputError(
            f"{where}: {len(found)} values and more; expected at most {_MOST_CLASSES} classes. If each value is an "
            "object, name the task: --task instances"
        )
    findings = []
    ignored = {_UNJUDGED, *hints.ignore} & frozenset().union(*(file.counts for file in files))
    others = [value for value in found if value != IGNORE]
    if IGNORE in found and IGNORE not in hints.names and others and others[-1] < THRESHOLD:
        ignored |= {IGNORE}
        found = others
    total = sum(sum(file.counts.values()) for file in files)
    if ignored:
        share = sum(file.counts.get(value, 0) for file in files for value in ignored) / total
        named = " and ".join(
            f"{value}{f' ({hints.names[value]})' if value in hints.names else ''}"
            for value in sorted(ignored)
        )
        findings.append(
            Finding(
                "note", "masks with pixels not judged", f"{named} is not judged ({share:.2%} of all pixels)"
            )
        )
    values = sorted(({*found} | {*hints.names}) - ignored)
    if values and values[0] >= 0 and values[-1] < 2 * len(values) and not hints.names:
        values = list(range(values[-1] + 1))  # numbers of classes, some of which may be nowhere
    findings += _numbering(values, hints) + _many(files, values, hints, total)
    absent = [value for value in values if value not in found]
    findings += _unnamed(files, values, hints)
    names = [hints.names.get(value, str(value)) for value in values]
    if absent:
        shown = some([hints.names.get(value, str(value)) for value in absent], most=8)
        detail = f"{len(absent)} of {len(values)} classes occur in no mask: {shown}; they keep their numbers"
        findings.append(Finding("warning", "classes that never occur", detail))
    if len(values) < 2:
        raise InputError(
            f"{where}: one class only ({some(names)}); expected two or more, or masks of 0 and 255 of one foreground"
        )
    palette = tuple(hints.palette[value] for value in values) if len(hints.palette) > values[-1] else ()
    target = Target("multiclass", tuple(names), tuple(values), palette, tuple(sorted(ignored)))
    table = {value: at for at, value in enumerate(values)} | dict.fromkeys(ignored, IGNORE)
    return MaskConvention(table, findings, target)


def _unnamed(files: Sequence[MaskFile], values: Sequence[int], hints: MaskHints) -> list[Finding]:
    """Return what to say of values that the named classes do not have."""
    other = [value for value in values if value not in hints.names]
    if not hints.names or not other:
        return []
    held = [file for file in files if not file.values.isdisjoint(other)]
    detail = (
        f"{len(held)} masks hold {some(other, most=8)}, which the {len(hints.names)} named classes do not have: "
        f"{some([file.path for file in held])}; each is read as a class of its own, named after its value"
    )
    return [Finding("warning", "values without a class", detail, [file.id for file in held])]


def listed_names(
    files: Sequence[MaskFile], names: Sequence[str], hints: MaskHints
) -> tuple[dict[int, str], list[Finding]]:
    """Return value -> name by a list of names, where the values are as many, and what to say of it.

    The first name is that of 0, or of 1 where there is one value more than names: then 0 is the background.
    """
    values = frozenset().union(*(file.values for file in files)) - {*hints.ignore, IGNORE}
    highest = max(values, default=0)
    if len(names) < 2 or not 2 <= highest <= len(names) or any(file.lossy for file in files):
        return {}, []
    first = int(highest == len(names))
    found = ({0: "background"} if first else {}) | dict(enumerate(names, first))
    shown = some([f"{value} is {name}" for value, name in found.items()], most=12)
    detail = (
        f"a list names {len(names)} classes, and the largest value is {highest}: {shown}; else say classes:"
    )
    return found, [Finding("note", "names of a list", detail)]


def _numbering(values: Sequence[int], hints: MaskHints) -> list[Finding]:
    """Return what to say of values without names that are not numbered from 0."""
    if hints.names or list(values) == list(range(len(values))):
        return []
    shown = some([f"{value} is class {at}" for at, value in enumerate(values)], most=12)
    detail = f"{len(values)} values that are not numbered from 0: {shown}; name them under classes: in dataset.yaml"
    return [Finding("note", "values of the masks", detail)]


def _many(files: Sequence[MaskFile], values: Sequence[int], hints: MaskHints, total: int) -> list[Finding]:
    """Return what to say of very many values without names: they may be grey values after all."""
    if hints.names or hints.task or len(values) <= _MANY_CLASSES:
        return []
    shares = sorted(sum(file.counts.get(value, 0) for file in files) / total for value in values)
    detail = (
        f"{len(values)} values are read as {len(values)} classes; the rarer half of them covers "
        f"{sum(shares[: len(shares) // 2]):.2%} of all pixels. If they are probabilities, resized classes or heights, "
        "threshold them or export the masks again; if they are classes, name them under classes: in dataset.yaml"
    )
    return [Finding("warning", "very many classes", detail)]


def _refuse_lossy(files: Sequence[MaskFile], what: str, *, where: str) -> None:
    raise InputError(
        f"{where}: {len(files)} masks are JPEG, which blurs {what} into each other; expected files that keep their "
        f"values, such as PNG: {some([file.path for file in files])}"
    )


def _on_slopes(files: Sequence[MaskFile]) -> bool:
    """Whether the pixels between the least and the largest value lead from lower to higher ones, as edges do."""
    inner, ramp = sum(file.inner[0] for file in files), sum(file.ramp for file in files)
    return inner > 0 and ramp >= _SLOPE * inner


def _is_smooth(files: Sequence[MaskFile], found: Sequence[int]) -> bool:
    """Whether the values between the least and the largest are those of smooth edges, not classes.

    Most of their pixels have no equal neighbour, or they are many values and lie on slopes (edges along the axes have
    equal neighbours).
    """
    inner, equal = (sum(file.inner[at] for file in files) for at in (0, 1))
    many = len(found) - 2 >= _FEWEST_GREYS
    return inner > 0 and (equal < FLAT_CLASSES * inner or (many and _on_slopes(files)))


def _smooth_convention(
    files: Sequence[MaskFile], found: Sequence[int], hints: MaskHints
) -> MaskConvention | None:
    """Return the cut of binary masks with grey edges: 0 and 255 with few values between on slopes, else None.

    Points and specks of classes beside 255 have no equal neighbours either, but lie on no slopes: they are not cut.
    """
    total = sum(sum(file.counts.values()) for file in files)
    between = sum(file.inner[0] for file in files)
    plain = [min(found), max(found)] == [0, IGNORE] and not hints.names and not hints.ignore
    if not (plain and between <= _MOST_GREY * total and _is_smooth(files, found) and _on_slopes(files)):
        return None
    grey = [file.id for file in files if file.inner[0]]
    detail = (
        f"{len(grey)} masks have grey values between 0 and 255 ({between / total:.2%} of all pixels), which lie on "
        f"edges: smoothed or resized masks of two values, cut at {THRESHOLD}; --task multiclass if they are classes"
    )
    table = {value: int(value >= THRESHOLD) for value in found}
    return MaskConvention(table, [Finding("warning", "masks with grey edges", detail, grey)])


def _refuse_smooth(files: Sequence[MaskFile], found: Sequence[int], *, where: str) -> None:
    """Refuse values that are no areas: smoothed edges, which look like many classes, or single pixels of classes."""
    if not _is_smooth(files, found):
        return
    inner, equal, ramp = (
        sum(counts) for counts in zip(*((*file.inner, file.ramp) for file in files), strict=True)
    )
    what = "smoothed edges of two values" if _on_slopes(files) else "smoothed edges, or single pixels"
    raise InputError(
        f"{where}: {len(found)} different values ({some(found, most=8)}); of the pixels between the least and the "
        f"largest {1 - equal / inner:.0%} have no equal neighbour and {ramp / inner:.0%} lie between lower and higher "
        f"ones: {what}, not areas of classes; threshold them and write 0 and 255, or name the task: --task multiclass"
    )


# --- several labels ---------------------------------------------------------------------------------------


class LayerCounts:
    """What the masks of a set hold, a layer each label."""

    def __init__(self, layers: int) -> None:
        self.pixels = np.zeros(layers, np.int64)
        self.images = np.zeros(layers, np.int64)
        self.overlaps, self.total = 0, 0

    def add(self, mask: Shaped[np.ndarray, "h w k"]) -> None:
        """Count the layers of an image."""
        there = foreground_pixels(mask)
        pixels = there.sum(axis=(0, 1))
        self.pixels += pixels
        self.images += pixels > 0
        self.overlaps += int((there.sum(axis=-1) > 1).sum())
        self.total += 1

    def findings(self, labels: Sequence[str]) -> list[Finding]:
        """Return what a person reads of them; nothing where masks have no labels."""
        if not labels:
            return []
        shown = some(
            [f"{label} in {count}" for label, count in zip(labels, self.images.tolist(), strict=True)],
            most=20,
        )
        detail = f"of {self.total} images {shown}; {self.overlaps} pixels have two labels or more"
        found = [Finding("note", "labels", detail)]
        absent = [label for label, count in zip(labels, self.images, strict=True) if not count]
        if absent:
            detail = (
                f"{len(absent)} of {len(labels)} labels occur in no mask: {some(absent, most=8)}; they keep "
            )
            detail += "their places"
            found.append(Finding("warning", "classes that never occur", detail))
        return found


# --- files that keep values -------------------------------------------------------------------------------


def _exact_convention(
    files: Sequence[MaskFile], found: list[int], hints: MaskHints, *, where: str
) -> tuple[dict[int, int], list[Finding]]:
    present = frozenset().union(*(file.counts for file in files)) if files else frozenset()
    unjudged = dict.fromkeys({_UNJUDGED, *hints.ignore} & present, IGNORE)
    if found in ([], [0]):
        return unjudged | {0: 0}, []
    if found == [1, IGNORE]:
        raise InputError(
            f"{where}: 1 and 255 and no 0: 1 may be the background, or 255 what is not judged; write 0 for the "
            f"background: {some([file.path for file in files])}"
        )
    if len(found) <= 2:
        return unjudged | {value: int(value == found[-1]) for value in found}, []
    if found != [0, 1, IGNORE]:
        _refuse_values(files, found, where=where)
    proof = [file for file in files if {1, IGNORE} <= file.values]
    table, findings = _with_ignored(files, proof, where) if proof else _mixed(files, where)
    return unjudged | table, findings


def _refuse_values(files: Sequence[MaskFile], found: list[int], *, where: str) -> None:
    most = Counter(frozenset(file.values) for file in files)
    odd = [file for file in files if len(file.values) > 2] or [
        file for file in files if file.values - most.most_common(1)[0][0]
    ]
    shown = [f"{file.path}: {some(sorted(file.values), most=8)}" for file in odd]
    raise InputError(
        f"{where}: {len(found)} different values ({some(found, most=8)}); expected two (background and foreground), or "
        f"0, 1 and 255 (not judged); -1 is not judged either; several classes: --task multiclass. "
        f"{len(odd)} of {len(files)} masks: {some(shown, apart='; ')}"
    )


def _mixed(files: Sequence[MaskFile], where: str) -> tuple[dict[int, int], list[Finding]]:
    """Each file is of 0 and 1, or of 0 and 255."""
    ones = [file for file in files if 1 in file.values]
    tops = [file for file in files if IGNORE in file.values]
    if all(file.values == {IGNORE} for file in tops):
        raise InputError(
            f"{where}: {len(ones)} masks hold 1, and {len(tops)} hold 255 alone: either their whole image is "
            f"foreground or it is not judged; write 1 in them, or take them out: "
            f"{some([file.path for file in tops])}"
        )
    detail = f"{len(ones)} masks hold 0 and 1, {len(tops)} hold 0 and 255; read as one binary set"
    fewer = [file.id for file in min(ones, tops, key=len)]
    return {0: 0, 1: 1, IGNORE: 1}, [Finding("note", "two conventions of masks", detail, fewer)]


def _with_ignored(
    files: Sequence[MaskFile], proof: Sequence[MaskFile], where: str
) -> tuple[dict[int, int], list[Finding]]:
    """255 is not judged, as a file proves that holds it beside 1."""
    alone = [file for file in files if IGNORE in file.values and 1 not in file.values]
    plain = any(1 in file.values and IGNORE not in file.values for file in files)
    if len(alone) > (_MOST_ALONE if plain else 1) * len(proof):
        raise InputError(
            f"{where}: 255 occurs beside 1 in {len(proof)} masks ({some([file.path for file in proof])}), where it is "
            f"not judged, and without 1 in {len(alone)} ({some([file.path for file in alone])}), where it may be the "
            "foreground; correct the few, or write 0 and 1, and 255 for what is not judged, in all"
        )
    share = sum(file.counts.get(IGNORE, 0) for file in files) / sum(
        sum(file.counts.values()) for file in files
    )
    detail = f"255 occurs beside 1 in {len(proof)} masks, so it is not judged ({share:.2%} of all pixels)"
    findings = [Finding("note", "masks with pixels not judged", detail, [file.id for file in proof])]
    if alone:
        detail = (
            f"{len(alone)} masks hold 255 and no 1; it is read as not judged in them too; if it is their foreground, "
            "write 1 in its place"
        )
        findings.append(
            Finding("warning", "masks with 255 and no foreground", detail, [file.id for file in alone])
        )
    return {0: 0, 1: 1, IGNORE: IGNORE}, findings


# --- JPEG -------------------------------------------------------------------------------------------------


def _lossy_findings(files: Sequence[MaskFile], *, where: str) -> list[Finding]:
    if not files:
        return []
    refuse_all(
        [
            f"{file.path}: a JPEG mask with values near {some(file.modes, most=9)}; expected near 0 and near 255 "
            "alone, for JPEG blurs classes into each other; export it as PNG again"
            for file in files
            if file.modes
        ],
        what="masks",
    )
    faint = [file for file in files if set(file.counts) in ({0, 1}, {1})]
    if faint and not any(IGNORE in file.counts for file in files):
        raise InputError(
            f"{where}: {len(faint)} JPEG masks hold values above 0 and none from {THRESHOLD} on; expected near 0 "
            f"and near 255; export them as PNG: {some([file.path for file in faint])}"
        )
    total = sum(sum(file.counts.values()) for file in files)
    between = sum(file.between for file in files)
    detail = (
        f"{len(files)} masks are JPEG: lossy, thresholded at {THRESHOLD}; {between} of {total} pixels "
        f"({between / total:.2%}) lie between {BETWEEN[0]} and {BETWEEN[1] - 1}"
    )
    findings = [Finding("note", "lossy masks", detail)]
    if faint:
        detail = f"{len(faint)} JPEG masks hold values above 0 and none from {THRESHOLD} on; they are read as empty"
        findings.append(Finding("warning", "faint lossy masks", detail, [file.id for file in faint]))
    return findings
