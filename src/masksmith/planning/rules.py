"""The rules of planning: ``rules.yaml`` as checked values. Imports no torch."""

from importlib import resources
from typing import Annotated, Literal

from pydantic import Field

from masksmith.core.config import Config, read_yaml, validate
from masksmith.models.architectures import MAY_STOP_EARLY
from masksmith.models.config import ModelConfig

Frac = Annotated[float, Field(gt=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Candidate(Config):
    """A model that a budget may choose."""

    architecture: str
    """A key of MODELS."""
    encoder: str
    """Name of the encoder."""
    pretrained: bool
    """Whether it is meant to start from pretrained weights; without them another candidate is taken."""
    devices: list[Literal["cpu", "cuda", "mps"]]
    """Where it is worth its time."""
    encoder_depth: int
    """Number of halvings."""
    decoder_channels: list[int]
    """Channels of the decoder, deepest first."""
    evidence: str
    """What speaks for it."""

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.architecture} on {self.encoder}{'' if self.pretrained else ' from random weights'}"

    def model(self, weights: str, *, left_out: int = 0) -> ModelConfig:
        """Return it as a model's configuration with these weights.

        Args:
            weights: As in the configuration.
            left_out: Last levels of the decoder that are left out, where the architecture allows it.
        """
        levels = len(self.decoder_channels) - (left_out if self.architecture in MAY_STOP_EARLY else 0)
        return ModelConfig(
            architecture=self.architecture,
            encoder=self.encoder,
            encoder_weights=weights,
            encoder_depth=self.encoder_depth,
            decoder_channels=self.decoder_channels[:levels],
        )


class LengthRule(Config):
    """How long the whole training of a fold is."""

    images: Count
    """Images that are trained on, counted with repetition."""
    epochs_least: Count
    """Fewest epochs, for large sets."""
    epochs_most: Count
    """Most epochs, for small sets."""
    scratch_frac: Frac
    """What a whole training from random weights is worth, as a share of a whole one of a pretrained candidate."""
    single_stage_below: Count
    """Fewer epochs than this are one stage at the true size."""


class BatchRule(Config):
    """Batch size from a number of training images on."""

    images: Annotated[int, Field(ge=0)]
    """From this number of training images on."""
    batch_size: Count
    """Images a step."""


class WindowRule(Config):
    """The windows of training, and the tiles of prediction, of images of some size."""

    above_px: Count
    """For largest images of more pixels than this (resized, where the recipe resizes)."""
    hw: tuple[Count, Count]
    """Height and width of a window and of a tile."""
    overlap: Annotated[float, Field(ge=0, le=0.9)] | None
    """The least share of a tile's side that it has in common with the next; None: images are predicted whole."""


class SizeRule(Config):
    """When images are trained on in windows and predicted on tiles."""

    windows: Annotated[list[WindowRule], Field(min_length=1)]
    """From the largest images on; of others whole images are trained on."""


class PredictionRule(Config):
    """Views of test-time augmentation."""

    tta: list[str]
    """Views, the plain one first."""
    tta_most_frac: Frac
    """Largest share of the budget that the further views may take."""
    convert_least_s: Annotated[float, Field(ge=0)]
    """Shortest prediction for which another runtime is measured, in seconds."""
    convert_below_frac: Frac
    """Another runtime is taken where it takes at most this share of torch's time."""


class UnitRule(Config):
    """What the time left is spent on."""

    fold_least_frac: Frac
    """Smallest share of the whole length that is worth beginning."""
    cycle_epochs_least: Count
    """Shortest cosine cycle."""
    cycle_epochs_most: Count
    """Longest cosine cycle."""
    cycles_a_fold: Count
    """Most cycles of a fold."""
    cycle_lr_frac: Frac
    """Peak rate of a cycle as a multiple of the recipe's."""
    seeds_a_fold: Count
    """Most further seeds of a fold."""


class TimeRule(Config):
    """How measured times become estimates."""

    loop_frac: Annotated[float, Field(ge=1)]
    """Time of a step in the loop as a multiple of the measured one."""
    finish_s: Annotated[float, Field(ge=0)]
    """Seconds of tuning, submission and report."""
    finish_s_per_image: Annotated[float, Field(ge=0)]
    """Further seconds of these for each image."""
    measure_frac: Frac
    """Largest share of the budget spent on measuring."""
    last_mile_frac: Annotated[float, Field(ge=0, lt=1)]
    """Share of the budget that all trainings but the first leave to the choice of weights and ensemble."""


class Rules(Config):
    """All of rules.yaml."""

    candidates: Annotated[list[Candidate], Field(min_length=1)]
    length: LengthRule
    batch: Annotated[list[BatchRule], Field(min_length=1)]
    size: SizeRule
    prediction: PredictionRule
    units: UnitRule
    time: TimeRule


def load_rules() -> Rules:
    """Return the rules that come with the program."""
    text = (resources.files("masksmith") / "planning" / "rules.yaml").read_text()
    return validate(Rules, read_yaml(text, where="planning/rules.yaml"), where="planning/rules.yaml")
