"""OpenVINO computes what torch does, for every net, size and batch, and says what it cannot."""

import subprocess
import sys
import typing

import numpy as np
import pytest
import torch
from lightning_fabric import Fabric

from masksmith.core.errors import InputError
from masksmith.models.config import ModelConfig
from masksmith.models.cpu import quicken_depthwise
from masksmith.models.segmentation import build_model, to_channels_last
from masksmith.prediction import runtimes
from masksmith.prediction.combine import mask_only
from masksmith.prediction.config import PredictionConfig
from masksmith.prediction.predict import predict_probs
from masksmith.prediction.runtimes import RUNTIMES, check_runtime, openvino_runtime, torch_runtime
from tests.prediction.nets import SIZES, image_store, planes_of, tiny

KEPT = 8  # compiled shapes


@pytest.fixture
def fabric():
    return Fabric(accelerator="cpu", devices=1)


def whole_net(name):
    config = ModelConfig(architecture=name, encoder="own", encoder_weights="none", decoder_channels=[4])
    return build_model(config, in_channels=1, seed=0)


@pytest.mark.slow
def test_openvino_in_float32_agrees_with_torch(fabric):
    """Encoders and decoders of a library, and whole nets of any size: odd ones too, the trace was of another."""
    for model, shapes in (
        (tiny(), [(3, 1, 32, 48), (1, 1, 16, 24)]),
        (tiny(3, "mobilenet_v2"), [(3, 3, 32, 48), (1, 3, 16, 24)]),
        (tiny(1, "resnet18", "unetplusplus"), [(3, 1, 32, 48)]),
        (whole_net("tgs_model2"), [(2, 1, 101, 101), (2, 1, 47, 64)]),
        (whole_net("tiny_diagram_unet"), [(2, 1, 32, 48)]),
        (whole_net("tgs_baseline_cnn"), [(2, 1, 9, 5)]),
    ):
        runtime = openvino_runtime(model.eval(), precision="f32", threads=1)
        for shape in shapes:
            planes = planes_of(*shape)
            expected = torch_runtime(fabric, model)(planes)
            found = runtime(planes)
            assert found.dtype == np.float32
            assert found.shape == expected.shape
            np.testing.assert_allclose(found, expected, atol=2e-4 * expected.std())


@pytest.mark.slow
def test_the_model_is_left_as_it_was():
    model = tiny(encoder="mobilenet_v2")
    to_channels_last(model)
    assert quicken_depthwise(model) > 0  # the form of training converts as well
    head = model.head
    runtime = openvino_runtime(model, precision="f32", threads=1)
    assert model.head is head
    assert model.training
    planes = planes_of(2, 1, 16, 16)
    expected = model.eval()(torch.from_numpy(planes)).mask_logits.detach()
    np.testing.assert_allclose(runtime(planes), expected, atol=1e-3)


@pytest.mark.slow
def test_logits_stay_float32_in_bfloat16():
    logits = torch.from_numpy(openvino_runtime(tiny(), precision="bf16", threads=1)(planes_of(4, 1, 32, 32)))
    coarse = (logits == logits.bfloat16().float()).float().mean()
    assert coarse < 0.1  # a bfloat16 head would give 1.0


@pytest.mark.slow
def test_ragged_images_with_every_symmetry(fabric, tmp_path):
    images, model = image_store(tmp_path / "i.npy", 3), tiny(3)
    names = [name for name, _ in SIZES]
    options = {"tta": ["identity", "hflip", "transpose"], "batch_size": 3}
    expected = dict(predict_probs(fabric, model, images, names, **options))
    runtime = openvino_runtime(model, precision="f32", threads=1)
    found = dict(predict_probs(fabric, model, images, names, **options, runtime=runtime))
    assert set(found) == set(names)
    for name in names:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-4)


