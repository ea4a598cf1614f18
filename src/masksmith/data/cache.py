"""Decode every image and mask once, into memory-mapped stores under ``cache/``.

Decoding a 101x101 PNG takes about 100 times as long as copying its pixels, and every epoch would do it
again. The stores are keyed by the hash of the data's content.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np

from masksmith.core.arrays import IGNORE, UNJUDGED, Image, Mask, Shaped, UInt8
from masksmith.core.errors import InputError
from masksmith.core.files import digest, read_json, remove, write_json
from masksmith.core.ledger import Ledger
from masksmith.core.progress import logger, track
from masksmith.data.catalog import Catalog, Sample
from masksmith.data.colour_masks import ColourFile, find_colours, look_at_colours
from masksmith.data.colour_tables import check_colours
from masksmith.data.colours import Rgb, pack, pack_colours, without_transparent
from masksmith.data.decode.headers import image_size
from masksmith.data.decode.orientation import is_sideways, read_orientation
from masksmith.data.decode.palette import decode_indices, read_palette
from masksmith.data.decode.pictures import is_grey
from masksmith.data.decode.reader import STACKS, ImageReader, ending
from masksmith.data.decode.tiff import read_no_data
from masksmith.data.dialect import differing_pixels
from masksmith.data.findings import Finding, refuse_all, some
from masksmith.data.georeference import Georeference, differing_grids, read_georeference
from masksmith.data.instances import (
    MAX_PNG_LABEL,
    Objects,
    object_findings,
    objects_of_files,
    objects_of_image,
    objects_of_mask,
    objects_of_rows,
)
from masksmith.data.masks import (
    LayerCounts,
    MaskConvention,
    MaskFile,
    MaskHints,
    find_convention,
    is_lossy,
    listed_names,
    look_at_mask,
    mask_levels,
)
from masksmith.data.rle import decode_rows
from masksmith.data.shapes import (
    check_drawings,
    class_numbers,
    draw_classes,
    draw_layers,
    draw_objects,
    drawn_target,
)
from masksmith.data.store import Store, StoreWriter
from masksmith.data.target import BINARY, OBJECTS, Target
from masksmith.data.tree import Tree

VERSION = "cache 7"  # of the decoded arrays: what is prepared from them counts it in
_STORES = ("train_images", "train_masks", "test_images")
_FINDINGS = "masks.json"
_TARGET = "target.json"
_NO_DATA = "no_data.json"


@dataclass(frozen=True)
class Cache:
    """The decoded data: images (h, w, c) of the files' own type (of TYPES), masks of uint8 or int32 (see Target)."""

    train_images: Store
    train_masks: Store
    test_images: Store
    mask_findings: list[Finding]
    """What the values of the mask files were found to mean, where that was not plain."""
    target: Target = BINARY
    """The task and its classes."""
    no_data: float | None = None
    """What the files of images of whole numbers declare to mean "no data"; None where they declare nothing, or more
    than one value. In decoded images of decimal numbers no data is NaN."""

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.train_images.channels


@dataclass(frozen=True)
class _Kind:
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


def _survey(reader: ImageReader, catalog: Catalog) -> _Kind:
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
    return _Kind(channels, dtypes.pop(), sizes, places, turned, turns.as_stored, gaps, mixed, declared)


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


def _turn_findings(kind: _Kind) -> list[Finding]:
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


def _write_images(path: Path, reader: ImageReader, samples: list[Sample], kind: _Kind) -> None:
    shapes = [(sample.id, (*kind.sizes[sample.image], kind.channels)) for sample in samples]
    writer = StoreWriter(path, shapes, dtype=kind.dtype)
    for sample in track(samples, total=len(samples), what=f"decoding {path.stem}"):
        first = 0
        for rows in reader.rows(sample, upright=sample.image not in kind.as_stored):
            writer.write_rows(sample.id, first, _fit_channels(rows, kind.channels))
            first += len(rows)
    writer.close()


@dataclass(frozen=True)
class _DrawnMask:
    """A mask file's values, and whether its format changes them."""

    levels: Shaped[np.ndarray, "h w"]
    lossy: bool
    palette: tuple[Rgb, ...] = ()
    """Colour of each value, where the file has a palette."""
    colours: bool = False
    """Whether the values are packed colours."""


