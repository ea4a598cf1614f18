"""Maps from within the blocks of an EfficientNet, as Keras nets tap it.

The inverted residual blocks widen a map by a 1x1 convolution before they halve its size. That wide, activated map is
what nets on Keras's EfficientNets usually join to their decoder (``block6a_expand_activation`` and its like), where
PyTorch nets take the narrow map between two stages.

Sources:
    EfficientNet: Tan and Le 2019, https://arxiv.org/abs/1905.11946; the layers are timm's
    (https://github.com/huggingface/pytorch-image-models, Apache-2.0). The taps: segmentation_models for Keras,
    https://github.com/qubvel/segmentation_models, and G. Balezo's simplified U-Net++ for SIIM-ACR,
    https://github.com/GuillaumeBalezo/Pneumothorax-Segmentation.
"""

from collections.abc import Iterator
from typing import Any

import timm
from torch import Tensor, nn

from masksmith.core.errors import InputError

_TAPPED = 4  # blocks that halve the size, behind the stem
_BEHIND = ("conv_dw", "bn2", "aa", "se", "conv_pwl", "bn3")  # of an inverted residual, behind its expansion


class ExpandedTaps(nn.Module):
    """An EfficientNet that gives the expanded maps of the blocks that halve its size.

    Layers behind the deepest map are left out. Where the deepest map is the fifth, it is the one before the classifier.

    Args:
        name: timm's name of an EfficientNet.
        in_channels: Channels of the images.
        depth: Number of maps, 3 to 5; their strides are 2, 4, 8, 16 and 32.

    Attributes:
        out_channels: Channels of each map, the image's first.

    Raises:
        InputError: The encoder has no such blocks.
    """

    def __init__(self, name: str, *, in_channels: int, depth: int) -> None:
        super().__init__()
        net: Any = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=0)
        halving = list(_halving_blocks(net))
        if len(halving) < _TAPPED:
            raise InputError(
                f"model.encoder_taps: 'expanded' is not supported by {name!r}, which has {len(halving)} blocks that "
                f"widen a map before they halve it; expected {_TAPPED}, as in tf_efficientnet_b0 … b7, or 'own'"
            )
        self.model = net
        self.depth = depth
        self.tapped = halving[: min(depth, _TAPPED)]
        widths = [net.blocks[stage][at].conv_pw.out_channels for stage, at in self.tapped]
        self.out_channels = [in_channels, *widths] + [net.conv_head.out_channels] * (depth > _TAPPED)
        net.global_pool, net.classifier = nn.Identity(), nn.Identity()
        if depth <= _TAPPED:
            self._cut()

    def _cut(self) -> None:
        """Leave out the layers behind the deepest tap."""
        net: Any = self.model
        stage, at = self.tapped[-1]
        for name in _BEHIND:
            setattr(net.blocks[stage][at], name, nn.Identity())
        net.blocks[stage] = net.blocks[stage][: at + 1]
        net.blocks = net.blocks[: stage + 1]
        net.conv_head, net.bn2 = nn.Identity(), nn.Identity()

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the image (b, c, h, w) and its maps, finest first.

        Args:
            image: Normalised images; height and width are multiples of the deepest map's stride.
        """
        net: Any = self.model
        maps = [image]
        features = net.bn1(net.conv_stem(image))  # the norms of timm's blocks activate too
        for stage, blocks in enumerate(net.blocks):
            for at, block in enumerate(blocks):
                if (stage, at) not in self.tapped:
                    features = block(features)
                    continue
                features = block.bn1(block.conv_pw(features))
                maps.append(features)
                if len(maps) > self.depth:
                    return maps
                for name in _BEHIND:  # a block that halves the size has no shortcut
                    features = getattr(block, name)(features)
        return [*maps, net.bn2(net.conv_head(features))]


def _halving_blocks(net: Any) -> Iterator[tuple[int, int]]:  # noqa: ANN401
    """Yield stage and place of the inverted residual blocks that halve the size."""
    for stage, blocks in enumerate(getattr(net, "blocks", ())):
        for at, block in enumerate(blocks):
            widens = hasattr(block, "conv_pw") and hasattr(block, "conv_pwl")
            if widens and block.conv_dw.stride[0] == 2:
                yield stage, at
