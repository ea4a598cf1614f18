"""What the colours of mask files mean: by a table of classes, or each colour a class of its own.

Without a table the background is the colour that is the most frequent at the borders of the images, and the others
follow in the order of their red, green and blue.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from masksmith.core.arrays import IGNORE, Shaped
from masksmith.core.errors import InputError
from masksmith.data.colours import count_values, hex_name, nearest_colours, pack, unpack
from masksmith.data.findings import Finding, refuse_all, some
from masksmith.data.mask_shapes import equal_neighbours
from masksmith.data.masks import FLAT_CLASSES, MaskConvention, MaskHints
from masksmith.data.target import OBJECTS, Target

MOST_COLOURS = 255
"""Most classes of a map of uint8."""
_KEPT = 1024
"""Colours that are kept of a file."""
_BACKGROUND = ("background", "bg", "none", "other", "others", "unlabeled", "unlabelled", "_background_")
_FAR = 64.0
"""From a colour of the table; JPEG moves colours less than this but at edges."""
_MOST_FAR = 0.2


@dataclass(frozen=True)
class ColourFile:
    """What decides the meaning of a mask file's colours, packed (see colours.py)."""

    id: str
    path: str
    counts: dict[int, int]
    """Colour -> pixels, of the most frequent ones."""
    distinct: int
    """Number of all colours."""
    border: dict[int, int]
    """Colour -> pixels at the border of the image."""
    lossy: bool = False
    inner: tuple[int, int] = (0, 0)
    """Pixels of other colours than the two most frequent ones, and how many of them have an equal neighbour."""


def look_at_colours(colours: Shaped[np.ndarray, "h w"], *, name: str, path: str, lossy: bool) -> ColourFile:
    """Return what decides the meaning of a file's packed colours."""
    counts = Counter(count_values(colours.reshape(-1)))
    border = np.concatenate([colours[0], colours[-1], colours[1:-1, 0], colours[1:-1, -1]])
    inner = np.zeros(colours.shape, bool)
    if len(counts) > 2:
        inner = ~np.isin(colours, [colour for colour, _ in counts.most_common(2)])
    return ColourFile(
        name,
        path,
        dict(counts.most_common(_KEPT)),
        len(counts),
        count_values(border),
        lossy,
        (int(inner.sum()), int((inner & equal_neighbours(colours)).sum())),
    )


def find_colours(
    files: Sequence[ColourFile],
    table: Mapping[str, Sequence[int]],
    *,
    where: str,
    hints: MaskHints,
    labels: bool = False,
) -> MaskConvention:
    """Decide, from all mask files of a set, what each colour means.

    Args:
        files: What look_at_colours found.
        table: Class -> red, green and blue; empty: each colour is a class.
        where: What to call the masks in an error.
        hints: The task that was asked for; ``ignore`` holds places in the table, or in the order of the colours.
        labels: Whether a file is of one label: what is no background is foreground.

    Raises:
        InputError: Colours that no class has, too many of them, smooth ones, JPEG without a table, or a task that they
            contradict.
    """
    if hints.task == "instances":
        return MaskConvention({}, [], OBJECTS, colours=True)
    if table:
        names, colours = list(table), [pack(rgb) for rgb in table.values()]
        findings = _check_table(files, dict(zip(colours, names, strict=True)), where=where)
        background = next((at for at, name in enumerate(names) if name.lower() in _BACKGROUND), None)
        background = colours.index(0) if background is None and 0 in colours else background or 0
    else:
        _refuse_loose(files, where=where)
        colours = _ordered(files)
        names, background = list(map(hex_name, colours)), 0
        findings = [_suggestion(colours)]
    if labels:
        return MaskConvention(
            {one: int(at != background) for at, one in enumerate(colours)}, findings, colours=True
        )
    return _convention(names, colours, background, findings, files, bool(table), where=where, hints=hints)


def _convention(
    names: list[str],
    colours: list[int],
    background: int,
    findings: list[Finding],
    files: Sequence[ColourFile],
    told: bool,
    *,
    where: str,
    hints: MaskHints,
) -> MaskConvention:
    ignored = [at for at in hints.ignore if 0 <= at < len(colours)]
    kept = [at for at in range(len(colours)) if at not in ignored]
    meaning = {colours[at]: IGNORE for at in ignored}
    if ignored:
        total = sum(sum(file.counts.values()) for file in files)
        pixels = sum(file.counts.get(colours[at], 0) for file in files for at in ignored)
        named = " and ".join(names[at] for at in ignored)
        detail = f"{named} is not judged ({pixels / total:.2%} of all pixels)"
        findings = [*findings, Finding("note", "masks with pixels not judged", detail)]
    if len(kept) < 2:
        raise InputError(
            f"{where}: one colour only ({some([names[at] for at in kept])}); expected two or more"
        )
    if hints.task == "binary" and len(kept) > 2:
        raise InputError(
            f"{where}: --task binary, but there are {len(kept)} colours ({some([names[at] for at in kept])}); expected "
            "two, or --task multiclass"
        )
    if len(kept) == 2 and hints.task != "multiclass":
        front = kept[0] if kept[1] == background else kept[1]
        classes = (names[front],) if told else ("foreground",)
        meaning |= {colours[at]: int(at == front) for at in kept}
        return MaskConvention(meaning, findings, Target("binary", classes), colours=True)
    meaning |= {colours[at]: place for place, at in enumerate(kept)}
    palette = tuple(unpack(colours[at]) for at in kept)
    target = Target("multiclass", tuple(names[at] for at in kept), tuple(kept), palette, tuple(ignored))
    return MaskConvention(meaning, findings, target, colours=True)


