"""Each bad input has its own clear error: exit code 2, no trace, nothing already written is lost."""

import errno
import os
import zipfile
from pathlib import Path

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith import cli
from masksmith.core.errors import DiskFullError, InputError
from masksmith.core.files import no_room


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


def first_row(path, *, nonempty=True):
    lines = path.read_text().splitlines()
    return next(line for line in lines[1:] if not nonempty or line.partition(",")[2])


def test_no_such_folder(check, tmp_path):
    check(tmp_path / "nowhere", "nowhere: no such folder")


def test_empty_folder(check, tmp_path):
    (tmp_path / "data").mkdir()
    check(tmp_path / "data", "the folder is empty")


def test_no_images(check, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("x")
    check(tmp_path / "data", "no images (.png, ", "known layouts: kaggle_rle, paired_folders")


def test_no_masks_in_a_folder_of_images(check, tmp_path):
    (tmp_path / "data" / "images").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "data" / "images" / "a.png"), np.zeros((5, 5), np.uint8))
    check(tmp_path / "data", "1 images (for example 'images/a.png') but no masks")


def test_no_masks_in_a_download(check, download):
    for path in (download / "train" / "masks").iterdir():
        path.unlink()
    (download / "train.csv").unlink()
    check(download, "no masks: neither a table with run-lengths of the images nor a folder of masks")


def test_no_training_images(check, download):
    for path in (download / "train" / "images").iterdir():
        path.unlink()
    for path in (download / "train" / "masks").iterdir():
        path.unlink()
    check(download, "no training images; expected them in train.zip or train/images/")


def test_an_image_without_any_mask(check, download):
    cv2.imwrite(str(download / "train" / "images" / "bare.png"), np.eye(101, dtype=np.uint8))
    check(download, "no mask for the training image 'bare'")


def test_an_image_without_its_pair(check, tmp_path):
    for folder, name in (("images", "a"), ("images", "b"), ("masks", "a")):
        (tmp_path / "data" / folder).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "data" / folder / f"{name}.png"), np.eye(9, dtype=np.uint8))
    check(tmp_path / "data", "no mask for the image 'b' of images/")


def test_a_sample_submission_without_run_lengths_or_ids(check, download):
    path = download / "sample_submission.csv"
    ids = [line.partition(",")[0] for line in path.read_text().splitlines()[1:]]
    path.write_text("id,rle_musk\n" + "".join(f"{name},none\n" for name in ids))
    check(download, "sample_submission.csv: the column 'rle_mask' is missing; did you mean 'rle_musk'?")
    path.write_text("picture_no,rle_mask\n7,1 1\n")
    check(download, "sample_submission.csv: the column 'id' is missing")


def test_an_unknown_id(check, download):
    rewrite(download / "train.csv", lambda text: text + "unknown99,1 1\n")
    check(download, "train.csv: unknown id 'unknown99'", "40 images were found")


def test_an_id_twice(check, download):
    rewrite(download / "train.csv", lambda text: text + first_row(download / "train.csv") + "\n")
    check(download, "train.csv: the id '", "stands twice; expected one row an image")


def test_a_test_id_without_an_image(check, download):
    rewrite(download / "sample_submission.csv", lambda text: text + "absent11,1 1\n")
    check(download, "sample_submission.csv: no test image for the id 'absent11'; 8 test images were found")


@pytest.mark.parametrize(
    ("runs", "message"),
    [
        ("1 2 3", "3 run values, an odd number"),
        ("10201 2", "the run at pixel 10201 with length 2 leaves the image of 101x101"),
        ("1 5 3 2", "the run at pixel 3 overlaps the run 1..5"),
        ("1 five", "'five' is not a whole number"),
    ],
)
def test_bad_runs(check, download, runs, message):
    row = first_row(download / "train.csv")
    name = row.split(",")[0]
    rewrite(download / "train.csv", lambda text: text.replace(row, f"{name},{runs}"))
    check(download, f"run-lengths of training image {name!r}: {message}")


def test_runs_that_contradict_the_mask_file(check, download):
    row = first_row(download / "train.csv")
    name = row.split(",")[0]
    rewrite(download / "train.csv", lambda text: text.replace(row, f"{name},1 1"))
    check(download, f"training image {name!r}: its mask file", "and its run-lengths differ in")


def test_a_truncated_png(check, download):
    path = sorted((download / "train" / "images").iterdir())[3]
    path.write_bytes(path.read_bytes()[:-200])
    check(download, f"train/images/{path.name}: the file is cut off after")


def test_a_text_file_named_png(check, download):
    path = sorted((download / "test" / "images").iterdir())[0]
    path.write_text("this is a text")
    check(download, f"test/images/{path.name}: the file is not an image (it begins with b'this is a te')")


