"""Losses on logits, in float32, with ignored pixels taken out of value and gradient.

Every loss has the form ``loss(logits, target)`` with logits (b, k, h, w) before any sigmoid or softmax (of the image
head: (b, k)) and a target as ``planes`` describes it; it returns a scalar. A batch without a judged pixel costs 0.

Read ``build.py`` first: the table of losses, and ``build_loss``, which sums the terms of a recipe. To add a loss, write
the function, a line in MASK_LOSSES or IMAGE_LOSSES, and its parameters in ``options.py``, which recipes are checked by.
"""