# --- with a table -----------------------------------------------------------------------------------------


def _check_table(files: Sequence[ColourFile], known: Mapping[int, str], *, where: str) -> list[Finding]:
    exact = [file for file in files if not file.lossy]
    unknown: Counter[int] = Counter()
    for file in exact:
        unknown.update({colour: count for colour, count in file.counts.items() if colour not in known})
    if unknown:
        odd = [file for file in exact if file.counts.keys() - known.keys()]
        shown = [
            f"{hex_name(one)} {list(unpack(one))} ({count} pixels)" for one, count in unknown.most_common(8)
        ]
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise InputError(
            f"{where}: colours that no class has: {', '.join(shown)}{more}, in {len(odd)} of {len(files)} masks: "
            f"{some([file.path for file in odd])}; give each a class under colours: in dataset.yaml (classes that are "
            "not judged go under ignore: by their place), or correct the masks"
        )
    findings = _nearest_findings([file for file in files if file.lossy], list(known), where=where)
    there = frozenset().union(*(file.counts for file in exact)) if exact else frozenset(known)
    absent = [name for colour, name in known.items() if colour not in there]
    if absent and len(exact) == len(files):
        detail = f"{len(absent)} of {len(known)} classes occur in no mask: {some(absent, most=8)}; "
        detail += "they keep their numbers"
        findings.append(Finding("warning", "classes that never occur", detail))
    return findings


def _nearest_findings(files: Sequence[ColourFile], known: Sequence[int], *, where: str) -> list[Finding]:
    if not files:
        return []
    far, total = 0, 0
    problems = []
    for file in files:
        colours = np.array(list(file.counts), np.int32)
        pixels = np.array(list(file.counts.values()))
        _, apart = nearest_colours(colours, known)
        own = int(pixels[apart > _FAR].sum())
        if own > _MOST_FAR * pixels.sum():
            problems.append(
                f"{file.path}: a JPEG mask, {own / pixels.sum():.0%} of whose pixels are like no colour of the table; "
                "correct the table, or export the mask as PNG"
            )
        far, total = far + own, total + int(pixels.sum())
    refuse_all(problems, what="masks")
    detail = (
        f"{len(files)} masks in colours are JPEG: lossy, each pixel has the class of the nearest colour; {far} of "
        f"{total} pixels ({far / total:.2%}) are far from all of them"
    )
    return [Finding("note", "lossy masks", detail)]


# --- without a table --------------------------------------------------------------------------------------


def _refuse_loose(files: Sequence[ColourFile], *, where: str) -> None:
    """Refuse colours that are no classes.

    Raises:
        InputError: JPEG, more colours than classes can be, or smoothed edges.
    """
    lossy = [file.path for file in files if file.lossy and file.distinct > 1]
    if lossy:
        raise InputError(
            f"{where}: {len(lossy)} masks in colours are JPEG, which makes new colours: {some(lossy)}; export them as "
            "PNG, or say which colours there are, under colours: in dataset.yaml, and each pixel has the nearest one"
        )
    many = [file.path for file in files if file.distinct > MOST_COLOURS]
    found = frozenset().union(*(file.counts for file in files))
    if len(found) > MOST_COLOURS:
        shown = (
            f"{len(many)} masks hold more each: {some(many)}" if many else some([file.path for file in files])
        )
        raise InputError(
            f"{where}: masks of {len(found)} colours and more; expected at most {MOST_COLOURS}, one for each class; "
            f"{shown}; smoothed edges and pictures are no masks. If each colour is an object, name the task: --task "
            "instances"
        )
    smooth = [file for file in files if file.inner[0] and file.inner[1] < FLAT_CLASSES * file.inner[0]]
    inner, equal = (sum(file.inner[at] for file in files) for at in (0, 1))
    if inner and equal < FLAT_CLASSES * inner:
        raise InputError(
            f"{where}: {len(found)} colours, and {1 - equal / inner:.0%} of the pixels of the rarer ones have no equal "
            f"neighbour: smoothed edges, not classes, in {some([file.path for file in smooth])}; write each class in "
            "one colour, or say which there are, under colours: in dataset.yaml"
        )


def _ordered(files: Sequence[ColourFile]) -> list[int]:
    """Return the colours: the most frequent one at the borders, then the others by red, green and blue."""
    border: Counter[int] = Counter()
    for file in files:
        border.update(file.border)
    first = max(border, key=lambda one: (border[one], -one))
    return [first, *sorted(frozenset().union(*(file.counts for file in files)) - {first})]


def _suggestion(colours: Sequence[int]) -> Finding:
    lines = ", ".join(f'"{hex_name(one)}": {list(unpack(one))}' for one in colours)
    detail = (
        f"{len(colours)} colours and no table of them: {hex_name(colours[0])} is the background (the most frequent at "
        f"the borders), each other is a class named by its colour; to name them, write into dataset.yaml: colours: "
        f"{{{lines}}}"
    )
    return Finding("note", "masks in colours", detail)
