"""A data folder as a person sees it: ``ms.read``, and what ``masksmith layout`` prints."""

import tempfile
import weakref
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from masksmith.core.arrays import AnyMask, Image
from masksmith.core.config import write_yaml
from masksmith.core.errors import InputError
from masksmith.core.files import write_text
from masksmith.data.catalog import Catalog, Sample
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.decode.reader import ending
from masksmith.data.findings import Finding, some
from masksmith.data.groups import bound_groups
from masksmith.data.store import Store
from masksmith.data.tree import Tree
from masksmith.project.folder import Project
from masksmith.steps.check import check_folder


@dataclass(frozen=True)
class DataSample:
    """One image of a DataSet, decoded when it is asked for."""

    id: str
    group: str
    """Images of one group stay in one fold; an image alone is a group of its own."""
    _images: Store
    _masks: Store | None

    @property
    def image(self) -> Image:
        """Return the pixels (h, w, c), in the type of the file."""
        return self._images.checked(self.id)

    @property
    def target(self) -> AnyMask:
        """Return what is to be found.

        Binary masks and class maps (h, w) hold class indices, several labels (h, w, k) layers of 0 and 1, and 255 what
        is not judged; instances (h, w) hold the number of each object, and -1 what is not judged.

        Raises:
            InputError: It is an image of the test set, which has none.
        """
        if self._masks is None:
            raise InputError(f"image {self.id!r}: it has no mask; expected a sample of data.train")
        mask = self._masks.checked(self.id)
        return mask[..., 0] if mask.shape[2] == 1 else mask


class DataSet:
    """What masksmith reads of a data folder."""

    def __init__(self, project: Project, findings: list[Finding], facts: dict[str, Any]) -> None:
        self._project = project
        self.task = project.target.task
        """binary, multiclass, multilabel or instances."""
        self.classes = project.target.classes
        """Names of the classes: of a class map with the background first, of labels, or of the foreground alone."""
        self.layout = project.catalog.layout
        self.findings = findings
        """What `masksmith check` prints of the data."""
        self.facts = facts

    def __repr__(self) -> str:
        return (
            f"DataSet({self._project.catalog.root!r}, layout={self.layout!r}, task={self.task!r}, "
            f"{len(self.train)} train, {len(self.test)} test)"
        )

    @cached_property
    def train(self) -> list[DataSample]:
        """The images with masks."""
        cache, catalog = self._project.cache, self._project.catalog
        split = any(sample.held_out for sample in catalog.train)
        groups = bound_groups(catalog, self._project.likeness, split_is_given=split)
        return [
            DataSample(sample.id, groups[sample.id], cache.train_images, cache.train_masks)
            for sample in catalog.train
        ]

    @cached_property
    def test(self) -> list[DataSample]:
        """The images without masks, which are to be segmented."""
        images = self._project.cache.test_images
        return [DataSample(one.id, one.group or one.id, images, None) for one in self._project.catalog.test]


def read_folder(
    data: Path,
    out: Path | None,
    *,
    dialect: str | None = None,
    task: str | None = None,
    ignore: Sequence[int] = (),
    layout: str | Path | None = None,
) -> DataSet:
    """Read a data folder; without ``out`` what is decoded lies in a temporary folder as long as the result lives.

    Raises:
        InputError: As check_folder.
    """
    temporary = tempfile.TemporaryDirectory() if out is None else None
    root = Path(temporary.name) / "project" if temporary else Path(str(out))
    try:
        report = check_folder(data, root, dialect=dialect, task=task, ignore=ignore, layout=layout)
    except BaseException:
        if temporary:
            temporary.cleanup()
        raise
    read = DataSet(Project.open(root), report.findings, report.facts)
    if temporary:
        weakref.finalize(read._project.cache, temporary.cleanup)  # a sample keeps its stores, not the set
    return read


