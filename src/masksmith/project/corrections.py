"""What people said of images, as a patch beside the data: a table, and a PNG for each mask that they mended.

``corrections/corrections.csv`` is about training images, ``annotations/annotations.csv`` about images without masks
(the test images). A row is ``id, action, note, version``. Beside it lies ``ID.png`` for every image whose mask was
drawn: 8 bits, one channel, of the image's size: 0 and 1, or the number of each pixel's class; 255 is not judged. The
data itself is never written. A mask counts while the action of its image is "mend"; else it only waits for that.
"""

import csv
import io
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from masksmith.core.arrays import IGNORE, Mask
from masksmith.core.errors import InputError
from masksmith.core.files import write_bytes, write_text
from masksmith.data.ids import check_id

ACTIONS = {
    "keep": "the mask is right",
    "drop": "the image is not to be trained on",
    "wrong": "the mask is wrong, and not mended yet",
    "mend": "the mask was mended",
}
"""What a person says of an image -> what it means."""
_HEADER = ("id", "action", "note", "version")
_NEEDED = {"id", "action"}
_MAX_NOTE = 1000


@dataclass(frozen=True)
class Correction:
    """What was said of an image."""

    id: str
    action: str = ""
    """Of ACTIONS; empty: nothing was said."""
    note: str = ""
    version: int = 0
    """Goes up by one with each change."""


class ConflictError(Exception):
    """Somebody else has changed the image since; ``now`` is what is said of it."""

    def __init__(self, now: Correction) -> None:
        super().__init__(f"{now.id}: changed since it was opened")
        self.now = now


