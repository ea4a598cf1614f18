"""Which mask belongs to which image, whatever folders and files are called: found by looking at all names of a tree.

A path is its folders and its name. Without the words of a split (train, val, test), the paths of an image and its mask
differ in one folder (``images`` and ``masks``; none and ``masks``), in what stands before or behind their common name
(``1.jpg`` and ``1_mask.png``), or both. The folder and the affixes that pair the most images are taken. The rest of the
path is the id, so that ``siteA/1`` and ``siteB/1`` are two images, and ``1`` never takes the mask of ``10``.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import PurePosixPath

SPLITS = ("train", "val", "test")
VALIDATION = ("val", "valid", "validation")
"""Names of a folder that the data set itself holds out of training."""

_SPLIT = re.compile(
    r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))"
    r"(?:(?i:(training|train|validation|valid|val|testing|test))(?![a-z])"
    r"|(?i:(train|val|test)(?=annot|masks?|labels?|images?|imgs?|set|gts?(?![a-z]))))"
)
# The earlier, the more probably it is the mask that is meant, where several folders or files would do.
_MASK_WORDS = (
    "groundtruth", "groundtruths", "truth", "manual", "manual1", "gt", "gts", "segmentationclass", "mask", "masks",
    "label", "labels", "labelids", "annot", "annotation", "annotations", "segmentation", "segmentations", "seg",
    "segs", "segmap", "target", "targets", "gtfine", "labelhand", "labeltrainids", "matte", "silhouette", "roi",
    "1stho", "2ndho",
)  # fmt: skip
_OTHER_WORDS = {
    "color", "colors", "colour", "colours", "colored", "coloured", "rgb", "vis", "visualization", "overlay", "object",
    "objects", "segmentationobject", "instance", "instances", "instanceids", "preview", "blend", "2nd", "manual2",
    "2ndho", "otsu", "pred", "prediction", "predictions",
}  # fmt: skip
"""Of pictures made of masks, or of a second kind of them: taken where there is nothing else."""
_IMAGE_WORDS = {"image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "jpegimages", "x"}

_SAMPLED = 40
"""Names of a set that are compared with all others, to find affixes."""
_KEPT = 6
"""Affixes that are tried on the whole set."""
_MOST_NAMELESS = 6
"""Folders beside each other, among which one of masks is looked for that is called as no such folder is."""

Place = tuple[str, tuple[str, ...]]
"""Split, and folders of a path without those of the split and of its role."""


@dataclass(frozen=True)
class File:
    """An image file of a tree."""

    path: str
    split: str
    """"train", "val", "test", or "" where no folder says."""
    folders: tuple[str, ...]
    """Without the words of the split; a folder that is nothing but a split is left out."""
    stem: str
    """Name without ending, in the composed form of Unicode."""
    ending: str
    """In lower case."""


@dataclass(frozen=True)
class Affixes:
    """What stands before and behind the common part of the names of an image and of its mask."""

    image: tuple[str, str] = ("", "")
    mask: tuple[str, str] = ("", "")

    def mask_of(self, stem: str) -> str | None:
        """Return the name of the mask of an image, None where the image's name has not its own affixes."""
        core = _core(stem, self.image)
        return None if core is None else f"{self.mask[0]}{core}{self.mask[1]}"

    def __str__(self) -> str:
        image, mask = (f"{before}ID{behind}" for before, behind in (self.image, self.mask))
        return f"{image} with {mask}" if image != mask else "equal names"


@dataclass(frozen=True)
class Pairing:
    """The images of a tree and their masks."""

    images: dict[str, File]
    """Id -> image, of all splits."""
    masks: dict[str, File]
    """Id -> its mask."""
    stray: list[File]
    """Mask files without an image."""
    rule: str
    """What pairs them, in words."""
    others: list[str] = field(default_factory=list)
    """Files of other folders or endings that would have paired with the same masks or images, in words."""
    labels: dict[str, dict[str, str]] = field(default_factory=dict)
    """Label -> id -> mask file, where there is a folder of masks for each label."""
    elsewhere: list[str] = field(default_factory=list)
    """Paths of images of no test set, in folders for which there is no mask at all."""


# --- words ------------------------------------------------------------------------------------------------


