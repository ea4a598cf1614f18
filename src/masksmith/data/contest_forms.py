"""Generated data sets in the download forms of contests: their folders, files, columns and sample submissions.

Each form is a function of the numbers of images, a seed and a side in pixels; it returns path -> content, with the
download in ``data/`` and what the judge keeps in ``solution.csv`` or ``solution/``. What is odd in a contest's files is
odd here too, since it is what a reader has to cope with. Tables of answers have each image's height and width beside
its run-lengths, so that ``score`` can judge without the images.
"""

import csv
import io
from collections.abc import Callable, Iterator, Sequence

import cv2
import numpy as np

from masksmith.core.arrays import Labels, Mask, Shaped, UInt8
from masksmith.core.randomness import stream
from masksmith.data.rle import encode
from masksmith.data.scenes import Scene, make_label_scene, make_scene

Files = dict[str, bytes]
"""Path -> content."""
Form = Callable[[int, int, int, int], Files]
"""Of the number of training and of test images, the seed, and the shorter side in pixels."""

VIEWS = 16
"""Photographs of a car."""
SLICES = 4
"""Of a scan of UW-Madison's; the contest has 144 and 80."""
BANDS = {"B02": 1.0, "B03": 0.9, "B04": 0.85, "B08": 0.7}
"""Sentinel-2 band -> how bright its pixels are."""
_EMPTY_SIIM = "-1"
_FIRST_PIXEL = "1 1"
_CHEST_CLASS = "1.2.840.10008.5.1.4.1.1.7"  # secondary capture, as the contest's files


def png(image: Shaped[np.ndarray, "..."]) -> bytes:
    """Return an image (h, w[, channels in OpenCV's order]) as PNG."""
    return _encoded(".png", image)


