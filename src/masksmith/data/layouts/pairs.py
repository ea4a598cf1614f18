"""Images and masks joined by their ids, once it is known which folders and affixes pair them."""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from masksmith.data.layouts.file_names import OTHER_WORDS, Affixes, File, Place, core_of, mask_rank, words_of


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


def shown(role: str) -> str:
    """Return a folder of images or masks as it is said to people."""
    return f"{role.strip('_- ')}/" if role else "the folder around it"


def line_of(key: str, files: Sequence[File], affix: tuple[str, str]) -> str:
    """Return the line of dataset.yaml that names files like these: with * for a folder in which they differ."""
    first = PurePosixPath(files[0].path)
    core = core_of(files[0].stem, affix)
    name = first.name if core is None else f"{affix[0]}{{id}}{affix[1]}{first.suffix}"
    alike = [parts for file in files if len(parts := PurePosixPath(file.path).parts) == len(first.parts)]
    folders = [part if {part} == {*own} else "*" for part, *own in zip(first.parts, *alike, strict=True)][:-1]
    return f'{key}: "{"/".join([*folders, name])}"'


def join(
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
            lines.append(f"{len(own)} masks are called {one} ({line_of('masks', own, one.mask)})")
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
    return bool(OTHER_WORDS & set(words_of(" ".join(affixes.mask))))


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
            ) and not any(OTHER_WORDS & set(words_of(text)) for text in texts)
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
