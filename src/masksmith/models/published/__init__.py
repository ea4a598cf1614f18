"""Published nets with an encoder of their own, layer for layer: those of the TGS Salt contest's kernels.

``OWN_NETS`` lists them, without torch; ``build_own_backbone`` and ``build_own_decoder`` are in build.py.
"""

from masksmith.models.published.traits import OWN_NETS

__all__ = ["OWN_NETS"]
