"""The configuration of prediction. Imports no torch."""

from typing import Literal

from pydantic import Field

from masksmith.config import Config


class PredictionConfig(Config):
    """How probabilities are made from a trained model."""

    batch_size: int = Field(default=32, ge=1)
    """Images a forward pass."""
    tta: list[str] = Field(default=["identity", "hflip"], min_length=1)
    """Keys of TTA; the probabilities are averaged."""
    runtime: Literal["torch", "openvino"] = "torch"
    """A key of RUNTIMES: what computes the logits. OpenVINO needs a CPU and `pip install masksmith[openvino]`; it is
    used for a fold only where held-out images show that it agrees with torch (see gate)."""
