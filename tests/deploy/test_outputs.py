"""What is written beside masks, read again with the libraries of those who will read it."""

import csv
import json
from pathlib import Path

import cv2
import highdicom
import nibabel
import numpy as np
import pydicom
import pytest
import rasterio
import tifffile
from affine import Affine
from pycocotools import mask as coco_mask

from masksmith.core.errors import InputError
from masksmith.data.array_store import ArrayStore
from masksmith.data.rle import decode, decode_rows
from masksmith.data.target import BINARY, OBJECTS, Target
from masksmith.deploy.listing import list_items
from masksmith.deploy.outputs import KINDS, check_kinds
from masksmith.deploy.outputs.masks import Masks
from masksmith.deploy.picture import Picture, Segmented
from masksmith.prediction.store import MeanCodes, to_codes
from masksmith.submission.formats import write_masks
from tests.data.dicoms import dicom, uid

CLASSES = Target("multiclass", ("soil", "water", "road"), values=(0, 7, 300))
NO_BACKGROUND = Target("multiclass", ("water", "road"), values=(1, 2))
LABELS = Target("multilabel", ("kidney", "tumour"))
PLACE = Affine(0.5, 0, 440_000, 0, -0.5, 5_650_000)


def blobs(height: int = 40, width: int = 56) -> np.ndarray:
    """A mask with a hole, an island in it, a corner that touches, and the edge of the image."""
    mask = np.zeros((height, width), np.uint8)
    mask[5:25, 8:30] = 1
    mask[10:20, 12:22] = 0
    mask[13:15, 15:18] = 1
    mask[25:30, 30:40] = 1  # touches at a corner
    mask[35:, 50:] = 1
    return mask


def masks_of(target: Target) -> np.ndarray:
    mask = blobs()
    if target.task == "binary":
        return mask
    if target.task == "instances":
        return cv2.connectedComponents(mask, connectivity=4)[1].astype(np.int32)
    if target.task == "multilabel":
        return np.stack([mask, np.roll(mask, 3, axis=0)], axis=-1)
    found = mask.copy()
    found[30:, :10] = len(target.classes) - 1
    return found


def geotiff(path: Path, hw: tuple[int, int], *, bands: int = 1, crs="EPSG:32633", no_data=None) -> np.ndarray:
    image = np.random.default_rng(0).integers(1, 255, (bands, *hw), np.uint8)
    image[:, :3] = 0 if no_data is None else no_data
    image[0, 0, 0] = 9  # one band has data there, if there are several
    profile = {"driver": "GTiff", "height": hw[0], "width": hw[1], "count": bands, "dtype": "uint8"}
    with rasterio.open(path, "w", **profile, crs=crs, transform=PLACE, nodata=no_data) as file:
        file.write(image)
    return np.moveaxis(image, 0, 2)


def segmented(path: Path, target: Target, mask: np.ndarray | None = None) -> Segmented:
    """An image in a file, with a mask and probabilities."""
    mask = masks_of(target) if mask is None else mask
    (item,) = list_items([path])
    probs = np.random.default_rng(1).random((*mask.shape[:2], target.outputs), np.float32)
    codes = MeanCodes([ArrayStore({item.id: to_codes(probs)})])
    images = ArrayStore({item.id: np.zeros((*mask.shape[:2], 1), np.uint8)})
    return Segmented(Picture(item.id, item, item.path), images, codes, mask, target)


def png(path: Path) -> Path:
    assert cv2.imwrite(str(path), np.arange(40 * 56, dtype=np.uint8).reshape(40, 56))
    return path


def numbers_of(mask: np.ndarray, target: Target) -> np.ndarray:
    return np.array(target.values)[mask] if target.exclusive else mask


@pytest.mark.parametrize("target", [BINARY, CLASSES, LABELS, OBJECTS], ids=lambda target: target.task)
def test_tiffs_and_geotiffs_hold_the_labels_and_lie_where_the_image_lies(target, tmp_path):
    geotiff(tmp_path / "scene.tif", (40, 56), bands=3, no_data=0)
    one = segmented(tmp_path / "scene.tif", target)
    numbers = numbers_of(one.mask, target)
    KINDS["tiff"].write(tmp_path / "out.tif", one)
    plain = tifffile.imread(tmp_path / "out.tif")
    assert np.array_equal(np.moveaxis(plain, 0, 2) if plain.ndim == 3 else plain, numbers)
    KINDS["geotiff"].write(tmp_path / "geo.tif", one)
    with rasterio.open(tmp_path / "geo.tif") as file:
        assert (file.crs.to_epsg(), file.transform) == (32633, PLACE)
        assert file.profile["tiled"]
        assert file.profile["compress"] == "deflate"
        assert file.nodata == (255 if target in (BINARY, LABELS) else 65535)
        found = np.moveaxis(file.read(), 0, 2)
    assert (
        found[:3].reshape(-1, found.shape[2])[1:] == found.dtype.type(-1 % 2 ** (8 * found.itemsize))
    ).all()
    assert np.array_equal(found[3:], (numbers if numbers.ndim == 3 else numbers[..., None])[3:])
    assert np.array_equal(found[0, 0], np.atleast_1d(numbers[0, 0]))  # a band has data there


