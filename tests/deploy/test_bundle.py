"""A bundle is all that is needed: the project's own numbers come again, bit for bit."""

import json
import os
import pickle
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from functools import reduce
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from PIL import Image as Pillow

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.locks import LOCK
from masksmith.data.store import Store
from masksmith.data.target import BINARY
from masksmith.deploy.apply import read_scalars
from masksmith.deploy.bundle import Bundle, facts_of
from masksmith.deploy.segmenter import Segmenter
from masksmith.postprocess.rules import read_rule
from masksmith.project.folder import Project
from tests.deploy.tiny import tiny_bundle


@pytest.fixture(scope="module")
def model(trained, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.msk"
    ms.bundle(trained, path)
    return path


def test_the_test_images_get_the_masks_of_the_submission(trained, example, model, tmp_path):
    done = ms.apply(model, example / "data" / "test.zip", tmp_path / "out")
    assert (done.done, done.refused) == (8, [])
    ids = Project.open(trained).catalog.submission.ids
    for name in ids:
        mine, theirs = (
            tmp_path / "out" / "masks" / "images" / f"{name}.png",
            trained / "masks" / f"{name}.png",
        )
        assert mine.read_bytes() == theirs.read_bytes()
    table = (tmp_path / "out" / "apply.csv").read_text().splitlines()
    assert table[0] == "id,file,height,width,area,confidence,unlike,error"
    assert len(table) == 9


def test_a_fold_gives_its_out_of_fold_probabilities_again(trained, tmp_path):
    project = Project.open(trained)
    ms.bundle(trained, tmp_path / "fold.msk", fold=0)
    images, stored = project.cache.train_images, Store(next(trained.glob("runs/*/oof/fold_0.npy")))
    names = list(project.folds.inside(0))
    codes = Segmenter(tmp_path / "fold.msk").predict(images, names)
    for name in names:
        assert np.array_equal(codes[name], stored[name])
    with pytest.raises(InputError, match="--fold 7: no member was trained without it"):
        ms.bundle(trained, tmp_path / "other.msk", fold=7)
    with pytest.raises(InputError, match="--best 0: expected 1 or more"):
        ms.bundle(trained, tmp_path / "other.msk", best=0)
    with pytest.raises(InputError, match=r"expected a name that ends in \.msk"):
        ms.bundle(trained, tmp_path / "model.zip")


def test_the_same_project_gives_the_same_bytes_and_a_card_to_read(trained, model, tmp_path):
    text = str(ms.bundle(trained, tmp_path / "model.msk", licence="CC-BY", intended_use="tests"))
    assert "members" in text
    ms.bundle(trained, tmp_path / "again" / ".." / "model.msk", licence="CC-BY", intended_use="tests")
    card = zipfile.ZipFile(tmp_path / "model.msk").read("MODEL_CARD.md").decode()
    assert "**Licence**: CC-BY" in card
    assert "tgs_map" in card
    ms.bundle(trained, tmp_path / "second" / "model.msk")
    assert (tmp_path / "second" / "model.msk").read_bytes() == model.read_bytes()


def test_arrays_tensors_and_pictures_are_segmented_alike(model):
    segmenter = ms.load(model)
    grey = np.random.default_rng(0).integers(0, 255, (60, 90), np.uint8)
    of_array = segmenter.segment(grey)
    assert of_array.mask.shape == (60, 90)
    assert of_array.probs.shape == (60, 90, 1)
    colours = np.repeat(grey[..., None], 3, axis=2)
    wide = Pillow.fromarray(grey).quantize(8)  # indices of colours, not colours
    assert wide.mode == "P"
    assert np.abs(segmenter.segment(wide).probs - segmenter.segment(wide.convert("RGB")).probs).max() == 0
    same = segmenter.segment_batch(
        [
            grey[..., None],
            torch.from_numpy(colours).movedim(2, 0),
            Pillow.fromarray(grey),
            Pillow.fromarray(colours),
        ]
    )
    for other in same:
        assert np.abs(other.probs - of_array.probs).max() < 0.01  # of another batch size: not the same bits
    assert of_array._repr_png_().startswith(b"\x89PNG")
    assert of_array.overlay().shape == (60, 90, 3)
    assert 0.5 <= of_array.confidence <= 1
    assert len(of_array.objects) == cv2.connectedComponents(of_array.mask)[0] - 1
    assert segmenter.segment_batch([]) == []
    assert segmenter.segment(np.full((40, 40), 7, np.uint8)).mask.max() == 0  # without content


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 5), np.uint8), "5 bands; this model was trained on 1"),
        (np.zeros((8, 8), np.uint16), "pixels of uint16; this model was trained on uint8"),
        (np.zeros((0, 8), np.uint8), r"an array of shape \(0, 8, 1\)"),
        (np.zeros(8, np.uint8), r"an array of shape \(8,\)"),
    ],
)
def test_images_of_another_kind_are_refused(model, image, message):
    with pytest.raises(InputError, match=message):
        ms.load(model).segment(image)


