"""A folder of images and a folder of masks with the same file names."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.catalog import AskedTarget, Catalog, SubmissionFormat
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.ids import check_name
from masksmith.data.layouts.folders import (
    TRAIN_FOLDERS,
    find_test_images,
    images_of,
    label_masks_of,
    make_samples,
    masks_of,
    some_ids,
    stray_masks,
)
from masksmith.data.side_tables import collect_facts, read_tables
from masksmith.data.tree import Tree

VALIDATION = ("val", "valid", "validation")
"""Names of a folder that the data set itself holds out of training."""


def paired_folders(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """A folder of images and a folder of masks with the same file names; ``test/`` and tables by id are optional.

    The folder of masks may hold a folder for each of several labels (``masks/LABEL/ID.png``).
    """
    for folder in (*TRAIN_FOLDERS, *_nested_image_folders(tree)):
        images = images_of(tree, folder)
        masks = masks_of(tree, folder) if images else {}
        labels = label_masks_of(tree, folder) if images and not masks else {}
        if labels:
            return _labelled(tree, images, labels, asked.dialect)
        if not masks:
            continue
        held_out, held_out_masks = _held_out(tree, folder, images)
        images, masks = images | held_out, masks | held_out_masks
        bare = set(images) - set(masks)
        if bare:
            raise InputError(
                f"{tree.root}: no mask for the image {some_ids(bare)} of {folder}/; add masks or take the images out"
            )
        test = find_test_images(tree)
        tables, errors = read_tables(tree)
        facts = collect_facts(tables.values(), {"train": images, "test": test})
        return Catalog(
            root=str(tree.root.resolve()),
            layout="paired_folders",
            content_hash=tree.content_hash,
            train=make_samples("train", images, facts, masks=masks, held_out=held_out),
            test=make_samples("test", test, facts),
            submission=SubmissionFormat.assumed(test, asked.dialect),
            notes=stray_masks(masks, images) + [str(error) for error in errors.values()] + facts.notes,
            asked=_CAMVID if tree.has("trainannot") and tree.has("valannot") else AskedTarget(),
        )
    return None


def _labelled(
    tree: Tree, images: dict[str, str], labels: Mapping[str, Mapping[str, str]], dialect: str | None
) -> Catalog:
    """Return the catalogue of a folder of masks for each label; an image without a file of a label has none of it.

    Raises:
        InputError: An image has no mask at all.
    """
    files = {name: {label: own[name] for label, own in labels.items() if name in own} for name in images}
    bare = [name for name, own in files.items() if not own]
    if bare:
        raise InputError(
            f"{tree.root}: no mask for the image {some_ids(bare)} in any folder of a label "
            f"({', '.join(labels)}); add an empty mask or take the images out"
        )
    test = find_test_images(tree)
    tables, errors = read_tables(tree)
    facts = collect_facts(tables.values(), {"train": images, "test": test})
    stray = {name: path for own in labels.values() for name, path in own.items()}
    return Catalog(
        root=str(tree.root.resolve()),
        layout="paired_folders",
        content_hash=tree.content_hash,
        train=make_samples("train", images, facts, label_masks=files),
        test=make_samples("test", test, facts),
        submission=SubmissionFormat.assumed(test, dialect).with_labels(list(labels)),
        notes=stray_masks(stray, images) + [str(error) for error in errors.values()] + facts.notes,
        labels=[check_name(label, where=f"{tree.root} (labels)") for label in labels],
    )


_CAMVID_CLASSES = "sky building pole road pavement tree sign fence car pedestrian cyclist void"
_CAMVID = AskedTarget(ignore=[11], names=dict(enumerate(_CAMVID_CLASSES.split())))
"""CamVid with the eleven classes of SegNet (arXiv 1511.00561), which calls its folders so; 11 is not judged."""


def _held_out(tree: Tree, folder: str, images: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the images and masks of the validation set beside a folder ``train``, by id; none where there is none.

    Raises:
        InputError: An id is in both.
    """
    parts = PurePosixPath(folder).parts
    if "train" not in parts:
        return {}, {}
    for name in VALIDATION:
        other = str(PurePosixPath(*(name if part == "train" else part for part in parts)))
        found = images_of(tree, other)
        masks = masks_of(tree, other) if found else {}
        if masks:
            if both := set(found) & set(images):
                raise InputError(
                    f"{tree.root}: {folder}/ and {other}/ both have the image {some_ids(both)}; rename them in one of "
                    "the two, with their masks"
                )
            return found, masks
    return {}, {}


def _nested_image_folders(tree: Tree) -> list[str]:
    """Return deeper folders of images: those of a training set first, those of a test or validation set left out."""
    found = [
        PurePosixPath(folder) for folder in tree.folders if PurePosixPath(folder).name in ("images", "imgs")
    ]
    kept = [path for path in found if not {"test", *VALIDATION} & set(path.parts)]
    return [str(path) for path in sorted(kept, key=lambda path: ("train" not in path.parts, path))]
