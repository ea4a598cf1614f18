"""What the images of a data set have in common, and all of them in one file of the cache."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masksmith.core.arrays import Image, Shaped
from masksmith.core.errors import InputError
from masksmith.core.progress import track
from masksmith.data.catalog import Catalog, Sample
from masksmith.data.decode.headers import image_size
from masksmith.data.decode.orientation import is_sideways, read_orientation
from masksmith.data.decode.pictures import is_grey
from masksmith.data.decode.reader import STACKS, ImageReader, ending
from masksmith.data.findings import Finding, refuse_all, some
from masksmith.data.georeference import Georeference, read_georeference
from masksmith.data.store import StoreWriter


@dataclass(frozen=True)
class Kind:
    """What all images have in common, channels and type; each image's size, and where it lies if it says so."""

    channels: int
    dtype: type[np.generic]
    sizes: dict[str, tuple[int, int]]
    places: dict[str, Georeference]
    turned: list[str]
    """Ids of the images that are stored turned or mirrored, as their EXIF orientation says, and are set upright."""
    as_stored: dict[str, str]
    """Path -> id of those that stay as they are stored, for so are their masks."""
    gaps: dict[str, int]
    """Image -> pixels in which no band has data, where there are some."""
    mixed: str
    """Types of measurements that became float32."""
    declared: dict[float, str]
    """Value that a file of whole numbers declares to mean "no data" -> the first image whose file does."""

    @property
    def no_data(self) -> float | None:
        """The one value that means "no data"."""
        whole = np.dtype(self.dtype).kind in "iu"
        return next(iter(self.declared)) if whole and len(self.declared) == 1 else None


def survey(reader: ImageReader, catalog: Catalog) -> Kind:
    """Look at all images and return what they have in common.

    Raises:
        InputError: Bands of several numbers, kinds or sizes that do not go together.
    """
    samples = [*catalog.train, *catalog.test]
    coloured, dtypes, sizes, places, gaps = False, set(), {}, {}, {}
    bands: dict[int, str] = {}
    declared: dict[float, str] = {}
    problems = []
    turns = _Turns()
    for sample in track(samples, total=len(samples), what="looking at images"):
        height = width = empty = 0
        try:
            upright = reader.is_large(sample) or not turns.stays(reader, sample)
            for image in reader.rows(sample, upright=upright):
                height, width = height + image.shape[0], image.shape[1]
                coloured = coloured or (image.shape[2] == 3 and not is_grey(image))
                empty += 0 if (missing := reader.missing(sample, image)) is None else int(missing.sum())
            with reader.opened(sample.image) as file:
                place = read_georeference(file)
        except InputError as error:
            problems.append(str(error))
            continue
        sizes[sample.image] = height, width
        dtypes.add(image.dtype.type)
        bands.setdefault(image.shape[2], sample.image)
        if place is not None:
            places[sample.image] = place
        if image.dtype.kind != "f" and (value := reader.declared(sample)) is not None:
            declared.setdefault(value, sample.image)
        if empty:
            gaps[sample.image] = empty
    refuse_all(problems, what="images")
    names = " and ".join(sorted(np.dtype(one).name for one in dtypes))
    mixed = ""
    if len(dtypes) > 1 and all(ending(sample.image.partition("#")[0]) in STACKS for sample in samples):
        # measurements: one scanner writes them with a sign, another without
        mixed, dtypes = names, {np.float32}
    if len(dtypes) > 1:
        raise InputError(f"{reader.tree.root}: images of types {names} mixed; convert them to one type")
    channels = _common_channels(bands, coloured=coloured, where=str(reader.tree.root))
    turns.settle(sizes)
    turned = list(turns.turned.values())
    return Kind(channels, dtypes.pop(), sizes, places, turned, turns.as_stored, gaps, mixed, declared)