def test_images_of_two_depths(check, download):
    path = sorted((download / "train" / "images").iterdir())[0]
    cv2.imwrite(str(path), np.eye(101, dtype=np.uint16))
    check(download, "images of types uint16 and uint8 mixed")


def test_a_zip_with_a_member_that_climbs_out(check, download):
    with zipfile.ZipFile(download / "extra.zip", "w") as archive:
        archive.writestr("../../evil.png", b"x")
    check(download, "extra.zip: the member '../../evil.png' climbs out of the archive")


@pytest.mark.parametrize("name", ["/etc/evil.png", "..\\..\\evil.png", "C:/evil.png"])
def test_other_ways_to_climb(check, download, name):
    with zipfile.ZipFile(download / "extra.zip", "w") as archive:
        archive.writestr(name, b"x")
    check(download, "climbs out of the archive")


def test_a_broken_zip(check, download):
    (download / "extra.zip").write_bytes(b"PK nothing")
    check(download, "extra.zip: not a whole zip archive")


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


def test_masks_of_another_size(check, download):
    path = sorted((download / "train" / "masks").iterdir())[0]
    cv2.imwrite(str(path), np.zeros((100, 101), np.uint8))
    check(download, f"train/masks/{path.name}: the mask is 100x101 but its image", "is 101x101")


def test_two_files_with_one_stem(check, download):
    path = sorted((download / "train" / "images").iterdir())[0]
    cv2.imwrite(str(path.with_suffix(".jpg")), np.zeros((101, 101), np.uint8))
    check(download, f"both have the id '{path.stem}'; keep one file an id")


def test_an_empty_test_set(check, download):
    for path in (download / "test" / "images").iterdir():
        path.unlink()
    check(download, "the test set is empty: expected images in test.zip or test/images/")


def test_an_empty_sample_submission(check, download):
    (download / "sample_submission.csv").write_text("id,rle_mask\n")
    check(download, "sample_submission.csv: no rows, so the test set is empty")


def test_only_empty_masks(check, download):
    rewrite(
        download / "train.csv",
        lambda text: "\n".join(line.split(",")[0] + "," for line in text.splitlines()[1:]),
    )
    rewrite(download / "train.csv", lambda text: "id,rle_mask\n" + text + "\n")
    for path in (download / "train" / "masks").iterdir():
        cv2.imwrite(str(path), np.zeros((101, 101), np.uint8))
    check(download, "every mask is empty; there is nothing to learn")


def test_only_empty_runs(check, download):
    for path in (download / "train" / "masks").iterdir():
        path.unlink()
    lines = (download / "train.csv").read_text().splitlines()
    text = "\n".join([lines[0], *(line.split(",")[0] + "," for line in lines[1:])])
    (download / "train.csv").write_text(text + "\n")
    check(download, "every mask is empty; there is nothing to learn")


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


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
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
    ],
)
def test_a_recipe_with_an_unknown_key_or_a_wrong_type(
    monkeypatch, capsys, example, tmp_path, old, new, message
):
    from masksmith.recipes.sources import recipe_source

    text, _ = recipe_source("auto")
    assert old in text
    path = tmp_path / "mine.yaml"
    path.write_text(text.replace(old, new, 1))
    ms.check(example / "data", tmp_path / "out")
    code, said = run(monkeypatch, capsys, "train", tmp_path / "out", "--recipe", path)
    assert code == 2
    assert message in said
    assert str(path) in said


def test_a_recipe_that_is_a_list(tmp_path):
    from masksmith.recipes.recipe import parse_recipe

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


def test_an_override_with_a_typo(monkeypatch, capsys, example, tmp_path):
    ms.check(example / "data", tmp_path / "out")
    code, text = run(monkeypatch, capsys, "train", tmp_path / "out", "--set", "training.stages.0.epoch=3")
    assert code == 2
    assert "--set training.stages.0.epoch=3: no key 'epoch'; did you mean 'epochs'" in text


def test_an_override_of_a_wrong_type(monkeypatch, capsys, example, tmp_path):
    ms.check(example / "data", tmp_path / "out")
    code, text = run(monkeypatch, capsys, "train", tmp_path / "out", "--set", "training.batch_size=many")
    assert code == 2
    assert "training.batch_size: 'many' is text, expected" in text


def test_other_folds_than_were_made(monkeypatch, capsys, project):
    code, text = run(monkeypatch, capsys, "folds", project, "--set", "folds.count=7")
    assert code == 2
    assert "folds.count: 7 was asked for, but" in text
    assert "holds 3" in text
