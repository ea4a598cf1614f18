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
from functools import cache, lru_cache
from pathlib import PurePosixPath
from sys import intern

SPLITS = ("train", "val", "test")
VALIDATION = ("val", "valid", "validation")
"""Names of a folder that the data set itself holds out of training."""

_SPLIT = re.compile(
    r"(?:(?<![A-Za-z])|(?<=[a-z])(?=[A-Z]))"
    r"(?:(?i:(training|train|validation|valid|val|testing|test))(?![a-z])"
    r"|(?i:(train|val|test)(?=annot|masks?|labels?|images?|imgs?|crops?|set|gts?(?![a-z])))"
    r"|(?<=[-_ ])(TR|TE)(?![A-Za-z]))"
)
_BOTH = re.compile(r"train[-_ ]?val(?![a-z])", re.IGNORECASE)
"""Of images to learn from, whatever else is beside them."""
_NAMED_SPLIT = re.compile(r"(train|val|test)[A-Z]?[-_. ]?\d+(?!\d)", re.IGNORECASE)
"""Names of images that begin with their split: train_1 and testA_1."""
# The earlier, the more probably it is the mask that is meant, where several folders or files would do.
_MASK_WORDS = (
    "groundtruth", "groundtruths", "truth", "manual", "manual1", "gt", "gts", "segmentationclass", "mask", "masks",
    "label", "labels", "labelids", "annot", "annotation", "annotations", "segmentation", "segmentations", "seg",
    "segs", "semantic", "semantics", "segmap", "target", "targets", "gtfine", "labelhand", "labeltrainids", "matte",
    "silhouette", "roi", "1stho", "2ndho", "anno", "annos", "lab", "labs", "parsing",
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
_DEEP = 3
"""Most folders in which the paths of an image and its mask differ."""
_MOST_DEEP = 300
"""Most different folders that are looked at so."""
_TWO, _MOST_RICH = 2, 32
"""Values of masks of a foreground, and most values of masks of classes that are taken in their place."""
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
    derived: list[str] = field(default_factory=list)
    """Paths of pictures made of images, which are called as these with a word behind (1_superpixels beside 1)."""
    further: dict[str, list[str]] = field(default_factory=dict)
    """Id -> paths of further masks of an image that has one: 1_mask_1 beside 1_mask."""


# --- words ------------------------------------------------------------------------------------------------


@cache
def words_of(name: str) -> tuple[str, ...]:
    """Return the words of a name in lower case: of ``leftImg8bit_labelIds`` left, img8bit, label, ids, labelids."""
    apart = [part for part in re.split(r"[\W_]+", name) if part]
    camel = [re.findall(r"[A-Z]+(?![a-z])\d*|[A-Z]?[a-z]+\d*|\d+[a-z]*|[^\W\d_]+", part) for part in apart]
    found = [word.lower() for part in camel for word in part] + [part.lower() for part in apart]
    return tuple(dict.fromkeys(found))


@cache
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
    if both := _BOTH.search(folder):
        rest = folder[: both.start()] + folder[both.end() :]
        return "", "" if rest.strip(" _-.").lower() in ("", "set", "data") else rest
    match = _SPLIT.search(folder)
    if match is None:
        return "", folder
    word = (match[1] or match[2] or {"TR": "train", "TE": "test"}[match[3]]).lower()
    rest = folder[: match.start()] + folder[match.end() :]
    split = "val" if word in VALIDATION else word.removesuffix("ing")
    return split, "" if rest.strip(" _-.").lower() in ("", "set", "data") else rest


def file_of(path: str) -> File:
    """Take a path apart."""
    parent, _, name = unicodedata.normalize("NFC", path).rpartition("/")
    split, folders = _place_of(parent)
    place = PurePosixPath(name)
    if place.suffix[1:].isdecimal():  # IM.0001, 1.2.840.113
        return File(path, split, folders, name, "")
    return File(path, split, folders, place.stem, intern(place.suffix.lower()))


@lru_cache(maxsize=1024)
def _place_of(parent: str) -> tuple[str, tuple[str, ...]]:
    """Return the split that a file's folders say, and what is left of their names."""
    split, folders = "", []
    for folder in PurePosixPath(parent).parts:
        found, rest = split_of(folder)
        split = split or found
        if rest:
            folders.append(rest)
    return split, tuple(folders)


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
        for form in (r"[A-Za-z]+(?:[_\-. ]|(?=\d))", r"[A-Za-z]+(?:[_\-. ][A-Za-z]+)+(?:[_\-. ]|(?=\d))"):
            if match := re.match(form, stem):
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
    return next(iter(rank_affixes(images, masks, same=same)), (Affixes(), 0))


def rank_affixes(
    images: Mapping[Place, Sequence[str]], masks: Mapping[Place, Sequence[str]], *, same: bool = False
) -> list[tuple[Affixes, int]]:
    """Return all affixes that pair images with masks, the best first (see find_affixes)."""
    known = {place: set(stems) for place, stems in masks.items()}
    learnt = {place: own for place, own in images.items() if place[0] != "test"} or images
    stems = [(place, stem) for place, own in learnt.items() for stem in own]
    found: list[tuple[tuple[int, ...], Affixes, int]] = []
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
            found.append((rank, both, count))
    found.sort(key=lambda one: one[0], reverse=True)  # of equals the first
    return [(both, count) for _, both, count in found]


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
        if file.path in plain and any(_IMAGE_WORDS & set(words_of(folder)) for folder in file.folders)
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
        if (one.image, one.count) == (best.image, best.count) and not _OTHER_WORDS & set(words_of(one.mask))
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
    named = f"{_shown(one.image)} and {_shown(one.mask)}"
    others = []
    for other in candidates:
        differs = (other.mask == one.mask) != (other.image == one.image)
        if (
            other.count == one.count
            and differs
            and not (other.image != one.image and other.image and mask_rank(other.image) is not None)
        ):
            what, name = ("images", other.image) if other.mask == one.mask else ("masks", other.mask)
            line = _line(what, _every(roles[name]), getattr(other.affixes, what[:-1]))
            others.append(f"{_shown(name)} holds {other.count} {what} of the same names ({line})")
    kinds = rank_affixes(_names(places), _names(masks))
    return _paired(images, masks, one.affixes, f"the folders {named}, {one.affixes}", others, kinds)


def _has_role(file: File, one: _Candidate) -> bool:
    return f"/{one.mask}/" in f"/{'/'.join(file.folders)}/"


def _image_places(roles: _Roles, one: _Candidate) -> Mapping[Place, Sequence[File]]:
    """Return the images by place; without a folder of their own, those of places where one has a mask, in any split."""
    places = roles[one.image]
    if one.image:
        return places
    homes = {folders for _, folders in roles[one.mask]}
    return {place: files for place, files in places.items() if place[1] in homes}


def _shown(role: str) -> str:
    return f"{role.strip('_- ')}/" if role else "the folder around it"


def _line(key: str, files: Sequence[File], affix: tuple[str, str]) -> str:
    """Return the line of dataset.yaml that names files like these: with * for a folder in which they differ."""
    first = PurePosixPath(files[0].path)
    core = _core(files[0].stem, affix)
    name = first.name if core is None else f"{affix[0]}{{id}}{affix[1]}{first.suffix}"
    alike = [parts for file in files if len(parts := PurePosixPath(file.path).parts) == len(first.parts)]
    folders = [part if {part} == {*own} else "*" for part, *own in zip(first.parts, *alike, strict=True)][:-1]
    return f'{key}: "{"/".join([*folders, name])}"'


def _paired(
    images: Sequence[tuple[Place, File]],
    masks: Mapping[Place, Sequence[File]],
    affixes: Affixes,
    rule: str,
    others: Sequence[str] = (),
    kinds: Sequence[tuple[Affixes, int]] = (),
) -> Pairing:
    """Return the images with their masks.

    Args:
        images: Images with their places.
        masks: Mask files by place.
        affixes: What is around the names.
        rule: What pairs them, in words.
        others: What else would have paired, in words.
        kinds: All affixes that pair, with how many: masks of several labels, of a second annotator, further parts.
    """
    known = {place: {file.stem: file for file in files} for place, files in masks.items()}
    splits = {split for split, _ in known}
    learnt = splits - {"test"} | {""}
    elsewhere = [file.path for place, file in images if place[0] in learnt and place not in known]
    tried = [affixes, *(one for one, _ in kinds if one.image == affixes.image)]
    left = {*elsewhere}
    derived = _derived(
        [(place, file) for place, file in images if file.path not in left],
        lambda place, file: any(one.mask_of(file.stem) in known.get(place, ()) for one in tried),
    )
    left |= {*derived}
    named = with_ids([(place, file) for place, file in images if file.path not in left])
    plain = {name: file for name, (_, file) in named.items()}
    labels = _labels_of(affixes, kinds)
    if labels:
        found_of = {label: _masks_by_id(named, known, [one]) for label, one in labels.items()}
        used = {file.path for own in found_of.values() for file in own.values()}
        stray = [file for files in masks.values() for file in files if file.path not in used]
        paths = {label: {name: file.path for name, file in own.items()} for label, own in found_of.items()}
        rule = f"{rule.rpartition(', ')[0]}, a mask for each label ({', '.join(map(str, labels.values()))})"
        return Pairing(plain, {}, stray, rule, list(others), paths, elsewhere, derived)
    found = _masks_by_id(named, known, [affixes])
    most = max((count for _, count in kinds), default=0)
    seconds = [one for one, count in kinds if one != affixes and 2 * count >= most]
    rest = [one for one, _ in kinds if one != affixes and not _is_other(one)]
    bare = {name: one for name, one in named.items() if name not in found}
    taken = {file.path for file in found.values()}
    found |= {name: file for name, file in _masks_by_id(bare, known, rest).items() if file.path not in taken}
    used = {file.path for file in found.values()}
    stray = [file for files in masks.values() for file in files if file.path not in used]
    further = _further(found, stray)
    lines = []
    for one in seconds:
        own = [file for file in _masks_by_id(named, known, [one]).values() if file.path not in used]
        if own:
            lines.append(f"{len(own)} masks are called {one} ({_line('masks', own, one.mask)})")
            known_paths = {file.path for file in own}
            stray = [file for file in stray if file.path not in known_paths]
    return Pairing(plain, found, stray, rule, [*others, *lines], {}, elsewhere, derived, further)


def _masks_by_id(
    images: Mapping[str, tuple[Place, File]],
    known: Mapping[Place, Mapping[str, File]],
    affixes: Sequence[Affixes],
) -> dict[str, File]:
    """Return id -> mask, by the first of the affixes by which it has one."""
    found = {}
    for name, (place, file) in images.items():
        stems = (one.mask_of(file.stem) for one in affixes)
        own = known.get(place, {})
        mask = next((own[stem] for stem in stems if stem is not None and stem in own), None)
        if mask is not None and mask.path != file.path:
            found[name] = mask
    return found


def _is_other(affixes: Affixes) -> bool:
    return bool(_OTHER_WORDS & set(words_of(" ".join(affixes.mask))))


def _labels_of(best: Affixes, kinds: Sequence[tuple[Affixes, int]]) -> dict[str, Affixes]:
    """Return label -> affixes, where masks of most images differ in a word: 1_cat and 1_dog; none where they do not.

    A word for masks is no label (1_mask, 1_gt), and neither is a number (1_manual1, 1_2ndHO), or what is made of masks.
    """
    most = max((count for _, count in kinds), default=0)
    every = [one for one, count in kinds if 2 * count >= most and one.image == best.image]
    ends = {one.mask for one in every}
    if len(ends) < 2 or len({tuple(map(bool, one)) for one in ends}) > 1:
        return {}
    for at in (0, 1):
        if len({one[1 - at] for one in ends}) == 1:
            texts = [one[at] for one in ends]
            parts = [re.findall(r"[^\W_]+", text) for text in texts]
            while all(len(one) > 1 for one in parts) and len({one[0] for one in parts}) == 1:
                parts = [one[1:] for one in parts]
            while all(len(one) > 1 for one in parts) and len({one[-1] for one in parts}) == 1:
                parts = [one[:-1] for one in parts]
            names = ["_".join(one) for one in parts]
            plain = all(
                name and name.replace("_", "").isalpha() and mask_rank(name) is None for name in names
            ) and not any(_OTHER_WORDS & set(words_of(text)) for text in texts)
            if plain and len(set(names)) == len(names):
                by_end = dict(zip(texts, names, strict=True))
                return {
                    by_end[one.mask[at]]: one for one in sorted(every, key=lambda one: by_end[one.mask[at]])
                }
    return {}


def _derived(images: Sequence[tuple[Place, File]], has_mask: Callable[[Place, File], bool]) -> list[str]:
    """Return the pictures that most images have beside them, called as they are with one word more, without a mask."""
    stems: dict[Place, set[str]] = defaultdict(set)
    for place, file in images:
        stems[place].add(file.stem)
    found: dict[str, list[tuple[Place, File]]] = defaultdict(list)
    for place, file in images:
        match = re.fullmatch(r"(.+)[_\-. ]([A-Za-z]{3,})", file.stem)
        if match and match[1] in stems[place]:
            found[match[2]].append((place, file))
    most = len(images) - sum(map(len, found.values()))
    return [
        file.path
        for own in found.values()
        if 2 * len(own) >= most and not any(has_mask(*one) for one in own)
        for _, file in own
        if any(one.split != "test" for _, one in own)
    ]


def _further(found: Mapping[str, File], stray: Sequence[File]) -> dict[str, list[str]]:
    """Return id -> the masks that are called as the mask of the image, with a number behind."""
    names = {(file.split, file.folders, file.stem): name for name, file in found.items()}
    further: dict[str, list[str]] = defaultdict(list)
    for file in stray:
        match = re.fullmatch(
            r"(.*[^\W\d_])[_\-. ]*\(?\d+\)?", file.stem
        )  # the mask's own name ends with a word
        name = names.get((file.split, file.folders, match[1])) if match else None
        if name is not None:
            further[name].append(file.path)
    return dict(further)


def with_ids(images: Sequence[tuple[Place, File]]) -> dict[str, tuple[Place, File]]:
    """Return the images by id: name and folders, without those that all have; the split before it where ids repeat.

    Raises:
        SameIdError: Two images have one id.
    """
    shared = shared_folders([folders for (_, folders), _ in images])
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


def shared_folders(folders: Sequence[tuple[str, ...]]) -> int:
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
            first = _core(file.stem, affixes.mask) is not None
            drawn = first or any(_core(file.stem, one.mask) is not None for one, _ in kinds)
            if drawn or _is_second_mask(file, stems):
                masks[place].append(file)
            elif affixes.image == ("", "") or affixes.mask_of(file.stem) is not None:
                images.append((place, file))
            if first:
                homes.add(place[1])
    images = [(place, file) for place, file in images if place[1] in homes or place[0] == "test"]
    return _paired(images, masks, affixes, f"side by side, {affixes}", (), kinds)


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
    return _paired(images, masks, Affixes(), "a folder for each image, with its mask") if images else None


def is_mask_role(folder: str) -> bool:
    """Whether a folder is called as one of masks."""
    return mask_rank(folder) is not None


def _is_role(folder: str) -> bool:
    return is_mask_role(folder) or folder.lower() in _IMAGE_WORDS


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


def _by_labels(roles: _Roles, may_be: _MayBe, bands_of: Bands) -> Pairing | None:
    """Pair images with the masks of several labels, in a folder each inside a folder of masks."""
    best: Pairing | None = None
    best_rank: tuple[int, bool, int] = (0, False, 0)
    for role in [name for name in roles if name and mask_rank(name) is not None]:
        labels: _Roles = defaultdict(lambda: defaultdict(list))
        for (split, folders), files in roles[role].items():
            for at, label in enumerate(folders):
                if not _OTHER_WORDS & set(words_of(label)):
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
