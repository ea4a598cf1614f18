"""Corrections of training masks: images that are dropped, count less, or have another mask. Validation never sees them.

A folder holds ``corrections.csv`` (id, action, and if there are any weight and note) and the masks ``ID.png`` of the
images that are mended, as ``masks/`` of a project has them (of several labels ``LABEL/ID.png``):

    keep    as it is; with a weight below 1 it takes part in that share of the epochs
    drop    not trained on
    wrong   the mask is wrong, and nobody has drawn another one: not trained on either
    mend    trained on with the mask of the folder; pixels that the data do not judge stay so

`masksmith labels` writes such folders; anybody can. Those of `masksmith review` have a column ``version``, and their
masks the numbers of classes, with 255 for what is not judged.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from masksmith.core.arrays import IGNORE, AnyMask, Mask, Shaped, judged_pixels
from masksmith.core.errors import InputError
from masksmith.core.files import digest, file_digest
from masksmith.data.store import Arrays, JoinedStore, Store, StoreWriter
from masksmith.data.table import Table, need_column, parse_table
from masksmith.data.target import Target
from masksmith.submission.formats import read_labels, read_mask

TABLE = "corrections.csv"
ACTIONS = ("keep", "drop", "wrong", "mend")
_VERSION = "version"
"""The column of a review page's table."""
_WHERE = "training.corrections"
_MOST_NAMED = 20


@dataclass(frozen=True)
class Corrections:
    """What a folder says of training images."""

    folder: Path
    dropped: frozenset[str] = frozenset()
    weights: Mapping[str, float] = field(default_factory=dict)
    """Id -> share of the epochs, 0…1, where it is below 1."""
    mended: tuple[str, ...] = ()
    """Ids with a mask of their own."""
    numbered: bool = False
    """Whether the masks are those of a review page: numbers of classes, 255 where it is not judged."""

    @property
    def changed(self) -> frozenset[str]:
        """Ids of all images that are not trained on as they are."""
        return self.dropped | frozenset(self.weights) | frozenset(self.mended)

    def __str__(self) -> str:
        counts = len(self.dropped), len(self.weights), len(self.mended)
        return "{} dropped, {} with less weight, {} with another mask".format(*counts)


def corrections_hash(folder: str) -> str:
    """Return a hash of the content of a folder of corrections.

    Raises:
        InputError: There is no such folder, or no table in it.
    """
    path = Path(folder)
    if not (path / TABLE).is_file():
        raise InputError(
            f"{_WHERE}: {folder!r}: {'no ' + TABLE + ' in it' if path.is_dir() else 'no such folder'}; expected a "
            f"folder with {TABLE} (id, action), as `masksmith labels PROJECT` writes it"
        )
    masks = sorted(one for one in path.rglob("*.png") if one.is_file())
    return digest(
        file_digest(path / TABLE), *(f"{one.relative_to(path)} {file_digest(one)}" for one in masks)
    )


def read_corrections(folder: str, masks: Store, target: Target) -> Corrections:
    """Read a folder of corrections.

    Args:
        folder: With ``corrections.csv``.
        masks: Of the training images.
        target: What masks mean.

    Raises:
        InputError: No table; ids that are no training images or come twice; unknown actions; weights outside 0…1;
            masks that are missing, of another size or with values of no class. All of them are in the message.
    """
    corrections_hash(folder)
    path = Path(folder)
    table = parse_table((path / TABLE).read_bytes(), where=str(path / TABLE))
    for column in ("id", "action"):
        need_column(table, column)
    wrong, known, numbered = list[str](), set(masks), _VERSION in table.columns
    dropped, weights, mended = set[str](), dict[str, float](), list[str]()
    seen: set[str] = set()
    for name, action, weight, problem in _rows(table, known):
        if problem is None and name in seen:
            problem = "it comes twice"
        if problem is not None:
            wrong.append(f"{name!r}: {problem}")
            continue
        seen.add(name)
        if action in ("drop", "wrong"):
            dropped.add(name)
            continue
        if weight < 1:
            weights[name] = weight
        if action == "mend":
            try:
                _mask_of(path, name, masks, target, numbered=numbered)
            except InputError as error:
                wrong.append(f"{name!r}: {error}")
            mended.append(name)
    if wrong:
        more = f"\n  and {len(wrong) - _MOST_NAMED} more" if len(wrong) > _MOST_NAMED else ""
        raise InputError(
            f"{path / TABLE}: {len(wrong)} rows cannot be used; expected each training image once, with one of "
            f"{', '.join(ACTIONS)}:\n  " + "\n  ".join(wrong[:_MOST_NAMED]) + more
        )
    return Corrections(path, frozenset(dropped), weights, tuple(mended), numbered)


