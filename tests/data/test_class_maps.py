"""Class maps and label images, from files to the cache: numbers of classes, what is not judged, what contradicts."""

import re

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.cache import build_cache, open_cache
from masksmith.data.decode.palette import encode_indices, read_palette
from masksmith.data.instances import label_png
from masksmith.data.layouts import read_catalog
from masksmith.data.masks import MaskHints, find_convention, look_at_mask, mask_levels
from masksmith.data.target import BINARY, OBJECTS, Target
from masksmith.submission.formats import read_mask, write_masks

HW = (24, 30)


def stripes(*values, dtype=np.uint8, hw=HW):
    """A stripe of each value, from left to right."""
    mask = np.zeros(hw, dtype)
    for at, value in enumerate(values):
        mask[:, at * hw[1] // len(values) :] = value
    return mask


def look(*masks, task=None, lossy=(), **hints):
    files = [
        look_at_mask(
            mask_levels(mask[..., None], where=f"{at}.png"),
            name=str(at),
            path=f"{at}.png",
            lossy=at in lossy,
        )
        for at, mask in enumerate(masks)
    ]
    return find_convention(files, where="masks", hints=MaskHints(task, **hints))


def pairs(root, masks, *, images="images", labels="masks", start=0, ending=".png"):
    """A noise image for each mask."""
    rng = np.random.default_rng(start)
    for folder in (images, labels):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for at, mask in enumerate(masks, start=start):
        grey = rng.integers(0, 255, mask.shape, dtype=np.uint8)
        cv2.imwrite(str(root / images / f"{at:02d}.png"), grey)
        cv2.imwrite(str(root / labels / f"{at:02d}{ending}"), mask)
    return root


def read(data, cache, **asked):
    return build_cache(read_catalog(data, **asked), cache)


# --- conventions ------------------------------------------------------------------------------------------


def test_values_are_classes_and_keep_their_numbers():
    for values, classes in (
        ((0, 1, 2), "0 1 2"),
        ((0, 2, 1, 5), "0 1 2 3 4 5"),  # 3 and 4 are nowhere
        ((0, 1, 3, 200), "0 1 3 200"),  # numbers that are no count of classes
        ((1, 2, 3), "0 1 2 3"),
        ((0, 300, 700), "0 300 700"),
    ):
        found = look(stripes(*values, dtype=np.uint16), stripes(values[0], dtype=np.uint16))
        assert found.target.task == "multiclass"
        assert found.target.classes == tuple(classes.split())
        assert found.target.values == tuple(map(int, classes.split()))
        codes = [found.target.values.index(value) for value in values]
        applied = found.apply(stripes(*values, dtype=np.uint16), lossy=False)
        np.testing.assert_array_equal(applied, stripes(*codes))
    (said,) = look(stripes(0, 1, 2, 5)).findings
    assert (said.level, said.title) == ("warning", "classes that never occur")
    assert said.detail == "2 of 6 classes occur in no mask: 3, 4; they keep their numbers"
    assert look(stripes(0, 1), task="multiclass").target.values == (0, 1)
    assert look(stripes(0, 1)).target == BINARY


def test_what_is_not_judged_and_what_classes_are_called():
    void = look(stripes(0, 1, 2, 255), stripes(0, 1))
    assert (void.target.values, void.target.ignore) == ((0, 1, 2), (255,))
    assert void.findings[0].detail == "255 is not judged (13.33% of all pixels)"
    assert void.apply(stripes(0, 2, 255), lossy=False)[0, [0, 15, 29]].tolist() == [0, 2, 255]
    kept = look(stripes(0, 1, 200, 255))  # values from far apart: 255 may be a class as well
    assert kept.target.values == (0, 1, 200, 255)
    assert look(stripes(0, 1, 200, 255), ignore=(255,)).target.values == (0, 1, 200)
    top = stripes(0, 1, 200, 65535, dtype=np.uint16)
    assert look(top).target.values == (0, 1, 200, 255)
    assert look(top, ignore=(65535,)).target.values == (0, 1, 200)
    signed = look(stripes(-1, 0, 1, 2, dtype=np.int16), task="multiclass")
    assert (signed.target.values, signed.target.ignore) == ((0, 1, 2), (-1,))
    assert signed.apply(stripes(-1, 2, dtype=np.int16), lossy=False)[0, [0, 29]].tolist() == [255, 2]
    names = {0: "sky", 1: "road", 2: "car", 3: "void"}
    called = look(stripes(0, 1, 3), names=names, ignore=(3,), palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)))
    assert called.target.classes == ("sky", "road", "car")
    assert called.target.palette == ((1, 2, 3), (4, 5, 6), (7, 8, 9))
    assert [one.title for one in called.findings] == [
        "masks with pixels not judged",
        "classes that never occur",
    ]
    assert called.findings[0].detail.startswith("3 (void) is not judged (33.33%")
    assert called.findings[1].detail.endswith("occur in no mask: car; they keep their numbers")
    assert Target.from_json(called.target.to_json()) == called.target
    assert (called.target.outputs, called.target.exclusive) == (3, True)
    assert (OBJECTS.outputs, OBJECTS.exclusive, BINARY.outputs) == (3, False, 1)


