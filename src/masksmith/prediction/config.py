"""The configuration of prediction. Imports no torch."""

from typing import Any, Literal

from pydantic import Field

from masksmith.core.config import Config
from masksmith.core.errors import InputError


class PredictionConfig(Config):
    """How a trained model predicts."""

    batch_size: int = Field(default=32, ge=1)
    """Images per forward pass."""
    tta: list[str] = Field(default=["identity", "hflip"], min_length=1)
    """Keys of TTA; the probabilities are averaged."""
    weights: Literal["final", "snapshots", "top_k"] = "final"
    """Predict with the final weights, or average the probabilities of the snapshots or of the best checkpoints (a refit
    has no scores, so with top_k it uses its final weights)."""
    image_head: Literal["ignore", "multiply", "gate"] = "ignore"
    """Ignore the image head; multiply every pixel's probability by that of the image; or empty the mask of an image
    whose probability is at or below ``image_threshold``."""
    image_threshold: float = Field(default=0.5, gt=0, lt=1)
    """With ``image_head: gate``: an image at or below this probability gets an empty mask."""
    runtime: Literal["torch", "openvino"] = "torch"
    """A key of RUNTIMES. OpenVINO needs a CPU and `pip install masksmith[openvino]`; a fold uses it only if it agrees
    with torch on the held-out images (see gate)."""

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse a threshold that has no effect."""
        if self.image_threshold != 0.5 and self.image_head != "gate":
            raise ValueError(
                f"image_threshold: {self.image_threshold} has no effect with image_head {self.image_head!r}; "
                "set image_head to gate, or leave it at 0.5"
            )


def check_combine(config: PredictionConfig, *, image_head: str) -> None:
    """Refuse to use the image head of a model that has none. Called before training.

    Args:
        config: The configuration of prediction.
        image_head: ``ModelConfig.image_head``.

    Raises:
        InputError: The configuration uses an image head and the model has none.
    """
    if config.image_head != "ignore" and image_head == "none":
        raise InputError(
            f"prediction.image_head: {config.image_head!r} needs a head that the model does not have; "
            "set model.image_head to avg, max or gem, or prediction.image_head to ignore"
        )
