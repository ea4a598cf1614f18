"""Feed a parser with damaged files: the answer is to be a result or an InputError, whatever the bytes are.

    python tools/fuzz.py [PARSER ...] [--seconds 60] [--start 0]

Run from the repository's root (the seeds are those of the tests). Each parser gets mutated seeds for so many seconds
of the processor, in a process of its own with 6 GB of address space: bytes replaced, cut out, repeated and inserted,
numbers at their limits, files cut short. Input number N of a parser is always the same, so a number that is printed can
be run again (``--start N --seconds 0``). Another exception, a dead process, or more than SLOW_S seconds for an input is
a failure, and the exit code is 1 then.
"""

import argparse
import gzip
import io
import json
import random
import resource
import shutil
import signal
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from masksmith.core.errors import InputError
from masksmith.data.decode.arrays import decode_mat, decode_npy, decode_npz, keys_of
from masksmith.data.decode.dicom import decode_dicom, read_header
from masksmith.data.decode.headers import image_size
from masksmith.data.decode.nifti import decode_nifti, read_grid
from masksmith.data.decode.orientation import read_orientation
from masksmith.data.decode.palette import decode_indices, read_palette
from masksmith.data.decode.pictures import decode_image
from masksmith.data.decode.tiff import count_pages, decode_pages, read_no_data
from masksmith.data.description import read_description
from masksmith.data.georeference import read_georeference
from masksmith.data.instances import coco_text
from masksmith.data.layouts import DRAWN, LAYOUTS, read_catalog
from masksmith.data.rle import DIALECTS, decode_rows
from masksmith.data.shapes import check_drawings, draw_classes, draw_objects
from masksmith.data.table import parse_table
from masksmith.data.tree import Tree

SLOW_S = 5.0
_ADDRESS_SPACE = 6 * 2**30
_PIECES = [
    b"\0",
    b"\xff",
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"\0\0\0\0",
    b"\x80",
    b"-1",
    b"0",
    b"1e999",
    b"NaN",
    b"null",
    b"[",
    b"]",
    b"{}",
    b'"',
    b",",
    b";",
    b"\n",
    b"\r",
    b"\t",
    b" ",
    b"<",
    b"&",
    b"../",
    b"\\",
    b"9" * 25,
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
]
Run = Callable[[bytes], object]


def _image(bands: int = 3, dtype: type = np.uint8) -> np.ndarray:
    high = 255 if dtype == np.uint8 else 4000
    return np.random.default_rng(bands).integers(0, high, (9, 11, bands)).astype(dtype)


def _encoded(form: str, image: np.ndarray | Image.Image, **options: object) -> bytes:
    file = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image.squeeze())
    picture.save(file, form, **options)
    return file.getvalue()


def _pictures() -> tuple[list[bytes], Run]:
    exif = Image.Exif()
    exif[274] = 6
    palette = Image.fromarray(_image(1).squeeze() % 3).convert("P")
    seeds = [
        _encoded("PNG", _image()),
        _encoded("PNG", _image(1, np.uint16)),
        _encoded("PNG", _image(4)),
        _encoded("PNG", palette),
        _encoded("JPEG", _image(), exif=exif),
        _encoded("JPEG", Image.fromarray(_image()).convert("CMYK")),
        _encoded("JPEG", _image(), progressive=True),
        _encoded("GIF", palette),
        _encoded("BMP", _image()),
        _encoded("WEBP", _image()),
        _encoded("PPM", _image()),
        b"P5 11 9 255\n" + bytes(99),
    ]

    def run(raw: bytes) -> None:
        image_size(raw), read_orientation(raw), read_palette(raw)
        for form in (decode_image, decode_indices):
            _answer(lambda form=form: form(raw, where="x"))

    return seeds, run


