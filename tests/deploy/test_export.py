"""An exported file gives what the bundle's own model gives, on images of any size and type."""

import errno
import json
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import DiskFullError, InputError
from masksmith.data.array_store import ArrayStore
from masksmith.data.target import BINARY, Target
from masksmith.deploy import formats
from masksmith.deploy.bundle import Bundle, write_bundle
from masksmith.deploy.export import Judge, build_graph, export_model, one_view
from masksmith.deploy.exported import SUFFIXES, ExportedSegmenter
from masksmith.deploy.parity import BOUNDS, Bounds, Parity, margin, need_parity
from masksmith.deploy.segmenter import Segmenter
from masksmith.postprocess.labels import LabelRules
from masksmith.postprocess.operator_rule import OperatorRule
from masksmith.postprocess.operators import Rule
from masksmith.postprocess.rules import read_rule
from masksmith.prediction.store import MAX_CODE
from masksmith.project.folder import Project
from masksmith.recipes.recipe import load_recipe
from tests.deploy.tiny import noise, tiny_bundle

ort = pytest.importorskip("onnxruntime")

CLASSES = Target("multiclass", ("background", "road", "tree"), (0, 1, 2))
LABELS = Target("multilabel", ("left", "right"))
OBJECTS = Target("instances", ("nucleus",))


def apart(bundle: Path, exported: Path, *images: np.ndarray) -> float:
    """Return the largest difference of a probability."""
    exact, other = one_view(Segmenter(bundle, device="cpu", runtime="torch")), ms.load(exported)
    assert isinstance(other, ExportedSegmenter)
    store = ArrayStore({str(at): exact.fit(one) for at, one in enumerate(images)})
    numbers = {name: dict.fromkeys(exact.scalars, 1.0) for name in store}
    mine = other.predict(store, list(store), scalars=numbers)
    true = exact.predict(store, list(store), scalars=numbers)
    return max(np.abs(mine[name].astype(float) - true[name]).max() / MAX_CODE for name in store)


