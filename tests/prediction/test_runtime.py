import subprocess
import sys
import typing

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from masksmith.core.errors import InputError
from masksmith.data.store import Store, StoreWriter
from masksmith.models.config import ModelConfig
from masksmith.models.cpu import slice_strided_depthwise
from masksmith.models.segmentation import build_model, to_channels_last
from masksmith.prediction import runtimes as module
from masksmith.prediction.combine import mask_only
from masksmith.prediction.config import PredictionConfig
from masksmith.prediction.predict import predict_probs
from masksmith.prediction.runtimes import RUNTIMES, check_runtime, openvino_runtime, torch_runtime

SIZES = [("a", (21, 30)), ("b", (16, 16)), ("c", (21, 30)), ("d", (21, 30)), ("e", (9, 40)), ("f", (21, 30))]


def tiny(channels=1, encoder="resnet18", architecture="unet"):
    config = ModelConfig(
        architecture=architecture,
        encoder=encoder,
        encoder_weights="none",
        encoder_depth=3,
        decoder_channels=[8, 8, 8],
    )
    model = build_model(config, in_channels=channels, seed=0)
    with torch.no_grad():
        model.head.weight.mul_(20)  # probabilities away from 0.5, so that differences would show
    return model


@pytest.fixture
def fabric():
    return Fabric(accelerator="cpu", devices=1)


def planes_of(batch, channels, h, w):
    return np.random.default_rng(0).random((batch, channels, h, w), np.float32)


def image_store(path, channels):
    shapes = [(name, (*hw, channels)) for name, hw in SIZES]
    writer = StoreWriter(path, shapes, dtype=np.uint8)
    rng = np.random.default_rng(0)
    for name, shape in shapes:
        writer.write(name, rng.integers(0, 255, shape).astype(np.uint8))
    writer.close()
    return Store(path)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    ("encoder", "architecture"),
    [("resnet18", "unet"), ("resnet18", "unetplusplus"), ("mobilenet_v2", "unet")],
)
def test_openvino_in_float32_agrees_with_torch(fabric, channels, encoder, architecture):
    model = tiny(channels, encoder, architecture).eval()
    runtime = openvino_runtime(model, precision="f32", threads=1)
    for shape in ((3, channels, 32, 48), (1, channels, 16, 24)):
        planes = planes_of(*shape)
        expected = torch_runtime(fabric, model)(planes)
        found = runtime(planes)
        assert found.dtype == np.float32
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=2e-4 * expected.std())


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("tgs_model2", [(101, 101), (47, 64)]),
        ("tiny_diagram_unet", [(32, 48)]),
        ("tgs_baseline_cnn", [(9, 5)]),
    ],
)
def test_whole_nets_keep_their_sizes(fabric, name, sizes):
    config = ModelConfig(architecture=name, encoder="own", encoder_weights="none", decoder_channels=[4])
    model = build_model(config, in_channels=1, seed=0).eval()
    runtime = openvino_runtime(model, precision="f32", threads=1)
    for hw in sizes:  # odd ones too: the trace was of another
        planes = planes_of(2, 1, *hw)
        expected = torch_runtime(fabric, model)(planes)
        np.testing.assert_allclose(runtime(planes), expected, atol=2e-4 * expected.std())


def test_the_model_is_left_as_it_was():
    model = tiny(encoder="mobilenet_v2")
    to_channels_last(model)
    assert slice_strided_depthwise(model) > 0  # the form of training converts as well
    head = model.head
    runtime = openvino_runtime(model, precision="f32", threads=1)
    assert model.head is head
    assert model.training
    planes = planes_of(2, 1, 16, 16)
    np.testing.assert_allclose(
        runtime(planes), model.eval()(torch.from_numpy(planes)).mask_logits.detach(), atol=1e-3
    )


def test_logits_stay_float32_in_bfloat16():
    model = tiny()
    logits = torch.from_numpy(openvino_runtime(model, precision="bf16", threads=1)(planes_of(4, 1, 32, 32)))
    coarse = (logits == logits.bfloat16().float()).float().mean()
    assert coarse < 0.1  # a bfloat16 head would give 1.0


