"""What predicted and true masks mean: found from the values of all of them and the metric, and said.

Two passes go over the masks, one image in memory at a time. The first looks at values (``Survey``) and decides the
task; the second makes a pair of arrays of each image, as the task's metrics take them:

``binary``      0 and 1; 255 in the target is not judged.
``multiclass``  Class maps 0 … k-1, uint8 or uint16; 255 or 65535 in the target is not judged.
``multilabel``  Planes (h, w, k) of 0 and 1; 255 in the target is not judged.
``instances``   Objects int32, or a mask (uint8) whose connected regions are the objects.
"""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from jaxtyping import Bool

from masksmith.core.arrays import IGNORE, Shaped
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.data.findings import some
from masksmith.data.masks import MaskFile, find_convention, look_at_mask, mask_levels
from masksmith.metrics.classes import IGNORE_CLASS
from masksmith.metrics.tasks import OBJECT_METRICS
from masksmith.submission.sources import Kind, Picture, Shape

TASKS = ("binary", "multiclass", "multilabel", "instances")
_MOST_VALUES = 65_537
_KEPT = 9  # values of a file that are kept, the least: one of more is no binary mask
_HALF = 128
"""255 is "not judged" in class maps whose classes end below this number, and 65535 in those of 16 bits below 2**15."""
_MANY = 64
"""Values from which numbers are objects, where neither a task nor a metric tells."""
_UNJUDGED = -1

Values = Collection[int]
Pair = tuple[Shaped[np.ndarray, "..."], Shaped[np.ndarray, "..."], int]
"""Prediction, target, and how many pixels are not judged."""


@dataclass
class Survey:
    """What the masks of a source hold, over all of them."""

    path: str
    kinds: set[Kind] = field(default_factory=set)
    counts: Counter[int] = field(default_factory=Counter)
    """Value -> pixels."""
    borders: Counter[int] = field(default_factory=Counter)
    """Value -> pixels on the borders of images."""
    files: list[MaskFile] = field(default_factory=list)
    """Of numbers: what decides the meaning of a binary mask's values."""
    shapes: dict[str, Shape] = field(default_factory=dict)
    channels: set[int] = field(default_factory=set)
    wide: bool = False
    """Whether numbers have more than 8 bits."""
    objects: bool = False
    """Whether numbers are those of objects, as the source says."""
    lossy: list[str] = field(default_factory=list)
    """JPEG files."""

    @property
    def values(self) -> set[int]:
        """Every value that occurs; of JPEG files, which blur them, 0 and 255."""
        return {0, IGNORE} if self.lossy and self.kinds == {"numbers"} else set(self.counts)

    def add(self, name: str, picture: Picture, *, where: str) -> None:
        """Look at an image's mask.

        Raises:
            InputError: So many different values that they are no masks.
        """
        array = picture.array
        self.kinds.add(picture.kind)
        self.shapes[name] = picture.shape
        self.channels.add(array.shape[2] if array.ndim == 3 else 1)
        counts = _counted(array)
        self.counts.update(counts)
        if len(self.counts) > _MOST_VALUES:
            raise InputError(
                f"{where}: more than {_MOST_VALUES - 1:,} different values up to here; expected masks, not photographs"
            )
        if picture.kind == "colours":
            for line in (array[0], array[-1], array[:, 0], array[:, -1]):
                self.borders.update(_counted(line))
        if picture.kind == "numbers":
            self.wide |= array.dtype != np.uint8
            self.files.append(_mask_file(picture, counts, name=name, where=where))
        if picture.lossy:
            self.lossy.append(where)


def _mask_file(picture: Picture, counts: dict[int, int], *, name: str, where: str) -> MaskFile:
    """Return what look_at_mask would, of counts that are there already."""
    if picture.lossy:
        return look_at_mask(picture.array, name=name, path=where, lossy=True)
    if picture.array.dtype == np.uint16 and IGNORE not in counts:  # as mask_levels reads 16 bits
        counts = {IGNORE if value == IGNORE_CLASS else value: count for value, count in counts.items()}
    return MaskFile(name, where, dict(sorted(counts.items())[:_KEPT]))


