"""Which layout is this? One file a layout, and the table of them.

A layout is a function from a Tree and what somebody said of the data (a Description) to a Catalog, or to None where the
folder is not of its kind. It is recognised by what its files hold, not by what they are called. To add one,
write the function in a file of its own and a line in LAYOUTS (see CONTRIBUTING).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.data.catalog import AskedTarget, Catalog
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.description import FILE_NAME, Description, Groups, read_description
from masksmith.data.findings import Finding, some
from masksmith.data.layouts.band_folders import band_folders
from masksmith.data.layouts.cityscapes import cityscapes
from masksmith.data.layouts.coco import coco
from masksmith.data.layouts.cvat import cvat
from masksmith.data.layouts.described import described
from masksmith.data.layouts.dicom_series import dicom_series, group_by_patient
from masksmith.data.layouts.kaggle_rle import kaggle_rle
from masksmith.data.layouts.label_studio import label_studio
from masksmith.data.layouts.labelme import labelme
from masksmith.data.layouts.nnunet import nnunet
from masksmith.data.layouts.object_folders import object_folders
from masksmith.data.layouts.paired_folders import paired_folders
from masksmith.data.layouts.pairing import is_mask_role
from masksmith.data.layouts.path_table import path_table
from masksmith.data.layouts.supervisely import supervisely
from masksmith.data.layouts.via import via
from masksmith.data.layouts.voc import voc
from masksmith.data.layouts.volumes import volumes
from masksmith.data.layouts.yolo import yolo
from masksmith.data.rle import DIALECTS
from masksmith.data.side_tables import read_tables
from masksmith.data.split_lists import with_split_lists
from masksmith.data.target import TASKS, Task
from masksmith.data.tree import Tree

Layout = Callable[[Tree, Description], Catalog | None]

LAYOUTS: dict[str, Layout] = {
    "described": described,
    "dicom_series": dicom_series,
    "nnunet": nnunet,
    "object_folders": object_folders,
    "path_table": path_table,
    "kaggle_rle": kaggle_rle,
    "cityscapes": cityscapes,
    "voc": voc,
    "coco": coco,
    "labelme": labelme,
    "cvat": cvat,
    "label_studio": label_studio,
    "supervisely": supervisely,
    "via": via,
    "yolo": yolo,
    "band_folders": band_folders,
    "volumes": volumes,
    "paired_folders": paired_folders,
}
"""In the order in which they are tried: of several that fit, the first is taken."""
_NOT_READ = (
    ((".geojson", ".shp", ".gpkg", ".kml"), "map vectors (GeoJSON, Shapefile)"),
    ((".xml",), "annotations in XML of an unknown kind"),
    ((".json",), "annotations in JSON of an unknown kind"),
)
"""Endings of what may hold the masks that are missed, and what to call it."""
DRAWN = ("coco", "labelme", "cvat", "label_studio", "supervisely", "via", "yolo")
"""Layouts of drawn annotations: mask files come first where every image that is drawn on has one."""


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
    if said.splits is None:
        catalog = with_split_lists(tree, catalog)
    known = catalog.asked
    _check_task(said.task, catalog, root)
    asked = AskedTarget(
        said.task or known.task,
        sorted({*known.ignore, *said.ignore}),
        known.names | said.names,
        said.colours or known.colours,
        [] if said.names else known.listed,
    )
    copies = [
        f"{count} files in {folder}/: copies of those around it" for folder, count in tree.copies.items()
    ]
    left_out = catalog.left_out + closed_archives(tree) + copies
    findings = catalog.findings + [
        Finding("warning", "a copy of the data within it", line) for line in copies
    ]
    return with_groups(replace(catalog, asked=asked, left_out=left_out, findings=findings), said.groups)


def closed_archives(tree: Tree) -> list[str]:
    """Return which archives were not opened, in words."""
    paths = tree.closed
    return [f"{len(paths)} archives that are not opened: {some(paths)}; unpack them"] if paths else []


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
        found = next(filter(None, (layout(tree, said) for layout in LAYOUTS.values())), None)
        return _of_both(found, tree, said) if found and found.layout in DRAWN else found
    catalog = look_up(LAYOUTS, said.layout, where="layout")(tree, said)
    if catalog is None:
        raise InputError(
            f"{tree.root}: not of the layout {said.layout!r}; leave --layout out to have it looked for, or see "
            "docs/layouts.md for its form"
        )
    return catalog


def _of_both(drawn: Catalog, tree: Tree, said: Description) -> Catalog:
    """Return drawn annotations, or the mask files of the same images where every image has one."""
    try:
        masked = paired_folders(tree, said)
    except InputError:
        return drawn
    own = {sample.image for sample in drawn.train}
    if masked is None or not own <= {sample.image for sample in masked.train}:
        return drawn
    detail = (
        f"the images have mask files and annotations ({'; '.join(drawn.why)}); the mask files are taken, since every "
        f"image has one; layout: {drawn.layout} in {FILE_NAME}, or --layout {drawn.layout}, takes the annotations"
    )
    finding = Finding("warning", "masks and annotations", detail)
    return replace(masked, why=[*masked.why, detail], findings=[*masked.findings, finding])


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
    if closed := closed_archives(tree):
        return InputError(f"{root}: no layout is known; {closed[0]} first")
    if errors := read_tables(tree)[1]:
        return InputError(
            f"{root}: no layout is known, and tables cannot be read: {some(list(errors.values()), apart='; ')}"
        )
    images = [path for folder in tree.folders for path in tree.files(folder, suffixes=IMAGE_SUFFIXES)]
    if images and (
        found := [(what, own) for kinds, what in _NOT_READ for own in [tree.every(*kinds)] if own]
    ):
        what, own = found[0]
        return InputError(
            f"{root}: {len(images)} images (for example {images[0]!r}) but no masks that are read: {len(own)} files of "
            f"{what} (for example {own[0]!r}) may hold them; draw them as mask files of the size of the images (PNG or "
            f'TIFF), one an image, and name both in {FILE_NAME}: images: "images/{{id}}.tif", masks: "masks/{{id}}.tif"'
        )
    if not tree.folders:
        return InputError(
            f"{root}: the folder is empty; expected images and masks, or a competition's download"
        )
    masks = [path for path in images if any(map(is_mask_role, PurePosixPath(path).parts[:-1]))]
    if rest := [path for path in images if path not in set(masks)] if masks else []:
        return InputError(
            f"{root}: {len(rest)} images (for example {rest[0]!r}) and {len(masks)} files in folders that are called as"
            f" masks (for example {masks[0]!r}), but their names do not agree; expected equal names, or one word before"
            f" or behind those of all masks: rename them, or say images: and masks: in {FILE_NAME}, with {{id}}"
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