@cache
def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name in lower case: of ``leftImg8bit_labelIds`` left, img8bit, label, ids, labelids."""
    apart = [part for part in re.split(r"[\W_]+", name) if part]
    camel = [re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+[a-z]*|[^\W\d_]+", part) for part in apart]
    found = [word.lower() for part in camel for word in part] + [part.lower() for part in apart]
    return tuple(dict.fromkeys(found))


def mask_rank(name: str) -> int | None:
    """Return how well a folder or an affix is called for masks, 0 the best; None: it is not called so."""
    words = words_of(name)
    joined = "".join(words_of(name.lower()))
    ranks = [_MASK_WORDS.index(word) for word in (*words, joined) if word in _MASK_WORDS]
    if not ranks and (found := re.search(r"(mask|label|annot|groundtruth)s?$", joined)):
        ranks = [_MASK_WORDS.index(found[1])]
    if not ranks:
        return 0 if name.lower() == "y" else None
    return min(ranks) + (len(_MASK_WORDS) if _OTHER_WORDS & set(words) else 0)


def split_of(folder: str) -> tuple[str, str]:
    """Return the split that a folder is called after, and the rest of its name."""
    match = _SPLIT.search(folder)
    if match is None:
        return "", folder
    word = (match[1] or match[2]).lower()
    rest = folder[: match.start()] + folder[match.end() :]
    split = "val" if word in VALIDATION else word.removesuffix("ing")
    return split, "" if rest.strip(" _-.").lower() in ("", "set", "data") else rest


def file_of(path: str) -> File:
    """Take a path apart."""
    place = PurePosixPath(unicodedata.normalize("NFC", path))
    split, folders = "", []
    for folder in place.parent.parts:
        found, rest = split_of(folder)
        split = split or found
        if rest:
            folders.append(rest if found else folder)
    return File(path, split, tuple(folders), place.stem, place.suffix.lower())


# --- affixes ----------------------------------------------------------------------------------------------


def _core(stem: str, affix: tuple[str, str]) -> str | None:
    before, behind = affix
    long_enough = len(stem) > len(before) + len(behind)
    if not (long_enough and stem.startswith(before) and stem.endswith(behind)):
        return None
    return stem[len(before) : len(stem) - len(behind)]


def _image_affixes(stems: Sequence[str]) -> list[tuple[str, str]]:
    """Return what may be no part of the id in the names of images: nothing, or a word that many have."""
    found: Counter[tuple[str, str]] = Counter()
    for stem in stems:
        if match := re.search(r"(?:[_\-. ]|(?<=\d))[A-Za-z][A-Za-z0-9]*$", stem):
            found["", match[0]] += 1
        if match := re.match(r"[A-Za-z]+(?:[_\-. ]|(?=\d))", stem):
            found[match[0], ""] += 1
    common = [affix for affix, count in found.most_common(_KEPT) if 3 * count >= len(stems)]
    return [("", ""), *common]


def _is_affix(before: str, core: str, behind: str) -> bool:
    """Whether a mask's name is that of an image with something around it: 10 is no 1 with a 0."""
    for affix, left, right in ((before, before[-1:], core[:1]), (behind, core[-1:], behind[:1])):
        if left.isdigit() and right.isdigit():
            return False
        is_one_word = left.isalnum() and right.isalnum() and not (left.islower() and right.isupper())
        if is_one_word and mask_rank(affix) is None:
            return False
    return True


def find_affixes(
    images: Mapping[Place, Sequence[str]], masks: Mapping[Place, Sequence[str]], *, same: bool = False
) -> tuple[Affixes, int]:
    """Return the affixes that pair the most images with a mask of the same place, and how many they pair.

    Where there are other images, those of ``test`` do not count.

    Args:
        images: Place -> names of its images.
        masks: Place -> names of its masks.
        same: Whether both are the same files: then no file is its own mask, and the mask's affix names a mask.
    """
    known = {place: set(stems) for place, stems in masks.items()}
    learnt = {place: own for place, own in images.items() if place[0] != "test"} or images
    stems = [(place, stem) for place, own in learnt.items() for stem in own]
    best = (Affixes(), 0)
    best_rank: tuple[int, ...] = ()
    for affix in _image_affixes([stem for _, stem in stems]):
        for mask in _mask_affixes(stems, affix, masks, same=same):
            both = Affixes(affix, mask)
            count = sum(both.mask_of(stem) in known.get(place, ()) for place, stem in stems)
            if not count:
                continue
            name_rank = mask_rank(" ".join(mask))
            rank = (
                count,
                -(name_rank if name_rank is not None else 2 * len(_MASK_WORDS)) if any(mask) else 0,
                -sum(map(len, (*affix, *mask))),
            )
            if not best_rank or rank > best_rank:
                best, best_rank = (both, count), rank
    return best