def test_values_that_contradict_a_task():
    ramp = np.repeat(np.arange(255, dtype=np.uint8)[None], 24, axis=0)
    many = np.repeat(np.arange(600, dtype=np.uint16), 4)[None].repeat(4, axis=0)
    blobs = cv2.GaussianBlur(np.random.default_rng(0).normal(0, 1, HW), (0, 0), 3)
    smooth = np.clip(128 + 4000 * blobs, 0, 255).astype(np.uint8)
    for masks, asked, message in (
        ((stripes(0, 1, 2),), {"task": "binary"}, r"3 different values \(0, 1, 2\); expected two"),
        (
            (stripes(0, 255),),
            {"task": "multiclass"},
            r"one class only \(0\); expected two or more, or masks of 0 and 255",
        ),
        (
            (stripes(0, 1, 2), stripes(0, 255)),
            {"lossy": (1,), "task": "multiclass"},
            "1 masks are JPEG, .* classes .*: 1.png",
        ),
        (
            (stripes(0, 1, 2), stripes(0, 255)),
            {"lossy": (1,), "task": "instances"},
            "1 masks are JPEG, .* objects .*: 1.png",
        ),
        ((many,), {"task": "multiclass"}, r"257 values and more; expected at most 255 .* --task instances"),
        (
            (smooth.clip(9),),
            {},
            r"different values .* no equal neighbour .*: smoothed edges of two values, not areas of classes",
        ),
        (
            (stripes(-2, 0, 1, dtype=np.int16),),
            {"task": "multiclass"},
            "the value -2; expected classes from 0 on",
        ),
    ):
        with pytest.raises(InputError, match=message):
            look(*masks, **asked)
    assert len(look(ramp, task="multiclass").target.values) == 255  # the most that there are
    assert look(smooth, task="multiclass").target.task == "multiclass"  # it was asked for
    for task in (None, "binary"):  # 0 and 255 with grey edges are cut, and it is said
        cut = look(smooth, task=task)
        assert (cut.target.task, cut.findings[0].title) == ("binary", "masks with grey edges")
        assert (cut.apply(smooth, lossy=False) == (smooth >= 128)).all()
        assert "1 masks have grey values" in cut.findings[0].detail


def test_grey_edges_are_told_from_classes_and_points():
    """Edges along the axes have equal neighbours; points of classes beside 255 have none, and are not cut."""
    square = np.zeros((40, 40), np.uint8)
    square[8:30, 9:31] = 255
    resized = cv2.resize(square, (93, 93), interpolation=cv2.INTER_LINEAR)
    found = look(resized)
    assert (found.target.task, found.findings[0].title) == ("binary", "masks with grey edges")
    rng = np.random.default_rng(0)
    points = np.zeros((64, 64), np.uint8)
    points[:9] = 255
    points[rng.integers(12, 64, 40), rng.integers(0, 64, 40)] = rng.integers(1, 4, 40)
    with pytest.raises(
        InputError, match=r"\(0, 1, 2, 3, 255\); .*: smoothed edges, or single pixels, not areas"
    ):
        look(points)
    assert look(points, task="multiclass").target.classes == ("0", "1", "2", "3")
    deep = cv2.resize(square.astype(np.uint16) * 257, (93, 93), interpolation=cv2.INTER_CUBIC)
    with pytest.raises(
        InputError, match="smoothed edges of two values, not areas of classes; threshold them"
    ):
        look(deep)
    trimap = cv2.rectangle(square.copy(), (8, 7), (31, 30), 128)
    assert look(trimap).target.values == (0, 128, 255)  # one thin class
    heights = np.repeat(np.repeat(rng.integers(0, 200, (20, 20), dtype=np.uint8), 4, 0), 4, 1)
    assert "very many classes" in [one.title for one in look(heights).findings]


