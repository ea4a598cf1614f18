"""What is known of a data folder before an image is decoded: its samples and the form of a submission."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from masksmith.data.dialect import non_empty


@dataclass(frozen=True)
class Sample:
    """One image; ``image`` and ``mask`` are paths in the data's Tree."""

    id: str
    image: str
    mask: str | None = None
    rle: list[str] | None = None
    """Run-length texts of its rows: none where the table says that it holds nothing, None where there is no table."""
    values: dict[str, float] = field(default_factory=dict)
    """Columns of numbers in the side tables (depths.csv: z)."""
    texts: dict[str, str] = field(default_factory=dict)
    """Columns of the side tables as text (a location, a patient), without run-lengths."""
    objects: list[str] | None = None
    """Paths of its object files, one an object: none where it has no object, None where it has no such files."""


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

    @classmethod
    def assumed(cls, test: Iterable[str], dialect: str | None) -> "SubmissionFormat":
        """Return the format where no table tells: test images by name, and the dialect asked for, else ``tgs``."""
        source = "no sample_submission.csv: ids are the test images in the order of their names"
        return cls("id", "rle_mask", dialect or "tgs", sorted(test), source, asked=dialect is not None)


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

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and lists for ``data.json``."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Catalog":
        """Rebuild a catalogue from ``data.json``."""
        plain = dict(value)
        plain["train"] = [Sample(**_with_rows(sample)) for sample in value["train"]]
        plain["test"] = [Sample(**sample) for sample in value["test"]]
        plain["submission"] = SubmissionFormat(**value["submission"])
        return cls(**plain)


def _with_rows(sample: dict[str, Any]) -> dict[str, Any]:
    """Return a sample of data.json with a list of run-length texts: an older masksmith kept one text an image."""
    text = sample["rle"]
    return sample | {"rle": non_empty([text])} if isinstance(text, str) else sample
