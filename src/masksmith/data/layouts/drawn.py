"""What layouts of drawn annotations share: the images that are drawn on, their ids and splits, and the classes."""

import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

from masksmith.core.errors import InputError
from masksmith.data.catalog import BACKGROUND, AskedTarget, Catalog, Shape, SubmissionFormat
from masksmith.data.description import Description
from masksmith.data.findings import Finding, refuse_all, some
from masksmith.data.ids import check_name
from masksmith.data.image_finder import ImageFinder, split_of_folders
from masksmith.data.layouts.folders import make_samples, some_ids
from masksmith.data.side_tables import collect_facts, read_tables
from masksmith.data.target import Task
from masksmith.data.tree import Tree

SHOWN = 20
"""How many of a kind of mistake a message names."""
_UNJUDGED = ("__ignore__", "_ignore_", "ignore")  # as in LabelMe's labels.txt
_BACKGROUNDS = ("_background_", "__background__", BACKGROUND)


@dataclass(frozen=True)
class Drawing:
    """An image, and what is drawn on it."""

    path: str
    shapes: list[Shape]
    split: str | None = None
    """"train", "val", "test", or None where the annotation file does not say it."""
    size_hw: list[int] | None = None
    """Height and width that the annotation file states."""


@dataclass
class Notes:
    """What is found on the way."""

    why: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    """Kind of shape that is no area -> how many there are."""
    short: list[str] = field(default_factory=list)
    """Polygons of fewer than three points."""

    def close(self) -> None:
        """Say what was counted."""
        if self.skipped:
            kinds = ", ".join(f"{count} {kind}" for kind, count in self.skipped.most_common())
            self.left_out.append(f"{kinds}: they have no area of pixels")
            detail = f"{kinds}: only what has an area of pixels is read (polygons, masks, ellipses)"
            self.findings.append(Finding("warning", "shapes that are no areas", detail))
        if self.short:
            detail = (
                f"{len(self.short)} have fewer than 3 points and are left out: {some(self.short, most=SHOWN)}"
            )
            self.findings.append(Finding("warning", "polygons without an area", detail))


def is_background(label: str) -> bool:
    """Whether a label names the background."""
    return label.strip().lower() in _BACKGROUNDS


def labelled(label: str) -> Shape:
    """Return a shape of a label, without its area; the names of the background and of what is not judged are known."""
    if is_background(label):
        return Shape(BACKGROUND)
    if label.strip().lower() in _UNJUDGED:
        return Shape("", unjudged=True)
    return Shape(label.strip())


def with_area(named: Shape, area: Shape, number: int | None = None) -> Shape:
    """Return a shape of the label of one and the area of another."""
    return replace(area, label=named.label, unjudged=named.unjudged, object=number)


def complain(problems: list[str], where: str, what: str, cases: Sequence[object], todo: str) -> None:
    """Add a problem of a file that several entries have; nothing where there is none."""
    if cases:
        problems.append(f"{where}: {len(cases)} {what}: {some(cases, most=SHOWN)}; {todo}")


def read_drawings(
    tree: Tree, suffix: str, looks: Callable[[bytes], bool], read: Callable[[bytes, str], Sequence[Drawing]]
) -> list[Drawing]:
    """Return what all annotation files of a kind hold; none where there are none.

    Args:
        tree: The data folder.
        suffix: Ending of the files.
        looks: Whether the bytes of a file may be of the kind: others are not parsed.
        read: Returns the images of a file by its bytes and path, none where it is of another kind.

    Raises:
        InputError: Files cannot be read, or name an image that another one names; all of them are told.
    """
    found: dict[str, Drawing] = {}
    problems: list[str] = []
    for path in tree.every(suffix):
        raw = tree.read(path)
        try:
            own = read(raw, path) if looks(raw) else []
        except InputError as error:
            problems.append(str(error))
            continue
        twice = [one.path for one in own if one.path in found]
        complain(problems, path, "images are in another annotation file too", twice, "keep one of the files")
        found |= {one.path: one for one in own}
    refuse_all(problems, what="annotation files")
    return list(found.values())


