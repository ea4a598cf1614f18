"""The names of axes in all annotations, and the array types that use them.

====== =============================================================
letter axis
====== =============================================================
b      image in a batch
c      channel (band) of an image, or class of a mask
h, w   height and width in pixels; sizes are always ``(height, width)``
n      image in a data set
k      column of a metric's row
t      threshold
====== =============================================================

Images are ``(h, w, c)`` in numpy and ``(b, c, h, w)`` in torch. Masks are uint8: 0 background,
1 foreground or 0…k-1 classes, ``IGNORE`` left out of losses and scores.
"""

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8, UInt16

IGNORE = 255

Image = Shaped[np.ndarray, "h w c"]
Mask = UInt8[np.ndarray, "h w"]
Codes = UInt16[np.ndarray, "h w *k"]
"""Probabilities as codes: of one foreground (h, w) or (h, w, 1), or of k classes."""
Rows = Float[np.ndarray, "*lead n k"]

__all__ = [
    "IGNORE",
    "Codes",
    "Float",
    "Image",
    "Int",
    "Mask",
    "Rows",
    "Shaped",
    "UInt8",
    "UInt16",
]
