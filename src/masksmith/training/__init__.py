"""Training: stages of one loop on Lightning Fabric; read ``loop.py`` first."""

from masksmith.training.config import (
    LossTerm,
    OptimizerConfig,
    ScheduleConfig,
    Stage,
    TrainingConfig,
)

__all__ = ["LossTerm", "OptimizerConfig", "ScheduleConfig", "Stage", "TrainingConfig"]
