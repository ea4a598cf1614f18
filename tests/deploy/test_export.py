"""An exported file gives what the bundle's own model gives, on images of any size and type."""

import errno
import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import DiskFullError, InputError
from masksmith.data.array_store import ArrayStore
from masksmith.data.target import BINARY, Target
from masksmith.deploy import export as module
from masksmith.deploy.export import BOUNDS, Bounds, one_view
from masksmith.deploy.exported import ExportedSegmenter
from masksmith.deploy.segmenter import Segmenter
from masksmith.prediction.store import MAX_CODE
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
    "padded to a size": (BINARY, {}, ("size.pad_hw=[96, 96]", "size.border=edge")),
    "tiles": (CLASSES, {}, ("prediction.tile_hw=[40, 40]",)),
    "zeros around": (BINARY, {}, ("size.border=zero",)),
    "resized": (BINARY, {"rule": AWAY}, ("size.resize_hw=[64, 48]",)),
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
    assert apart(bundle, tmp_path / "m.onnx", *images) < (0.02 if case in ("resized", "chains") else 1e-4)
    assert done.parity.flips < (3e-3 if case in ("resized", "chains") else 1e-4)


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
        with pytest.raises(InputError, match="--mask: the rule of this model looks at regions"):
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
def test_int8_is_calibrated_on_images(tmp_path, monkeypatch):
    pytest.importorskip("nncf")
    bundle = tiny_bundle(tmp_path / "m.msk", BINARY, rule=AWAY)
    folder = tmp_path / "images"
    folder.mkdir()
    for at in range(6):
        assert cv2.imwrite(str(folder / f"{at}.png"), noise(48, 56, seed=at))
    options = {"format": "openvino", "precision": "int8", "calibrate": folder, "images": folder}
    monkeypatch.setitem(BOUNDS, "int8", Bounds(1, 0.05, 0.05))  # nothing is trained
    done = ms.export(bundle, tmp_path / "m.xml", **options)
    assert "6 images (48x56)" in str(done)
    assert done.parity.largest > 1e-3
    monkeypatch.setitem(BOUNDS, "int8", Bounds(1, 1e-4, 1e-4))
    with pytest.raises(InputError, match=r"mean difference is .* more than"):
        ms.export(bundle, tmp_path / "n.xml", **options)
    with pytest.raises(InputError, match="int8 needs --calibrate"):
        ms.export(bundle, tmp_path / "n.xml", format="openvino", precision="int8")


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
        ({"format": "onnx", "calibrate": tmp_path}, "and no other does"),
        ({"format": "onnx", "images": tmp_path / "absent"}, "no such file or folder"),
    ):
        with pytest.raises(InputError, match=message):
            ms.export(bundle, tmp_path / "m.onnx", **options)
    (tmp_path / "blank").mkdir()
    assert cv2.imwrite(str(tmp_path / "blank" / "a.png"), np.full((20, 20), 9, np.uint8))
    with pytest.raises(InputError, match="all 1 images are of one value each"):
        ms.export(bundle, tmp_path / "m.onnx", format="onnx", images=tmp_path / "blank")
    for package, format, precision in (("onnxruntime", "onnx", "fp32"), ("nncf", "openvino", "int8")):
        calibrate = {"calibrate": tmp_path} if precision == "int8" else {}
        out = tmp_path / f"m{module.SUFFIXES[format]}"
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            with pytest.raises(InputError, match=f"{package}, which cannot be imported"):
                ms.export(bundle, out, format=format, precision=precision, **calibrate)
    with monkeypatch.context() as patch:

        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(module.torch.onnx, "export", full)
        with pytest.raises(DiskFullError, match=r"m\.onnx: the disk is full"):
            ms.export(bundle, tmp_path / "m.onnx", format="onnx")
    with monkeypatch.context() as patch:
        patch.setattr(module.torch.onnx, "export", lambda *_, **__: 1 / 0)
        with pytest.raises(InputError, match="this network cannot be converted"):
            ms.export(bundle, tmp_path / "m.onnx", format="onnx")
    tiled = tiny_bundle(tmp_path / "t.msk", BINARY, "size.resize_hw=[64, 64]", "prediction.tile_hw=[32, 32]")
    with pytest.raises(InputError, match="resized to 64x64 and then cut into tiles"):
        ms.export(tiled, tmp_path / "m.onnx", format="onnx")
    assert not list(tmp_path.glob("*.onnx*"))


def test_a_file_that_is_too_far_from_the_model_is_removed(tmp_path, monkeypatch):
    bundle = tiny_bundle(tmp_path / "m.msk", BINARY)
    for bounds, name in (
        (Bounds(1e-9, 1, 1), "largest difference"),
        (Bounds(1, 1e-9, 1), "mean difference"),
        (Bounds(1, 1, -1.0), "share of pixels that change sides"),
    ):
        monkeypatch.setitem(BOUNDS, "fp16", bounds)
        with pytest.raises(InputError, match=f"the {name} is .* more than"):
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
        module.build_graph(model, mask=False)


def test_the_command_prints_the_parity_and_refuses_with_2(tmp_path):
    from typer.testing import CliRunner

    from masksmith.cli import app

    bundle = tiny_bundle(tmp_path / "m.msk", BINARY)
    command = ["export", str(bundle), "--format", "onnx", "--out", str(tmp_path / "m.onnx")]
    done = CliRunner().invoke(app, command)
    assert "m.onnx: onnx fp32" in done.stdout
    assert "largest difference" in done.stdout
    assert isinstance(CliRunner().invoke(app, [*command, "--precision", "bf16"]).exception, InputError)
