"""The configuration of prediction. Imports no torch."""

from pydantic import Field

from masksmith.config import Config


class PredictionConfig(Config):
    """How probabilities are made from a trained model."""

    batch_size: int = Field(default=32, ge=1)
    """Images a forward pass."""
    tta: list[str] = Field(default=["identity", "hflip"], min_length=1)
    """Keys of TTA; the probabilities are averaged."""