def _tiffs() -> tuple[list[bytes], Run]:
    import tifffile

    def written(image: np.ndarray, **options: object) -> bytes:
        file = io.BytesIO()
        tifffile.imwrite(file, image, **options)
        return file.getvalue()

    geo = [(33550, "d", 3, (10.0, 10.0, 0.0), True), (33922, "d", 6, (0.0, 0.0, 0.0, 5e5, 5e6, 0.0), True)]
    keys = [(34735, "H", 8, (1, 1, 0, 1, 3072, 0, 1, 32631), True), (42113, "s", 0, "-1", True)]
    seeds = [
        written(_image()),
        written(_image(5, np.uint16), photometric="minisblack"),
        written(_image(1), bigtiff=True),
        written(
            _image(4).astype(np.float32).transpose(2, 0, 1), photometric="minisblack", planarconfig="separate"
        ),
        written(_image(1, np.uint16).squeeze(), compression="zlib", predictor=True, tile=(16, 16)),
        written(np.stack([_image(1).squeeze()] * 3), photometric="minisblack"),
        written(_image(1).squeeze(), photometric="palette", colormap=np.zeros((3, 256), np.uint16)),
        written(_image(2, np.int16), photometric="minisblack", extratags=geo + keys),
        written(_image(3, np.uint16), byteorder=">"),
        _encoded("TIFF", _image(), compression="tiff_lzw"),
    ]

    def run(raw: bytes) -> None:
        for form in (read_georeference, read_no_data, read_palette, image_size):
            _answer(lambda form=form: form(raw))
        _answer(lambda: decode_image(raw, where="x.tif", keep_alpha=True))
        for form in (count_pages, decode_pages):
            _answer(lambda form=form: form(raw, "x.tif"))

    return seeds, run


def _dicoms() -> tuple[list[bytes], Run]:
    from tests.data.dicoms import dicom, segmentation

    grey = _image(1, np.uint16).squeeze()
    seeds = [
        dicom(grey),
        dicom(grey.astype(np.int16), RescaleSlope="2", RescaleIntercept="-1024"),
        dicom(_image()),
        dicom(np.stack([grey] * 3)),
        dicom(grey, PhotometricInterpretation="MONOCHROME1", WindowCenter="40", WindowWidth="80"),
        segmentation(np.stack([grey > 9] * 2), sources=["a", "b"]),
    ]

    def run(raw: bytes) -> None:
        for form in (decode_dicom, read_header):
            _answer(lambda form=form: form(raw, "x.dcm"))

    return seeds, run


def _niftis() -> tuple[list[bytes], Run]:
    import nibabel

    seeds = []
    for image in (_image(3, np.int16), _image(2).astype(np.float32)):
        raw = nibabel.Nifti1Image(image, np.diag([1.0, 2.0, 3.0, 1.0])).to_bytes()
        seeds += [raw, gzip.compress(raw)]

    def run(raw: bytes) -> None:
        for form in (decode_nifti, read_grid):
            _answer(lambda form=form: form(raw, "x.nii"))

    return seeds, run


def _arrays() -> tuple[list[bytes], Run]:
    import scipy.io

    def written(write: Callable[[io.BytesIO], object]) -> bytes:
        file = io.BytesIO()
        write(file)
        return file.getvalue()

    both = {"image": _image(1).squeeze(), "mask": _image(1).squeeze() > 90}
    seeds = [
        written(lambda file: np.save(file, _image())),
        written(lambda file: np.savez(file, **both)),
        written(lambda file: np.savez_compressed(file, **both)),
        written(lambda file: scipy.io.savemat(file, both)),
        written(lambda file: scipy.io.savemat(file, both, do_compression=True)),
    ]

    def run(raw: bytes) -> None:
        for name, form in (("x.npy", decode_npy), ("x.npz", decode_npz), ("x.mat", decode_mat)):
            _answer(lambda form=form, name=name: form(raw, name, ""))
            _answer(lambda name=name: keys_of(raw, name))

    return seeds, run


def _tables() -> tuple[list[bytes], Run]:
    import pyarrow as arrow
    from pyarrow import parquet

    file = io.BytesIO()
    parquet.write_table(arrow.table({"id": ["a", "b"], "rle": ["1 2", None]}), file)
    text = b'\xef\xbb\xbfid;rle_mask;depth\n"a";1 2 5 3;0.5\nb;;7\n'
    seeds = [
        text,
        text.decode("utf-8-sig").encode("utf-16"),
        b"id,rle\r\na,1 2\r\n",
        gzip.compress(text),
        file.getvalue(),
    ]

    def run(raw: bytes) -> None:
        for name in ("x.csv", "x.csv.gz", "x.parquet"):
            _answer(lambda name=name: parse_table(raw, where=name))

    return seeds, run


