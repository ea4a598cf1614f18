"""Each bad input has its own clear error: exit code 2, no trace, nothing already written is lost."""

import errno
import os
import shutil
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith import cli
from masksmith.core.errors import DiskFullError, InputError
from masksmith.core.files import no_room
from masksmith.recipes.recipe import parse_recipe
from masksmith.recipes.sources import recipe_source

EYE = cv2.imencode(".png", np.eye(9, dtype=np.uint8))[1].tobytes()


def run(monkeypatch, capsys, *arguments):
    """Call the command line in this process; return (exit code, what stderr says last)."""
    monkeypatch.setattr("sys.argv", ["masksmith", "--quiet", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    return caught.value.code, capsys.readouterr().err


def refuse(monkeypatch, capsys, data, tmp_path, *parts):
    code, text = run(monkeypatch, capsys, "check", data, "--out", tmp_path / "out")
    assert code == 2, text
    assert "Traceback" not in text
    for part in parts:
        assert part in text, text


@pytest.fixture
def check(monkeypatch, capsys, tmp_path):
    return lambda data, *parts: refuse(monkeypatch, capsys, data, tmp_path, *parts)


def rewrite(path, change):
    path.write_text(change(path.read_text()))


def first_row(path):
    return next(line for line in path.read_text().splitlines()[1:] if line.partition(",")[2])


def test_folders_without_what_is_needed(check, tmp_path):
    cases = {
        "nowhere": (None, ["nowhere: no such folder"]),
        "empty": ({}, ["the folder is empty"]),
        "notes": (
            {"notes.txt": "x"},
            ["no images (.png, ", "known layouts: "],
        ),
        "bare": ({"images/a.png": EYE}, ["1 images (for example 'images/a.png') but no masks"]),
        "pair": (
            dict.fromkeys(["images/a.png", "images/b.png", "masks/a.png"], EYE),
            ["no mask for the image 'b' of"],
        ),
    }
    for name, (files, parts) in cases.items():
        if files is not None:
            (tmp_path / name).mkdir()
        for path, content in (files or {}).items():
            (tmp_path / name / path).parent.mkdir(exist_ok=True)
            (tmp_path / name / path).write_bytes(content if isinstance(content, bytes) else content.encode())
        check(tmp_path / name, *parts)


def first(folder, at=0):
    return sorted(folder.iterdir())[at]


def clear(*folders):
    for folder in folders:
        for path in folder.iterdir():
            path.unlink()


def without_labels(data):
    clear(data / "train" / "masks")
    (data / "train.csv").unlink()


def ids_of(path):
    return [line.partition(",")[0] for line in path.read_text().splitlines()[1:]]


def rle_of_first(runs):
    def change(data):
        row = first_row(data / "train.csv")
        rewrite(data / "train.csv", lambda text: text.replace(row, f"{row.split(',')[0]},{runs}"))

    return change


def empty_masks(data):
    (data / "train.csv").write_text(
        "id,rle_mask\n" + "".join(f"{one},\n" for one in ids_of(data / "train.csv"))
    )
    for path in (data / "train" / "masks").iterdir():
        cv2.imwrite(str(path), np.zeros((101, 101), np.uint8))


def empty_runs(data):
    empty_masks(data)
    clear(data / "train" / "masks")


def zipped(name):
    def change(data):
        with zipfile.ZipFile(data / "extra.zip", "w") as archive:
            archive.writestr(name, b"x")

    return change


def appended(table, text):
    return lambda data: rewrite(data / table, lambda old: old + (text or first_row(data / table) + "\n"))


SAMPLE = "sample_submission.csv"
DAMAGED_DOWNLOADS = [
    (without_labels, "no masks: neither a table with run-lengths of the images nor a folder of masks"),
    (
        lambda data: clear(data / "train" / "images", data / "train" / "masks"),
        "no training images, but train.csv has run-lengths of 40",
    ),
    (
        lambda data: (data / "train" / "images" / "bare.png").write_bytes(EYE),
        "no mask for the training image 'bare'",
    ),
    (
        lambda data: rewrite(
            data / SAMPLE, lambda text: text.replace("rle_mask", "rle_musk").replace("1 1", "none")
        ),
        "sample_submission.csv: the column 'rle_mask' is missing; did you mean 'rle_musk'?",
    ),
    (
        lambda data: (data / SAMPLE).write_text("picture_no,rle_mask\n7,1 1\n"),
        "sample_submission.csv: the column 'id' is missing",
    ),
    (
        lambda data: (data / SAMPLE).write_text("id,rle_mask\n"),
        f"{SAMPLE}: no rows, so the test set is empty",
    ),
    (appended("train.csv", "unknown99,1 1\n"), "train.csv: unknown id 'unknown99'", "40 images were found"),
    (appended("train.csv", None), "train.csv: the id '", "appears twice; expected one row an image"),
    (appended(SAMPLE, "absent11,1 1\n"), "no test image for the id 'absent11'; 8 test images were found"),
    (rle_of_first("1 2 3"), "run-lengths of training image", "3 run values, an odd number"),
    (rle_of_first("10201 2"), "the run at pixel 10201 with length 2 leaves the image of 101x101"),
    (rle_of_first("1 5 3 2"), "the run at pixel 3 overlaps the run 1..5"),
    (rle_of_first("1 five"), "'five' is not a whole number"),
    (rle_of_first("1 1"), "its mask file", "and its run-lengths differ in"),
    (empty_masks, "every mask is empty; there is nothing to learn"),
    (empty_runs, "every mask is empty; there is nothing to learn"),
    (
        lambda data: os.truncate(first(data / "train" / "images", 3), 300),
        "train/images/",
        "the file is cut off after 300 bytes",
    ),
    (
        lambda data: first(data / "test" / "images").write_text("this is a text"),
        "test/images/",
        "the file is not an image (it begins with b'this is a te')",
    ),
    (
        lambda data: cv2.imwrite(str(first(data / "train" / "images")), np.eye(101, dtype=np.uint16)),
        "images of types uint16 and uint8 mixed",
    ),
    (
        lambda data: cv2.imwrite(str(first(data / "train" / "masks")), np.zeros((100, 101), np.uint8)),
        "train/masks/",
        "the mask is 100x101 but its image",
        "is 101x101",
    ),
    (
        lambda data: first(data / "train" / "images").with_suffix(".jpg").write_bytes(EYE),
        "both have the id '",
        "keep one file an id",
    ),
    (
        lambda data: clear(data / "test" / "images"),
        "the test set is empty: expected images in test.zip or test/images/",
    ),
    (zipped("../../evil.png"), "extra.zip: the member '../../evil.png' climbs out of the archive"),
    (zipped("/etc/evil.png"), "climbs out of the archive"),
    (zipped("..\\..\\evil.png"), "climbs out of the archive"),
    (zipped("C:/evil.png"), "climbs out of the archive"),
    (
        lambda data: (data / "extra.zip").write_bytes(b"PK nothing"),
        "extra.zip: not a whole zip archive",
    ),
]


@pytest.mark.slow
def test_damaged_downloads(check, download, tmp_path):
    for at, (damage, *parts) in enumerate(DAMAGED_DOWNLOADS):
        data = shutil.copytree(download, tmp_path / f"download {at}")
        damage(data)
        check(data, *parts)


def damage_a_member(path, deflated):
    with zipfile.ZipFile(path) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if deflated else zipfile.ZIP_STORED) as archive:
        for name, raw in members:
            archive.writestr(name, raw)
    raw = bytearray(path.read_bytes())
    raw[3000:3040] = bytes(40)
    path.write_bytes(raw)


@pytest.mark.parametrize("deflated", [True, False])
def test_a_damaged_member(check, example, tmp_path, deflated):
    data = tmp_path / "data"
    data.mkdir()
    for path in (example / "data").iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    damage_a_member(data / "train.zip", deflated)
    check(data, "train/", "cannot be read (")


def test_a_link_that_leads_out(check, download, tmp_path):
    (tmp_path / "secret.png").write_bytes(b"x")
    (download / "train" / "images" / "link.png").symlink_to(tmp_path / "secret.png")
    check(download, "link.png: the link leads out of")


def test_an_output_folder_of_another_data_set(check, example, download, tmp_path):
    ms.check(example / "data", tmp_path / "out")
    ms.folds(tmp_path / "out")
    kept = (tmp_path / "out" / "data.json").read_bytes()
    path = sorted((download / "train" / "images").iterdir())[0]
    cv2.imwrite(str(path), 255 - cv2.imread(str(path)))
    check(download, "this folder belongs to another data set", "choose another --out")
    assert (tmp_path / "out" / "data.json").read_bytes() == kept


def test_an_output_folder_inside_the_data(monkeypatch, capsys, download):
    code, text = run(monkeypatch, capsys, "check", download, "--out", download / "out")
    assert code == 2
    assert "the output folder lies inside the data" in text
    assert not (download / "out").exists()


def test_repaired_data_is_taken_as_long_as_nothing_is_built_on_it(check, download, tmp_path):
    path = sorted((download / "train" / "images").iterdir())[3]
    whole = path.read_bytes()
    path.write_bytes(whole[:-200])
    check(download, "the file is cut off")
    path.write_bytes(whole)
    assert ms.check(download, tmp_path / "out").facts["training images"] == 40


def test_an_output_folder_with_somebody_elses_masks(check, example, tmp_path):
    (tmp_path / "out" / "masks").mkdir(parents=True)
    check(
        example / "data",
        "it is no masksmith project, and it holds 'masks'; choose another --out",
    )


def test_an_output_that_is_a_file(check, example, tmp_path):
    (tmp_path / "out").write_text("x")
    check(example / "data", "out: cannot be written as a folder")


def test_a_project_that_is_none(monkeypatch, capsys, tmp_path):
    for verb in ("folds", "train", "predict", "tune", "submit", "report"):
        code, text = run(monkeypatch, capsys, verb, tmp_path)
        assert code == 2
        assert "not a masksmith project (no data.json); begin with `masksmith check DATA" in text


@pytest.mark.slow
def test_a_newer_project(project):
    rewrite(project / "data.json", lambda text: text.replace('"format": 1', '"format": 99', 1))
    with pytest.raises(InputError, match="made by a newer masksmith"):
        ms.tune(project)


@pytest.mark.parametrize("write", ["write_bytes", "posix_fallocate"])
def test_a_full_disk_while_writing(monkeypatch, capsys, example, tmp_path, write):
    """The disk fills up during the run; what was written stays, and with room the same command goes on."""
    ms.check(example / "data", tmp_path / "out")
    before = {path: path.read_bytes() for path in (tmp_path / "out").glob("*.json")}
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def no_space(*_arguments, **_options):
        raise full

    if write == "write_bytes":
        monkeypatch.setattr("pathlib.Path.write_bytes", no_space)
        code, text = run(monkeypatch, capsys, "folds", tmp_path / "out")
    else:
        monkeypatch.setattr("os.posix_fallocate", no_space)
        code, text = run(monkeypatch, capsys, "check", example / "data", "--out", tmp_path / "other")
    assert code == 2, text
    assert "the disk is full; what was finished before is whole" in text
    assert not list(tmp_path.rglob("*.masksmith-tmp"))
    assert all(path.read_bytes() == content for path, content in before.items())
    monkeypatch.undo()
    assert ms.check(example / "data", tmp_path / "other").facts["training images"] == 40
    assert len(ms.folds(tmp_path / "out").rows) == 40


def test_a_really_full_disk():
    """Linux's /dev/full refuses every byte."""
    full = Path("/dev/full")
    with pytest.raises(DiskFullError, match="/dev/full: the disk is full"), no_room(full):
        full.write_bytes(b"x")


def test_a_recipe_that_is_a_list(tmp_path):
    with pytest.raises(InputError, match="a recipe is a table of keys, this is list"):
        parse_recipe("- 1", where="x.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [("auot", "did you mean 'auto'"), ("nowhere.yaml", "recipe nowhere.yaml: no such file")],
)
def test_unknown_recipes(monkeypatch, capsys, name, message):
    code, text = run(monkeypatch, capsys, "recipes", name)
    assert code == 2
    assert message in text


def test_other_folds_than_were_made(monkeypatch, capsys, project):
    code, text = run(monkeypatch, capsys, "folds", project, "--set", "folds.count=7")
    assert code == 2
    assert "folds.count: 7 was asked for, but" in text
    assert "holds 3" in text


def test_recipes_and_overrides_that_are_wrong(monkeypatch, capsys, example, tmp_path):
    text, path = recipe_source("auto")[0], tmp_path / "mine.yaml"
    ms.check(example / "data", tmp_path / "out")
    for old, new, message in (
        ("  batch_size: 32", "  batchsize: 32", "training.batchsize: unknown key; did you mean 'batch_size'"),
        ("seed: 0", "sed: 0", "sed: unknown key; did you mean 'seed'"),
        (
            "        lr: 0.003",
            "        lr: fast",
            "training.stages[0].optimizer.lr: 'fast' is text, expected",
        ),
        ("      epochs: 14", "      epochs: true", "training.stages[0].epochs: True is true/false, expected"),
        (
            "      epochs: 14",
            "      epoch: 14",
            "training.stages[0].epoch: unknown key; did you mean 'epochs'",
        ),
        ("      epochs: 14", "      epochs: 0", "training.stages[0].epochs: 0 is a whole number, expected"),
        ("metric: tgs_map", "metric: tgs", "metric: 'tgs' is unknown; did you mean 'tgs_map'"),
        ("  train: null", "  train: 9", "folds.train: 9 of 5 folds"),
    ):
        assert old in text
        path.write_text(text.replace(old, new, 1))
        code, said = run(monkeypatch, capsys, "train", tmp_path / "out", "--recipe", path)
        assert code == 2
        assert message in said
        assert str(path) in said
    for override, message in (
        ("training.stages.0.epoch=3", "training.stages.0.epoch=3: no key 'epoch'; did you mean 'epochs'"),
        ("training.batch_size=many", "training.batch_size: 'many' is text, expected"),
    ):
        code, said = run(monkeypatch, capsys, "train", tmp_path / "out", "--set", override)
        assert code == 2
        assert message in said
