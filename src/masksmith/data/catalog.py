"""What is known of a data folder before an image is decoded: its samples and the form of a submission."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

from masksmith.data.dialect import non_empty
from masksmith.data.findings import Finding
from masksmith.data.target import Task

LABEL_COLUMN = "class"
"""Of the label, where no table names its column."""
BACKGROUND = "background"
"""Label of the shapes that take away what was drawn before, and of the first class of a class map."""
_ASSUMED = "no sample_submission.csv"


@dataclass(frozen=True)
class Shape:
    """Something that is drawn on an image: polygons, or run-lengths where there are no rings."""

    label: str
    """Name of its class; BACKGROUND takes away what was drawn before."""
    rings: list[list[float]] = field(default_factory=list)
    """Closed outlines x0, y0, x1, y1, … in pixels, (0, 0) being the corner of the first pixel; what lies in an
    odd number of them is inside."""
    relative: bool = False
    """Whether the rings are in fractions of the image's width and height."""
    runs: list[int] | None = None
    """Lengths of alternating runs of background and shape, by columns from the top left (COCO, uncompressed)."""
    box: list[int] | None = None
    """Top, left, height and width of the part of the image that the runs fill; None: the whole of it."""
    object: int | None = None
    """Shapes of one number are parts of one object; None: an object of its own."""
    unjudged: bool = False
    """Whether its pixels are not judged (a crowd)."""


@dataclass(frozen=True)
class Sample:
    """One image; ``image`` and ``mask`` are paths in the data's Tree (see decode/reader.py for ``#``)."""

    id: str
    image: str
    mask: str | None = None
    rle: list[str] | None = None
    """Run-length texts of its rows: none where the table says that it holds nothing, None where there is no table."""
    values: dict[str, float] = field(default_factory=dict)
    """Columns of numbers in the side tables (depths.csv: z)."""
    texts: dict[str, str] = field(default_factory=dict)
    """Columns of the side tables as text (a location, a patient), without run-lengths."""
    held_out: bool = False
    """Whether the data set itself holds it out of training (a folder ``val``): then it is fold 0."""
    objects: list[str] | None = None
    """Paths of its object files, one an object: none where it has no object, None where it has no such files."""
    labels: dict[str, list[str]] | None = None
    """Label -> run-length texts of its row, where masks of several labels may overlap; without a row it is empty."""
    label_masks: dict[str, str] | None = None
    """Label -> path of its mask file, where there is one for each label."""
    bands: list[str] | None = None
    """Paths of the files of its bands in their order, where each is a file of its own; ``image`` is the first."""
    group: str | None = None
    """What it shares with other images (a patient, a volume): images of a group are in one fold."""
    shapes: list[Shape] | None = None
    """What is drawn on it, in the order of drawing; later ones lie over earlier ones. None: nobody drew."""
    further_masks: list[str] | None = None
    """Paths of further files with parts of its mask: foreground is what one of the files has."""
    drawn_hw: list[int] | None = None
    """Height and width of the image, as the file says that has the shapes."""


class LabelRow(NamedTuple):
    """A row of an image and a label."""

    id: str
    label: str
    cell: str
    """What the column of ids holds."""


@dataclass(frozen=True)
class SubmissionFormat:
    """What the judge expects: columns, run-length dialect, and the ids in their order."""

    id_column: str
    rle_column: str
    dialect: str
    ids: list[str]
    source: str  # the file it was read from, or why it was assumed
    spelled: dict[str, str] = field(default_factory=dict)
    """Id -> how the judge writes it, where that is another text (``a.jpg``, ``a.jpg_1``)."""
    more: dict[str, str] = field(default_factory=dict)
    """Further columns and what each row holds in them (the one class)."""
    reason: str = ""
    """Why this dialect."""
    doubt: str = ""
    """What else fits, or is unusual."""
    asked: bool = False
    """Whether the dialect was asked for."""
    label_rows: list["LabelRow"] = field(default_factory=list)
    """Each row in the judge's order, where there is one an image and label."""
    class_column: str = ""
    """Column of the label in such rows; empty where the id's cell has it behind the id."""
    columns: list[str] = field(default_factory=list)
    """Of such rows, in the judge's order; empty: as they are named above."""
    wide: dict[str, str] = field(default_factory=dict)
    """Label -> its column, where each has one: then the rows of an image are one row, and ``columns`` its header."""

    files: str = ""
    """Ending of the mask files that the judge takes, ID.tif of the classes' numbers; empty: it takes the table."""

    @property
    def label_header(self) -> list[str]:
        """Return the columns of rows of an image and label."""
        return self.columns or [self.id_column, *filter(None, [self.class_column]), self.rle_column]

    @property
    def is_assumed(self) -> bool:
        """Whether no table told the format."""
        return self.source.startswith(_ASSUMED)

    @classmethod
    def assumed(cls, test: Iterable[str], dialect: str | None) -> "SubmissionFormat":
        """Return the format where no table tells: test images by name, and the dialect asked for, else ``tgs``."""
        source = f"{_ASSUMED}: ids are the test images in the order of their names"
        return cls("id", "rle_mask", dialect or "tgs", sorted(test), source, asked=dialect is not None)

    def with_labels(self, labels: Sequence[str], *, class_column: str = LABEL_COLUMN) -> "SubmissionFormat":
        """Return the format with a row for each image and label."""
        rows = [LabelRow(name, label, self.spelled.get(name, name)) for name in self.ids for label in labels]
        return replace(self, label_rows=rows, class_column=class_column)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "SubmissionFormat":
        """Rebuild it: JSON has lists for rows."""
        return cls(**value | {"label_rows": [LabelRow(*row) for row in value.get("label_rows", ())]})


