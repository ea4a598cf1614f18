"""The house's model: normalisation, encoder, decoder, head.

Sources:
    U-Net: Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597
    U-Net++: Zhou et al. 2018, https://arxiv.org/abs/1807.10165
    Decoders: segmentation-models-pytorch (MIT); the head runs in float32 here, because a bfloat16 logit has
    8 bits and the losses sort and sum logits.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import segmentation_models_pytorch as smp
import torch
from jaxtyping import Float
from torch import Tensor, nn

from masksmith.config import look_up
from masksmith.models.config import ModelConfig
from masksmith.models.encoders import check_encoder, load_encoder_weights, normalisation


class Output(NamedTuple):
    """What every model returns; all logits are float32 before any sigmoid."""

    mask_logits: Float[Tensor, "b k h w"]
    image_logits: Float[Tensor, "b k"] | None = None
    aux: tuple[Float[Tensor, "b k ..."], ...] = ()


def _head(in_channels: int) -> nn.Conv2d:
    """Return the last layer: 1x1, as in the published nets; in float32 a 3x3 one costs twice the time."""
    head = nn.Conv2d(in_channels, 1, kernel_size=1)
    nn.init.xavier_uniform_(head.weight)
    nn.init.zeros_(cast(Tensor, head.bias))
    return head


class SegmentationModel(nn.Module):
    """Encoder, decoder and head of a library's model behind the house's interface."""

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, *, mean: Tensor, std: Tensor, divisor: int) -> None:
        super().__init__()
        self.encoder = cast(nn.Module, net.encoder)
        self.decoder = cast(nn.Module, net.decoder)
        self.head = _head(cast(Any, net.segmentation_head)[0].in_channels)
        self.divisor = divisor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def forward(self, image: Float[Tensor, "b c h w"], scalars: Float[Tensor, "b s"] | None = None) -> Output:
        """Return mask logits (b, 1, h, w).

        Args:
            image: Values in 0…1, height and width multiples of ``divisor``.
            scalars: Numbers that go with each image; this model has no use for them and refuses them.

        Raises:
            ValueError: Scalars were given.
        """
        if scalars is not None:
            raise ValueError(f"scalars of shape {tuple(scalars.shape)}: this model takes none")
        features = self.encoder((image - self.mean) / self.std)
        decoded = self.decoder(features)
        with torch.autocast(image.device.type, enabled=False):
            return Output(self.head(decoded.float()))


def _unet(config: ModelConfig, in_channels: int) -> nn.Module:
    return smp.Unet(
        config.encoder,
        encoder_depth=config.encoder_depth,
        encoder_weights=None,
        decoder_channels=config.decoder_channels,
        in_channels=in_channels,
        classes=1,
    )


def _unetplusplus(config: ModelConfig, in_channels: int) -> nn.Module:
    return smp.UnetPlusPlus(
        config.encoder,
        encoder_depth=config.encoder_depth,
        encoder_weights=None,
        decoder_channels=config.decoder_channels,
        in_channels=in_channels,
        classes=1,
    )


MODELS: dict[str, Callable[[ModelConfig, int], nn.Module]] = {
    "unet": _unet,
    "unetplusplus": _unetplusplus,
}


def build_model(
    config: ModelConfig, *, in_channels: int, seed: int, load_weights: bool = True
) -> SegmentationModel:
    """Build a model; its random weights depend on ``seed`` alone.

    Args:
        config: With "auto" settled (see settle_encoder).
        in_channels: Channels of the images.
        seed: Seed of the random weights; the global generator is left as it was.
        load_weights: False skips the pretrained weights (a checkpoint will be loaded).

    Raises:
        InputError: Unknown architecture or encoder, or weights that do not fit.
    """
    builder = look_up(MODELS, config.architecture, where="model.architecture")
    check_encoder(config.encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = builder(config, in_channels)
        mean, std = normalisation(in_channels, pretrained=config.encoder_weights != "none")
        model = SegmentationModel(net, mean=mean, std=std, divisor=2**config.encoder_depth)
    if load_weights:
        load_encoder_weights(
            model.encoder,
            config.encoder_weights,
            encoder_name=config.encoder,
            in_channels=in_channels,
        )
    return model


def to_channels_last(model: SegmentationModel) -> SegmentationModel:
    """Lay the weights out with the channels innermost; the numbers stay the same."""
    move: Any = model.to  # the stubs leave memory_format out
    move(memory_format=torch.channels_last)
    return model


class TraceLine(NamedTuple):
    """One block of a size trace."""

    block: str
    channels: int
    hw: tuple[int, int]


def size_trace(model: SegmentationModel, *, in_channels: int, hw: tuple[int, int]) -> list[TraceLine]:
    """Return channels and size after the input, each encoder stage, each decoder block and the head."""
    lines = [TraceLine("input", in_channels, hw)]
    image = torch.zeros(1, in_channels, *hw)
    hooks = []

    def record(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            lines.append(TraceLine(name, output.shape[1], (output.shape[2], output.shape[3])))

        return hook

    blocks = cast(nn.Module, model.decoder.blocks)
    for name, block in blocks.named_children():
        hooks.append(block.register_forward_hook(record(f"decoder {name}")))
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for depth, feature in enumerate(model.encoder((image - model.mean) / model.std)):
                if depth:
                    lines.append(
                        TraceLine(f"encoder {depth}", feature.shape[1], (feature.shape[2], feature.shape[3]))
                    )
            logits = model(image).mask_logits
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    lines.append(TraceLine("head", logits.shape[1], (logits.shape[2], logits.shape[3])))
    return lines
