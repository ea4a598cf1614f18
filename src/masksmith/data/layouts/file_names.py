"""What the names and folders of a tree's files say: the split, the words for masks and images, and common affixes."""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
# The earlier, the more probably it is the mask that is meant, where several folders or files would do.
_MASK_WORDS = (
    "groundtruth", "groundtruths", "truth", "manual", "manual1", "gt", "gts", "segmentationclass", "mask", "masks",
    "label", "labels", "labelids", "annot", "annotation", "annotations", "segmentation", "segmentations", "seg",
    "segs", "semantic", "semantics", "segmap", "target", "targets", "gtfine", "labelhand", "labeltrainids", "matte",
    "silhouette", "roi", "1stho", "2ndho", "anno", "annos", "lab", "labs", "parsing",
)  # fmt: skip
OTHER_WORDS = {
    "color", "colors", "colour", "colours", "colored", "coloured", "rgb", "vis", "visualization", "overlay", "object",
    "objects", "segmentationobject", "instance", "instances", "instanceids", "preview", "blend", "2nd", "manual2",
    "2ndho", "otsu", "pred", "prediction", "predictions",
}  # fmt: skip
"""Of pictures made of masks, or of a second kind of them: taken where there is nothing else."""
IMAGE_WORDS = {"image", "images", "img", "imgs", "photo", "photos", "picture", "pictures", "jpegimages", "x"}

_SAMPLED = 40
"""Names of a set that are compared with all others, to find affixes."""
_KEPT = 6
"""Affixes that are tried on the whole set."""

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
        core = core_of(stem, self.image)
        return None if core is None else f"{self.mask[0]}{core}{self.mask[1]}"

    def __str__(self) -> str:
        image, mask = (f"{before}ID{behind}" for before, behind in (self.image, self.mask))
        return f"{image} with {mask}" if image != mask else "equal names"


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
    return min(ranks) + (len(_MASK_WORDS) if OTHER_WORDS & set(words) else 0)


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


def core_of(stem: str, affix: tuple[str, str]) -> str | None:
    """Return a name without what stands before and behind its core; None where that does not stand there."""
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
    cores = [(place, core) for place, stem in stems if (core := core_of(stem, affix)) is not None]
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
