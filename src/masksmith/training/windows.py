"""How many windows of each image an epoch looks at, where a training looks at windows."""

from collections.abc import Sequence

from masksmith.preprocess import SizeConfig
from masksmith.training.config import TrainingConfig

_MOST = 16  # windows an image and epoch with "auto"; a guess: beyond, an epoch of large images is too long to be scored


def windows_of(config: TrainingConfig, size: SizeConfig, sizes: Sequence[tuple[int, int]]) -> list[int]:
    """Return how many windows of each image an epoch looks at; 1 where whole images are trained on.

    With "auto" it is the area of the (resized) image over that of the window, 1 to 16: an epoch looks at about as many
    pixels as the images have.

    Args:
        config: The training.
        size: The size rule.
        sizes: True (height, width) of the images.
    """
    if config.crop_hw is None:
        return [1 if size.crop is None else size.crop.count] * len(sizes)
    if config.windows_per_image != "by_area":
        return [config.windows_per_image] * len(sizes)
    window = config.crop_hw[0] * config.crop_hw[1]
    areas = (inner[0] * inner[1] for inner in map(size.inner_hw, sizes))
    return [min(_MOST, max(1, round(area / window))) for area in areas]


def too_large_window(
    config: TrainingConfig, size: SizeConfig, sizes: Sequence[tuple[int, int]]
) -> str | None:
    """Return a message where windows are as high and wide as every image or larger, so that nothing is cut."""
    if config.crop_hw is None:
        return None
    inner = [size.inner_hw(hw) for hw in sizes]
    height, width = max(h for h, _ in inner), max(w for _, w in inner)
    if config.crop_hw[0] < height or config.crop_hw[1] < width:
        return None
    return (
        f"training.crop_hw: windows of {config.crop_hw[0]}x{config.crop_hw[1]} hold every image (the largest is "
        f"{height}x{width}): whole images are trained on, padded to one canvas"
    )