def _rows(table: Table, known: set[str]) -> Iterator[tuple[str, str, float, str | None]]:
    """Yield id, action, weight and what is wrong with each row."""
    for row in table.rows:
        name, action, text = row["id"], row["action"].strip().lower(), (row.get("weight") or "1").strip()
        try:
            weight = float(text or "1")
        except ValueError:
            weight = math.nan
        problem = None
        if name not in known:
            problem = "no training image"
        elif action not in ACTIONS:
            problem = f"action {row['action']!r}"
        elif not 0 < weight <= 1:
            problem = f"weight {text!r}; expected a number above 0, up to 1 (drop it instead)"
        yield name, action, weight, problem


def _mask_of(folder: Path, name: str, masks: Store, target: Target, *, numbered: bool) -> AnyMask:
    """Return the mask (h, w, k) of a folder, not judged where the data do not judge.

    Args:
        folder: Of the corrections.
        name: Id of the image.
        masks: Of the data.
        target: What masks mean.
        numbered: Whether it is one of a review page: numbers of classes, 255 where it is not judged. It says itself
            what is judged.

    Raises:
        InputError: It is missing, of another size, or holds a value of no class.
    """
    path = folder / f"{name}.png"
    if numbered:
        mask = _numbered(path, 2 if target.task == "binary" else target.outputs)[..., None]
    elif target.task == "multilabel":
        mask = read_labels(folder, name, target)
    else:
        mask = read_mask(path, target)[..., None]
    if mask.ndim != 3:
        raise InputError(f"{path}: several channels; expected one, as the masks of the data have")
    if mask.shape[:2] != masks.shape(name):
        (height, width), (own_height, own_width) = mask.shape[:2], masks.shape(name)
        raise InputError(
            f"{folder / name}.png: {width}x{height} pixels, and the image has {own_width}x{own_height}"
        )
    before = masks[name]
    mask = mask.astype(before.dtype)
    if numbered:
        return mask
    unjudged = IGNORE if before.dtype == np.uint8 else before.dtype.type(-1)
    return np.where(judged_pixels(before), mask, unjudged)


def _numbered(path: Path, classes: int) -> Mask:
    """Return a mask that a review page has written: see project/corrections."""
    raw = np.frombuffer(path.read_bytes() if path.is_file() else b"", np.uint8)
    mask = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED) if raw.size else None
    if mask is None or mask.dtype != np.uint8 or mask.ndim != 2:
        raise InputError(
            f"{path}: {'not there' if not raw.size else 'no mask of one channel of 8 bits'}; mend it again"
        )
    if wrong := [int(value) for value in np.unique(mask) if classes <= value != IGNORE]:
        raise InputError(
            f"{path}: values {wrong[:5]}; expected 0 to {classes - 1}, and {IGNORE} for not judged"
        )
    return np.asarray(mask, np.uint8)


def write_mended(path: Path, corrections: Corrections, masks: Store, target: Target) -> None:
    """Write the masks of a folder as a store, so that a training does not depend on the folder; at least one."""
    shapes = [(name, (*masks.shape(name), masks.channels)) for name in corrections.mended]
    writer = StoreWriter(path, shapes, dtype=masks.dtype.type)
    for name in corrections.mended:
        mask = _mask_of(corrections.folder, name, masks, target, numbered=corrections.numbered)
        writer.write(name, mask)
    writer.close()


class MendedMasks(JoinedStore):
    """The masks of the data, with others in the place of some; ids are those of the data."""

    def __init__(self, masks: Arrays, mended: Store) -> None:
        """Keep both; all ids of ``mended`` are in ``masks``."""
        super().__init__({"data": masks, "mended": mended})

    def _find(self, joined: str) -> tuple[Store | JoinedStore, str]:
        mended = self.stores["mended"]
        assert isinstance(mended, Store)
        return (mended if joined in mended.entries else self.stores["data"]), joined

    def __iter__(self) -> Iterator[str]:
        return iter(self.stores["data"])


def drawn_again(
    order: Shaped[np.ndarray, " drawn"], weights: Shaped[np.ndarray, " n"], rng: np.random.Generator
) -> Shaped[np.ndarray, " drawn"]:
    """Return an epoch's order in which images below weight 1 take part in that share of the epochs.

    Others of weight 1 come in their place, drawn from those of the order itself: an epoch is as long as before, and has
    the shares that a sampler gave it. The expected gradient is that of a weighted loss, and holds for losses of whole
    batches too.

    Args:
        order: Positions of images; beyond the last image come mirrored copies.
        weights: Of each image, 0…1.
        rng: Of the epoch.
    """
    own = weights[order % len(weights)]
    full = order[own == 1]
    if len(full) in (0, len(order)):
        return order
    out = rng.random(len(order)) >= own
    found = order.copy()
    found[out] = rng.choice(full, size=int(out.sum()))
    return found