@pytest.mark.slow
def test_shapes_are_compiled_once_and_the_last_batch_is_filled_up(monkeypatch):
    compiled, model = [], tiny()
    runtime = openvino_runtime(model, precision="f32", threads=1)
    core = sys.modules["openvino"].Core
    plain = core.compile_model

    def counting(self, network, device, options):
        compiled.append(tuple(network.input(0).shape))
        assert options["INFERENCE_PRECISION_HINT"] == "f32"
        assert options["INFERENCE_NUM_THREADS"] == 1
        return plain(self, network, device, options)

    monkeypatch.setattr(core, "compile_model", counting)
    planes = planes_of(4, 1, 16, 16)
    whole = runtime(planes)
    for size in (4, 3):
        np.testing.assert_allclose(runtime(planes[:size]), whole[:size], atol=1e-5)
    assert compiled == [(4, 1, 16, 16)]
    fresh = openvino_runtime(model, precision="f32", threads=1)  # as in a prediction that goes on
    assert (fresh(planes[:3]) == runtime(planes[:3])).all()
    np.testing.assert_allclose(runtime(planes[:1]), whole[:1], atol=1e-5)  # fourfold work would be a waste
    assert compiled == [(4, 1, 16, 16)] * 2 + [(1, 1, 16, 16)]
    for side in range(3, 3 + KEPT):
        runtime(planes_of(1, 1, 8 * side, 8))
    runtime(planes)  # dropped in the meantime
    assert compiled.count((4, 1, 16, 16)) == 3


def test_the_precision_is_that_of_training(monkeypatch):
    asked = []
    monkeypatch.setattr(
        runtimes, "openvino_runtime", lambda model, precision, combine: asked.append(precision) or abs
    )
    for precision in ("32-true", "bf16-mixed"):
        RUNTIMES["openvino"](Fabric(accelerator="cpu", devices=1, precision=precision), tiny(), mask_only)
    assert asked == ["f32", "bf16"]
    assert set(typing.get_args(PredictionConfig.model_fields["runtime"].annotation)) == set(RUNTIMES)


def test_refused_before_training(monkeypatch):
    check_runtime("torch", device="cuda", precision="16-mixed")
    check_runtime("openvino", device="cpu", precision="bf16-mixed")
    for name, device, precision, message in (
        ("opnvino", "cpu", "32-true", r"prediction\.runtime: 'opnvino' is unknown; did you mean 'openvino'"),
        ("openvino", "cuda", "bf16-mixed", r"'openvino' runs on the CPU, and training\.device is 'cuda'"),
        (
            "openvino",
            "cpu",
            "16-mixed",
            r"no form of training\.precision '16-mixed'; expected bf16-mixed or 32-",
        ),
    ):
        with pytest.raises(InputError, match=message):
            check_runtime(name, device=device, precision=precision)

    def fail(*_args, **_options):
        raise RuntimeError("no such operation")

    monkeypatch.setattr(sys.modules["openvino"], "convert_model", fail)
    with pytest.raises(
        InputError, match=r"cannot convert this network \(no such operation\); choose 'torch'"
    ):
        openvino_runtime(tiny(), precision="f32")
    monkeypatch.setitem(sys.modules, "openvino", None)
    for call in (
        lambda: check_runtime("openvino", device="cpu", precision="32-true"),
        lambda: openvino_runtime(tiny(), precision="f32"),
    ):
        with pytest.raises(InputError, match=r"cannot be imported .*pip install masksmith\[openvino\]"):
            call()


@pytest.mark.slow
def test_nothing_is_reported_to_the_makers_of_openvino(tmp_path):
    code = """
import sys
from masksmith.prediction.runtimes import openvino_runtime
from tests.prediction.nets import planes_of, tiny
openvino_runtime(tiny(), precision="f32", threads=1)(planes_of(1, 1, 16, 16))
assert "openvino" in sys.modules
assert not [name for name in sys.modules if name.startswith("openvino_telemetry")]
"""
    path = ":".join(path for path in sys.path if path)
    environment = {"HOME": str(tmp_path), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)
    assert not list(tmp_path.iterdir())  # the telemetry would leave its identifier here


@pytest.mark.slow
def test_a_signal_is_handled_after_several_runtimes():
    """OpenVINO gives its thread a stack for signals; a freed one would end the process with a segmentation fault."""
    code = """
import gc, signal
from masksmith.prediction.runtimes import openvino_runtime
from tests.prediction.nets import planes_of, tiny
came = []
signal.signal(signal.SIGTERM, lambda number, frame: came.append(number))
for _ in range(3):
    openvino_runtime(tiny(), precision="f32", threads=1)(planes_of(1, 1, 16, 16))
    gc.collect()
    signal.raise_signal(signal.SIGTERM)
assert came == [signal.SIGTERM] * 3
"""
    path = ":".join(path for path in sys.path if path)
    subprocess.run([sys.executable, "-c", code], check=True, env={"OMP_NUM_THREADS": "1", "PYTHONPATH": path})
