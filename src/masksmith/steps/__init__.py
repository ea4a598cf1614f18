"""What each verb does with the files of a project.

The modules are imported when they are first used: ``masksmith check`` and the recipes then do not wait for torch.
"""

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from masksmith.steps import ablate as ablate
    from masksmith.steps import blend as blend
    from masksmith.steps import board as board
    from masksmith.steps import bundle as bundle
    from masksmith.steps import check as check
    from masksmith.steps import clean as clean
    from masksmith.steps import compare as compare
    from masksmith.steps import compete as compete
    from masksmith.steps import dataset as dataset
    from masksmith.steps import doctor as doctor
    from masksmith.steps import explain as explain
    from masksmith.steps import explore as explore
    from masksmith.steps import export as export
    from masksmith.steps import external as external
    from masksmith.steps import fine_tuning as fine_tuning
    from masksmith.steps import folds as folds
    from masksmith.steps import labels as labels
    from masksmith.steps import lr_test as lr_test
    from masksmith.steps import outputs as outputs
    from masksmith.steps import plan as plan
    from masksmith.steps import predict as predict
    from masksmith.steps import pseudo_rounds as pseudo_rounds
    from masksmith.steps import report as report
    from masksmith.steps import seed_noise as seed_noise
    from masksmith.steps import stack as stack
    from masksmith.steps import submit as submit
    from masksmith.steps import tasks as tasks
    from masksmith.steps import tune as tune
    from masksmith.steps import verify as verify
    from masksmith.steps import watch as watch
    from masksmith.steps import weights as weights
    from masksmith.steps import work as work


def __getattr__(name: str) -> ModuleType:
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError as error:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from error