AWAY = {"top": 20000, "min_pixels": 0, "bottom": 20000, "component_area_frac": 0.0}
"""A threshold that few pixels of a net with random weights are near."""
GATED = LabelRules((OperatorRule(Rule(20000, 0, 20000), gate=1000),) * len(LABELS.classes), LABELS.classes)
CASES = {
    "binary": (BINARY, {}, ()),
    "three members": (BINARY, {"members": 3, "channels": 3}, ()),
    "snapshots of different weight": (
        BINARY,
        {"snapshots": 2},
        (
            "training.stages.0.epochs=2",
            "training.stages.0.schedule={name: cosine_restarts, cycles: 2}",
            "prediction.weights=snapshots",
            "prediction.snapshot_weights=[5, 1]",
        ),
    ),
    "classes": (CLASSES, {"channels": 3}, ()),
    "labels": (LABELS, {}, ()),
    "objects": (OBJECTS, {}, ()),
    "image heads beside the labels": (
        LABELS,
        {"members": 2, "rule": asdict(GATED)},
        (
            "model.image_head=avg",
            "prediction.image_head=plane",
            "training.stages.0.loss=[{name: bce, weight: 1.0, params: {}}, {name: image_bce, weight: 1.0, params: {}}]",
        ),
    ),
    "padded to a size": (BINARY, {}, ("size.pad_hw=[96, 96]", "size.border=edge")),
    "tiles": (CLASSES, {}, ("prediction.tile_hw=[40, 40]",)),
    "zeros around": (BINARY, {}, ("size.border=zero",)),
    "resized": (BINARY, {"rule": AWAY}, ("size.resize_hw=[64, 48]",)),
    "at another scale": (BINARY, {"rule": AWAY}, ("prediction.tta_scales=[0.86]",)),
    "chains": (
        BINARY,
        {"rule": AWAY, "limits": ([0.0], [255.0])},
        (
            "input.chain=[{name: gamma, gamma: 0.7}]",
            "size.chain=[{name: refract, ratio: 0.9}, {name: scale, hw: [64, 48]}, {name: pad, hw: [64, 64]}]",
        ),
    ),
    "limits of 16 bits": (
        BINARY,
        {"dtype": "uint16", "channels": 2, "limits": ([0.0, 10.0], [3000.0, 2000.0])},
        ("input.scaling=fixed", "input.low=[0, 10]", "input.high=[3000, 2000]", "input.no_data=7"),
    ),
    "16 bits as they are": (BINARY, {"dtype": "uint16"}, ("input.scaling=type_max",)),
    "extremes of each image": (BINARY, {"dtype": "float32", "channels": 2}, ("input.scaling=image_min_max",)),
    "names in a band": (
        BINARY,
        {"dtype": "int16", "channels": 2, "limits": ([-5.0], [900.0])},
        ("input.scaling=fixed", "input.low=[-5]", "input.high=[900]", 'input.one_hot={"1": [3, 4]}'),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_probabilities_are_those_of_the_model(case, tmp_path):
    target, options, overrides = CASES[case]
    bundle = tiny_bundle(tmp_path / "m.msk", target, *overrides, **options)
    done = ms.export(bundle, tmp_path / "m.onnx", format="onnx")
    dtype, channels = options.get("dtype", "uint8"), options.get("channels", 1)
    top = {"uint8": 255, "uint16": 3200, "int16": 900, "float32": 2}[dtype]
    sizes = ((48, 48), (33, 70), (1, 37), (5, 96), (64, 64))
    images = [noise(*hw, channels, dtype=dtype, top=top, seed=at) for at, hw in enumerate(sizes)]
    if dtype == "float32":
        images[0][:3, :5] = np.nan
        images[1][4, 4] = np.inf
    if case == "names in a band":
        images = [np.stack([one[..., 0], one[..., 1] % 6], 2) for one in images]
    resized = case in ("resized", "at another scale", "chains")
    assert apart(bundle, tmp_path / "m.onnx", *images) < (0.02 if resized else 1e-4)
    assert done.parity.flips < (3e-3 if resized else 1e-4)


def test_a_file_is_run_by_its_runtime_alone_with_any_batch_and_size(tmp_path):
    bundle = tiny_bundle(tmp_path / "m.msk", CLASSES, channels=3)
    done = ms.export(bundle, tmp_path / "m.onnx", format="onnx", mask=True)
    assert "image (b, h, w, 3) uint8 -> mask (b, h, w) uint8: background, road, tree" in str(done)
    session = ort.InferenceSession(tmp_path / "m.onnx")
    images = np.stack([noise(41, 67, 3, seed=at) for at in range(3)])
    (masks,) = session.run(None, {"image": images})
    assert (masks.shape, masks.dtype) == ((3, 41, 67), np.uint8)
    exact = one_view(Segmenter(bundle, device="cpu", runtime="torch"))
    for image, mask in zip(images, masks, strict=True):
        assert (mask != exact.segment(image).mask).mean() < 1e-3
    with pytest.raises(InputError, match="it gives masks, without probabilities"):
        ms.load(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("target", "rule"),
    [
        (
            BINARY,
            {"top": 36000, "min_pixels": 300, "bottom": 32000, "component_area_frac": 0.0, "of_pixels": 2000},
        ),
        (LABELS, None),
        (CLASSES, {"weights": [1.0, 2.0, 0.5]}),
    ],
)
def test_masks_follow_the_rule(target, rule, tmp_path):
    bundle = tiny_bundle(tmp_path / "m.msk", target, rule=rule)
    ms.export(bundle, tmp_path / "m.onnx", format="onnx", mask=True)
    session = ort.InferenceSession(tmp_path / "m.onnx")
    exact = one_view(Segmenter(bundle, device="cpu", runtime="torch"))
    seen = set()
    for seed in range(3):
        image = noise(50, 61, 1, seed=seed)
        (masks,) = session.run(None, {"image": image[None]})
        assert (masks[0] != exact.segment(image).mask).mean() < 1e-3
        seen |= set(np.unique(masks))
    assert len(seen) > 1


def test_a_rule_of_regions_is_refused_as_a_mask(tmp_path):
    for target, rule in (
        (OBJECTS, None),
        (BINARY, {"top": 9, "min_pixels": 0, "bottom": 9, "component_area_frac": 0.1}),
    ):
        bundle = tiny_bundle(tmp_path / "m.msk", target, rule=rule)
        with pytest.raises(InputError, match="--mask: the rule of this model looks at more than pixels"):
            ms.export(bundle, tmp_path / "m.onnx", format="onnx", mask=True)


@pytest.mark.slow
def test_openvino_and_half_precision(tmp_path):
    pytest.importorskip("openvino")
    bundle = tiny_bundle(tmp_path / "m.msk", OBJECTS, members=2)
    images = [noise(*hw, 1) for hw in ((48, 48), (33, 71))]
    ms.export(bundle, tmp_path / "m.xml", format="openvino")
    assert apart(bundle, tmp_path / "m.xml", *images) < 1e-4
    sizes = {}
    for format, suffix in (("onnx", ".onnx"), ("openvino", ".xml")):
        ms.export(bundle, tmp_path / f"h{suffix}", format=format, precision="fp16")
        assert apart(bundle, tmp_path / f"h{suffix}", *images) < 0.02
        sizes[format] = (tmp_path / "h.onnx" if format == "onnx" else tmp_path / "h.bin").stat().st_size
    assert max(sizes.values()) < 0.7 * (tmp_path / "m.bin").stat().st_size


@pytest.mark.slow
def test_torch_export(tmp_path):
    bundle = tiny_bundle(tmp_path / "m.msk", CLASSES)
    ms.export(bundle, tmp_path / "m.pt2", format="torch")
    assert apart(bundle, tmp_path / "m.pt2", noise(48, 48, 1), noise(33, 71, 1)) < 1e-4
    with pytest.raises(InputError, match=r"5x40; .* takes sides of 9 pixels or more"):
        ms.load(tmp_path / "m.pt2").segment(noise(5, 40, 1))


@pytest.mark.slow
def test_int8_is_calibrated_and_judged_by_the_project(tmp_path):
    pytest.importorskip("nncf")
    ms.example(tmp_path / "example", train=12, test=2)
    project, model = tmp_path / "p", tmp_path / "m.msk"
    short = {"folds.train": 1, "training.stages.0.epochs": 1}
    ms.compete(tmp_path / "example/data", out=project, recipe="smoke", overrides=short)
    ms.bundle(project, model)
    options = {"format": "openvino", "precision": "int8", "project": project}
    done = ms.export(model, tmp_path / "m.xml", **options, drop=1)
    held_out = sum(row.fold == 0 for row in Project.open(project).folds.rows)
    assert f"out of fold on {held_out} images: tgs_map " in str(done)
    assert "(allowed: 1 less)" in str(done)
    exact = ms.export(model, tmp_path / "e.onnx", format="onnx", project=project)
    assert "16 images (" in str(exact)  # eight and their odd cuts
    assert done.parity.largest > exact.parity.largest
    assert ms.load(tmp_path / "m.xml").bundle.export.gate["images"] == held_out
    tuned = Project.open(project).metric(load_recipe("smoke"))
    assert 0 <= done.gate.score <= done.gate.exact + 1
    assert tuned.name == done.gate.metric
    passed = replace(done.gate, exact=0.8, score=0.79, allowed=0.005)
    assert not passed.passed
    assert replace(passed, allowed=0.02).passed
    bundled = Bundle(model)
    refit = replace(bundled.facts.members[0], name="smoke-0/all")
    seen = replace(bundled.facts, members=[refit])
    raw = {name: bundled_bytes(model, name) for name in refit.weights}
    write_bundle(tmp_path / "all.msk", seen, raw)
    with pytest.raises(InputError, match="were trained on all its images, none is left"):
        ms.export(tmp_path / "all.msk", tmp_path / "n.xml", **options)
    other = tiny_bundle(tmp_path / "other.msk", BINARY)
    with pytest.raises(InputError, match="was made of other data"):
        ms.export(other, tmp_path / "n.xml", **options)


def bundled_bytes(path: Path, name: str) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(name)


@pytest.mark.slow
def test_int8_that_costs_more_than_is_allowed_is_refused(tmp_path):
    pytest.importorskip("nncf")
    bundle = tiny_bundle(tmp_path / "m.msk", BINARY, rule=AWAY, members=2)
    images = {str(at): noise(48, 56, 1, seed=at) for at in range(4)}
    exact = one_view(Segmenter(bundle, device="cpu", runtime="torch"))
    first = ArrayStore(images)
    true = [exact.predict(first, list(images))[name] for name in images]
    scores = iter((0.8, 0.7))

    def score(predictions) -> float:
        found = [codes for _, codes in predictions]
        assert [one.shape for one in found] == [one.shape for one in true]
        return next(scores)

    judge = Judge(first, list(images), [([0], ["0", "1"]), ([1], ["2", "3"])], "iou_pooled", score)
    options = {"format": "openvino", "precision": "int8", "judge": judge}
    with pytest.raises(
        InputError,
        match=r"on 4 images: iou_pooled 0.7000, in float32 0.8000 \(allowed: 0.005 less\); nothing was",
    ):
        export_model(bundle, tmp_path / "m.xml", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["m.msk"]


def test_pixels_near_the_threshold_may_change_sides():
    rule = read_rule(AWAY)
    codes = np.array([[[20000], [20010], [40000]]], np.uint16)
    assert np.allclose(margin(rule, codes).ravel() * MAX_CODE, [0, 10, 20000])
    classes = read_rule({"weights": [1.0, 2.0]})
    assert np.allclose(margin(classes, np.array([[[60000, 20000]]], np.uint16)) * MAX_CODE, 10000)
    near = Parity("", None, None, flips=0.4, far_flips=0.0, seconds=0, torch_seconds=0)
    need_parity(near, BOUNDS["fp32"], Path("x"))
    with pytest.raises(
        InputError, match=r"change sides, 0\.001 and more from there is 0\.4, more than 0\.0025"
    ):
        need_parity(replace(near, far_flips=0.4), BOUNDS["fp32"], Path("x"))


def test_a_model_that_takes_numbers_takes_them_from_the_table(tmp_path):
    bundle = tiny_bundle(tmp_path / "m.msk", BINARY, "model.scalars=[z]", members=2)
    done = ms.export(bundle, tmp_path / "m.onnx", format="onnx")
    assert "scalars (b, 1) float32: z" in str(done)
    assert apart(bundle, tmp_path / "m.onnx", noise(48, 48, 1)) < 1e-4
    with pytest.raises(InputError, match="no 'z', which this model takes"):
        ms.load(tmp_path / "m.onnx").segment(noise(48, 48))


def test_apply_takes_the_file(tmp_path):
    bundle = tiny_bundle(tmp_path / "m.msk", BINARY, "prediction.tta=[identity]")
    ms.export(bundle, tmp_path / "m.onnx", format="onnx")
    (tmp_path / "new").mkdir()
    for name, hw in (("a", (40, 50)), ("b", (33, 47))):
        assert cv2.imwrite(str(tmp_path / "new" / f"{name}.png"), noise(*hw))
    assert cv2.imwrite(str(tmp_path / "new" / "blank.png"), np.full((20, 20), 9, np.uint8))
    for model, out in ((bundle, "x"), (tmp_path / "m.onnx", "y")):
        assert ms.apply(model, tmp_path / "new", tmp_path / out).done == 3
    for path in (tmp_path / "x" / "masks").iterdir():
        mine, theirs = (cv2.imread(str(tmp_path / out / "masks" / path.name), -1) for out in "xy")
        assert (mine != theirs).mean() < 1e-3
    assert "threads" not in (tmp_path / "y" / "apply.csv").read_text()


def test_what_cannot_be_is_refused(tmp_path, monkeypatch):
    bundle = tiny_bundle(tmp_path / "m.msk", BINARY)
    for options, message in (
        ({"format": "tflite"}, "--format"),
        ({"format": "openvino"}, r"ends in \.xml"),
        ({"format": "onnx", "precision": "bf16"}, "onnx has fp32, fp16"),
        ({"format": "onnx", "precision": "int8"}, "int8 needs --format openvino"),
        ({"format": "openvino", "precision": "int8", "out": tmp_path / "m.xml"}, "int8 needs --project"),
        ({"format": "onnx", "drop": -1.0}, "--drop -1: expected 0 or more"),
        ({"format": "onnx", "images": tmp_path / "absent"}, "no such file or folder"),
    ):
        with pytest.raises(InputError, match=message):
            ms.export(bundle, **{"out": tmp_path / "m.onnx"} | options)
    (tmp_path / "blank").mkdir()
    assert cv2.imwrite(str(tmp_path / "blank" / "a.png"), np.full((20, 20), 9, np.uint8))
    with pytest.raises(InputError, match="all 1 images are of one value each"):
        ms.export(bundle, tmp_path / "m.onnx", format="onnx", images=tmp_path / "blank")
    for package, format, precision in (("onnxruntime", "onnx", "fp32"), ("nncf", "openvino", "int8")):
        judge = Judge(ArrayStore({"a": noise(8, 8, 1)}), [], [], "", lambda _: 0.0)
        out = tmp_path / f"m{SUFFIXES[format]}"
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(InputError, match=f"{package}, which cannot be imported"):
                export_model(bundle, out, format=format, precision=precision, judge=judge)
    with monkeypatch.context() as patch:

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(formats.torch.onnx, "export", full)
        with pytest.raises(DiskFullError, match=r"m\.onnx: the disk is full"):
            ms.export(bundle, tmp_path / "m.onnx", format="onnx")
    with monkeypatch.context() as patch:
        patch.setattr(formats.torch.onnx, "export", lambda *_, **__: 1 / 0)
        with pytest.raises(InputError, match="this network cannot be converted"):
            ms.export(bundle, tmp_path / "m.onnx", format="onnx")
    tiled = tiny_bundle(tmp_path / "t.msk", BINARY, "size.resize_hw=[64, 64]", "prediction.tile_hw=[32, 32]")
    with pytest.raises(InputError, match="resized to 64x64 and then cut into tiles"):
        ms.export(tiled, tmp_path / "m.onnx", format="onnx")
    seen = tiny_bundle(
        tmp_path / "s.msk", BINARY, "prediction.tta_scales=[0.5]", "prediction.tile_hw=[32, 32]"
    )
    with pytest.raises(InputError, match=r"seen at the scale 0\.5 and then cut into tiles"):
        ms.export(seen, tmp_path / "m.onnx", format="onnx")
    assert not list(tmp_path.glob("*.onnx*"))


def test_a_file_that_is_too_far_from_the_model_is_removed(tmp_path, monkeypatch):
    bundle = tiny_bundle(tmp_path / "m.msk", BINARY)
    for bounds, name in (
        (Bounds(1e-9, 1, 1), "largest difference"),
        (Bounds(1, 1e-9, 1), "mean difference"),
        (Bounds(1, 1, -1.0), "share of pixels that change sides"),
    ):
        monkeypatch.setitem(BOUNDS, "fp16", bounds)
        with pytest.raises(InputError, match=f"the {name}.* is .* more than"):
            ms.export(bundle, tmp_path / "m.onnx", format="onnx", precision="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["m.msk"]


def test_damaged_and_foreign_files_are_refused(tmp_path):
    bundle = tiny_bundle(tmp_path / "m.msk", BINARY)
    ms.export(bundle, tmp_path / "m.onnx", format="onnx")
    path, facts = tmp_path / "m.onnx", tmp_path / "m.onnx.json"
    raw, text = path.read_bytes(), facts.read_text()
    with pytest.raises(InputError, match="exported for onnx on the CPU, 'openvino' was asked for"):
        ms.load(path, runtime="openvino")
    with pytest.raises(InputError, match="'cuda' was asked for"):
        ms.load(path, device="cuda")
    path.write_bytes(raw[:-9])
    with pytest.raises(InputError, match="missing, damaged or changed"):
        ms.load(path)
    path.write_bytes(raw)
    for change, message in (
        (lambda value: value.pop("export"), "not of `masksmith export`, or damaged"),
        (lambda value: value["model"].update(format=99), "format 99, this masksmith reads up to"),
        (lambda value: value["export"].update(format="tflite"), "those of another file"),
        (lambda value: value["export"].update(files={}), "those of another file"),
    ):
        value = json.loads(text)
        change(value)
        facts.write_text(json.dumps(value))
        with pytest.raises(InputError, match=message):
            ms.load(path)
    facts.write_text("no json")
    with pytest.raises(InputError, match="not of `masksmith export`, or damaged"):
        ms.load(path)
    facts.unlink()
    with pytest.raises(
        InputError, match=r"no such file; expected what `masksmith export` made, m\.onnx with m\.onnx\.json"
    ):
        ms.load(path)


def test_what_cannot_be_opened_says_so(tmp_path):
    from masksmith.core.files import file_digest
    from masksmith.deploy.exported import ExportFacts, open_file

    path = tmp_path / "m.onnx"
    path.write_bytes(b"no onnx")
    with pytest.raises(InputError, match="cannot be opened"):
        open_file(path, ExportFacts("onnx", "fp32", False, {"m.onnx": file_digest(path)}))


def test_members_of_different_tiles_are_refused(tmp_path):
    bundle = tiny_bundle(tmp_path / "m.msk", BINARY, members=2)
    model = one_view(Segmenter(bundle))
    model.bundle.facts.members[0].recipe["prediction"]["tile_hw"] = [40, 40]
    with pytest.raises(InputError, match="its members cut images into different tiles"):
        build_graph(model, mask=False)


@pytest.mark.parametrize("step", ["clahe", "equalize", "percentile"])
def test_steps_that_look_at_a_histogram_are_refused_before_anything_is_written(step, tmp_path):
    chain = f"input.chain=[{{name: {step}}}, {{name: gamma, gamma: 0.7}}]"
    bundle = tiny_bundle(tmp_path / "m.msk", BINARY, chain, limits=([0.0], [255.0]))
    assert ms.load(bundle).segment(noise(40, 40)).mask.shape == (40, 40)  # the bundle itself can
    for format, suffix in SUFFIXES.items():
        with pytest.raises(
            InputError, match=f"m.msk: input.chain: {step} looks at an image's histogram.*serve"
        ):
            ms.export(bundle, tmp_path / f"m{suffix}", format=format, mask=True)
    assert [one.name for one in tmp_path.iterdir()] == ["m.msk"]


def test_the_command_prints_the_parity_and_refuses_with_2(tmp_path):
    from typer.testing import CliRunner

    from masksmith.cli import app

    bundle = tiny_bundle(tmp_path / "m.msk", BINARY)
    command = ["export", str(bundle), "--format", "onnx", "--out", str(tmp_path / "m.onnx")]
    done = CliRunner().invoke(app, command)
    assert "m.onnx: onnx fp32" in done.stdout
    assert "largest difference" in done.stdout
    assert isinstance(CliRunner().invoke(app, [*command, "--precision", "bf16"]).exception, InputError)