def test_geotiffs_of_images_without_place_or_turned_are_refused(tmp_path):
    with pytest.raises(InputError, match="it has no georeference; expected a GeoTIFF"):
        KINDS["geotiff"].write(tmp_path / "out.tif", segmented(png(tmp_path / "a.png"), BINARY))
    geotiff(tmp_path / "scene.tif", (56, 40))
    with pytest.raises(InputError, match="GDAL sees 56x40 pixels, the mask has 40x56"):
        KINDS["geotiff"].write(tmp_path / "out.tif", segmented(tmp_path / "scene.tif", BINARY))
    (tmp_path / "bad.tif").write_bytes(b"II*\0 and no more")
    with pytest.raises(InputError, match="GDAL cannot read it"):
        KINDS["geotiff"].write(tmp_path / "out.tif", segmented(tmp_path / "bad.tif", BINARY))


def test_pixels_of_nan_are_no_data_and_whole_numbers_without_a_declared_value_are_all_data(tmp_path):
    image = np.ones((2, 40, 56), np.float32)
    image[:, 4] = np.nan
    image[0, 5] = np.nan
    profile = {"driver": "GTiff", "height": 40, "width": 56, "count": 2, "dtype": "float32", "nodata": -9999}
    image[:, 6] = -9999
    with rasterio.open(tmp_path / "scene.tif", "w", **profile, crs="EPSG:4326", transform=PLACE) as file:
        file.write(image)
    KINDS["geotiff"].write(tmp_path / "out.tif", segmented(tmp_path / "scene.tif", BINARY))
    with rasterio.open(tmp_path / "out.tif") as file:
        empty = (file.read(1) == 255).any(axis=1)
    assert np.flatnonzero(empty).tolist() == [4, 6]
    geotiff(tmp_path / "whole.tif", (40, 56))
    KINDS["geotiff"].write(tmp_path / "out.tif", segmented(tmp_path / "whole.tif", BINARY))
    with rasterio.open(tmp_path / "out.tif") as file:
        assert np.array_equal(file.read(1), blobs())


def test_probabilities_are_codes_or_a_geotiff(tmp_path):
    geotiff(tmp_path / "scene.tif", (40, 56), no_data=0)
    one = segmented(tmp_path / "scene.tif", CLASSES)
    KINDS["probs"].write(tmp_path / "probs.npy", one)
    codes = np.load(tmp_path / "probs.npy")
    assert codes.dtype == np.uint16
    assert np.array_equal(codes, one.codes["scene"])
    KINDS["probs-geotiff"].write(tmp_path / "probs.tif", one)
    with rasterio.open(tmp_path / "probs.tif") as file:
        probs = np.moveaxis(file.read(), 0, 2)
        assert file.descriptions == CLASSES.classes
        assert (file.crs.to_epsg(), file.dtypes[0]) == (32633, "float32")
    assert np.isnan(probs[1]).all()
    assert np.array_equal(probs[3:], (codes / np.float32(65535))[3:])


def shoelace(ring: list[list[float]]) -> float:
    x, y = np.array(ring).T
    assert ring[0] == ring[-1]
    return float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1])) / 2


def polygons_of(feature: dict) -> list:
    shape = feature["geometry"]
    return [shape["coordinates"]] if shape["type"] == "Polygon" else shape["coordinates"]


