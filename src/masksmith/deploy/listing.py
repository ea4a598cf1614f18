"""What is to be segmented: files, folders, archives, patterns of names; an id for each image."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.decode.reader import STACKS, ImageReader, ending
from masksmith.data.tree import Tree, archive_suffix


@dataclass(frozen=True)
class Item:
    """A file to be segmented; it may hold several images."""

    id: str
    """Its path within the folder that was named, without its ending."""
    path: str
    """In the tree."""
    reader: ImageReader
    version: str
    """Changes when the file does."""


def list_items(inputs: Sequence[str | Path]) -> list[Item]:
    """Return the files of images in files, folders (with sub-folders), archives and patterns, sorted by id.

    Raises:
        InputError: One is not there, or there is no image in any.
    """
    found: dict[str, Item] = {}
    for given in inputs:
        for item in _items_of(given):
            name = item.id
            if name in found and found[name].path != item.path:
                name = item.path  # a.png and a.jpg
            found[name] = Item(name, item.path, item.reader, item.version)
    if not found:
        raise InputError(
            f"{', '.join(map(str, inputs))}: no images; expected files that end in "
            f"{', '.join(sorted({*IMAGE_SUFFIXES, *STACKS}))}"
        )
    return [found[name] for name in sorted(found)]


def _items_of(given: str | Path) -> Iterator[Item]:
    path = Path(given)
    if path.is_dir():
        yield from _in_tree(Tree(path))
    elif path.is_file():
        suffix = archive_suffix(path.name)
        inside = "" if suffix is None else f"{path.name[: -len(suffix)]}/"
        yield from _in_tree(Tree(path.parent, only=path), named=suffix is None, inside=inside)
    elif matches := sorted(glob.glob(str(given), recursive=True)):  # noqa: PTH207  (it may begin anywhere)
        for match in matches:
            if Path(match).is_file():
                yield from _in_tree(Tree(Path(match).parent, only=Path(match)))
    else:
        raise InputError(
            f"{given}: no such file or folder; expected images, a folder of images or an archive"
        )


def _in_tree(tree: Tree, *, named: bool = False, inside: str = "") -> Iterator[Item]:
    reader = ImageReader(tree)
    for folder in tree.folders:
        for path in tree.files(folder):
            kind = ending(path)
            if named or kind in IMAGE_SUFFIXES or kind in STACKS:
                place = PurePosixPath(path)
                name = str(place.with_name(place.name[: len(place.name) - len(kind)] or place.name))
                yield Item(name.removeprefix(inside), path, reader, tree.version(path))
