"""The image that an annotation file means: it may have been written on another computer, in another folder."""

import re
from functools import cached_property
from pathlib import PurePosixPath
from posixpath import normpath

from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.tree import Tree

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
_MASK_FOLDERS = {
    *("mask", "masks", "label", "labels", "annotation", "annotations", "annots", "gt", "groundtruth"),
    *("ground_truth", "segmentationclass", "segmentationobject"),
}


def split_of(name: str) -> str | None:
    """Return "train", "val" or "test" if a name has such a word (instances_val2017), None without or with several."""
    words = re.findall("[a-z]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name).lower())
    found = {_SPLITS[word] for word in words if word in _SPLITS}
    return found.pop() if len(found) == 1 else None


def split_of_folders(path: str) -> str | None:
    """Return the split of the deepest folder of a path that names one."""
    folders = reversed(PurePosixPath(path).parts[:-1])
    return next(filter(None, map(split_of, folders)), None)


class ImageFinder:
    """Finds the images of a tree by what an annotation file calls them."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    @cached_property
    def paths(self) -> list[str]:
        """Every image of the tree."""
        return self._tree.every(*IMAGE_SUFFIXES)

    @cached_property
    def _all(self) -> set[str]:
        return set(self.paths)

    @cached_property
    def _by_stem(self) -> dict[str, list[PurePosixPath]]:
        found: dict[str, list[PurePosixPath]] = {}
        for path in map(PurePosixPath, self.paths):
            found.setdefault(path.stem.lower(), []).append(path)
        return found

    def plain(self) -> list[str]:
        """Return the images in folders that are not called as masks are."""
        return [path for path in self.paths if not _masklike(PurePosixPath(path))]

    def find(self, name: str, *, near: str, split: str | None = None) -> list[str]:
        """Return the path of an image: [] where there is none, several where they fit equally well.

        Backslashes, drives, folders of another computer, other endings and capitals are looked past. Of several files
        the one counts whose folders agree most with the name, then the ending, that of the split, the nearest.

        Args:
            name: As the annotation file has it.
            near: Path of the annotation file.
            split: "train", "val", "test" or None: of the annotation file.
        """
        parts = PurePosixPath(name.replace("\\", "/").strip()).parts
        beside = normpath(PurePosixPath(near).parent.joinpath(*parts)) if parts else ""
        if beside in self._all:
            return [beside]
        if not parts:
            return []
        wanted = PurePosixPath(*parts)
        pool = self._by_stem.get(wanted.stem.lower(), []) + self._by_stem.get(wanted.name.lower(), [])
        if not pool:
            return []
        home = PurePosixPath(near).parent.parts
        ranked = [(_rank(path, wanted, home, split), str(path)) for path in dict.fromkeys(pool)]
        best = max(rank for rank, _ in ranked)
        return sorted(path for rank, path in ranked if rank == best)


def _masklike(path: PurePosixPath) -> bool:
    return any(part.lower() in _MASK_FOLDERS for part in path.parts[:-1])


def _rank(
    path: PurePosixPath, wanted: PurePosixPath, home: tuple[str, ...], split: str | None
) -> tuple[int, ...]:
    own, asked = ([part.lower() for part in one.parts[-2::-1]] for one in (path, wanted))
    return (
        _alike(own, asked),
        int(path.name == wanted.name),
        int(path.name.lower() == wanted.name.lower()),
        int(not _masklike(path)),
        int(split is not None and split_of_folders(str(path)) == split),
        _alike([part.lower() for part in path.parts[:-1]], [part.lower() for part in home]),
    )


def _alike(first: list[str], second: list[str]) -> int:
    """Return how many parts are equal from the first on."""
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    return count
