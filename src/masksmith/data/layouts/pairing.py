"""Which mask belongs to which image, whatever folders and files are called: found by looking at all names of a tree.

A path is its folders and its name. Without the words of a split (train, val, test), the paths of an image and its mask
differ in one folder (``images`` and ``masks``; none and ``masks``), in what stands before or behind their common name
(``1.jpg`` and ``1_mask.png``), or both. The folder and the affixes that pair the most images are taken. The rest of the
path is the id, so that ``siteA/1`` and ``siteB/1`` are two images, and ``1`` never takes the mask of ``10``.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from masksmith.data.layouts.file_names import (
    IMAGE_WORDS,
    OTHER_WORDS,
    Affixes,
    File,
    Place,
    core_of,
    find_affixes,
    mask_rank,
    rank_affixes,
    words_of,
)
from masksmith.data.layouts.pairs import Pairing, join, line_of, shared_folders, shown

_NAMED_SPLIT = re.compile(r"(train|val|test)[A-Z]?[-_. ]?\d+(?!\d)", re.IGNORECASE)
"""Names of images that begin with their split: train_1 and testA_1."""
_DEEP = 3
"""Most folders in which the paths of an image and its mask differ."""
_MOST_DEEP = 300
"""Most different folders that are looked at so."""
_TWO, _MOST_RICH = 2, 32
"""Values of masks of a foreground, and most values of masks of classes that are taken in their place."""
_MOST_NAMELESS = 6
"""Folders beside each other, among which one of masks is looked for that is called as no such folder is."""


# --- folders ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Candidate:
    """Images in folders of one name, and masks in folders of another."""

    image: str
    mask: str
    affixes: Affixes
    count: int

    def rank(self) -> tuple[object, ...]:
        """Return what is compared, the largest being the best."""
        named = mask_rank(self.mask)
        other = mask_rank(" ".join(self.affixes.mask))
        ranks = [one for one in (named, other) if one is not None]
        is_image = bool(IMAGE_WORDS & set(words_of(self.image))) and mask_rank(self.image) is None
        return (bool(ranks), self.count, -min(ranks, default=0), is_image, self.affixes == Affixes())


_Roles = dict[str, dict[Place, list[File]]]
"""Folder or several of them, "" for none -> place without it -> files."""


def _by_role(files: Iterable[File], deep: int = 1) -> _Roles:
    """Return the files by each of their folders, or up to ``deep`` of them in a row, and the rest of their place."""
    found: _Roles = defaultdict(lambda: defaultdict(list))
    for file in files:
        found[""][file.split, file.folders].append(file)
        for at in range(len(file.folders)):
            for end in range(at + 1, min(at + deep, len(file.folders)) + 1):
                role = "/".join(file.folders[at:end])
                found[role][file.split, file.folders[:at] + file.folders[end:]].append(file)
    return found


_MayBe = Callable[[Iterable[File], int], bool]
"""Whether files may be the images of so many masks."""


def _image_folders(files: Sequence[File]) -> _MayBe:
    """Return whether files may be the images of so many masks.

    Masks are no images where there are files outside of folders of masks; and where folders are called as images are,
    these are the images.
    """
    learnt = [file for file in files if file.split != "test"] or files
    common = shared_folders([file.folders for file in files])
    plain = {file.path for file in learnt if not any(map(is_mask_role, file.folders[common:]))}
    called = {
        file.path
        for file in learnt
        if file.path in plain and any(IMAGE_WORDS & set(words_of(folder)) for folder in file.folders)
    }

    def may_be(images: Iterable[File], count: int) -> bool:
        own = {file.path for file in images}
        return (not plain or not own.isdisjoint(plain)) and (
            len(called) < count or not own.isdisjoint(called)
        )

    return may_be


def _names(places: Mapping[Place, Sequence[File]]) -> dict[Place, list[str]]:
    return {place: [file.stem for file in files] for place, files in places.items()}


def _candidates(roles: _Roles) -> list[_Candidate]:
    """Return the folders that may hold images and masks, the best first."""
    beside: dict[Place, list[str]] = defaultdict(list)
    for role, places in roles.items():
        for place in places:
            beside[place].append(role)
    found = []
    tried: set[tuple[str, str]] = set()
    for names in beside.values():
        masks = [name for name in names if name and mask_rank(name) is not None]
        if not masks and len(names) <= _MOST_NAMELESS:
            masks = names
        for mask in masks:
            for image in names:
                if image == mask or (image, mask) in tried:
                    continue
                tried.add((image, mask))
                affixes, count = find_affixes(_names(roles[image]), _names(roles[mask]))
                if count:
                    found.append(_Candidate(image, mask, affixes, count))
    return sorted(found, key=lambda one: one.rank(), reverse=True)


Judge = Callable[[Sequence[File], Sequence[File]], bool]
"""Whether the second of two sets of files rather than the first holds masks, by their pixels."""
Bands = Callable[[File], int]
"""Number of bands of an image."""
Values = Callable[[Sequence[File]], int]
"""Number of different values or colours in mask files; 0 where they are lossy."""


def pair(
    files: Sequence[File], *, are_masks: Judge, bands_of: Bands, values_of: Values = lambda _files: 0
) -> Pairing | None:
    """Pair the images of a tree with their masks, or return None where they do not pair.

    Args:
        files: All image files.
        are_masks: Decides where no name tells images from masks.
        bands_of: Decides between several folders of images: the most bands are taken.
        values_of: Decides between several folders of masks: classes are taken rather than two values.
    """
    files = _with_attached(_with_named_splits(files))
    roles, may_be = _by_role(files), _image_folders(files)
    candidates = [one for one in _candidates(roles) if may_be(_every(roles[one.image]), one.count)]
    named = [one for one in candidates if one.rank()[0]]
    beside = _side_by_side(files)
    if named and (beside is None or named[0].count >= len(beside.masks)):
        return _by_folders(roles, _chosen(named, roles, bands_of, values_of), named)
    if beside is not None:
        return beside
    for form in (_by_labels(roles, may_be, bands_of), _by_folder_each(files)):
        if form is not None:
            return form
    if (found := _deep(files, may_be, bands_of, values_of)) is not None:
        return found
    if (found := _by_endings(files, are_masks)) is not None:
        return found
    for one in candidates:
        paired = _by_folders(roles, one, candidates)
        whole = 10 * one.count >= 9 * min(len(paired.images), len(paired.masks) + len(paired.stray))
        if paired.masks and whole and are_masks(list(paired.images.values()), list(paired.masks.values())):
            return paired  # the turned pair of folders is a candidate too
    return None


def _deep(
    files: Sequence[File],
    may_be: _MayBe,
    bands_of: Bands,
    values_of: Values,
) -> Pairing | None:
    """Pair images and masks whose paths differ in several folders: images/rgb with annotations/cleaned."""
    roles = _by_role(files, _DEEP)
    if len(roles) > _MOST_DEEP:
        return None
    if (found := _by_labels(roles, may_be, bands_of)) is not None and found.labels:
        return found
    every = [one for one in _candidates(roles) if one.rank()[0]]
    named = [one for one in every if may_be(_every(roles[one.image]), one.count)]
    return _by_folders(roles, _chosen(named, roles, bands_of, values_of), named) if named else None


def _with_named_splits(files: Sequence[File]) -> Sequence[File]:
    """Return the files of train_1 and test_1 in the split that their names begin with, where no folder tells it."""
    matches = [_NAMED_SPLIT.match(file.stem) for file in files]
    splits = [match[1].lower() for match in matches if match]
    if len(splits) < len(files) or any(file.split for file in files) or not {"train", "test"} <= {*splits}:
        return files
    return [replace(file, split=split) for file, split in zip(files, splits, strict=True)]


def _with_attached(files: Sequence[File]) -> Sequence[File]:
    """Return the files of 01_GT, beside 01 and the like, as if they were in 01/_GT: there are several such folders."""
    siblings: dict[Place, set[str]] = defaultdict(set)
    for file in files:
        for at, folder in enumerate(file.folders):
            siblings[file.split, file.folders[:at]].add(folder)
    bases: set[tuple[Place, str]] = set()

    def apart(file: File) -> File:
        for at, folder in enumerate(file.folders):
            place = file.split, file.folders[:at]
            for cut in (match.start() for match in re.finditer(r"[_\-. ]", folder)):
                if folder[:cut] in siblings[place] and mask_rank(folder[cut:]) is not None:
                    bases.add((place, folder[:cut]))
                    inner = (folder[:cut], folder[cut:])
                    return replace(file, folders=(*file.folders[:at], *inner, *file.folders[at + 1 :]))
        return file

    found = [apart(file) for file in files]
    return found if len(bases) > 1 else files


def _chosen(
    candidates: Sequence[_Candidate], roles: _Roles, bands_of: Bands, values_of: Values
) -> _Candidate:
    """Return the best candidate: of masks that pair as well those of classes, of images those of the most bands."""
    best = candidates[0]
    equal = [
        one
        for one in candidates
        if (one.image, one.count) == (best.image, best.count) and not OTHER_WORDS & set(words_of(one.mask))
    ]
    if len(equal) > 1:
        counts = {one.mask: values_of(_every(roles[one.mask])) for one in equal}
        richer = [one for one in equal if _TWO < counts[one.mask] <= _MOST_RICH]
        if richer and counts.get(best.mask) == _TWO:
            best = richer[0]
    equal = [one for one in candidates if (one.mask, one.count) == (best.mask, best.count)]
    if len(equal) == 1:
        return best
    first = {one.image: _every(roles[one.image])[0] for one in equal}
    return max(equal, key=lambda one: bands_of(first[one.image]))  # of equal ones the first


def _every(places: Mapping[Place, Sequence[File]]) -> list[File]:
    """Return the files of all places, those of the test set last."""
    return [file for place in sorted(places, key=lambda one: one[0] == "test") for file in places[place]]


def _by_folders(roles: _Roles, one: _Candidate, candidates: Sequence[_Candidate]) -> Pairing:
    places = _image_places(roles, one)
    masks = roles[one.mask]
    taken = {file.path for files in masks.values() for file in files}
    images = [
        (place, file)
        for place, files in places.items()
        for file in files
        if file.path not in taken and (one.image or not _has_role(file, one))
    ]
    named = f"{shown(one.image)} and {shown(one.mask)}"
    others = []
    for other in candidates:
        differs = (other.mask == one.mask) != (other.image == one.image)
        if (
            other.count == one.count
            and differs
            and not (other.image != one.image and other.image and mask_rank(other.image) is not None)
        ):
            what, name = ("images", other.image) if other.mask == one.mask else ("masks", other.mask)
            line = line_of(what, _every(roles[name]), getattr(other.affixes, what[:-1]))
            others.append(f"{shown(name)} holds {other.count} {what} of the same names ({line})")
    kinds = rank_affixes(_names(places), _names(masks))
    return join(images, masks, one.affixes, f"the folders {named}, {one.affixes}", others, kinds)


def _has_role(file: File, one: _Candidate) -> bool:
    return f"/{one.mask}/" in f"/{'/'.join(file.folders)}/"


def _image_places(roles: _Roles, one: _Candidate) -> Mapping[Place, Sequence[File]]:
    """Return the images by place; without a folder of their own, those of places where one has a mask, in any split."""
    places = roles[one.image]
    if one.image:
        return places
    homes = {folders for _, folders in roles[one.mask]}
    return {place: files for place, files in places.items() if place[1] in homes}


# --- one folder -------------------------------------------------------------------------------------------


def _side_by_side(files: Sequence[File]) -> Pairing | None:
    """Pair images and masks that lie in one folder and differ in an affix that names a mask."""
    places: dict[Place, list[File]] = defaultdict(list)
    for file in files:
        places[file.split, file.folders].append(file)
    ranked = rank_affixes(_names(places), _names(places), same=True)
    if not ranked:
        return None
    affixes = ranked[0][0]
    kinds = [(one, num) for one, num in ranked if one.image == affixes.image]
    masks: dict[Place, list[File]] = {}
    images: list[tuple[Place, File]] = []
    homes: set[tuple[str, ...]] = set()
    for place, own in places.items():
        stems = {file.stem for file in own}
        masks[place] = []
        for file in own:
            first = core_of(file.stem, affixes.mask) is not None
            drawn = first or any(core_of(file.stem, one.mask) is not None for one, _ in kinds)
            if drawn or _is_second_mask(file, stems):
                masks[place].append(file)
            elif affixes.image == ("", "") or affixes.mask_of(file.stem) is not None:
                images.append((place, file))
            if first:
                homes.add(place[1])
    images = [(place, file) for place, file in images if place[1] in homes or place[0] == "test"]
    return join(images, masks, affixes, f"side by side, {affixes}", (), kinds)


def _is_second_mask(file: File, beside: Collection[str]) -> bool:
    """Whether a file is called as another beside it, with something behind that names a mask: 1_mask_2 beside 1."""
    cuts = [match.start() for match in re.finditer(r"[_\-. ]", file.stem)]
    return any(file.stem[:at] in beside and mask_rank(file.stem[at:]) is not None for at in cuts)


def _by_folder_each(files: Sequence[File]) -> Pairing | None:
    """Pair the one image with the one mask of each folder; the folder is the id."""
    places: dict[Place, list[File]] = defaultdict(list)
    for file in files:
        rest_of = tuple(folder for folder in file.folders if not _is_role(folder))
        places[file.split, rest_of].append(file)
    images: list[tuple[Place, File]] = []
    masks: dict[Place, list[File]] = {}
    for (split, folders), own in places.items():
        drawn = [
            file for file in own if mask_rank(file.stem) is not None or any(map(is_mask_role, file.folders))
        ]
        rest = [file for file in own if file not in drawn]
        if len(rest) != 1 or len(drawn) != 1 or not folders:
            return None
        place = split, folders[:-1]
        images.append((place, replace(rest[0], stem=folders[-1])))
        masks.setdefault(place, []).append(replace(drawn[0], stem=folders[-1]))
    return join(images, masks, Affixes(), "a folder for each image, with its mask") if images else None


def is_mask_role(folder: str) -> bool:
    """Whether a folder is called as one of masks."""
    return mask_rank(folder) is not None


def _is_role(folder: str) -> bool:
    return is_mask_role(folder) or folder.lower() in IMAGE_WORDS


def _by_endings(files: Sequence[File], are_masks: Judge) -> Pairing | None:
    """Pair images and masks that differ in their ending alone."""
    places: dict[str, dict[Place, list[File]]] = defaultdict(lambda: defaultdict(list))
    for file in files:
        places[file.ending][file.split, file.folders].append(file)
    if len(places) != 2:
        return None
    one, other = places
    first, second = ([file for own in places[ending].values() for file in own] for ending in (one, other))
    shared = {(file.split, file.folders, file.stem) for file in first}
    both = [file for file in second if (file.split, file.folders, file.stem) in shared]
    if 2 * len(both) < min(len(first), len(second)) or not both:
        return None
    if not are_masks(first, second):
        one, other, first, second = other, one, second, first
        if not are_masks(first, second):
            return None
    images = [(place, file) for place, own in places[one].items() for file in own]
    return join(images, places[other], Affixes(), f"side by side, ID{one} with ID{other}")


# --- labels -----------------------------------------------------------------------------------------------


def _by_labels(roles: _Roles, may_be: _MayBe, bands_of: Bands) -> Pairing | None:
    """Pair images with the masks of several labels, in a folder each inside a folder of masks."""
    best: Pairing | None = None
    best_rank: tuple[int, bool, int] = (0, False, 0)
    for role in [name for name in roles if name and mask_rank(name) is not None]:
        labels: _Roles = defaultdict(lambda: defaultdict(list))
        for (split, folders), files in roles[role].items():
            for at, label in enumerate(folders):
                if not OTHER_WORDS & set(words_of(label)):
                    labels[label][split, folders[:at] + folders[at + 1 :]] += files
        for image in [name for name in roles if name != role and mask_rank(name) is None]:
            found = _labelled(roles, image, role, labels)
            if found is None or not may_be(found.images.values(), len(found.images)):
                continue
            rank = len(found.images), bool(found.labels), bands_of(next(iter(found.images.values())))
            if rank > best_rank:
                best, best_rank = found, rank
    return best


def _labelled(roles: _Roles, image: str, role: str, labels: _Roles) -> Pairing | None:
    taken = {file.path for files in roles[role].values() for file in files}
    places = {
        place: kept
        for place, files in roles[image].items()
        if (kept := [file for file in files if file.path not in taken])
    }
    by_label: dict[str, Pairing] = {}
    images = [(place, file) for place, files in places.items() for file in files]
    for label, masks in labels.items():
        affixes, count = find_affixes(_names(places), _names(masks))
        if count:
            by_label[label] = join(images, masks, affixes, "")
    if not by_label:
        return None
    found = next(iter(by_label.values()))
    rule = f"the folders {shown(image)} and {shown(role)} with a folder for each label"
    stray = [file for own in by_label.values() for file in own.stray]
    if len(by_label) == 1:
        return Pairing(found.images, found.masks, found.stray, rule)
    paths = {label: {name: file.path for name, file in own.masks.items()} for label, own in by_label.items()}
    return Pairing(found.images, {}, stray, rule, [], paths)
