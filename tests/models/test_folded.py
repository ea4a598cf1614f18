"""Decoder blocks that convolve before they enlarge, and decoders that stop early."""

import pytest
import torch
from pydantic import ValidationError
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoderBlock
from segmentation_models_pytorch.decoders.unetplusplus.decoder import DecoderBlock
from torch import nn

from masksmith.models.config import ModelConfig
from masksmith.models.folded import FoldedNestedBlock, FoldedUnetBlock, fold_enlarging
from masksmith.models.segmentation import build_model


def grads_of(block, *inputs):
    found = block(*inputs)
    maps = [one for one in inputs if isinstance(one, torch.Tensor)]
    weights = [block.conv1[0].weight, block.conv2[0].weight]
    return found, torch.autograd.grad(found.square().sum(), [*maps, *weights])


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize("kind", [UnetDecoderBlock, DecoderBlock])
def test_a_folded_block_gives_the_same_numbers(kind, skip):
    torch.manual_seed(0)
    block = kind(6, 4 if skip else 0, 5)
    small = torch.randn(2, 6, 3, 7, requires_grad=True)
    joined = [torch.randn(2, 4, 6, 14, requires_grad=True)] if skip else []
    inputs = (small, 6, 14, *joined) if kind is UnetDecoderBlock else (small, *joined)
    expected, expected_grads = grads_of(block, *inputs)
    names = list(block.state_dict())
    assert fold_enlarging(block) == 1
    assert list(block.state_dict()) == names
    found, grads = grads_of(block, *inputs)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grads, expected_grads, rtol=1e-3, atol=1e-4)


def test_a_map_that_is_not_doubled_is_enlarged_as_before():
    block = UnetDecoderBlock(6, 4, 5).eval()
    small, joined = torch.randn(1, 6, 3, 5), torch.randn(1, 4, 7, 9)
    expected = block(small, 7, 9, joined)
    fold_enlarging(block)
    torch.testing.assert_close(block(small, 7, 9, joined), expected)


def test_which_blocks_are_folded():
    attentive = UnetDecoderBlock(16, 16, 16, attention_type="scse")
    smooth = UnetDecoderBlock(16, 16, 16, interpolation_mode="bilinear")
    empty = DecoderBlock(16, 16, 0)
    assert fold_enlarging(nn.ModuleList([attentive, smooth, empty])) == 0
    for architecture, kind, count in [("unet", FoldedUnetBlock, 4), ("unetplusplus", FoldedNestedBlock, 7)]:
        model = build_model(config(architecture=architecture), in_channels=1, seed=0)
        assert sum(type(module) is kind for module in model.modules()) == count


def config(**changes):
    base = {
        "encoder": "resnet18",
        "encoder_weights": "none",
        "encoder_depth": 4,
        "decoder_channels": [16, 12, 8, 4],
    }
    return ModelConfig(**base | changes)


@pytest.mark.parametrize("left_out", [1, 2])
def test_a_decoder_that_stops_early_gives_logits_of_the_images_size(left_out):
    model = build_model(config(decoder_channels=[16, 12, 8, 4][:-left_out]), in_channels=1, seed=0)
    assert len(model.decoder.blocks) == 4 - left_out
    sizes = []
    model.head.register_forward_hook(lambda _module, _inputs, output: sizes.append(output.shape[2:]))
    assert model(torch.rand(2, 1, 32, 48)).mask_logits.shape == (2, 1, 32, 48)
    assert sizes == [(32 // 2**left_out, 48 // 2**left_out)]


@pytest.mark.parametrize(
    ("architecture", "channels", "message"),
    [
        (
            "unet",
            [16],
            r"1 values for encoder_depth 4; expected one value a level \(the last 2 may be left out\)",
        ),
        ("unet", [16] * 5, "5 values for encoder_depth 4"),
        ("unetplusplus", [16, 12, 8], "3 values for encoder_depth 4; expected one value a level$"),
    ],
)
def test_wrong_numbers_of_levels_are_refused(architecture, channels, message):
    with pytest.raises(ValidationError, match=r"decoder_channels") as caught:
        config(architecture=architecture, decoder_channels=channels)
    assert caught.match(message.removesuffix("$"))
