"""What the masks of a data set mean, and all of them in one file of the cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from masksmith.core.arrays import IGNORE, UNJUDGED, Image, Mask, Shaped, UInt8
from masksmith.core.errors import InputError
from masksmith.core.progress import track
from masksmith.data.catalog import Catalog, Sample
from masksmith.data.colour_masks import ColourFile, find_colours, look_at_colours
from masksmith.data.colour_tables import check_colours
from masksmith.data.colours import Rgb, pack, pack_colours, without_transparent
from masksmith.data.decode.orientation import is_sideways
from masksmith.data.decode.palette import decode_indices, read_palette
from masksmith.data.decode.pictures import is_grey
from masksmith.data.decode.reader import ImageReader
from masksmith.data.decode.tiff import read_no_data
from masksmith.data.decoded_images import Kind
from masksmith.data.dialect import differing_pixels
from masksmith.data.findings import Finding, refuse_all
from masksmith.data.georeference import differing_grids, read_georeference
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
from masksmith.data.store import StoreWriter
from masksmith.data.target import BINARY, OBJECTS, Target


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
    kind: Kind,
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


def _unjudge(reader: ImageReader, sample: Sample, mask: Shaped[np.ndarray, "h w *k"], kind: Kind) -> None:
    """Mark in a mask, in place, where its image has no data: it is not judged there."""
    if sample.image in kind.gaps:
        missing = reader.missing(sample, reader.sample(sample, upright=sample.image not in kind.as_stored))
        mask[missing] = IGNORE if mask.dtype == np.uint8 else UNJUDGED


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


def _convention(reader: ImageReader, catalog: Catalog, kind: Kind) -> MaskConvention:
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
    reader: ImageReader, with_file: list[tuple[Sample, str]], kind: Kind, catalog: Catalog, hints: MaskHints
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
    reader: ImageReader, with_file: list[tuple[Sample, str]], kind: Kind, *, colours: bool | None
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


def _mask(reader: ImageReader, sample: Sample, convention: MaskConvention, kind: Kind, dialect: str) -> Mask:
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


def write_masks(path: Path, reader: ImageReader, catalog: Catalog, kind: Kind) -> MaskConvention:
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
    reader: ImageReader, sample: Sample, convention: MaskConvention, kind: Kind, catalog: Catalog
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
    path: Path, reader: ImageReader, catalog: Catalog, kind: Kind, convention: MaskConvention
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
    reader: ImageReader, sample: Sample, kind: Kind, dialect: str, convention: MaskConvention
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
