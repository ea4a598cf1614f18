"""Pascal VOC: JPEGImages, SegmentationClass and ImageSets; also what CVAT and labelme2voc export in this form.

Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/htmldoc/devkit_doc.html
"""

from dataclasses import replace
from pathlib import PurePosixPath

from masksmith.data.catalog import AskedTarget, Catalog
from masksmith.data.colour_tables import find_colour_table
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.layouts.file_names import File, file_of
from masksmith.data.layouts.paired_folders import catalog_of
from masksmith.data.layouts.pairs import Pairing
from masksmith.data.tree import Tree

_CLASSES = [
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip
_VOID = 255
_IGNORED = "__ignore__"


def voc(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """JPEGImages/ID.jpg, SegmentationClass/ID.png, lists of ids in ImageSets/Segmentation; most images have no mask."""
    home = next((one for one in tree.folders if PurePosixPath(one).name == "SegmentationClass"), None)
    if home is None:
        return None
    root = PurePosixPath(home).parent
    images = _by_stem(tree, str(root / "JPEGImages"))
    masks = _by_stem(tree, home)
    if not images.keys() & masks.keys():
        return None
    lists = {
        split: _listed(tree, f"{root / 'ImageSets' / 'Segmentation' / split}.txt")
        for split in ("val", "test")
    }
    images = {
        name: replace(file, split=_split(name, lists, masked=name in masks)) for name, file in images.items()
    }
    found = Pairing(
        images,
        {name: file for name, file in masks.items() if name in images},
        [file for name, file in masks.items() if name not in images],
        "JPEGImages/ and SegmentationClass/, equal names",
    )
    catalog = catalog_of(tree, asked, "voc", found, known=_known(tree, root), bare_is_left_out=True)
    objects = tree.files(str(root / "SegmentationObject"))
    if not objects:
        return catalog
    line = (
        f"{len(objects)} files in SegmentationObject/: SegmentationClass/ has the classes of the same images"
    )
    return replace(catalog, left_out=[*catalog.left_out, line])


def _by_stem(tree: Tree, folder: str) -> dict[str, File]:
    files = [replace(file_of(path), split="") for path in tree.files(folder, suffixes=IMAGE_SUFFIXES)]
    return {file.stem: file for file in files}


def _listed(tree: Tree, path: str) -> set[str]:
    if path not in tree:
        return set()
    lines = tree.read(path).decode("utf-8", "replace").splitlines()
    return {line.split()[0] for line in lines if line.split()}


def _split(name: str, lists: dict[str, set[str]], *, masked: bool) -> str:
    if name in lists["test"] and not masked:
        return "test"
    return "val" if name in lists["val"] else ""


def _known(tree: Tree, root: PurePosixPath) -> AskedTarget:
    colours, _ = find_colour_table(tree)
    if colours:
        return AskedTarget(colours=colours)
    names = f"{root / 'class_names.txt'}"
    if names in tree:
        lines = tree.read(names).decode("utf-8", "replace").splitlines()
        classes = [line.strip() for line in lines if line.strip() not in ("", _IGNORED)]
        return AskedTarget(ignore=[_VOID], names=dict(enumerate(classes)))
    is_contest = any(part.upper().startswith("VOC20") for part in (*root.parts, tree.root.name))
    return AskedTarget(ignore=[_VOID], names=dict(enumerate(_CLASSES)) if is_contest else {})
