"""The split that lists beside the images tell: train.txt and val.txt, a JSON of splits, a column of a table.

Entries are ids, names or paths of images or masks, folders, patients or volumes, also with the folders of another
computer; what follows them in a line (the mask) is passed over. The lists are followed where a layout has not read a
split itself: images of ``val`` are held out, labelled ones of ``test`` are left unseen. What the lists contradict is a
finding.

Sources: the lists of Pascal VOC (ImageSets) and CamVid, ``splits_final.json`` of nnU-Net
(https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/manual_data_splits.md), the datalist of MONAI's Decathlon
format (https://docs.monai.io/en/stable/data.html#decathlon-datalist).
"""

import json
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog, Sample, SubmissionFormat
from masksmith.data.description import FILE_NAME
from masksmith.data.findings import Finding, some
from masksmith.data.run_tables import natural
from masksmith.data.side_tables import read_tables
from masksmith.data.tree import Tree

FOLD = "fold"
"""Text of a sample that has its fold, where a file of splits has several whose validation sets are all images."""
SPLIT_COLUMNS = {"split", "set", "subset", "fold", "phase", "partition", "usage", "dataset"}
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "tr", "trn"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
}
_RANK = ("test", "val", "train")
"""Of an image that two lists name, the first counts: what is held out stays unseen."""
_WORD = re.compile(r"(?<![a-z])(training|train|validation|valid|val|testing|test)(?![a-z])", re.IGNORECASE)
_BOTH = re.compile(r"train[-_ ]?val", re.IGNORECASE)
_JSON_WORD = re.compile(r"(split|fold|partition|datalist|dataset)", re.IGNORECASE)
_ITEM_KEYS = ("image", "img", "image_path", "file_name", "filename", "name", "id")
_LEAST_LISTED = 0.5
"""Share of the images that lists name, from which on the others are left out."""
_FOLD_COLUMNS = {"fold", "folds", "fold_id", "kfold", "cv", "cv_fold", "split"}
_MOST_FOLDS = 20
_MOST_BYTES = 2**26
_MOST_WORDS = 8
"""Most words of a line that are looked up: an image, its mask, and what else there may be."""


@dataclass(frozen=True)
class SplitList:
    """Entries of one split, as a file has them."""

    source: str
    split: str
    entries: list[str]
    family: str
    """What lists of one splitting share: the file, or the folder and the name without the split's word."""


@dataclass
class _Matched:
    split: str
    source: str
    ids: list[str]
    absent: list[str]


def with_split_lists(tree: Tree, catalog: Catalog) -> Catalog:
    """Return the catalogue with the split that lists in the folder tell; as it is where there are none."""
    catalog = replace(catalog, findings=[*catalog.findings, *_fold_columns(catalog)])
    tables = [] if catalog.layout == "path_table" else _table_lists(tree)  # it follows its own
    lists = [*_text_lists(tree), *_json_lists(tree), *tables]
    if not lists:
        return catalog
    names = _Names(catalog.train)
    families: dict[str, list[_Matched]] = defaultdict(list)
    for one in lists:
        found = names.match(one)
        if found.ids and len(found.ids) >= len(found.absent):
            families[one.family].append(found)
    usable = {name: own for name, own in families.items() if _tells_apart(own, catalog)}
    if not usable:
        return catalog
    if (folds := _folds(usable, catalog)) is not None:
        return folds
    ranked = sorted(usable, key=lambda name: (-_covered(usable[name]), natural(name)))
    taken = usable[ranked[0]]
    sources = {one.source for name in ranked[1:] for one in usable[name]} - {one.source for one in taken}
    return _follow(catalog, taken, sorted(sources))


def _fold_columns(catalog: Catalog) -> Iterator[Finding]:
    """Yield how to take the folds that a table has."""
    values: dict[str, set[str]] = defaultdict(set)
    for one in catalog.train:
        for column in one.texts:
            if column.strip().lower() in _FOLD_COLUMNS:
                values[column].add(one.texts[column])
    for column, found in values.items():
        if 2 <= len(found) <= _MOST_FOLDS and not {one.lower() for one in found} & SPLIT_WORDS.keys():
            folds: list[str] = sorted(found, key=natural)
            detail = (
                f"the column {column!r} has {len(found)} folds ({some(folds)}): --set "
                f"folds.fold_by={column} --set folds.count={len(found)} takes them"
            )
            yield Finding("note", "folds of the data set", detail)


