"""Images in folders of folders, found by the names that a table has for them.

``dicom-images-train/STUDY/SERIES/UID.dcm`` is named by the file, ``train/case1/case1_day2/scans/slice_0001_266.png`` by
a folder and the beginning of the file's name: ``case1_day2_slice_0001``.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.run_tables import ID_FORMS, before_class, without_ending
from masksmith.data.tree import Tree

_MASK_WORDS = ("mask", "label", "annot", "groundtruth", "segmentation")
_DEPTH = 6
_TOKENS = 6

Key = Callable[[PurePosixPath], str]
"""What names an image, of its path."""


@dataclass(frozen=True)
class NamedImages:
    """Images by the ids that a table has for them."""

    images: dict[str, str]
    """Id -> path, also of images in the same folders that the table does not name."""
    key: Key
    hits: int
    """How many of them the table names."""
    by_folder: bool
    """Whether an id holds the name of a folder and of a file."""

    @property
    def groups(self) -> dict[str, str]:
        """Id -> the uppermost folder in which they differ, where ids hold the names of folders."""
        if not self.by_folder:
            return {}
        parts = [PurePosixPath(path).parent.parts for path in self.images.values()]
        same = next((at for at, names in enumerate(zip(*parts, strict=False)) if len(set(names)) > 1), 0)
        found = {name: PurePosixPath(path).parent.parts[same:][:1] for name, path in self.images.items()}
        return {name: part[0] for name, part in found.items() if part}


def _words(path: PurePosixPath) -> set[str]:
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", str(path))}


def has_mask_word(path: PurePosixPath) -> bool:
    """Whether a part of a path is named as masks are."""
    return any(
        word.startswith(_MASK_WORDS) or word.endswith("annot") or word == "gt" for word in _words(path)
    )


def image_pools(tree: Tree) -> tuple[list[str], list[str]]:
    """Return the paths of all images at any depth: of no test folder, and of test folders; masks are in neither."""
    train: list[str] = []
    test: list[str] = []
    for folder in tree.folders:
        if has_mask_word(PurePosixPath(folder)):
            continue
        (test if "test" in _words(PurePosixPath(folder)) else train).extend(
            tree.files(folder, suffixes=IMAGE_SUFFIXES)
        )
    return train, test


def name_images(paths: Sequence[str], columns: Sequence[Sequence[str]]) -> NamedImages | None:
    """Return the images that cells name, and those beside them; None where they name none.

    Args:
        paths: Of images.
        columns: The cells of each column that may hold ids.
    """
    spelled = [
        {form(cell) for cell in set(cells)}
        for cells in columns
        for form in (*ID_FORMS, without_ending, lambda cell: without_ending(before_class(cell)))
    ]
    pure = [PurePosixPath(path) for path in paths]
    best: NamedImages | None = None
    for key, by_folder in _keys(pure):
        if best and (by_folder > best.by_folder or best.hits == len(best.images)):
            break
        found = _by_key(pure, key)
        named: set[str] = max((found.keys() & names for names in spelled), key=len, default=set())
        if named and (best is None or len(named) > best.hits):
            tops = {_top(found[name]) for name in named}
            beside = {name: path for name, path in found.items() if _top(path) in tops}
            best = NamedImages(beside, key, len(named), by_folder)
    return best


def _top(path: str) -> str:
    return PurePosixPath(path).parts[0] if "/" in path else ""


def _by_key(paths: Sequence[PurePosixPath], key: Key) -> dict[str, str]:
    """Return key -> path, without those that are not unique."""
    names = [key(path) for path in paths]
    counts = Counter(names)
    return {name: str(path) for name, path in zip(names, paths, strict=True) if name and counts[name] == 1}


def _keys(paths: Sequence[PurePosixPath]) -> Iterator[tuple[Key, bool]]:
    """Yield ways in which an image may be named, and whether folder and file make the name."""
    depth = min(_DEPTH, max((len(path.parts) for path in paths), default=0))
    tokens = min(_TOKENS, max((path.stem.count("_") + 1 for path in paths), default=0))
    yield lambda path: path.stem, False
    for levels in range(2, depth + 1):
        yield _tail(levels), False
    for level in range(1, depth):
        for count in (None, *range(1, tokens)):
            for whole in (False, True):
                yield _joined(level, count, whole), True


def _tail(levels: int) -> Key:
    """Name by the last parts of the path: folder/file."""
    return lambda path: (
        str(PurePosixPath(*path.parts[-levels:]).with_suffix("")) if len(path.parts) >= levels else ""
    )


def _joined(level: int, count: int | None, whole: bool) -> Key:
    """Name by a folder ``level`` above the file, or all from it on, and the first words of the file's name."""

    def key(path: PurePosixPath) -> str:
        folders = path.parts[-1 - level : -1]
        if len(folders) < level:
            return ""
        words = path.stem.split("_")[:count]
        return "_".join([*(folders if whole else folders[:1]), *words])

    return key
