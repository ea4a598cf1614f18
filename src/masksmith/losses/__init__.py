"""Losses on logits, in float32, with ignored pixels taken out of value and gradient.

Every loss has the form ``loss(logits, target)`` with logits (b, k, h, w) before any sigmoid or softmax (of the image
head: (b, k)) and a target that ``planes`` explains; it returns a scalar. Nothing judged costs 0. To add one, write the
function and a line in MASK_LOSSES or IMAGE_LOSSES. Combinations are lists of terms: see ``build_loss``.
"""

from masksmith.losses.build import IMAGE_LOSSES, LOSSES, MASK_LOSSES, LossOf, Term, build_loss
from masksmith.losses.contours import active_contour, band_bce, boundary, boundary_bce, hausdorff
from masksmith.losses.image_head import image_bce, image_focal
from masksmith.losses.lovasz_extension import lovasz, lovasz_elu, lovasz_softmax
from masksmith.losses.pixelwise import balanced_bce, bce, cross_entropy, focal, mse, smooth_l1
from masksmith.losses.planes import Logits, Scalar, Target
from masksmith.losses.regions import dice, focal_tversky, jaccard, log_dice, tversky

__all__ = [
    "IMAGE_LOSSES",
    "LOSSES",
    "MASK_LOSSES",
    "Logits",
    "LossOf",
    "Scalar",
    "Target",
    "Term",
    "active_contour",
    "balanced_bce",
    "band_bce",
    "bce",
    "boundary",
    "boundary_bce",
    "build_loss",
    "cross_entropy",
    "dice",
    "focal",
    "focal_tversky",
    "hausdorff",
    "image_bce",
    "image_focal",
    "jaccard",
    "log_dice",
    "lovasz",
    "lovasz_elu",
    "lovasz_softmax",
    "mse",
    "smooth_l1",
    "tversky",
]
