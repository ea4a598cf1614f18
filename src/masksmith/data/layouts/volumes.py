"""Files of several images: NIfTI volumes, stacks of TIFF pages, arrays of NumPy and MATLAB; each slice is a sample.

Files are paired by their names like images and masks (see pairing.py), ``images.npy`` and ``masks.npy`` by what they
are called, arrays of one file by their names in it. The slices of a file are a group: neighbours are alike.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog, Sample
from masksmith.data.decode.arrays import are_images, keys_of
from masksmith.data.decode.nifti import SUFFIXES as NIFTI_SUFFIXES
from masksmith.data.decode.nifti import Grid, read_grid
from masksmith.data.decode.reader import CONTAINERS, ImageReader, ending
from masksmith.data.decode.tiff import count_pages
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.findings import refuse_all, some
from masksmith.data.layouts.file_names import SPLITS, File, file_of, mask_rank, split_of
from masksmith.data.layouts.paired_folders import catalog_of, image_files
from masksmith.data.layouts.pairing import pair
from masksmith.data.layouts.pairs import Pairing, with_ids
from masksmith.data.run_tables import natural
from masksmith.data.tree import Tree

ARRAYS = (".npy", *CONTAINERS)
_TIFFS = (".tif", ".tiff")
_FEW_VALUES = 64
_CHANNEL = re.compile(r"(?:(.*)[_\-. ])?([A-Za-z][A-Za-z0-9]*)")


def volumes(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """Volumes, stacks and arrays with masks of the same form; also arrays of one image each.

    Raises:
        InputError: An image and its mask have different numbers of slices, sizes, or places in space.
    """
    slices = Slices(tree)
    stacks = _stacks(tree)
    tiffs = [] if stacks else _stacked_tiffs(tree, slices)
    if not stacks and not tiffs:
        return None
    pictures = image_files(tree)
    files = [_file(path) for path in [*pictures, *stacks]]
    few = len(pictures) <= len({*stacks, *tiffs})  # a few arrays beside many pictures are no data set
    if few and (several := _by_channels(files)) is not None:
        return _of_channels(catalog_of(tree, asked, "volumes", several[0]), several[1], slices)
    found = (_within(slices, stacks) or _by_words(files)) if few else None
    found = found or pair(files, are_masks=slices.are_masks, bands_of=lambda _: 1)
    if found is None or not _is_stacked(found, {*stacks, *tiffs}):
        return None
    return slice_up(catalog_of(tree, asked, "volumes", _with_test(found, files, {*stacks, *tiffs})), slices)


class Slices:
    """How many slices files hold, and where volumes lie, from headers where a format tells it there."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.reader = ImageReader(tree)
        self._grids: dict[str, Grid] = {}
        self._counts: dict[str, int] = {}

    def grid(self, path: str) -> Grid | None:
        """Return where a NIfTI volume lies, None for another file.

        Raises:
            InputError: It is damaged.
        """
        if ending(path) not in NIFTI_SUFFIXES:
            return None
        if path not in self._grids:
            self._grids[path] = read_grid(self.tree.read(path), path)
        return self._grids[path]

    def count(self, path: str) -> int:
        """Return the number of images in a file, or in an array of it (``FILE#KEY``).

        Raises:
            InputError: It is damaged.
        """
        if path not in self._counts:
            file, _, key = path.partition("#") if path not in self.tree else (path, "", "")
            grid = self.grid(file)
            if grid is not None:
                self._counts[path] = grid.count
            elif ending(file) in _TIFFS:
                self._counts[path] = count_pages(self.tree.read(file), file)
            else:
                found = self.reader.slices(file, key)
                self._counts[path] = 1 if found is None else len(found)
        return self._counts[path]

    def are_masks(self, images: Sequence[File], masks: Sequence[File]) -> bool:
        """Whether the first of some files hold far fewer different values than those of others, as masks do."""
        import numpy as np

        seen = []
        for files in (images, masks):
            path = files[0].path
            number = self.count(path) // 2
            image = self.reader.image(f"{path}#{number}" if self.count(path) > 1 else path)
            seen.append(len(np.unique(image)))
        return seen[1] <= _FEW_VALUES and 2 * seen[1] < seen[0]


def _stacks(tree: Tree) -> list[str]:
    """Return the files of volumes, and of arrays with as many axes as images have."""
    kinds = (*NIFTI_SUFFIXES, *ARRAYS)
    found = [path for folder in tree.folders for path in tree.files(folder) if ending(path) in kinds]
    beside = bool(image_files(tree))  # beside pictures, files of other things are let be

    def may_be(path: str) -> bool:
        kind = ending(path)
        if kind == ".npy":
            return are_images(tree.read(path))
        return kind not in CONTAINERS or not beside or bool(keys_of(tree.read(path), path))

    return list(filter(may_be, found))