def _archives() -> tuple[list[bytes], Run]:
    seeds = []
    for packed in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", packed) as archive:
            archive.writestr("images/a.png", b"a" * 50)
            archive.writestr("masks/a.png", b"b" * 50)
        seeds.append(file.getvalue())
    for mode in ("w", "w:gz", "w:xz", "w:bz2"):
        file = io.BytesIO()
        with tarfile.open(fileobj=file, mode=mode) as archive:
            for name in ("images/a.png", "masks/a.png"):
                info = tarfile.TarInfo(name)
                info.size = 50
                archive.addfile(info, io.BytesIO(b"a" * 50))
        seeds.append(file.getvalue())
    root = Path(tempfile.mkdtemp(prefix="fuzz"))

    def read_all() -> None:
        tree = Tree(root)
        for path in tree.every(".png"):
            tree.read(path)

    def run(raw: bytes) -> None:
        for name in ("x.zip", "x.tar", "x.tar.gz", "x.tar.xz", "x.tar.bz2"):
            if raw[:2] == b"PK" and name != "x.zip":
                continue
            (root / name).write_bytes(raw)
            _answer(read_all)
            (root / name).unlink()

    return seeds, run


def _runs() -> tuple[list[bytes], Run]:
    seeds = [
        b"1 3 10 5 40 2",
        b"0 3 7 5",
        b"-1",
        b"",
        b"99 1",
        b"1 99",
        coco_text(np.array([[3, 9]]), num_pixels=99).encode(),
    ]

    def run(raw: bytes) -> None:
        text = raw.decode("utf-8", "replace")
        for dialect in DIALECTS:
            _answer(lambda dialect=dialect: decode_rows([text], shape=(9, 11), dialect=dialect, where="x"))

    return seeds, run


def _in_folder(files: dict[str, str | bytes], read: Callable[[Path], object]) -> tuple[list[bytes], Run]:
    """Return the runs of files that are damaged in a folder of their own, beside a.png (40x60) and its mask."""
    names = sorted(files)
    seeds = [
        bytes([at]) + (one if isinstance(one := files[name], bytes) else one.encode())
        for at, name in enumerate(names)
    ]
    root = Path(tempfile.mkdtemp(prefix="fuzz"))

    def run(raw: bytes) -> None:
        name = names[raw[0] % len(names)] if raw else names[0]
        place = root / name
        place.mkdir(exist_ok=True)
        if not (place / "a.png").exists():
            cv2.imwrite(
                str(place / "a.png"), np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
            )
        (place / name).write_bytes(raw[1:])
        _answer(lambda: read(place))

    return seeds, run


def _drawings() -> tuple[list[bytes], Run]:
    from tests.data.layouts.test_drawn import FILES

    def read_one(layout: str, root: Path) -> None:
        catalog = LAYOUTS[layout](Tree(root), read_description(root))
        if catalog is not None:
            check_drawings(catalog.train, {one.image: (40, 60) for one in catalog.train})
            for one in catalog.train:
                draw_objects(one.shapes, (40, 60))
                draw_classes(one.shapes, dict.fromkeys(catalog.classes, 1), (40, 60))

    def read(root: Path) -> None:
        for layout in DRAWN:
            _answer(lambda layout=layout: read_one(layout, root))

    return _in_folder(FILES, read)