def test_damaged_later_and_foreign_bundles_are_refused(model, tmp_path):
    with pytest.raises(InputError, match="no such file; expected a model that `masksmith bundle"):
        Bundle(tmp_path / "absent.msk")
    raw = model.read_bytes()
    for content in (b"", b"PK", raw[: len(raw) // 2], b"text" * 100):
        path = tmp_path / "bad.msk"
        path.write_bytes(content)
        with pytest.raises(InputError, match="not a masksmith model, or damaged"):
            Bundle(path)

    def changed(change) -> Path:
        with zipfile.ZipFile(model) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        facts = json.loads(files["model.json"])
        change(facts, files)
        files.setdefault("model.json", b"")
        if files["model.json"]:
            files["model.json"] = json.dumps(facts).encode()
        path = tmp_path / "changed.msk"
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
        return path

    with pytest.raises(InputError, match="format 99, this masksmith reads up to 3; update"):
        Bundle(changed(lambda facts, files: facts.update(format=99)))
    with pytest.raises(InputError, match=r"model\.json is not ours"):
        Bundle(changed(lambda facts, files: facts.pop("format")))
    with pytest.raises(InputError, match=r"model\.json lacks something"):
        Bundle(changed(lambda facts, files: facts.pop("rule")))
    later = changed(lambda facts, files: facts.update(from_the_future=1))
    assert Bundle(later).facts.rule_text
    image = np.zeros((40, 40), np.uint8)
    image[:20] = 9

    def spoil(facts, files):
        name = next(name for name in files if name.startswith("weights/"))
        files[name] = files[name][:-4] + b"\0\0\0\1"

    with pytest.raises(InputError, match="was damaged or changed"):
        ms.load(changed(spoil)).segment(image)

    def drop(facts, files):
        del files[next(name for name in files if name.startswith("weights/"))]

    with pytest.raises(InputError, match="cannot be read"):
        ms.load(changed(drop)).segment(image)
    with pytest.raises(InputError, match="runtime"):
        ms.load(model, runtime="tenserflow")


def test_facts_of_any_other_form_are_refused(model):
    """Every value of model.json, but those of recipes, is left out or put by another."""
    with zipfile.ZipFile(model) as archive:
        text = archive.read("model.json").decode()

    def places(value, at=()):
        yield at
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, one in items:
            yield from places(one, (*at, key)) if key != "recipe" else ()

    refused = 0
    for *within, key in [at for at in places(json.loads(text)) if at]:
        for value in (..., None, "x", -1, [], {}, ["x"]):
            changed = json.loads(text)
            holder = reduce(lambda one, step: one[step], within, changed)
            holder[key] = value
            if value is ...:
                del holder[key]
            try:
                facts = facts_of(changed, model)
                read_rule(dict(facts.rule))
                assert min(len(one.weights) for one in facts.members) > 0
            except InputError:
                refused += 1
    assert refused > 200


def test_threads_and_pickled_copies_find_the_same(model):
    images = [np.random.default_rng(at).integers(0, 255, (40, 50), np.uint8) for at in range(8)]
    expected = [ms.load(model).segment(image).codes for image in images]
    shared = ms.load(model)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda image: shared.segment(image).codes, images))
    found += [pickle.loads(pickle.dumps(shared)).segment(images[0]).codes]
    assert all(map(np.array_equal, found, [*expected, expected[0]]))