def _stacked_tiffs(tree: Tree, slices: Slices) -> list[str]:
    """Return the TIFFs of folders whose first TIFF has several pages."""
    found = []
    for folder in tree.folders:
        paths = tree.files(folder, suffixes=_TIFFS)
        if paths and slices.count(paths[0]) > 1:
            found += paths
    return found


def _file(path: str) -> File:
    """Take a path apart; ``.nii.gz`` is one ending, and the split may stand in the name of the file."""
    file, last = file_of(path), ending(path)
    if last in NIFTI_SUFFIXES:
        return replace(file, stem=PurePosixPath(path).name[: -len(last)], ending=last)
    return file


def _is_stacked(found: Pairing, stacks: set[str]) -> bool:
    """Whether some paired file is of several images, or an array; pages are bands unless the mask has as many."""
    paths = {name: file.path for name, file in found.images.items()}
    masks = {name: file.path for name, file in found.masks.items()}
    return any(
        mask.partition("#")[0] in stacks
        and (paths[name].partition("#")[0] in stacks or ending(mask) not in _TIFFS)
        for name, mask in masks.items()
    )


def _by_words(files: Sequence[File]) -> Pairing | None:
    """Pair a file of images with one of masks in each folder and split by words in their names.

    So ``X_train.npy`` and ``y_train.npy``, or ``train-volume.tif`` and ``train-labels.tif``. A file of images of a
    split "test" without masks is to be segmented.
    """
    places: dict[tuple[str, str], list[File]] = {}
    for file in files:
        split, _ = split_of(file.stem)
        places.setdefault((str(PurePosixPath(file.path).parent), split or file.split), []).append(file)
    images: list[File] = []
    masks: dict[str, File] = {}
    for (_, split), own in places.items():
        drawn = [file for file in own if _is_mask_name(file.stem)]
        plain = [file for file in own if file not in drawn]
        if len(plain) != 1 or len(drawn) > 1:
            continue
        image = replace(plain[0], split=split)
        images.append(image)
        if drawn:
            masks[image.path] = drawn[0]
    return _pairing(images, masks, "names of images and of masks")


def _by_channels(files: Sequence[File]) -> tuple[Pairing, dict[str, list[str]]] | None:
    """Pair cases of several volumes with their masks by the last words of names: X_t1, X_t2 and X_seg, as in BraTS.

    Returns:
        The first channels with their masks, and first channel -> all of them in their order; None where names differ.
    """
    cases: dict[tuple[str, str], dict[str, File]] = {}
    for file in files:
        match = _CHANNEL.fullmatch(file.stem)
        if match is None or file.ending not in NIFTI_SUFFIXES:
            return None
        cases.setdefault((str(PurePosixPath(file.path).parent), match[1] or ""), {})[match[2]] = file
    masked = [own for own in cases.values() if any(map(_is_mask_name, own))]
    if not masked:
        return None
    words = Counter(tuple(sorted(own, key=natural)) for own in masked).most_common(1)[0][0]
    drawn = [word for word in words if _is_mask_name(word)]
    channels = [word for word in words if word not in drawn]
    if len(drawn) != 1 or len(channels) < 2 or any(not set(own) <= {*words} for own in cases.values()):
        return None
    images: list[File] = []
    masks: dict[str, File] = {}
    bands: dict[str, list[str]] = {}
    problems = []
    for (folder, core), own in cases.items():
        if absent := [word for word in channels if word not in own]:
            problems.append(
                f"{folder}: the case {core!r} lacks the channels {some(absent)}; add them or take it out"
            )
            continue
        first = own[channels[0]]
        home = first.folders[:-1] if first.folders and core in ("", first.folders[-1]) else first.folders
        image = replace(first, stem=core or (*first.folders, first.stem)[-2], folders=home)
        images.append(image)
        bands[image.path] = [own[word].path for word in channels]
        if drawn[0] in own:
            masks[image.path] = own[drawn[0]]
        elif not image.split:
            images[-1] = replace(image, split="test")
    refuse_all(problems, what="cases")
    found = _pairing(images, masks, f"cases of the channels {', '.join(channels)}, with {drawn[0]}")
    return None if found is None else (found, bands)


def _of_channels(catalog: Catalog, bands: Mapping[str, list[str]], slices: "Slices") -> Catalog:
    train, test = (
        [replace(one, bands=bands[one.image]) for one in own] for own in (catalog.train, catalog.test)
    )
    return slice_up(replace(catalog, train=train, test=test), slices)