def _drawn_mask(
    reader: ImageReader,
    sample: Sample,
    path: str,
    kind: _Kind,
    *,
    as_numbers: bool = False,
    colours: bool | None = False,
) -> _DrawnMask:
    """Decode a mask file of a sample (see mask_levels).

    Args:
        reader: Of the data folder.
        sample: The mask's image.
        path: The mask file.
        kind: What is known of the images.
        as_numbers: Whether the values are numbers of objects.
        colours: Whether its colours are read and not its values; None: where it is in colours.

    Raises:
        InputError: It is damaged, no mask, or lies on another grid than its image.
    """
    raw, size = reader.raw(path), kind.sizes[sample.image]
    palette = read_palette(raw)
    image = decode_indices(raw, where=path)[..., None] if palette and not colours else None
    if image is None:
        image = reader.image(path, keep_alpha=True)
        if image.shape[:2] != size and is_sideways(raw):
            image = reader.image(path, upright=False, keep_alpha=True)
        image = without_transparent(image)
    if colours is None:
        colours = image.shape[2] == 3 and not is_grey(image)
    levels = _packed(image, where=path) if colours else mask_levels(image, where=path, as_numbers=as_numbers)
    if levels.shape != size:
        raise InputError(
            f"{path}: the mask is {levels.shape[0]}x{levels.shape[1]} but its image {sample.image} is "
            f"{size[0]}x{size[1]}; expected equal sizes"
        )
    for further in sample.further_masks or () if path == sample.mask else ():
        part = _drawn_mask(
            reader, replace(sample, further_masks=None), further, kind, as_numbers=as_numbers, colours=colours
        )
        levels = np.maximum(levels, part.levels)
    place, own = kind.places.get(sample.image), read_georeference(raw)
    if place is not None and own is not None and (apart := differing_grids(place, own, size)):
        raise InputError(f"{path}: {apart}; reproject or resample the mask onto the grid of {sample.image}")
    levels = levels if colours else _without_no_data(levels, raw)
    return _DrawnMask(levels, is_lossy(raw), palette, colours)


def _without_no_data(levels: Shaped[np.ndarray, "h w"], raw: bytes) -> Shaped[np.ndarray, "h w"]:
    """Return a mask's values with -1 where the file declares that there is no data; a declared 0 is background."""
    declared = read_no_data(raw)
    if declared in (None, 0, -1) or not (missing := levels == declared).any():
        return levels
    return np.where(missing, np.int32(UNJUDGED), levels)


def _unjudge(reader: ImageReader, sample: Sample, mask: Shaped[np.ndarray, "h w *k"], kind: _Kind) -> None:
    """Mark in a mask, in place, where its image has no data: it is not judged there."""
    if sample.image in kind.gaps:
        missing = reader.missing(sample, reader.sample(sample, upright=sample.image not in kind.as_stored))
        mask[missing] = IGNORE if mask.dtype == np.uint8 else UNJUDGED


def _image_findings(catalog: Catalog, kind: _Kind) -> list[Finding]:
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