@pytest.mark.parametrize("channels", [1, 3])
def test_ragged_images_with_every_symmetry(fabric, tmp_path, channels):
    images, model = image_store(tmp_path / "i.npy", channels), tiny(channels)
    names = [name for name, _ in SIZES]
    options = {"tta": ["identity", "hflip", "transpose"], "batch_size": 3}
    expected = dict(predict_probs(fabric, model, images, names, **options))
    runtime = openvino_runtime(model, precision="f32", threads=1)
    found = dict(predict_probs(fabric, model, images, names, **options, runtime=runtime))
    assert set(found) == set(names)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


def test_shapes_are_compiled_once_and_the_last_batch_is_filled_up(monkeypatch):
    openvino = module._import_openvino()
    compiled = []
    plain = openvino.Core.compile_model

    def counting(core, network, device, options):
        compiled.append(tuple(network.input(0).shape))
        assert options["INFERENCE_PRECISION_HINT"] == "f32"
        assert options["INFERENCE_NUM_THREADS"] == 1
        return plain(core, network, device, options)

    monkeypatch.setattr(openvino.Core, "compile_model", counting)
    runtime = openvino_runtime(tiny(), precision="f32", threads=1)
    planes = planes_of(4, 1, 16, 16)
    whole = runtime(planes)
    for size in (4, 3):
        np.testing.assert_allclose(runtime(planes[:size]), whole[:size], atol=1e-5)
    assert compiled == [(4, 1, 16, 16)]
    fresh = openvino_runtime(tiny(), precision="f32", threads=1)  # as in a prediction that goes on
    assert (fresh(planes[:3]) == runtime(planes[:3])).all()
    np.testing.assert_allclose(runtime(planes[:1]), whole[:1], atol=1e-5)  # fourfold work would be a waste
    assert compiled == [(4, 1, 16, 16)] * 2 + [(1, 1, 16, 16)]
    for side in range(3, 3 + module._COMPILED):
        runtime(planes_of(1, 1, 8 * side, 8))
    runtime(planes)  # dropped in the meantime
    assert compiled.count((4, 1, 16, 16)) == 3


def test_the_precision_is_that_of_training(monkeypatch):
    asked = []
    monkeypatch.setattr(
        module, "openvino_runtime", lambda model, precision, combine: asked.append(precision) or abs
    )
    for precision in ("32-true", "bf16-mixed"):
        RUNTIMES["openvino"](Fabric(accelerator="cpu", devices=1, precision=precision), tiny(), mask_only)
    assert asked == ["f32", "bf16"]


def test_every_runtime_can_be_configured():
    assert set(typing.get_args(PredictionConfig.model_fields["runtime"].annotation)) == set(RUNTIMES)


def test_refused_before_training(monkeypatch):
    check_runtime("torch", device="cuda", precision="16-mixed")
    check_runtime("openvino", device="cpu", precision="bf16-mixed")
    with pytest.raises(
        InputError, match=r"prediction\.runtime: 'opnvino' is unknown; did you mean 'openvino'"
    ):
        check_runtime("opnvino", device="cpu", precision="32-true")
    with pytest.raises(InputError, match=r"'openvino' runs on the CPU, and training\.device is 'cuda'"):
        check_runtime("openvino", device="cuda", precision="bf16-mixed")
    with pytest.raises(
        InputError, match=r"no form of training\.precision '16-mixed'; expected bf16-mixed or 32-"
    ):
        check_runtime("openvino", device="cpu", precision="16-mixed")
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(InputError, match=r"cannot be imported .*pip install masksmith\[openvino\]"):
        check_runtime("openvino", device="cpu", precision="32-true")
    with pytest.raises(InputError, match=r"cannot be imported .*pip install masksmith\[openvino\]"):
        openvino_runtime(tiny(), precision="f32")


def test_a_network_that_cannot_be_converted(monkeypatch):
    def fail(*_args, **_options):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(module._import_openvino(), "convert_model", fail)
    with pytest.raises(
        InputError, match=r"cannot convert this network \(no such operation\); choose 'torch'"
    ):
        openvino_runtime(tiny(), precision="f32")


def test_nothing_is_reported_to_the_makers_of_openvino(tmp_path):
    code = """
import sys
from masksmith.prediction.runtimes import openvino_runtime
from tests.prediction.test_runtime import planes_of, tiny
openvino_runtime(tiny(), precision="f32", threads=1)(planes_of(1, 1, 16, 16))
assert "openvino" in sys.modules
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
"""
    subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        env={
            "HOME": str(tmp_path),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": ":".join(path for path in sys.path if path),
        },
    )
    assert not list(tmp_path.iterdir())  # the telemetry would leave its identifier here