def _mask_affixes(
    stems: Sequence[tuple[Place, str]],
    affix: tuple[str, str],
    masks: Mapping[Place, Sequence[str]],
    *,
    same: bool,
) -> list[tuple[str, str]]:
    """Return what may stand around the common names in those of masks, found on a part of the images."""
    cores = [(place, core) for place, stem in stems if (core := _core(stem, affix)) is not None]
    step = max(1, len(cores) // _SAMPLED)
    found: Counter[tuple[str, str]] = Counter()
    for place, core in cores[::step]:
        for mask in masks.get(place, ()):
            at = mask.find(core)
            while at >= 0:
                before, behind = mask[:at], mask[at + len(core) :]
                if _is_affix(before, core, behind):
                    found[before, behind] += 1
                at = mask.find(core, at + 1)
    if same:
        for one in [one for one in found if one == affix or mask_rank(" ".join(one)) is None]:
            del found[one]
    return [one for one, _ in found.most_common(_KEPT)]


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
        is_image = bool(_IMAGE_WORDS & set(words_of(self.image))) and mask_rank(self.image) is None
        return (bool(ranks), self.count, -min(ranks, default=0), is_image, self.affixes == Affixes())


_Roles = dict[str, dict[Place, list[File]]]
"""Folder, "" for none -> place without it -> files."""


def _by_role(files: Iterable[File]) -> _Roles:
    """Return the files by each of their folders, and the rest of their place."""
    found: _Roles = defaultdict(lambda: defaultdict(list))
    for file in files:
        found[""][file.split, file.folders].append(file)
        for at, folder in enumerate(file.folders):
            found[folder][file.split, file.folders[:at] + file.folders[at + 1 :]].append(file)
    return found


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


def pair(files: Sequence[File], *, are_masks: Judge, bands_of: Bands) -> Pairing | None:
    """Pair the images of a tree with their masks, or return None where they do not pair.

    Args:
        files: All image files.
        are_masks: Decides where no name tells images from masks.
        bands_of: Decides between several folders of images: the most bands are taken.
    """
    roles = _by_role(files)
    candidates = _candidates(roles)
    named = [one for one in candidates if one.rank()[0]]
    beside = _side_by_side(files)
    if named and (beside is None or named[0].count >= len(beside.masks)):
        return _by_folders(roles, _most_bands(named, roles, bands_of), named)
    if beside is not None:
        return beside
    for form in (_by_labels(roles), _by_folder_each(files)):
        if form is not None:
            return form
    if (found := _by_endings(files, are_masks)) is not None:
        return found
    for one in candidates:
        paired = _by_folders(roles, one, candidates)
        whole = 10 * one.count >= 9 * min(len(paired.images), len(paired.masks) + len(paired.stray))
        if paired.masks and whole and are_masks(list(paired.images.values()), list(paired.masks.values())):
            return paired  # the turned pair of folders is a candidate too
    return None


def _most_bands(candidates: Sequence[_Candidate], roles: _Roles, bands_of: Bands) -> _Candidate:
    """Return the best candidate, of those that pair other images with its masks as well the one of the most bands."""
    best = candidates[0]
    equal = [one for one in candidates if (one.mask, one.count) == (best.mask, best.count)]
    if len(equal) == 1:
        return best
    first = {one.image: next(iter(roles[one.image].values()))[0] for one in equal}
    return max(equal, key=lambda one: bands_of(first[one.image]))  # of equal ones the first


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
    named = f"{_shown(one.image)} and {_shown(one.mask)}"
    others = []
    for other in candidates[1:] if candidates[0] is one else candidates:
        differs = (other.mask == one.mask) != (other.image == one.image)
        if other.count == one.count and differs and not (other.image and mask_rank(other.image) is not None):
            what, name = ("images", other.image) if other.mask == one.mask else ("masks", other.mask)
            others.append(f"{_shown(name)} holds {other.count} {what} of the same names")
    return _paired(images, masks, one.affixes, f"the folders {named}, {one.affixes}", others)


def _has_role(file: File, one: _Candidate) -> bool:
    return one.mask in file.folders


def _image_places(roles: _Roles, one: _Candidate) -> Mapping[Place, Sequence[File]]:
    """Return the images by place; without a folder of their own, those of places where one has a mask, in any split."""
    places = roles[one.image]
    if one.image:
        return places
    homes = {folders for _, folders in roles[one.mask]}
    return {place: files for place, files in places.items() if place[1] in homes}


def _shown(role: str) -> str:
    return f"{role.strip('_- ')}/" if role else "the folder around it"


def _paired(
    images: Sequence[tuple[Place, File]],
    masks: Mapping[Place, Sequence[File]],
    affixes: Affixes,
    rule: str,
    others: Sequence[str] = (),
) -> Pairing:
    known = {place: {file.stem: file for file in files} for place, files in masks.items()}
    splits = {split for split, _ in known}
    learnt = splits - {"test"} | {""}
    elsewhere = [file.path for place, file in images if place[0] in learnt and place not in known]
    left = {*elsewhere}
    named = with_ids([(place, file) for place, file in images if file.path not in left])
    found: dict[str, File] = {}
    for name, (place, file) in named.items():
        stem = affixes.mask_of(file.stem)
        if stem is not None and (mask := known.get(place, {}).get(stem)) is not None:
            found[name] = mask
    used = {file.path for file in found.values()}
    stray = [file for files in masks.values() for file in files if file.path not in used]
    plain = {name: file for name, (_, file) in named.items()}
    return Pairing(plain, found, stray, rule, list(others), elsewhere=elsewhere)


def with_ids(images: Sequence[tuple[Place, File]]) -> dict[str, tuple[Place, File]]:
    """Return the images by id: name and folders, without those that all have; the split before it where ids repeat.

    Raises:
        SameIdError: Two images have one id.
    """
    shared = _shared([folders for (_, folders), _ in images])
    plain = [("/".join((*place[1][shared:], file.stem)), place, file) for place, file in images]
    splits = {place[0] for _, place, _ in plain}
    if len({name for name, _, _ in plain}) < len(plain) and len(splits) > 1:
        plain = [(f"{place[0]}/{name}" if place[0] else name, place, file) for name, place, file in plain]
    found: dict[str, tuple[Place, File]] = {}
    for name, place, file in plain:
        if name in found:
            raise SameIdError(found[name][1].path, file.path, name)
        found[name] = (place, file)
    return found


class SameIdError(Exception):
    """Two files have one id; its arguments are their paths, and the id."""


def _shared(folders: Sequence[tuple[str, ...]]) -> int:
    """Return how many folders all begin with."""
    first = min(folders, default=())
    last = max(folders, default=())
    return next(
        (at for at, (one, two) in enumerate(zip(first, last, strict=False)) if one != two),
        min(len(first), len(last)),
    )


# --- one folder -------------------------------------------------------------------------------------------


def _side_by_side(files: Sequence[File]) -> Pairing | None:
    """Pair images and masks that lie in one folder and differ in an affix that names a mask."""
    places: dict[Place, list[File]] = defaultdict(list)
    for file in files:
        places[file.split, file.folders].append(file)
    affixes, count = find_affixes(_names(places), _names(places), same=True)
    if not count:
        return None
    masks = {
        place: [file for file in own if _core(file.stem, affixes.mask) is not None]
        for place, own in places.items()
    }
    taken = {file.path for own in masks.values() for file in own}
    images = [
        (place, file)
        for place, own in places.items()
        for file in own
        if file.path not in taken and not _is_second_mask(file, {one.stem for one in own})
    ]
    if affixes.image != ("", ""):
        images = [(place, file) for place, file in images if affixes.mask_of(file.stem) is not None]
    homes = {place[1] for place, file in images if masks[place]}
    images = [(place, file) for place, file in images if place[1] in homes or place[0] == "test"]
    return _paired(images, masks, affixes, f"side by side, {affixes}")


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
            file for file in own if mask_rank(file.stem) is not None or any(map(_is_mask_role, file.folders))
        ]
        rest = [file for file in own if file not in drawn]
        if len(rest) != 1 or len(drawn) != 1 or not folders:
            return None
        place = split, folders[:-1]
        images.append((place, replace(rest[0], stem=folders[-1])))
        masks.setdefault(place, []).append(replace(drawn[0], stem=folders[-1]))
    return _paired(images, masks, Affixes(), "a folder for each image, with its mask") if images else None