def test_members_that_unpack_to_gigabytes_or_need_a_password_are_refused(model, tmp_path):
    with zipfile.ZipFile(model) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for spoilt, message in (("model.json", "larger than any"), ("weights/0.safetensors", "larger than any")):
        with zipfile.ZipFile(tmp_path / "bomb.msk", "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files.items():
                archive.writestr(name, bytes(2**25) if name == spoilt else content)
        with pytest.raises(InputError, match=message):
            ms.load(tmp_path / "bomb.msk").segment(np.eye(40, dtype=np.uint8))
    with zipfile.ZipFile(tmp_path / "nested.msk", "w") as archive:
        archive.writestr("model.json", "[" * 100_000)
    raw = bytearray(model.read_bytes())
    at = raw.index(b"PK\x01\x02")
    raw[at + 8] |= 1  # encrypted, it says
    (tmp_path / "locked.msk").write_bytes(raw)
    for name in ("nested.msk", "locked.msk"):
        with pytest.raises(InputError, match="not a masksmith model, or damaged"):
            Bundle(tmp_path / name)


def photographs(folder: Path) -> Path:
    rng = np.random.default_rng(1)
    for name, side in (("a/one.png", 64), ("a/two.png", 101), ("b/one.png", 50)):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        assert cv2.imwrite(str(folder / name), rng.integers(0, 255, (side, side + 8), np.uint8))
    return folder


def test_a_folder_keeps_its_paths_and_bad_files_do_not_stop_the_rest(model, tmp_path):
    folder = photographs(tmp_path / "new")
    (folder / "a" / "cut.png").write_bytes((folder / "a" / "one.png").read_bytes()[:99])
    assert cv2.imwrite(str(folder / "deep.png"), np.arange(64, dtype=np.uint16).reshape(8, 8) * 900)
    shutil.copy(folder / "a" / "one.png", folder / "a" / "one.bmp.png")
    assert cv2.imwrite(str(folder / "a" / "one.bmp"), cv2.imread(str(folder / "a" / "one.png"), -1))
    done = ms.apply(model, folder, tmp_path / "out", overlay=True)
    assert done.done == 5
    assert len(done.refused) == 2
    assert "a/cut.png" in str(done)
    assert "pixels of uint16" in str(done)
    masks = {
        str(path.relative_to(tmp_path / "out" / "masks"))
        for path in (tmp_path / "out" / "masks").rglob("*.png")
    }
    assert {"a/two.png", "b/one.png", "a/one.bmp.png"} < masks
    assert len(masks) == 5
    assert cv2.imread(str(tmp_path / "out" / "overlays" / "b" / "one.png")).shape == (50, 58, 3)
    mask = cv2.imread(str(tmp_path / "out" / "masks" / "b" / "one.png"), -1)
    assert mask.shape == (50, 58)
    assert set(np.unique(mask)) <= {0, 255}
    with pytest.raises(InputError, match="not one of `masksmith apply`"):
        ms.apply(model, folder, folder)
    with pytest.raises(InputError, match="no such file or folder"):
        ms.apply(model, tmp_path / "absent", tmp_path / "out")
    with pytest.raises(InputError, match="it is a file; expected a folder"):
        ms.apply(model, folder, folder / "deep.png")
    with pytest.raises(InputError, match="cannot be written as a folder"):
        ms.apply(model, folder, folder / "deep.png" / "out")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / LOCK).touch()  # as a call leaves it that is killed at once
    assert ms.apply(model, folder / "a" / "one.png", tmp_path / "killed").done == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no images; expected files that end in"):
        ms.apply(model, tmp_path / "empty", tmp_path / "out")
    one = ms.apply(model, [str(folder / "b" / "*.png")], tmp_path / "pattern")
    assert one.done == 1


def test_images_of_equal_names_in_several_folders_are_all_segmented(model, tmp_path):
    folder = photographs(tmp_path / "new")
    done = ms.apply(model, [folder / "a" / "one.png", folder / "b" / "one.png"], tmp_path / "files")
    assert [row.split(",")[0] for row in csv_lines(done)] == ["a/one", "b/one"]
    done = ms.apply(model, [folder / "a", folder / "b"], tmp_path / "folders")
    assert [row.split(",")[0] for row in csv_lines(done)] == ["a/one", "b/one", "two"]
    for pattern in ("*/*.png", "**/*.png"):
        done = ms.apply(model, str(folder / pattern), tmp_path / f"pattern {len(pattern)}")
        assert [row.split(",")[0] for row in csv_lines(done)] == ["a/one", "a/two", "b/one"]
        assert (done.out / "masks" / "b" / "one.png").exists()
    twice = ms.apply(model, [folder, folder / "a" / "one.png"], tmp_path / "twice")
    assert twice.done == 3


