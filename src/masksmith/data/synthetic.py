"""An embedded data set: seismic-like sections with salt bodies, in the layout of a Kaggle download.

For the demo and the tests. Grey images of 101x101 pixels as RGB PNG with three equal channels; about 40% of
the masks are empty; masks with salt are 16-bit, empty ones 8-bit; a few images are all black; each image has a
depth. Layers are a random reflectivity convolved with a Ricker wavelet along folded and faulted horizons;
salt is a smooth body with a bright border, little structure and weak noise inside. Some sections without
salt have a patch of weak, chaotic reflections that looks like it.
"""

import io
import os
import zipfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import cv2
import numpy as np

from masksmith.core.arrays import Float, Mask, UInt8
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.core.files import digest, read_json, remove, write_bytes, write_json
from masksmith.core.randomness import stream
from masksmith.data.contest_forms import FORMS, csv_table, png
from masksmith.data.instances import label_png
from masksmith.data.rle import encode
from masksmith.data.scenes import make_label_scene, make_scene

SIZE = 101
FORM_SIDE = 64
"""Shorter side of the images of a contest's form."""
SIDES, LARGE_SIDES = (112, 176), (1024, 1536)
"""Between which the sides of a scene are."""
_EMPTY_FRAC = 0.4
_BLACK_FRAC = 0.02
_RECORD = ".masksmith-example.json"
_FILES = (
    *("data/train.zip", "data/test.zip", "data/train.csv", "data/sample_submission.csv", "data/depths.csv"),
    "solution.csv",
)


def _smooth_noise(rng: np.random.Generator, sigma: float) -> Float[np.ndarray, "h w"]:
    """Return a smooth random field of standard deviation 1."""
    pad = int(3 * sigma)
    field = cv2.GaussianBlur(rng.standard_normal((SIZE + 2 * pad, SIZE + 2 * pad)), (0, 0), sigma)
    field = field[pad : pad + SIZE, pad : pad + SIZE]
    return field / max(float(field.std()), 1e-6)


def _layers(rng: np.random.Generator) -> Float[np.ndarray, "h w"]:
    """Return reflections along folded, tilted and faulted horizons."""
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    depth = (
        rows + rng.uniform(-0.4, 0.4) * columns + rng.uniform(2, 8) * _smooth_noise(rng, rng.uniform(15, 40))
    )
    for _ in range(rng.integers(0, 3)):
        at, lean = rng.uniform(10, 90), rng.uniform(-0.8, 0.8)
        depth += rng.uniform(-8, 8) * (columns > at + lean * (rows - SIZE / 2))
    offsets = np.arange(-12, 13) / rng.uniform(1.6, 3.2)
    wavelet = (1 - offsets**2) * np.exp(-(offsets**2) / 2)
    trace = np.convolve(rng.laplace(size=500), wavelet, mode="same")
    return np.interp(depth + 200, np.arange(500), trace / trace.std())


def _salt_shape(rng: np.random.Generator) -> Mask:
    """Return a smooth body that comes in from an edge or floats, covering very different shares."""
    rows, columns = np.mgrid[:SIZE, :SIZE].astype(np.float64)
    centre = rng.uniform(-10, SIZE + 10, size=2)
    radii = np.exp(rng.uniform(np.log(10), np.log(90), size=2))
    angle = rng.uniform(0, np.pi)
    y, x = rows - centre[0], columns - centre[1]
    along, across = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    field = 1 - (along / radii[0]) ** 2 - (across / radii[1]) ** 2
    return (field + 0.25 * _smooth_noise(rng, rng.uniform(6, 14)) > 0).astype(np.uint8)


def make_section(rng: np.random.Generator, *, salt: bool) -> tuple[UInt8[np.ndarray, "h w"], Mask]:
    """Return one image (h, w) and its mask of 0 and 1."""
    image = _layers(rng)
    mask = np.zeros((SIZE, SIZE), np.uint8)
    while salt and not 60 <= int(mask.sum()) <= 0.97 * SIZE * SIZE:
        mask = _salt_shape(rng)
    body = cv2.GaussianBlur(mask.astype(np.float64), (0, 0), 1.0)
    inside = 0.25 * _smooth_noise(rng, 1.2) + rng.uniform(-0.3, 0.3)
    image = image * (1 - body) + inside * body
    border = np.abs(cv2.Sobel(body, cv2.CV_64F, 0, 1)) + 0.4 * np.abs(cv2.Sobel(body, cv2.CV_64F, 1, 0))
    image += rng.uniform(0.3, 1.2) * border
    if rng.random() < 0.35:  # a look-alike: reflections fade into noise without a border
        fade = np.clip(_smooth_noise(rng, 12) - 0.6, 0, 1) * (1 - body)
        image = image * (1 - fade) + 0.35 * _smooth_noise(rng, 1.2) * fade
    image += rng.uniform(0.1, 0.5) * _smooth_noise(rng, 0.8)
    grey = 128 + rng.uniform(-20, 20) + rng.uniform(18, 40) * image
    return np.clip(grey, 0, 255).astype(np.uint8), mask


