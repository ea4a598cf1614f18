"""The same warp for a batch of tensors on any device: ``grid_sample`` with the map that OpenCV uses.

The map of each sample is made on a lattice (numpy, 32 to 64 nodes a side) and enlarged on the device, so that little is
sent there. An affine map is exact so; a projective one is off by hundredths of a pixel.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from masksmith.arrays import IGNORE
from masksmith.augment.geometry import Motion, inverse_of, lattice_of, motion_matrix
from masksmith.preprocess import Border

_PADDING = {"reflect": "reflection", "edge": "border", "zero": "zeros"}


def sampling_grid(
    motions: Sequence[Motion],
    hw: tuple[int, int],
    canvas_hw: tuple[int, int],
    *,
    zoom_yx: tuple[float, float],
    device: torch.device,
) -> Float[Tensor, "b H W 2"]:
    """Return where each canvas pixel looks, in the coordinates of ``grid_sample`` with ``align_corners=True``."""
    lattices = []
    for motion in motions:
        inverse = inverse_of(motion_matrix(motion, hw, canvas_hw, zoom_yx=zoom_yx))
        lattices.append(lattice_of(motion, inverse, hw, canvas_hw))
    step = lattices[0].step
    nodes = torch.from_numpy(np.stack([lattice.xy for lattice in lattices])).to(device)
    dense = F.interpolate(nodes.permute(0, 3, 1, 2), scale_factor=step, mode="bilinear", align_corners=False)
    seen = dense[:, :, step : step + canvas_hw[0], step : step + canvas_hw[1]].permute(0, 2, 3, 1)
    last = torch.tensor([max(hw[1] - 1, 1), max(hw[0] - 1, 1)], dtype=torch.float32, device=device)
    return seen * (2 / last) - 1


def warp_torch(
    image: Float[Tensor, "b c h w"],
    mask: UInt8[Tensor, "b h w"],
    motions: Sequence[Motion],
    *,
    canvas_hw: tuple[int, int],
    zoom_yx: tuple[float, float] = (1.0, 1.0),
    border: Border = "reflect",
) -> tuple[Float[Tensor, "b c H W"], UInt8[Tensor, "b H W"]]:
    """Move a batch of images of one size and their masks onto the canvas, as ``warp`` does.

    Args:
        image: Images of one size in any range; they come back unrounded.
        mask: Classes and IGNORE.
        motions: One for each image.
        canvas_hw: Height and width of the result.
        zoom_yx: Zoom of rows and columns by the size rule and the training stage.
        border: What is seen outside the image.

    Returns:
        Images (b, c, H, W) and masks (b, H, W), on the device of the image. The rule of the mask is that of ``warp``.
    """
    hw = (image.shape[2], image.shape[3])
    grid = sampling_grid(motions, hw, canvas_hw, zoom_yx=zoom_yx, device=image.device)

    def look(planes: Tensor, mode: str = "bilinear") -> Tensor:
        return F.grid_sample(
            planes.float(), grid, mode=mode, padding_mode=_PADDING[border], align_corners=True
        )

    values = [int(value) for value in torch.unique(mask) if value not in (0, IGNORE)]
    shares = [look((mask == value)[:, None])[:, 0] for value in values]  # (b, H, W) each
    some_ignored = bool((mask == IGNORE).any())
    rest = look((mask == 0)[:, None])[:, 0] if len(values) > 1 or some_ignored else None
    target = torch.zeros((len(image), *canvas_hw), dtype=torch.uint8, device=image.device)
    best = torch.full_like(grid[..., 0], 0.5) if rest is None else rest
    for value, share in zip(values, shares, strict=True):
        larger = (share >= best) & (share > 0)
        target[larger] = value
        best = torch.maximum(best, share)
    if some_ignored:
        target[look((mask == IGNORE)[:, None], "nearest")[:, 0] > 0.5] = IGNORE
    return look(image), target
