"""masksmith: from a folder of images and masks to a winning segmentation, in one command.

>>> import masksmith as ms
>>> result = ms.compete("tgs-salt", out="project", overrides={"folds.train": 1})  # doctest: +SKIP

``read`` gives the images and masks of a data folder. The verbs are functions: ``layout check explore folds train
predict tune submit report compare compete search sweep plan lr noise score convert example recipes recipe_schema verify
vocabulary cache clean doctor bundle apply pack export serve review add_member list_members remove_member weights blend
pseudo stack labels try_labels next_labels ablate add_board_score board watch explain``; ``load`` opens a bundle or an
exported file. ``masksmith.preprocess`` holds transforms for notebooks. Importing the package imports neither torch nor
numpy; the first verb does.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from masksmith.core import torchvision_guard
from masksmith.core.errors import DiskFullError, DivergedError, InputError

if TYPE_CHECKING:
    from masksmith import preprocess as preprocess
    from masksmith.pipeline import ablate as ablate
    from masksmith.pipeline import add_board_score as add_board_score
    from masksmith.pipeline import add_member as add_member
    from masksmith.pipeline import apply as apply
    from masksmith.pipeline import blend as blend
    from masksmith.pipeline import board as board
    from masksmith.pipeline import bundle as bundle
    from masksmith.pipeline import cache as cache
    from masksmith.pipeline import check as check
    from masksmith.pipeline import clean as clean
    from masksmith.pipeline import compare as compare
    from masksmith.pipeline import compete as compete
    from masksmith.pipeline import convert as convert
    from masksmith.pipeline import doctor as doctor
    from masksmith.pipeline import example as example
    from masksmith.pipeline import explain as explain
    from masksmith.pipeline import explore as explore
    from masksmith.pipeline import export as export
    from masksmith.pipeline import folds as folds
    from masksmith.pipeline import labels as labels
    from masksmith.pipeline import layout as layout
    from masksmith.pipeline import list_members as list_members
    from masksmith.pipeline import load as load
    from masksmith.pipeline import lr as lr
    from masksmith.pipeline import next_labels as next_labels
    from masksmith.pipeline import noise as noise
    from masksmith.pipeline import pack as pack
    from masksmith.pipeline import plan as plan
    from masksmith.pipeline import predict as predict
    from masksmith.pipeline import pseudo as pseudo
    from masksmith.pipeline import read as read
    from masksmith.pipeline import recipe_schema as recipe_schema
    from masksmith.pipeline import recipes as recipes
    from masksmith.pipeline import remove_member as remove_member
    from masksmith.pipeline import report as report
    from masksmith.pipeline import review as review
    from masksmith.pipeline import score as score
    from masksmith.pipeline import search as search
    from masksmith.pipeline import serve as serve
    from masksmith.pipeline import stack as stack
    from masksmith.pipeline import submit as submit
    from masksmith.pipeline import sweep as sweep
    from masksmith.pipeline import train as train
    from masksmith.pipeline import try_labels as try_labels
    from masksmith.pipeline import tune as tune
    from masksmith.pipeline import verify as verify
    from masksmith.pipeline import vocabulary as vocabulary
    from masksmith.pipeline import watch as watch
    from masksmith.pipeline import weights as weights

torchvision_guard.install()

__version__ = "0.1.0"

_VERBS = (
    "add_board_score",
    "add_member",
    "ablate",
    "apply",
    "blend",
    "board",
    "bundle",
    "cache",
    "check",
    "clean",
    "compare",
    "compete",
    "convert",
    "doctor",
    "example",
    "explain",
    "explore",
    "export",
    "folds",
    "labels",
    "layout",
    "list_members",
    "load",
    "lr",
    "next_labels",
    "noise",
    "pack",
    "plan",
    "predict",
    "pseudo",
    "read",
    "recipe_schema",
    "recipes",
    "remove_member",
    "report",
    "review",
    "score",
    "search",
    "serve",
    "stack",
    "submit",
    "sweep",
    "train",
    "try_labels",
    "tune",
    "verify",
    "vocabulary",
    "watch",
    "weights",
)

__all__ = ["DiskFullError", "DivergedError", "InputError", "__version__", "preprocess", *_VERBS]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name in _VERBS:
        return getattr(importlib.import_module("masksmith.pipeline"), name)
    if name == "preprocess":
        return importlib.import_module("masksmith.preprocess")
    raise AttributeError(f"module 'masksmith' has no attribute {name!r}")


class _Package(ModuleType):
    """Keeps ``masksmith.folds`` and ``masksmith.recipes`` verbs when the packages of these names are imported."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _VERBS and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
