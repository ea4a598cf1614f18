"""Files are segmented: what is asked for is written, new ones are watched for, large ones go on where they were."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import cv2
import nibabel
import numpy as np
import pytest
import rasterio
import tifffile
from typer.testing import CliRunner

import masksmith as ms
from masksmith.cli import app
from masksmith.core.errors import DiskFullError, InputError, StoppedError
from masksmith.data.decode import tiff
from masksmith.data.store import StoreWriter
from masksmith.deploy.listing import list_items
from masksmith.deploy.segmenter import Segmenter
from tests.data.dicoms import dicom, uid

ALL = ["coco", "dicom-seg", "geojson", "geotiff", "nifti", "overlay", "probs", "probs-geotiff", "rle", "tiff"]


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory) -> Path:
    """A bundle that cuts images into tiles of 64."""
    folder = tmp_path_factory.mktemp("model")
    ms.bundle(trained, folder / "whole.msk")
    with (
        zipfile.ZipFile(folder / "whole.msk") as archive,
        zipfile.ZipFile(folder / "model.msk", "w") as tiled,
    ):
        for name in archive.namelist():
            raw = archive.read(name)
            if name == "model.json":
                facts = json.loads(raw)
                for member in facts["members"]:
                    member["recipe"]["prediction"] |= {"tile_hw": [64, 64], "batch_size": 4}
                raw = json.dumps(facts).encode()
            tiled.writestr(name, raw)
    return folder / "model.msk"


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width), np.uint8)


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), noise(50, 60, seed))
    return path


def files_of(folder: Path) -> set[str]:
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return {name for name in found if not name.startswith(".")}


def mixed(folder: Path) -> Path:
    """A picture, a scene with a place, a radiograph and a volume."""
    photo(folder / "a" / "photo.png")
    with rasterio.open(
        folder / "scene.tif",
        "w",
        **{"driver": "GTiff", "height": 70, "width": 90, "count": 1, "dtype": "uint8"},
        crs="EPSG:32633",
        transform=rasterio.Affine(2, 0, 1000, 0, -2, 9000),
    ) as file:
        file.write(noise(70, 90)[None])
    raw = dicom(
        noise(40, 50),
        sop_class="1.2.840.10008.5.1.4.1.1.1.1",
        Modality="DX",
        StudyInstanceUID=uid("study"),
        SeriesInstanceUID=uid("series"),
    )
    (folder / "xray.dcm").write_bytes(raw)
    nibabel.save(
        nibabel.Nifti1Image(noise(30, 20 * 2).reshape(30, 20, 2), np.diag([1, 2, 3, 1])), folder / "mr.nii.gz"
    )
    return folder


def test_all_that_is_asked_for_is_written_and_what_cannot_be_is_said(model, tmp_path, monkeypatch):
    folder, out = mixed(tmp_path / "new"), tmp_path / "out"
    done = ms.apply(model, folder, out, write=ALL)
    names = ["a/photo", "mr_0000", "mr_0001", "scene", "xray"]
    assert files_of(out) == {
        "apply.csv",
        "coco.json",
        "rle.csv",
        *(f"masks/{name}.png" for name in names),
        *(f"overlays/{name}.png" for name in names),
        *(f"tiff/{name}.tif" for name in names),
        *(f"probs/{name}.npy" for name in names),
        *("geojson/a/photo.geojson", "geojson/scene.geojson"),
        *("geojson/mr_0000.geojson", "geojson/mr_0001.geojson", "geojson/xray.geojson"),
        *("geotiff/scene.tif", "probs-geotiff/scene.tif", "nifti/mr.nii.gz", "dicom-seg/xray.dcm"),
    }
    assert done.done == 5
    assert len(done.refused) == 5  # none is of every kind
    (line,) = (one for one in done.refused if "photo.png" in one)
    assert line.count("photo.png: it has no georeference") == 2
    assert "not written as nifti; expected a NIfTI volume" in line
    assert "not written as dicom-seg; expected a DICOM file" in line
    mask = cv2.imread(str(out / "masks" / "scene.png"), -1)
    assert np.array_equal(tifffile.imread(out / "tiff" / "scene.tif"), mask // 255)
    labels = np.asanyarray(nibabel.load(out / "nifti" / "mr.nii.gz").dataobj)
    for at in range(2):
        slice_mask = cv2.imread(str(out / "masks" / f"mr_{at:04d}.png"), -1)
        assert np.array_equal(labels[:, :, at], slice_mask // 255)

    def never(self, images, names, **options):
        raise AssertionError(names)

    before = {name: (out / name).stat().st_mtime_ns for name in files_of(out) if name != "apply.csv"}
    text = (out / "apply.csv").read_text()
    with monkeypatch.context() as patched:
        patched.setattr(Segmenter, "predict", never)
        assert str(ms.apply(model, folder, out, write=ALL)) == str(done)
    assert {name: (out / name).stat().st_mtime_ns for name in before} == before
    assert (out / "apply.csv").read_text() == text
    (out / "geojson" / "scene.geojson").unlink()
    calls = []
    predict = Segmenter.predict
    monkeypatch.setattr(
        Segmenter,
        "predict",
        lambda self, images, names, **o: calls.append(names) or predict(self, images, names, **o),
    )
    ms.apply(model, folder, out, write=ALL)
    assert calls == [["scene"]]
    assert (out / "geojson" / "scene.geojson").exists()


def test_tables_are_made_of_masks_that_are_there_and_again_when_one_changes(model, tmp_path, monkeypatch):
    folder, out = tmp_path / "new", tmp_path / "out"
    photo(folder / "a.png")
    photo(folder / "b.png", 1)
    ms.apply(model, folder, out)
    calls = []
    predict = Segmenter.predict
    monkeypatch.setattr(
        Segmenter,
        "predict",
        lambda self, images, names, **o: calls.append(names) or predict(self, images, names, **o),
    )
    ms.apply(model, folder, out, write=["rle"], dialect="siim")
    assert calls == []
    first = (out / "rle.csv").read_text()
    ms.apply(model, folder, out, write=["rle"])
    assert (out / "rle.csv").read_text() != first
    photo(folder / "b.png", 2)
    (out / "masks" / "a.png").unlink()
    ms.apply(model, folder, out, write=["geojson", "rle"])
    assert calls == [["a", "b"]]
    (out / "geojson" / "b.geojson").unlink()
    ms.apply(model, folder, out, write=["geojson", "rle"])
    assert calls[1:] == [["b"]]
    with pytest.raises(InputError, match="--write"):
        ms.apply(model, folder, out, write=["jpeg"])
    with pytest.raises(InputError, match="--dialect"):
        ms.apply(model, folder, out, write=["rle"], dialect="tsg")


def test_the_command_says_by_its_exit_code_that_something_was_not_written(model, tmp_path):
    photo(tmp_path / "new" / "a.png")
    arguments = ["apply", str(model), str(tmp_path / "new"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--write", "tiff", "--write", "geotiff"])
    assert done.exit_code == 3
    assert "a.png: it has no georeference" in done.stdout
    assert CliRunner().invoke(app, [*arguments, "--write", "tiff"]).exit_code == 0


def test_a_broken_archive_among_the_files_does_not_stop_the_rest(model, tmp_path):
    photo(tmp_path / "new" / "a.png")
    (tmp_path / "new" / "b.zip").write_bytes(b"PK\x03\x04 and no more")
    with zipfile.ZipFile(tmp_path / "new" / "c.zip", "w") as archive:
        archive.write(tmp_path / "new" / "a.png", "inside.png")
    done = ms.apply(model, tmp_path / "new", tmp_path / "out")
    assert done.done == 2
    (line,) = done.refused
    assert "b.zip: not a whole zip archive" in line
    assert (tmp_path / "out" / "masks" / "c" / "inside.png").exists()


def test_results_within_the_folder_are_no_new_images(model, tmp_path):
    photo(tmp_path / "a.png")
    for _ in range(2):
        assert ms.apply(model, tmp_path, tmp_path / "out").done == 1


def test_dicom_files_without_an_ending_are_images_too(tmp_path):
    raw = dicom(noise(40, 50))
    for name, content in (
        ("IM0001", raw),
        ("1.2.3.17", raw),
        ("1.2.3.18", raw),
        ("README", b"text"),
        ("a.json", b"{}"),
    ):
        (tmp_path / name).write_bytes(content)
    assert [item.id for item in list_items([tmp_path])] == ["1.2.3.17", "1.2.3.18", "IM0001"]


def test_names_that_are_too_long_for_an_ending_are_said(model, tmp_path):
    photo(tmp_path / "new" / f"{'x' * 250}.png")
    done = ms.apply(model, tmp_path / "new", tmp_path / "out", write=["geojson"])
    assert done.done == 1
    assert "its name is too long for geojson" in done.refused[0]


def test_other_trouble_with_the_disk_is_not_taken_for_a_bad_file(model, tmp_path, monkeypatch):
    photo(tmp_path / "new" / "a.png")
    for error in (DiskFullError("full"), OSError(5, "input/output error")):

        def fail(path, one, error=error):
            raise error

        monkeypatch.setattr("masksmith.deploy.outputs.rasters.np.lib.format.write_array_header_1_0", fail)
        with pytest.raises(type(error)):
            ms.apply(model, tmp_path / "new", tmp_path / "out", write=["probs"])


# --- watching ---


def test_new_and_changed_files_are_segmented_until_a_stop(model, tmp_path):
    folder, out = tmp_path / "new", tmp_path / "out"
    folder.mkdir()
    raw = photo(tmp_path / "one.png").read_bytes()
    seen: list[str] = []

    def wait_for(what: str) -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            table = (out / "apply.csv").read_text() if (out / "apply.csv").exists() else ""
            if what in table:
                seen.append(what)
                return
            time.sleep(0.02)

    def add() -> None:
        time.sleep(0.2)
        (folder / "a.png").write_bytes(raw)
        wait_for("a,a.png,50,60")
        with (folder / "b.png").open("wb") as file:  # grows for longer than a look takes
            for at in range(0, len(raw), len(raw) // 8 + 1):
                file.write(raw[at : at + len(raw) // 8 + 1])
                file.flush()
                time.sleep(0.03)
        wait_for("b,b.png,50,60")
        (folder / "a.png").unlink()
        assert cv2.imwrite(str(tmp_path / "other.png"), noise(30, 40))
        (tmp_path / "other.png").replace(folder / "b.png")
        wait_for("b,b.png,30,40")
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=add)
    thread.start()
    with pytest.raises(StoppedError) as stopped:
        ms.apply(model, folder, out, watch=True, every_s=0.05, write=["coco"])
    thread.join()
    assert stopped.value.exit_code == 143
    assert seen == ["a,a.png,50,60", "b,b.png,50,60", "b,b.png,30,40"]
    table = (out / "apply.csv").read_text()
    assert "error" in table.splitlines()[0]
    assert "a,a.png" in table  # it was segmented, and is gone
    assert "cut off" not in table
    assert files_of(out) == {"apply.csv", "coco.json", "masks/a.png", "masks/b.png"}
    assert json.loads((out / "coco.json").read_text())["images"][0]["height"] == 30
    with pytest.raises(InputError, match="--every 0: expected seconds above 0"):
        ms.apply(model, folder, out, watch=True, every_s=0)
    with pytest.raises(InputError, match="no such file or folder"):
        ms.apply(model, tmp_path / "absent", out, watch=True)


def test_a_pattern_may_match_nothing_yet(model, tmp_path):
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(StoppedError) as stopped:
        ms.apply(model, str(tmp_path / "*.png"), tmp_path / "out", watch=True, every_s=0.05)
    assert stopped.value.exit_code == 130


# --- large images ---


@pytest.fixture
def small_is_large(monkeypatch):
    monkeypatch.setattr(tiff, "LARGE", 2**14)
    monkeypatch.setattr(tiff, "_AT_ONCE", 2**12)
    monkeypatch.setattr(tiff, "_MOST_RATIO", 2**14)


def scene(path: Path, *, colours: bool = False, grey: bool = True) -> Path:
    image = noise(300, 200)
    if colours:
        image = np.repeat(image[..., None], 3, axis=2)
        if not grey:
            image[250, 7, 1] ^= 1
    path.parent.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(
        path, image, tile=(64, 64), compression="zlib", photometric="rgb" if colours else "minisblack"
    )
    return path


@pytest.mark.parametrize("colours", [False, True])
def test_a_large_image_gets_the_mask_that_it_gets_as_a_whole(
    model, tmp_path, small_is_large, monkeypatch, colours
):
    scene(tmp_path / "new" / "scene.tif", colours=colours)
    photo(tmp_path / "new" / "a.png")
    photo(tmp_path / "new" / "z.png")
    done = ms.apply(model, tmp_path / "new", tmp_path / "large", overlay=True)
    assert done.done == 3
    assert [path.name for path in (tmp_path / "large" / ".masksmith-apply").glob("large-*")] == []
    monkeypatch.undo()
    ms.apply(model, tmp_path / "new", tmp_path / "whole", overlay=True)
    for name in ("apply.csv", "masks/scene.png", "overlays/scene.png", "masks/a.png"):
        assert (tmp_path / "large" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_overlays_of_large_images_are_smaller(model, tmp_path, monkeypatch):
    monkeypatch.setattr("masksmith.deploy.outputs._MOST_SHOWN", 1000)
    monkeypatch.setattr("masksmith.deploy.outputs._SIDE_SHOWN", 20)
    photo(tmp_path / "new" / "a.png")
    ms.apply(model, tmp_path / "new", tmp_path / "out", overlay=True)
    assert cv2.imread(str(tmp_path / "out" / "overlays" / "a.png")).shape == (17, 20, 3)


def test_large_images_that_do_not_fit_the_model_are_refused(model, tmp_path, small_is_large, monkeypatch):
    scene(tmp_path / "new" / "colours.tif", colours=True, grey=False)
    scene(tmp_path / "new" / "cut.tif")
    raw = (tmp_path / "new" / "cut.tif").read_bytes()
    (tmp_path / "new" / "cut.tif").write_bytes(raw[:5000] + bytes(2000) + raw[7000:])
    photo(tmp_path / "new" / "z.png")
    done = ms.apply(model, tmp_path / "new", tmp_path / "out")
    assert done.done == 1
    colours, cut = done.refused
    assert "colours.tif: 3 bands; this model was trained on 1" in colours
    assert "cut.tif" in cut
    monkeypatch.setattr("masksmith.deploy.chunks.MOST_AT_ONCE", 1000)
    monkeypatch.setattr("masksmith.deploy.chunks.Rule", int)
    scene(tmp_path / "new" / "cut.tif")
    done = ms.apply(model, tmp_path / "new" / "cut.tif", tmp_path / "other")
    assert "300x200 pixels; this model's masks are made of images of up to 1,000" in done.refused[0]


def test_a_full_disk_stops_a_large_image(model, tmp_path, small_is_large, monkeypatch):
    def full(self, name, first, array):
        raise DiskFullError("full")

    scene(tmp_path / "new" / "scene.tif")
    monkeypatch.setattr(StoreWriter, "write_rows", full)
    with pytest.raises(DiskFullError):
        ms.apply(model, tmp_path / "new", tmp_path / "out")


KILLED = """
import os, signal, sys
import masksmith as ms
from masksmith.data.decode import tiff
from masksmith.data.store import StoreWriter
tiff.LARGE, tiff._AT_ONCE, tiff._MOST_RATIO = 2**14, 2**12, 2**14
model, data, out, left = *sys.argv[1:4], int(sys.argv[4])
commit = StoreWriter.commit
def counted(self):
    global left
    commit(self)
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
StoreWriter.commit = counted
ms.apply(model, data, out)
"""


def noting(found: list[tuple[str, int]]):
    """StoreWriter.write_rows that notes what is written."""
    go_on = StoreWriter.write_rows

    def write_rows(self, name, first, array):
        found.append((self.path.name, first))
        go_on(self, name, first, array)

    return write_rows


@pytest.mark.slow
def test_a_large_image_goes_on_by_rows_of_tiles_after_a_kill(model, tmp_path, small_is_large, monkeypatch):
    scene(tmp_path / "new" / "scene.tif")
    ms.apply(model, tmp_path / "new", tmp_path / "clean")
    for commits, at_least in ((3, 0), (10, 64)):
        out = tmp_path / f"out{commits}"
        arguments = [str(model), str(tmp_path / "new"), str(out), str(commits)]
        assert (
            subprocess.run([sys.executable, "-c", KILLED, *arguments], check=False).returncode
            == -signal.SIGKILL
        )
        (left,) = (out / ".masksmith-apply").glob("large-*")
        pixels, probs = left / "images.npy", left / ".0.npy.masksmith-part.csv"
        assert pixels.exists() == (commits > 3)
        rows = (
            max((int(line.split(",")[2]) for line in probs.read_text().splitlines()[1:]), default=0)
            if at_least
            else 0
        )
        assert rows >= at_least
        tiles: list[tuple[str, int]] = []
        with monkeypatch.context() as patched:
            patched.setattr(StoreWriter, "write_rows", noting(tiles))
            ms.apply(model, tmp_path / "new", out)
        names = dict.fromkeys(name for name, _ in tiles)
        assert next(iter(names)) == ("images.npy" if commits == 3 else "0.npy")
        assert tiles[0][1] > 0  # it went on
        assert tiles[0][1] >= at_least
        for name in ("masks/scene.png", "apply.csv"):
            assert (out / name).read_bytes() == (tmp_path / "clean" / name).read_bytes()
        assert list((out / ".masksmith-apply").glob("large-*")) == []


def test_what_is_left_of_a_large_image_goes_when_the_file_has_changed(
    model, tmp_path, small_is_large, monkeypatch
):
    path = scene(tmp_path / "new" / "scene.tif")
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(Segmenter, "predict", lambda *given, **options: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            ms.apply(model, path, out)
    (left,) = (out / ".masksmith-apply").glob("large-*")
    os.utime(path, (1, 1))
    ms.apply(model, path, out)
    assert not left.exists()
