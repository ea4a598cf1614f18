"""A pack runs without network and without masksmith, and writes the same submission."""

import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.catalog import LabelRow, SubmissionFormat
from masksmith.deploy.bundle import Bundle
from masksmith.deploy.pack import _filled as filled
from masksmith.deploy.pack import form_for_others, main, requirements, write_submission

OFFLINE = """
import socket, sys, runpy
def refuse(*arguments, **options):
    raise OSError("no network")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
sys.argv = ["run.py", *sys.argv[1:]]
runpy.run_path("run.py", run_name="__main__")
import masksmith
assert masksmith.__file__.startswith(sys.path[0]), masksmith.__file__
"""


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "model.msk"
    ms.bundle(trained, path)
    return path


@pytest.mark.slow
def test_a_pack_writes_the_same_submission_elsewhere(model, trained, example, tmp_path):
    packed = ms.pack(model, tmp_path / "pack.zip")
    assert "images an hour" in str(packed)
    with zipfile.ZipFile(packed.path) as archive:
        archive.extractall(tmp_path / "there")
        assert {"model.msk", "run.py", "requirements.txt", "README.md"} <= set(archive.namelist())
    data = example / "data"
    command = [
        sys.executable,
        "-I",
        "-c",
        OFFLINE,
        data / "test.zip",
        "--sample",
        data / "sample_submission.csv",
    ]
    done = subprocess.run(
        list(map(str, command)), cwd=tmp_path / "there", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "there/submission.csv").read_bytes() == (trained / "submission.csv").read_bytes()


def test_without_a_sample_the_images_come_by_name(model, trained, example, tmp_path, monkeypatch):
    monkeypatch.setattr("masksmith.deploy.pack.CHUNK_IMAGES", 3)
    assert write_submission(model, [str(example / "data/test.zip")], tmp_path / "s.csv") == 8
    mine = (tmp_path / "s.csv").read_text().splitlines()
    assert sorted(mine[1:]) == sorted((trained / "submission.csv").read_text().splitlines()[1:])
    assert mine[1:] == sorted(mine[1:])
    sample = tmp_path / "sample.csv"
    sample.write_text("id,rle_mask\nabsent,\n")
    with pytest.raises(InputError, match="no image for the id 'absent'; 8 images were given"):
        write_submission(model, [str(example / "data/test.zip")], tmp_path / "s.csv", sample=sample)
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04")
    with pytest.raises(InputError, match="not a whole zip archive"):
        write_submission(model, [str(tmp_path / "broken.zip")], tmp_path / "s.csv")
    with zipfile.ZipFile(example / "data/test.zip") as archive:
        name = next(name for name in archive.namelist() if name.endswith(".png"))
        for folder in "ab":
            (tmp_path / "two" / folder).mkdir(parents=True)
            (tmp_path / "two" / folder / "x.png").write_bytes(archive.read(name))
    with pytest.raises(InputError, match=r"b/x\.png: the id 'x' is also that of .*a/x\.png; give one"):
        write_submission(model, [str(tmp_path / "two")], tmp_path / "s.csv")
    with pytest.raises(SystemExit) as ended:
        main(model, [str(tmp_path / "absent")])
    assert ended.value.code == 2
    with pytest.raises(InputError, match=r"expected a name that ends in \.zip"):
        ms.pack(model, tmp_path / "pack.tar")


def test_a_bundle_that_does_not_know_the_judge_is_refused(model, example, tmp_path, monkeypatch):
    def older(self, path):
        init(self, path)
        self.facts = replace(self.facts, submission=None)

    init = Bundle.__init__
    monkeypatch.setattr(Bundle, "__init__", older)
    with pytest.raises(InputError, match="does not say what the judge expects"):
        write_submission(model, [str(example / "data/test.zip")], tmp_path / "s.csv")


@pytest.mark.parametrize(
    ("cells", "class_column", "expected"),
    [
        (["t0.png_1", "t0.png_2"], "", ["new.png_1", "new.png_2"]),
        (["t0_1", "t0_2"], "", ["new_1", "new_2"]),
        (["t0.jpg", "t0.jpg"], "ClassId", ["new.jpg", "new.jpg"]),
    ],
)
def test_rows_of_an_image_and_label_are_spelled_as_the_judge_does(cells, class_column, expected):
    rows = [LabelRow("t0", label, cell) for label, cell in zip("12", cells, strict=True)]
    form = SubmissionFormat(
        "id", "rle", "severstal", ["t0"], "s.csv", label_rows=rows, class_column=class_column
    )
    plain = form_for_others(form)
    assert (plain.ids, plain.label_rows) == ([], [])
    assert [row.cell for row in filled(plain, ["new"], ["1", "2"]).label_rows] == expected


def test_the_requirements_name_versions():
    found = dict(line.split("==") for line in requirements())
    assert {"torch", "numpy", "safetensors"} <= found.keys()
    assert "pytest" not in found
