import itertools
import warnings
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from masksmith.core.errors import InputError
from masksmith.models.config import ModelConfig
from masksmith.models.decoders import HOUSE_ARCHITECTURES
from masksmith.models.decoders.blocks import BODIES, HalvesBlock, LinkBlock, Step, Style, UNetBlock
from masksmith.models.decoders.build import DECODERS, build_decoder
from masksmith.models.decoders.centers import (
    CENTERS,
    DilatedStack,
    ExpectationMaximizationAttention,
    FeaturePyramidAttention,
    build_center,
)
from masksmith.models.layers import (
    ACTIVATIONS,
    NORMS,
    SCSE,
    activation_layer,
    initialise,
    norm_layer,
    num_groups,
    resize_to,
    up_convolution,
)
from masksmith.prediction.runtimes import import_openvino, openvino_core
from tests.models.nets import assert_drawn_as_in_keras, bring_to_life, keras_norm, keras_up

NAMES = sorted(HOUSE_ARCHITECTURES)


def having(option):
    return [name for name in NAMES if option in HOUSE_ARCHITECTURES[name].options]


SUPERVISED = having("deep_supervision")
FULL_SIZE = [name for name in NAMES if name != "emanet"]  # whose map stays at the deepest stride
BY_LEVEL = [name for name in NAMES if HOUSE_ARCHITECTURES[name].decoder_channels == "levels"]
CHANNELS = (3, 8, 12, 16)
STRIDES = (1, 2, 4, 8)
CHANGED = {
    "block": "residual",
    "upsample": "bilinear",
    "skip": "add",
    "norm": "group",
    "activation": "silu",
    "attention": "scse",
    "center": "fpa",
    "hypercolumns": True,
    "deep_supervision": True,
}
"""Each option that a decoder may have use for, with a value that is not its default."""
EXTREMES = [
    ("house_unet", {"block": "residual", "skip": "add", "upsample": "transposed", "norm": "group"}),
    ("house_unet", {"upsample": "bilinear", "norm": "none", "activation": "gelu", "attention": "scse"}),
    ("house_unet", {"center": "conv", "hypercolumns": True, "deep_supervision": True}),
    ("house_unet", {"center": "fpa", "attention": "scse", "activation": "elu", "hypercolumns": True}),
    ("house_unet", {"center": "dilated", "activation": "leaky_relu"}),
    ("house_unet", {"center": "ema"}),
    ("classical_unet", {"norm": "none", "deep_supervision": True}),
    ("classical_unet", {"upsample": "nearest"}),
    ("fastai_unet", {"center": "fpa", "attention": "scse", "hypercolumns": True, "deep_supervision": True}),
    ("hyperkernel_unetpp", {"norm": "group", "deep_supervision": True}),
    ("tgs_hyper_unet", {"norm": "group", "deep_supervision": True}),
    ("transposed_unet", {"attention": "scse_each", "norm": "none", "deep_supervision": True}),
    ("cloud_unet", {"attention": "scse_max", "norm": "none", "activation": "silu", "upsample": "bilinear"}),
    ("albunet", {"norm": "none", "deep_supervision": True}),
    ("albunet", {"upsample": "transposed"}),
    ("linknet_add", {"center": "dilated", "upsample": "bilinear"}),
    ("linknet_concat", {"attention": "scse", "norm": "group", "hypercolumns": True}),
]


def config(architecture, **changes):
    depth = len(changes.get("decoder_channels", (12, 8, 6)))
    given = {"encoder": "resnet18", "encoder_depth": depth, "decoder_channels": [12, 8, 6]} | changes
    if HOUSE_ARCHITECTURES[architecture].decoder_channels == "one":
        given["decoder_channels"] = given["decoder_channels"][:1]
    return ModelConfig(architecture=architecture, encoder_weights="none", **given)


def decoder(architecture, channels=CHANNELS, strides=STRIDES, *, join_first=False, **changes):
    torch.manual_seed(0)
    return build_decoder(config(architecture, **changes), channels, strides, join_first=join_first)


def maps(channels, sizes, *, batch=2):
    torch.manual_seed(1)
    return [torch.randn(batch, width, *hw) for width, hw in zip(channels, sizes, strict=True)]


