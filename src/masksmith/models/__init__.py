"""Models: encoders and decoders of the field's libraries behind one interface.

A model is ``forward(image, scalars=None) -> Output``; it declares its divisor, and its mean and standard
deviation travel with the weights.
"""

from masksmith.models.architectures import ARCHITECTURES
from masksmith.models.config import ModelConfig
from masksmith.models.cpu import slice_strided_depthwise
from masksmith.models.segmentation import (
    MODELS,
    Output,
    SegmentationModel,
    build_model,
    size_trace,
    to_channels_last,
)

__all__ = [
    "ARCHITECTURES",
    "MODELS",
    "ModelConfig",
    "Output",
    "SegmentationModel",
    "build_model",
    "size_trace",
    "slice_strided_depthwise",
    "to_channels_last",
]
