"""The model's configuration, and how "auto" in it is settled. Imports no torch."""

import struct
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from masksmith.config import Config
from masksmith.errors import InputError
from masksmith.files import file_digest

SCRATCH_ENCODER = "resnet18"
PRETRAINED_ENCODER = "mobilenet_v2"
CLASSIFIERS = ("classifier.", "fc.", "head.", "last_linear.")
"""How the weights of a classifier begin, which an encoder has no use for."""


class ModelConfig(Config):
    """Which network, and what it starts from."""

    architecture: str = "unet"
    """A key of MODELS."""
    encoder: str = "auto"
    """An encoder of segmentation-models-pytorch, "tu-" and a timm name, or "auto": mobilenet_v2 where pretrained
    weights are to be had, otherwise resnet18 (plain convolutions learn faster from nothing on a CPU)."""
    encoder_weights: str = "auto"
    """A safetensors file, "imagenet" (from the hub or its cache), "none", or "auto": what is reachable
    within three seconds."""
    encoder_weights_hash: str | None = None
    """Hash of the weights' file; filled in when a recipe is resolved, so that a run does not need the file."""
    encoder_depth: int = Field(default=4, ge=3, le=5)
    """Number of halvings; sizes are padded to multiples of 2 to this power."""
    decoder_channels: list[Annotated[int, Field(ge=1)]] = Field(default=[128, 64, 32, 16])
    """Channels of each decoder block, deepest first; as many as encoder_depth."""

    def weights_identity(self) -> str:
        """Return what the weights are: a keyword, or the hash of the file.

        Raises:
            InputError: The file is not there.
        """
        if self.encoder_weights in ("auto", "none", "imagenet"):
            return self.encoder_weights
        if self.encoder_weights_hash is not None:
            return self.encoder_weights_hash
        tensor_names(Path(self.encoder_weights))
        return file_digest(Path(self.encoder_weights))

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse a decoder that does not match the depth."""
        if len(self.decoder_channels) != self.encoder_depth:
            raise ValueError(
                f"decoder_channels: {len(self.decoder_channels)} values for encoder_depth {self.encoder_depth}; "
                "expected one value a level"
            )


def tensor_names(path: Path) -> set[str]:
    """Return the names of the tensors in a safetensors file, from its header alone.

    Raises:
        InputError: No such file, or not safetensors.
    """
    import json

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
