"""masksmith: from a folder of images and masks to a winning segmentation, in one command.

>>> import masksmith as ms
>>> result = ms.compete("tgs-salt", out="project", overrides={"folds.train": 1})  # doctest: +SKIP

The verbs are functions: ``check folds train predict tune submit report compete score example recipes``. Importing the
package imports neither torch nor numpy; the first verb does.
"""

import importlib
from typing import TYPE_CHECKING, Any

from masksmith import _torchvision_guard
from masksmith.errors import DiskFullError, DivergedError, InputError

if TYPE_CHECKING:
    from masksmith.pipeline import (
        check as check,
        compete as compete,
        example as example,
        folds as folds,
        predict as predict,
        recipes as recipes,
        report as report,
        score as score,
        submit as submit,
        train as train,
        tune as tune,
    )

_torchvision_guard.install()

__version__ = "0.1.0"

_VERBS = (
    "check",
    "compete",
    "example",
    "folds",
    "predict",
    "recipes",
    "report",
    "score",
    "submit",
    "train",
    "tune",
)

__all__ = ["DiskFullError", "DivergedError", "InputError", "__version__", *_VERBS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _VERBS:
        return getattr(importlib.import_module("masksmith.pipeline"), name)
    raise AttributeError(f"module 'masksmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