class _Turns:
    """Which images are set upright by their EXIF orientation, and which stay as they are stored."""

    def __init__(self) -> None:
        self.turned: dict[str, str] = {}
        self.as_stored: dict[str, str] = {}
        self._open: set[str] = set()
        self._sideways: set[str] = set()
        self._votes = 0  # of masks: above zero, they are drawn on the images as stored

    def stays(self, reader: ImageReader, sample: Sample) -> bool:
        """Whether an image stays as it is stored: its mask has that size, and not the other."""
        raw = reader.raw(sample.image)
        if read_orientation(raw) == 1:
            return False
        stored = image_size(raw)
        drawn = _drawn_size(reader, sample)
        if is_sideways(raw):
            self._sideways.add(sample.image)
        if drawn is None or stored is None or stored[0] == stored[1] or not is_sideways(raw):
            self._open.add(sample.image)
        elif drawn == stored:
            self._votes += 1
            self.as_stored[sample.image] = sample.id
            return True
        else:
            self._votes -= 1
        self.turned[sample.image] = sample.id
        return False

    def settle(self, sizes: dict[str, tuple[int, int]]) -> None:
        """Treat the images of which no mask tells as most of those are treated of which one does."""
        for path in sorted(self._open) if self._votes > 0 else ():
            self.as_stored[path] = self.turned.pop(path)
            if path in self._sideways and path in sizes:
                sizes[path] = sizes[path][::-1]


def _drawn_size(reader: ImageReader, sample: Sample) -> tuple[int, int] | None:
    """Return the size of a sample's mask, or what the file of its shapes states; None where neither tells."""
    if sample.drawn_hw is not None:
        return sample.drawn_hw[0], sample.drawn_hw[1]
    mask = sample.mask or next(iter((sample.label_masks or {}).values()), None)
    return None if mask is None else _size_of(reader, mask)


def _size_of(reader: ImageReader, path: str) -> tuple[int, int] | None:
    raw = reader.tree.read(path) if path in reader.tree else b""
    size = image_size(raw)
    return size[::-1] if size and is_sideways(raw) else size


def turn_findings(kind: Kind) -> list[Finding]:
    """Say where images were turned as their files ask for."""
    found = []
    if kind.turned:
        detail = f"{len(kind.turned)} images are stored turned or mirrored (EXIF orientation); they are set upright"
        found.append(Finding("note", "images set upright", detail, kind.turned))
    if kind.as_stored:
        detail = (
            f"{len(kind.as_stored)} images have an EXIF orientation that is not followed: masks are drawn on them as "
            "they are stored"
        )
        found.append(Finding("note", "images left as stored", detail, list(kind.as_stored.values())))
    return found


def _common_channels(bands: dict[int, str], *, coloured: bool, where: str) -> int:
    """Return the channels of all images; ``bands`` is number of bands -> an image that has so many."""
    if set(bands) <= {1, 3}:  # grey images, and pictures in colours
        return 3 if coloured else 1
    if len(bands) > 1:
        found = ", ".join(f"{count} ({path})" for count, path in sorted(bands.items()))
        raise InputError(
            f"{where}: images of different numbers of bands: {found}; give all of them the same bands"
        )
    return next(iter(bands))


def _fit_channels(image: Image, channels: int) -> Shaped[np.ndarray, "h w k"]:
    if image.shape[2] == channels:
        return image
    return image[..., :1] if channels == 1 else np.repeat(image, 3, axis=2)


def write_images(path: Path, reader: ImageReader, samples: list[Sample], kind: Kind) -> None:
    """Decode images into one file."""
    shapes = [(sample.id, (*kind.sizes[sample.image], kind.channels)) for sample in samples]
    writer = StoreWriter(path, shapes, dtype=kind.dtype)
    for sample in track(samples, total=len(samples), what=f"decoding {path.stem}"):
        first = 0
        for rows in reader.rows(sample, upright=sample.image not in kind.as_stored):
            writer.write_rows(sample.id, first, _fit_channels(rows, kind.channels))
            first += len(rows)
    writer.close()


def image_findings(catalog: Catalog, kind: Kind) -> list[Finding]:
    """Say what is unusual about the images."""
    said = (
        [Finding("note", "types of images", f"{kind.mixed}; all are read as float32")] if kind.mixed else []
    )
    if len(kind.declared) > 1 and np.dtype(kind.dtype).kind in "iu":
        several = some([f"{value:g} in {path}" for value, path in kind.declared.items()])
        detail = f"{several}; all but one count as measured: set input.no_data to the one that is meant"
        said.append(Finding("warning", "several values of no data", detail, list(kind.declared.values())))
    with_gaps = [sample for sample in [*catalog.train, *catalog.test] if sample.image in kind.gaps]
    if not with_gaps:
        return said
    pixels = sum(kind.gaps[sample.image] for sample in with_gaps)
    total = sum(height * width for height, width in kind.sizes.values())
    detail = (
        f"{len(with_gaps)} images have pixels without data (NaN, or what the file declares to mean so) in every band, "
        f"{pixels / total:.2%} of all pixels; they are not judged"
    )
    return [*said, Finding("note", "pixels of no data", detail, [sample.id for sample in with_gaps])]
