"""The page of a data set: its sections, its numbers against direct computation, and text that stays text."""

import dataclasses
import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.data.columns import Column
from masksmith.data.groups import Likeness
from masksmith.data.look import Look
from masksmith.data.neighbours import Neighbours
from masksmith.data.shift import Shift
from masksmith.data.tally import MaskTally
from masksmith.data.target import BINARY, OBJECTS, Target
from masksmith.recipes.recipe import load_recipe
from masksmith.reporting.advice import advise

EVIL = "<img src=x onerror=alert(1)>"


def write(path: Path, picture: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded, raw = cv2.imencode(path.suffix, picture)
    assert encoded
    path.write_bytes(raw.tobytes())


def hand_made(root: Path, *, names: str = "p{}") -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Write six images of 20 x 30 with 0, 1 or 2 squares each and a table; return images and masks by id."""
    rng = np.random.default_rng(3)
    images, masks = {}, {}
    for at in range(6):
        name = names.format(at)
        masks[name] = np.zeros((20, 30), np.uint8)
        masks[name][2 : 2 + at, 3:6] = 1
        if at > 3:
            masks[name][15:19, 20:30] = 1
        images[name] = rng.integers(0, 250, (20, 30), np.uint8)
        write(root / "images" / f"{name}.png", images[name])
        write(root / "masks" / f"{name}.png", masks[name] * 255)
    write(root / "test" / "t0.png", rng.integers(0, 250, (20, 30), np.uint8))
    return images, masks


class Page(HTMLParser):
    """What a browser would fetch, run and show of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: Counter[tuple[str, ...]] = Counter()
        self.ids: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags[tag, *(name for name, _ in attrs)] += 1
        for name, value in attrs:
            assert not name.startswith("on"), (tag, attrs)
            assert name not in {"action", "srcset"}
            if name == "src":
                assert value.startswith(("data:image/png;base64,", "data:image/jpeg;base64,")), value[:40]
                assert ("loading", "lazy") in attrs
            if name == "href":
                assert value.startswith("#"), value
            if name == "id" and not re.match(r"[0-9a-f]{8}-", value):  # plotly's own
                self.ids.append(value)


def test_numbers_are_those_of_the_pixels(tmp_path):
    images, masks = hand_made(tmp_path / "data")
    done = ms.explore(tmp_path / "data", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "explore.json").read_text())
    assert found == done.numbers
    assert (found["task"], found["images"]) == ("binary", {"training": 6, "test": 1})
    assert found["sizes"] == {"training": {"20x30": 6}, "test": {"20x30": 1}}
    every = np.stack(list(images.values())).astype(float)
    band = found["bands"]["training"][0]
    assert (band["low"], band["high"], band["no_data_share"]) == (every.min(), every.max(), 0)
    assert (band["mean"], band["std"]) == pytest.approx((every.mean(), every.std()))
    for at in (1, 5, 25, 50, 75, 95, 99):
        assert band["percentiles"][f"p{at}"] == pytest.approx(np.percentile(every, at))
    coverage = [mask.mean() for mask in masks.values()]
    assert (found["masks"]["empty"], found["masks"]["mean_coverage"]) == (1, pytest.approx(np.mean(coverage)))
    assert found["masks"]["coverage_classes"] == [1, 5, *[0] * 9]
    assert found["class_table"][0] | {"colour": ""} == {
        "name": "foreground",
        "colour": "",
        "pixels": pytest.approx(np.mean(coverage)),
        "images": 5,
        "objects": 7,
        "median_area": 12,
    }
    areas = sorted([3, 6, 9, 12, 15, 40, 40])
    assert found["objects"]["count"] == len(areas)
    told = found["objects"]["areas_px"]
    assert (told["least"], told["p50"], told["largest"]) == (areas[0], areas[3], areas[-1])
    assert found["objects"]["per_image"]["most"] == 2
    grid = np.array(found["masks"]["mean_mask"][0])
    assert grid.shape == (64, 64)
    assert grid.mean() == pytest.approx(np.mean(coverage), abs=1e-3)
    assert grid[40, 60] == pytest.approx(0, abs=1e-3)
    assert grid[54, 50] == pytest.approx(2 / 6, abs=1e-3)


