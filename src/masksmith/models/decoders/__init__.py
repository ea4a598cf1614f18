"""Our own decoders, on the maps of any encoder.

``HOUSE_ARCHITECTURES`` lists them, without torch; ``build.build_decoder`` builds one.
"""

from masksmith.models.decoders.traits import HOUSE_ARCHITECTURES, Traits

__all__ = ["HOUSE_ARCHITECTURES", "Traits"]