# --- the files --------------------------------------------------------------------------------------------


def _text_lists(tree: Tree) -> Iterator[SplitList]:
    """Yield the lists of text files that are called after a split; of ImageSets those of Segmentation."""
    paths = [path for path in tree.every(".txt", ".lst") if _WORD.search(PurePosixPath(path).stem)]
    if any("ImageSets/Segmentation/" in path for path in paths):
        paths = [path for path in paths if "ImageSets/" not in path or "ImageSets/Segmentation/" in path]
    for path in paths:
        place = PurePosixPath(path)
        words = {SPLIT_WORDS[word.lower()] for word in _WORD.findall(place.stem)}
        if len(words) != 1 or _BOTH.search(place.stem):
            continue
        family = f"{place.parent}/{_WORD.sub('', place.stem)}"
        yield SplitList(path, words.pop(), _lines(tree, path), family)


def _lines(tree: Tree, path: str) -> list[str]:
    try:
        raw = tree.read(path)[:_MOST_BYTES]
    except InputError:
        return []
    return [line.strip() for line in raw.decode("utf-8-sig", "replace").splitlines() if line.strip()]


def _json_lists(tree: Tree) -> Iterator[SplitList]:
    for path in tree.every(".json"):
        place = PurePosixPath(path)
        if not (_JSON_WORD.search(place.stem) or _WORD.search(place.stem)):
            continue
        try:
            raw = tree.read(path)
            value = json.loads(raw) if len(raw) <= _MOST_BYTES else None
        except (InputError, ValueError, RecursionError):
            continue
        if isinstance(value, list) and (word := _WORD.search(place.stem)) and (own := _entries(value)):
            family = f"{place.parent}/{_WORD.sub('', place.stem)}"
            yield SplitList(path, SPLIT_WORDS[word[1].lower()], own, family)
        else:
            yield from _of_json(value, path)


def _of_json(value: object, path: str) -> Iterator[SplitList]:
    """Yield the lists of {"train": […], "val": […]}, of several such, and of {"id": "train"}."""
    if isinstance(value, list):
        several: list[tuple[object, object]] = list(enumerate(value))
    elif isinstance(value, dict) and not _splits_of(value):
        several = list(value.items())
        if told := {str(key): SPLIT_WORDS.get(one.lower()) for key, one in several if isinstance(one, str)}:
            for split in _RANK:
                own = [key for key, one in told.items() if one == split]
                yield from [SplitList(path, split, own, path)] if own else []
            return
    else:
        several = [("", value)]
    for key, one in several:
        for split, own in _splits_of(one).items():
            yield SplitList(path, split, own, f"{path} {key}".rstrip())


def _splits_of(value: object) -> dict[str, list[str]]:
    """Return split -> entries of an object that has lists by the names of splits."""
    if not isinstance(value, dict):
        return {}
    found: dict[str, list[str]] = {}
    for key, own in value.items():
        split = SPLIT_WORDS.get(str(key).lower())
        if split and isinstance(own, list) and (entries := _entries(own)):
            found[split] = found.get(split, []) + entries
    return found


def _entries(values: Sequence[object]) -> list[str]:
    """Return the entries of a list: texts, or objects that name an image; none where it is another list."""
    found = []
    for value in values:
        if isinstance(value, dict):
            value = next((value[key] for key in _ITEM_KEYS if isinstance(value.get(key), str)), None)
        if not isinstance(value, str):
            return []
        found.append(value)
    return found


def _table_lists(tree: Tree) -> Iterator[SplitList]:
    """Yield the lists that tables have, with a column of splits."""
    for path, table in read_tables(tree)[0].items():
        for column in table.columns:
            if column.strip().lower() not in SPLIT_COLUMNS:
                continue
            splits = [SPLIT_WORDS.get(row[column].strip().lower(), "") for row in table.rows]
            if len({*splits} - {""}) < 2 or splits.count("") > len(splits) / 2:
                continue
            for other in table.columns:
                for split in dict.fromkeys(filter(None, splits)):
                    own = [row[other] for row, one in zip(table.rows, splits, strict=True) if one == split]
                    if other != column:
                        yield SplitList(f"{path}, column {column!r}", split, own, f"{path} {column} {other}")


