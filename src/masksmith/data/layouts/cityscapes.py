"""Cityscapes: leftImg8bit/SPLIT/CITY/NAME_leftImg8bit.png with gtFine/SPLIT/CITY/NAME_gtFine_labelIds.png.

Classes and what is not judged: https://github.com/mcordts/cityscapesScripts (helpers/labels.py, a table of facts).
"""

import re
from dataclasses import replace

from masksmith.data.catalog import AskedTarget, Catalog
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.layouts.file_names import File, file_of
from masksmith.data.layouts.paired_folders import catalog_of, image_files
from masksmith.data.layouts.pairs import Pairing
from masksmith.data.tree import Tree

_IMAGE = re.compile(
    r"(?:.*/)?leftImg8bit/(?P<split>train|val|test)/(?P<city>[^/]+)/(?P<name>[^/]+)_leftImg8bit\.\w+"
)
_MASK = re.compile(
    r"(?:.*/)?gtFine/(?P<split>train|val|test)/(?P<city>[^/]+)/(?P<name>[^/]+)_gtFine_(?P<kind>labelIds|labelTrainIds)\.png"
)
_CLASSES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
_LABEL_IDS = AskedTarget(
    ignore=[value for value in range(34) if value not in _CLASSES] + [255], names=_CLASSES
)
_TRAIN_IDS = AskedTarget(ignore=[255], names=dict(enumerate(_CLASSES.values())))

Key = tuple[str, str, str]


def cityscapes(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """Cityscapes with the 19 classes that count; cities are groups, val is held out, test has no true masks."""
    paths = image_files(tree)
    images = {_key(match): path for path in paths if (match := _IMAGE.fullmatch(path))}
    masks: dict[str, dict[Key, str]] = {"labelIds": {}, "labelTrainIds": {}}
    for path in paths:
        if match := _MASK.fullmatch(path):
            masks[match["kind"]][_key(match)] = path
    kind = max(masks, key=lambda one: (len(images.keys() & masks[one].keys()), one))
    if not images.keys() & masks[kind].keys():
        return None
    ids = {key: f"{key[1]}/{file_of(path).stem}" for key, path in images.items()}
    found = Pairing(
        {ids[key]: _file(key, path) for key, path in images.items()},
        {ids[key]: _file(key, path) for key, path in masks[kind].items() if key in images},
        [_file(key, path) for key, path in masks[kind].items() if key not in images],
        f"leftImg8bit/ and gtFine/ ({kind})",
    )
    known = _TRAIN_IDS if kind == "labelTrainIds" else _LABEL_IDS
    groups = {ids[key]: key[1] for key in images}
    catalog = catalog_of(tree, asked, "cityscapes", found, known=known, groups=groups)
    line = f"other files in gtFine/ (polygons, colours, instances): {kind} have the classes"
    return replace(catalog, left_out=[*catalog.left_out, line])


def _key(match: re.Match[str]) -> Key:
    return match["split"], match["city"], match["name"]


def _file(key: Key, path: str) -> File:
    return replace(file_of(path), split=key[0])