def sizes(hw, strides=STRIDES, *, up=True):
    """Sizes of an encoder's maps, rounded up (padded convolutions) or down (pooling)."""
    return [tuple(-(-side // stride) if up else side // stride for side in hw) for stride in strides]


def count(module, kind):
    return sum(isinstance(each, kind) for each in module.modules())


def weights(module):
    return sum(each.numel() for each in module.parameters())


# What every decoder promises


def test_sizes_need_not_be_multiples(subtests):
    for name, up, hw in itertools.product(SUPERVISED, [True, False], [(40, 56), (13, 21), (37, 53)]):
        with subtests.test(name=name, up=up, hw=hw):
            features = maps(CHANNELS, sizes(hw, up=up))
            built = decoder(name, deep_supervision=True)
            decoded, aux = built(features)
            assert decoded.shape == (2, built.out_channels, *hw)
            assert built.out_stride == 1
            assert tuple(each.shape[1] for each in aux) == built.aux_channels
            heights = [each.shape[2] for each in aux]
            assert heights == sorted(heights), "deepest first"


def test_every_weight_learns_and_all_is_finite(subtests):
    for name, options in EXTREMES + [(name, {}) for name in NAMES]:
        with subtests.test(name=name):
            built = decoder(name, **options)
            decoded, aux = built(maps(CHANNELS, sizes((24, 40))))
            assert 0.05 < decoded.std() < 20
            loss = decoded.square().mean() + sum(each.square().mean() for each in aux)
            loss.backward()
            for where, weight in built.named_parameters():
                assert weight.grad is not None, f"{where} is not in use"
                assert torch.isfinite(weight.grad).all(), where
            learning = sum(bool((weight.grad != 0).any()) for weight in built.parameters())
            assert learning >= 0.9 * len(
                list(built.parameters())
            )  # a bias before a norm, or a dead ReLU, may stand still


def test_strides_are_as_given(subtests):
    for (channels, strides), name in itertools.product(
        [
            ((3, 8, 10, 12, 16), (1, 1, 1, 2, 4)),  # a stem without stride and pooling
            ((3, 8, 8, 16), (1, 2, 2, 4)),
            ((3, 8, 12, 16), (1, 4, 8, 16)),  # a first map at a quarter
            ((3, 0, 12, 16), (1, 2, 4, 8)),  # a first map that gives only its size
            ((3, 8, 12, 16), (1, 3, 7, 14)),
        ],
        FULL_SIZE,
    ):
        with subtests.test(channels=channels, strides=strides, name=name):
            built = decoder(name, channels, strides, decoder_channels=[12, 8, 8, 6][: len(channels) - 1])
            decoded, _ = built(maps(channels, sizes((28, 42), strides)))
            assert decoded.shape == (2, built.out_channels, 28, 42)
            ups = [each for each in built.modules() if isinstance(each, nn.ConvTranspose2d)]
            assert all(each.stride != (1, 1) for each in ups), "no upsampling between maps of equal stride"


def test_maps_of_equal_stride_meet_without_resampling(monkeypatch):
    """Also not by an interpolation: with a stem of stride 1 two of four blocks enlarge."""
    calls = []
    resample = F.interpolate
    monkeypatch.setattr(
        F, "interpolate", lambda *given, **named: calls.append(0) or resample(*given, **named)
    )
    channels, strides = (3, 8, 10, 12, 16), (1, 1, 1, 2, 4)
    built = decoder("house_unet", channels, strides, decoder_channels=[12, 8, 8, 6])
    built(maps(channels, sizes((16, 24), strides)))
    assert len(calls) == 2


def test_first_map_joins_where_it_is_an_encoder_map(subtests):
    for name in BY_LEVEL:
        with subtests.test(name=name):
            channels = (5, 8, 12, 16)
            features = maps(channels, sizes((16, 24)))
            moved = [features[0] + 1, *features[1:]]
            for join_first in (True, False):
                built = decoder(name, channels, join_first=join_first).eval()
                same = torch.equal(built(features)[0], built(moved)[0])
                assert same is not join_first


@pytest.mark.slow
def test_channels_last_and_bfloat16(subtests):
    for name, options in EXTREMES:
        with subtests.test(name=name):
            built = decoder(name, **options).eval()
            features = maps(CHANNELS, sizes((16, 24)))
            expected = built(features)[0]
            inner = [each.contiguous(memory_format=torch.channels_last) for each in features]
            torch.testing.assert_close(
                built.to(memory_format=torch.channels_last)(inner)[0], expected, rtol=1e-4, atol=1e-4
            )
            with torch.autocast("cpu", torch.bfloat16):
                found = built.train()(inner)[0]
            found.float().mean().backward()
            assert all(torch.isfinite(weight.grad).all() for weight in built.parameters())
            with torch.autocast("cpu", torch.bfloat16):
                rounded = built.eval()(inner)[0].float()
            assert torch.isfinite(rounded).all()


def test_blocks_may_be_recomputed(subtests):
    """Recomputing every block in the backward pass changes no gradient: nothing works in place."""
    for name in NAMES:
        with subtests.test(name=name):
            features = maps(CHANNELS, sizes((16, 24)))
            grads = []
            for recompute in (False, True):
                built = decoder(name)
                if recompute:
                    for block in built.blocks:
                        forward = block.forward
                        block.forward = lambda *maps, forward=forward: checkpoint(
                            forward, *maps, use_reentrant=False
                        )
                torch.manual_seed(2)  # of the dropout
                built(features)[0].square().mean().backward()
                grads.append([weight.grad for weight in built.parameters()])
            for plain, again in zip(*grads, strict=True):
                torch.testing.assert_close(again, plain, rtol=1e-5, atol=1e-7)


PINNED = {  # weights on CHANNELS with widths 12, 8, 6 (or 12); each counted by hand from the layers of the sources
    "house_unet": 7196,
    "classical_unet": 7738,
    "fastai_unet": 950,
    "hyperkernel_unetpp": 44093,
    "linknet_add": 558,
    "linknet_concat": 1014,
    "tgs_hyper_unet": 15682,
    "transposed_unet": 9548,
    "cloud_unet": 6860,
    "albunet": 375696,
    "emanet": 4648,
}


def test_number_of_weights(subtests):
    for name in NAMES:
        with subtests.test(name=name):
            assert weights(decoder(name)) == PINNED[name]


# The table


def test_table_and_builders_agree():
    assert set(DECODERS) == set(HOUSE_ARCHITECTURES)
    for traits in HOUSE_ARCHITECTURES.values():
        fields = {option.partition(":")[0] for option in traits.options} - {"output_stride"}  # of the encoder
        assert fields <= set(CHANGED) <= set(ModelConfig.model_fields)
        assert traits.describes
        assert "https://" in traits.source


# Each option does what it says


def test_norm(subtests):
    for name in NAMES:
        with subtests.test(name=name):
            batch, group, none = (decoder(name, norm=norm) for norm in ("batch", "group", "none"))
            assert count(batch, nn.BatchNorm2d) == count(group, nn.GroupNorm) > 0
            assert count(batch, nn.GroupNorm) == count(group, nn.BatchNorm2d) == 0
            assert count(none, nn.BatchNorm2d) == count(none, nn.GroupNorm) == 0
            gates = {id(each) for gate in none.modules() if isinstance(gate, SCSE) for each in gate.modules()}
            convolutions = [
                each for each in none.modules() if isinstance(each, nn.Conv2d | nn.ConvTranspose2d)
            ]
            assert all(each.bias is not None for each in convolutions if id(each) not in gates)


def test_activation(subtests):
    for activation, name in itertools.product(sorted(ACTIVATIONS), having("activation")):
        with subtests.test(activation=activation, name=name):
            kinds = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU)
            found = {
                type(each)
                for each in decoder(name, activation=activation).modules()
                if isinstance(each, kinds)
            }
            assert found == {type(activation_layer(activation))}


def test_upsample(subtests):
    for name, kernel in [("house_unet", 4), ("classical_unet", 2), ("linknet_add", 3), ("linknet_concat", 3)]:
        with subtests.test(name=name, kernel=kernel):
            transposed = decoder(name, upsample="transposed")
            found = [each for each in transposed.modules() if isinstance(each, nn.ConvTranspose2d)]
            assert [each.kernel_size for each in found] == [(kernel, kernel)] * 3
            features = maps(CHANNELS, sizes((16, 24)))
            outputs = []
            for upsample in ("nearest", "bilinear"):
                built = decoder(name, upsample=upsample)
                assert count(built, nn.ConvTranspose2d) == 0
                outputs.append(built(features)[0])
            assert not torch.allclose(*outputs)


def test_upsample_default_is_the_published_one():
    assert count(decoder("house_unet"), nn.ConvTranspose2d) == 0
    for name in ("classical_unet", "fastai_unet", "linknet_add", "linknet_concat"):
        assert count(decoder(name), nn.ConvTranspose2d) == 3


def test_attention_is_in_each_block(subtests):
    for name in having("attention"):
        with subtests.test(name=name):
            built = decoder(name, attention="scse")
            last = 0 if name == "cloud_unet" else 1  # whose last block has no skip, and no second convolution
            assert [count(block, SCSE) for block in built.blocks] == [1, 1, last]
            assert count(decoder(name), SCSE) == 0


def test_hypercolumns_stack_all_levels(subtests):
    for name in having("hypercolumns"):
        with subtests.test(name=name):
            features = maps(CHANNELS, sizes((16, 24)))
            plain, stacked = decoder(name, deep_supervision=True), decoder(name, hypercolumns=True)
            assert stacked.out_channels == 12 + 8 + 6
            decoded, aux = plain(features)
            expected = [F.interpolate(each, (16, 24), mode="bilinear", align_corners=False) for each in aux]
            torch.testing.assert_close(stacked(features)[0], torch.cat([*expected, decoded], dim=1))


def test_deep_supervision_gives_all_levels_but_the_last():
    features = maps(CHANNELS, sizes((16, 24)))
    decoded, aux = decoder("house_unet", deep_supervision=True)(features)
    assert [tuple(each.shape[1:]) for each in aux] == [(12, 4, 6), (8, 8, 12)]
    plain, none = decoder("house_unet")(features)
    assert torch.equal(plain, decoded)
    assert none == ()


def test_deepest_map_joins_below_a_centre_that_halves(subtests):
    """AlbuNet, TernausNet and the salt winner pool below the deepest map; a last block of the last width follows."""
    for center, blocks in [("conv", 4), ("fpa", 4), ("dilated", 3), ("ema", 3), ("none", 3)]:
        with subtests.test(center=center, blocks=blocks):
            built = decoder("house_unet", center=center)
            assert built.levels == (3, 2, 1, 0)[-blocks:]
            assert built.blocks[-1].body[1][0].out_channels == 6
            stem = decoder("house_unet", (3, 8, 12, 16), (1, 1, 2, 4), center=center)
            assert stem.levels == ((3, 2, 1) if blocks == 4 else (2, 1, 0))


# Bad input


def test_unknown_architecture_is_suggested():
    with pytest.raises(InputError, match=r"'house_net' is unknown.*house_unet"):
        build_decoder(
            config("house_unet").model_copy(update={"architecture": "house_net"}), CHANNELS, STRIDES
        )


def test_widths_for_another_number_of_maps():
    with pytest.raises(InputError, match="decoder_channels: 3 values for 4 maps of 'resnet18'"):
        build_decoder(config("house_unet"), (3, 8, 8, 8, 8), (1, 2, 4, 8, 16))


def test_halves_of_one_channel():
    with pytest.raises(InputError, match="decoder_channels: 1 for 'fastai_unet'"):
        decoder("fastai_unet", decoder_channels=[8, 4, 1])


def test_strides_that_do_not_go_with_the_channels():
    for strides in [(1, 2, 4), (1, 4, 2, 8)]:
        with pytest.raises(ValueError, match=rf"strides \[{strides[0]}, {strides[1]}"):
            build_decoder(config("house_unet"), CHANNELS, strides)


def test_unknown_words(subtests):
    for build, message in [
        (lambda: norm_layer("instance", 4), "model.norm: 'instance' is unknown"),
        (lambda: activation_layer("swish"), "model.activation: 'swish' is unknown"),
        (lambda: build_center("aspp", 4, norm="batch", activation="relu"), "model.center: 'aspp' is unknown"),
    ]:
        with subtests.test(build=build, message=message), pytest.raises(InputError, match=message):
            build()


# Against the papers


def test_classical_unet_has_the_weights_of_the_paper():
    """31,030,593 for one band and one class (biases, no norm), of which the way down has 18,842,048 and the head 65."""
    built = decoder(
        "classical_unet",
        (64, 128, 256, 512, 1024),
        (1, 2, 4, 8, 16),
        join_first=True,
        norm="none",
        decoder_channels=[512, 256, 128, 64],
    )
    assert weights(built) == 31_030_593 - 18_842_048 - 65


def test_residual_bodies_have_the_weights_of_the_salt_kernel():
    """Its net is these bodies on both ways: 5,112,497 weights with 2944 biases before norms, which ours are without."""
    widths = [16, 32, 64, 128, 256]
    net = nn.ModuleList()
    words = {"norm": "batch", "activation": "relu"}
    for before, width in zip([1, *widths], widths, strict=False):
        net.append(BODIES["residual"](before, width, **words))
    for width in (128, 64, 32, 16):
        net.append(up_convolution(2 * width, width, ratio=2, kernel_size=3))
        net.append(BODIES["residual"](2 * width, width, **words))
    net.append(nn.Conv2d(16, 1, 1))
    assert weights(net) == 5_112_497 - 2944
    buffers = [each for name, each in net.named_buffers() if "running" in name]
    assert sum(each.numel() for each in buffers) == 7360


def test_hyperkernel_widths_are_the_published_ones():
    channels, strides = (3, 144, 192, 336, 960), (1, 2, 4, 8, 16)
    with torch.device("meta"):
        built = build_decoder(
            config("hyperkernel_unetpp", decoder_channels=[128, 64, 32, 16]), channels, strides
        )
        decoded, _ = built(
            [torch.empty(1, c, 512 // s, 512 // s) for c, s in zip(channels, strides, strict=True)]
        )
    assert built.widths == (1088, 528, 416, 384, 8)
    assert [block[1].in_channels for block in built.blocks] == [1088, 528, 416, 384, 8]
    assert built.middle[1].out_channels == 256
    assert [len(path) for path in built.paths] == [0, 1, 2, 3]
    dropped = [each.p for each in built.modules() if isinstance(each, nn.Dropout)]
    assert dropped == [0.5, 0.5, 0.5, 0.1, 0.1, 0.1, 0.25]
    assert decoded.shape == (1, 8, 512, 512)
    ups = [each for each in built.modules() if isinstance(each, nn.ConvTranspose2d)]
    assert all((each.kernel_size, each.stride) == ((3, 3), (2, 2)) for each in ups)
    assert len(ups) == 5 + 6
    assert weights(built) == weights_of_the_notebooks()


def weights_of_the_notebooks():
    """Of the decoder on EfficientNet-B4: 3x3 convolutions with bias, and four norms in each residual block."""

    def conv(before, width):
        return 9 * before * width + width

    def residual(width):
        return 2 * conv(width, width) + 4 * 2 * width

    middle = conv(960, 256) + 2 * residual(256)
    ups = conv(256, 128) + conv(128, 64) + conv(64, 32) + conv(32, 16) + conv(16, 8)
    paths = 3 * conv(128, 128) + 2 * conv(64, 64) + conv(32, 32)
    levels = [(128 + 960, 128), (64 + 128 + 336, 64), (32 + 64 + 128 + 192, 32), (384, 16), (8, 8)]
    return middle + ups + paths + sum(conv(before, width) + residual(width) for before, width in levels)


# Against twins written out by hand


def plain_conv(layer, x):
    return F.conv2d(x, layer.weight, layer.bias, padding=1)


def leaky(x):
    return F.leaky_relu(x, 0.1)


def residual_twin(unit, x):
    """Of the notebooks: activation, norm, two convolutions, plus the norm of the input."""
    _, first, conv1, second, _, conv2, third = unit.body
    y = keras_norm(first, leaky(x))
    y = leaky(keras_norm(second, plain_conv(conv1, y)))
    y = keras_norm(third, plain_conv(conv2, y))
    return y + keras_norm(unit.shortcut, x)


def level_twin(body, x, residuals=1):
    _dropout, conv, *units, _activation = body
    assert len(units) == residuals
    x = plain_conv(conv, x)
    for unit in units:
        x = residual_twin(unit, x)
    return leaky(x)


@pytest.mark.parametrize(
    ("hw", "round_up"),
    [((64, 32), True), ((50, 37), False)],  # 50, 25, 12, 6, 3, 2: doubled, one less, and one more
)
@torch.no_grad()
def test_hyperkernel_against_its_layers_written_out(hw, round_up):
    channels, strides = (3, 6, 7, 8, 9), (1, 2, 4, 8, 16)
    built = bring_to_life(decoder("hyperkernel_unetpp", channels, strides, decoder_channels=[16, 8, 4, 2]))
    features = maps(channels, sizes(hw, strides, up=round_up))
    _, tap1, tap2, tap3, tap4 = features
    hw1, hw2, hw3, hw4 = (tap.shape[-2:] for tap in features[1:])
    tap4 = leaky(tap4)
    ups, paths, levels = built.ups, built.paths, built.blocks
    middle = level_twin(built.middle, F.max_pool2d(tap4, 2, ceil_mode=True), residuals=2)
    up4 = keras_up(ups[0], middle, hw4)
    up4_1 = keras_up(paths[1][0], up4, hw3)
    up4_2 = keras_up(paths[2][0], up4_1, hw2)
    up4_3 = keras_up(paths[3][0], up4_2, hw1)
    level4 = level_twin(levels[0], torch.cat([up4, tap4], 1))
    up3 = keras_up(ups[1], level4, hw3)
    up3_1 = keras_up(paths[2][1], up3, hw2)
    up3_2 = keras_up(paths[3][1], up3_1, hw1)
    level3 = level_twin(levels[1], torch.cat([up3, up4_1, tap3], 1))
    up2 = keras_up(ups[2], level3, hw2)
    up2_1 = keras_up(paths[3][2], up2, hw1)
    level2 = level_twin(levels[2], torch.cat([up2, up3_1, up4_2, tap2], 1))
    up1 = keras_up(ups[3], level2, hw1)
    level1 = level_twin(levels[3], torch.cat([up1, up2_1, up3_2, up4_3, tap1], 1))
    level0 = level_twin(levels[4], keras_up(ups[4], level1, hw))
    torch.testing.assert_close(built(features)[0], level0, rtol=1e-4, atol=1e-5)


def test_decoders_of_keras_begin_as_there(subtests):
    for name in ["hyperkernel_unetpp", "transposed_unet"]:
        with subtests.test(name=name):
            built = decoder(name, decoder_channels=[24, 16, 12])
            assert_drawn_as_in_keras(built)
            assert count(built, nn.BatchNorm2d) == {"hyperkernel_unetpp": 24, "transposed_unet": 6}[name]


def test_hyperkernel_resizes_a_map_that_falls_short_of_the_encoders():
    """Four times 7 rows are not the 31 of an encoder whose stem leaves out what does not fill a window."""
    built = decoder("hyperkernel_unetpp", CHANNELS, (1, 4, 8, 16)).eval()
    decoded, _ = built(maps(CHANNELS, [(31, 30), (7, 7), (3, 3), (1, 1)]))
    assert decoded.shape == (2, 3, 31, 30)


def test_scse_of_few_channels(subtests):
    for channels, hidden in [(1, 1), (2, 2), (8, 4), (16, 4), (64, 4), (96, 6)]:
        with subtests.test(channels=channels, hidden=hidden):
            gate = SCSE(channels)
            assert gate.channel[0].out_channels == hidden
            assert gate(torch.rand(1, channels, 2, 2)).shape == (1, channels, 2, 2)


def test_scse_against_the_library():
    from segmentation_models_pytorch.base.modules import SCSEModule

    torch.manual_seed(0)
    gate, library = SCSE(64), SCSEModule(64)
    for ours, theirs in zip(
        (gate.channel[0], gate.channel[2], gate.space[0]),
        (library.cSE[1], library.cSE[3], library.sSE[0]),
        strict=True,
    ):
        theirs.load_state_dict(ours.state_dict())
    features = torch.randn(2, 64, 6, 5)
    torch.testing.assert_close(gate(features), library(features))


def conv_twin(layer, x, *, stride=1):
    """Convolution, batch norm of the batch itself, ELU."""
    conv, norm, _ = layer
    x = F.conv2d(x, conv.weight, conv.bias, stride=stride, padding=conv.kernel_size[0] // 2)
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    x = (x - mean) / torch.sqrt(var + norm.eps) * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    return F.elu(x)


def big(value, like):
    return F.interpolate(value, like.shape[-2:], mode="bilinear", align_corners=False)


def test_feature_pyramid_attention_against_its_twin(subtests):
    for hw in [(16, 12), (7, 5), (2, 2), (1, 1)]:
        with subtests.test(hw=hw):
            torch.manual_seed(0)
            fpa = FeaturePyramidAttention(8, 4, norm="batch")
            x = torch.randn(3, 8, *hw)
            half = conv_twin(fpa.to_half, x, stride=2)
            assert half.shape[-2:] == (-(-hw[0] // 2), -(-hw[1] // 2))
            quarter = conv_twin(fpa.to_quarter, half, stride=2)
            pyramid = conv_twin(fpa.at_half, half) + big(conv_twin(fpa.at_quarter, quarter), half)
            pooled = F.conv2d(F.adaptive_avg_pool2d(x, 1), fpa.pool.weight, fpa.pool.bias)
            expected = conv_twin(fpa.point, x) * big(pyramid, x) + pooled
            torch.testing.assert_close(fpa(x), expected, rtol=1e-3, atol=1e-4)
            kernels = [each.kernel_size[0] for each in fpa.modules() if isinstance(each, nn.Conv2d)]
            assert sorted(kernels) == [1, 1, 3, 3, 5, 5], "no 7x7 branch"


def test_feature_pyramid_attention_of_the_salt_winner():
    center = build_center("fpa", 512, norm="batch", activation="relu")
    assert center.out_channels == 256
    assert center.halves
    assert center.module(torch.rand(2, 512, 16, 16)).shape == (2, 256, 8, 8)


def test_dilated_stack_against_its_twin():
    torch.manual_seed(0)
    stack = DilatedStack(4, activation="relu")
    x = torch.randn(2, 4, 9, 20)
    expected, current = x, x
    for layer, dilation in zip(stack.layers, (1, 2, 4, 8), strict=True):
        conv = layer[0]
        current = torch.relu(F.conv2d(current, conv.weight, conv.bias, padding=dilation, dilation=dilation))
        expected = expected + current
    torch.testing.assert_close(stack(x), expected)
    assert [layer[0].dilation[0] for layer in stack.layers] == [1, 2, 4, 8]


def ema_twin(ema, x):
    """One image after the other, one basis after the other; returns the output and the fitted bases."""
    outputs, fitted = [], []
    x = torch.relu(F.conv2d(x, ema.reduce[0].weight, ema.reduce[0].bias, padding=1))
    for image in x:
        pixels = ema.project(image[None])[0].flatten(1).T  # (n, c)
        bases = ema.bases.T.clone()  # (k, c)
        for _ in range(3):
            shares = torch.stack([torch.exp(pixels @ basis) for basis in bases], 1)
            shares = shares / shares.sum(1, keepdim=True)
            moved = []
            for k in range(len(bases)):
                weights = shares[:, k] / (shares[:, k].sum() + 1e-6)
                center = (weights[:, None] * pixels).sum(0)
                moved.append(center / center.norm())
            bases = torch.stack(moved)
        outputs.append((shares @ bases).T.reshape(image.shape))
        fitted.append(bases.T)
    rebuilt = ema.rebuild(torch.relu(torch.stack(outputs)))
    return torch.relu(x + rebuilt), torch.stack(fitted).mean(0)


def ema_attention():
    torch.manual_seed(0)
    ema = ExpectationMaximizationAttention(4, 6, norm="none", activation="relu", num_bases=5)
    initialise(ema)
    return ema


def test_ema_attention_against_its_twin():
    ema = ema_attention().eval()
    x = torch.randn(3, 4, 4, 5)
    torch.testing.assert_close(ema(x), ema_twin(ema, x)[0], rtol=1e-4, atol=1e-5)


def test_ema_bases_follow_in_training_only():
    ema = ema_attention()
    x = torch.randn(3, 4, 4, 5)
    before = ema.bases.clone()
    expected = 0.9 * before + 0.1 * ema_twin(ema, x)[1]
    ema.eval()(x)
    assert torch.equal(ema.bases, before)
    out = ema.train()(x)
    torch.testing.assert_close(ema.bases, expected, rtol=1e-4, atol=1e-5)
    assert "bases" in ema.state_dict()
    out.square().mean().backward()
    assert ema.project.weight.grad.abs().sum() > 0, "the last step is differentiated"


def test_ema_attention_stands_in_no_list_of_blocks():
    """Gradient checkpointing takes the blocks of lists; computing this one again would begin at other bases."""
    lists = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    held = [
        child
        for each in decoder("house_unet", center="ema").modules()
        if isinstance(each, lists)
        for child in each.children()
    ]
    assert held
    assert not any(count(each, ExpectationMaximizationAttention) for each in held)


def test_centres_say_what_they_give(subtests):
    for hw, name in itertools.product([(8, 8), (5, 7), (2, 2), (1, 3)], sorted(CENTERS)):
        with subtests.test(hw=hw, name=name):
            center = build_center(name, 16, norm="group", activation="relu")
            found = center.module(torch.randn(1, 16, *hw))
            expected = tuple(-(-side // 2) for side in hw) if center.halves else hw
            assert found.shape == (1, center.out_channels, *expected)


def test_centres_of_wide_encoders(subtests):
    for name, width in [("conv", 512), ("fpa", 256), ("ema", 512), ("dilated", 2048)]:
        with subtests.test(name=name, width=width):
            with torch.device("meta"):
                center = build_center(name, 2048, norm="batch", activation="relu")
            assert center.out_channels == width
            assert weights(center.module) < 160e6


STYLE = Style(norm="none", activation="relu", upsample="transposed", attention="none")
STEP = Step(level=1, ratio=2, in_channels=8, skip_channels=5, out_channels=6)


def block_inputs():
    torch.manual_seed(1)
    return torch.randn(2, 8, 3, 4), torch.randn(2, 5, 6, 8)


def test_unet_block_against_its_twin(subtests):
    for skip in ["add", "concat"]:
        with subtests.test(skip=skip):
            torch.manual_seed(0)
            block = UNetBlock(STEP, STYLE, body="conv", skip=skip, kernel_size=4)
            x, target = block_inputs()
            y = F.conv_transpose2d(x, block.up.layer.weight, block.up.layer.bias, stride=2, padding=1)
            if skip == "add":
                y = y + F.conv2d(target, block.join.project.weight, block.join.project.bias)
            else:
                y = torch.cat([y, target], 1)
            for conv, _norm, _activation in block.body:
                y = torch.relu(F.conv2d(y, conv.weight, conv.bias, padding=1))
            torch.testing.assert_close(block(x, target), y)


def test_link_block_against_its_twin(subtests):
    for skip in ["add", "concat"]:
        with subtests.test(skip=skip):
            torch.manual_seed(0)
            block = LinkBlock(STEP, STYLE, skip=skip)
            x, target = block_inputs()
            y = torch.relu(F.conv2d(x, block.reduce[0].weight, block.reduce[0].bias))
            assert y.shape[1] == 2, "a quarter"
            up = block.up.layer
            y = torch.relu(F.conv_transpose2d(y, up.weight, up.bias, stride=2, padding=1, output_padding=1))
            y = torch.relu(F.conv2d(y, block.expand[0].weight, block.expand[0].bias))
            if skip == "add":
                y = y + F.conv2d(target, block.join.project.weight, block.join.project.bias)
            else:
                y = torch.relu(
                    F.conv2d(torch.cat([y, target], 1), block.merge[0].weight, block.merge[0].bias)
                )
            torch.testing.assert_close(block(x, target), y)


def test_halves_block_against_its_twin():
    torch.manual_seed(0)
    block = HalvesBlock(STEP, STYLE)
    x, target = block_inputs()
    up = block.up.layer
    half = F.conv_transpose2d(x, up.weight, up.bias, stride=2)
    other = F.conv2d(target, block.project.weight, block.project.bias)
    assert half.shape[1] == other.shape[1] == 3
    torch.testing.assert_close(block(x, target), torch.relu(torch.cat([half, other], 1)))


def test_added_skip_of_the_same_width_is_added_as_it_is():
    block = LinkBlock(Step(1, 2, 8, 6, 6), STYLE, skip="add")
    assert weights(block.join) == 0


# Layers


def test_groups_divide_the_channels(subtests):
    for channels, groups in [
        (1, 1),
        (2, 1),
        (6, 3),
        (32, 16),
        (48, 24),
        (64, 32),
        (37, 1),
        (100, 25),
        (512, 32),
    ]:
        with subtests.test(channels=channels, groups=groups):
            assert num_groups(channels) == groups
            assert norm_layer("group", channels).num_groups == groups


def test_words_of_the_configuration_are_in_the_tables():
    fields = ModelConfig.model_fields
    assert set(NORMS) == set(fields["norm"].annotation.__args__)
    assert set(ACTIVATIONS) == set(fields["activation"].annotation.__args__)
    assert set(CENTERS) == set(fields["center"].annotation.__args__)
    assert set(BODIES) == set(fields["block"].annotation.__args__)


def test_up_convolution_enlarges_exactly(subtests):
    for kernel_size, ratio in itertools.product([2, 3, 4], [1, 2, 3, 4, 5, 7]):
        with subtests.test(kernel_size=kernel_size, ratio=ratio):
            layer = up_convolution(2, 3, ratio=ratio, kernel_size=kernel_size)
            initialise(layer)
            assert layer(torch.rand(1, 2, 5, 1)).shape == (1, 3, 5 * ratio, ratio)


def test_up_convolution_leaves_no_pixel_out():
    for ratio, kernel_size in [(2, 2), (2, 3), (2, 4), (3, 2), (4, 2), (7, 3)]:
        layer = up_convolution(1, 1, ratio=ratio, kernel_size=kernel_size)
        nn.init.ones_(layer.weight)
        nn.init.zeros_(layer.bias)
        assert (layer(torch.ones(1, 1, 3, 4)) > 0).all(), (ratio, kernel_size)


def test_first_weights_keep_the_variance():
    torch.manual_seed(0)
    x = torch.randn(4, 64, 16, 16)
    for layer in (
        nn.Conv2d(64, 64, 3, padding=1),
        nn.Conv2d(64, 64, 3, padding=1, groups=8),
        nn.ConvTranspose2d(64, 64, 2, stride=2),
        nn.ConvTranspose2d(64, 64, 4, stride=2, padding=1),
    ):
        initialise(layer)
        assert layer(x).square().mean().item() == pytest.approx(2, rel=0.15)  # a ReLU halves it
        assert (layer.bias == 0).all()


def test_resizing_to_the_same_size_is_nothing():
    features = torch.rand(1, 2, 3, 4)
    assert resize_to(features, torch.Size((3, 4))) is features
    assert resize_to(features, torch.Size((6, 8)), mode="nearest")[0, 0, 1, 1] == features[0, 0, 0, 0]


# A traced network serves sizes that it has not seen


class Net(nn.Module):
    """A small encoder, a decoder of the house, a head."""

    def __init__(self, name, **options):
        super().__init__()
        torch.manual_seed(0)
        widths = (1, 12, 16, 24)
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(a, b, 3, 2, 1), nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, b, 3, 1, 1), nn.ReLU()
            )
            for a, b in pairwise(widths)
        )
        self.decoder = build_decoder(config(name, **options), widths, STRIDES)
        self.head = nn.Conv2d(self.decoder.out_channels, 1, 1)

    def forward(self, image):
        features = [image]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return self.head(self.decoder(features)[0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("house_unet", {"attention": "scse", "upsample": "transposed", "norm": "group", "center": "conv"}),
        ("house_unet", {"center": "ema", "hypercolumns": True}),
        ("classical_unet", {}),
        ("fastai_unet", {"center": "fpa", "hypercolumns": True}),
        ("hyperkernel_unetpp", {}),
        ("linknet_concat", {"center": "dilated"}),
        ("tgs_hyper_unet", {}),
        ("transposed_unet", {"attention": "scse_each"}),
        ("cloud_unet", {"attention": "scse_max"}),
        ("albunet", {}),
    ],
)
def test_openvino_agrees_with_torch(name, options):
    """Traced at 2x2 deepest pixels and used at 3x5, where pooling rounds up."""
    pytest.importorskip("openvino")
    openvino = import_openvino()
    net = Net(name, **options)
    net(torch.rand(4, 1, 24, 40))  # its norms have seen something
    net.eval()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        traced = openvino.convert_model(net, example_input=torch.zeros(1, 1, 16, 16), input=[-1, 1, -1, -1])
    traced.reshape([3, 1, 24, 40])
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    image = torch.rand(3, 1, 24, 40)
    found = openvino_core(openvino).compile_model(traced, "CPU", options)(image.numpy())[0]
    with torch.inference_mode():
        torch.testing.assert_close(torch.from_numpy(found), net(image), rtol=1e-3, atol=1e-4)
