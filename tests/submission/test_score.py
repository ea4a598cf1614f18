"""Scores of folders and tables of every task: against the metrics themselves, as a person would write the files."""

import csv
import struct
import zlib

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.decode.palette import decode_indices, has_palette
from masksmith.data.rle import encode, encode_rows
from masksmith.metrics import confusion, get_metric, metric_for

SHAPE = (12, 17)
IDS = ("a", "0b", "76e1")
COLOURS = np.array([[0, 0, 0], [128, 64, 0], [250, 0, 9], [1, 2, 3]], np.uint8)


def png(array):
    return cv2.imencode(".png", array)[1].tobytes()


def palette_png(array, *, bits=8):
    """A PNG with a palette; of fewer than 8 bits the pixels are packed."""

    def block(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    height, width = array.shape
    spread = (array[..., None] >> np.arange(bits)[::-1]) & 1  # (h, w, bits), the highest first
    lines = np.packbits(spread.reshape(height, -1).astype(np.uint8), axis=1)
    raw = b"".join(b"\0" + line.tobytes() for line in lines)
    header = struct.pack(">IIBBBBB", width, height, bits, 3, 0, 0, 0)
    palette = np.random.default_rng(0).integers(0, 256, (2**bits, 3)).astype(np.uint8).tobytes()
    blocks = [
        (b"IHDR", header),
        (b"PLTE", palette),
        (b"tRNS", b"\0"),
        (b"IDAT", zlib.compress(raw)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(block(*one) for one in blocks)


def write(folder, arrays, how=png, ending=".png"):
    folder.mkdir(parents=True, exist_ok=True)
    for name, array in arrays.items():
        (folder / f"{name}{ending}").write_bytes(how(array))
    return folder


def npy(array):
    import io

    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def table(path, head, rows):
    path.write_text("\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n")
    return path


def blobs(seed, num=1, shape=SHAPE):
    """Masks (h, w, num) of 0 and 1 of each id; the second image has an empty plane."""
    rng = np.random.default_rng(seed)
    found = {}
    for name in IDS:
        masks = np.zeros((*shape, num), np.uint8)
        for at in range(num):
            i, j = rng.integers(0, 6, 2)
            masks[i : i + 5, j : j + 6, at] = 1
        masks[..., 0] *= name != "0b"
        found[name] = masks if num > 1 else masks[..., 0]
    return found


def class_maps(seed):
    rng = np.random.default_rng(seed)
    return {name: rng.integers(0, 4, SHAPE).astype(np.uint8) for name in IDS}


def expected(metric, pred, truth, groups=None):
    return metric.score(np.stack([metric.stats(pred[name], truth[name]) for name in sorted(IDS)]), groups)


def test_binary_masks_in_each_convention_and_by_group(tmp_path):
    pred, truth = blobs(0), blobs(1)
    ignored = {name: mask.copy() for name, mask in truth.items()}
    for mask in ignored.values():
        mask[:3] = 255
    paths = [
        write(tmp_path / "ones", pred),
        write(tmp_path / "tops", {name: mask * 255 for name, mask in pred.items()}),
        write(tmp_path / "wide", {name: mask.astype(np.uint16) * 65535 for name, mask in pred.items()}),
        write(tmp_path / "npy", {name: mask != 0 for name, mask in pred.items()}, npy, ".npy"),
        write(tmp_path / "jpg", {name: mask * 255 for name, mask in pred.items()}, _jpeg, ".jpg"),
        table(tmp_path / "p.csv", "id,rle_mask", [(name, encode(mask)) for name, mask in pred.items()]),
    ]
    true = write(tmp_path / "truth", ignored)
    places = table(
        tmp_path / "places.csv", "image,place", [("a.png", "x"), ("0b.png", "y"), ("76e1.png", "x")]
    )
    for name in ("iou_pooled", "dice_per_image", "iou_by_group", "hausdorff_95", "miou", "dsb_map"):
        for path in paths[: 1 if name != "iou_pooled" else None]:
            scored = ms.score(path, true, metric=name, groups=f"{places}:place")
            groups = np.array(["y", "x", "x"])  # of 0b, 76e1, a
            value = expected(get_metric(name), pred, ignored, groups)
            assert scored.score == pytest.approx(value, abs=0.02 if path.name == "jpg" else 1e-9), path
        assert scored.per_group["x"] == pytest.approx(
            get_metric(name).score(
                np.stack([get_metric(name).stats(pred[one], ignored[one]) for one in ("76e1", "a")]),
                np.array(["x", "x"]),
            ),
            abs=0.05,
        )
    assert "not judged: 255 in the true masks (25.00% of the pixels)" in str(scored)
    assert "\ngroup  dsb_map  images\n" in str(scored)
    assert "draws of 2 groups" in str(scored)
    plain = ms.score(paths[1], true, ignore=[0, 255], per_image=tmp_path / "each.csv")
    assert (plain.metric, plain.task) == ("dice_per_image", "binary")
    assert (tmp_path / "each.csv").read_text().splitlines()[0] == "id,dice_per_image"
    assert list(plain.per_image) == sorted(IDS)
    low, high = plain.interval
    assert low <= plain.score <= high
    assert plain.standard_error > 0
    one = ms.score(write(tmp_path / "one", {"a": pred["a"]}), write(tmp_path / "one-true", {"a": truth["a"]}))
    assert (one.interval, one.images) == (None, 1)
    more = ms.score(paths[0], write(tmp_path / "fewer", {"a": truth["a"]}))
    assert "2 predictions have no true mask and are not scored" in more.notes
    shifted = {name: mask + 1 for name, mask in truth.items()}  # 1 and 2
    assert ms.score(write(tmp_path / "s", shifted), tmp_path / "s", metric="iou_pooled").score == 1


def _jpeg(array):
    return cv2.imencode(".jpg", array, [cv2.IMWRITE_JPEG_QUALITY, 100])[1].tobytes()


def test_class_maps_as_numbers_palettes_and_colours(tmp_path):
    pred, truth = class_maps(0), class_maps(1)
    ignored = {
        name: np.where(np.indices(SHAPE)[0] < 2, 9, mask).astype(np.uint8) for name, mask in truth.items()
    }
    judged = {name: np.where(mask == 9, 255, mask).astype(np.uint8) for name, mask in ignored.items()}
    numbers = write(tmp_path / "pred", pred)
    true = write(tmp_path / "truth", ignored)
    for name in ("miou", "mdice", "fw_iou", "accuracy", "miou(background=0)"):
        scored = ms.score(numbers, true, metric=name, ignore=[9])
        judge = metric_for(name, task="multiclass", classes=4)
        assert scored.score == pytest.approx(expected(judge, pred, judged)), name
        assert scored.metric == name
        assert list(scored.per_class) == ["0", "1", "2", "3"]
    np.testing.assert_array_equal(
        scored.confusion, confusion([(pred[name], judged[name]) for name in IDS], num_classes=4)
    )
    scored = ms.score(numbers, true, ignore=[9], per_image=tmp_path / "each.csv")
    judge = metric_for("miou", task="multiclass", classes=4)
    for name in IDS:
        own = judge.class_scores(judge.stats(pred[name], judged[name])[None])
        np.testing.assert_allclose(list(scored.per_image_class[name].values()), own)
    head, *lines = csv.reader((tmp_path / "each.csv").read_text().splitlines())
    assert head == ["id", "miou", "miou: 0", "miou: 1", "miou: 2", "miou: 3"]
    assert {line[0]: float(line[2]) for line in lines} == {
        name: pytest.approx(each["0"], abs=1e-6) for name, each in scored.per_image_class.items()
    }
    assert "of true pixels" in str(scored)
    assert "predicting class " in str(scored)
    maps = [(numbers, write(tmp_path / "void", judged))]  # 255 says so itself
    maps.append(
        (
            write(tmp_path / "palette", pred, palette_png),
            write(tmp_path / "palette-true", judged, palette_png),
        )
    )
    tens = [{name: mask * 10 for name, mask in masks.items()} for masks in (pred, judged)]
    tens[1] = {name: np.where(judged[name] == 255, 255, mask) for name, mask in tens[1].items()}
    maps.append(tuple(write(tmp_path / f"tens{at}", masks) for at, masks in enumerate(tens)))
    painted = [{name: COLOURS[mask][..., ::-1] for name, mask in masks.items()} for masks in (pred, truth)]
    for folders in maps:
        assert ms.score(*folders).score == pytest.approx(
            expected(metric_for("miou", task="multiclass", classes=4), pred, judged)
        )
    colours = [write(tmp_path / f"colours{at}", masks) for at, masks in enumerate(painted)]
    scored = ms.score(*colours)
    assert scored.score == pytest.approx(
        expected(metric_for("miou", task="multiclass", classes=4), pred, truth)
    )
    assert set(scored.per_class) == {"#000000", "#804000", "#fa0009", "#010203"}
    two = {name: COLOURS[(mask > 1).astype(int)][..., ::-1] for name, mask in pred.items()}
    flags = write(tmp_path / "two", two)
    assert ms.score(flags, flags, metric="iou_pooled", ignore=["#000000"]).score == 1
    lone = {name: np.where(mask == 3, 7, mask).astype(np.uint8) for name, mask in pred.items()}
    assert "predicted, but in no true mask: class 7; it scores 0" in str(
        ms.score(write(tmp_path / "l", lone), true, ignore=[9])
    )
    many = {
        name: (mask.astype(np.uint16) * 90 + np.arange(17)).astype(np.uint16) for name, mask in truth.items()
    }
    path = write(tmp_path / "many", many)
    assert ms.score(path, path, task="multiclass").score == 1


def test_labels_that_overlap_as_arrays_folders_and_tables(tmp_path):
    pred, truth = blobs(2, 3), blobs(3, 3)
    judge = metric_for("dice_per_image", task="multilabel", classes=3)
    value = expected(judge, pred, truth)
    arrays = [write(tmp_path / f"npy{at}", masks, npy, ".npy") for at, masks in enumerate((pred, truth))]
    images = [
        write(tmp_path / f"png{at}", {name: mask * 255 for name, mask in masks.items()})
        for at, masks in enumerate((pred, truth))
    ]
    folders = []
    for at, masks in enumerate((pred, truth)):
        for plane in range(3):
            write(
                tmp_path / f"f{at}" / f"kind{plane}",
                {name: mask[..., plane] * 255 for name, mask in masks.items()},
            )
        folders.append(tmp_path / f"f{at}")
    together = [
        table(
            tmp_path / f"t{at}.csv",
            "ImageId_ClassId,EncodedPixels",
            [
                (f"{name}_{plane + 1}", encode(mask[..., plane]))
                for name, mask in masks.items()
                for plane in range(3)
            ],
        )
        for at, masks in enumerate((pred, truth))
    ]
    apart = [
        table(
            tmp_path / f"c{at}.csv",
            "ImageId,ClassId,EncodedPixels,Height,Width",
            [
                (name, plane + 1, encode(mask[..., plane]), *SHAPE)
                for name, mask in masks.items()
                for plane in range(3)
            ],
        )
        for at, masks in enumerate((pred, truth))
    ]
    for pair, options in (
        (arrays, {}),
        (images, {"task": "multilabel"}),
        (folders, {}),
        (together, {"shape": SHAPE, "dialect": "severstal", "metric": "dice_per_image"}),
        (apart, {}),
        ((together[0], arrays[1]), {"dialect": "severstal"}),
    ):
        scored = ms.score(*pair, **options)
        assert (scored.score, scored.task) == (pytest.approx(value), "multilabel"), pair
        assert list(scored.per_class) == (["kind0", "kind1", "kind2"] if pair is folders else ["1", "2", "3"])
    assert "\nclass  dice_per_image\n1" in str(scored)
    one = table(
        tmp_path / "one.csv", "id,class,rle", [(name, "x", encode(truth[name][..., 1])) for name in IDS]
    )
    assert ms.score(one, one, shape=SHAPE, metric="iou_pooled").task == "binary"


def test_objects_as_labels_files_rows_and_masks(tmp_path):
    shape = (20, 30)
    truth, pred = {}, {}
    for name in IDS:
        truth[name] = np.zeros(shape, np.uint16)
        for at in range(4):
            truth[name][2 + 4 * at : 6 + 4 * at, 3:12] = at + 1  # they touch
        pred[name] = np.roll(truth[name], 1, axis=1)
        pred[name][pred[name] == 4] = 0
    judge = get_metric("dsb_map")
    value = expected(judge, pred, truth)
    labels = write(tmp_path / "labels", truth)
    for name, masks in truth.items():
        objects = {f"{at}": (masks == at).astype(np.uint8) * 255 for at in range(1, 5)}
        write(tmp_path / "files" / name / "masks", objects)
        write(tmp_path / "files" / name / "images", {name: masks.astype(np.uint8)})
    rows = {
        name: [encode((mask == at).astype(np.uint8)) for at in range(1, 5)] for name, mask in truth.items()
    }
    solution = table(
        tmp_path / "t.csv",
        "ImageId,EncodedPixels,Height,Width",
        [(name, one, *shape) for name in IDS for one in rows[name]],
    )
    guess = write(tmp_path / "guess", pred)
    for true, options in (
        (labels, {}),
        (tmp_path / "files", {}),
        (solution, {"metric": "dsb_map", "dialect": "dsb"}),
    ):
        scored = ms.score(guess, true, **options)
        assert (scored.score, scored.task) == (pytest.approx(value), "instances"), true
    masks = {name: (mask > 0).astype(np.uint8) * 255 for name, mask in truth.items()}
    merged = ms.score(write(tmp_path / "masks", masks), labels, metric="dsb_map")
    assert merged.score == pytest.approx(expected(judge, masks, truth)) == 0
    assert "their objects are connected regions" in str(merged)
    assert ms.score(tmp_path / "masks", tmp_path / "files", metric="iou_pooled").score == 1
    signed = {
        name: np.where(np.indices(shape)[0] < 4, -1, mask.astype(np.int32)) for name, mask in truth.items()
    }
    left = ms.score(guess, write(tmp_path / "signed", signed, npy, ".npy"), metric="f_beta_objects")
    assert left.images == 3
    assert "not judged: -1" in str(left)
    joined = table(
        tmp_path / "p.csv",
        "id,EncodedPixels",
        [(name, one) for name in IDS for one in encode_rows(masks[name], dialect="dsb")],
    )
    assert ms.score(joined, solution, metric="iou_pooled", dialect="dsb").score == 1
    assert ms.score(joined, solution, metric="dsb_map", dialect="dsb").score == 0


def test_palettes_of_every_depth():
    rng = np.random.default_rng(0)
    for bits in (1, 2, 4, 8):
        array = rng.integers(0, 2**bits, (7, 13)).astype(np.uint8)
        raw = palette_png(array, bits=bits)
        assert has_palette(raw)
        np.testing.assert_array_equal(decode_indices(raw, where="x"), array)
    assert not has_palette(png(array))
    for damaged, message in ((raw[:-9], "is cut off"), (raw[:20] + b"\x01" + raw[21:], "damaged IHDR block")):
        with pytest.raises(InputError, match=f"x: the file .*{message}"):
            decode_indices(damaged, where="x")


def test_masks_that_are_missing_or_of_another_size_are_all_listed(tmp_path):
    truth = {f"i{at}": np.eye(9, dtype=np.uint8) for at in range(8)}
    true = write(tmp_path / "truth", truth)
    few = write(tmp_path / "few", {"i7": truth["i7"], "else": truth["i1"]})
    with pytest.raises(InputError) as caught:
        ms.score(few, true)
    assert "7 ids of" in str(caught.value)
    assert all(f"'i{at}'" in str(caught.value) for at in range(7))
    small = write(
        tmp_path / "small", {name: mask[:-1] if name != "i3" else mask for name, mask in truth.items()}
    )
    with pytest.raises(InputError) as caught:
        ms.score(small, true)
    assert "7 of 8 masks are of another size" in str(caught.value)
    assert str(caught.value).count("8x9, the true mask is 9x9") == 7


def refused(message, *arguments, **options):
    with pytest.raises(InputError, match=message):
        ms.score(*arguments, **options)


def test_folders_that_are_refused(tmp_path):
    mask = np.eye(6, dtype=np.uint8)
    good = write(tmp_path / "good", {"a": mask})
    (tmp_path / "none").mkdir()
    refused(r"none: no masks; expected files named by id", tmp_path / "none", good)
    write(tmp_path / "twice", {"a": mask})
    write(tmp_path / "twice" / "oof", {"a": mask})
    refused(r"1 ids have several files, such as 'a': a\.png, oof/a\.png", tmp_path / "twice", good)
    write(tmp_path / "paired" / "train" / "masks", {"a": mask, "b": mask})
    write(tmp_path / "paired" / "train" / "images", {"a": mask, "b": mask})
    for folder in (tmp_path / "paired", tmp_path / "paired" / "train"):
        refused("2 ids have several files, such as 'a'.*; name the folder that holds the masks", folder, good)
    for kind, names in (("x", "ab"), ("y", "b"), ("z", "ab")):
        write(tmp_path / "kinds" / kind, dict.fromkeys(names, mask))
    refused(r"a folder a class \(x, y, z\), and 1 masks are missing: y/a\.png", tmp_path / "kinds", good)
    write(tmp_path / "kinds" / "y", {"a": mask[:3]})
    refused(
        r"y/a\.png: numbers of 3x6; expected one channel of 6x6 as in the other",
        tmp_path / "kinds",
        tmp_path / "kinds",
    )
    write(tmp_path / "kinds" / "y", {"a": mask})
    write(tmp_path / "others" / "x", {"a": mask, "b": mask})
    write(tmp_path / "others" / "w", {"a": mask, "b": mask})
    refused("the classes w, x; expected those of .*: x, y, z", tmp_path / "others", tmp_path / "kinds")
    write(tmp_path / "kinds" / "y", {"a": mask}, npy, ".npy")
    refused("y has two files of the id 'a'; expected one", tmp_path / "kinds", good)
    for at, (raw, ending, message) in enumerate(
        (
            (npy(mask.astype(float)), ".npy", r"float64 and shape \(6, 6\); expected whole numbers"),
            (npy(mask)[:-3], ".npy", r"not a whole \.npy file"),
            (cv2.imencode(".tif", mask.astype(np.float32))[1].tobytes(), ".tif", "a mask of float32"),
            (png(np.stack([mask * 9, mask, mask], axis=-1).astype(np.uint16)), ".png", "colours of uint16"),
            (png(mask)[:-7], ".png", "cut off"),
        )
    ):
        folder = write(tmp_path / f"bad{at}", {"a": raw}, lambda raw: raw, ending)
        refused(message, folder, good)
    wide = write(tmp_path / "wide", {"a": np.arange(70_000, dtype=np.int32).reshape(200, 350)}, npy, ".npy")
    refused("more than 65,536 different values", wide, wide)
    refused(r"--shape: it is of run-lengths, and .*good is a folder", good, good, shape=(6, 6))
    refused(r"--dialect: it is of run-lengths, and .*good is a folder", good, good, dialect="tgs")
    refused("--per-image .*: no such folder", good, good, per_image=tmp_path / "no" / "x.csv")


def test_meanings_that_are_refused(tmp_path):
    mask, maps = np.eye(6, dtype=np.uint8), np.arange(36, dtype=np.uint8).reshape(6, 6) % 5
    colours = COLOURS[maps % 4]
    binary, classes, painted = (
        write(tmp_path / name, {"a": one}) for name, one in (("b", mask), ("c", maps), ("p", colours))
    )
    planes = write(tmp_path / "planes", {"a": np.stack([mask] * 3, axis=-1)}, npy, ".npy")
    refused("'multi' is unknown; did you mean 'multi", binary, binary, task="multi")
    refused(
        "--metric: 'iuo_pooled' is unknown; did you mean 'iou_pooled'", binary, binary, metric="iuo_pooled"
    )
    refused(
        "'iou_pooled' cannot score class maps .task multiclass.; expected one of miou",
        classes,
        classes,
        metric="iou_pooled",
    )
    refused("--metric iou_by_group: it needs groups", binary, binary, metric="iou_by_group")
    refused("--ignore blue: expected a value", binary, binary, ignore=["blue"])
    refused("numbers, and .*p holds colours; expected both in one form", classes, painted)
    write(tmp_path / "mixed", {"a": mask, "b": colours})
    refused("colours and numbers in one set", tmp_path / "mixed", tmp_path / "mixed")
    refused("--task binary: .*c holds 5 different values", classes, classes, task="binary")
    refused(
        r"--task multiclass: .*planes holds planes \(h, w, 3\); expected one value",
        planes,
        planes,
        task="multiclass",
    )
    refused(
        r"--task multilabel: .*b holds numbers \(h, w\); expected planes", binary, binary, task="multilabel"
    )
    refused("--task instances: .*p holds colours", painted, painted, task="instances")
    tops = write(tmp_path / "tops", {"a": mask * 255})
    refused("--task instances: .*tops holds 0 and 255, a mask", tops, tops, task="instances")
    jpeg = write(tmp_path / "jpeg", {"a": mask * 255}, _jpeg, ".jpg")
    refused("--task multiclass: .*jpeg holds 1 JPEG files", jpeg, jpeg, task="multiclass")
    grey = write(tmp_path / "grey", {"a": maps * 50})
    refused("the prediction holds 0, 50, 100, 150, 200; expected 0 and one other; threshold", grey, binary)
    above = write(tmp_path / "above", {"a": mask + 1})
    refused(
        "the prediction holds 3; expected 1, 2 as in", write(tmp_path / "odd", {"a": mask * 2 + 1}), above
    )
    void = write(tmp_path / "void", {"a": np.where(maps == 4, 255, maps)})
    full = write(tmp_path / "full", {"a": np.roll(np.where(maps == 4, 255, maps), 1)})
    refused(
        "the prediction holds 255, which is not judged in the truth and no class; expected one of 0, 1",
        full,
        void,
    )
    red = write(tmp_path / "red", {"a": COLOURS[mask * 2]})
    refused("colours that are not in .*red", painted, red, metric="iou_pooled")
    two = write(tmp_path / "two", {"a": np.stack([mask] * 2, axis=-1)}, npy, ".npy")
    refused("planes of 2, .*: of 3; expected as many", two, planes)
    odd = write(tmp_path / "oddp", {"a": np.stack([mask, mask * 2, mask * 3], axis=-1)}, npy, ".npy")
    refused("planes with the values 0, 1, 2, 3; expected 0 and one other", odd, planes)


def test_tables_that_are_refused(tmp_path):
    rows = [(name, encode(mask)) for name, mask in blobs(0).items()]
    plain = table(tmp_path / "plain.csv", "id,rle_mask", rows)
    several = table(
        tmp_path / "several.csv",
        "ImageId_ClassId,EncodedPixels",
        [(f"{name}_{at}", "1 2") for name in IDS for at in "12"],
    )
    refused("--shape HEIGHTxWIDTH", plain, plain, metric="iou_pooled")
    refused("--shape HEIGHTxWIDTH", several, several, dialect="severstal")
    refused(r"no\.csv: no such file; expected a submission in CSV, or a folder", tmp_path / "no.csv", plain)
    refused("rows without a class, and .*several.csv has 2 classes", plain, several, shape=SHAPE)
    fewer = table(
        tmp_path / "fewer.csv", "ImageId_ClassId,EncodedPixels", [(f"{name}_1", "1 2") for name in IDS]
    )
    refused("3 rows of an image and class of .* are missing: a_2, 0b_2, 76e1_2", fewer, several, shape=SHAPE)
    torn = table(tmp_path / "torn.csv", "ImageId_ClassId,EncodedPixels", [("a", "1 2")])
    refused("'a' in the column 'ImageId_ClassId'; expected an id, _ and a class", torn, torn, shape=SHAPE)
    sized = table(tmp_path / "sized.csv", "id,rle_mask,height,width", [("a", "1 2", "12", "wide")])
    refused("a size of '12' x 'wide'; expected whole numbers above 0", sized, sized)
    places = table(tmp_path / "places.csv", "id,place", [("a", "x"), ("0b", "x"), ("0b", "y")])
    refused("--groups .*: no such file; expected CSV:COLUMN", plain, plain, shape=SHAPE, groups="place")
    refused(
        "the column 'plaec' is missing; did you mean 'place'",
        plain,
        plain,
        shape=SHAPE,
        groups=f"{places}:plaec",
    )
    refused(
        "1 of 3 images have no row, and so no 'place': '76e1'",
        plain,
        plain,
        shape=SHAPE,
        groups=f"{places}:place",
    )
    with places.open("a") as file:
        file.write("76e1,x\n")
    refused(
        "the image '0b' has several 'place': x, y; expected one",
        plain,
        plain,
        shape=SHAPE,
        groups=f"{places}:place",
    )


@pytest.mark.real
def test_real_class_maps_against_themselves(shared):
    folder = shared / "data" / "camvid" / "valannot"
    scored = ms.score(folder, folder, metric="miou", ignore=[11])
    assert (scored.score, scored.images, scored.task) == (1, 26, "multiclass")
    assert list(scored.per_class) == [str(number) for number in range(11)]
    assert scored.nothing < 0.05


def test_a_score_is_explained_threshold_by_threshold(tmp_path):
    """The example of the TGS document: 872 of 1349 pixels hit at 0.50, 0.55 and 0.60."""
    name, masks = "2bf5343f03", np.zeros((2, 101 * 101), np.uint8)
    masks[0, :1100], masks[1, 228:1349] = 255, 255
    truth, pred = masks.reshape(2, 101, 101)
    empty = np.zeros_like(pred)
    folders = [
        write(tmp_path / side, {name: mask, "none": empty}) for side, mask in (("p", pred), ("t", truth))
    ]
    scored = ms.score(*folders, metric="tgs_map", explain=[name, "none"])
    said = scored.explained[name].splitlines()
    assert said[0] == f"image '{name}': intersection 872 px, union 1349 px, IoU 0.6464"
    assert said[1] == "Does this IoU hit at each threshold?"
    assert [line.split() for line in said[3:13]] == [
        [f"{0.5 + 0.05 * at:.2f}", str(at < 3)] for at in range(10)
    ]
    assert said[13] == f"Average precision value for image '{name}' is 0.3"
    assert scored.explained["none"].endswith("is 1")
    assert "nothing is there and nothing is predicted" in str(scored)
    for asked, metric, message in (
        (["none"], "dice_per_image", "it shows the thresholds of tgs_map, and the metric is dice_per_image"),
        (["nobody", "else"], "tgs_map", "'nobody', 'else' not in .*, which has 2 ids, such as"),
    ):
        with pytest.raises(InputError, match=f"--explain: {message}"):
            ms.score(*folders, metric=metric, explain=asked)
