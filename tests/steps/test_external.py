"""Probabilities of another program take part like our own."""

import csv
import shutil

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.target import BINARY, OBJECTS, Target
from masksmith.prediction.external import ExternalCodes
from masksmith.prediction.store import open_codes
from masksmith.project.folder import Project
from masksmith.project.members import read_members
from masksmith.steps.predict import test_of as mean_of
from masksmith.steps.train import train_member

CLASSES = Target("multiclass", ("sky", "road"), (0, 1))


def write_probs(project: Project, folder, *, form="npy"):
    """Write good probabilities of all images, by the true masks of the training images; return (oof, test)."""
    rng = np.random.default_rng(0)
    cache = project.cache
    for place, images in (("oof", cache.train_images), ("test", cache.test_images)):
        (folder / place).mkdir(parents=True)
        for name in images:
            hw = images.shape(name)
            mask = cache.train_masks[name][..., 0] if place == "oof" else np.zeros(hw, np.uint8)
            probs = (0.15 + 0.7 * (mask == 1) + rng.uniform(-0.1, 0.1, hw)).astype(np.float32)
            path = folder / place / f"{name}.{form}"
            if form == "npy":
                np.save(path, probs)
            else:
                cv2.imwrite(str(path), np.rint(probs * 65535).astype(np.uint16))
    return folder / "oof", folder / "test"


def test_beside_a_run(project, tmp_path):
    opened = Project.open(project)
    oof, test = write_probs(opened, tmp_path / "probs", form="png")
    before = ms.tune(project)
    line = ms.add_member(project, "notebook", oof=oof, test=test, folds=project / "folds.csv")
    assert line.external
    assert line.score > 0.9
    assert [one.name for one in ms.list_members(project)] == [before["run"], "notebook"]
    assert ms.predict(project).path.name == before["run"]
    tuning = ms.tune(project)
    assert tuning["scores"]["plain"] > before["scores"]["plain"]
    assert "whatever notebook was made with" in tuning["chosen_on_fold"]
    assert {row["run"] for row in tuning["ensemble"]["table"]} == {before["run"], "notebook"}
    assert "1 recipes" not in tuning["ensemble"]["text"]
    verdict = ms.submit(project)
    assert verdict.ids == 8
    own = [one for one in read_members(opened, None) if not one.run.is_external]
    given = [one for one in read_members(opened, None) if one.run.is_external]
    name = opened.catalog.test[0].id
    parts = [open_codes(one.codes("test"))[name].astype(float) for one in [*own, given[0]]]
    expected = np.rint((np.mean(parts[:-1], axis=0) + parts[-1]) / 2)
    assert np.abs(mean_of(opened, [*own, *given])[name] - expected).max() <= 1
    assert "notebook" in ms.report(project).read_text()
    with pytest.raises(InputError, match="notebook: probabilities of another program, whose weights"):
        ms.bundle(project, tmp_path / "x.msk")
    with pytest.raises(InputError, match="notebook: there already, `masksmith member remove` it first"):
        ms.add_member(project, "notebook", oof=oof, test=test)
    with pytest.raises(InputError, match="notebook: another program made it"):
        train_member(opened, given[0])
    ms.remove_member(project, "notebook")
    assert [one.name for one in ms.list_members(project)] == [before["run"]]
    assert ms.tune(project)["scores"] == before["scores"]
    with pytest.raises(InputError, match="notebook: no member of another program; there are: none"):
        ms.remove_member(project, "notebook")


