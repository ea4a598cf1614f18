"""The house's own decoders, on the maps of any encoder.

``HOUSE_ARCHITECTURES`` says what there is, without torch; ``build_decoder`` builds one, and imports torch when it is
first asked for (the configuration reads the table, so it may not lean on what leans on the configuration).
"""

import importlib
from typing import TYPE_CHECKING, Any

from masksmith.models.decoders.traits import HOUSE_ARCHITECTURES, Traits

if TYPE_CHECKING:
    from masksmith.models.decoders.build import build_decoder as build_decoder

__all__ = ["HOUSE_ARCHITECTURES", "Traits", "build_decoder"]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name == "build_decoder":
        return importlib.import_module("masksmith.models.decoders.build").build_decoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