def _counted(array: Shaped[np.ndarray, "..."]) -> dict[int, int]:
    """Return how often each value occurs."""
    if array.min() >= 0 and array.max() < max(
        array.size, 256
    ):  # a table is faster than sorting, while it is small
        counts = np.bincount(array.ravel(), minlength=1)
        return {int(value): int(counts[value]) for value in np.flatnonzero(counts)}
    values, counts = np.unique(array, return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


@dataclass(frozen=True)
class Meaning:
    """A task, and how a pair of pictures becomes what its metrics take."""

    task: str
    why: str
    pair: Callable[[Picture, Picture], Pair]
    """(prediction, truth) -> arrays; values that cannot be are an InputError without the file's name."""
    classes: list[str] = field(default_factory=list)
    """Names of classes or planes; none in binary masks and objects."""
    most: int = 0
    """The class that most true pixels have, in class maps."""
    ignored: list[str] = field(default_factory=list)
    """Values that are not judged, as text."""
    notes: list[str] = field(default_factory=list)


def value_text(value: int, kind: Kind) -> str:
    """Return a value as a person writes it: a number, or #rrggbb."""
    return f"#{value:06x}" if kind == "colours" else str(value)


def parse_ignored(texts: Sequence[str | int]) -> set[int]:
    """Return the values that --ignore names: whole numbers, or colours as #rrggbb.

    Raises:
        InputError: Something else.
    """
    found = set()
    for text in map(str, texts):
        try:
            found.add(int(text[1:], 16) if len(text) == 7 and text[0] == "#" else int(text))
        except ValueError as error:
            raise InputError(
                f"--ignore {text}: expected a value of the mask files, such as 255, or a colour as #rrggbb"
            ) from error
    return found


def find_meaning(
    pred: Survey, truth: Survey, *, metric: str | None, task: str | None, ignore: Values, names: Sequence[str]
) -> Meaning:
    """Decide what masks mean.

    Args:
        pred: Of the predictions.
        truth: Of the true masks, which decide.
        metric: Its name, without parameters; None: it follows the task.
        task: What was asked for; None: found.
        ignore: Values of the true masks that are not judged, besides those that the values themselves show.
        names: Of the planes, where a source names them.

    Raises:
        InputError: A task that the masks contradict, predictions of another kind than the truth, or values that can
            be read in two ways.
    """
    if task is not None:
        look_up(dict.fromkeys(TASKS), task, where="--task")
    for one in (pred, truth):
        if len(one.kinds) > 1:
            raise InputError(
                f"{one.path}: {' and '.join(sorted(one.kinds))} in one set; expected all masks of one form"
            )
    (kind,), (pred_kind,) = truth.kinds, pred.kinds
    if kind != pred_kind:
        raise InputError(
            f"{pred.path}: {pred_kind}, and {truth.path} holds {kind}; expected both in one form (numbers are one "
            "channel or a palette, planes (h, w, classes))"
        )
    values = truth.values - set(ignore) - {_UNJUDGED}
    found, why = _task_of(pred, truth, values, kind, metric=metric)
    task, why = (found, why) if task is None else (task, "asked for")
    _check_task(task, kind, values, truth)
    make = {
        "binary": _binary,
        "multiclass": _multiclass,
        "multilabel": _multilabel,
        "instances": _instances,
    }[task]
    return replace(make(pred, truth, set(ignore), names), why=why)


def _is_binary(values: Values) -> bool:
    """Whether values (without those that are not judged) are those of a binary set."""
    eight_bits = {IGNORE if value == IGNORE_CLASS else value for value in values}
    return len(eight_bits) <= 2 or eight_bits == {0, 1, IGNORE}


def _task_of(
    pred: Survey, truth: Survey, values: set[int], kind: Kind, *, metric: str | None
) -> tuple[str, str]:
    if kind == "planes":
        return "multilabel", f"{max(truth.channels)} planes"
    many = f"{len(values)} {'colours' if kind == 'colours' else 'values'} in the true masks"
    if kind == "numbers" and metric in OBJECT_METRICS:
        if (
            truth.objects
            or pred.objects
            or not _is_binary(values)
            or not _is_binary(pred.values - {_UNJUDGED})
        ):
            return "instances", f"{metric} is of objects, and each number is one"
        return "binary", f"{many}; objects are connected regions"
    if truth.objects and metric is None:
        return "instances", "a file or a row for each object"
    if truth.objects:
        return "binary", f"{metric} is not of objects, so they are joined"
    if _is_binary(values):
        return "binary", many
    if metric is None and kind == "numbers" and (truth.wide or len(values) > _MANY):
        return "instances", f"{many}, each an object"
    return "multiclass", many


def _check_task(task: str, kind: Kind, values: set[int], truth: Survey) -> None:
    says = f"--task {task}: {truth.path}"
    shown = some([value_text(value, kind) for value in sorted(values)], most=8)
    if (kind == "planes") != (task == "multilabel"):
        holds = f"holds planes (h, w, {max(truth.channels)})" if kind == "planes" else f"holds {kind} (h, w)"
        raise InputError(
            f"{says} {holds}; expected {'planes' if task == 'multilabel' else 'one value a pixel'}"
        )
    if task == "instances" and kind == "colours":
        raise InputError(f"{says} holds colours; expected a number for each object (PNG of 16 bits, .npy)")
    if task == "binary" and not truth.objects and not _is_binary(values):
        raise InputError(
            f"{says} holds {len(values)} different values ({shown}); expected two, or 0, 1 and 255 (not judged)"
        )
    if task == "multiclass" and truth.lossy:
        raise InputError(
            f"{says} holds {len(truth.lossy)} JPEG files, which blur classes into each other; expected PNG: "
            f"{some(truth.lossy)}"
        )
    if task == "instances" and not truth.objects and values <= {0, IGNORE} and values != {0}:
        raise InputError(
            f"{says} holds 0 and 255, a mask and not a number for each object; leave --task out: metrics of objects "
            "take connected regions"
        )


# --- binary -----------------------------------------------------------------------------------------------


def _binary(pred: Survey, truth: Survey, ignore: set[int], names: Sequence[str]) -> Meaning:
    del names
    if truth.kinds == {"colours"}:
        return _two_colours(pred, truth, ignore)
    if truth.objects:
        return Meaning("binary", "", _object_union)
    given = [
        replace(file, counts={value: n for value, n in file.counts.items() if value not in ignore})
        for file in truth.files
    ]
    convention = find_convention(given, where=truth.path)
    table = convention.table
    plain = 0 in table or 0 in pred.values
    known = [value for value, meaning in table.items() if meaning == IGNORE] + sorted(ignore & truth.values)

    def pair(guess: Picture, true: Picture) -> Pair:
        levels = mask_levels(true.array[..., None], where="the true mask")
        unjudged = np.isin(true.array, list(ignore)) if ignore else np.zeros(true.shape, bool)
        target = convention.apply(np.where(unjudged, min(table), levels), lossy=true.lossy)
        target[unjudged] = IGNORE
        return (
            _foreground(guess, target != IGNORE, None if plain else table),
            target,
            _count(target == IGNORE),
        )

    return Meaning(
        "binary",
        "",
        pair,
        ignored=[str(value) for value in known if value in truth.values],
        notes=[finding.detail for finding in convention.findings],
    )


def _count(mask: Bool[np.ndarray, "..."]) -> int:
    return int(np.count_nonzero(mask))


def _foreground(
    guess: Picture, judged: Bool[np.ndarray, "h w"], table: dict[int, int] | None
) -> Shaped[np.ndarray, "h w"]:
    """Return a predicted mask of 0 and 1; by a table of values where the background is not 0."""
    array = guess.array
    if guess.lossy:
        return (array >= _HALF).astype(np.uint8)
    values = np.unique(array[judged]).tolist()
    odd = [value for value in values if value < 0 or (table is not None and table.get(value) not in (0, 1))]
    if odd or (table is None and len(set(values) - {0}) > 1):
        expected = "0 and one other" if table is None else f"{some(sorted(table))} as in the true masks"
        raise InputError(
            f"the prediction holds {some(odd or values, most=8)}; expected {expected}; threshold probabilities first"
        )
    if table is None:
        return (array != 0).astype(np.uint8)
    return np.isin(array, [value for value, meaning in table.items() if meaning == 1]).astype(np.uint8)


def _object_union(guess: Picture, true: Picture) -> Pair:
    target = (true.array != 0).astype(np.uint8)
    return (guess.array != 0).astype(np.uint8), target, 0


def _two_colours(pred: Survey, truth: Survey, ignore: set[int]) -> Meaning:
    back = truth.borders.most_common(1)[0][0]
    odd = pred.values - truth.values
    if odd:
        raise InputError(
            f"{pred.path}: colours that are not in {truth.path}: "
            f"{some([value_text(value, 'colours') for value in sorted(odd)])}"
        )

    def pair(guess: Picture, true: Picture) -> Pair:
        target = (true.array != back).astype(np.uint8)
        target[np.isin(true.array, list(ignore))] = IGNORE
        return (guess.array != back).astype(np.uint8), target, _count(target == IGNORE)

    shown = [value_text(value, "colours") for value in sorted(ignore & truth.values)]
    note = f"{value_text(back, 'colours')}, the most frequent colour of the borders, is the background"
    return Meaning("binary", "", pair, ignored=shown, notes=[note])


# --- several classes --------------------------------------------------------------------------------------


def _multiclass(pred: Survey, truth: Survey, ignore: set[int], names: Sequence[str]) -> Meaning:
    del names
    (kind,) = truth.kinds
    ignored = {_UNJUDGED, *ignore}
    if kind == "numbers":
        for value, half in ((IGNORE, _HALF), (IGNORE_CLASS, 2**15)):
            others = truth.values - ignored - {IGNORE, IGNORE_CLASS}
            if value in truth.values and others and max(others) < half:
                ignored.add(value)
    values = sorted((truth.values | pred.values) - ignored)
    if kind == "numbers" and values[0] >= 0:
        values = sorted({0, *values})
    elif kind == "colours":
        values.sort(key=lambda value: (value != truth.borders.most_common(1)[0][0], value))
    order = np.array(values)
    sorter = np.argsort(order)
    dtype, unjudged = (np.uint8, IGNORE) if len(values) <= IGNORE else (np.uint16, IGNORE_CLASS)

    def classes_of(
        array: Shaped[np.ndarray, "h w"],
    ) -> tuple[Shaped[np.ndarray, "h w"], Bool[np.ndarray, "h w"]]:
        spots = sorter[np.searchsorted(order, array, sorter=sorter).clip(max=len(order) - 1)]
        return spots.astype(dtype), order[spots] == array

    def pair(guess: Picture, true: Picture) -> Pair:
        (found, known), (target, judged) = (classes_of(one.array) for one in (guess, true))
        odd = np.unique(guess.array[judged & ~known]).tolist()
        if odd:
            raise InputError(
                f"the prediction holds {some([value_text(value, kind) for value in odd])}, which is not judged in the "
                f"truth and no class; expected one of {some([value_text(value, kind) for value in values], most=20)}"
            )
        target[~judged] = unjudged
        return found, target, _count(~judged)

    counts = [truth.counts[value] for value in values]
    return Meaning(
        "multiclass",
        "",
        pair,
        [value_text(value, kind) for value in values],
        int(np.argmax(counts)),
        [value_text(value, kind) for value in sorted(ignored & truth.values)],
    )


def _multilabel(pred: Survey, truth: Survey, ignore: set[int], names: Sequence[str]) -> Meaning:
    channels = truth.channels | pred.channels
    if len(channels) > 1:
        raise InputError(
            f"{pred.path}: planes of {some(sorted(pred.channels))}, {truth.path}: of {some(sorted(truth.channels))}; "
            "expected as many in each mask"
        )
    for one in (truth, pred):
        odd = one.values - (ignore | {_UNJUDGED} if one is truth else set())
        if not (odd == {0, 1, IGNORE} or len(odd - {0}) <= 1):
            raise InputError(
                f"{one.path}: planes with the values {some(sorted(odd), most=8)}; expected 0 and one other, or 0, 1 "
                "and 255 (not judged)"
            )
    ignored = {_UNJUDGED, *ignore} | ({IGNORE} if {1, IGNORE} <= truth.values else set())

    def pair(guess: Picture, true: Picture) -> Pair:
        target = (true.array != 0).astype(np.uint8)
        target[np.isin(true.array, list(ignored))] = IGNORE
        return (guess.array != 0).astype(np.uint8), target, _count(target == IGNORE)

    (count,) = channels
    classes = list(names) or [str(at) for at in range(1, count + 1)]
    return Meaning(
        "multilabel",
        "",
        pair,
        classes,
        ignored=[str(value) for value in sorted(ignored & truth.values)],
    )


# --- objects ----------------------------------------------------------------------------------------------


def _instances(pred: Survey, truth: Survey, ignore: set[int], names: Sequence[str]) -> Meaning:
    del names
    ignored = {_UNJUDGED, *ignore} | ({IGNORE_CLASS} if truth.wide and not truth.objects else set())
    masks = {
        id(one): not one.objects and _is_mask(one.values - ignored, other.values - ignored)
        for one, other in ((pred, truth), (truth, pred))
    }

    def objects_of(
        array: Shaped[np.ndarray, "h w"], unjudged: Bool[np.ndarray, "h w"], is_mask: bool
    ) -> Shaped[np.ndarray, "h w"]:
        dtype = np.uint8 if is_mask else np.int32
        kept = np.where(unjudged | (array < 0), 0, array)
        return (kept != 0).astype(dtype) if is_mask else kept.astype(dtype)

    def pair(guess: Picture, true: Picture) -> Pair:
        unjudged = np.isin(true.array, list(ignored))
        found = objects_of(guess.array, unjudged, masks[id(pred)])
        return found, objects_of(true.array, unjudged, masks[id(truth)]), _count(unjudged)

    notes = [
        f"{one.path} holds masks; their objects are connected regions"
        for one in (pred, truth)
        if masks[id(one)]
    ]
    shown = [str(value) for value in sorted(ignored & truth.values)]
    return Meaning("instances", "", pair, ignored=shown, notes=notes)


def _is_mask(values: set[int], others: set[int]) -> bool:
    """Whether numbers of one set are a mask, where those of the other are objects."""
    return values - {0} == {IGNORE} or (values - {0} == {1} and len(others - {0}) > 1)