class Corrections:
    """The patch in a folder; it may be read and written by several threads.

    Args:
        folder: ``corrections/`` or ``annotations/`` of a project; it need not be there.

    Raises:
        InputError: The table was edited and makes no sense; all that is wrong is named.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.table = folder / f"{folder.name}.csv"
        self._lock = threading.RLock()
        self._known: dict[str, Correction] = {}
        """With those that were taken back, whose versions go on."""
        self._seen: tuple[int, ...] | None = None
        with self._lock:
            self._refresh()

    @property
    def rows(self) -> dict[str, Correction]:
        """What was said, by id."""
        with self._lock:
            self._refresh()
            return {name: one for name, one in self._known.items() if one.action}

    def of(self, name: str) -> Correction:
        """Return what was said of an image; of one of which nothing was, an empty one."""
        with self._lock:
            self._refresh()
            return self._known.get(name, Correction(name))

    def path(self, name: str) -> Path:
        """Return the file of a mended mask."""
        return self.folder / f"{check_id(name, where=str(self.folder))}.png"

    def mask(self, name: str, *, hw: tuple[int, int], classes: int) -> Mask:
        """Return a mended mask, (h, w) of 0…classes-1 and IGNORE.

        Raises:
            InputError: It is not there, damaged, of another size, or holds other values.
        """
        path = self.path(name)
        raw = np.frombuffer(path.read_bytes() if path.exists() else b"", np.uint8)
        mask = cv2.imdecode(raw, cv2.IMREAD_UNCHANGED) if raw.size else None
        if mask is None:
            what = "cannot be read as a PNG" if raw.size else "not there"
            raise InputError(f"{path}: {what}; expected the mended mask; mend the image again")
        if mask.dtype != np.uint8 or mask.shape != hw or (problem := wrong_values(mask, classes)):
            what = (
                f"{mask.dtype} of shape {mask.shape}"
                if mask.shape != hw or mask.dtype != np.uint8
                else problem
            )
            raise InputError(
                f"{path}: {what}; expected one channel of 8 bits, {hw[0]}x{hw[1]}, of 0 to {classes - 1} and {IGNORE}; "
                "mend the image again, or remove the file"
            )
        return np.asarray(mask, np.uint8)

    def say(self, name: str, action: str, *, note: str = "", version: int) -> Correction:
        """Say something of an image; an empty action takes back what was said.

        Args:
            name: Its id.
            action: Of ACTIONS, or empty; "mend" only where a mended mask lies.
            note: One line.
            version: What is changed: the version that was seen, 0 where nothing was said.

        Raises:
            ConflictError: There is another version by now.
            InputError: An action or note that cannot be; the table cannot be written (DiskFullError: the disk is full).
        """
        _check_words(name, action, note)
        with self._lock:
            self._refresh()
            now = self._expect(name, version)
            if action == "mend" and not self.path(name).exists():
                raise InputError(
                    f"{name!r}: action 'mend' without a mended mask; expected a mask; mend it first"
                )
            return self._write(replace(now, action=action, note=note, version=version + 1))

    def mend(self, name: str, mask: Mask, *, note: str = "", version: int) -> Correction:
        """Write a mended mask, then the table. A stop between the two leaves a mask that waits.

        Raises:
            ConflictError: There is another version by now.
            InputError: As ``say``.
        """
        _check_words(name, "mend", note)
        with self._lock:
            self._refresh()
            now = self._expect(name, version)
            done, raw = cv2.imencode(".png", mask)
            assert done
            write_bytes(self.path(name), raw.tobytes())
            return self._write(replace(now, action="mend", note=note, version=version + 1))

    def _expect(self, name: str, version: int) -> Correction:
        now = self._known.get(name, Correction(name))
        if now.version != version:
            raise ConflictError(now)
        return now

    def _write(self, row: Correction) -> Correction:
        known = self._known | {row.id: row}
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(_HEADER)
        writer.writerows((one.id, one.action, one.note, one.version) for one in known.values() if one.action)
        write_text(self.table, text.getvalue())
        self._known, self._seen = known, self._stat()
        return row

    def _stat(self) -> tuple[int, ...] | None:
        try:
            stat = self.table.stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    def _refresh(self) -> None:
        """Read the table again if somebody has changed it; what differs gets a new version."""
        stat = self._stat()
        if stat == self._seen:
            return
        found = _read(self.table) if stat else {}
        for name, before in self._known.items():
            now = found.get(name, Correction(name))
            if replace(now, version=before.version) != before:
                found[name] = replace(now, version=max(now.version, before.version + 1))
            else:
                found[name] = before
        self._known, self._seen = found, stat


def wrong_values(mask: Mask, classes: int) -> str:
    """Return what values a mask has that are neither a class nor IGNORE, as text; empty where there are none."""
    wrong = [int(value) for value in np.unique(mask) if classes <= value != IGNORE]
    return f"values {', '.join(map(str, wrong[:5]))}{' …' * (len(wrong) > 5)}" if wrong else ""


def _check_words(name: str, action: str, note: str) -> None:
    if action and action not in ACTIONS:
        raise InputError(f"{name!r}: action {action!r}; expected {', '.join(ACTIONS)} or none")
    if len(note) > _MAX_NOTE or any(ord(sign) < 32 or ord(sign) == 127 for sign in note):
        raise InputError(
            f"{name!r}: a note of {len(note)} characters; expected one line of at most {_MAX_NOTE}, without control "
            "characters; shorten it"
        )


def _read(path: Path) -> dict[str, Correction]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if missing := _NEEDED - set(reader.fieldnames or ()):
                raise InputError(
                    f"{path}: no column {', '.join(sorted(missing))}; expected {', '.join(_HEADER)}; put them back, or "
                    "remove the file"
                )
            lines = list(reader)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table ({error}); mend or remove it") from error
    found, wrong = dict[str, Correction](), list[str]()
    for number, line in enumerate(lines, start=2):
        try:
            row = _row(line)
            if row.id in found:
                raise InputError(f"{row.id!r} is there twice")
            found[row.id] = row
        except InputError as error:
            wrong.append(f"{path}, row {number}: {error}")
    if wrong:
        raise InputError("\n".join([*wrong, f"{path}: mend these rows, or remove the file"]))
    return found


def _row(line: Mapping[str, str | None]) -> Correction:
    name = line.get("id") or ""
    action, note = ((line.get(key) or "").strip() for key in ("action", "note"))
    check_id(name, where="id")
    if not action:
        raise InputError(f"{name!r}: no action; expected {', '.join(ACTIONS)}")
    _check_words(name, action, note)
    version = (line.get("version") or "1").strip()
    if not version.isdecimal() or not 1 <= int(version) < 2**53:
        raise InputError(f"{name!r}: version {version!r}; expected a number from 1 on")
    return Correction(name, action, note, int(version))
