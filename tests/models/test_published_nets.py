"""The winners' nets against their layers, written out here by hand from the sources, with the weights of ours."""

from itertools import pairwise

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from masksmith.core.errors import InputError
from masksmith.models.config import ModelConfig
from masksmith.models.layers import ATTENTIONS, SCSE, attention_layer
from masksmith.models.segmentation import build_model
from masksmith.models.taps import ExpandedTaps
from tests.models.nets import keras_norm

TGS_HYPER = {
    "architecture": "tgs_hyper_unet",
    "encoder": "resnet34",
    "encoder_depth": 5,
    "decoder_channels": [64],
    "stem": "conv3x3_stride1",
    "encoder_attention": "scse_inside",
    "derived_channels": "depth_ramp",
}


def net(*, in_channels=3, **values):
    """A net whose norms have seen something, in evaluation mode."""
    model = build_model(
        ModelConfig(**({"encoder_weights": "none"} | values)), in_channels=in_channels, seed=0
    )
    torch.manual_seed(0)
    model.train()(torch.rand(2, in_channels, 64, 64))
    return model.eval()


def conv(layer, x):
    return F.conv2d(x, layer.weight, layer.bias, stride=layer.stride, padding=layer.padding)


def norm(layer, x):
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, False)


def twice(x, *, corners):
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=corners)


def gate_of_the_salt_code(gate, x):
    """x times the channel gate, plus the space gate: the code adds it and does not multiply."""
    squeeze, excite = gate.channel[0], gate.channel[2]
    channel = torch.sigmoid(conv(excite, torch.relu(conv(squeeze, F.adaptive_avg_pool2d(x, 1)))))
    return x * channel + torch.sigmoid(conv(gate.space[0], x))


# TGS Salt, first place: resnet34pad_128


def salt_attention(fpa, x):
    def elu(layer, value):
        return F.elu(norm(layer[1], conv(layer[0], value)))

    mean = conv(fpa.pool, F.adaptive_avg_pool2d(x, 1)).expand(-1, -1, *x.shape[-2:])
    half = elu(fpa.to_half, x)
    quarter = elu(fpa.at_quarter, elu(fpa.to_quarter, half))
    pyramid = twice(elu(fpa.at_half, half) + twice(quarter, corners=True), corners=True)
    return elu(fpa.point, x) * pyramid + mean


def salt_block(block, below, skip):
    up = F.conv_transpose2d(below, block.halves.up.layer.weight, block.halves.up.layer.bias, stride=2)
    stacked = torch.cat([up, conv(block.halves.project, skip)], 1)
    return gate_of_the_salt_code(block.gate, torch.relu(norm(block.halves.after[0], stacked)))


def test_the_net_of_the_salt_winner_against_its_layers():
    model = net(in_channels=1, **TGS_HYPER)
    image = torch.rand(2, 1, 64, 64)
    encoder, decoder = model.encoder, model.decoder
    ramp = torch.linspace(0, 1, 64)[:, None].expand(2, 1, 64, 64)
    x = (torch.cat([image, ramp, image * ramp], 1) - model.mean) / model.std
    x = torch.relu(norm(encoder.bn1, F.conv2d(x, encoder.conv1.weight, padding=1)))
    maps = []
    for stage, blocks in ((encoder.layer1, 3), (encoder.layer2, 4), (encoder.layer3, 6), (encoder.layer4, 3)):
        assert len(stage) == blocks + 1
        x = gate_of_the_salt_code(stage[blocks], stage[:blocks](x))
        maps.append(x)
    assert [tuple(one.shape[1:]) for one in maps] == [(64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8)]
    x = F.max_pool2d(salt_attention(decoder.center[0], maps[3]), 2)
    levels = []
    for block, skip in zip(decoder.blocks, maps[::-1], strict=True):
        x = salt_block(block, x, skip)
        levels.append(x)
    big = [F.interpolate(one, (64, 64), mode="bilinear", align_corners=True) for one in levels[::-1]]
    fused = F.elu(conv(decoder.fuse[0], torch.cat(big, 1)))
    with torch.no_grad():
        torch.testing.assert_close(model(image).mask_logits, conv(model.head, fused), rtol=1e-3, atol=1e-4)


