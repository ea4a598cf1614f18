"""Augmentation: one warp for all geometry, one look-up table for all pointwise intensity changes."""

from masksmith.augment.batch import Batch, Drawn, Task, add_seen, build_task, check_augmentation, make_batch
from masksmith.augment.geometry import GeometryConfig
from masksmith.augment.intensity import IntensityConfig
from masksmith.augment.mixing import MixingConfig
from masksmith.augment.sampling import (
    AugmentConfig,
    CallableAugment,
    names_of,
    strengths_by_frequency,
    with_copies,
)

__all__ = [
    "AugmentConfig",
    "Batch",
    "CallableAugment",
    "Drawn",
    "GeometryConfig",
    "IntensityConfig",
    "MixingConfig",
    "Task",
    "add_seen",
    "build_task",
    "check_augmentation",
    "make_batch",
    "names_of",
    "strengths_by_frequency",
    "with_copies",
]
