"""masksmith's model: normalisation, encoder, decoder, heads.

Sources:
    Encoders and standard decoders: timm and segmentation-models-pytorch, see backbones.py and library.py; our own
    decoders: the package ``decoders``; whole nets: the package ``published``. The options of each architecture, and
    the papers: architectures.py.
    Deep supervision: Lee et al. 2015, https://arxiv.org/abs/1409.5185. The heads run in float32, because a bfloat16
    logit has 8 bits and the losses sort and sum logits.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from masksmith.core.config import look_up
from masksmith.models.architectures import ARCHITECTURES, LIBRARY_ARCHITECTURES
from masksmith.models.backbones import Backbone, build_backbone
from masksmith.models.checkpointing import checkpoint_blocks
from masksmith.models.config import ModelConfig
from masksmith.models.decoders import HOUSE_ARCHITECTURES
from masksmith.models.decoders.build import build_decoder
from masksmith.models.derived import DERIVED, DERIVED_COUNT
from masksmith.models.encoders import check_encoder, load_encoder_weights, normalisation
from masksmith.models.heads import ScalarJoin, build_image_head
from masksmith.models.layers import SCSE
from masksmith.models.library import build_library_decoder, deep_supervision_blocks
from masksmith.models.published import OWN_NETS
from masksmith.models.published.build import build_own_backbone, build_own_decoder
from masksmith.preprocess.inputs import Statistics


class Output(NamedTuple):
    """What every model returns; all logits are float32 before any sigmoid."""

    mask_logits: Float[Tensor, "b k h w"]
    image_logits: Float[Tensor, "b k"] | None = None
    aux: tuple[Float[Tensor, "b k ..."], ...] = ()
    """Logits of deep supervision, deepest level first, each at the size of its map; in training alone."""


def _head(in_channels: int, classes: int, kernel_size: int = 1) -> nn.Conv2d:
    """Return the last layer: 1x1, as in nearly all published nets; in float32 a 3x3 one costs twice the time."""
    head = nn.Conv2d(in_channels, classes, kernel_size, padding=kernel_size // 2)
    nn.init.xavier_uniform_(head.weight)
    nn.init.zeros_(cast(Tensor, head.bias))
    return head


class SegmentationModel(nn.Module):
    """Encoder, decoder and heads behind one interface.

    Args:
        config: The options; "auto" is settled.
        backbone: Encoder, and what makes a pyramid of its map.
        decoder: From the backbone's maps to one map, or to (map, auxiliary maps).
        classes: Number of masks, and of the image head's logits.
        mean: Mean of the images, (1, c, 1, 1), for values in 0…1; of derived channels too.
        std: Standard deviation of the images, (1, c, 1, 1).
        exclusive: Whether each pixel has one of several classes, so that probabilities are a softmax.

    Attributes:
        exclusive: As given.
        in_channels: Channels of the images; the encoder sees more where ``derived_channels`` makes some.
    """

    mean: Tensor
    std: Tensor
    exclusive: bool = False

    def __init__(
        self,
        config: ModelConfig,
        backbone: Backbone,
        decoder: nn.Module,
        *,
        classes: int,
        mean: Tensor,
        std: Tensor,
        exclusive: bool = False,
    ) -> None:
        super().__init__()
        self.exclusive = exclusive
        self.encoder, self.neck, self.decoder = backbone.encoder, backbone.neck, decoder
        self.derived = config.derived_channels
        self.in_channels = mean.shape[1] if self.derived == "none" else 1
        self.divisor = config.divisor
        from_library = config.architecture in LIBRARY_ARCHITECTURES
        width = config.decoder_channels[-1] if from_library else cast(int, decoder.out_channels)
        traits = ARCHITECTURES[config.architecture]
        self.head = _head(width, classes, traits.head_kernel)
        self.dropout = (
            nn.Dropout2d(config.dropout) if config.dropout else nn.Identity()
        )  # which draws nothing
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        deepest = backbone.channels[-1]
        self.scse: nn.ModuleList | None = None
        self.scalar_join: ScalarJoin | None = None
        self.image_head: nn.Sequential | None = None
        self.aux_heads: nn.ModuleList | None = None
        if config.encoder_attention == "scse":  # "scse_inside" is the encoder's own
            widths = backbone.channels[1:]
            self.scse = nn.ModuleList(SCSE(width) if width else nn.Identity() for width in widths)
        if config.scalars:
            self.scalar_join = ScalarJoin(config.scalars, deepest, stacks=traits.stacks_scalars)
            deepest = _decoder_channels(config, backbone)[-1]
        if config.image_head != "none":
            self.image_head = build_image_head(config.image_head, deepest, classes)
        # a tuple, not a list of modules: they count as parts of the decoder alone
        self._supervised: tuple[nn.Module, ...] = ()
        if config.deep_supervision:
            widths = cast(Sequence[int], decoder.aux_channels) if not from_library else ()
            if from_library:
                blocks, widths = deep_supervision_blocks(config, decoder)
                self._supervised = tuple(blocks)
            self.aux_heads = nn.ModuleList(_head(width, classes) for width in widths)

    @property
    def has_image_head(self) -> bool:
        """Whether ``image_logits`` come out."""
        return self.image_head is not None

    @property
    def classes(self) -> int:
        """Number of masks."""
        return self.head.out_channels

    def target_shape(self, num: int, hw: tuple[int, int]) -> tuple[int, ...]:
        """Return the shape of the targets of ``num`` images: a map each, or layers where several labels overlap."""
        return (num, *hw) if self.exclusive or self.classes == 1 else (num, self.classes, *hw)

    @property
    def num_scalars(self) -> int:
        """Numbers per image (scalars)."""
        return len(self.scalar_join.names) if self.scalar_join is not None else 0

    @property
    def takes_scalars(self) -> bool:
        """Whether ``forward`` wants scalars."""
        return self.num_scalars > 0

    def zero_scalars(self, num: int) -> tuple[Tensor, ...]:
        """Return the scalars that ``forward`` needs with ``num`` images, as zeros, to measure time or memory."""
        return (self.mean.new_zeros(num, self.num_scalars),) if self.takes_scalars else ()

    def set_scalar_statistics(self, values: Float[np.ndarray, "n s"]) -> None:
        """Standardise scalars by the mean and standard deviation of ``values``, those of the training images.

        Raises:
            ValueError: The model takes no scalars.
            InputError: Another number of columns; a column that is not finite, or the same everywhere.
        """
        if self.scalar_join is None:
            raise ValueError(f"scalars of shape {values.shape}: this model takes none")
        self.scalar_join.set_statistics(values)

    def forward(self, image: Float[Tensor, "b c h w"], scalars: Float[Tensor, "b s"] | None = None) -> Output:
        """Return mask logits (b, k, h, w), and what else the model was built with.

        Args:
            image: Values in 0…1, height and width multiples of ``divisor``.
            scalars: Numbers of each image (b, num_scalars), as in the table.

        Raises:
            ValueError: Scalars were given to a model that takes none, or are missing, or as many as it does not take.
        """
        features = self.features(image, scalars)
        decoded, maps = self._decode(features)
        with torch.autocast(image.device.type, enabled=False):
            logits = self.head(self.dropout(decoded.float()))
            if logits.shape[-2:] != image.shape[-2:]:
                logits = F.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)
            image_logits = None if self.image_head is None else self.image_head(features[-1].float())
            aux = tuple(head(one.float()) for head, one in zip(self.aux_heads or (), maps, strict=bool(maps)))
        return Output(logits, image_logits, aux)

    def features(
        self, image: Float[Tensor, "b c h w"], scalars: Float[Tensor, "b s"] | None = None
    ) -> list[Tensor]:
        """Return the maps that the decoder gets, the image's size first.

        Raises:
            ValueError: As forward.
        """
        self._check_scalars(image, scalars)
        planes = image if self.derived == "none" else DERIVED[self.derived](image)
        features: list[Tensor] = self.encoder((planes - self.mean) / self.std)
        if self.neck is not None:
            features = self.neck(features)
        if self.scse is not None:
            features = [features[0], *(gate(one) for gate, one in zip(self.scse, features[1:], strict=True))]
        if self.scalar_join is not None:
            features = [*features[:-1], self.scalar_join(features[-1], scalars)]
        return features

    def _check_scalars(self, image: Tensor, scalars: Tensor | None) -> None:
        if scalars is not None and not self.takes_scalars:
            raise ValueError(f"scalars of shape {tuple(scalars.shape)}: this model takes none")
        expected = (image.shape[0], self.num_scalars)
        if self.takes_scalars and (scalars is None or tuple(scalars.shape) != expected):
            found = "none" if scalars is None else str(tuple(scalars.shape))
            raise ValueError(
                f"scalars of shape {found}: this model takes {expected} with images {tuple(image.shape)}"
            )

    def _decode(self, features: list[Tensor]) -> tuple[Tensor, Sequence[Tensor]]:
        """Return the decoded map and, in training, the maps of deep supervision."""
        supervised = self.training and self.aux_heads is not None
        with _outputs_of(self._supervised if supervised else ()) as maps:
            decoded = self.decoder(features)
        if isinstance(decoded, tuple):
            return decoded[0], decoded[1] if supervised else ()
        return decoded, maps


@contextlib.contextmanager
def _outputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """Collect what modules return while they run within, in the order of ``modules``."""
    found: dict[int, Tensor] = {}

    def keep(at: int) -> Callable[[nn.Module, object, Tensor], None]:
        return lambda _module, _inputs, output: found.__setitem__(at, output)

    hooks = [module.register_forward_hook(keep(at)) for at, module in enumerate(modules)]
    maps: list[Tensor] = []
    try:
        yield maps
    finally:
        for hook in hooks:
            hook.remove()
        maps += [found[at] for at in sorted(found)]


def _house(config: ModelConfig, channels: Sequence[int], strides: Sequence[int]) -> nn.Module:
    """Build one of our own decoders (the package ``decoders``)."""
    # VGG begins with convolutions at full size, whose map joins; the first map of others is the image itself
    is_vgg = config.encoder.removeprefix("tu-").startswith("vgg")
    return build_decoder(config, channels, strides, join_first=is_vgg)


def _decoder_channels(config: ModelConfig, backbone: Backbone) -> list[int]:
    """Return the channels of the maps that the decoder gets: the deepest one's may have grown by the scalars."""
    *finer, deepest = backbone.channels
    stacked = len(config.scalars) if ARCHITECTURES[config.architecture].stacks_scalars else 0
    return [*finer, deepest + stacked]


