"""DICOM files as PNG: the values by hand, the table, a second call, and files that are no good."""

import csv
import subprocess
import sys

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import digest
from masksmith.deploy import convert_dicom as module
from tests.data.dicoms import dicom


def table(out):
    with (out / "convert.csv").open() as file:
        return {row["id"]: row for row in csv.DictReader(file)}


def pixels(out, name):
    return cv2.imread(str(out / f"{name}.png"), cv2.IMREAD_UNCHANGED)


@pytest.fixture
def files(tmp_path):
    """A CT with a window, a radiograph of 12 bits without one, 8 bits inverted, two frames, and a broken file."""
    folder = tmp_path / "dicom"
    ramp = np.arange(64, dtype=np.int16).reshape(8, 8) * 32
    wanted = {
        "a/ct.dcm": dicom(ramp, RescaleSlope=1, RescaleIntercept=-1024, WindowCenter=0, WindowWidth=1025),
        "a/dx.dcm": dicom(ramp.astype(np.uint16), Modality="DX", BitsStored=12, HighBit=11),
        "b/inverted.dcm": dicom(ramp.astype(np.uint8), PhotometricInterpretation="MONOCHROME1"),
        "b/frames.dcm": dicom(np.stack([ramp, ramp[::-1]]).astype(np.uint8)),
        "b/bad.dcm": dicom(ramp)[:300],
        "b/note.png": cv2.imencode(".png", ramp.astype(np.uint8))[1].tobytes(),
    }
    for name, raw in wanted.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    return folder


def test_values_by_hand_and_what_was_done(files, tmp_path):
    before = {path: digest(path.read_bytes()) for path in files.rglob("*") if path.is_file()}
    done = ms.convert(files, tmp_path / "png")
    assert (done.done, done.new, done.others, len(done.refused)) == (5, 5, 1, 1)
    assert "bad.dcm" in done.refused[0]
    rows = table(tmp_path / "png")
    assert list(rows) == ["ct", "dx", "bad", "frames_0000", "frames_0001", "inverted"]
    ct, values = pixels(tmp_path / "png", "ct").astype(int), np.arange(64).reshape(8, 8) * 32 - 1024
    np.testing.assert_allclose(ct, np.clip((values + 512.5) / 1024, 0, 1) * 255, atol=1)
    assert (rows["ct"]["window"], rows["ct"]["low"], rows["ct"]["intercept"]) == ("0/1025", "-512.5", "-1024")
    assert (rows["dx"]["window"], rows["dx"]["inverted"], rows["dx"]["bits"]) == ("percentiles", "", "8")
    assert pixels(tmp_path / "png", "dx").max() == 255
    assert rows["inverted"]["inverted"] == "yes"
    eight = (np.arange(64) * 32 % 256).astype(np.uint8).reshape(8, 8)
    np.testing.assert_array_equal(pixels(tmp_path / "png", "inverted"), 255 - eight)
    np.testing.assert_array_equal(pixels(tmp_path / "png", "frames_0001"), eight[::-1])
    assert rows["bad"]["error"]
    assert before == {path: digest(path.read_bytes()) for path in files.rglob("*") if path.is_file()}


def test_colours_of_8_16_and_32_bits_are_shown_alike(tmp_path):
    shares = np.linspace(0, 1, 48).reshape(4, 4, 3)
    kinds = [np.uint8, np.uint16, np.uint32]
    for kind in kinds:
        (tmp_path / f"{kind.__name__}.dcm").write_bytes(
            dicom(np.rint(shares * np.iinfo(kind).max).astype(kind))
        )
    ms.convert(tmp_path, tmp_path.parent / "colours")
    for kind in kinds:
        found = pixels(tmp_path.parent / "colours", kind.__name__)[..., ::-1]
        np.testing.assert_allclose(found, shares * 255, atol=1, err_msg=kind.__name__)


def test_a_second_call_does_what_is_missing_or_was_asked_for_otherwise(files, tmp_path, monkeypatch):
    out = tmp_path / "png"
    ms.convert(files, out)
    first = {path.name: path.read_bytes() for path in out.glob("*.png")}
    (out / "ct.png").unlink()
    assert ms.convert(files, out).new == 1
    assert {path.name: path.read_bytes() for path in out.glob("*.png")} == first
    done = ms.convert(files, out, chain="[{name: gamma, gamma: 0.5}, {name: clahe}]", bits=16)
    assert done.new == 5
    assert table(out)["ct"]["chain"] == "gamma(gamma=0.5) clahe(tile_px=32, clip=2)"
    assert pixels(out, "ct").dtype == np.uint16

    def stop(_items, **_):
        yield from ()
        raise module.StoppedError("stopped", exit_code=130)

    monkeypatch.setattr(module, "track", stop)
    with pytest.raises(module.StoppedError):
        ms.convert(files, out)
    assert len(table(out)) == 6


def test_what_cannot_be_done_is_refused(files, tmp_path):
    with pytest.raises(InputError, match=r"it lies inside .*, which is only read"):
        ms.convert(files, files / "png")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/keep.txt").write_text("x")
    with pytest.raises(InputError, match=r"not empty and not one of `masksmith convert`"):
        ms.convert(files, tmp_path / "mine")
    with pytest.raises(InputError, match="it is a file; expected a folder"):
        ms.convert(files, tmp_path / "mine/keep.txt")
    with pytest.raises(InputError, match=r"no DICOM file; expected files that end in .dcm"):
        ms.convert(_only_png(files, tmp_path), tmp_path / "png")
    with pytest.raises(InputError, match=r"convert: chain\[0\]"):
        ms.convert(files, tmp_path / "png", chain=[{"name": "sharpen"}])
    with pytest.raises(InputError, match="bits: 12; expected 8 or 16"):
        ms.convert(files, tmp_path / "png", bits=12)
    with pytest.raises(InputError, match=r"percentiles: .*expected two rising numbers"):
        module.convert_images(files, tmp_path / "png", percentiles=(50.0, 50.0))
    with pytest.raises(InputError, match="--only: it has no meaning for DICOM files"):
        ms.convert(files, tmp_path / "png", only="encoder.")
    with pytest.raises(InputError, match="--bits: it has no meaning for a checkpoint"):
        ms.convert(tmp_path / "a.pth", tmp_path / "a.safetensors", bits=16)
    assert not (tmp_path / "png").exists()


def _only_png(files, tmp_path):
    (tmp_path / "only").mkdir()
    (tmp_path / "only/a.png").write_bytes((files / "b/note.png").read_bytes())
    return tmp_path / "only"


def test_the_command_ends_with_3_where_files_were_refused(files, tmp_path):
    ask = [sys.executable, "-m", "masksmith", "convert", str(files)]
    done = subprocess.run([*ask, "--out", str(tmp_path / "png")], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "1 files were not converted:" in done.stdout
    done = subprocess.run(ask, capture_output=True, text=True, check=False)
    assert (done.returncode, "expected one of OUT and --out" in done.stderr) == (2, True)


@pytest.mark.real
def test_real_files_of_every_kind(shared, tmp_path):
    done = ms.convert(shared / "data/dicom-pydicom", tmp_path / "png")
    assert done.done > 50
    for name, row in table(tmp_path / "png").items():
        if not row["error"]:
            assert pixels(tmp_path / "png", name) is not None, name