def drawn_catalog(
    tree: Tree,
    asked: Description,
    finder: ImageFinder,
    notes: Notes,
    *,
    layout: str,
    drawings: Sequence[Drawing],
    classes: Iterable[str],
    task: Task | None,
) -> Catalog:
    """Return the catalogue of images that are drawn on.

    Images of the split "val" are held out; those of "test", and images in folders of that name without an annotation,
    are the test set. Where no image is left to train on, those of "val", then of "test", are it.

    Args:
        tree: The data folder.
        asked: What was said of it.
        finder: Its images.
        notes: What was found on the way.
        layout: Name of the layout.
        drawings: The images.
        classes: Labels that the annotation files declare, in their order; others are added as they occur.
        task: What is assumed where nothing was said; None: binary for one class, multiclass for several.

    Raises:
        InputError: Two files of one id, or classes that contradict what was said.
    """
    if asked.ignore:
        raise InputError(
            f"{tree.root}: ignore: {asked.ignore}, but the classes are drawn and have no values; name the class "
            "'ignore' in the annotations"
        )
    notes.close()
    by_split = _by_split(drawings, notes)
    train = [*by_split["train"], *by_split["val"]]
    names = _classes(tree, asked, train, classes, notes)
    wanted = asked.task or task or ("binary" if len(names) == 1 else "multiclass")
    if asked.task is None:
        _say_task(wanted, names, notes)
    test = [one.path for one in by_split["test"]]
    listed = {one.path for one in drawings}
    rest = [path for path in finder.plain() if path not in listed]
    test += [path for path in rest if split_of_folders(path) == "test"]
    if bare := [path for path in rest if split_of_folders(path) != "test"]:
        notes.left_out.append(f"{len(bare)} images that no annotation file names: {some(bare)}")
        detail = (
            f"{len(bare)} images are named in no annotation file and are left out: {some(bare, most=SHOWN)}"
        )
        notes.findings.append(Finding("warning", "images without annotations", detail))
    ids = _ids(tree, [one.path for one in train])
    tests = {name: path for path, name in _ids(tree, test).items()}
    images = {ids[one.path]: one.path for one in train}
    tables, errors = read_tables(tree)
    facts = collect_facts(tables.values(), {"train": images, "test": tests})
    held_out = {ids[one.path] for one in by_split["val"]}
    drawn = {ids[one.path]: one for one in train}
    form = SubmissionFormat.assumed(tests, asked.dialect)
    labels = (
        [check_name(name, where=f"{tree.root} (classes)") for name in names] if wanted == "multilabel" else []
    )
    return Catalog(
        root=str(tree.root.resolve()),
        layout=layout,
        content_hash=tree.content_hash,
        train=[
            replace(one, shapes=drawn[one.id].shapes, drawn_hw=drawn[one.id].size_hw)
            for one in make_samples("train", images, facts, held_out=held_out)
        ],
        test=make_samples("test", tests, facts),
        submission=form.with_labels(labels) if labels else form,
        notes=[str(error) for error in errors.values()] + facts.notes,
        asked=AskedTarget(wanted),
        labels=labels,
        why=notes.why,
        left_out=notes.left_out,
        findings=notes.findings,
        classes=names,
    )


def _by_split(drawings: Sequence[Drawing], notes: Notes) -> dict[str, list[Drawing]]:
    found: dict[str, list[Drawing]] = {"train": [], "val": [], "test": []}
    for one in drawings:
        found[one.split or split_of_folders(one.path) or "train"].append(one)
    for other in ("val", "test"):
        if not found["train"] and found[other]:
            found["train"], found[other] = found[other], []
            detail = f"all images with annotations are of the split {other!r}; they are trained on"
            notes.findings.append(Finding("note", "one split", detail))
    if shapes := sum(len(one.shapes) for one in found["test"]):
        what = (
            f"{shapes} shapes on {len(found['test'])} images of the split 'test', which are to be segmented"
        )
        notes.left_out.append(what)
    return found


def _classes(
    tree: Tree, asked: Description, train: Sequence[Drawing], declared: Iterable[str], notes: Notes
) -> list[str]:
    """Return the classes without the background; what was said comes first.

    Raises:
        InputError: A label that is not among the classes that were said, or no class at all.
    """
    counts = Counter(
        shape.label for one in train for shape in one.shapes if shape.label not in (BACKGROUND, "")
    )
    said = [asked.names[value] for value in sorted(asked.names)]
    names = [name for name in said or dict.fromkeys([*declared, *counts]) if not is_background(name)]
    if said and (others := [label for label in counts if label not in names]):
        raise InputError(
            f"{tree.root}: classes: {some(names)}, but shapes are labelled {some(others)}; name them all in "
            "dataset.yaml, or take these shapes out"
        )
    if not counts:
        raise InputError(
            f"{tree.root}: nothing is drawn on the {len(train)} images of the annotation files; expected polygons or "
            "masks of objects"
        )
    shown = some([f"{counts[name]} {name}" for name in names], most=SHOWN)
    notes.findings.append(Finding("note", "shapes", f"{counts.total()} on {len(train)} images: {shown}"))
    absent = [name for name in names if not counts[name]]
    if absent and asked.task != "multilabel":  # the cache says it of labels
        detail = f"{len(absent)} of {len(names)} classes occur in no image: {some(absent, most=SHOWN)}"
        notes.findings.append(Finding("warning", "classes that never occur", detail))
    return names


def _say_task(task: Task, names: Sequence[str], notes: Notes) -> None:
    shown = some(names, most=8)
    if task == "instances" and len(names) > 1:
        detail = (
            f"{len(names)} classes ({shown}) are read as objects of one foreground; --task multiclass keeps the "
            "classes apart in one map, --task multilabel in layers that may overlap"
        )
    elif task == "instances":
        detail = f"each shape is an object ({shown}); --task binary takes them together"
    else:
        kind = (
            "one foreground"
            if task == "binary"
            else f"a map of {len(names)} classes, later shapes over earlier ones"
        )
        detail = (
            f"{shown}: {kind}; --task instances keeps objects apart, --task multilabel classes that overlap"
        )
    notes.findings.append(Finding("note", "what the shapes are read as", detail))


def _ids(tree: Tree, paths: Sequence[str]) -> dict[str, str]:
    """Return path -> id: the file's name without its ending, or, where two are equal, its path in their common folder.

    Raises:
        InputError: Two files differ by their endings alone.
    """
    plain = {path: str(PurePosixPath(path.partition("#")[0]).with_suffix("")) for path in paths}
    stems = {path: PurePosixPath(name).name for path, name in plain.items()}
    if len(set(stems.values())) < len(stems):
        common = posixpath.commonpath([posixpath.dirname(name) or "." for name in plain.values()])
        stems = {
            path: name if common in ("", ".") else posixpath.relpath(name, common)
            for path, name in plain.items()
        }
    if twice := [name for name, count in Counter(stems.values()).items() if count > 1]:
        raise InputError(
            f"{tree.root}: two files with annotations both have the id {some_ids(twice)}; keep one file an id"
        )
    return stems