def _is_mask_role(folder: str) -> bool:
    return mask_rank(folder) is not None


def _is_role(folder: str) -> bool:
    return _is_mask_role(folder) or folder.lower() in _IMAGE_WORDS


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
    return _paired(images, places[other], Affixes(), f"side by side, ID{one} with ID{other}")


# --- labels -----------------------------------------------------------------------------------------------


def _by_labels(roles: _Roles) -> Pairing | None:
    """Pair images with the masks of several labels, in a folder each inside a folder of masks."""
    best: Pairing | None = None
    for role in [name for name in roles if name and mask_rank(name) is not None]:
        labels: _Roles = defaultdict(lambda: defaultdict(list))
        for (split, folders), files in roles[role].items():
            for at, label in enumerate(folders):
                labels[label][split, folders[:at] + folders[at + 1 :]] += files
        for image in [name for name in roles if name != role and mask_rank(name) is None]:
            found = _labelled(roles, image, role, labels)
            if found is not None and (best is None or len(found.images) > len(best.images)):
                best = found
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
            by_label[label] = _paired(images, masks, affixes, "")
    if not by_label:
        return None
    found = next(iter(by_label.values()))
    rule = f"the folders {_shown(image)} and {_shown(role)} with a folder for each label"
    stray = [file for own in by_label.values() for file in own.stray]
    if len(by_label) == 1:
        return Pairing(found.images, found.masks, found.stray, rule)
    paths = {label: {name: file.path for name, file in own.masks.items()} for label, own in by_label.items()}
    return Pairing(found.images, {}, stray, rule, [], paths)
