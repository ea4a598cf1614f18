"""A folder of images and a folder of masks with the same file names."""

from pathlib import PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.catalog import Catalog, SubmissionFormat
from masksmith.data.layouts.folders import (
    TRAIN_FOLDERS,
    find_test_images,
    images_of,
    make_samples,
    masks_of,
    some_ids,
    stray_masks,
)
from masksmith.data.side_tables import collect_facts, read_tables
from masksmith.data.tree import Tree


def paired_folders(tree: Tree, dialect: str | None = None) -> Catalog | None:
    """A folder of images and a folder of masks with the same file names; ``test/`` and tables by id are optional."""
    for folder in (*TRAIN_FOLDERS, *_nested_image_folders(tree)):
        images = images_of(tree, folder)
        masks = masks_of(tree, folder) if images else {}
        if not masks:
            continue
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
            train=make_samples("train", images, facts, masks=masks),
            test=make_samples("test", test, facts),
            submission=SubmissionFormat.assumed(test, dialect),
            notes=stray_masks(masks, images) + [str(error) for error in errors.values()] + facts.notes,
        )
    return None


def _nested_image_folders(tree: Tree) -> list[str]:
    """Return deeper folders of images: those of a training set first, those of a test or validation set left out."""
    found = [
        PurePosixPath(folder) for folder in tree.folders if PurePosixPath(folder).name in ("images", "imgs")
    ]
    kept = [path for path in found if not {"test", "val", "valid", "validation"} & set(path.parts)]
    return [str(path) for path in sorted(kept, key=lambda path: ("train" not in path.parts, path))]