@dataclass(frozen=True)
class AskedTarget:
    """What was asked for, and what the layout knows of the masks' values; the masks themselves decide the rest."""

    task: Task | None = None
    ignore: list[int] = field(default_factory=list)
    """Values of mask files that are not judged."""
    names: dict[int, str] = field(default_factory=dict)
    """Value -> name of its class."""
    colours: dict[str, list[int]] = field(default_factory=dict)
    """Class -> its red, green and blue in mask files in colours, the background first where there is one."""
    listed: list[str] = field(default_factory=list)
    """Names of a list of classes, of the values from 0 on, or from 1 on where there is one value more."""

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "AskedTarget":
        """Rebuild it: JSON has texts as keys."""
        names = {int(key): name for key, name in value["names"].items()}
        return cls(value["task"], value["ignore"], names, value.get("colours", {}), value.get("listed", []))


@dataclass(frozen=True)
class Catalog:
    """Everything that is known of a data folder before an image is decoded."""

    root: str
    layout: str
    content_hash: str
    train: list[Sample]
    test: list[Sample]
    submission: SubmissionFormat
    notes: list[str]
    asked: AskedTarget = AskedTarget()
    labels: list[str] = field(default_factory=list)
    """Labels whose masks may overlap, in their order; none where there are no rows or mask files of several."""
    why: list[str] = field(default_factory=list)
    """Why this layout: the rules that fired, with the files that they found."""
    left_out: list[str] = field(default_factory=list)
    """What files were not read, with their number, an example and the reason."""
    findings: list[Finding] = field(default_factory=list)
    """What the layout found out that a person should know."""
    classes: list[str] = field(default_factory=list)
    """Classes of the shapes that are drawn, in their order, without BACKGROUND, or the name of the only segment; none
    where no name is told."""

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and lists for ``data.json``."""
        plain = asdict(replace(self, train=[], test=[]))
        return plain | {"train": list(map(_plain, self.train)), "test": list(map(_plain, self.test))}

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Catalog":
        """Rebuild a catalogue from ``data.json``."""
        plain = dict(value)
        plain["train"] = [Sample(**_with_rows(sample)) for sample in value["train"]]
        plain["test"] = [Sample(**_with_rows(sample)) for sample in value["test"]]
        plain["submission"] = SubmissionFormat.from_json(value["submission"])
        plain["findings"] = [Finding(**one) for one in value.get("findings", ())]
        plain["asked"] = AskedTarget.from_json(value["asked"]) if "asked" in value else AskedTarget()
        return cls(**plain)


_UNSAID: dict[str, Any] = {"values": {}, "texts": {}, "held_out": False}  # None for the others


def _plain(sample: Sample) -> dict[str, Any]:
    """Return what differs from a sample of which nothing is said."""
    plain = {name: value for name, value in vars(sample).items() if value != _UNSAID.get(name)}
    if sample.shapes is not None:
        shapes = [
            {key: value for key, value in vars(shape).items() if value is not None and value is not False}
            for shape in sample.shapes
        ]
        plain["shapes"] = json.dumps(shapes)  # a line, not one a coordinate
    return plain


def _with_rows(sample: dict[str, Any]) -> dict[str, Any]:
    """Return a sample of data.json with a list of run-length texts: an older masksmith kept one text an image."""
    text, shapes = sample.get("rle"), sample.get("shapes")
    found = sample | {"rle": non_empty([text])} if isinstance(text, str) else sample
    return found if shapes is None else found | {"shapes": [Shape(**shape) for shape in json.loads(shapes)]}
