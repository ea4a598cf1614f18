"""Regions and objects as polygons.

An edge of a polygon is an edge between pixels, so that its area is the number of its pixels. Pixels that touch at a
corner alone are two polygons: a ring that touches itself is not valid. GDAL finds them (GDALPolygonize).

Source: GeoJSON, RFC 7946, and the member ``crs`` of GeoJSON 2008, which GIS programs still read.
"""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from masksmith.core.arrays import Float, Shaped, UInt8
from masksmith.core.errors import InputError
from masksmith.deploy.outputs.rasters import is_georeferenced, opened
from masksmith.deploy.picture import Segmented, shown_classes

Ring = Float[np.ndarray, "n 2"]
Polygon = list[Ring]
"""The outer ring, then the holes; (x, y) in pixels from the upper left corner of the image."""


def write_geojson(path: Path, one: Segmented) -> None:
    """Write a feature for each region or object, with class, number and area, as one FeatureCollection.

    Coordinates are those of the map where the input is georeferenced (in its own reference system, named in ``crs``),
    else columns and rows of pixels from the upper left corner. ``area`` counts pixels.
    """
    head: dict[str, Any] = {"type": "FeatureCollection", "name": one.picture.id}
    affine = np.eye(3)
    with suppress(InputError), opened(one.picture) as source:  # what GDAL cannot read lies nowhere
        if is_georeferenced(source) and (source.height, source.width) == one.hw:
            affine = np.reshape(source.transform, (3, 3))
            if source.crs is not None:
                head["crs"] = {"type": "name", "properties": {"name": _name_of(source.crs)}}
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps(head)[:-1] + ', "features": [')
        for at, feature in enumerate(_features(one, affine)):
            file.write(f"{',' if at else ''}\n{json.dumps(feature, ensure_ascii=False)}")
        file.write("\n]}\n")


def _name_of(crs: Any) -> str:  # noqa: ANN401
    authority = crs.to_authority()
    return f"urn:ogc:def:crs:{authority[0]}::{authority[1]}" if authority else str(crs.to_wkt())


def _features(one: Segmented, affine: Float[np.ndarray, "3 3"]) -> Iterator[dict[str, Any]]:
    for number, (label, value, parts) in enumerate(_found(one), start=1):
        area = sum(abs(_area(outer)) - sum(abs(_area(hole)) for hole in holes) for outer, *holes in parts)
        placed = [
            [_placed(ring, affine, hole=at > 0) for at, ring in enumerate(polygon)] for polygon in parts
        ]
        single = len(placed) == 1
        yield {
            "type": "Feature",
            "properties": {"class": label, "object": value or number, "area": round(area)},
            "geometry": {
                "type": "Polygon" if single else "MultiPolygon",
                "coordinates": placed[0] if single else placed,
            },
        }


def _found(one: Segmented) -> Iterator[tuple[str, int, list[Polygon]]]:
    """Yield class, number (of objects, else 0) and polygons of each feature."""
    mask, target = one.mask, one.target
    if target.task == "instances":
        objects: dict[int, list[Polygon]] = {}
        for polygon, value in _polygons(mask, (mask > 0).view(np.uint8)):
            objects.setdefault(value, []).append(polygon)
        yield from ((target.classes[0], value, objects[value]) for value in sorted(objects))
    elif target.exclusive:
        names = dict(shown_classes(target))
        inside = None if 0 in names else mask
        for polygon, value in _polygons(mask, inside):
            yield names[value], 0, [polygon]
    else:
        layers = mask if mask.ndim == 3 else mask[..., None]
        for at, label in enumerate(target.classes):
            layer = np.ascontiguousarray(layers[..., at])
            for polygon, _ in _polygons(layer, layer):
                yield label, 0, [polygon]


def _polygons(
    values: Shaped[np.ndarray, "h w"], inside: UInt8[np.ndarray, "h w"] | None
) -> Iterator[tuple[Polygon, int]]:
    """Yield the polygons of equal values, where ``inside`` is not 0, with their value."""
    from rasterio.features import shapes

    for shape, value in shapes(values, mask=inside, connectivity=4):
        yield [np.array(ring) for ring in shape["coordinates"]], int(value)


def _area(ring: Ring) -> float:
    """Return the area within a closed ring; it is negative where the ring runs with the clock (y upwards)."""
    x, y = ring[:-1].T
    return float(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2


def _placed(ring: Ring, affine: Float[np.ndarray, "3 3"], *, hole: bool) -> list[list[float]]:
    """Return a ring on the map; outer rings run against the clock, holes with it."""
    placed: Ring = ring @ affine[:2, :2].T + affine[:2, 2]
    if (_area(placed) < 0) != hole:
        placed = placed[::-1]
    return placed.tolist()
