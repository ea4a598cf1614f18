"""The nets with an encoder of their own, and their options. Imports no torch.

Sources: the kernels of https://www.kaggle.com/c/tgs-salt-identification-challenge, as two documents describe them: a
starter kernel of transforms on the "U-Net with depth", and A. Kalapahar's capstone report (its code and its diagram).
"""

from functools import partial

from masksmith.models.decoders.traits import Traits

_own = partial(Traits, decoder_channels="one", options=frozenset(), depths=range(4, 5))
_CONTEST = "https://www.kaggle.com/c/tgs-salt-identification-challenge"

OWN_NETS: dict[str, Traits] = {
    "tgs_depth_unet": _own(
        describes=(
            "U-Net with depth: two 3x3 convolutions a level, each scalar repeated over the bottleneck's grid and "
            "stacked onto the pooled map; own encoder; published width 8"
        ),
        source=f"the kernel 'U-Net with depth' of TGS Salt, {_CONTEST}",
        divisor=16,
        stacks_scalars=True,
    ),
    "tgs_model1": _own(
        describes=(
            "plain U-Net with dropout of 0.25 and 0.5 after pooling and 0.5 after each join; own encoder; published "
            "width 16"
        ),
        source=f"Model 1 of A. Kalapahar's report on TGS Salt, {_CONTEST}",
        divisor=16,
    ),
    "tgs_model2": _own(
        describes=(
            "U-Net of pre-activated residual blocks with dropout, for images of any size from 16 pixels on, odd ones "
            "too; own encoder; published width 16"
        ),
        source=f"Model 2 of A. Kalapahar's report on TGS Salt, {_CONTEST}",
        divisor=1,
    ),
    "tgs_baseline_cnn": _own(
        describes=(
            "four 3x3 convolutions at full size, nothing else: our guess at 'a basic CNN', the benchmark of TGS Salt; "
            "width 16 is a guess too; encoder_depth stays at 4, though nothing is halved"
        ),
        source=f"the benchmark of A. Kalapahar's report on TGS Salt, {_CONTEST}",
        divisor=1,
    ),
    "tiny_diagram_unet": _own(
        describes=(
            "U-Net of three convolutions a level, joined with the pooled maps before each transposed convolution; own "
            "encoder; published width 3"
        ),
        source=f"the diagram in A. Kalapahar's report on TGS Salt, {_CONTEST}",
        divisor=16,
        head_kernel=3,
    ),
}
"""Nets with an encoder of their own by the name that ``model.architecture`` takes; they need ``encoder: own``."""
