"""A folder an image, with the image and a mask file for each of its objects (Data Science Bowl 2018)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog, SubmissionFormat
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.layouts.folders import find_test_images, make_samples, some_ids
from masksmith.data.run_tables import find_rle_columns, read_run_table
from masksmith.data.side_tables import collect_facts, read_tables
from masksmith.data.table import Table
from masksmith.data.tree import Tree

ASSUMED_DIALECT = "dsb"
"""A row an object, as the contest asks: https://www.kaggle.com/c/data-science-bowl-2018/overview/evaluation."""


def object_folders(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """SET/ID/images/ID.png with SET/ID/masks/*.png, one file an object; a set without masks is the test set."""
    sets = _sets(tree)
    train = {place: image for own in sets.values() if own.masks for place, image in own.images.items()}
    if not train:
        return None
    images = _by_id(tree, train)
    objects = {place.name: _objects(tree, place) for place in train}
    rest = _by_id(
        tree, {place: at for own in sets.values() if not own.masks for place, at in own.images.items()}
    )
    test = rest or find_test_images(tree)
    tables, errors = read_tables(tree)
    facts = collect_facts(_facts_of(tables), {"train": images, "test": test})
    bare = [name for name, paths in objects.items() if not paths]
    notes = [f"{len(bare)} images have no object file: {some_ids(bare)}"] if bare else []
    return Catalog(
        root=str(tree.root.resolve()),
        layout="object_folders",
        content_hash=tree.content_hash,
        train=make_samples("train", images, facts, objects=objects),
        test=make_samples("test", test, facts),
        submission=_submission_format(tables, test, asked.dialect),
        notes=notes + [str(error) for error in errors.values()] + facts.notes,
    )


@dataclass(frozen=True)
class _Set:
    """The folders of images in one place (``stage1_train``), and whether some of them hold masks."""

    images: dict[PurePosixPath, str]
    """Folder of an image, which is called as its id -> the image."""
    masks: bool


def _sets(tree: Tree) -> dict[PurePosixPath, _Set]:
    """Return the sets of the data folder by their place: folders ID/images that hold one image called ID.

    Raises:
        InputError: A folder of a set with masks is of another form.
    """
    folders = [PurePosixPath(one).parent for one in tree.folders if PurePosixPath(one).name == "images"]
    found: dict[PurePosixPath, _Set] = {}
    for home in dict.fromkeys(folder.parent for folder in folders if folder.name):
        own = [folder for folder in folders if folder.parent == home and folder.name]
        images = {folder: tree.files(f"{folder}/images", suffixes=IMAGE_SUFFIXES) for folder in own}
        plain = {folder: paths[0] for folder, paths in images.items() if _is_plain(folder, paths)}
        if not plain:
            continue
        masks = any(_has_masks(tree, folder) for folder in plain)
        if masks:
            _check_set(tree, images, plain)
        found[home] = _Set(plain, masks)
    return found


def _is_plain(folder: PurePosixPath, paths: list[str]) -> bool:
    return len(paths) == 1 and PurePosixPath(paths[0]).stem == folder.name


def _has_masks(tree: Tree, folder: PurePosixPath) -> bool:
    return bool(tree.files(f"{folder}/masks")) or tree.has(f"{folder}/masks")  # an empty folder too


def _check_set(
    tree: Tree, images: Mapping[PurePosixPath, list[str]], plain: Collection[PurePosixPath]
) -> None:
    odd = {folder: paths for folder, paths in images.items() if folder not in plain}
    if odd:
        folder, paths = next(iter(odd.items()))
        raise InputError(
            f"{tree.root}: {folder}/images holds {len(paths)} images ({some_ids(map(str, paths)) or 'none'}); expected "
            f"one, called {folder.name}, as in the {len(plain)} folders beside it"
        )
    without = [folder.name for folder in plain if not _has_masks(tree, folder)]
    if without:
        raise InputError(
            f"{tree.root}: no folder 'masks' beside the image {some_ids(without)}; add one (an empty one where "
            "there is no object), or take the images out"
        )


def _by_id(tree: Tree, images: Mapping[PurePosixPath, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for folder, path in images.items():
        if folder.name in found:
            raise InputError(
                f"{tree.root}: {found[folder.name]!r} and {path!r} both have the id {folder.name!r}; keep one of them"
            )
        found[folder.name] = path
    return found


def _objects(tree: Tree, place: PurePosixPath) -> list[str]:
    return tree.files(f"{place}/masks", suffixes=IMAGE_SUFFIXES)


def _facts_of(tables: Mapping[str, Table]) -> list[Table]:
    """Return the tables that say something of the images: one of run-lengths repeats the object files."""
    return [table for table in tables.values() if not find_rle_columns(table, bare=True)]


def _submission_format(
    tables: Mapping[str, Table], test: Collection[str], dialect: str | None
) -> SubmissionFormat:
    """Return what the judge expects: the columns and ids of a sample submission, a row an object.

    Raises:
        InputError: The sample submission has an id without a test image.
    """
    form = replace(
        SubmissionFormat.assumed(test, dialect or ASSUMED_DIALECT),
        id_column="ImageId",
        rle_column="EncodedPixels",
        reason="" if dialect else "a row an object, as objects are given",
        asked=dialect is not None,
    )
    for path, table in tables.items():
        columns = find_rle_columns(table, bare=True) if "sample_submission" in path.lower() else []
        runs = read_run_table(table, columns, test) if columns else None
        if runs is None:
            continue
        if absent := set(runs.ids) - set(test):
            raise InputError(
                f"{path}: no test image for the id {some_ids(absent)}; {len(test)} test images were found"
            )
        ids = list(dict.fromkeys(runs.ids))
        return replace(form, id_column=runs.id_column, rle_column=runs.rle_column, ids=ids, source=path)
    return form
