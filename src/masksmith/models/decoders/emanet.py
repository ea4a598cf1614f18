"""EMANet: expectation-maximisation attention on a dilated encoder's deepest map.

Sources:
    Li et al. 2019, https://arxiv.org/abs/1907.13426, and their code, https://github.com/XiaLiPKU/EMANet: a 3x3
    convolution to 512, 64 bases, three steps, a 3x3 convolution to 256, dropout 0.1, logits enlarged eightfold. What
    differs: the last of the three steps is differentiated (see ``ExpectationMaximizationAttention``).
"""

from collections.abc import Sequence

from torch import Tensor, nn

from masksmith.models.decoders.centers import MAX_WIDTH, ExpectationMaximizationAttention
from masksmith.models.layers import conv_norm_act, initialise

_DROPOUT = 0.1  # of whole channels, as published


class EmaNetDecoder(nn.Module):
    """The attention (512 channels, or the map's where it has fewer), a 3x3 convolution, dropout of channels.

    The logits are made at the stride of the deepest map, and the model enlarges them to the image's size.

    Args:
        encoder_channels: Channels of each encoder map; the last one alone is used.
        strides: Stride of each map.
        width: Channels of the decoded map; 256 as published.
        norm: "batch", "group" or "none".
        activation: A key of ACTIVATIONS.

    Attributes:
        out_channels: Channels of the decoded map.
        out_stride: Stride of the decoded map: that of the deepest one.
        aux_channels: None.
    """

    aux_channels: tuple[int, ...] = ()

    def __init__(
        self,
        encoder_channels: Sequence[int],
        strides: Sequence[int],
        width: int,
        *,
        norm: str,
        activation: str,
    ) -> None:
        super().__init__()
        inner = min(encoder_channels[-1], MAX_WIDTH)
        self.attention = ExpectationMaximizationAttention(
            encoder_channels[-1], inner, norm=norm, activation=activation
        )
        self.blocks = nn.ModuleList([conv_norm_act(inner, width, norm=norm, activation=activation)])
        self.dropout = nn.Dropout2d(_DROPOUT)
        self.out_channels, self.out_stride = width, strides[-1]
        initialise(self)

    def forward(self, features: list[Tensor]) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the decoded map (b, width, h, w) at the size of the deepest map, and no others.

        Args:
            features: Maps (b, c, h, w) of the encoder, finest first.
        """
        decoded: Tensor = self.dropout(self.blocks[0](self.attention(features[-1])))
        return decoded, ()