# --- whose entries they are -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Names:
    """What an entry may call the images: ids, ends of paths with and without ending, folders and groups."""

    samples: Sequence[Sample]

    @cached_property
    def _ids(self) -> dict[str, list[str]]:
        """Each name -> ids; names of the image come before those of its mask, and of what many share."""
        found: dict[str, list[str]] = {}
        for names_of in (_own_names, _mask_names, _shared_names):
            later: dict[str, list[str]] = {}
            for sample in self.samples:
                for name in names_of(sample):
                    if name not in found:
                        later.setdefault(name, []).append(sample.id)
            if names_of is not _shared_names:
                later = {name: own for name, own in later.items() if len(own) == 1 or _is_one_file(own, self)}
            found |= later
        return found

    @cached_property
    def files(self) -> dict[str, str]:
        """Id -> file of its image."""
        return {sample.id: sample.image.partition("#")[0] for sample in self.samples}

    def match(self, given: SplitList) -> _Matched:
        """Return the images that a list names, and the entries that name none."""
        ids: dict[str, None] = {}
        absent = []
        for entry in given.entries:
            own = self._find(entry)
            ids |= dict.fromkeys(own)
            absent += [] if own else [entry]
        return _Matched(given.split, given.source, list(ids), absent)

    def _find(self, entry: str) -> list[str]:
        for word in dict.fromkeys([entry, *re.split(r"[\s,;]+", entry)[:_MOST_WORDS]]):
            parts = PurePosixPath(unicodedata.normalize("NFC", word.replace("\\", "/"))).parts
            for at in range(len(parts)):
                path = "/".join(parts[at:])
                for name in (path, _bare(path)):
                    if name in self._ids:
                        return self._ids[name]
        return []


def _is_one_file(ids: Sequence[str], names: _Names) -> bool:
    """Whether the ids are slices of one file."""
    return len({names.files[name] for name in ids}) == 1


def _bare(path: str) -> str:
    """Return a path without its ending; ``.nii.gz`` is one."""
    return re.sub(r"(\.nii\.gz|\.[A-Za-z0-9]{1,8})$", "", path)


def _ends(path: str) -> Iterator[str]:
    """Yield the ends of a path, with and without its ending."""
    parts = PurePosixPath(unicodedata.normalize("NFC", path.partition("#")[0])).parts
    for at in range(len(parts)):
        end = "/".join(parts[at:])
        yield from {end, _bare(end), re.sub(r"_\d{4}$", "", _bare(end)) if end.endswith(".nii.gz") else end}


def _own_names(sample: Sample) -> set[str]:
    return {sample.id, *_ends(sample.image)}


def _mask_names(sample: Sample) -> set[str]:
    return set() if sample.mask is None else {*_ends(sample.mask)}


def _shared_names(sample: Sample) -> set[str]:
    folders = PurePosixPath(sample.id).parts[:-1]
    found = {"/".join(folders[:end]) for end in range(1, len(folders) + 1)}
    return found | ({sample.group} if sample.group else set())


# --- what they say ----------------------------------------------------------------------------------------


def _covered(own: Sequence[_Matched]) -> int:
    return len({name for one in own for name in one.ids})


def _tells_apart(own: Sequence[_Matched], catalog: Catalog) -> bool:
    """Whether lists leave something to train on, and say more than that all is trained on."""
    held = {name for one in own if one.split != "train" for name in one.ids}
    listed = {name for one in own for name in one.ids}
    return bool(held or listed < {sample.id for sample in catalog.train}) and len(held) < len(catalog.train)


def _folds(families: Mapping[str, Sequence[_Matched]], catalog: Catalog) -> Catalog | None:
    """Return the catalogue with a fold of each image, where the validation sets of several splits are all images."""
    held: list[list[str]] = []
    sources: set[str] = set()
    for name in sorted(families, key=natural):
        own = [one for one in families[name] if one.split == "val"]
        if len(own) == 1:
            held.append(own[0].ids)
            sources.add(own[0].source)
    fold = {name: str(at) for at, own in enumerate(held) for name in own}
    if len(held) < 2 or sum(map(len, held)) != len(fold) or fold.keys() != {one.id for one in catalog.train}:
        return None
    files: list[str] = sorted(sources, key=natural)
    detail = (
        f"{some(files)} has {len(held)} splits, whose validation sets are all {len(fold)} "
        f"images: --set folds.fold_by={FOLD} --set folds.count={len(held)} takes them as the folds"
    )
    train = [replace(one, texts=one.texts | {FOLD: fold[one.id]}) for one in catalog.train]
    finding = Finding("note", "folds of the data set", detail)
    return replace(catalog, train=train, why=[*catalog.why, detail], findings=[*catalog.findings, finding])


