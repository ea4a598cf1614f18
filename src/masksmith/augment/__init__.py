"""Augmentation: one warp for all geometry, one look-up table for all pointwise intensity changes."""

from masksmith.augment.batch import Batch, Task, make_batch
from masksmith.augment.geometry import GeometryConfig
from masksmith.augment.intensity import IntensityConfig

__all__ = ["Batch", "GeometryConfig", "IntensityConfig", "Task", "make_batch"]
