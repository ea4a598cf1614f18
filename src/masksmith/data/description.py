"""What a person says of a data folder: ``dataset.yaml`` in it, or a file named by ``--layout``.

Every key is optional; what is said is obeyed or refused, what is not said is found by looking.
"""

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator, model_validator

from masksmith.core.config import Config, read_yaml, validate
from masksmith.core.errors import InputError
from masksmith.data.target import Task

FILE_NAME = "dataset.yaml"
_FIELDS = re.compile(r"\{(\w+)\}")


class Groups(Config):
    """What binds images to one fold: a column of a table, or what a regular expression finds in an id."""

    column: str | None = Field(default=None, description="Column of a table beside the images.")
    pattern: str | None = Field(
        default=None,
        description="Regular expression searched in the id; its first group, else the whole match, counts.",
    )

    @model_validator(mode="after")
    def _one(self) -> "Groups":
        if (self.column is None) == (self.pattern is None):
            raise ValueError("expected either column or pattern")
        return self

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                re.compile(value)
            except re.error as error:
                raise ValueError(f"{value!r} is no regular expression ({error})") from error
        return value


class Description(Config):
    """What is so in a data folder, as far as somebody said it.

    Paths are patterns relative to the folder, with ``/``: ``{id}`` stands for the id (also with sub-folders),
    ``{label}`` and ``{band}`` for a name without ``/``, ``*`` for any characters but ``/``.
    """

    layout: str | None = Field(default=None, description="Name of a layout that is insisted on.")
    task: Task | None = Field(default=None, description="What the masks mean.")
    images: str | None = Field(default=None, description="Pattern of the training images: photos/{id}.jpg.")
    masks: str | None = Field(
        default=None, description="Pattern of their masks: masks/{id}_mask.png, masks/{label}/{id}.png."
    )
    test: str | None = Field(default=None, description="Pattern of the images to be segmented.")
    bands: list[str] | None = Field(
        default=None, description="Names that {band} stands for, in the order of the channels."
    )
    classes: list[str] | dict[int, str] | None = Field(
        default=None,
        description="Names of the classes in the order of their values from 0 on, or value -> name.",
    )
    colours: dict[str, list[int]] | None = Field(
        default=None, description="Class -> [red, green, blue] of masks in colours."
    )
    ignore: list[int] = Field(default=[], description="Values of mask files that are not judged.")
    groups: Groups | None = Field(default=None, description="What binds images to one fold.")
    splits: dict[Literal["train", "val", "test"], str] | None = Field(
        default=None, description="Split -> regular expression of the paths of its images."
    )
    dialect: str | None = Field(default=None, description="Of run-lengths.")

    @property
    def names(self) -> dict[int, str]:
        """Return value -> name of its class."""
        return dict(enumerate(self.classes)) if isinstance(self.classes, list) else dict(self.classes or {})

    @model_validator(mode="after")
    def _whole(self) -> "Description":
        for key in ("images", "masks", "test"):
            pattern = getattr(self, key)
            if pattern is None:
                continue
            fields = _FIELDS.findall(pattern)
            if "id" not in fields:
                raise ValueError(f"{key}: {pattern!r}; expected a pattern with {{id}}")
            allowed = {"id", "label"} if key == "masks" else {"id", "band"}
            if other := set(fields) - allowed:
                raise ValueError(
                    f"{key}: {{{min(other)}}} in {pattern!r}; expected {' or '.join(sorted(allowed))}"
                )
            if "band" in fields and not self.bands:
                raise ValueError(f"{key}: {pattern!r} has {{band}}; name the bands: bands: [B02, B03]")
        if (self.masks is not None or self.test is not None) and self.images is None:
            raise ValueError("masks and test need images: the pattern of the training images")
        return self


NOTHING_SAID = Description()


def path_pattern(pattern: str) -> re.Pattern[str]:
    """Return the regular expression of a pattern of paths (see Description); its groups are id, label and band."""
    parts = re.split(r"(\{\w+\}|\*)", pattern)
    forms = {"{id}": "(?P<id>.+)", "{label}": "(?P<label>[^/]+)", "{band}": "(?P<band>[^/]+)", "*": "[^/]*"}
    seen: set[str] = set()
    text = ""
    for part in parts:
        if part in forms and part != "*" and part in seen:
            text += f"(?P={part[1:-1]})"
        else:
            text += forms.get(part, re.escape(part))
            seen.add(part)
    return re.compile(text)


def read_description(root: Path, given: Path | None = None) -> Description:
    """Return what a person says of a data folder: in the file that is named, else in ``dataset.yaml`` in it.

    Raises:
        InputError: The named file is not there, or one is no description.
    """
    path = given or root / FILE_NAME
    if not path.is_file():
        if given is not None:
            raise InputError(
                f"{path}: no such file; expected a description of the data in YAML, see docs/layouts.md"
            )
        return Description()
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not a UTF-8 text file (byte {error.start}); save it in UTF-8") from error
    value = read_yaml(text, where=str(path)) or {}
    if given is None and isinstance(value, dict) and "names" in value and {"train", "val"} & set(value):
        return Description()  # of YOLO, which often calls its file so: layouts/yolo.py reads it
    return validate(Description, value, where=str(path))
