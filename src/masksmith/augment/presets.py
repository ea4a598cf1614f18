"""Presets of augmentation: a word in the place of a table, spelt out in the resolved recipe.

``training.geometry: heavy`` means the table below; the recipe that is written into the run's folder shows every
value of it. What a preset does not name is off.

``none``      nothing
``lossless``  the eight symmetries of the square: pixels are copied, never interpolated (003.aug.6)
``light``     what seldom hurts: mirror, a little rotation, scale and shift, a little contrast
``heavy``     all of it: shear, crops, perspective and the elastic family (002.aug.1 to .3, 003.aug.4), noise, blur,
              cut-out. Too much hurts (003.train.4): compare it with ``light`` out of fold
"""

from collections.abc import Mapping
from typing import Any

from masksmith.core.config import look_up

Table = dict[str, Any]

GEOMETRY_PRESETS: dict[str, Table] = {
    "none": {},
    "lossless": {"hflip": 0.5, "rot90": 1.0},
    "light": {"hflip": 0.5, "rotate_deg": 8.0, "scale_range": (0.9, 1.1), "shift_frac": 0.06},
    "heavy": {
        "hflip": 0.5,
        "probability": 0.8,
        "rotate_deg": 30.0,
        "scale_range": (0.8, 1.25),
        "aspect_range": (0.9, 1.11),
        "shear_deg": 8.0,
        "shift_frac": 0.1,
        "crop_zoom": {"probability": 0.3, "side_frac_range": (0.7, 0.9)},
        "perspective": {"probability": 0.2, "corner_frac": 0.08},
        "piecewise_affine": {"probability": 0.1, "cells": 4, "shift_frac": 0.03},
        "elastic": {"probability": 0.2, "shift_frac": 0.02, "sigma_frac": 0.08},
        "grid": {"probability": 0.2, "cells": 5, "limit": 0.3},
        "optical": {"probability": 0.2, "strength": 0.15},
    },
}

INTENSITY_PRESETS: dict[str, Table] = {
    "none": {},
    "lossless": {},
    "light": {"brightness": 0.06, "contrast": 0.1},
    "heavy": {
        "brightness": 0.15,
        "contrast": 0.3,
        "gamma": 0.25,
        "clahe": {"probability": 0.1, "tile_px": 32, "clip_range": (1.0, 4.0)},
        "channel_scale": {"probability": 0.2, "multiply": 0.05, "add": 0.05},
        "blur": {"probability": 0.15, "sigma_px_range": (0.3, 1.5)},
        "noise": {"probability": 0.2, "sigma_range": (0.005, 0.04)},
        "cutout": {
            "probability": 0.2,
            "count_range": (1, 3),
            "side_frac_range": (0.05, 0.2),
            "fill": "mean",
            "mask": "keep",
        },
    },
}


def spell_out(presets: Mapping[str, Table], value: Any) -> Any:  # noqa: ANN401
    """Return the table that a preset's name stands for; a table stays.

    Ranges become tuples: what comes through a validator of ours is no longer JSON, and strict models want tuples then.

    Raises:
        InputError: A word that is no preset; the message suggests the nearest.
    """
    if isinstance(value, str):
        return look_up(presets, value, where="preset")
    return _tuples(value) if isinstance(value, dict) else value


def _tuples(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, dict):
        return {key: _tuples(part) for key, part in value.items()}
    return tuple(value) if isinstance(value, list) else value