def make_example(
    out: Path,
    *,
    num_train: int,
    num_test: int,
    seed: int,
    task: str = "binary",
    large: bool = False,
    layout: str | None = None,
    side: int | None = None,
) -> Path:
    """Write ``out/data`` (the download) and the answers to its test set: ``out/solution.csv`` or ``out/solution``.

    Binary: seismic sections in Kaggle's layout. Multiclass: images and masks of four classes. Multilabel: images and
    tables with a row an image and class (Severstal's layout). Instances: a folder an image with a file for each object,
    and label images as answers. With ``layout`` the files are those of a contest's download (see contest_forms.py),
    of images whose shorter side has ``side`` pixels.

    What is written is recorded in ``out/.masksmith-example.json``; only such files are replaced.

    Returns:
        The data folder.

    Raises:
        InputError: A task or layout that no example has, or both; or something is there that no earlier example made,
            or that was changed since; nothing is written.
    """
    make = look_up(_SCENES, task, where="--task")
    if layout is not None or side is not None:
        _check_form(layout, task, large=large, side=side)
    if layout in FORMS:
        content = FORMS[layout](num_train, num_test, seed, side or FORM_SIDE)
    elif task == "binary" and not large:
        content = _content(num_train, num_test, seed)
    else:
        content = _scene_files(num_train, num_test, seed, large, make)
        content = _with_tables(content) if task == "multilabel" else content
    known = _refuse_foreign(out, content)
    write_json(out / _RECORD, sorted(known | {digest(raw) for raw in content.values()}))
    _remove_others(out, content, known)
    for name, raw in content.items():
        write_bytes(out / name, raw)
    return out / "data"


def _check_form(layout: str | None, task: str, *, large: bool, side: int | None) -> None:
    """Refuse what a contest's form cannot be.

    Raises:
        InputError: An unknown layout, one with a task or --large, or a side where it is fixed.
    """
    if layout is None:
        raise InputError(
            f"--side {side}: it is that of a contest's form; name it: --layout {', '.join(FORMS)}"
        )
    look_up({"tgs": None, **FORMS}, layout, where="--layout")
    if task != "binary" or large:
        other = "--large" if large else f"--task {task}"
        raise InputError(
            f"--layout {layout} and {other}: a contest's form has its own task; leave {other} out"
        )
    if layout == "tgs" and side not in (None, SIZE):
        raise InputError(
            f"--layout tgs and --side {side}: its images have {SIZE} pixels a side; leave --side out"
        )


def _refuse_foreign(out: Path, content: Collection[str]) -> set[str]:
    """Refuse to replace what is not as an earlier example wrote it; return the digests of what those wrote."""
    if os.path.lexists(out) and not out.is_dir():
        raise InputError(f"{out}: not a folder; choose another place for the example")
    record, data = out / _RECORD, out / "data"
    known: set[str] = set(read_json(record)) if record.is_file() and not record.is_symlink() else set()
    names = [out / name for name in dict.fromkeys((*_FILES, *content))]
    there = [path for path in (data, *names) if os.path.lexists(path)]
    for path in there:
        ours = bool(known) and not path.is_symlink()  # without a record nothing is read
        if path == data:
            ours = ours and path.is_dir()
        else:
            ours = ours and path.is_file() and digest(path.read_bytes()) in known
        if not ours:
            raise InputError(
                f"{path}: there already, and `masksmith example` did not make it so; choose another folder"
            )
    return known


def _remove_others(out: Path, content: Collection[str], known: Collection[str]) -> None:
    """Remove what an earlier example wrote and this one does not, so that no object of another image stays."""
    for top in (out / "data", out / "solution"):
        found = [] if top.is_symlink() else [path for path in top.rglob("*") if path.is_file()]
        for path in found:
            if str(path.relative_to(out)) in content or digest(path.read_bytes()) not in known:
                continue
            remove(path)
            for folder in path.parents:
                if folder == top or any(folder.iterdir()):
                    break
                folder.rmdir()


_Files = Iterator[tuple[str, bytes]]


def _scene_files(
    num_train: int,
    num_test: int,
    seed: int,
    large: bool,
    make: Callable[[str, str, np.random.Generator, tuple[int, int]], _Files],
) -> dict[str, bytes]:
    """Return the files of generated scenes, by their names."""
    content: dict[str, bytes] = {}
    for split, number in (("train", num_train), ("test", num_test)):
        for index in range(number):
            rng = stream(seed, split == "test", index)
            low, high = LARGE_SIDES if large else SIDES
            side = (int(rng.integers(low, high + 1)), int(rng.integers(low, high + 1)))
            content |= make(split, f"{split}_{index:04d}", rng, side)
    return content