def test_the_net_of_the_salt_winner_has_its_weights():
    """Counted from the layers of the published code; ours has one more, the bias of the last convolution."""

    def gates(width, hidden):
        return width * hidden + hidden + hidden * width + width + width

    resnet34 = 21_284_672 - 64 * 3 * 49 + 64 * 3 * 9  # torchvision's without classifier, with a 3x3 stem
    encoder = resnet34 + sum(gates(width, width // 4) for width in (64, 128, 256, 512))
    attention = 512 * 256 + 25 * (512 * 512 + 512 * 256) + 9 * (512 * 512 + 512 * 256) + 512 * 256
    attention += 2 * (512 + 256 + 512 + 256 + 256)  # its norms
    blocks = sum(
        4 * below * 32 + 32 + skip * 32 + 128 + gates(64, 4) for below, skip in ((256, 512), (64, 256))
    )
    blocks += sum(4 * 64 * 32 + 32 + skip * 32 + 128 + gates(64, 4) for skip in (128, 64))
    head = 256 * 32 * 9 + 32 + 32
    model = build_model(ModelConfig(encoder_weights="none", **TGS_HYPER), in_channels=1, seed=0)
    found = sum(weight.numel() for weight in model.parameters())
    assert found == encoder + attention + blocks + head + 1 == 35_253_377


def test_dropout_of_the_salt_winner_stands_before_the_last_convolutions():
    model = net(in_channels=1, **TGS_HYPER)
    assert model.decoder.dropout.p == 0.4
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        assert torch.equal(model(image).mask_logits, model(image).mask_logits)
        model.decoder.dropout.train()
        assert not torch.equal(model(image).mask_logits, model(image).mask_logits)


# TGS Salt, first place: ResNeXt50


def test_the_decoder_of_the_resnext_against_its_layers():
    model = net(
        architecture="transposed_unet",
        encoder="resnet18",
        encoder_depth=5,
        decoder_channels=[16, 12, 8, 8, 4],
        attention="scse_each",
        dropout=0.2,
    )
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        features = model.features(image)
        x = features[-1]
        for block, skip in zip(model.decoder.blocks, [*features[-2:0:-1], None], strict=True):
            up = block.up.layer
            assert (up.kernel_size, up.bias) == ((4, 4), None)
            x = torch.relu(
                keras_norm(block.after_up[0], F.conv_transpose2d(x, up.weight, stride=2, padding=1))
            )
            x = x if skip is None else torch.cat([x, skip], 1)
            x = torch.relu(keras_norm(block.body[1], conv(block.body[0], x)))
            squeeze, excite = block.attention.channel[0], block.attention.channel[2]
            channel = torch.sigmoid(conv(excite, torch.relu(conv(squeeze, x.mean((2, 3), keepdim=True)))))
            x = x * channel + x * torch.sigmoid(conv(block.attention.space[0], x))
            assert block.attention.space[0].out_channels == x.shape[1]
        torch.testing.assert_close(model(image).mask_logits, conv(model.head, x), rtol=1e-4, atol=1e-4)
    assert [block.attention.channel[0].out_channels for block in model.decoder.blocks] == [8, 6, 4, 4, 4]


# On Cloud N, third place; SIIM-ACR, first place


def test_the_cloud_net_against_its_layers(subtests):
    for widths, attention in [([64, 32, 24, 16, 8], "none"), ([48, 32, 24, 16, 8], "scse_max")]:
        with subtests.test(widths=widths, attention=attention):
            model = net(
                architecture="cloud_unet",
                encoder="resnet34",
                encoder_depth=5,
                decoder_channels=widths,
                norm="none",
                attention=attention,
            )
            image = torch.rand(1, 3, 64, 64)
            with torch.no_grad():
                features = model.features(image)
                x = features[-1]
                for block, skip in zip(model.decoder.blocks, [*features[-2:0:-1], None], strict=True):
                    x = torch.relu(conv(block.before[0], F.interpolate(x, scale_factor=2)))
                    if skip is None:
                        continue
                    x = torch.relu(conv(block.after[0], torch.cat([x, skip], 1)))
                    if attention != "none":
                        squeeze, excite = block.attention.channel[0], block.attention.channel[2]
                        mean = F.adaptive_avg_pool2d(x, 1)
                        channel = torch.sigmoid(conv(excite, torch.relu(conv(squeeze, mean))))
                        x = torch.maximum(x * channel, x * torch.sigmoid(conv(block.attention.space[0], x)))
                torch.testing.assert_close(
                    model(image).mask_logits, conv(model.head, x), rtol=1e-4, atol=1e-4
                )
            decoder = 0
            for (below, width), skip in zip(pairwise([512, *widths]), [256, 128, 64, 64, 0], strict=True):
                decoder += 9 * below * width + width
                decoder += 9 * (width + skip) * width + width if skip else 0
                hidden = max(4, width // 2)
                gates = 2 * width * hidden + hidden + width + width
                decoder += gates if skip and attention != "none" else 0
            assert sum(weight.numel() for weight in model.decoder.parameters()) == decoder


# SIIM-ACR, first place: AlbuNet


@pytest.mark.parametrize("upsample", ["default", "transposed"])
def test_albunet_against_its_layers(upsample):
    model = net(
        architecture="albunet",
        encoder="resnet34",
        encoder_depth=5,
        decoder_channels=[4],
        norm="none",
        upsample=upsample,
    )
    image = torch.rand(1, 3, 64, 64)

    def block(unit, x):
        if upsample == "default":
            x = torch.relu(conv(unit.after[0][0], twice(x, corners=False)))
            return torch.relu(conv(unit.after[1][0], x))
        x = torch.relu(conv(unit.before[0], x))
        return torch.relu(
            F.conv_transpose2d(x, unit.up.layer.weight, unit.up.layer.bias, stride=2, padding=1)
        )

    with torch.no_grad():
        _, _, conv2, conv3, conv4, conv5 = model.features(image)
        units = model.decoder.blocks
        x = torch.cat([block(units[0], F.max_pool2d(conv5, 2)), conv5], 1)
        x = torch.cat([block(units[1], x), conv4], 1)
        x = torch.cat([block(units[2], x), conv3], 1)
        x = torch.cat([block(units[3], x), conv2], 1)
        x = block(units[5], block(units[4], x))
        x = torch.relu(conv(model.decoder.smooth[0], x))
        torch.testing.assert_close(model(image).mask_logits, conv(model.head, x), rtol=1e-4, atol=1e-4)


def test_albunet_has_its_weights():
    """Of the code with 32 filters: two convolutions a block, then one of 32 to 32."""
    model = build_model(
        ModelConfig(
            architecture="albunet",
            encoder="resnet34",
            encoder_weights="none",
            encoder_depth=5,
            decoder_channels=[32],
            norm="none",
        ),
        in_channels=3,
        seed=0,
    )
    blocks = [
        (512, 512, 256),
        (768, 512, 256),
        (512, 512, 256),
        (384, 256, 64),
        (128, 128, 128),
        (128, 128, 32),
    ]
    expected = sum(9 * (a * b + b * c) + b + c for a, b, c in [*blocks]) + 9 * 32 * 32 + 32
    assert sum(weight.numel() for weight in model.decoder.parameters()) == expected


# EMANet


def test_emanet_is_dilated_and_enlarges_its_logits_eightfold():
    model = net(architecture="emanet", encoder="resnet50", encoder_depth=5, decoder_channels=[256])
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        deepest = model.features(image)[-1]
        assert deepest.shape == (1, 2048, 8, 8)
        attended = model.decoder.attention(deepest)
        assert attended.shape == (1, 512, 8, 8)
        logits = conv(model.head, model.decoder.blocks[0](attended))
        expected = F.interpolate(logits, scale_factor=8, mode="bilinear", align_corners=False)
        torch.testing.assert_close(model(image).mask_logits, expected, rtol=1e-4, atol=1e-5)
    assert model.decoder.attention.bases.shape == (512, 64)
    assert model.decoder.attention.num_steps == 3
    assert model.decoder.dropout.p == 0.1


@pytest.mark.parametrize(
    ("architecture", "given", "stride"),
    [("pan", "own", 16), ("pan", 32, 32), ("emanet", "own", 8), ("emanet", 16, 16), ("deeplabv3", 32, 32)],
)
def test_output_stride(architecture, given, stride):
    model = net(
        architecture=architecture,
        encoder="resnet18",
        encoder_depth=5,
        decoder_channels=[32],
        output_stride=given,
    )
    assert model.divisor == stride
    with torch.no_grad():
        assert model.features(torch.rand(1, 3, 64, 64))[-1].shape[-1] == 64 // stride


def test_an_output_stride_of_another_architecture_is_refused():
    with pytest.raises(ValueError, match="output_stride: 8 is not supported by architecture 'pan'"):
        ModelConfig(architecture="pan", decoder_channels=[32], output_stride=8)


# attention


def test_attentions_differ_in_how_they_join(subtests):
    for name in sorted(ATTENTIONS):
        with subtests.test(name=name):
            torch.manual_seed(0)
            gate, x = attention_layer(name, 32), torch.randn(2, 32, 5, 7)
            hidden = 4 if name == "scse" else 16
            squeeze, excite, space = gate.channel[0], gate.channel[2], gate.space[0]
            assert (squeeze.out_channels, space.bias is None) == (hidden, name == "scse_max")
            assert space.out_channels == (32 if name == "scse_each" else 1)
            channel = x * torch.sigmoid(conv(excite, torch.relu(conv(squeeze, x.mean((2, 3), keepdim=True)))))
            by_space = x * torch.sigmoid(conv(space, x))
            expected = torch.maximum(channel, by_space) if name == "scse_max" else channel + by_space
            torch.testing.assert_close(gate(x), expected)


def test_no_attention_and_an_unknown_one():
    assert isinstance(attention_layer("none", 8), nn.Identity)
    with pytest.raises(InputError, match=r"model\.attention: 'scsee' is unknown; did you mean 'scse'"):
        attention_layer("scsee", 8)


def test_weights_of_a_classifier_load_beside_attention_inside(tmp_path):
    values = {"encoder": "resnet18", "encoder_attention": "scse_inside"}
    plain = build_model(ModelConfig(encoder="resnet18", encoder_weights="none"), in_channels=3, seed=5)
    save_file(plain.encoder.state_dict(), tmp_path / "w.safetensors")
    fresh = build_model(ModelConfig(encoder_weights="none", **values), in_channels=3, seed=1)
    loaded = build_model(
        ModelConfig(encoder_weights=str(tmp_path / "w.safetensors"), **values), in_channels=3, seed=1
    )
    stored, own = plain.encoder.state_dict(), loaded.encoder.state_dict()
    assert all(torch.equal(own[name], value) for name, value in stored.items())
    gates = sorted(set(own) - set(stored))
    assert len(gates) == 3 * 5, "four weights of the channel gate, one of the space gate, in three stages"
    assert all(torch.equal(own[name], fresh.encoder.state_dict()[name]) for name in gates)


def test_stages_that_give_no_map_get_no_attention():
    model = build_model(
        ModelConfig(
            encoder="resnet18",
            encoder_weights="none",
            encoder_attention="scse_inside",
            encoder_depth=3,
            decoder_channels=[16, 8, 8],
        ),
        in_channels=3,
        seed=0,
    )
    assert [isinstance(getattr(model.encoder, f"layer{at}")[-1], SCSE) for at in (1, 2, 3, 4)] == [
        True,
        True,
        False,
        False,
    ]


def test_attention_inside_an_encoder_without_stages():
    with pytest.raises(
        InputError, match="encoder_attention: 'scse_inside' is not supported by 'mobilenet_v2'"
    ):
        net(encoder="mobilenet_v2", encoder_attention="scse_inside")


# taps within the blocks of an EfficientNet


def test_expanded_taps_are_those_of_the_whole_net():
    taps = ExpandedTaps("tf_efficientnet_b0", in_channels=3, depth=5).eval()
    whole = timm.create_model("tf_efficientnet_b0", pretrained=False, num_classes=0).eval()
    whole.load_state_dict(taps.model.state_dict())
    found, image = [], torch.rand(1, 3, 64, 96)
    for stage in (1, 2, 3, 5):
        whole.blocks[stage][0].bn1.register_forward_hook(lambda _m, _i, output: found.append(output))
    with torch.no_grad():
        last = whole.forward_features(image)
        maps = taps(image)
    for ours, theirs in zip(maps, [image, *found, last], strict=True):
        torch.testing.assert_close(ours, theirs)
    assert [tuple(one.shape[-2:]) for one in maps[1:]] == [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]


def test_expanded_taps_of_b4_are_the_published_ones():
    taps = ExpandedTaps("tf_efficientnet_b4", in_channels=3, depth=4)
    assert taps.out_channels == [3, 144, 192, 336, 960]
    assert all(weight.grad is None for weight in taps.parameters())
    sum(one.mean() for one in taps(torch.rand(1, 3, 32, 32))[1:]).backward()
    assert all(weight.grad is not None for weight in taps.parameters()), "no layers behind the deepest tap"


def test_a_hyperkernel_net_on_expanded_taps_loads_the_weights_of_a_classifier(tmp_path):
    whole = timm.create_model("tf_efficientnet_b0", pretrained=False)
    save_file(
        {name: value.contiguous() for name, value in whole.state_dict().items()}, tmp_path / "w.safetensors"
    )
    model = net(
        architecture="hyperkernel_unetpp",
        encoder="tf_efficientnet_b0",
        encoder_taps="expanded",
        encoder_depth=4,
        decoder_channels=[16, 16, 8, 8],
        encoder_weights=str(tmp_path / "w.safetensors"),
    )
    assert torch.equal(model.encoder.model.blocks[3][0].conv_pw.weight, whole.blocks[3][0].conv_pw.weight)
    assert model(torch.rand(1, 3, 64, 64)).mask_logits.shape == (1, 1, 64, 64)


def test_expanded_taps_that_do_not_go(subtests):
    for changes, message in [
        (
            {"encoder": "efficientnet-b4"},
            "'expanded' needs one of timm's EfficientNets, and 'efficientnet-b4' is",
        ),
        ({"encoder": "tu-resnet18"}, "'expanded' is not supported by 'resnet18', which has 0 blocks"),
        (
            {"architecture": "pan", "encoder_depth": 5, "decoder_channels": [32]},
            "'expanded' cannot be dilated to stride 16",
        ),
    ]:
        with subtests.test(changes=changes, message=message):
            values = {"encoder": "tf_efficientnet_b0", "encoder_taps": "expanded"}
            with pytest.raises(InputError, match=f"encoder_taps: {message}"):
                net(**(values | changes))
