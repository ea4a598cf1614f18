"""What layouts share: folders of images and masks, found by their usual names, and samples made of them."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.catalog import Sample
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.dialect import non_empty
from masksmith.data.ids import check_id
from masksmith.data.layouts.file_names import find_affixes
from masksmith.data.side_tables import Facts
from masksmith.data.tree import Tree

TRAIN_FOLDERS = (
    "train/images",
    "train/image",
    "train/imgs",
    "train_images",
    "train",
    "train_v2",
    "images",
    "imgs",
    "image",
)
TEST_FOLDERS = ("test/images", "test/image", "test/imgs", "test_images", "test", "test_v2")


def images_of(tree: Tree, folder: str) -> dict[str, str]:
    """Return id -> path of the images in a folder; an id is a file name without its ending.

    Raises:
        InputError: Two files have the same id.
    """
    found: dict[str, str] = {}
    for path in tree.files(folder, suffixes=IMAGE_SUFFIXES):
        stem = PurePosixPath(path).stem
        if stem in found:
            raise InputError(
                f"{tree.root}: {found[stem]!r} and {path!r} both have the id {stem!r}; keep one file an id"
            )
        found[stem] = path
    return found


def first_images(tree: Tree, folders: Sequence[str]) -> tuple[str, dict[str, str]]:
    """Return the first of the folders that holds images, and these; ("", {}) where none does."""
    found = ((folder, images_of(tree, folder)) for folder in folders)
    return next(((folder, images) for folder, images in found if images), ("", {}))


def masks_of(tree: Tree, folder: str) -> dict[str, str]:
    """Return id -> path of the mask files that belong to the images in ``folder``; {} where there are none.

    The names of masks may have something before or behind the ids (``ID_mask.gif``); stray ones keep their names.
    """
    images = list(images_of(tree, folder))
    found = first_images(tree, _mask_folders(folder))[1]
    if not found:
        return _masks_beside(tree, folder)
    affixes, _ = find_affixes({("", ()): images}, {("", ()): list(found)})
    named = {stem: name for name in images if (stem := affixes.mask_of(name)) in found}
    return {named.get(stem, stem): path for stem, path in found.items()}


def _masks_beside(tree: Tree, folder: str) -> dict[str, str]:
    """Return id -> path of the masks that lie in the folder of the images, beside each of them (``ID_mask.tif``)."""
    every = images_of(tree, folder)
    place = ("", ())
    affixes, count = find_affixes({place: list(every)}, {place: list(every)}, same=True)
    if affixes.image != ("", "") or 2 * count < len(every):
        return {}
    return {name: every[mask] for name in every if (mask := affixes.mask_of(name)) in every}


def _mask_folders(folder: str) -> list[str]:
    """Return the usual names of a folder of masks beside a folder of images."""
    path = PurePosixPath(folder)
    beside = ("masks", "mask", "labels", "label", "annotations", "gt")
    attached = (
        f"{path.name}_masks",
        f"{path.name}_mask",
        f"{path.name}masks",
        f"{path.name}annot",
        f"{path.name}_labels",
        path.name.replace("image", "mask"),
    )
    names = [str(path.parent / name) for name in (*attached, *beside)]
    return [name for name in names if name != folder]


def find_test_images(tree: Tree) -> dict[str, str]:
    """Return id -> path of the test images.

    Raises:
        InputError: There is a test folder or archive without images.
    """
    _, images = first_images(tree, TEST_FOLDERS)
    if not images and (tree.has("test") or tree.has("test_images")):
        raise InputError(f"{tree.root}: the test set is empty: expected images in test.zip or test/images/")
    return images


def stray_masks(masks: Iterable[str], images: Iterable[str]) -> list[str]:
    """Return a note on the mask files without an image, if there are any."""
    stray = set(masks) - set(images)
    return [f"{len(stray)} mask files have no image and are left out: {some_ids(stray)}"] if stray else []


def some_ids(names: Iterable[str]) -> str:
    """Return the first three names, sorted, and how many more there are."""
    listed = sorted(names)
    return ", ".join(repr(name) for name in listed[:3]) + (
        f" and {len(listed) - 3} more" if len(listed) > 3 else ""
    )


def make_samples(
    split: str,
    images: Mapping[str, str],
    facts: Facts,
    *,
    masks: Mapping[str, str] | None = None,
    rows: Mapping[str, list[str]] | None = None,
    held_out: Collection[str] = (),
    objects: Mapping[str, list[str]] | None = None,
    labels: Mapping[str, dict[str, list[str]]] | None = None,
    label_masks: Mapping[str, dict[str, str]] | None = None,
) -> list[Sample]:
    """Return the samples of a split, sorted by id.

    Args:
        split: "train" or "test".
        images: Id -> path.
        facts: What side tables say.
        masks: Id -> path of its mask file.
        rows: Id -> its run-length texts.
        held_out: Ids that the data set itself holds out.
        objects: Id -> paths of its object files.
        labels: Id -> label -> its run-length texts.
        label_masks: Id -> label -> path of its mask file.

    Raises:
        InputError: An id that cannot be a file name.
    """
    masks, rows, objects = masks or {}, rows or {}, objects or {}
    labels, label_masks = labels or {}, label_masks or {}
    return [
        Sample(
            check_id(name, where=repr(path)),
            path,
            masks.get(name),
            non_empty(rows[name]) if name in rows else None,
            facts.values.get((split, name), {}),
            facts.texts.get((split, name), {}),
            name in held_out,
            objects.get(name),
            labels.get(name),
            label_masks.get(name),
        )
        for name, path in sorted(images.items())
    ]
