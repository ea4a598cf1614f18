"""``masksmith convert DIR --out DIR2``: DICOM files as PNG with their contrast corrected, and a table of what was done.

The pixels are rescaled, brought through the VOI (or stretched between percentiles), inverted if MONOCHROME1, then
brought through a chain as in ``input.chain``. The DICOM files are only read. The same call goes on where one ended.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
from pydantic import Field

from masksmith.core.config import Config, read_yaml, validate
from masksmith.core.errors import InputError, StoppedError
from masksmith.core.files import digest, write_bytes, write_text
from masksmith.core.locks import LOCK, folder_lock
from masksmith.core.progress import track
from masksmith.data.decode.dicom import DISPLAY_FACTS, SUFFIXES, decode_display
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.decode.reader import STACKS, ending
from masksmith.data.tree import archive_suffix
from masksmith.deploy.listing import Item, list_items
from masksmith.preprocess.chains import ValueStep, apply_values

TABLE = "convert.csv"
COLUMNS = ("id", "file", "frame", "rows", "columns", "bits", *DISPLAY_FACTS, "chain", "key", "error")
_VERSION = "1"
_TOGETHER = 50  # files after which the table is written
Row = dict[str, str]


class Correction(Config):
    """How pictures are made."""

    chain: list[ValueStep] = Field(default_factory=list)
    """As ``input.chain`` of a recipe."""
    bits: int = 8
    percentiles: tuple[float, float] = (0.5, 99.5)

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse depths that PNG lacks, and percentiles that are none."""
        if self.bits not in (8, 16):
            raise ValueError(f"bits: {self.bits}; expected 8 or 16")
        if not 0 <= self.percentiles[0] < self.percentiles[1] <= 100:
            raise ValueError(f"percentiles: {list(self.percentiles)}; expected two rising numbers in 0…100")


@dataclass(frozen=True)
class ConvertedImages:
    """What was converted."""

    out: Path
    done: int
    """Pictures that are there."""
    new: int
    """Those of them that this call made."""
    others: int = 0
    """Files of images that are no DICOM, which were left alone."""
    refused: list[str] = field(default_factory=list)
    """A message for each file that could not be used."""

    def __str__(self) -> str:
        lines = [
            f"{self.out}: {self.done} pictures, {self.new} of them new; what was done to each is in {TABLE}"
        ]
        if self.others:
            lines.append(f"{self.others} files of images are no DICOM and were left alone")
        if self.refused:
            lines += [f"{len(self.refused)} files were not converted:", *(f"  {one}" for one in self.refused)]
        return "\n".join(lines)


def is_of_images(source: Path) -> bool:
    """Whether something is to be converted as pictures: a folder, an archive, or a file that is named as DICOM."""
    return source.is_dir() or bool(archive_suffix(source.name)) or ending(source.name) in SUFFIXES


def convert_images(
    source: Path,
    out: Path,
    *,
    chain: str | Sequence[dict[str, Any]] = (),
    bits: int = 8,
    percentiles: tuple[float, float] = (0.5, 99.5),
) -> ConvertedImages:
    """Write each image of DICOM files as ``ID.png``, and ``convert.csv``.

    An id is the name of the file, or its path where two names are equal; frames have ``_0000``, ``_0001`` … behind it.

    Args:
        source: A DICOM file, a folder of them (with sub-folders), or an archive.
        out: Folder of the pictures: absent, empty or one of an earlier call, outside ``source``.
        chain: What is done to the values then, as ``input.chain``: a list, or its YAML.
        bits: 8 or 16 a pixel.
        percentiles: Between which values of more than 8 bits are stretched, where a file has no window.

    Raises:
        InputError: The source is not there or holds no DICOM, ``out`` is something else's, or a step is unknown.
        StoppedError: A stop was asked for; what is finished stays.
    """
    steps = read_yaml(chain, where="--chain") if isinstance(chain, str) else list(chain)
    asked = {"chain": steps, "bits": bits, "percentiles": list(percentiles)}
    how = validate(Correction, asked, where="convert")
    items = list_items([source])
    wanted = [item for item in items if _is_dicom(item)]
    if not wanted:
        raise InputError(
            f"{source}: no DICOM file; expected files that end in {', '.join(SUFFIXES)}, or in nothing"
        )
    _refuse_out(source, out)
    with folder_lock(out):
        before = _known(out)
        rows, new = _convert(wanted, _names(wanted), out, how, before)
    return ConvertedImages(
        out,
        sum(not row["error"] for row in rows),
        new,
        len(items) - len(wanted),
        [row["error"] for row in rows if row["error"]],
    )