def _side_files() -> tuple[list[bytes], Run]:
    ids = ["a", "b"]
    files = {
        "train.txt": "images/a.png masks/a.png\nb\n",
        "val.txt": "b",
        "splits.json": json.dumps({"train": ids, "val": ["b"]}),
        "splits_final.json": json.dumps([{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]),
        "dataset.json": json.dumps(
            {"training": [{"image": "a.png", "label": "x"}], "validation": [{"image": "b.png"}]}
        ),
        "split.csv": "file,split\na.png,train\nb.png,val\n",
        "classes.txt": "ground\ncar\n",
        "labelmap.txt": "a:0,0,0::\nb:1,2,3::\n",
        "class_dict.csv": "name,r,g,b\na,0,0,0\nb,1,2,3\n",
        "dataset.yaml": "task: binary\nsplits: {val: b}\nclasses: {0: a, 1: b}\n",
    }

    def read(root: Path) -> None:
        for at, name in enumerate(ids):
            for folder, image in (
                ("images", np.full((5, 6, 3), 40 * at, np.uint8)),
                ("masks", np.eye(5, 6, dtype=np.uint8)),
            ):
                (root / folder).mkdir(exist_ok=True)
                if not (root / folder / f"{name}.png").exists():
                    cv2.imwrite(str(root / folder / f"{name}.png"), image)
        (root / "a.png").unlink(missing_ok=True)
        read_catalog(root)

    return _in_folder(files, read)


PARSERS: dict[str, Callable[[], tuple[list[bytes], Run]]] = {
    "pictures": _pictures,
    "tiff": _tiffs,
    "dicom": _dicoms,
    "nifti": _niftis,
    "arrays": _arrays,
    "tables": _tables,
    "archives": _archives,
    "run-lengths": _runs,
    "drawings": _drawings,
    "side-files": _side_files,
}


def _answer(work: Callable[[], object]) -> object:
    """Return a result, or None for an InputError."""
    try:
        return work()
    except InputError:
        return None


def mutated(seeds: list[bytes], draw: random.Random) -> bytes:
    """Return a seed with one to eight changes."""
    raw = bytearray(draw.choice(seeds))
    for _ in range(draw.choice([1, 1, 2, 3, 8])):
        at = draw.randrange(len(raw) + 1)
        kind = draw.randrange(8)
        if kind < 3 and at < len(raw):
            raw[at] = draw.randrange(256) if kind else raw[at] ^ 1 << draw.randrange(8)
        elif kind == 3:
            del raw[at : at + draw.choice([1, 2, 4, 30, len(raw)])]
        elif kind == 4:
            raw[at:at] = draw.choice(_PIECES)
        elif kind == 5:
            raw[at:at] = raw[max(0, at - draw.choice([4, 20, 200])) : at]
        elif kind == 6:
            form = draw.choice(["<H", ">H", "<I", ">I", "<d"])
            number = draw.choice([0, 1, 255, 2**15, 2**16 - 1, draw.randrange(2**16)])
            raw[at : at + struct.calcsize(form)] = struct.pack(form, number)
        else:
            other = draw.choice(seeds)
            start = draw.randrange(len(other) + 1)
            raw[at:at] = other[start : start + draw.choice([4, 40])]
    return bytes(raw)


def fuzz(name: str, seconds: float, start: int, at: Path) -> int:
    """Run a parser on inputs from a number on; return how many failed."""
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    seeds, run = PARSERS[name]()
    for seed in seeds:
        run(seed)
    failed, number, began = 0, start, time.process_time()
    seen: set[str] = set()
    with at.open("wb", buffering=0) as file:
        while number == start or time.process_time() - began < seconds:
            file.seek(0)
            file.write(b"%20d" % number)
            raw = mutated(seeds, random.Random(f"{name} {number}"))
            before = time.process_time()
            try:
                run(raw)
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{type(error).__name__} in {last.filename}:{last.lineno}"
                failed += 1
                if where not in seen:
                    seen.add(where)
                    print(f"{name}: input {number}: {where}: {error}", flush=True)
                    traceback.print_exc()
            if (took := time.process_time() - before) > SLOW_S:
                failed += 1
                print(f"{name}: input {number} took {took:.1f} s", flush=True)
            number += 1
    print(
        f"{name}: {number - start} inputs in {time.process_time() - began:.0f} s, {failed} failed", flush=True
    )
    return failed


def main() -> int:
    """Run each parser in a process of its own, and go on behind an input that killed it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parsers", nargs="*", choices=[[], *PARSERS], metavar="PARSER", help=", ".join(PARSERS)
    )
    parser.add_argument("--seconds", type=float, default=60, help="of the processor, for each parser")
    parser.add_argument("--start", type=int, default=0, help="number of the first input")
    parser.add_argument("--at", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.at:
        return int(fuzz(asked.parsers[0], asked.seconds, asked.start, asked.at) > 0)
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        at = Path(folder) / "number"
        for name in asked.parsers or PARSERS:
            more = ["--seconds", str(asked.seconds), "--start", str(asked.start), "--at", str(at)]
            code = subprocess.run([sys.executable, __file__, name, *more], check=False).returncode
            failed += code != 0
            if code < 0:
                print(
                    f"{name}: input {int(at.read_bytes())} killed the process: {signal.Signals(-code).name}"
                )
    for left in Path(tempfile.gettempdir()).glob("fuzz*"):
        shutil.rmtree(left, ignore_errors=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent.parent))
    sys.exit(main())
