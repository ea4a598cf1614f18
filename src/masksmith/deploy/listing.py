"""What is to be segmented: files, folders, archives, patterns of names; an id for each image."""

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path, PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.decode.dicom import is_dicom
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.decode.reader import STACKS, ImageReader, ending
from masksmith.data.tree import Tree, archive_suffix

_HEAD = 132  # bytes of a DICOM file up to the end of its mark
_FORMS = {*IMAGE_SUFFIXES, *STACKS} - {".json"}  # images within annotations are no new images


@dataclass(frozen=True)
class Item:
    """A file to be segmented; it may hold several images."""

    id: str
    """Its path within the folder that was named, without its ending; more of it where two would be equal."""
    path: str
    """In the tree."""
    reader: ImageReader
    version: str
    """Where it lies, and what changes when it does."""
    error: str = ""
    """Why it cannot be used: an archive that cannot be opened, a link to nothing."""

    @property
    def root(self) -> Path:
        """The folder that its path begins in."""
        return self.reader.tree.root.resolve()

    @property
    def place(self) -> Path:
        """Where it lies; within an archive as if that were a folder."""
        return self.root / self.path


def list_items(inputs: Sequence[str | Path], *, may_be_empty: bool = False) -> list[Item]:
    """Return the files of images in files, folders (with sub-folders), archives and patterns, sorted by id.

    Args:
        inputs: What is to be segmented.
        may_be_empty: Whether there may be no image yet.

    Raises:
        InputError: One is not there, or there is no image in any.
    """
    files: dict[Path, Item] = {}
    for given in inputs:
        for item in _items_of(given, may_be_empty=may_be_empty):
            files.setdefault(item.place, item)
    if not files and not may_be_empty:
        raise InputError(
            f"{', '.join(map(str, inputs))}: no images; expected files that end in "
            f"{', '.join(sorted(_FORMS))}"
        )
    same: dict[str, list[Item]] = {}
    for item in files.values():
        same.setdefault(item.id, []).append(item)
    found: dict[str, Item] = {}
    for items in same.values():
        for item, parent in zip(items, _told_apart([item.root for item in items]), strict=True):
            # a.png and a.jpg: the second keeps its ending; where all of it lies is nobody else's
            names = (f"{parent}{item.id}", f"{parent}{item.path}", "/".join(item.place.parts[1:]))
            name = next(name for name in map(_text, names) if name not in found)
            found[name] = replace(item, id=name)
    return [found[name] for name in sorted(found)]


def _told_apart(folders: Sequence[Path]) -> list[str]:
    """Return so much of the ends of folders that those of different ones differ; nothing where all are the same."""
    depth = 0
    while len({folder.parts[-depth:] if depth else () for folder in folders}) < len(set(folders)):
        depth += 1
    return ["".join(f"{part}/" for part in folder.parts[1:][-depth:] if depth) for folder in folders]


def _items_of(given: str | Path, *, may_be_empty: bool) -> Iterator[Item]:
    path = Path(given)
    if path.is_dir():
        yield from _in_tree(Tree(path, open_archives=False, strict=False))
        for archive in sorted(path.rglob("*")):
            if archive_suffix(archive.name) and archive.is_file():
                yield from _in_archive(path, archive)
    elif path.is_file() and (suffix := archive_suffix(path.name)):
        yield from _in_archive(path.parent, path, inside=f"{path.name[: -len(suffix)]}/")
    elif path.is_file() or path.is_symlink():
        yield from _in_tree(Tree(path.parent, only=path, strict=False), named=True)
    elif matches := sorted(glob.glob(str(given), recursive=True)):  # noqa: PTH207  (it may begin anywhere)
        parts = takewhile(lambda part: not glob.has_magic(part), path.parent.parts)
        root = Path(*parts)  # ids keep the folders that the pattern left open
        for match in map(Path, matches):
            if match.is_file() or match.is_symlink():
                found = _in_archive if archive_suffix(match.name) else _in_folder
                yield from found(root, match)
    elif not (may_be_empty and glob.has_magic(str(given))):
        raise InputError(
            f"{given}: no such file or folder; expected images, a folder of images or an archive"
        )


def _in_folder(root: Path, path: Path) -> Iterator[Item]:
    yield from _in_tree(Tree(root, only=path, strict=False))


def _in_archive(root: Path, path: Path, *, inside: str = "") -> Iterator[Item]:
    try:
        yield from _in_tree(Tree(root, only=path, strict=False), inside=inside)
    except InputError as error:  # the rest goes on
        tree = Tree(root, only=path, open_archives=False)
        yield _refused(tree, str(path.relative_to(root)), str(error))


def _refused(tree: Tree, path: str, why: str) -> Item:
    stat = (tree.root / path).lstat()
    version = f"{_text(tree.root.resolve())} {stat.st_size} {stat.st_mtime_ns}"
    return Item(_text(path), _text(path), ImageReader(tree), version, why)


def _text(path: str | Path) -> str:
    """Return a path as text that can be written: of names that are not UTF-8, the bytes."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _in_tree(tree: Tree, *, named: bool = False, inside: str = "") -> Iterator[Item]:
    reader, root = ImageReader(tree), _text(tree.root.resolve())
    for path, why in tree.refused.items():
        if named or ending(path) in _FORMS or archive_suffix(path):
            yield _refused(tree, path, why)
    for folder in tree.folders:
        for path in tree.files(folder):
            kind = ending(path)
            if not (named or kind in _FORMS):
                if not _is_unnamed_dicom(tree, path):
                    continue
                kind = ""
            place = PurePosixPath(path)
            name = str(place.with_name(place.name[: len(place.name) - len(kind)] or place.name))
            yield Item(name.removeprefix(inside), path, reader, f"{root} {tree.version(path)}")


def _is_unnamed_dicom(tree: Tree, path: str) -> bool:
    """Whether a file without an ending, or one named by a UID, is DICOM, as scanners write them."""
    place = tree.on_disk(path)
    if place is None or place.suffix.lstrip(".").strip("0123456789"):
        return False
    with place.open("rb") as file:
        return is_dicom(file.read(_HEAD))