@pytest.mark.parametrize(
    "target",
    [BINARY, CLASSES, NO_BACKGROUND, LABELS, OBJECTS],
    ids=["binary", "classes", "all", "labels", "objects"],
)
@pytest.mark.parametrize("placed", [True, False], ids=["map", "pixels"])
def test_polygons_have_the_area_of_the_masks(target, placed, tmp_path):
    if placed:
        geotiff(tmp_path / "scene.tif", (40, 56))
    one = segmented(tmp_path / "scene.tif" if placed else png(tmp_path / "a.png"), target)
    KINDS["geojson"].write(tmp_path / "out.geojson", one)
    found = json.loads((tmp_path / "out.geojson").read_text())
    assert found.get("crs", {}).get("properties") == (
        {"name": "urn:ogc:def:crs:EPSG::32633"} if placed else None
    )
    areas: dict[str, int] = {}
    for feature in found["features"]:
        own = feature["properties"]
        areas[own["class"]] = areas.get(own["class"], 0) + own["area"]
        rings = [ring for polygon in polygons_of(feature) for ring in polygon]
        assert sum(map(shoelace, rings)) == own["area"] * (0.25 if placed else 1)  # holes run the other way
        assert all(shoelace(polygon[0]) > 0 for polygon in polygons_of(feature))
    mask = one.mask
    if target is LABELS:
        wanted = {name: int(mask[..., at].sum()) for at, name in enumerate(target.classes)}
    elif target.exclusive:
        wanted = {
            name: int((mask == at).sum()) for at, name in enumerate(target.classes) if target.values[at]
        }
    else:
        wanted = {target.classes[0]: int((mask > 0).sum())}
    assert areas == wanted
    if target is OBJECTS:
        assert [feature["properties"]["object"] for feature in found["features"]] == [1, 2, 3, 4]
    if placed:
        xs, ys = np.concatenate([ring for f in found["features"] for p in polygons_of(f) for ring in p]).T
        left, bottom, right, top = rasterio.transform.array_bounds(40, 56, PLACE)
        assert left <= xs.min()
        assert xs.max() <= right
        assert bottom <= ys.min()
        assert ys.max() <= top


def test_objects_of_several_parts_are_one_feature(tmp_path):
    mask = masks_of(OBJECTS)
    mask[mask == 3] = 1
    KINDS["geojson"].write(tmp_path / "out.geojson", segmented(png(tmp_path / "a.png"), OBJECTS, mask))
    shapes = json.loads((tmp_path / "out.geojson").read_text())["features"]
    assert [shape["geometry"]["type"] for shape in shapes] == ["MultiPolygon", "Polygon", "Polygon"]


# --- of several images ---


def written(tmp_path: Path, target: Target, masks: dict[str, np.ndarray], dialect: str = "tgs") -> Masks:
    folder = tmp_path / "masks"
    list(write_masks(folder, masks.items(), target, where=folder))
    return Masks(folder, target, dialect)


def pictures_of(path: Path) -> list[Picture]:
    found = []
    for item in list_items([path]):
        count = item.reader.count(item.path)
        found += [
            Picture(
                *(
                    (item.id, item, item.path)
                    if count == 1
                    else (f"{item.id}_{at:04d}", item, f"{item.path}#{at}")
                )
            )
            for at in range(count)
        ]
    return found


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools
@pytest.mark.parametrize("target", [BINARY, CLASSES, LABELS, OBJECTS], ids=lambda target: target.task)
def test_coco_annotations_are_the_masks(target, tmp_path):
    (tmp_path / "in").mkdir()
    pictures = [pictures_of(png(tmp_path / "in" / f"{name}.png"))[0] for name in "ab"]
    mask, empty = masks_of(target), np.zeros_like(masks_of(target))
    KINDS["coco"].write(tmp_path / "coco.json", pictures, written(tmp_path, target, {"a": empty, "b": mask}))
    found = json.loads((tmp_path / "coco.json").read_text())
    assert [image["file_name"] for image in found["images"]] == ["a.png", "b.png"]
    names = {one["id"]: one["name"] for one in found["categories"]}
    assert list(names.values()) == list(target.classes[1:] if target.exclusive else target.classes)
    drawn = {name: np.zeros(mask.shape[:2], np.uint8) for name in names.values()}
    assert [one["id"] for one in found["annotations"]] == list(range(1, len(found["annotations"]) + 1))
    for one in found["annotations"]:
        assert one["image_id"] == 2
        drawn[names[one["category_id"]]] |= coco_mask.decode(one["segmentation"])
    for name, layer in drawn.items():
        at = target.classes.index(name)
        right = mask[..., at] if target is LABELS else mask == at if target.exclusive else mask > 0
        assert np.array_equal(layer, right)
    assert (
        len(found["annotations"])
        == {"binary": 3, "multiclass": 4, "multilabel": 7, "instances": 4}[target.task]
    )


def test_regions_of_images_that_are_too_large_to_number_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("masksmith.deploy.outputs.tables._MOST_LABELLED", 1000)
    with pytest.raises(InputError, match="coco numbers the regions of images of up to 1,000 pixels"):
        KINDS["coco"].write(
            tmp_path / "coco.json",
            pictures_of(png(tmp_path / "a.png")),
            written(tmp_path, BINARY, {"a": blobs()}),
        )