def test_alone(example, tmp_path):
    out = tmp_path / "p"
    ms.check(example / "data", out)
    opened = Project.open(out)
    oof, test = write_probs(opened, tmp_path / "probs")
    names = sorted(sample.id for sample in opened.catalog.train)
    with (oof / "folds.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "fold"), *((name, 3 + at % 3) for at, name in enumerate(names))])
    ms.add_member(out, "notebook", oof=oof, test=test)
    assert opened.folds.count == 3
    assert ms.tune(out)["scores"]["plain"] > 0.9
    assert ms.submit(out).ids == 8
    assert ms.report(out).exists()
    with (oof / "folds.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "fold"), *((name, at % 2) for at, name in enumerate(names))])
    with pytest.raises(
        InputError, match=r"folds\.csv: other folds than those of .* \(2 beside 3; \d+ images are held"
    ):
        ms.add_member(out, "other", oof=oof, test=test, overrides=["folds.count=3"])
    swapped = opened.folds_csv.read_text().replace(",0\n", ",9\n").replace(",1\n", ",0\n")
    opened.folds_csv.write_text(swapped.replace(",9\n", ",1\n"))
    with pytest.raises(InputError, match="notebook: its probabilities are those of other folds or data"):
        ms.tune(out)


def test_all_that_is_wrong_is_said_at_once(project, tmp_path):
    opened = Project.open(project)
    oof, test = write_probs(opened, tmp_path / "probs")
    names = sorted(sample.id for sample in opened.catalog.train)
    first, second, third = names[:3]

    def refused(match, **changes):
        with pytest.raises(InputError, match=match):
            ms.add_member(project, "notebook", **({"oof": oof, "test": test} | changes))
        assert not (project / "runs/notebook").exists()

    np.save(oof / f"{first}.npy", np.zeros((7, 5), np.float32))
    np.save(oof / f"{second}.npy", np.full(opened.cache.train_images.shape(second), 3.0))
    refused(rf"(?s)2 images cannot be used:.*{first}\.npy: 7x5; expected .*{second}\.npy: values from 0 to 3")
    (oof / f"{first}.npy").write_bytes(b"no array")
    refused(rf"{first}\.npy: the file is damaged")
    (oof / f"{first}.npy").unlink()
    (oof / f"{second}.npy").unlink()
    np.save(oof / "stranger.npy", np.zeros((7, 5)))
    refused(r"oof: 1 are no training images: stranger; expected the ids of the training images")
    (oof / "stranger.npy").unlink()
    refused(rf"oof: 2 training images are missing: {first}, {second}")
    refused(r"--test: expected its probabilities of the 8 test images", test=None)
    refused(r"absent: no such folder", oof=tmp_path / "absent")
    refused(r"--weight 0: expected a number above 0", weight=0)
    with pytest.raises(InputError, match="'No Name': no name for a member"):
        ms.add_member(project, "No Name", oof=oof, test=test)
    run = ms.list_members(project)[0].name
    with pytest.raises(InputError, match=f"{run}: there already, a run of this project is called so"):
        ms.add_member(project, run, oof=oof, test=test)
    table = tmp_path / "folds.csv"
    for text, match in (
        ("id,fold\n", r"no rows|training images are missing"),
        ("id,part\na,1\n", "the column 'fold' is missing"),
        (f"id,fold\n{third},x\n", f"the fold of {third} is no whole number"),
        (f"id,fold\n{third},1\n{third},2\n", f"the id '{third}' is in two folds"),
    ):
        table.write_text(text)
        refused(match, folds=table)
    refused("absent.csv: no such file", folds=tmp_path / "absent.csv")


def test_forms(tmp_path):
    rng = np.random.default_rng(0)
    binary = rng.integers(0, 65536, (4, 6)).astype(np.uint16)
    probs = binary / 65535
    two = np.stack([probs, 1 - probs], axis=-1)
    codes = np.stack([binary, 65535 - binary], axis=-1)

    def read(place, target=BINARY):
        found = ExternalCodes.find(place, target)
        assert list(found.files) == ["a/b"]
        return found.read("a/b", (4, 6))

    def fresh():
        shutil.rmtree(tmp_path / "x", ignore_errors=True)
        (tmp_path / "x/a").mkdir(parents=True)
        return tmp_path / "x/a"

    for array in (probs, probs[..., None], probs[None], binary, probs.astype(np.float32)):
        np.save(fresh() / "b.npy", array)
        assert np.abs(read(tmp_path / "x")[..., 0].astype(int) - binary).max() <= 1
    np.savez(fresh() / "b.npz", probs)
    assert np.array_equal(read(tmp_path / "x")[..., 0], binary)
    np.savez(tmp_path / "all.npz", **{"a/b": binary})
    assert np.array_equal(read(tmp_path / "all.npz")[..., 0], binary)
    for ending, kind in (("png", np.uint16), ("png", np.uint8), ("tif", np.uint16), ("tif", np.float32)):
        full = np.iinfo(kind).max if np.issubdtype(kind, np.integer) else 1
        cv2.imwrite(str(fresh() / f"b.{ending}"), (probs * full).astype(kind))
        assert np.abs(read(tmp_path / "x")[..., 0] / 65535 - probs).max() <= 1 / 255
    np.save(fresh() / "b.npy", binary > 40000)
    assert np.array_equal(read(tmp_path / "x")[..., 0], (binary > 40000) * np.uint16(65535))
    for array in (two, np.moveaxis(two, -1, 0)):
        np.save(fresh() / "b.npy", array)
        assert np.array_equal(read(tmp_path / "x", CLASSES), codes)
    np.savez(fresh() / "b.npz", road=two[..., 1], sky=two[..., 0])
    assert np.array_equal(read(tmp_path / "x", CLASSES), codes)
    fresh().rmdir()
    for at, name in enumerate(CLASSES.classes):
        (tmp_path / "x" / name / "a").mkdir(parents=True)
        cv2.imwrite(str(tmp_path / "x" / name / "a/b.png"), codes[..., at])
    assert np.array_equal(read(tmp_path / "x", CLASSES), codes)


def read_all(place, target):
    found = ExternalCodes.find(place, target)
    for name in found.files:
        found.read(name, (4, 6))
    found.check_range()


def test_forms_that_are_refused(tmp_path):
    def refused(match, target=BINARY, place=tmp_path):
        with pytest.raises(InputError, match=match):
            read_all(place, target)

    refused(r"no files that end in \.npy")
    for array, match, target in (
        (np.zeros((4, 6)), r"4x6; expected 4x6, the image's size, and 2 planes \(sky, road\)", CLASSES),
        (np.zeros((4, 6, 5)), r"4x6x5; expected 4x6.*3 planes \(foreground, border, distance\)", OBJECTS),
        (np.zeros((4, 6, 2)), r"sum to 0 … 0 in a pixel; expected 1", CLASSES),
        (np.full((4, 6), np.nan), r"values from nan to nan; expected probabilities", BINARY),
        (np.full((4, 6), 1, np.int64), r"values of type int64; expected floats", BINARY),
        (
            np.full((4, 6), 1, np.uint8),
            r"the largest value of all is 1, of uint8, in which 255 means",
            BINARY,
        ),
        (np.full((4, 6), 200, np.uint16), r"the largest value of all is 200, of uint16", BINARY),
    ):
        np.save(tmp_path / "a.npy", array)
        refused(match, target)
    np.savez(tmp_path / "a.npz", x=np.zeros(3), y=np.zeros(3))
    refused(r"1 ids have several files \(a\.npy and a\.npz\)")
    (tmp_path / "a.npy").unlink()
    refused(r"it holds the arrays x, y; expected one, or one for each of sky, road", CLASSES)
    (tmp_path / "a.npz").rename(tmp_path / "b.txt")
    (tmp_path / "all.npz").write_bytes(b"x")
    refused(r"all\.npz: the file is damaged", place=tmp_path / "all.npz")
    np.savez(tmp_path / "all.npz", a=np.array([None]))
    refused(r"all\.npz: 'a': cannot be read", place=tmp_path / "all.npz")
    (tmp_path / "all.npz").unlink()
    for at, name in enumerate(CLASSES.classes):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / f"{at}.npy", np.zeros((4, 6)))
    refused(r"2 files are missing, which other classes have: sky/1, road/0", CLASSES)
    np.save(tmp_path / "sky/1.npy", np.zeros((4, 6), np.uint8))
    np.save(tmp_path / "road/0.npy", np.zeros((4, 6), np.uint8))
    refused(r"its planes are of different types", CLASSES)