def _follow(catalog: Catalog, own: Sequence[_Matched], others: Sequence[str]) -> Catalog:
    """Return the catalogue as lists split it; what contradicts them is a finding."""
    split: dict[str, str] = {}
    for wanted in _RANK:
        for one in (one for one in own if one.split == wanted):
            for name in one.ids:
                split.setdefault(name, wanted)
    findings = [*_contradictions(catalog, own), *_not_taken(others)]
    unlisted = [one.id for one in catalog.train if one.id not in split]
    has_train = any(one.split == "train" for one in own)
    leave = bool(unlisted) and has_train and len(split) >= _LEAST_LISTED * len(catalog.train)
    if unlisted and has_train:
        what = "are left out" if leave else "are trained on, for the lists name less than half of all"
        detail = f"{len(unlisted)} images are on no list and {what}: {some(unlisted)}"
        findings.append(Finding("warning", "images on no list", detail, unlisted))
    left = {*unlisted} if leave else set()
    to_test = [one for one in catalog.train if split.get(one.id) == "test" and catalog.submission.is_assumed]
    train = [
        replace(one, held_out=one.held_out or split.get(one.id) in ("val", "test"))
        for one in catalog.train
        if one.id not in left and one not in to_test
    ]
    counts = Counter("val" if one.held_out else "train" for one in train)
    sources = some(sorted({one.source for one in own}))
    detail = (
        f"{sources}: {counts['train']} images to train on, {counts['val']} in val, held out as fold 0"
        + (f", {len(to_test)} in test, whose masks stay unseen" if to_test else "")
    )
    findings.insert(0, Finding("note", "the split of the data set", detail))
    found = replace(
        catalog,
        train=train,
        why=[*catalog.why, detail],
        findings=[*(one for one in catalog.findings if one.title != findings[0].title), *findings],
        left_out=[
            *catalog.left_out,
            *([f"{len(left)} images on no list: {some(sorted(left))}"] if left else []),
        ],
    )
    return _with_test(found, to_test) if to_test else found


def _with_test(catalog: Catalog, samples: Sequence[Sample]) -> Catalog:
    """Return the catalogue with labelled images as test images, without their masks."""
    bare = [
        replace(
            one, mask=None, rle=None, objects=None, labels=None, label_masks=None, shapes=None, further_masks=None,
            drawn_hw=None, held_out=False,
        )
        for one in samples
    ]  # fmt: skip
    test = sorted([*catalog.test, *bare], key=lambda one: one.id)
    form = SubmissionFormat.assumed([one.id for one in test], None)
    form = replace(
        form,
        dialect=catalog.submission.dialect,
        asked=catalog.submission.asked,
        files=catalog.submission.files,
    )
    return replace(
        catalog, test=test, submission=form.with_labels(catalog.labels) if catalog.labels else form
    )


def _contradictions(catalog: Catalog, own: Sequence[_Matched]) -> Iterator[Finding]:
    splits: dict[str, set[str]] = defaultdict(set)
    for one in own:
        for name in one.ids:
            splits[name].add(one.split)
    if twice := [name for name, found in splits.items() if len(found) > 1]:
        detail = (
            f"{len(twice)} images are on the lists of two splits: {some(twice)}; test counts before val, and val "
            "before train, so that what is held out is not trained on"
        )
        yield Finding("warning", "lists that overlap", detail, twice)
    for one in own:
        if one.absent:
            detail = (
                f"{one.source}: {len(one.absent)} entries of {one.split} name no image: {some(one.absent)}"
            )
            yield Finding("warning", "lists of images that are not there", detail)
    torn = [one.id for one in catalog.train if one.held_out and "train" in splits[one.id]]
    if torn:
        detail = f"{len(torn)} images of val are on the list of train: {some(torn)}; they stay held out"
        yield Finding("warning", "lists that contradict folders", detail, torn)


def _not_taken(others: Sequence[str]) -> list[Finding]:
    if not others:
        return []
    detail = (
        f"further lists are not followed: {some(others)}; what is so can be said by splits: in {FILE_NAME}"
    )
    return [Finding("note", "further lists of splits", detail)]