@pytest.mark.parametrize("target", [BINARY, CLASSES, LABELS, OBJECTS], ids=lambda target: target.task)
@pytest.mark.parametrize("dialect", ["tgs", "siim", "dsb_row_major"])
def test_run_lengths_are_the_masks(target, dialect, tmp_path):
    mask = masks_of(target)
    KINDS["rle"].write(
        tmp_path / "rle.csv",
        pictures_of(png(tmp_path / "a.png")),
        written(tmp_path, target, {"a": mask}, dialect),
    )
    with (tmp_path / "rle.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["id"] for row in rows} == {"a"}
    dialect = "dsb" if target is OBJECTS and dialect != "dsb_row_major" else dialect
    for at, name in enumerate(target.classes):
        texts = [row["rle"] for row in rows if row["class"] == name]
        right = mask[..., at] if target is LABELS else mask == at if target.exclusive else mask > 0
        if target.exclusive and at == 0:
            assert texts == []
            continue
        assert np.array_equal(decode_rows(texts, shape=(40, 56), dialect=dialect, where="rle"), right)
        if dialect in ("tgs", "siim"):
            assert len(texts) == 1
            decode(texts[0], shape=(40, 56), dialect=dialect)


@pytest.mark.parametrize("target", [BINARY, CLASSES, OBJECTS], ids=lambda target: target.task)
@pytest.mark.parametrize("axes", ["RAS", "LPS", "IPL", "ASR"])
def test_a_volume_gets_its_labels_on_its_grid(target, axes, tmp_path):
    (tmp_path / "in").mkdir()
    source = volume(tmp_path / "in" / "ct.nii.gz", axes)
    png(tmp_path / "in" / "photo.png")
    pictures = pictures_of(tmp_path / "in")
    count = len(pictures) - 1
    assert pictures[-1].id == "photo"
    values = [one.item.reader.image(one.path)[..., 0] for one in pictures[:count]]
    masks = {}  # of each slice: the voxels above 100, as labels of the task
    for one, image in zip(pictures[:count], values, strict=True):
        mask = (image > 100).astype(np.uint8) * (len(target.classes) - 1 if target.exclusive else 1)
        masks[one.id] = cv2.connectedComponents(mask)[1] if target is OBJECTS else mask
    ((name, own),) = KINDS["nifti"].groups(pictures).items()
    assert name == "nifti/ct.nii.gz"
    KINDS["nifti"].write(tmp_path / "labels.nii.gz", own, written(tmp_path, target, masks))
    found = nibabel.load(tmp_path / "labels.nii.gz")
    assert np.array_equal(found.affine, source.affine)
    for field in ("qform_code", "sform_code", "xyzt_units"):
        assert found.header[field] == source.header[field]
    labels, inside = np.asanyarray(found.dataobj), np.asanyarray(source.dataobj) > 100
    assert labels.shape == source.shape
    assert labels.dtype.kind in "iu"
    assert np.array_equal(labels > 0, inside)
    numbers = np.unique(labels[inside])
    if target is OBJECTS:  # each slice has its own
        assert numbers.tolist() == list(range(1, 1 + sum(int(mask.max()) for mask in masks.values())))
    else:
        assert numbers.tolist() == [300 if target is CLASSES else 1]
    with pytest.raises(InputError, match="labels that overlap are no one label volume"):
        KINDS["nifti"].write(tmp_path / "labels.nii.gz", own, Masks(tmp_path, LABELS))


def volume(path: Path, axes: str) -> nibabel.Nifti1Image:
    """A volume whose axes run as the letters say; the voxels are longest from left to right."""
    affine = np.array([[4, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 1.5, 5], [0, 0, 0, 1.0]])
    values = np.random.default_rng(0).integers(0, 255, (5, 8, 11)).astype(np.int16)
    turn = nibabel.orientations.ornt_transform(*map(nibabel.orientations.axcodes2ornt, ("RAS", axes)))
    image = nibabel.Nifti1Image(values, affine).as_reoriented(turn)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, path)
    assert nibabel.aff2axcodes(image.affine) == tuple(axes)
    return nibabel.load(path)


def ct_slice(path: Path, at: int, *, series: str, place: bool = True) -> pydicom.Dataset:
    """A slice of a CT, the higher the number, the further up."""
    where = {
        "ImagePositionPatient": [-20, -30, 2.5 * at],
        "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
        "FrameOfReferenceUID": uid("frame"),
        "SliceThickness": 2.5,
    }
    raw = dicom(
        np.full((40, 56), at, np.int16),
        name=f"{series} {at}",
        SeriesInstanceUID=series,
        StudyInstanceUID=uid("study"),
        PatientID="p1",
        PatientName="Doe^Jane",
        PixelSpacing=[0.7, 0.7],
        **(where if place else {"sop_class": "1.2.840.10008.5.1.4.1.1.1.1", "Modality": "DX"}),
    )
    path.write_bytes(raw)
    return pydicom.dcmread(path)


