"""A file for each band of an image, in a folder of its own or with the band at the end of its name (DrivenData)."""

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog, SubmissionFormat
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.findings import refuse_all, some
from masksmith.data.layouts.folders import make_samples, stray_masks
from masksmith.data.run_tables import natural
from masksmith.data.side_tables import collect_facts, read_tables
from masksmith.data.tree import Tree

_TEST = re.compile(r"(?:^|[_/-])test(?:ing)?(?:$|[_/-])")
_MASKS = re.compile(r"mask|label|annot|target|truth|(?:^|[_/-])gt(?:$|[_/-])", re.IGNORECASE)

Bands = dict[str, dict[str, str]]
"""Id -> band -> path."""


def band_folders(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """FOLDER/ID/BAND.tif or FOLDER/ID_BAND.tif, two bands or more, and a folder of masks ID.tif.

    The channels are the bands in the order of their names (B02, B03, B04, B08, B11), or in that of the description.
    A folder of the same form whose name says "test" holds the images to be segmented.
    """
    found = _found_bands(tree)
    train, masks, mask_folder = _with_masks(tree, found)
    if not train:
        return None
    names = _names(found[train], asked.bands, tree, train)
    images = _files(found[train], names, tree)
    bare = set(images) - set(masks)
    if bare:
        raise InputError(
            f"{tree.root}: no mask for {len(bare)} images of {train}/: {some(sorted(bare))}; add masks or take the "
            "images out"
        )
    places = [place for place in found if place != train and _TEST.search(place.lower())]
    test = _files(found[places[0]], names, tree) if places else {}
    tables, errors = read_tables(tree)
    first = {name: files[0] for name, files in images.items()}
    first_test = {name: files[0] for name, files in test.items()}
    facts = collect_facts(tables.values(), {"train": first, "test": first_test})
    return Catalog(
        root=str(tree.root.resolve()),
        layout="band_folders",
        content_hash=tree.content_hash,
        train=[
            replace(one, bands=images[one.id]) for one in make_samples("train", first, facts, masks=masks)
        ],
        test=[replace(one, bands=test[one.id]) for one in make_samples("test", first_test, facts)],
        submission=_submission_format(test, masks.values(), asked.dialect),
        notes=stray_masks(masks, images) + [str(error) for error in errors.values()] + facts.notes,
        why=[
            f"{train}/ holds {len(names)} files an image, its bands {', '.join(names)}: {some(images[min(images)])}",
            f"{mask_folder}/ holds a mask for each of the {len(images)} images: {masks[min(images)]}",
            *([f"{places[0]}/ holds the same bands of {len(test)} images to be segmented"] if places else []),
        ],
        left_out=[
            f"{len(found[place])} images in {place}/: another folder was taken" for place in places[1:]
        ],
    )


def _submission_format(
    test: Collection[str], masks: Collection[str], dialect: str | None
) -> SubmissionFormat:
    """Return what the judge expects: files as those of the training masks, where these are TIFF (DrivenData)."""
    form = SubmissionFormat.assumed(test, dialect)
    endings = {PurePosixPath(path).suffix.lower() for path in masks}
    if endings <= {".tif", ".tiff"}:
        source = f"{form.source}; masks are wanted as ID.tif, as the training masks are"
        return replace(form, files="tif", source=source)
    return form


def _found_bands(tree: Tree) -> dict[str, Bands]:
    """Return place -> bands of the images in it, of every folder that holds such images."""
    inside: dict[str, Bands] = {}
    for folder in tree.folders:
        if folder and (files := _by_stem(tree, folder)):
            place = PurePosixPath(folder)
            inside.setdefault("" if place.parent == PurePosixPath() else str(place.parent), {})[
                place.name
            ] = files
    found = {place: _uniform(_short(nested)) for place, nested in inside.items()}
    for folder in tree.folders:
        if not found.get(folder):
            found[folder] = _uniform(_flat(_by_stem(tree, folder)))
    return {place: bands for place, bands in sorted(found.items()) if bands}


def _by_stem(tree: Tree, folder: str) -> dict[str, str]:
    """Return name without ending -> path of the images in a folder; none where two have the same name."""
    paths = tree.files(folder, suffixes=IMAGE_SUFFIXES)
    found = {PurePosixPath(path).stem: path for path in paths}
    return found if len(found) == len(paths) else {}


def _short(nested: Bands) -> Bands:
    """Return the bands by names without the id before them, where all have it (ID/ID_B02.tif)."""
    if all(band.startswith(f"{name}_") for name, bands in nested.items() for band in bands):
        return {
            name: {band.removeprefix(f"{name}_"): path for band, path in bands.items()}
            for name, bands in nested.items()
        }
    return nested


def _flat(files: Mapping[str, str]) -> Bands:
    """Return the bands of files that are called ID_BAND."""
    found: Bands = {}
    for stem, path in files.items():
        name, _, band = stem.rpartition("_")
        found.setdefault(name, {})[band] = path
    return found


def _uniform(bands: Bands) -> Bands:
    """Return the bands; none unless most of several images have the same two or more."""
    names = {frozenset(own) for own in bands.values()}
    most = max(names, key=len, default=frozenset())
    whole = [own for own in bands.values() if set(own) == most]
    is_so = len(most) > 1 and "" not in bands and 2 * len(whole) > len(bands) and len(bands) > 1
    return bands if is_so else {}


def _with_masks(tree: Tree, found: Mapping[str, Bands]) -> tuple[str, Mapping[str, str], str]:
    """Return the place of the training images, their masks by id and the masks' folder; ("", {}, "") without any.

    A folder named after masks comes first; one beside the images before any other.
    """
    for place, bands in found.items():
        if _TEST.search(place.lower()):
            continue
        folders = [one for one in tree.folders if one != place and not _TEST.search(one.lower())]
        folders.sort(
            key=lambda one: (not _MASKS.search(one), PurePosixPath(one).parent != PurePosixPath(place).parent)
        )
        for folder in folders:
            masks = (
                _by_stem(tree, folder) if PurePosixPath(place) not in PurePosixPath(folder).parents else {}
            )
            if 2 * len(set(masks) & set(bands)) > len(bands):
                return place, masks, folder
    return "", {}, ""


def _names(bands: Bands, asked: list[str] | None, tree: Tree, place: str) -> list[str]:
    """Return the bands in their order.

    Raises:
        InputError: A band that is asked for is nowhere.
    """
    there = max(bands.values(), key=len)
    if asked is None:
        return sorted(there, key=natural)
    if absent := [band for band in asked if band not in there]:
        raise InputError(
            f"{tree.root}: bands: {some(absent)} not in {place}/, which has {some(sorted(there), most=20)}"
        )
    return asked


def _files(bands: Bands, names: list[str], tree: Tree) -> dict[str, list[str]]:
    """Return id -> the paths of its bands in their order.

    Raises:
        InputError: Images lack a band; all of them are named.
    """
    refuse_all(
        [
            f"{tree.root}: the image {name!r} lacks the bands {some(absent)}: it has {some(sorted(own.values()))}; add "
            "them or take the image out"
            for name, own in sorted(bands.items())
            if (absent := [band for band in names if band not in own])
        ],
        what="images",
    )
    return {name: [own[band] for band in names] for name, own in bands.items()}
