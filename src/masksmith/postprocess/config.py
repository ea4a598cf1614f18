"""What the search of a rule tries. Imports no torch."""

from typing import Annotated

from pydantic import Field

from masksmith.core.config import Config

Share = Annotated[float, Field(ge=0, le=1)]


class TuningConfig(Config):
    """Candidates of the search."""

    bottom_thresholds: list[Share] = Field(default=[round(0.2 + 0.02 * i, 2) for i in range(31)])
    """Probabilities above which a pixel belongs to the mask."""
    top_thresholds: list[Share] = Field(default=[0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95])
    """Probabilities that min_pixels pixels must exceed; only those not below the bottom are tried, and only for a
    metric of counts: one of objects or boundaries gets a bottom threshold alone."""
    min_area_fracs: list[Share] = Field(
        default=[0.0, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03]
    )
    """min_pixels as a share of the median image's area; in an image of another size it is the same share. For a metric
    of counts."""
    component_area_frac: float = Field(default=0.0, ge=0, lt=1)
    """Connected regions of a mask (8 neighbours) that are not larger than this share of the image's area are removed,
    after the thresholds and whatever the search finds; 0 keeps all."""
    search_objects: bool = True
    """Whether thresholds of seeds and foreground of objects are searched; False takes the usual ones."""
    min_object_areas: list[int] = Field(default=[0, 15, 40])
    """Least pixels of an object that are tried."""
    search_classes: bool = True
    """Whether weights of the classes of a class map are searched; False takes the most probable class."""
    resamples: int = Field(default=2000, ge=100)
    """Bootstrap resamples."""