def series(folder: Path, count: int = 3, uid: str = "1.2.3") -> list[pydicom.Dataset]:
    folder.mkdir(parents=True)
    return [ct_slice(folder / f"{name}.dcm", at, series=uid) for at, name in enumerate("cab"[:count])]


@pytest.mark.parametrize("target", [BINARY, CLASSES, LABELS, OBJECTS], ids=lambda target: target.task)
def test_a_series_gets_one_segmentation_that_names_its_slices(target, tmp_path):
    sources = series(tmp_path / "in" / "head")
    pictures = pictures_of(tmp_path / "in")
    mask = masks_of(target)
    by_id = {"head/a": mask, "head/b": mask * 0, "head/c": np.roll(mask, 2, axis=1)}
    masks = written(tmp_path, target, by_id)
    ((name, own),) = KINDS["dicom-seg"].groups(pictures).items()
    assert name == "dicom-seg/head/1.2.3.dcm"
    KINDS["dicom-seg"].write(tmp_path / "seg.dcm", own, masks)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    uids = {f"head/{name}": source.SOPInstanceUID for name, source in zip("cab", sources, strict=True)}
    asked = [uids[name] for name in ("head/a", "head/b", "head/c")]
    pixels = seg.get_pixels_by_source_instance(asked)  # (n, h, w, segments)
    for at, name in enumerate(("head/a", "head/b", "head/c")):
        right = by_id[name]
        if target is OBJECTS:
            assert np.array_equal(pixels[at].any(axis=-1), right > 0)
            continue
        layers = (
            right
            if target is LABELS
            else np.stack([right == code for code in range(1, 1 + pixels.shape[3])], axis=-1)
        )
        assert np.array_equal(pixels[at], layers)
    data = pydicom.dcmread(tmp_path / "seg.dcm")
    assert data.SOPClassUID == "1.2.840.10008.5.1.4.1.1.66.4"
    assert data.StudyInstanceUID == sources[0].StudyInstanceUID
    labels = [one.SegmentLabel for one in data.SegmentSequence]
    objects = [f"object {at}" for at in range(1, 2 * int(mask.max()) + 1)]
    assert labels == (
        objects if target is OBJECTS else list(target.classes[1:] if target.exclusive else target.classes)
    )


def test_images_without_a_place_in_space_and_empty_masks_get_one_too(tmp_path):
    (tmp_path / "in").mkdir()
    ct_slice(tmp_path / "in" / "xray.dcm", 0, series="1.2.9", place=False)
    ct_slice(tmp_path / "in" / "other.dcm", 1, series="1.2.9", place=False)
    png(tmp_path / "in" / "photo.png")
    groups = KINDS["dicom-seg"].groups(pictures_of(tmp_path / "in"))
    assert list(groups) == ["dicom-seg/other.dcm", "dicom-seg/xray.dcm"]
    for mask in (blobs(), blobs() * 0):
        masks = written(tmp_path, BINARY, {"xray": mask})
        KINDS["dicom-seg"].write(tmp_path / "seg.dcm", groups["dicom-seg/xray.dcm"], masks)
        pixels = pydicom.dcmread(tmp_path / "seg.dcm").pixel_array
        assert np.array_equal(pixels.reshape(40, 56), mask)


def test_images_that_lack_what_a_segmentation_must_repeat_are_refused(tmp_path):
    raw = dicom(np.zeros((40, 56), np.int16), SeriesInstanceUID="1.2.9")
    (tmp_path / "a.dcm").write_bytes(raw)
    masks = written(tmp_path, BINARY, {"a": blobs()})
    with pytest.raises(InputError, match="no DICOM SEG can be made of it"):
        KINDS["dicom-seg"].write(tmp_path / "seg.dcm", pictures_of(tmp_path / "a.dcm"), masks)


def test_what_lacks_its_package_or_is_unknown_says_so(monkeypatch):
    assert check_kinds(["tiff", "coco", "tiff"]) == ["coco", "tiff"]
    with pytest.raises(InputError, match=r"--write.*did you mean 'geotiff'"):
        check_kinds(["geotif"])
    monkeypatch.setattr("masksmith.deploy.outputs.find_spec", lambda name: None)
    with pytest.raises(
        InputError, match=r'the package rasterio is not installed; pip install "masksmith\[readers\]"'
    ):
        check_kinds(["tiff", "geotiff"])