Builder = Callable[[ModelConfig, Sequence[int], Sequence[int]], nn.Module]

MODELS: dict[str, Builder] = {
    **dict.fromkeys(LIBRARY_ARCHITECTURES, build_library_decoder),
    **dict.fromkeys(HOUSE_ARCHITECTURES, _house),
    **dict.fromkeys(OWN_NETS, build_own_decoder),
}
"""Architecture -> what builds its decoder from the configuration, and the channels and strides of the encoder's maps.

The options of each are under the same key in ARCHITECTURES.
"""


def build_model(
    config: ModelConfig,
    *,
    in_channels: int,
    seed: int,
    classes: int = 1,
    exclusive: bool = False,
    load_weights: bool = True,
    statistics: Statistics | None = None,
) -> SegmentationModel:
    """Build a model; its random weights depend on ``seed`` alone.

    Args:
        config: With "auto" settled (see settle_encoder).
        in_channels: Channels of the images.
        seed: Seed of the random weights; the global generator is left as it was.
        classes: Number of masks (of classes, or of labels).
        exclusive: Whether the classes exclude each other (see SegmentationModel).
        load_weights: False skips the pretrained weights (a checkpoint will be loaded).
        statistics: Mean and standard deviation of each channel over the training images, by which the model then
            normalises; None: fixed numbers (see normalisation).

    Raises:
        InputError: Unknown architecture or encoder, an encoder that does not fit the configuration, or weights that do
            not fit; derived channels of images that have more than one.
    """
    config.check_channels(in_channels)
    planes = DERIVED_COUNT.get(config.derived_channels, in_channels)
    builder = look_up(MODELS, config.architecture, where="model.architecture")
    check_encoder(config.encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        build_encoder = build_own_backbone if config.architecture in OWN_NETS else build_backbone
        backbone = build_encoder(config, planes)
        decoder = builder(config, _decoder_channels(config, backbone), backbone.strides)
        mean, std = normalisation(
            planes,
            pretrained=config.encoder_weights != "none",
            encoder=config.encoder,
            statistics=statistics if planes == in_channels else None,
        )
        model = SegmentationModel(
            config, backbone, decoder, classes=classes, mean=mean, std=std, exclusive=exclusive
        )
    if load_weights:
        load_encoder_weights(
            model.encoder,
            config.encoder_weights,
            encoder_name=config.encoder,
            in_channels=planes,
            new_stem=config.stem.startswith("conv3x3"),
        )
    if config.gradient_checkpointing:
        for part in (model.encoder, model.neck, model.decoder):
            if part is not None:
                checkpoint_blocks(part)
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
    """Return channels and size after the input, each encoder stage, each decoder block and the head.

    Decoder blocks are the parts of the decoder, in the order in which they run; of a list of parts, each.
    """
    lines: list[TraceLine] = []

    def record(name: str) -> Callable[[nn.Module, object, object], None]:
        def hook(_module: nn.Module, _inputs: object, output: object) -> None:
            for one in output if isinstance(output, list | tuple) else (output,):
                if isinstance(one, Tensor) and one.ndim == 4 and one.shape[1]:
                    lines.append(TraceLine(name, one.shape[1], (one.shape[2], one.shape[3])))

        return hook

    watched = [("encoder", model.encoder), ("neck", model.neck), *_parts(model.decoder)]
    hooks = [part.register_forward_hook(record(name)) for name, part in watched if part is not None]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            scalars = torch.zeros(1, model.num_scalars) if model.takes_scalars else None
            logits = model(torch.zeros(1, in_channels, *hw), scalars).mask_logits
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    lines.append(TraceLine("head", logits.shape[1], (logits.shape[2], logits.shape[3])))
    return [TraceLine("input", in_channels, hw), *_numbered(lines, model.mean.shape[1], hw)]


def _parts(decoder: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the parts of a decoder whose maps are worth a line, with their names."""
    found: list[tuple[str, nn.Module]] = []
    for name, child in decoder.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            prefix = "" if name == "blocks" else f"{name} "
            found += [(f"decoder {prefix}{key}", part) for key, part in child.named_children()]
        elif not isinstance(child, nn.Identity):
            found.append((f"decoder {name}", child))
    return found


def _numbered(lines: list[TraceLine], in_channels: int, hw: tuple[int, int]) -> Iterator[TraceLine]:
    """Number the lines of encoder and neck by level, without the image that they pass on."""
    counts: dict[str, int] = {}
    for line in lines:
        if line.block not in ("encoder", "neck"):
            yield line
            continue
        level = counts[line.block] = counts.get(line.block, -1) + 1
        if level or (line.channels, line.hw) != (in_channels, hw):
            yield line._replace(block=f"{line.block} {level}")