@dataclass(frozen=True)
class LayoutReport:
    """What was recognised in a data folder, and why."""

    root: str
    layout: str
    why: list[str]
    left_out: list[str]
    task: str
    classes: list[str]
    train: int
    held_out: int
    test: int
    groups: int
    """Groups of more than one training image."""
    sizes: dict[str, int]
    """HEIGHTxWIDTH -> training images."""
    bands: int
    dtype: str
    submission: str

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and lists."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"{self.root}: layout {self.layout}"]
        lines += [f"  because {reason}" for reason in self.why]
        lines += [f"  left out: {what}" for what in self.left_out]
        classes = (
            f": {len(self.classes)} classes ({some(self.classes, most=20)})" if len(self.classes) > 1 else ""
        )
        lines += [
            f"task: {self.task}{classes}",
            f"training images: {self.train}"
            + (f", {self.held_out} of them held out by the data set" if self.held_out else ""),
            f"test images: {self.test}",
            f"groups of several images: {self.groups}",
            f"sizes: {some([f'{size} ({count})' for size, count in self.sizes.items()])}",
            f"bands: {self.bands} of {self.dtype}",
            f"submission: {self.submission}",
        ]
        return "\n".join(lines)


def describe_layout(data: DataSet) -> LayoutReport:
    """Return what was recognised in a data folder."""
    project = data._project
    catalog, cache = project.catalog, project.cache
    sizes = Counter(f"{h}x{w}" for h, w in map(cache.train_images.shape, cache.train_images))
    groups = Counter(sample.group for sample in data.train)
    return LayoutReport(
        root=catalog.root,
        layout=catalog.layout,
        why=catalog.why,
        left_out=catalog.left_out + unread_files(catalog),
        task=data.task,
        classes=list(data.classes),
        train=len(catalog.train),
        held_out=sum(sample.held_out for sample in catalog.train),
        test=len(catalog.test),
        groups=sum(count > 1 for count in groups.values()),
        sizes=dict(sizes.most_common()),
        bands=cache.channels,
        dtype=str(np.dtype(cache.train_images.dtype)),
        submission=f"{catalog.submission.source} ({catalog.submission.dialect})",
    )


def unread_files(catalog: Catalog) -> list[str]:
    """Return which files of images of a data folder belong to no sample, by folder and ending."""
    used = {path for sample in [*catalog.train, *catalog.test] for path in _paths(sample)}
    rest: dict[tuple[str, str], list[str]] = {}
    tree = Tree(Path(catalog.root))
    for folder in tree.folders:
        for path in tree.files(folder):
            if path not in used and ending(path) in IMAGE_SUFFIXES:
                rest.setdefault((folder or ".", ending(path)), []).append(path)
    return [
        f"{len(paths)} {kind} files in {folder}/ that belong to no image or mask, for example {paths[0]}"
        for (folder, kind), paths in rest.items()
    ]


def _paths(sample: Sample) -> list[str]:
    paths = [
        sample.image,
        sample.mask,
        *(sample.further_masks or ()),
        *(sample.objects or ()),
        *(sample.label_masks or {}).values(),
    ]
    paths += sample.bands or ()
    return [part for path in paths if path for part in (path, path.rpartition("#")[0])]


def write_description(data: DataSet, path: Path) -> None:
    """Write what was found as ``dataset.yaml``, to be edited.

    Raises:
        InputError: A file is there.
    """
    if path.exists():
        raise InputError(f"{path}: it is there; remove it, or name another file")
    project = data._project
    target, catalog = project.target, project.catalog
    said: dict[str, Any] = {"layout": catalog.layout, "task": target.task}
    if target.exclusive and not catalog.asked.colours:
        said["classes"] = dict(zip(target.values, target.classes, strict=True))
    if catalog.asked.colours:
        said["colours"] = {name: list(colour) for name, colour in catalog.asked.colours.items()}
    if target.ignore:
        said["ignore"] = [value for value in target.ignore if value >= 0]
    if any(sample.rle is not None or sample.labels for sample in catalog.train):
        said["dialect"] = catalog.submission.dialect
    write_text(path, write_yaml(said))
