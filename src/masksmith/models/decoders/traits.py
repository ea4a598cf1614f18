"""Our own decoders and the options of each. Imports no torch."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Traits:
    """The options of an architecture.

    Attributes:
        decoder_channels: "levels": one number for each encoder level, deepest first; "one": a single width.
        options: Names of ModelConfig's fields that the decoder obeys. What the model does around any decoder is not
            listed: ``encoder_norm``, ``stem``, ``encoder_attention``, ``dropout`` before the head, ``image_head``,
            ``scalars``, ``gradient_checkpointing``.
        depths: Values of ``encoder_depth`` that work.
        describes: One sentence for people.
        source: Paper or published code.
        divisor: Of a net with an encoder of its own: what the sides of the canvas must be multiples of. None: it takes
            any encoder, whose strides say that.
        stacks_scalars: Whether ``scalars`` are stacked onto the deepest map as they are; False: and mixed into it.
        head_kernel: Side of the last convolution's kernel.
    """

    decoder_channels: Literal["levels", "one"]
    options: frozenset[str]
    depths: range
    describes: str
    source: str
    divisor: int | None = None
    stacks_scalars: bool = False
    head_kernel: int = 1

    @property
    def has_own_encoder(self) -> bool:
        """Whether it is a whole net, which takes no encoder by name."""
        return self.divisor is not None


_DEPTHS = range(3, 6)
_EVERYWHERE = {"norm", "deep_supervision"}

HOUSE_ARCHITECTURES: dict[str, Traits] = {
    "house_unet": Traits(
        decoder_channels="levels",
        options=frozenset(
            _EVERYWHERE
            | {
                "block",
                "upsample",
                "skip",
                "activation",
                "attention",
                "center",
                "hypercolumns",
            }  # all there are
        ),
        depths=_DEPTHS,
        describes=(
            "U-Net decoder with every option: nearest (default), bilinear or 4x4 transposed upsampling, skips stacked "
            "or added, two convolutions or residual blocks, scSE, a centre, hypercolumns"
        ),
        source="Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597, with the changes of TernausNet and others",
    ),
    "classical_unet": Traits(
        decoder_channels="levels",
        options=frozenset(_EVERYWHERE | {"upsample", "activation", "attention", "center", "hypercolumns"}),
        depths=_DEPTHS,
        describes=(
            "the classical decoder: 2x2 up-convolution, the skip stacked, two 3x3 convolutions a level, with padding; "
            "published with norm: none"
        ),
        source="Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597",
    ),
    "fastai_unet": Traits(
        decoder_channels="levels",
        options=frozenset(_EVERYWHERE | {"activation", "attention", "center", "hypercolumns"}),
        depths=_DEPTHS,
        describes=(
            "half of each level's channels from a 2x2 transposed convolution, half from a 1x1 convolution of the skip, "
            "stacked, normalised, activated (TGS Salt's first place has this block too: tgs_hyper_unet)"
        ),
        source="the U-Net of fast.ai 0.7, https://github.com/fastai/fastai1",
    ),
    "tgs_hyper_unet": Traits(
        decoder_channels="one",
        options=frozenset(_EVERYWHERE),
        depths=_DEPTHS,
        describes=(
            "TGS Salt's first place, resnet34pad_128: feature pyramid attention, blocks of halves with scSE for all "
            "maps but the stem's, hypercolumns, dropout 0.4, a 3x3 convolution; published width 64, with encoder "
            "resnet34, stem conv3x3_stride1 and encoder_attention scse_inside at encoder_depth 5"
        ),
        source="Babakhin et al. 2019, https://arxiv.org/abs/1904.04445",
    ),
    "transposed_unet": Traits(
        decoder_channels="levels",
        options=frozenset(_EVERYWHERE | {"activation", "attention", "center", "hypercolumns"}),
        depths=_DEPTHS,
        describes=(
            "4x4 transposed convolution, normalised and activated, the skip stacked, one 3x3 convolution; batch norm "
            "and first weights are Keras's; the ResNeXt50 of TGS Salt's first place with attention: scse_each and "
            "widths 128, 64, 32, 16, 8"
        ),
        source="segmentation_models for Keras, https://github.com/qubvel/segmentation_models; https://arxiv.org/abs/1904.04445",
    ),
    "cloud_unet": Traits(
        decoder_channels="levels",
        options=frozenset(
            _EVERYWHERE
            | {"activation", "attention", "center", "hypercolumns", "upsample:nearest", "upsample:bilinear"}
        ),
        depths=_DEPTHS,
        describes=(
            "nearest enlargement, a 3x3 convolution, the skip stacked, another one; published with norm: none (On "
            "Cloud N's third place; with attention: scse_max the scSE U-Net of SIIM-ACR's first)"
        ),
        source=(
            "https://github.com/drivendataorg/cloud-cover-winners; selim_sef's zoo, "
            "https://github.com/SpaceNetChallenge/SpaceNet_Off_Nadir_Solutions"
        ),
    ),
    "albunet": Traits(
        decoder_channels="one",
        options=frozenset(_EVERYWHERE | {"activation", "upsample:bilinear", "upsample:transposed"}),
        depths=_DEPTHS,
        describes=(
            "AlbuNet: pooling below the deepest map, blocks that enlarge a stack and convolve it, bilinear (default) "
            "or 4x4 transposed; published width 32 with norm: none"
        ),
        source="Shvets et al. 2018, https://arxiv.org/abs/1803.01207",
    ),
    "emanet": Traits(
        decoder_channels="one",
        options=frozenset({"norm", "activation", "output_stride"}),
        depths=_DEPTHS,
        describes=(
            "EMANet: expectation-maximisation attention on the deepest map, dilated to stride 8; published width 256"
        ),
        source="Li et al. 2019, https://arxiv.org/abs/1907.13426",
    ),
    "hyperkernel_unetpp": Traits(
        decoder_channels="levels",
        options=frozenset(_EVERYWHERE),
        depths=_DEPTHS,
        describes=(
            "simplified U-Net++: every decoder map also goes by transposed convolutions to all finer levels "
            "(hyperkernel paths); residual blocks, leaky ReLU of slope 0.1, dropout inside; padding, batch norm and "
            "first weights are Keras's"
        ),
        source="SIIM-ACR Pneumothorax, G. Balezo's report; https://arxiv.org/abs/1807.10165",
    ),
    "linknet_add": Traits(
        decoder_channels="levels",
        options=frozenset(_EVERYWHERE | {"upsample", "activation", "attention", "center", "hypercolumns"}),
        depths=_DEPTHS,
        describes=(
            "LinkNet: 1x1 to a quarter, 3x3 transposed convolution, 1x1, the skip added (through a 1x1 convolution "
            "where its width differs); D-LinkNet with center: dilated"
        ),
        source="Chaurasia and Culurciello 2017, https://arxiv.org/abs/1707.03718",
    ),
    "linknet_concat": Traits(
        decoder_channels="levels",
        options=frozenset(_EVERYWHERE | {"upsample", "activation", "attention", "center", "hypercolumns"}),
        depths=_DEPTHS,
        describes="LinkNet whose additions are replaced by stacking and a 1x1 convolution",
        source="https://arxiv.org/abs/1707.03718 with the change of Kaggle winners",
    ),
}
"""Our own decoders by the name that ``model.architecture`` takes."""