def _binary_files(split: str, name: str, rng: np.random.Generator, hw: tuple[int, int]) -> _Files:
    scene = make_scene(rng, hw, shapes=hw[0] * hw[1] // 1500)
    mask = png((scene.classes == 1).astype(np.uint8) * 255)
    yield f"data/{_IMAGES[split]}/{name}.png", png(scene.image)
    yield f"{'data/masks' if split == 'train' else 'solution'}/{name}.png", mask


def _class_files(split: str, name: str, rng: np.random.Generator, hw: tuple[int, int]) -> _Files:
    scene = make_scene(rng, hw, shapes=hw[0] * hw[1] // 1500)
    yield f"data/{_IMAGES[split]}/{name}.png", png(scene.image)
    yield f"{'data/masks' if split == 'train' else 'solution'}/{name}.png", png(scene.classes)


def _object_files(split: str, name: str, rng: np.random.Generator, hw: tuple[int, int]) -> _Files:
    scene = make_scene(rng, hw, shapes=max(2, hw[0] * hw[1] // 1200), only_discs=True)
    yield f"data/{split}/{name}/images/{name}.png", png(scene.image)
    if split == "test":
        yield f"solution/{name}.png", label_png(scene.discs)
        return
    for number in np.unique(scene.discs[scene.discs > 0]):
        one = (scene.discs == number).astype(np.uint8) * 255
        yield f"data/train/{name}/masks/{name}_{number:04d}.png", png(one)


def _label_files(split: str, name: str, rng: np.random.Generator, hw: tuple[int, int]) -> _Files:
    """Yield the image, and the rows of its labels: _with_tables makes tables of all rows."""
    scene = make_label_scene(rng, hw, shapes=max(3, hw[0] * hw[1] // 2500))
    yield f"data/{split}_images/{name}.png", png(scene.image)
    for at in range(scene.labels.shape[2]):
        row = (f"{name}.png", at + 1, encode(scene.labels[..., at]), *hw)
        yield f"{split}/{name}/{at + 1}", ",".join(map(str, row)).encode()


def _with_tables(content: dict[str, bytes]) -> dict[str, bytes]:
    """Return the files with tables in the place of the rows, as Severstal's: without the empty rows of training.

    The answers have each image's size beside its rows.
    """
    rows = {name: raw.decode().split(",") for name, raw in content.items() if not name.startswith("data/")}
    train = [row[:3] for name, row in rows.items() if name.startswith("train/") and row[2]]
    test = [row for name, row in rows.items() if name.startswith("test/")]
    header = ("ImageId", "ClassId", "EncodedPixels")
    return {name: raw for name, raw in content.items() if name not in rows} | {
        "data/train.csv": csv_table(header, train),
        "data/sample_submission.csv": csv_table(header, [[*row[:2], "1 1"] for row in test]),
        "solution.csv": csv_table((*header, "height", "width"), test),
    }


_SCENES = {
    "binary": _binary_files,
    "multiclass": _class_files,
    "multilabel": _label_files,
    "instances": _object_files,
}
_IMAGES = {"train": "images", "test": "test"}


def _content(num_train: int, num_test: int, seed: int) -> dict[str, bytes]:
    """Return the files of the data set, by their names in _FILES."""
    names, depths, answers = [], [], {}
    archives = {"train": io.BytesIO(), "test": io.BytesIO()}
    for split, number in (("train", num_train), ("test", num_test)):
        with zipfile.ZipFile(archives[split], "w") as archive:
            for index in range(number):
                rng = stream(seed, split == "test", index)
                name = f"{rng.integers(16**10):010x}"
                black, empty = rng.random() < _BLACK_FRAC, rng.random() < _EMPTY_FRAC
                black = black or index < 2  # at least two, so that there are identical images
                image, mask = make_section(rng, salt=not (black or empty))
                image = np.zeros_like(image) if black else image
                archive.writestr(f"images/{name}.png", png(np.repeat(image[..., None], 3, axis=2)))
                if split == "train":
                    bits = np.uint16 if mask.any() else np.uint8
                    archive.writestr(f"masks/{name}.png", png(mask.astype(bits) * np.iinfo(bits).max))
                names.append((split, name))
                answers[name] = encode(mask)
                depths.append((name, int(rng.integers(50, 960))))
    train, test = ([name for which, name in names if which == split] for split in ("train", "test"))
    header = ("id", "rle_mask")
    raws = [
        *(buffer.getvalue() for buffer in archives.values()),
        csv_table(header, [(name, answers[name]) for name in train]),
        csv_table(header, [(name, "1 1") for name in test]),
        csv_table(("id", "z"), list(depths)),
        csv_table(header, [(name, answers[name]) for name in test]),
    ]
    return dict(zip(_FILES, raws, strict=True))
