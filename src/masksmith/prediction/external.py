"""Probabilities that another program made: files by id, read as codes.

A folder holds a file for each image, ``ID.npy``, ``.npz``, ``.png`` or ``.tif`` (ids may have folders in them), or a
folder for each class with such files of one plane; a single ``.npz`` holds an array for each id. Floats lie in 0…1,
whole numbers of 8 and 16 bits count 255 and 65,535 as 1.
"""

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from masksmith.core.arrays import Codes, Shaped
from masksmith.core.errors import InputError
from masksmith.data.decode.pictures import decode_image
from masksmith.data.target import Target
from masksmith.prediction.store import MAX_CODE, to_codes

ENDINGS = (".npy", ".npz", ".png", ".tif", ".tiff")
_FULL = {"uint8": 255, "uint16": 65535}
_SLACK = 1e-3  # of floats beyond 0…1: rounding of other programs
_SUM_SLACK = 0.02  # of the sum of the classes' probabilities


def planes_of(target: Target) -> tuple[str, ...]:
    """Return the names of the planes: those of the classes; of objects foreground, border, distance."""
    return ("foreground", "border", "distance") if target.task == "instances" else target.classes


@dataclass
class ExternalCodes:
    """The files of a folder (or a ``.npz``) by id.

    Attributes:
        place: The folder or the file.
        target: The task, which says how many planes there must be.
        files: Id -> its file, or a file for each plane; None for the arrays of a single ``.npz``.
    """

    place: Path
    target: Target
    files: dict[str, Path | list[Path] | None]
    _archive: Any = None  # an NpzFile
    _largest: dict[str, int] = field(default_factory=dict)
    """Type of whole numbers -> the largest that was read."""

    @classmethod
    def find(cls, place: Path, target: Target) -> "ExternalCodes":
        """Look for the files.

        Raises:
            InputError: Nothing is there, an id has two files, or a class lacks an image that another has.
        """
        if place.is_file() and place.suffix.lower() == ".npz":
            try:
                archive = np.load(place, allow_pickle=False)
            except (OSError, ValueError, zipfile.BadZipFile) as error:
                raise InputError(
                    f"{place}: the file is damaged ({error}); expected an .npz with an array for each id"
                ) from error
            return cls(place, target, dict.fromkeys(archive.files), archive)
        if not place.is_dir():
            raise InputError(
                f"{place}: no such folder; expected one with a file for each image, ID.npy, .npz, .png or .tif, or an "
                ".npz with an array for each id"
            )
        planes = planes_of(target)
        top = {path.name for path in place.iterdir() if path.is_dir()}
        if len(planes) > 1 and set(planes) <= top:
            return cls(place, target, _by_plane(place, planes))
        return cls(place, target, {**_by_id(place)})

    def read(self, name: str, hw: tuple[int, int]) -> Codes:
        """Return the codes (h, w, k) of an image of (height, width).

        Raises:
            InputError: A damaged file, another size or number of planes, or values that are no probabilities.
        """
        found = self.files[name]
        planes = planes_of(self.target)
        if isinstance(found, list):
            layers = [_as_planes(_read(path), hw, 1, str(path), planes[:1]) for path in found]
            if len({layer.dtype for layer in layers}) > 1:
                raise InputError(f"{found[0].name}: its planes are of different types; save all in one")
            return self._codes(np.concatenate(layers, axis=2), ", ".join(map(str, found[:1])))
        if found is None:
            where = f"{self.place}: {name!r}"
            assert self._archive is not None
            try:
                array = np.asarray(self._archive[name])
            except (ValueError, zipfile.BadZipFile) as error:
                raise InputError(f"{where}: cannot be read ({error}); save it again as numbers") from error
        else:
            where = str(found)
            array = _read(found, planes)
        return self._codes(_as_planes(array, hw, len(planes), where, planes), where)

    def _codes(self, array: Shaped[np.ndarray, "h w k"], where: str) -> Codes:
        kind = array.dtype
        if kind == np.bool_:
            codes = array.astype(np.uint16) * np.uint16(MAX_CODE)
        elif kind.name in _FULL:
            self._largest[kind.name] = max(self._largest.get(kind.name, 0), int(array.max(initial=0)))
            codes = array.astype(np.uint16) * np.uint16(MAX_CODE // _FULL[kind.name])
        elif kind.kind == "f":
            low, high = float(array.min(initial=0)), float(array.max(initial=0))
            if not (low >= -_SLACK and high <= 1 + _SLACK):  # NaN fails too
                raise InputError(
                    f"{where}: values from {low:g} to {high:g}; expected probabilities from 0 to 1: apply the sigmoid "
                    "(or softmax) before saving"
                )
            codes = to_codes(array.clip(0, 1))
        else:
            raise InputError(f"{where}: values of type {kind}; expected floats, uint8 or uint16")
        if self.target.exclusive:
            total = codes.sum(axis=2, dtype=np.int64) / MAX_CODE
            slack = _SUM_SLACK + codes.shape[2] / 255
            if np.abs(total - 1).max(initial=0) > slack:
                raise InputError(
                    f"{where}: the classes' probabilities sum to {total.min():.3g} … {total.max():.3g} in a pixel; "
                    "expected 1, a plane for each class with the background: save the softmax"
                )
        return codes

    def check_range(self) -> None:
        """Refuse whole numbers of all images that fill next to nothing of their type: labels, or 8 bits in 16.

        Raises:
            InputError: They do.
        """
        for kind, largest in self._largest.items():
            if largest == 1 or (kind == "uint16" and 0 < largest <= 255):
                raise InputError(
                    f"{self.place}: the largest value of all is {largest}, of {kind}, in which {_FULL[kind]:,} means "
                    "probability 1; save floats from 0 to 1, or scale the values"
                )


def _by_id(place: Path) -> dict[str, Path]:
    found: dict[str, list[Path]] = {}
    for path in sorted(place.rglob("*")):
        if path.suffix.lower() in ENDINGS and path.is_file():
            found.setdefault(path.relative_to(place).with_suffix("").as_posix(), []).append(path)
    if not found:
        raise InputError(f"{place}: no files that end in {', '.join(ENDINGS)}; expected one for each image")
    twice = [paths for paths in found.values() if len(paths) > 1]
    if twice:
        listed = "; ".join(" and ".join(path.name for path in paths) for paths in twice)
        raise InputError(f"{place}: {len(twice)} ids have several files ({listed}); keep one of each")
    return {name: paths[0] for name, paths in found.items()}


def _by_plane(place: Path, planes: Sequence[str]) -> dict[str, Path | list[Path] | None]:
    each = [_by_id(place / plane) for plane in planes]
    all_ids = sorted(set().union(*each))
    missing = [
        f"{plane}/{name}"
        for plane, own in zip(planes, each, strict=True)
        for name in all_ids
        if name not in own
    ]
    if missing:
        raise InputError(
            f"{place}: {len(missing)} files are missing, which other classes have: {', '.join(missing)}"
        )
    return {name: [own[name] for own in each] for name in all_ids}


def _read(path: Path, planes: Sequence[str] = ()) -> np.ndarray:
    """Return the array of a file, axes and type as they are stored; a picture of one channel is (h, w)."""
    kind = path.suffix.lower()
    if kind in (".npy", ".npz"):
        try:
            loaded = np.load(path, allow_pickle=False)
            if kind == ".npy":
                return np.asarray(loaded)
            with loaded:
                names = list(loaded.files)
                if len(planes) > 1 and set(names) == set(planes):
                    return np.stack([loaded[plane] for plane in planes], axis=-1)
                if len(names) == 1:
                    return np.asarray(loaded[names[0]])
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(
                f"{path}: the file is damaged or holds no numbers ({error}); save it again"
            ) from error
        raise InputError(
            f"{path}: it holds the arrays {', '.join(names)}; expected one"
            + (f", or one for each of {', '.join(planes)}" if len(planes) > 1 else "")
        )
    array = decode_image(path.read_bytes(), where=str(path), upright=False, keep_alpha=True)
    return array[..., 0] if array.shape[2] == 1 else array


def _as_planes(
    array: np.ndarray, hw: tuple[int, int], count: int, where: str, planes: Sequence[str]
) -> Shaped[np.ndarray, "h w k"]:
    """Return an array of (h, w), (h, w, k) or (k, h, w) as (h, w, k)."""
    got = "x".join(map(str, array.shape))
    if array.ndim == 2 and count == 1:
        array = array[..., None]
    elif array.ndim == 3 and array.shape == (count, *hw) and array.shape != (*hw, count):
        array = np.moveaxis(array, 0, 2)
    if array.shape == (*hw, count):
        return array
    named = f" ({', '.join(planes)})" if count > 1 else ""
    raise InputError(
        f"{where}: {got}; expected {hw[0]}x{hw[1]}, the image's size"
        + (f", and {count} planes{named}" if count > 1 or array.shape[:2] == hw else "")
    )