# --- label images -----------------------------------------------------------------------------------------


def test_label_images_of_every_kind(tmp_path):
    """One object an image, numbers that differ, 65535 as it is written by label_png, JPEG and masks of regions."""
    cases = {
        "several": ([stripes(0, 1, 2), stripes(0, 5)], [2, 1]),
        "one each": ([stripes(0, 7), stripes(0, 9)], [1, 1]),
        "regions": ([stripes(0, 255, 0, 255), stripes(0, 255)], [2, 1]),
        "zero and one": ([stripes(0, 1, 0, 1), stripes(0, 1)], [2, 1]),
        "mixed": ([stripes(0, 1, 0, 1), stripes(0, 255)], [2, 1]),
        "unjudged": ([stripes(0, 1, 2, 65535, dtype=np.uint16), stripes(0, 3, dtype=np.uint16)], [2, 1]),
    }
    for name, (masks, counts) in cases.items():
        cache = read(pairs(tmp_path / name, masks), tmp_path / name / "cache", task="instances")
        assert cache.target.task == "instances", name
        labels = [cache.train_masks[one] for one in cache.train_masks]
        assert [int(one.max()) for one in labels] == counts, name
        assert {one.dtype for one in labels} == {np.dtype(np.int32)}
        assert cache.mask_findings[0].detail.startswith(f"{sum(counts)} in 2 images, 1 to {max(counts)}")
        top = masks[0] == 65535
        np.testing.assert_array_equal(labels[0][..., 0] == -1, top)
    assert cache.mask_findings[1].title == "masks with pixels not judged"
    asked = read(tmp_path / "unjudged", tmp_path / "c", task="instances", ignore=[65535])
    assert asked.train_masks["00"].max() == 2
    dropped = read(tmp_path / "several", tmp_path / "c2", task="instances", ignore=[2])
    assert dropped.train_masks["00"].max() == 1
    disc = np.zeros((40, 40), np.uint8)
    cv2.circle(disc, (12, 12), 7, 255, -1)
    cv2.circle(disc, (30, 30), 6, 255, -1)
    cache = read(pairs(tmp_path / "jpeg", [disc, disc], ending=".jpg"), tmp_path / "c3", task="instances")
    assert [int(cache.train_masks[one].max()) for one in cache.train_masks] == [2, 2]
    assert cache.mask_findings[1].title == "lossy masks"


def test_seventy_thousand_objects_and_one_of_a_pixel(tmp_path):
    """As files cannot hold more than 65534, as rows they can; what cannot be written says so."""
    dots = np.zeros((540, 540), np.uint16)
    dots[::2, ::2] = 255
    dots[0, 0] = 0
    assert (dots > 0).sum() == 270**2 - 1
    data = pairs(tmp_path / "data", [dots, stripes(0, 255)])
    cache = read(data, tmp_path / "cache", task="instances")
    labels = cache.train_masks["00"][..., 0]
    assert labels.max() == 270**2 - 1
    assert (np.bincount(labels.ravel())[1:] == 1).all()  # each of one pixel
    with pytest.raises(
        InputError, match="object number 72,899; a PNG of 16 bits holds at most 65,534 objects"
    ):
        label_png(labels)


# --- folders ----------------------------------------------------------------------------------------------


def test_masks_of_other_sizes_are_refused_together_for_every_task(tmp_path):
    masks = [stripes(0, 1, 2) for _ in range(9)]
    data = pairs(tmp_path / "data", masks)
    for at in range(7):
        cv2.imwrite(str(data / "masks" / f"{at:02d}.png"), masks[0][:, :20])
    for task in (None, "multiclass", "instances", "binary"):
        with pytest.raises(InputError, match="7 masks cannot be used") as caught:
            read(data, tmp_path / "cache", task=task)
        for at in range(7):
            assert f"masks/{at:02d}.png: the mask is 24x20 but its image images/{at:02d}.png is 24x30" in str(
                caught.value
            )


def test_object_files_and_rows_refuse_another_task(tmp_path, download):
    ms.example(tmp_path / "e", train=2, test=1, task="instances")
    with pytest.raises(InputError, match="--task multiclass, but the images have a file for each object"):
        read(tmp_path / "e/data", tmp_path / "cache", task="multiclass")
    united, objects = (ms.read(tmp_path / "e/data", task=task) for task in ("binary", None))
    assert (united.task, objects.task) == ("binary", "instances")
    for one, other in zip(united.train, objects.train, strict=True):
        assert np.array_equal(one.target, other.target > 0)
    for path in (tmp_path / "e/data/train").rglob("masks/*.png"):
        path.unlink()
    with pytest.raises(InputError, match="no image has an object; there is nothing to learn"):
        read(tmp_path / "e/data", tmp_path / "cache")
    for path in (download / "train/masks").iterdir():
        path.unlink()
    with pytest.raises(
        InputError, match="--task multiclass needs mask files of classes, and there are run-lengths only"
    ):
        read(download, tmp_path / "cache", task="multiclass")