def example(root: Path, task: str) -> Path:
    if task != "many classes":
        ms.example(root, train=24, test=40, task=task)
        return root / "data"
    for at in range(12):
        mask = np.zeros((24, 24), np.uint8)
        mask[4:8, :] = 1
        mask[at : at + 3, 2:9] = 2
        mask[20:, 20:] = 255
        write(
            root / "data" / "images" / f"{at}.png",
            np.random.default_rng(at).integers(0, 255, (24, 24, 3), np.uint8),
        )
        write(root / "data" / "masks" / f"{at}.png", mask)
    return root / "data"


@pytest.mark.parametrize("task", ["binary", "multiclass", "multilabel", "instances", "many classes"])
def test_every_task_has_its_sections_and_nothing_comes_from_elsewhere(tmp_path, task):
    done = ms.explore(example(tmp_path / "example", task), tmp_path / "out")
    text = done.page.read_text()
    page = Page(text)
    wanted = {"overview", "images", "masks", "objects", "shift", "leaks", "findings"}
    wanted |= {"classes"} if len(done.numbers["classes"]) > 1 else set()
    assert wanted <= set(page.ids)
    assert ("classes" in page.ids) == (len(done.numbers["classes"]) > 1)
    assert len(page.ids) == len(set(page.ids))
    images = sum(count for tag, count in page.tags.items() if tag[0] == "img")
    assert 12 * 3 < images < 400
    assert text.count("Plotly.newPlot(") >= 6
    if task == "binary":
        assert all(
            words in text for words in ("coverage class against coverage", "Masks of the images above")
        )
    if len(done.numbers["classes"]) > 1:
        together = np.array(done.numbers["together"])
        assert (together == together.T).all()
        assert np.diag(together).tolist() == [line["images"] for line in done.numbers["class_table"]]
    if task == "many classes":
        assert np.array(done.numbers["together"]).tolist() == [[12] * 3] * 3
        assert done.numbers["masks"]["unjudged_share"] == pytest.approx(16 / 576)
    if done.numbers["images"]["test"]:
        assert 0 <= done.numbers["shift"]["auc"] <= 1
    assert str(done).splitlines()[-1] == str(done.page)


def test_ids_columns_and_folders_are_shown_as_text(tmp_path):
    data = tmp_path / f"data {EVIL.replace('/', '')}"
    hand_made(data, names="{}" + EVIL)
    rows = "\n".join(f'"{at}{EVIL}",{at},"{EVIL}{at % 2}"' for at in range(6))
    (data / "table.csv").write_text(f'id,"z{EVIL}","kind{EVIL}"\n{rows}\n')
    done = ms.explore(data, tmp_path / "out")
    assert [column["name"] for column in done.numbers["columns"]] == [f"kind{EVIL}", f"z{EVIL}"]
    text = done.page.read_text()
    assert EVIL not in text.replace(EVIL.replace("<", "\\u003c").replace(">", "\\u003e"), "")
    Page(text)


def test_columns_that_shift_are_told_and_so_are_pairs(tmp_path):
    data, rng = tmp_path / "data", np.random.default_rng(0)
    images, _ = hand_made(data)
    write(data / "images" / "q.png", images["p4"])
    write(data / "masks" / "q.png", np.zeros((20, 30), np.uint8))
    for at in range(40):
        write(data / "test" / f"t{at}.png", rng.integers(0, 250, (20, 30), np.uint8))
    write(data / "test" / "t3.png", images["p2"])
    ours = [f"p{at},{at},a,{at % 2}" for at in range(6)] + ["q,6,a,1"]
    theirs = [f"t{at},{100 + at},{'ab'[at % 2]},{at % 2}" for at in range(40)]
    (data / "table.csv").write_text("\n".join(["id,depth,kind,side", *ours, *theirs]))
    done = ms.explore(data, tmp_path / "out")
    columns = {one["name"]: one for one in done.numbers["columns"]}
    assert columns["depth"] | {"chance": 0, "rank_correlation_with_coverage": 0} == {
        "name": "depth",
        "kind": "numbers",
        "training": 7,
        "test": 40,
        "gap": 1.0,
        "chance": 0,
        "shifted": True,
        "only_in_test": [],
        "rank_correlation_with_coverage": 0,
    }
    assert columns["kind"]["only_in_test"] == ["b"]
    assert columns["kind"]["gap"] == pytest.approx(0.5)
    assert not columns["side"]["shifted"]
    leaks = {one["title"]: one["pairs"] for one in done.numbers["leaks"]}
    assert leaks["identical images, different masks"] == [
        {"first": ["train", "p4"], "second": ["train", "q"], "lies": ""}
    ]
    assert leaks["test images that are training images"][0]["second"] == ["test", "t3"]
    assert any(one["settings"] == ["model.scalars=[]"] for one in done.numbers["advice"])
    assert ">shifts</span>" in done.page.read_text()


