"""Which layout is this? One file a layout, and the table of them.

A layout is a function from a Tree and what somebody said of the data (a Description) to a Catalog, or to None where the
folder is not of its kind. It is recognised by what its files hold, not by what they are called. To add one,
write the function in a file of its own and a line in LAYOUTS (see CONTRIBUTING).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.data.catalog import AskedTarget, Catalog
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.description import FILE_NAME, Description, Groups, read_description
from masksmith.data.findings import some
from masksmith.data.layouts.band_folders import band_folders
from masksmith.data.layouts.dicom_series import dicom_series, group_by_patient
from masksmith.data.layouts.kaggle_rle import kaggle_rle
from masksmith.data.layouts.object_folders import object_folders
from masksmith.data.layouts.paired_folders import paired_folders
from masksmith.data.rle import DIALECTS
from masksmith.data.target import TASKS, Task
from masksmith.data.tree import Tree

Layout = Callable[[Tree, Description], Catalog | None]

LAYOUTS: dict[str, Layout] = {
    "dicom_series": dicom_series,
    "object_folders": object_folders,
    "kaggle_rle": kaggle_rle,
    "band_folders": band_folders,
    "paired_folders": paired_folders,
}
"""In the order in which they are tried: of several that fit, the first is taken."""


def read_catalog(
    root: Path,
    *,
    dialect: str | None = None,
    task: str | None = None,
    ignore: Sequence[int] = (),
    layout: str | Path | None = None,
) -> Catalog:
    """Recognise the layout of a data folder and list what is in it; no image is decoded, and few masks.

    Args:
        root: The data folder. What its ``dataset.yaml`` says is so (see Description); the arguments come first.
        dialect: Of the run-lengths, a key of DIALECTS; None infers it.
        task: What the masks mean; None lets their values decide.
        ignore: Values of mask files that are not judged, besides those that the layout knows.
        layout: Name of a layout that is insisted on, or a file in place of ``dataset.yaml``; None looks.

    Raises:
        InputError: The folder is empty, has no masks or no known layout, its tables contradict its images, or what was
            said contradicts the files.
    """
    if dialect is not None:
        look_up(DIALECTS, dialect, where="--dialect")
    wanted = None if task is None else look_up({one: one for one in TASKS}, task, where="--task")
    tree = Tree(root)
    said = _what_is_said(root, layout)
    said = said.model_copy(
        update={
            "dialect": dialect or said.dialect,
            "task": wanted or said.task,
            "ignore": sorted({*said.ignore, *ignore}),
        }
    )
    catalog = _recognise(tree, said)
    if catalog is None:
        raise _nothing_found(tree)
    catalog = group_by_patient(tree, catalog)
    known = catalog.asked
    _check_task(said.task, catalog, root)
    asked = AskedTarget(
        said.task or known.task,
        sorted({*known.ignore, *said.ignore}),
        known.names | said.names,
        said.colours or known.colours,
    )
    return with_groups(replace(catalog, asked=asked), said.groups)


def _what_is_said(root: Path, layout: str | Path | None) -> Description:
    if isinstance(layout, str) and not layout.lower().endswith((".yaml", ".yml")):
        look_up(LAYOUTS, layout, where="--layout")
        return read_description(root).model_copy(update={"layout": layout})
    return read_description(root, None if layout is None else Path(layout))


def _recognise(tree: Tree, said: Description) -> Catalog | None:
    """Return the catalogue of the first layout that fits, or of the one that is insisted on.

    Raises:
        InputError: As the layout; the one that is insisted on does not fit.
    """
    if said.layout is None:
        return next(filter(None, (layout(tree, said) for layout in LAYOUTS.values())), None)
    catalog = look_up(LAYOUTS, said.layout, where="layout")(tree, said)
    if catalog is None:
        raise InputError(
            f"{tree.root}: not of the layout {said.layout!r}; leave --layout out to have it looked for, or see "
            "docs/layouts.md for its form"
        )
    return catalog


def with_groups(catalog: Catalog, groups: Groups | None) -> Catalog:
    """Return the catalogue with the groups that a description names.

    Raises:
        InputError: No table has the column, an image has no value in it, or an id does not match the pattern.
    """
    if groups is None:
        return catalog
    found: dict[str, str] = {}
    for sample in catalog.train:
        if groups.column is not None:
            value = sample.texts.get(groups.column)
        else:
            match = re.search(groups.pattern or "", sample.id)
            value = match and match[1 if match.re.groups else 0]
        if value is not None:
            found[sample.id] = value
    bare = [sample.id for sample in catalog.train if sample.id not in found]
    if bare:
        what = f"column {groups.column!r}" if groups.column else f"pattern {groups.pattern!r}"
        raise InputError(
            f"{catalog.root}: groups: {len(bare)} training images have no group by the {what}: {some(bare)}; "
            f"correct it in {FILE_NAME}"
        )
    return replace(catalog, train=[replace(one, group=found[one.id]) for one in catalog.train])


def _nothing_found(tree: Tree) -> InputError:
    root = tree.root
    images = [path for folder in tree.folders for path in tree.files(folder, suffixes=IMAGE_SUFFIXES)]
    if not tree.folders:
        return InputError(
            f"{root}: the folder is empty; expected images and masks, or a competition's download"
        )
    if images:
        return InputError(
            f"{root}: {len(images)} images (for example {images[0]!r}) but no masks: expected a folder 'masks' beside "
            "the images with the same file names, or a train.csv with run-lengths"
        )
    return InputError(
        f"{root}: no images ({', '.join(IMAGE_SUFFIXES)}) in {len(tree.folders)} folders; "
        f"known layouts: {', '.join(LAYOUTS)}"
    )


def _check_task(wanted: Task | None, catalog: Catalog, root: Path) -> None:
    """Refuse a task that contradicts the labels of the data.

    Raises:
        InputError: Several labels and another task, or one and the task of several.
    """
    if catalog.labels and wanted not in (None, "multilabel"):
        raise InputError(
            f"{root}: --task {wanted}: the masks are of {len(catalog.labels)} labels that may overlap "
            f"({some(catalog.labels, most=8)}); expected multilabel, or the rows or masks of one label alone"
        )
    if wanted == "multilabel" and not catalog.labels:
        raise InputError(
            f"{root}: --task multilabel: there is one mask an image; expected run-lengths with a column of several "
            "classes (ClassId), or a folder of masks for each label (masks/LABEL/ID.png)"
        )