def test_a_file_of_the_same_name_size_and_time_elsewhere_is_another(model, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        rng = np.random.default_rng(ord(name))
        assert cv2.imwrite(str(tmp_path / name / "one.bmp"), rng.integers(0, 255, (40, 40), np.uint8))
        os.utime(tmp_path / name / "one.bmp", (1, 1))
    ms.apply(model, tmp_path / "a", tmp_path / "out")
    before = (tmp_path / "out/apply.csv").read_text()
    ms.apply(model, tmp_path / "b", tmp_path / "out")
    assert (tmp_path / "out/apply.csv").read_text() != before


def test_pages_of_a_tiff_are_images_where_the_model_takes_other_bands(model, tmp_path):
    pages = np.random.default_rng(0).integers(0, 255, (3, 40, 50), np.uint8)
    (tmp_path / "new").mkdir()
    tifffile.imwrite(tmp_path / "new" / "stack.tif", pages, photometric="minisblack")
    tifffile.imwrite(tmp_path / "new" / "two.tif", pages[:2].astype(np.uint16), photometric="minisblack")
    done = ms.apply(model, tmp_path / "new", tmp_path / "out")
    assert [row.split(",")[1] for row in csv_lines(done)] == [
        *(f"stack.tif#{at}" for at in range(3)),
        "two.tif",
    ]
    assert "two.tif#0: pixels of uint16" in done.refused[0]
    assert cv2.imread(str(tmp_path / "out" / "masks" / "stack_0002.png"), -1).shape == (40, 50)


def test_links_and_names_that_cannot_be_used_do_not_stop_the_rest(model, tmp_path):
    folder = photographs(tmp_path / "new")
    (folder / "gone.png").symlink_to("nowhere.png")
    (folder / "notes.txt").symlink_to("nowhere.txt")  # no image by its name
    shutil.copy(folder / "a" / "one.png", tmp_path / "outside.png")
    (folder / "out.png").symlink_to(tmp_path / "outside.png")
    shutil.copy(folder / "a" / "one.png", os.fsencode(folder) + b"/\xff.png")
    elsewhere = os.fsdecode(os.fsencode(tmp_path) + b"/d\xfe")
    shutil.copytree(folder / "b", elsewhere)
    messages = (
        "valid UTF-8; rename",
        "gone.png: a link to 'nowhere.png', which is no",
        "the link leads out of",
    )
    for given in (folder, f"{folder}/**/*.png", sorted(folder.rglob("*.png"))):
        done = ms.apply(model, given, tmp_path / "out")
        assert done.done == 3
        for text, told in zip(messages, sorted(done.refused, key=lambda one: "name" not in one), strict=True):
            assert text in told
        shutil.rmtree(tmp_path / "out")
    done = ms.apply(model, elsewhere, tmp_path / "out")
    assert [row.split(",")[0] for row in csv_lines(done)] == ["one"]


def csv_lines(done) -> list[str]:
    return (done.out / "apply.csv").read_text().splitlines()[1:]


def test_an_interrupted_call_goes_on_and_ends_with_the_same_files(model, tmp_path, monkeypatch):
    folder = photographs(tmp_path / "new")
    monkeypatch.setattr("masksmith.deploy.chunks.CHUNK_IMAGES", 1)
    clean = ms.apply(model, folder, tmp_path / "clean")
    calls = []

    def count(self, images, names, **options):
        calls.append(names)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return predict(self, images, names, **options)

    predict = Segmenter.predict
    monkeypatch.setattr(Segmenter, "predict", count)
    with pytest.raises(KeyboardInterrupt):
        ms.apply(model, folder, tmp_path / "out")
    again = ms.apply(model, folder, tmp_path / "out")
    assert calls == [["a/one"], ["a/two"], ["a/two"], ["b/one"]]
    assert again.done == clean.done == 3
    for path in (tmp_path / "clean" / "masks").rglob("*.png"):
        assert path.read_bytes() == (tmp_path / "out" / path.relative_to(tmp_path / "clean")).read_bytes()
    assert (tmp_path / "out" / "apply.csv").read_text() == (tmp_path / "clean" / "apply.csv").read_text()
    assert cv2.imwrite(str(folder / "b" / "one.png"), np.zeros((20, 20), np.uint8))
    (tmp_path / "out" / "masks" / "a" / "one.png").unlink()
    ms.apply(model, folder, tmp_path / "out")
    assert calls[4:] == [["a/one"], ["b/one"]]  # the one that changed, and the one whose mask is gone


def test_numbers_are_found_by_name_and_a_missing_one_stops_its_image_alone(tmp_path):
    model = tiny_bundle(tmp_path / "m.msk", BINARY, "model.scalars=[z]")
    folder = photographs(tmp_path / "new")
    (tmp_path / "depths.csv").write_text("id,z\nb/one,3\ntwo,4\n")
    done = ms.apply(model, folder, tmp_path / "out", table=tmp_path / "depths.csv")
    assert done.done == 2
    assert len(done.refused) == 1
    assert "a/one.png: no 'z' of the id 'a/one' or 'one'" in done.refused[0]


def test_a_table_gives_the_numbers_that_a_model_takes(tmp_path):
    path = tmp_path / "depths.csv"
    path.write_text("id,z\na,3\nb,4.5\n")
    assert read_scalars(path, ["z"]) == {"a": {"z": 3.0}, "b": {"z": 4.5}}
    for text, message in (
        ("id,z\na,x\n", "could not convert"),
        ("id,z\na,nan\n", "expected finite"),
        ("id,y\na,1\n", "the column 'z' is missing"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            read_scalars(path, ["z"])
    with pytest.raises(InputError, match="no such file; expected a table"):
        read_scalars(tmp_path / "absent.csv", ["z"])