def tally(names: tuple[str, ...], *, rare: int, area: int) -> MaskTally:
    """Return 300 images of 100 judged pixels, half of them empty, whose first class lies at the top."""
    pixels = np.zeros((300, len(names)), np.int64)
    pixels[:150] = [60, *[rare] * (len(names) - 1)]
    grids = np.zeros((len(names), 64, 64))
    grids[:, :20] = 1
    coverage = pixels.sum(axis=1) / 100
    areas = [Counter({area: 9}) for _ in names]
    judged, ids = np.full(300, 100), [str(at) for at in range(300)]
    return MaskTally(names, ids, coverage, coverage * 0, pixels, judged, pixels, areas, grids, False)


def likeness(num_train: int, num_test: int) -> Likeness:
    count = num_train + num_test
    empty = np.zeros((0, 4, 64), np.float16)
    names, flags = np.array([str(at) for at in range(count)]), np.zeros(count, bool)
    sizes, numbers = np.full((count, 2), 64), np.zeros((count, 7), np.float32)
    seen = Look(names, names, flags, np.zeros((count, 8), np.uint8), sizes, empty, numbers)
    pairs = [(at, at + 1) for at in range(0, 40, 2)]
    return Likeness(seen, num_train, np.arange(count), Neighbours(pairs, 0))


def test_all_advice_is_given_where_it_is_due_and_obeyed_by_recipes():
    """Every rule fires on data made for it, stays silent on other data, and names keys that a recipe has."""
    shift = Shift(0.9, 0.85, 0.95, ["brightness: train 1, test 2 (AUC 0.90 alone)"], np.full(300, 0.5))
    values: dict[str, float] = {str(at): float(300 - at) for at in range(300)}
    related = Column("z", values, values, 0.0, 1.0, False, [])
    shifted = Column("x", values, {"t": 9.0}, 1.0, 0.0, True, [])
    few = dataclasses.replace(tally(("a",), rare=0, area=9), coverage=np.zeros(300))
    classes = Target("multiclass", ("a", "b"), (0, 1))
    cases = [
        (
            OBJECTS,
            [(64, 64)],
            tally(("object",), rare=0, area=9),
            [related, shifted],
            None,
            likeness(300, 400),
        ),
        (classes, [(64, 2000)], tally(("a", "b"), rare=1, area=9), [], shift, likeness(300, 9)),
        (BINARY, [(64, 64)], few, [], None, likeness(300, 9)),
    ]
    found = [one for case in cases for one in advise(*case)]
    keys = {setting.partition("=")[0] for one in found for setting in one.settings}
    assert keys == {
        *("training.sampler.name", "model.image_head", "training.stages.0.scale", "tuning.min_object_areas"),
        *(
            "training.geometry.vflip",
            "model.scalars",
            "folds.group_by",
            "folds.stratify",
            "folds.holdout_frac",
        ),
        *("folds.count", "folds.train", "training.crop_hw", "training.augment.positive_windows"),
        *("prediction.tile_hw", "model.encoder_weights", "training.augment.strength"),
    }
    assert any("masksmith pseudo PROJECT" in one.text for one in found)
    for one in found:
        load_recipe("auto", tuple(one.settings))
    plain = dataclasses.replace(tally(("a",), rare=0, area=900), mean_masks=np.ones((1, 64, 64)))
    plain = dataclasses.replace(plain, coverage=np.full(300, 0.5))
    alone = dataclasses.replace(likeness(300, 0), neighbours=Neighbours([], 0))
    assert advise(BINARY, [(64, 64)], plain, [], None, alone) == []


def test_a_page_is_written_into_a_project_or_a_new_folder_only(tmp_path):
    hand_made(tmp_path / "data")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(ms.InputError, match=r"it is no masksmith project, and it holds 'letter\.txt'"):
        ms.explore(tmp_path / "data", tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["letter.txt"]
    ms.check(tmp_path / "data", tmp_path / "project")
    first = ms.explore(tmp_path / "data", tmp_path / "project", task="binary").json.read_text()
    assert ms.explore(tmp_path / "data", tmp_path / "project").json.read_text() == first