def csv_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> bytes:
    """Return a table as CSV."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()


def siim(num_train: int, num_test: int, seed: int, side: int) -> Files:
    """SIIM-ACR Pneumothorax: DICOM in STUDY/SERIES/UID.dcm, several rows of relative run-lengths an image, or -1.

    The column is called ``' EncodedPixels'``, with a space; the sample submission repeats an id as often as the image
    has rows, as the contest's (1484 rows of 1372 ids). https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation
    """
    content: Files = {}
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for split, at, rng in _draws(num_train, num_test, seed):
        scene = _chest(rng, (side, side), sick=at % 5 < 2)
        uid = f"1.2.276.0.7230010.3.1.4.8323329.{at + 1000 * (split == 'test')}.1517875{rng.integers(10**6):06d}"
        grey = cv2.cvtColor(scene.image, cv2.COLOR_BGR2GRAY)
        place = f"data/dicom-images-{split}/{uid}.1/{uid}.2/{uid}.dcm"
        content[place] = _dicom(grey, uid, rng)
        texts = _by_object(scene.discs, "siim") or [_EMPTY_SIIM]
        rows[split] += [(uid, text) for text in texts]
    header = ("ImageId", " EncodedPixels")
    return content | {
        "data/train-rle.csv": csv_table(header, rows["train"]),
        "data/sample_submission.csv": csv_table(
            ("ImageId", "EncodedPixels"), [(uid, _EMPTY_SIIM) for uid, _ in rows["test"]]
        ),
        "solution.csv": _answers(("ImageId", "EncodedPixels"), rows["test"], (side, side)),
    }


def oncloud(num_train: int, num_test: int, seed: int, side: int) -> Files:
    """On Cloud N: a folder a chip with a GeoTIFF (uint16) for each band, and labels CHIP.tif of 0 and 1.

    The judge takes a file CHIP.tif of 0 and 1 for each chip. ``train_metadata.csv`` has the location.
    https://www.drivendata.org/competitions/83/cloud-cover/
    """
    content: Files = {}
    rows: dict[str, list[Sequence[object]]] = {"train": [], "test": []}
    names = _chip_names(seed)
    for split, at, rng in _draws(num_train, num_test, seed):
        chip, place = next(names), int(at % _LOCATIONS)
        scene = make_scene(rng, (side, side), shapes=5)
        cloud = (scene.classes == 1).astype(np.uint8)
        ground = cv2.cvtColor(scene.image, cv2.COLOR_BGR2GRAY).astype(np.float64)
        corner = (3e5 + 1e4 * place, 7e5 + 1e4 * at)
        for band, share in BANDS.items():
            level = share * (800 + 150 * place + 15 * ground + 3000.0 * cloud) + rng.normal(
                0, 30, cloud.shape
            )
            content[f"data/{split}_features/{chip}/{band}.tif"] = _geotiff(level.astype(np.uint16), corner)
        labels = "data/train_labels" if split == "train" else "solution"
        content[f"{labels}/{chip}.tif"] = _geotiff(cloud, corner)
        when = f"2020-{1 + at % 12:02d}-12T08:{at % 60:02d}:00Z"
        rows[split].append((chip, f"Location {place}", when, f"az://./{split}_features/{chip}"))
    return content | {
        "data/train_metadata.csv": csv_table(("chip_id", "location", "datetime", "cloudpath"), rows["train"]),
        "data/test_metadata.csv": csv_table(("chip_id",), [row[:1] for row in rows["test"]]),
    }


def carvana(num_train: int, num_test: int, seed: int, side: int) -> Files:
    """Carvana: sixteen views CAR_01.jpg to CAR_16.jpg of each car, and masks CAR_01_mask.gif; whole cars are made.

    https://www.kaggle.com/c/carvana-image-masking-challenge
    """
    content: Files = {}
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    cars: list[Sequence[object]] = []
    hw = (side, round(1.5 * side))
    for split, at, rng in _draws(-(-num_train // VIEWS), -(-num_test // VIEWS), seed):
        car = f"{rng.integers(16**12):012x}"
        cars.append((car, 2000 + at % 17, ("Acura", "BMW", "Ford")[at % 3], f"M{at}", "Base", ""))
        for view, (image, mask) in enumerate(_views(rng, hw), start=1):
            name = f"{car}_{view:02d}"
            content[f"data/{split}/{name}.jpg"] = _encoded(".jpg", image)
            if split == "train":
                content[f"data/train_masks/{name}_mask.gif"] = _gif(mask)
            rows[split].append((f"{name}.jpg", encode(mask)))
    header = ("img", "rle_mask")
    return content | {
        "data/train_masks.csv": csv_table(header, rows["train"]),
        "data/metadata.csv": csv_table(("id", "year", "make", "model", "trim1", "trim2"), cars),
        "data/sample_submission.csv": csv_table(header, [(name, _FIRST_PIXEL) for name, _ in rows["test"]]),
        "solution.csv": _answers(header, rows["test"], hw),
    }


def dsb2018(num_train: int, num_test: int, seed: int, side: int) -> Files:
    """Data Science Bowl 2018: a folder an image (RGBA) with a file an object, and a table with a row an object.

    The answers have the columns of the contest's stage1_solution.csv. https://www.kaggle.com/c/data-science-bowl-2018
    """
    content: Files = {}
    rows: dict[str, list[Sequence[object]]] = {"train": [], "test": []}
    for split, _, rng in _draws(num_train, num_test, seed):
        name = rng.bytes(32).hex()
        hw = (side, int(rng.integers(side, 2 * side)))
        scene = make_scene(rng, hw, shapes=max(2, hw[0] * hw[1] // 600), only_discs=True)
        home = f"data/stage1_{split}/{name}"
        content[f"{home}/images/{name}.png"] = png(cv2.cvtColor(scene.image, cv2.COLOR_BGR2BGRA))
        for number in np.unique(scene.discs[scene.discs > 0]):
            one = (scene.discs == number).astype(np.uint8)
            rows[split].append((name, encode(one), *hw, "Public"))
            if split == "train":
                content[f"{home}/masks/{rng.bytes(32).hex()}.png"] = png(255 * one)
    header = ("ImageId", "EncodedPixels")
    ids = sorted({row[0] for row in rows["test"]}, key=str)
    return content | {
        "data/stage1_train_labels.csv": csv_table(header, [row[:2] for row in rows["train"]]),
        "data/stage1_sample_submission.csv": csv_table(header, [(name, _FIRST_PIXEL) for name in ids]),
        "solution.csv": csv_table((*header, "Height", "Width", "Usage"), rows["test"]),
    }


def severstal(num_train: int, num_test: int, seed: int, side: int) -> Files:
    """Severstal: a row an image and class, in training only those with a defect; four classes that may overlap.

    The sample submission has one row an image, the whole of it of class 0, which is no class; the judge wants a row for
    each image and class. https://www.kaggle.com/c/severstal-steel-defect-detection
    """
    content: Files = {}
    rows: dict[str, list[tuple[str, int, str]]] = {"train": [], "test": []}
    hw = (side, round(2.5 * side))  # the contest's are 256x1600
    for split, _, rng in _draws(num_train, num_test, seed):
        name = f"{rng.integers(16**9):09x}.jpg"
        scene = make_label_scene(rng, hw, shapes=max(3, hw[0] * hw[1] // 2500))
        streak = np.zeros(hw, np.uint8)
        if rng.random() < 0.4:
            top, left = int(rng.integers(hw[0] - 4)), int(rng.integers(hw[1] // 2))
            streak[top : top + 4, left : left + hw[1] // 3] = 1
        image = cv2.add(cv2.cvtColor(scene.image, cv2.COLOR_BGR2GRAY), 60 * streak)
        content[f"data/{split}_images/{name}"] = _encoded(".jpg", cv2.cvtColor(image, cv2.COLOR_GRAY2BGR))
        for kind, mask in enumerate(
            (scene.labels[..., 0], streak, *np.moveaxis(scene.labels[..., 1:], 2, 0)), 1
        ):
            rows[split].append((name, kind, encode(mask)))
    header, names = ("ImageId", "ClassId", "EncodedPixels"), dict.fromkeys(row[0] for row in rows["test"])
    whole = f"1 {hw[0] * hw[1]}"
    return content | {
        "data/train.csv": csv_table(header, [row for row in rows["train"] if row[2]]),
        "data/sample_submission.csv": csv_table(
            ("ImageId", "EncodedPixels", "ClassId"), [(name, whole, 0) for name in names]
        ),
        "solution.csv": _answers(header, rows["test"], hw),
    }


def airbus(num_train: int, num_test: int, seed: int, side: int) -> Files:
    """Airbus ships: a row a ship, an empty cell where there is none; the sample has ``0 1`` and ids in no order.

    https://www.kaggle.com/c/airbus-ship-detection
    """
    content: Files = {}
    rows: dict[str, list[tuple[str, str]]] = {"train": [], "test": []}
    for split, _, rng in _draws(num_train, num_test, seed):
        name = f"{rng.integers(16**9):09x}.jpg"
        scene = make_scene(rng, (side, side), shapes=3)
        ships = cv2.connectedComponents((scene.classes == 3).astype(np.uint8), connectivity=4)[1]
        content[f"data/{split}_v2/{name}"] = _encoded(".jpg", scene.image)
        rows[split] += [(name, text) for text in _by_object(ships, "airbus") or [""]]
    header = ("ImageId", "EncodedPixels")
    names = list(dict.fromkeys(name for name, _ in rows["test"]))
    return content | {
        "data/train_ship_segmentations_v2.csv": csv_table(header, sorted(rows["train"])),
        "data/sample_submission_v2.csv": csv_table(header, [(name, "0 1") for name in names]),
        "solution.csv": _answers(header, rows["test"], (side, side)),
    }


def uwmadison(num_train: int, num_test: int, seed: int, side: int) -> Files:
    """UW-Madison: slices of 16 bits in CASE/CASE_DAY/scans, a row an image and organ; the judge keeps the test set.

    So the sample submission has no rows; ``solution/test`` holds the images that the judge keeps, ``solution.csv``
    their masks. Run-lengths go by rows. https://www.kaggle.com/c/uw-madison-gi-tract-image-segmentation
    """
    content: Files = {}
    rows: dict[str, list[tuple[str, str, str]]] = {"train": [], "test": []}
    for split, at, rng in _draws(num_train, num_test, seed):
        case = 2 + at // SLICES + 1000 * (split == "test")
        day, number = at // SLICES % 3 * 2, at % SLICES + 1
        scene = make_label_scene(rng, (side, side), shapes=max(3, side * side // 1200))
        grey = cv2.cvtColor(scene.image, cv2.COLOR_BGR2GRAY).astype(np.uint16)
        home = f"{'data/train' if split == 'train' else 'solution/test'}/case{case}/case{case}_day{day}/scans"
        content[f"{home}/slice_{number:04d}_{side}_{side}_1.50_1.50.png"] = png(60 * grey)
        for label, mask in zip(_ORGANS, np.moveaxis(scene.labels, 2, 0), strict=True):
            name = f"case{case}_day{day}_slice_{number:04d}"
            rows[split].append((name, label, encode(mask, dialect="severstal_row_major")))
    header = ("id", "class", "segmentation")
    return content | {
        "data/train.csv": csv_table(header, rows["train"]),
        "data/sample_submission.csv": csv_table(header, []),
        "solution.csv": _answers(header, rows["test"], (side, side)),
    }


FORMS: dict[str, Form] = {
    "siim": siim,
    "oncloud": oncloud,
    "carvana": carvana,
    "dsb2018": dsb2018,
    "severstal": severstal,
    "airbus": airbus,
    "uwmadison": uwmadison,
}

_LOCATIONS = 6
_ORGANS = ("large_bowel", "small_bowel", "stomach")


def _draws(num_train: int, num_test: int, seed: int) -> Iterator[tuple[str, int, np.random.Generator]]:
    """Yield split, number and randomness of each image."""
    for split, number in (("train", num_train), ("test", num_test)):
        for at in range(number):
            yield split, at, stream(seed, split == "test", at)


def _answers(header: Sequence[str], rows: Sequence[Sequence[object]], hw: tuple[int, int]) -> bytes:
    return csv_table((*header, "height", "width"), [[*row, *hw] for row in rows])


def _by_object(objects: Labels, dialect: str) -> list[str]:
    """Return the run-lengths of each object."""
    numbers = np.unique(objects[objects > 0])
    return [encode((objects == number).astype(np.uint8), dialect=dialect) for number in numbers]


def _encoded(suffix: str, image: Shaped[np.ndarray, "..."]) -> bytes:
    fine, raw = cv2.imencode(suffix, image)
    assert fine
    return bytes(raw.tobytes())


def _gif(mask: Mask) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    picture = Image.fromarray(mask, mode="P")
    picture.putpalette([0, 0, 0, 255, 255, 255])
    picture.save(file, format="GIF")
    return file.getvalue()


def _dicom(grey: UInt8[np.ndarray, "h w"], uid: str, rng: np.random.Generator) -> bytes:
    """Return a radiograph as the contest has them: 8 bits, JPEG inside, sex, age and view beside it."""
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.encaps import encapsulate
    from pydicom.uid import UID, JPEGBaseline8Bit

    file = io.BytesIO()
    data = FileDataset(file, {}, file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    data.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = UID(_CHEST_CLASS)
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = UID(uid)
    data.StudyInstanceUID, data.SeriesInstanceUID = f"{uid}.1", f"{uid}.2"
    data.PatientID = f"{rng.integers(2**40):x}"
    data.PatientSex, data.PatientAge = str(rng.choice(["M", "F"])), f"{rng.integers(3, 90):03d}Y"
    data.Modality, data.BodyPartExamined = "CR", "CHEST"
    data.ViewPosition = str(rng.choice(["PA", "AP"]))
    data.Rows, data.Columns = grey.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8, 8, 7
    data.LossyImageCompression, data.LossyImageCompressionMethod = "01", "ISO_10918_1"
    data.PixelData = encapsulate([_encoded(".jpg", grey)])
    data.save_as(file, enforce_file_format=True)
    return file.getvalue()


def _chest(rng: np.random.Generator, hw: tuple[int, int], *, sick: bool) -> Scene:
    """Return a scene with one to three discs, or with other shapes alone."""
    scene = make_scene(rng, hw, shapes=int(rng.integers(1, 4)), only_discs=sick)
    while scene.discs.any() != sick:
        scene = make_scene(rng, hw, shapes=int(rng.integers(1, 4)), only_discs=sick)
    return scene


def _chip_names(seed: int) -> Iterator[str]:
    """Yield names of four letters, as the contest's chips have, each once."""
    letters = np.array(list("abcdefghijklmnopqrstuvwxyz"))
    for number in stream(seed, 2).permutation(26**4):
        yield "".join(letters[number // 26 ** np.arange(4) % 26])


def _geotiff(image: Shaped[np.ndarray, "h w"], corner: tuple[float, float]) -> bytes:
    """Return a GeoTIFF in UTM 36N, ten metres a pixel; ``corner`` is its upper left one in metres.

    Tags: https://docs.ogc.org/is/19-008r4/19-008r4.html
    """
    import tifffile

    keys = (1, 1, 0, 3, 1024, 0, 1, 1, 1025, 0, 1, 1, 3072, 0, 1, 32636)
    file = io.BytesIO()
    tags = [
        (33550, "d", 3, (10.0, 10.0, 0.0), True),
        (33922, "d", 6, (0.0, 0.0, 0.0, *corner, 0.0), True),
        (34735, "H", len(keys), keys, True),
    ]
    tifffile.imwrite(file, image, photometric="minisblack", extratags=tags, metadata=None)
    return file.getvalue()


def _views(
    rng: np.random.Generator, hw: tuple[int, int]
) -> Iterator[tuple[UInt8[np.ndarray, "h w 3"], Mask]]:
    """Yield photographs of a car that turns in a studio, and their masks."""
    height, width = hw
    colour, tone, tall = rng.uniform(20, 200, 3), rng.uniform(150, 235), rng.uniform(0.16, 0.24)
    for view in range(VIEWS):
        long = 0.22 + 0.14 * abs(np.cos(2 * np.pi * view / VIEWS))
        centre = np.array([0.5 * width, 0.6 * height])
        mask = np.zeros(hw, np.uint8)
        half = np.array([long * width, tall * height])
        cv2.rectangle(mask, _at(centre - half), _at(centre + half), 1, -1)
        roof = (_at(centre - half * [0, 1]), (round(0.6 * long * width), round(tall * height)))
        cv2.ellipse(mask, *roof, 0, 180, 360, 1, -1)
        for across in (-0.6, 0.6):
            cv2.circle(mask, _at(centre + half * [across, 1]), max(2, round(0.07 * height)), 1, -1)
        image = np.full((*hw, 3), tone)
        image[mask > 0] = colour * (0.8 + 0.2 * np.sin(view))
        image += rng.normal(0, 6, image.shape)
        yield np.clip(cv2.GaussianBlur(image, (0, 0), 0.7), 0, 255).astype(np.uint8), mask


def _at(point: np.ndarray) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))
