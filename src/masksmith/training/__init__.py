"""Training: stages of one loop on Lightning Fabric; read ``loop.py`` first."""

from masksmith.training.config import (
    LossTerm,
    OptimizerConfig,
    SamplerConfig,
    ScheduleConfig,
    Stage,
    StallConfig,
    SwaConfig,
    TrainingConfig,
)

__all__ = [
    "LossTerm",
    "OptimizerConfig",
    "SamplerConfig",
    "ScheduleConfig",
    "Stage",
    "StallConfig",
    "SwaConfig",
    "TrainingConfig",
]
