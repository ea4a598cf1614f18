"""The configuration of prediction. Imports no torch."""

from typing import Any, Literal

from pydantic import Field

from masksmith.core.config import Config
from masksmith.core.errors import InputError


class PredictionConfig(Config):
    """How probabilities are made from a trained model."""

    batch_size: int = Field(default=32, ge=1)
    """Images a forward pass."""
    tta: list[str] = Field(default=["identity", "hflip"], min_length=1)
    """Keys of TTA; the probabilities are averaged."""
    weights: Literal["final", "snapshots", "top_k"] = "final"
    """Which weights of a training predict: the final ones, or the mean of its snapshots or of its best checkpoints (a
    refit has no scores, and with top_k predicts with its final ones)."""
    image_head: Literal["ignore", "multiply", "gate"] = "ignore"
    """What the image head does to a mask: nothing; its probability multiplies every pixel's; or it empties the masks of
    images at or below ``image_threshold``."""
    image_threshold: float = Field(default=0.5, gt=0, lt=1)
    """Probability that an image must exceed to have a mask at all (with ``image_head: gate``)."""
    runtime: Literal["torch", "openvino"] = "torch"
    """A key of RUNTIMES: what computes the logits. OpenVINO needs a CPU and `pip install masksmith[openvino]`; it is
    used for a fold only where held-out images show that it agrees with torch (see gate)."""

    def model_post_init(self, _: Any) -> None:  # noqa: ANN401
        """Refuse a threshold that nothing would read."""
        if self.image_threshold != 0.5 and self.image_head != "gate":
            raise ValueError(
                f"image_threshold: {self.image_threshold} has no effect with image_head {self.image_head!r}; "
                "set image_head to gate, or leave it at 0.5"
            )


def check_combine(config: PredictionConfig, *, image_head: str) -> None:
    """Refuse a use of the image head by a model that has none, before anything is trained.

    Args:
        config: Of prediction.
        image_head: ``ModelConfig.image_head``.

    Raises:
        InputError: The head is to be used and not there.
    """
    if config.image_head != "ignore" and image_head == "none":
        raise InputError(
            f"prediction.image_head: {config.image_head!r} needs a head that the model does not have; "
            "set model.image_head to avg, max or gem, or prediction.image_head to ignore"
        )
