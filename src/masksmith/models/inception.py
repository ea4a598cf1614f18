"""Inception v3 as an encoder: timm's layers, padded so that each map has half the side of the one before.

Inception v3 was published without padding, and its maps have odd sides that no decoder can join. segmentation-models-
pytorch pads the convolutions and poolings of its ``inceptionv4`` and ``inceptionresnetv2``, and has no Inception v3;
this is the same for timm's. The names and shapes of the weights stay timm's, which are torchvision's.

Source: Szegedy et al. 2015, https://arxiv.org/abs/1512.00567; the layers are timm's
(https://github.com/huggingface/pytorch-image-models, Apache-2.0).
"""

from typing import Any

import timm
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

_LEVELS = (
    (64, ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3")),
    (192, ("Pool1", "Conv2d_3b_1x1", "Conv2d_4a_3x3")),
    (288, ("Pool2", "Mixed_5b", "Mixed_5c", "Mixed_5d")),
    (768, ("Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e")),
    (2048, ("Mixed_7a", "Mixed_7b", "Mixed_7c")),
)
"""Channels of each map, and the layers that lead to it from the one before."""
_HALVING = ("Mixed_6a", "Mixed_7a")  # their pooling is no layer: they are given a border of zeros


class InceptionV3(nn.Module):
    """Inception v3 that gives maps at strides 2, 4, 8, 16 and 32; layers behind the deepest one are left out.

    Args:
        name: timm's name, with or without the tag of its weights.
        in_channels: Channels of the images.
        depth: Number of maps, 3 to 5.

    Attributes:
        out_channels: Channels of each map, the image's first.
    """

    def __init__(self, name: str, *, in_channels: int, depth: int) -> None:
        super().__init__()
        net: Any = timm.create_model(name, pretrained=False, in_chans=in_channels, num_classes=0)
        self.levels = [layers for _, layers in _LEVELS[:depth]]
        self.model = nn.ModuleDict({layer: getattr(net, layer) for layers in self.levels for layer in layers})
        self.out_channels = [in_channels, *(width for width, _ in _LEVELS[:depth])]
        for layer in self.model:
            module: Any = self.model[layer]
            if isinstance(module, nn.MaxPool2d):
                module.padding = (1, 1)
            elif layer.startswith("Conv2d") and module.conv.kernel_size == (3, 3):
                module.conv.padding = (1, 1)

    def forward(self, image: Float[Tensor, "b c h w"]) -> list[Tensor]:
        """Return the image and its maps, finest first.

        Args:
            image: Normalised images; height and width are multiples of the deepest map's stride.
        """
        maps = [image]
        features = image
        for layers in self.levels:
            for layer in layers:
                if layer in _HALVING:
                    features = F.pad(features, (1, 1, 1, 1))
                features = self.model[layer](features)
            maps.append(features)
        return maps