def _packed(image: Image, *, where: str) -> Shaped[np.ndarray, "h w"]:
    """Return the packed colours of a mask.

    Raises:
        InputError: They have more than 8 bits a part, or there are other bands than three.
    """
    if image.dtype == np.uint16 and (image % 257 == 0).all():
        image = (image // 257).astype(np.uint8)
    if image.dtype != np.uint8 or image.shape[2] not in (1, 3):
        raise InputError(
            f"{where}: a mask of {image.shape[2]} bands of {image.dtype}; expected one channel, or colours of 8 bits"
        )
    return pack_colours(image)


def _convention(reader: ImageReader, catalog: Catalog, kind: _Kind) -> MaskConvention:
    asked = catalog.asked
    if any(sample.shapes is not None for sample in catalog.train):
        findings = check_drawings(catalog.train, kind.sizes)
        target = drawn_target(asked.task, catalog.classes, where=str(reader.tree.root))
        return MaskConvention({}, findings, target)
    if any(sample.objects is not None for sample in catalog.train):
        if asked.task not in (None, "instances", "binary"):
            raise InputError(
                f"{reader.tree.root}: --task {asked.task}, but the images have a file for each object; leave "
                "--task out, or expected instances, or binary: all objects in one mask"
            )
        return MaskConvention({}, [], BINARY if asked.task == "binary" else OBJECTS)
    with_file = [(sample, sample.mask) for sample in catalog.train if sample.mask]
    with_file += [(sample, path) for sample in catalog.train for path in (sample.label_masks or {}).values()]
    if asked.task == "instances" and not with_file:
        return MaskConvention({}, [], OBJECTS)
    if not with_file and catalog.asked.task == "multiclass":
        raise InputError(
            f"{reader.tree.root}: --task multiclass needs mask files of classes, and there are run-lengths only"
        )
    hints = MaskHints("binary" if catalog.labels else asked.task, tuple(asked.ignore), asked.names)
    found = _find_meaning(reader, with_file, kind, catalog, hints)
    if catalog.labels:
        return replace(found, target=Target("multilabel", tuple(catalog.labels), ignore=hints.ignore))
    if found.target.task == "binary" and len(catalog.classes) == 1:
        return replace(found, target=replace(found.target, classes=tuple(catalog.classes)))
    return found


def _find_meaning(
    reader: ImageReader, with_file: list[tuple[Sample, str]], kind: _Kind, catalog: Catalog, hints: MaskHints
) -> MaskConvention:
    """Decide what the values of mask files mean, or their colours where some are in colours or a table tells them."""
    where = f"{reader.tree.root} (masks)"
    table = check_colours(catalog.asked.colours, where=where) if with_file else {}
    look = _look_at(reader, with_file, kind, colours=None)
    if table and not look.coloured and look.most_value < len(table) and not look.has_colours_of(table):
        hints = replace(
            hints, names=dict(enumerate(table)) | hints.names, palette=tuple(map(_rgb, table.values()))
        )
        return find_convention(look.files, where=where, hints=hints)
    if table or look.coloured:
        coloured = look.coloured
        if look.files:
            rest = {file.path for file in look.files}
            with_rest = [(sample, path) for sample, path in with_file if path in rest]
            coloured = [*coloured, *_look_at(reader, with_rest, kind, colours=True).coloured]
        return find_colours(coloured, table, where=where, hints=hints, labels=bool(catalog.labels))
    longest = max(look.palettes, key=len, default=())
    if all(longest[: len(palette)] == palette for palette in look.palettes):  # else no class has one colour
        hints = replace(hints, palette=longest)
    listed, said = listed_names(look.files, catalog.asked.listed if not hints.names else [], hints)
    convention = find_convention(
        look.files, where=where, hints=replace(hints, names=listed) if listed else hints
    )
    return replace(convention, findings=said + convention.findings)


def _rgb(parts: Sequence[int]) -> Rgb:
    red, green, blue = parts
    return red, green, blue


@dataclass
class _Look:
    """What was seen of the mask files of a set."""

    files: list[MaskFile]
    """Those of values."""
    palettes: set[tuple[Rgb, ...]]
    coloured: list[ColourFile]
    """Those in colours."""

    @property
    def most_value(self) -> int:
        """The largest value of all."""
        return max((value for file in self.files for value in file.counts), default=0)

    def has_colours_of(self, table: Mapping[str, Sequence[int]]) -> bool:
        """Whether all values are greys, or colours of the palette, that a table has."""
        known = {pack(rgb) for rgb in table.values()}
        values = {value for file in self.files for value in file.counts}
        if self.palettes == {()}:
            return all(value * 0x010101 in known for value in values)
        return all(
            pack(palette[value]) in known
            for palette in self.palettes
            for value in values
            if 0 <= value < len(palette)
        )


def _look_at(
    reader: ImageReader, with_file: list[tuple[Sample, str]], kind: _Kind, *, colours: bool | None
) -> _Look:
    """Return what decides the meaning of mask files, given with their samples; of ``colours`` see _drawn_mask.

    Raises:
        InputError: Some are damaged or of another size; all are named.
    """
    look, problems = _Look([], set(), []), []
    for sample, path in track(with_file, total=len(with_file), what="looking at masks"):
        try:
            drawn = _drawn_mask(reader, sample, path, kind, colours=colours)
        except InputError as error:
            problems.append(str(error))
            continue
        if drawn.colours:
            look.coloured.append(look_at_colours(drawn.levels, name=sample.id, path=path, lossy=drawn.lossy))
            continue
        look.files.append(look_at_mask(drawn.levels, name=sample.id, path=path, lossy=drawn.lossy))
        look.palettes.add(drawn.palette)
    refuse_all(problems, what="masks")
    return look


def _mask(reader: ImageReader, sample: Sample, convention: MaskConvention, kind: _Kind, dialect: str) -> Mask:
    if sample.shapes is not None:
        values = class_numbers(convention.target, (shape.label for shape in sample.shapes))
        return draw_classes(sample.shapes, values, kind.sizes[sample.image])
    if sample.objects is not None:
        return (_objects(reader, sample, kind, dialect, convention).labels > 0).view(np.uint8)
    drawn = None
    if sample.mask:
        file = _drawn_mask(reader, sample, sample.mask, kind, colours=convention.colours)
        drawn = convention.apply(file.levels, lossy=file.lossy)
    if sample.rle is None:
        assert drawn is not None
        return drawn
    size = kind.sizes[sample.image]
    told = decode_rows(
        sample.rle, shape=size, dialect=dialect, where=f"run-lengths of training image {sample.id!r}"
    )
    if drawn is not None and (differing := differing_pixels(told, drawn)):
        raise InputError(
            f"training image {sample.id!r}: its mask file {sample.mask} and its run-lengths differ in {differing} "
            "pixels; correct one of them or remove it"
        )
    return told if drawn is None else drawn


def _write_masks(path: Path, reader: ImageReader, catalog: Catalog, kind: _Kind) -> MaskConvention:
    """Write the masks; return what was found out about their values."""
    convention = _convention(reader, catalog, kind)
    if convention.target.task == "instances":
        return _write_objects(path, reader, catalog, kind, convention)
    layers = len(catalog.labels) or 1
    shapes = [(sample.id, (*kind.sizes[sample.image], layers)) for sample in catalog.train]
    writer = StoreWriter(path, shapes, dtype=np.uint8)
    counts, problems = LayerCounts(layers), []
    for sample in track(catalog.train, total=len(catalog.train), what="decoding masks"):
        try:
            mask = (
                _layers(reader, sample, convention, kind, catalog)
                if catalog.labels
                else _mask(reader, sample, convention, kind, catalog.submission.dialect)[..., None]
            )
        except InputError as error:
            problems.append(str(error))
            continue
        _unjudge(reader, sample, mask, kind)
        counts.add(mask)
        writer.write(sample.id, mask)
    refuse_all(problems, what="masks")
    writer.close()
    if not counts.pixels.any():
        raise InputError(f"{reader.tree.root} (masks): every mask is empty; there is nothing to learn")
    return replace(convention, findings=[*convention.findings, *counts.findings(catalog.labels)])


def _layers(
    reader: ImageReader, sample: Sample, convention: MaskConvention, kind: _Kind, catalog: Catalog
) -> UInt8[np.ndarray, "h w k"]:
    """Return the masks of all labels of a training image, a layer each, from its mask files or its rows."""
    size = kind.sizes[sample.image]
    if sample.shapes is not None:
        return draw_layers(sample.shapes, catalog.labels, size)
    layers = np.zeros((*size, len(catalog.labels)), np.uint8)
    for at, label in enumerate(catalog.labels):
        if path := (sample.label_masks or {}).get(label):
            file = _drawn_mask(reader, sample, path, kind, colours=convention.colours)
            layers[..., at] = convention.apply(file.levels, lossy=file.lossy)
        where = f"run-lengths of training image {sample.id!r}, class {label!r}"
        if texts := (sample.labels or {}).get(label):
            layers[..., at] = decode_rows(texts, shape=size, dialect=catalog.submission.dialect, where=where)
    return layers


def _write_objects(
    path: Path, reader: ImageReader, catalog: Catalog, kind: _Kind, convention: MaskConvention
) -> MaskConvention:
    """Write the objects of all training images as label maps, int32 (h, w, 1)."""
    shapes = [(sample.id, (*kind.sizes[sample.image], 1)) for sample in catalog.train]
    writer = StoreWriter(path, shapes, dtype=np.int32)
    found, problems, unjudged = {}, [], 0
    for sample in track(catalog.train, total=len(catalog.train), what="decoding objects"):
        try:
            objects = _objects(reader, sample, kind, catalog.submission.dialect, convention)
        except InputError as error:
            problems.append(str(error))
            continue
        _unjudge(reader, sample, objects.labels, kind)
        writer.write(sample.id, objects.labels[..., None])
        unjudged += int((objects.labels == UNJUDGED).sum())
        found[sample.id] = replace(objects, labels=np.zeros((0, 0), np.int32))  # the counts alone are kept
    refuse_all(problems, what="objects")
    writer.close()
    if not any(one.count for one in found.values()):
        raise InputError(f"{reader.tree.root} (masks): no image has an object; there is nothing to learn")
    counts = sorted(one.count for one in found.values())
    middle = counts[len(counts) // 2]
    detail = f"{sum(counts)} in {len(counts)} images, {counts[0]} to {counts[-1]} in one (median {middle})"
    said = [Finding("note", "objects", detail), *convention.findings]
    if unjudged and not convention.findings:
        share = unjudged / sum(height * width for _, (height, width, _) in shapes)
        said.append(Finding("note", "masks with pixels not judged", f"{share:.2%} of all pixels"))
    return replace(convention, findings=[*said, *object_findings(found)])


def _objects(
    reader: ImageReader, sample: Sample, kind: _Kind, dialect: str, convention: MaskConvention
) -> Objects:
    """Return the objects of a training image from its object files, its rows, or its label image or mask."""
    size = kind.sizes[sample.image]
    if sample.shapes is not None:
        return draw_objects(sample.shapes, size)
    if sample.objects is not None:
        return objects_of_files(((path, reader.raw(path)) for path in sample.objects), shape=size)
    if sample.rle is not None:
        where = f"run-lengths of training image {sample.id!r}"
        return objects_of_rows(sample.rle, shape=size, dialect=dialect, where=where)
    assert sample.mask is not None
    file = _drawn_mask(
        reader, sample, sample.mask, kind, as_numbers=not convention.table, colours=convention.colours
    )
    if convention.colours:
        return objects_of_image(file.levels[..., None], where=sample.mask)  # each colour but black is one
    if convention.table:
        return objects_of_mask(convention.apply(file.levels, lossy=file.lossy))
    unjudged = (*convention.target.ignore, MAX_PNG_LABEL + 1)  # as label_png writes it
    return objects_of_image(file.levels[..., None], where=sample.mask, unjudged=unjudged)


def build_cache(catalog: Catalog, folder: Path) -> Cache:
    """Decode the data into ``folder`` unless that was done, and open it.

    Raises:
        InputError: An image or mask is damaged, sizes differ, mask values or run-lengths make no sense.
    """
    ledger, key = Ledger(folder), _key(catalog)
    if is_built(catalog, folder):
        try:
            return open_cache(folder)
        except InputError as error:
            logger.warning("%s", error)
    logger.info("reading %d training and %d test images", len(catalog.train), len(catalog.test))
    reader = ImageReader(Tree(Path(catalog.root)))
    forget_cache(folder)
    for name, suffix in product(_STORES, (".npy", ".csv")):
        remove(folder / f"{name}{suffix}")
    kind = _survey(reader, catalog)
    _write_images(folder / "train_images.npy", reader, catalog.train, kind)
    convention = _write_masks(folder / "train_masks.npy", reader, catalog, kind)
    found = [*convention.findings, *_turn_findings(kind), *_image_findings(catalog, kind)]
    convention = replace(convention, findings=found)
    for finding in convention.findings:
        logger.info("%s: %s: %s", finding.level, finding.title, finding.detail)
    write_json(folder / _FINDINGS, [asdict(finding) for finding in convention.findings])
    write_json(folder / _TARGET, convention.target.to_json())
    remove(folder / _NO_DATA)
    if kind.no_data is not None:
        write_json(folder / _NO_DATA, kind.no_data)
    _write_images(folder / "test_images.npy", reader, catalog.test, kind)
    ledger.mark_done(VERSION, key)
    return open_cache(folder)


def is_built(catalog: Catalog, folder: Path) -> bool:
    """Whether the data was decoded into ``folder``, so that build_cache only opens it."""
    return Ledger(folder).is_done(VERSION, _key(catalog))


def _key(catalog: Catalog) -> str:
    return digest(catalog.content_hash, catalog.submission.dialect, str(catalog.asked), *catalog.labels)


def open_cache(folder: Path, *, forget: bool = True) -> Cache:
    """Open stores that build_cache has made; one that proves damaged is made again by the next command.

    Args:
        folder: Where they lie.
        forget: Whether damage is recorded; False only reads.
    """
    on_damage = (lambda: forget_cache(folder)) if forget else None
    train, masks, test = (Store(folder / f"{name}.npy", on_damage=on_damage) for name in _STORES)
    findings, target = folder / _FINDINGS, folder / _TARGET
    for path in (findings, target):
        if not path.exists():
            raise InputError(f"{path}: it is not there; the next command decodes the data again")
    found = [Finding(**one) for one in read_json(findings)]
    no_data = read_json(folder / _NO_DATA) if (folder / _NO_DATA).exists() else None
    return Cache(train, masks, test, found, Target.from_json(read_json(target)), no_data)


def forget_cache(folder: Path) -> None:
    """Record that the cache is not made: the next build_cache decodes the data again."""
    remove(Ledger(folder).path)