def test_a_validation_folder_is_the_held_out_fold_and_camvid_is_known(tmp_path):
    """SegNet's folders: train with trainannot, val with valannot, 11 is void; a class that only val holds is one."""
    first = [stripes(0, 1, 2, 11), stripes(0, 3, 4), stripes(0, 5, 6)]
    data = pairs(tmp_path / "data", first, images="train", labels="trainannot")
    pairs(data, [stripes(0, 9, 11), stripes(1, 7)], images="val", labels="valannot", start=3)
    catalog = read_catalog(data)
    assert [sample.held_out for sample in catalog.train] == [False, False, False, True, True]
    cache = build_cache(catalog, tmp_path / "cache")
    target = cache.target
    assert target.classes == (
        "sky",
        "building",
        "pole",
        "road",
        "pavement",
        "tree",
        "sign",
        "fence",
        "car",
        "pedestrian",
        "cyclist",
    )
    assert (target.values, target.ignore) == (tuple(range(11)), (11,))
    absent = next(one for one in cache.mask_findings if one.title == "classes that never occur")
    assert absent.detail == "2 of 11 classes occur in no mask: car, cyclist; they keep their numbers"
    assert np.unique(cache.train_masks["03"]).tolist() == [0, 9, 255]
    out = tmp_path / "p"
    ms.check(data, out)
    folds = ms.folds(out)
    assert {row.id: row.fold for row in folds.rows} == {"00": 1, "01": 1, "02": 1, "03": 0, "04": 0}
    ms.check(data, out)  # again, with nothing asked
    own = tmp_path / "own"
    ms.check(data, own)
    assert ms.folds(own, overrides={"folds.count": 5}).count == 5
    for folder in ("train", "trainannot"):
        cv2.imwrite(str(data / folder / "03.png"), stripes(0, 1, 2))
    ids = ["train/00", "train/01", "train/02", "train/03", "val/03", "val/04"]
    assert [
        one.id for one in read_catalog(data).train
    ] == ids  # one id in both: the split is part of all of them
    for folder in ("train", "trainannot"):
        (data / folder / "03.png").rename(data / folder / "05.png")
    (data / "train" / "05.png").write_bytes((data / "val" / "04.png").read_bytes())
    ms.check(data, tmp_path / "twice")
    with pytest.raises(
        InputError, match=r"1 groups of identical images, .* are in several parts of the data's own split"
    ):
        ms.folds(tmp_path / "twice")


def test_names_of_folders_that_hold_out(tmp_path):
    for name in ("val", "valid", "validation"):
        data = tmp_path / name
        pairs(data, [stripes(0, 1)], images="train/images", labels="train/masks")
        pairs(data, [stripes(0, 1)], images=f"{name}/images", labels=f"{name}/masks", start=1)
        assert [one.held_out for one in read_catalog(data).train] == [False, True]
    pairs(tmp_path / "plain", [stripes(0, 1)])
    pairs(tmp_path / "plain", [stripes(0, 1)], images="val/images", labels="val/masks", start=1)
    assert [one.held_out for one in read_catalog(tmp_path / "plain").train] == [False, True]


def test_a_cache_without_its_target_is_made_again(tmp_path):
    data = pairs(tmp_path / "data", [stripes(0, 1, 2), stripes(0, 2, 3)])
    first = read(data, tmp_path / "cache")
    assert open_cache(tmp_path / "cache").target == first.target
    (tmp_path / "cache/target.json").unlink()
    with pytest.raises(InputError, match=re.escape("target.json: it is not there; the next command decodes")):
        open_cache(tmp_path / "cache")
    assert read(data, tmp_path / "cache").target == first.target
    other = read(data, tmp_path / "cache", ignore=[3])  # the cache is that of what was asked
    assert (other.target.values, other.target.ignore) == ((0, 1, 2), (3,))


