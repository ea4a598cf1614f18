"""The whole nets of the TGS Salt kernels against their sources: counts, sizes, and twins written straight down."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from masksmith.core.errors import InputError
from masksmith.models.architectures import ARCHITECTURES
from masksmith.models.config import ModelConfig
from masksmith.models.encoders import normalisation, settle_encoder
from masksmith.models.published import OWN_NETS
from masksmith.models.published.build import NETS
from masksmith.models.segmentation import build_model, size_trace
from tests.models.nets import assert_drawn_as_in_keras, bring_to_life, keras_norm, keras_up, ramp

NAMES = sorted(OWN_NETS)


def make(name, width, *, in_channels=1, seed=0, **changes):
    config = ModelConfig(
        architecture=name, encoder="own", encoder_weights="none", decoder_channels=[width], **changes
    )
    return build_model(config, in_channels=in_channels, seed=seed)


def test_every_net_is_built():
    assert set(NETS) == set(OWN_NETS)
    assert {name for name, traits in ARCHITECTURES.items() if traits.has_own_encoder} == set(OWN_NETS)


# counts and sizes


def test_weights(subtests):
    for name, width, weights, statistics in [
        ("tgs_model1", 16, 2_158_417, 0),
        ("tgs_model1", 8, 540_073, 0),
        ("tgs_model2", 16, 5_112_497, 7_360),
        ("tiny_diagram_unet", 3, 83_206, 0),
        ("tgs_baseline_cnn", 16, 7_137, 0),
    ]:
        with subtests.test(name=name, width=width, weights=weights, statistics=statistics):
            model = make(name, width)
            assert sum(weight.numel() for weight in model.parameters()) == weights
            running = [value.numel() for key, value in model.named_buffers() if "running" in key]
            assert sum(running) == statistics


def test_a_stacked_scalar_costs_the_bottlenecks_first_convolution_alone(subtests):
    for scalars, more in [([], 0), (["z"], 1), (["z", "year"], 2)]:
        with subtests.test(scalars=scalars, more=more):
            weights = sum(
                weight.numel() for weight in make("tgs_depth_unet", 8, scalars=scalars).parameters()
            )
            assert weights == 485_673 + more * 9 * 128


def test_size_trace(subtests):
    for name, width, side, sizes, channels in [
        ("tgs_depth_unet", 8, 128, [128, 64, 32, 16, 8, 8, 16, 32, 64, 128, 128], [8, 16, 32, 64, 64, 128]),
        ("tgs_model1", 16, 128, [128, 64, 32, 16, 8, 16, 32, 64, 128, 128], [16, 32, 64, 128, 256, 128]),
        ("tgs_model2", 16, 101, [101, 50, 25, 12, 6, 12, 25, 50, 101, 101], [16, 32, 64, 128, 256, 128]),
        ("tgs_model2", 16, 128, [128, 64, 32, 16, 8, 16, 32, 64, 128, 128], [16, 32, 64, 128, 256, 128]),
        ("tgs_model2", 16, 31, [31, 15, 7, 3, 1, 3, 7, 15, 31, 31], [16, 32, 64, 128, 256, 128]),
        ("tiny_diagram_unet", 3, 128, [64, 32, 16, 8, 8, 16, 32, 64, 128, 128], [3, 6, 12, 24, 24, 12]),
        ("tgs_baseline_cnn", 16, 101, [101, 101, 101], [16, 16, 1]),
    ]:
        with subtests.test(name=name, width=width, side=side, channels=channels):
            trace = size_trace(make(name, width), in_channels=1, hw=(side, side))[1:]
            assert [line.hw for line in trace] == [(one, one) for one in sizes]
            assert [line.channels for line in trace][: len(channels)] == channels


def test_model2_takes_any_size(subtests):
    for hw in [(16, 16), (17, 101), (101, 64), (33, 50)]:
        with subtests.test(hw=hw), torch.no_grad():
            assert make("tgs_model2", 4).eval()(torch.zeros(1, 1, *hw)).mask_logits.shape == (1, 1, *hw)


def test_an_image_of_which_nothing_would_be_left_is_refused():
    with pytest.raises(
        InputError, match=r"size: images of 15x40 .* halves them 4 times; expected at least 16x16"
    ):
        make("tgs_model2", 4)(torch.zeros(2, 1, 15, 40))


# twins: the sources' code line for line, on the model's own weights


class Weights:
    """Hands out convolutions and norms in the order of the source's code."""

    def __init__(self, model):
        order = (model.encoder, model.decoder, model.head)
        layers = [layer for part in order for layer in part.modules()]
        self.convs = iter([one for one in layers if isinstance(one, nn.Conv2d | nn.ConvTranspose2d)])
        self.norms = iter([one for one in layers if isinstance(one, nn.BatchNorm2d)])

    def conv(self, features, *, relu=True):
        layer = next(self.convs)
        side = layer.kernel_size[0]
        features = F.conv2d(features, layer.weight, layer.bias, padding=side // 2)
        return F.relu(features) if relu else features

    def norm(self, features):
        return F.relu(keras_norm(next(self.norms), features))

    def up(self, features, size):
        return keras_up(next(self.convs), features, (size, size))

    def residual(self, features):
        inner = self.conv(self.norm(features), relu=False)
        return self.conv(self.norm(inner), relu=False) + features

    def level(self, features):
        return self.norm(self.residual(self.residual(self.conv(features, relu=False))))


def pool(features):
    return F.max_pool2d(features, 2)


def stack(*maps):
    return torch.cat(maps, 1)


def twin_of_depth(layers, image, scalar):
    c1 = layers.conv(layers.conv(image))
    c2 = layers.conv(layers.conv(pool(c1)))
    c3 = layers.conv(layers.conv(pool(c2)))
    c4 = layers.conv(layers.conv(pool(c3)))
    p4 = pool(c4)
    repeated = scalar[:, :, None, None].repeat(1, 1, *p4.shape[-2:])
    deep = layers.conv(layers.conv(stack(p4, repeated)))
    for skip in (c4, c3, c2, c1):
        deep = layers.conv(layers.conv(stack(layers.up(deep, skip.shape[-1]), skip)))
    return layers.conv(deep, relu=False)


def twin_of_model1(layers, image):
    c1 = layers.conv(layers.conv(image))
    c2 = layers.conv(layers.conv(pool(c1)))
    c3 = layers.conv(layers.conv(pool(c2)))
    c4 = layers.conv(layers.conv(pool(c3)))
    deep = layers.conv(layers.conv(pool(c4)))
    for skip in (c4, c3, c2, c1):
        deep = layers.conv(layers.conv(stack(layers.up(deep, skip.shape[-1]), skip)))
    return layers.conv(deep, relu=False)


def twin_of_model2(layers, image):
    c1 = layers.level(image)
    c2 = layers.level(pool(c1))
    c3 = layers.level(pool(c2))
    c4 = layers.level(pool(c3))
    deep = layers.level(pool(c4))
    for skip in (c4, c3, c2, c1):
        deep = layers.level(stack(layers.up(deep, skip.shape[-1]), skip))
    return layers.conv(deep, relu=False)


def twin_of_diagram(layers, image):
    pooled = []
    level = image
    for _ in range(4):
        level = pool(layers.conv(layers.conv(layers.conv(level))))
        pooled.append(level)
    deep = layers.conv(layers.conv(layers.conv(level)))
    for skip in reversed(pooled):
        deep = F.relu(layers.up(stack(deep, skip), 2 * deep.shape[-1]))
        deep = layers.conv(layers.conv(deep))
    return layers.conv(deep, relu=False)


def twin_of_baseline(layers, image):
    for _ in range(4):
        image = layers.conv(image)
    return layers.conv(image, relu=False)


@pytest.mark.parametrize(
    ("name", "twin", "side"),
    [
        ("tgs_model1", twin_of_model1, 32),
        ("tgs_model2", twin_of_model2, 32),
        ("tgs_model2", twin_of_model2, 37),  # 37, 18, 9, 4, 2: doubled, and one more
        ("tiny_diagram_unet", twin_of_diagram, 32),
        ("tgs_baseline_cnn", twin_of_baseline, 19),
    ],
)
@torch.no_grad()
def test_it_is_its_source_to_the_layer(name, twin, side):
    model, image = bring_to_life(make(name, 4)), ramp(1, side, side)
    layers = Weights(model)
    expected = twin(layers, image)
    assert next(layers.convs, None) is next(layers.norms, None) is None  # none left over
    torch.testing.assert_close(model(image).mask_logits, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_depth_is_stacked_onto_the_pooled_map_standardised():
    model = bring_to_life(make("tgs_depth_unet", 4, scalars=["z"]))
    model.set_scalar_statistics(np.array([[100.0], [500.0]], np.float32))
    layers = Weights(model)
    expected = twin_of_depth(layers, ramp(1, 32, 32), torch.tensor([[(600.0 - 300) / 200]]))
    found = model(ramp(1, 32, 32), torch.tensor([[600.0]])).mask_logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


# dropout, first weights, what comes in


def test_where_dropout_is():
    dropped = {
        name: [one.p for one in make(name, 4).modules() if isinstance(one, nn.Dropout) and one.p]
        for name in NAMES
    }
    tgs = [0.25, 0.5, 0.5, 0.5] + [0.5] * 4  # after each pooling, after each join
    assert dropped["tgs_model1"] == dropped["tgs_model2"] == tgs
    assert dropped["tgs_depth_unet"] == dropped["tgs_baseline_cnn"] == dropped["tiny_diagram_unet"] == []


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_dropout_acts_in_training_alone(name):
    model, image = make(name, 4), ramp(1, 32, 32).repeat(2, 1, 1, 1)
    torch.manual_seed(0)
    drops = name in ("tgs_model1", "tgs_model2")
    assert torch.equal(model(image).mask_logits, model(image).mask_logits) != drops
    model.eval()
    assert torch.equal(model(image).mask_logits, model(image).mask_logits)


def test_gradients_reach_every_weight(subtests):
    for name in NAMES:
        with subtests.test(name=name):
            scalars = ["z"] if name == "tgs_depth_unet" else []
            model = bring_to_life(make(name, 4, scalars=scalars)).train()
            torch.manual_seed(0)
            inputs = (torch.rand(4, 1, 48, 48), *([torch.ones(4, 1)] if scalars else []))
            model(*inputs).mask_logits.square().mean().backward()
            assert [key for key, weight in model.named_parameters() if not weight.grad.any()] == []


def test_weights_begin_as_in_keras(subtests):
    for name in NAMES:
        with subtests.test(name=name):
            model = make(name, 8)
            assert all(
                one.bias is not None
                for one in model.modules()
                if isinstance(one, nn.Conv2d | nn.ConvTranspose2d)
            )
            assert_drawn_as_in_keras(model)


def test_images_are_taken_as_they_are():
    mean, std = normalisation(3, pretrained=False, encoder="own")
    assert mean.flatten().tolist() == [0.0] * 3
    assert std.flatten().tolist() == [1.0] * 3
    assert not make("tgs_model1", 4).mean.any()


def test_an_image_head_sees_the_deepest_map(subtests):
    for name, pooling in itertools.product(NAMES, ["avg", "gem"]):
        with subtests.test(name=name, pooling=pooling):
            scalars = ["z", "year"] if name == "tgs_depth_unet" else []
            model = make(name, 4, image_head=pooling, scalars=scalars, encoder_attention="scse", dropout=0.1)
            inputs = (torch.rand(2, 1, 32, 32), *([torch.ones(2, 2)] if scalars else []))
            output = model(*inputs)
            assert output.image_logits.shape == (2, 1)
            assert model.image_head[1].in_features == model.features(*inputs)[-1].shape[1]


# what is refused


def test_its_own_encoder_is_settled_without_a_library():
    for weights in ("auto", "none"):
        assert settle_encoder("own", weights)[:2] == ("own", "none")


def test_what_does_not_fit_a_whole_net(subtests):
    for changes, message in [
        ({"encoder": "auto"}, "encoder: 'auto' does not fit architecture 'tgs_model1', .* expected 'own'"),
        ({"encoder": "resnet18"}, "encoder: 'resnet18' does not fit architecture 'tgs_model1'"),
        (
            {"architecture": "unet"},
            "encoder: 'own' does not fit architecture 'unet', which takes any .* tgs_model1",
        ),
        (
            {"encoder_weights": "imagenet"},
            "encoder_weights: 'imagenet' is not supported by architecture 'tgs_model1'",
        ),
        ({"encoder_weights": "w.safetensors"}, r"encoder_weights: 'w\.safetensors' is not supported"),
        ({"encoder_norm": "group"}, "encoder_norm: 'group' is not supported by architecture 'tgs_model1'"),
        ({"stem": "conv3x3"}, "stem: 'conv3x3' is not supported by architecture 'tgs_model1'"),
        ({"norm": "group"}, "norm: 'group' is not supported by architecture 'tgs_model1'"),
        ({"encoder_depth": 5}, "encoder_depth: 5 does not fit architecture 'tgs_model1'"),
        ({"decoder_channels": [16, 8]}, "2 values, but architecture 'tgs_model1' has one width"),
    ]:
        with subtests.test(changes=changes, message=message):
            values = {"architecture": "tgs_model1", "encoder": "own", "decoder_channels": [16]}
            with pytest.raises(ValueError, match=message):
                ModelConfig(**(values | changes))
