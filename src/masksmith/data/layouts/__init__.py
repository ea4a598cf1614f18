"""Which layout is this? One file a layout, and the table of them.

A layout is a function from a Tree and the run-length dialect that was asked for (or None) to a Catalog, or to None
where the folder is not of its kind. It is recognised by what its files hold, not by what they are called. To add one,
write the function in a file of its own and a line in LAYOUTS (see CONTRIBUTING).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.findings import some
from masksmith.data.layouts.kaggle_rle import kaggle_rle
from masksmith.data.layouts.object_folders import object_folders
from masksmith.data.layouts.paired_folders import paired_folders
from masksmith.data.rle import DIALECTS
from masksmith.data.target import TASKS, Task
from masksmith.data.tree import Tree

LAYOUTS: dict[str, Callable[[Tree, str | None], Catalog | None]] = {
    "object_folders": object_folders,
    "kaggle_rle": kaggle_rle,
    "paired_folders": paired_folders,
}


def read_catalog(
    root: Path, *, dialect: str | None = None, task: str | None = None, ignore: Sequence[int] = ()
) -> Catalog:
    """Recognise the layout of a data folder and list what is in it; no image is decoded, and few masks.

    Args:
        root: The data folder.
        dialect: Of the run-lengths, a key of DIALECTS; None infers it.
        task: What the masks mean; None lets their values decide.
        ignore: Values of mask files that are not judged, besides those that the layout knows.

    Raises:
        InputError: The folder is empty, has no masks or no known layout, its tables contradict its images, or the
            dialect contradicts its tables.
    """
    if dialect is not None:
        look_up(DIALECTS, dialect, where="--dialect")
    wanted = None if task is None else look_up({one: one for one in TASKS}, task, where="--task")
    tree = Tree(root)
    for layout in LAYOUTS.values():
        catalog = layout(tree, dialect)
        if catalog is not None:
            known = catalog.asked
            _check_task(wanted, catalog, root)
            asked = replace(known, task=wanted or known.task, ignore=sorted({*known.ignore, *ignore}))
            return replace(catalog, asked=asked)
    images = [path for folder in tree.folders for path in tree.files(folder, suffixes=IMAGE_SUFFIXES)]
    if not tree.folders:
        raise InputError(
            f"{root}: the folder is empty; expected images and masks, or a competition's download"
        )
    if images:
        raise InputError(
            f"{root}: {len(images)} images (for example {images[0]!r}) but no masks: expected a folder 'masks' beside "
            "the images with the same file names, or a train.csv with run-lengths"
        )
    raise InputError(
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
