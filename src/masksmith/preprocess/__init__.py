"""Sizes and transforms: how an image of any size lies on the canvas that a model takes, and how that is undone.

The transforms have scikit-learn's form: ``fit``, ``transform``, ``inverse_transform``. A chain, as a notebook would use
it, on four images of 101x101:

>>> import numpy as np
>>> from masksmith.preprocess import Chain, Crop, Refract, Scale, Standardize
>>> images = np.random.default_rng(0).integers(0, 256, (4, 101, 101, 1)).astype(np.uint8)
>>> masks = np.where(images > 127, 255, 0).astype(np.uint8)  # as images of 0 and 255

For training: two windows an image, their edges mirrored outwards, then the size of the model. Masks get the same.

>>> training = Chain([Crop(0.9, cardinality=2), Refract(0.9), Scale((128, 128))])
>>> training.fit_transform(images).shape, (training.transform(masks) > 127).shape
((8, 128, 128, 1), (8, 128, 128, 1))

For prediction: whole images, and the probabilities (n, h, w, k) come back at the true size. Rounding is a threshold.

>>> whole = Chain([Refract(0.9), Scale((128, 128))]).fit(images)
>>> whole
Chain(steps=[Refract(ratio=0.9, border='reflect'), Scale(hw=(128, 128))])
>>> probs = whole.transform(images) / np.float32(255)  # in place of a model
>>> whole.inverse_transform(probs).round().shape
(4, 101, 101, 1)

Numbers beside the images are measured by the training images alone:

>>> depth = Standardize(["z"]).fit(np.array([[100.0], [300.0]]))
>>> depth.transform(np.array([[400.0]])).tolist()
[[2.0]]

A recipe says the same with ``size.chain`` (or, of one resize and one pad, ``size.resize_hw`` and ``size.pad_hw``) and
``model.scalars``. Its training makes no resized copies: one warp does it all together with the augmentation.
"""

from masksmith.preprocess.sizes import TRUE_SIZE, Frame, SizeConfig, canvas_of, names_by_canvas
from masksmith.preprocess.transforms import (
    CV2_BORDERS,
    Border,
    Chain,
    Crop,
    Pad,
    PadTo,
    Refract,
    Scale,
    Standardize,
    Transform,
    resize,
    round_up,
)

__all__ = [
    "CV2_BORDERS",
    "TRUE_SIZE",
    "Border",
    "Chain",
    "Crop",
    "Frame",
    "Pad",
    "PadTo",
    "Refract",
    "Scale",
    "SizeConfig",
    "Standardize",
    "Transform",
    "canvas_of",
    "names_by_canvas",
    "resize",
    "round_up",
]