def _is_dicom(item: Item) -> bool:
    """Whether a file is DICOM, or is named as one; an archive that cannot be opened counts, to be said."""
    kind = ending(item.path)
    return bool(item.error) or kind in SUFFIXES or kind not in {*IMAGE_SUFFIXES, *STACKS}


def _names(items: Sequence[Item]) -> list[str]:
    """Return the names of files where no two are the same, else their ids."""
    short = [PurePosixPath(item.id).name for item in items]
    return short if len(set(short)) == len(short) else [item.id for item in items]


def _refuse_out(source: Path, out: Path) -> None:
    place = out.resolve()
    if source.is_dir() and place.is_relative_to(source.resolve()):
        raise InputError(f"--out {out}: it lies inside {source}, which is only read; name a folder outside")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: it is a file; expected a folder")
    there = {path.name for path in out.iterdir()} - {LOCK} if out.is_dir() else set()
    if there and not _is_ours(out / TABLE):
        raise InputError(
            f"--out {out}: the folder is not empty and not one of `masksmith convert`; name another one"
        )


def _is_ours(table: Path) -> bool:
    if not table.is_file():
        return False
    with table.open(encoding="utf-8", errors="replace") as file:
        return file.readline().strip() == ",".join(COLUMNS)


def _known(out: Path) -> dict[str, list[Row]]:
    """Return what is done: file -> its rows."""
    found: dict[str, list[Row]] = {}
    if (out / TABLE).is_file():
        for row in csv.DictReader(io.StringIO((out / TABLE).read_text(encoding="utf-8"), newline="")):
            found.setdefault(row["file"], []).append(row)
    return found


def _convert(
    items: Sequence[Item], names: Sequence[str], out: Path, how: Correction, before: dict[str, list[Row]]
) -> tuple[list[Row], int]:
    done: dict[str, list[Row]] = {item.path: before[item.path] for item in items if item.path in before}
    new = 0

    def write() -> None:
        rows = [row for item in items for row in done.get(item.path, [])]
        write_text(out / TABLE, _text(rows))

    write()
    try:
        for at, (item, name) in enumerate(
            track(zip(items, names, strict=True), total=len(items), what="converting")
        ):
            key = digest(_VERSION, item.version, name, how.model_dump_json())[:16]
            old = done.get(item.path, [])
            if old and all(
                row["key"] == key and not row["error"] and _png(out, row["id"]).is_file() for row in old
            ):
                continue
            done[item.path] = _rows(item, name, key, out, how)
            new += sum(not row["error"] for row in done[item.path])
            if at % _TOGETHER == _TOGETHER - 1:
                write()
    except StoppedError:
        write()
        raise
    write()
    return [row for item in items for row in done[item.path]], new


def _png(out: Path, name: str) -> Path:
    return out / f"{name}.png"


def _rows(item: Item, name: str, key: str, out: Path, how: Correction) -> list[Row]:
    """Write the pictures of a file, and return a row for each; one with the error where it cannot be used."""
    own = {"id": name, "file": item.path, "key": key}
    try:
        if item.error:
            raise InputError(item.error)
        shown = decode_display(item.reader.raw(item.path), item.path, percentiles=how.percentiles)
    except InputError as error:
        return [dict.fromkeys(COLUMNS, "") | own | {"error": str(error)}]
    own |= {"bits": str(how.bits), "chain": _said(how.chain), **shown.facts}
    rows = []
    for number, unit in enumerate(shown.unit):
        each = name if len(shown.unit) == 1 else f"{name}_{number:04d}"
        write_bytes(_png(out, each), _encoded(unit, how))
        size = {"rows": str(unit.shape[0]), "columns": str(unit.shape[1])}
        rows.append(dict.fromkeys(COLUMNS, "") | own | size | {"id": each, "frame": str(number)})
    return rows


def _said(chain: Sequence[ValueStep]) -> str:
    """Return a chain in a cell: ``percentile(low=1, high=99) clahe(tile_px=32, clip=2)``."""
    parts = []
    for step in chain:
        values = ", ".join(f"{key}={value:g}" for key, value in step.model_dump(exclude={"name"}).items())
        parts.append(f"{step.name}({values})")
    return " ".join(parts)


def _encoded(unit: np.ndarray, how: Correction) -> bytes:
    codes = np.rint(unit * 65535).astype(np.uint16)
    if how.chain:
        codes = apply_values(codes, how.chain, np.zeros(codes.shape, bool))
    picture = codes if how.bits == 16 else np.rint(codes / 257).astype(np.uint8)
    done, raw = cv2.imencode(".png", picture[..., ::-1] if picture.shape[2] == 3 else picture)
    assert done, picture.shape
    return bytes(raw)


def _text(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