def _with_test(found: Pairing, files: Sequence[File], stacks: set[str]) -> Pairing:
    """Return the pairing with the files of a test set that lie in a folder of their own."""
    known = {
        file.path.partition("#")[0] for file in (*found.images.values(), *found.masks.values(), *found.stray)
    }
    rest = [file for file in files if file.split == "test" and file.path in stacks and file.path not in known]
    plain = [file for file in rest if not any(_is_mask_name(name) for name in (*file.folders, file.stem))]
    named = with_ids([((file.split, file.folders), file) for file in plain]) if plain else {}
    return replace(found, images=found.images | {name: file for name, (_, file) in named.items()})


def _is_mask_name(name: str) -> bool:
    _, rest = split_of(name)
    rest = rest.strip("_- .") or name
    return mask_rank(rest) is not None


def _pairing(images: Iterable[File], masks: Mapping[str, File], rule: str) -> Pairing | None:
    """Return the pairing of images with the masks of their paths."""
    named = {
        name: file
        for name, (_, file) in with_ids([((file.split, file.folders), file) for file in images]).items()
    }
    found = {name: masks[file.path] for name, file in named.items() if file.path in masks}
    return Pairing(named, found, [], rule) if found else None


def _within(slices: Slices, stacks: Iterable[str]) -> Pairing | None:
    """Pair the arrays of files that hold one of images and one of masks for each split."""
    images: list[File] = []
    masks: dict[str, File] = {}
    for path in stacks:
        if ending(path) not in CONTAINERS:
            continue
        keys = keys_of(slices.tree.read(path), path)
        for split in (*SPLITS, ""):
            own = [key for key in keys if split_of(key)[0] == split]
            drawn = [key for key in own if _is_mask_name(key)]
            plain = [key for key in own if key not in drawn]
            if len(plain) != 1 or len(drawn) > 1 or (not drawn and split != "test"):
                continue
            file = _file(path)
            image = replace(file, path=f"{path}#{plain[0]}", split=split or file.split)
            images.append(image)
            if drawn:
                masks[image.path] = replace(file, path=f"{path}#{drawn[0]}")
    return _pairing(images, masks, "arrays of one file by their names") if images else None


# --- slices -----------------------------------------------------------------------------------------------


def slice_up(catalog: Catalog, slices: Slices) -> Catalog:
    """Return the catalogue with a sample for each slice of its files: ``ID_012``, in the group ID.

    Raises:
        InputError: Files are damaged, or the files of a sample have different slices or places in space; all are named.
    """
    problems: list[str] = []
    found: dict[str, list[Sample]] = {}
    for split, samples in (("train", catalog.train), ("test", catalog.test)):
        found[split] = []
        for sample in samples:
            try:
                found[split] += _slices_of(sample, slices)
            except InputError as error:
                problems.append(str(error))
    refuse_all(problems, what="files")
    several = sum(slices.count(one.image) > 1 for one in catalog.train)
    why = f"{several} of {len(catalog.train)} files hold several images: each is a sample, those of a file are a group"
    form = replace(catalog.submission, ids=sorted(one.id for one in found["test"]))
    if form.label_rows:
        form = replace(form, label_rows=[]).with_labels(catalog.labels)
    return replace(
        catalog, train=found["train"], test=found["test"], submission=form, why=[*catalog.why, why]
    )


def _slices_of(sample: Sample, slices: Slices) -> list[Sample]:
    paths = sample.bands or [sample.image]
    drawn = [*([sample.mask] if sample.mask else []), *(sample.label_masks or {}).values()]
    count = slices.count(paths[0])
    grid = slices.grid(paths[0])
    for path in [*paths[1:], *drawn]:
        own = slices.grid(path)
        if grid is not None and own is not None and (apart := own.differs(grid)):
            raise InputError(f"{path}: {apart}, {paths[0]}; resample it onto the grid of the other")
        if (other := slices.count(path)) != count:
            raise InputError(
                f"{path}: it holds {other} images, and {paths[0]} holds {count}; expected as many"
            )
    if count == 1:
        return [sample]

    def at(path: str, number: int) -> str:
        return f"{path}{'#' if path in slices.tree else '/'}{number}"

    width = max(3, len(str(count - 1)))
    return [
        replace(
            sample,
            id=f"{sample.id}_{number:0{width}d}",
            image=at(sample.image, number),
            mask=at(sample.mask, number) if sample.mask else None,
            label_masks={label: at(path, number) for label, path in sample.label_masks.items()}
            if sample.label_masks is not None
            else None,
            bands=[at(path, number) for path in sample.bands] if sample.bands else None,
            group=sample.group or sample.id,
        )
        for number in range(count)
    ]