def test_a_palette_is_read_as_numbers_and_written_back(tmp_path):
    colours = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}
    masks = [stripes(0, 1, 2), stripes(2, 1), stripes(1, 0, 255)]
    data = pairs(tmp_path / "data", masks)
    for at, mask in enumerate(masks):
        (data / "masks" / f"{at:02d}.png").write_bytes(encode_indices(mask, colours))
    cache = read(data, tmp_path / "cache")
    target = cache.target
    assert (target.task, target.values, target.ignore) == ("multiclass", (0, 1, 2), (255,))
    assert target.palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0))
    np.testing.assert_array_equal(cache.train_masks["02"][..., 0], masks[2])
    (tmp_path / "out").mkdir()
    list(write_masks(tmp_path / "out", [("a", masks[0])], target, where=tmp_path))
    shown = cv2.imread(str(tmp_path / "out" / "a.png"))[0, [0, 15, 29], ::-1]  # as any other reader paints it
    assert shown.tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0]]
    np.testing.assert_array_equal(read_mask(tmp_path / "out" / "a.png", target), masks[0])
    # files that paint the classes in other colours are numbers still; greys are what they show
    (data / "masks" / "01.png").write_bytes(encode_indices(masks[1], {1: (9, 9, 0)}))
    assert read(data, tmp_path / "other").target.palette == ()
    assert read_palette(encode_indices(masks[0], {1: (80, 80, 80)})) == ()
    assert read_palette(cv2.imencode(".png", masks[0])[1].tobytes()) == read_palette(b"") == ()


def test_a_class_that_one_fold_alone_has_is_said(tmp_path, caplog):
    masks = [stripes(0, 1)] * 3 + [stripes(0, 1, 2)]
    pairs(tmp_path / "data", masks)
    ms.check(tmp_path / "data", tmp_path / "p")
    with caplog.at_level("WARNING", logger="masksmith"):
        folds = ms.folds(tmp_path / "p", overrides={"folds.count": 2})
    (alone,) = {row.fold for row in folds.rows if row.id == "03"}
    assert (
        f"fold {alone}: 2 in no other fold: a training that holds it out never sees such pixels"
        in caplog.text
    )
    assert caplog.text.count("in no other fold") == 1


# --- numbered objects -------------------------------------------------------------------------------------


def numbered(count, *, hw=(64, 96), grid=8, dtype=np.uint8):
    """Squares numbered from 1 to count."""
    mask = np.zeros(hw, dtype)
    for at in range(count):
        row, column = divmod(at, hw[1] // grid)
        mask[row * grid : row * grid + grid - 2, column * grid : column * grid + grid - 2] = at + 1
    return mask


def test_regions_numbered_from_one_are_objects(tmp_path):
    data = pairs(tmp_path / "data", [numbered(count) for count in (9, 12, 20, 1)])
    cache = read(data, tmp_path / "cache")
    assert cache.target.task == "instances"
    assert [len(np.unique(cache.train_masks[f"0{at}"])) - 1 for at in range(4)] == [9, 12, 20, 1]
    said = next(one.detail for one in cache.mask_findings if one.title == "masks of numbered objects")
    assert said.startswith("each mask numbers its regions, from 1 to 9 in one and to 20 in another")
    assert read(data, tmp_path / "classes", task="multiclass").target.task == "multiclass"
    same = pairs(tmp_path / "same", [numbered(9)] * 4)  # equally many: classes
    assert read(same, tmp_path / "cache same").target.task == "multiclass"


def test_more_values_than_classes_are_objects_unless_they_are_smooth(tmp_path):
    many = numbered(300, hw=(128, 160), dtype=np.uint16)
    cache = read(pairs(tmp_path / "data", [many] * 2), tmp_path / "cache")
    assert (cache.target.task, len(np.unique(cache.train_masks["00"]))) == ("instances", 301)
    depth = np.add.outer(np.arange(128), np.arange(160)).astype(np.uint16) * 3
    with pytest.raises(
        InputError, match=r"different values .* 100% lie between lower and higher ones: smoothed edges"
    ):
        read(
            pairs(tmp_path / "depth", [depth + np.arange(160, dtype=np.uint16)] * 2), tmp_path / "cache depth"
        )


def test_values_that_are_not_numbered_from_zero_are_said(tmp_path):
    cache = read(pairs(tmp_path / "data", [stripes(0, 100, 201)] * 2), tmp_path / "cache")
    said = next(one.detail for one in cache.mask_findings if one.title == "values of the masks")
    assert said.startswith(
        "3 values that are not numbered from 0: 0 is class 0, 100 is class 1, 201 is class 2; name"
    )
