"""How the image head has a say in a prediction: "is there anything?" together with "where is it?".

Each function makes logits of the mask from a model's output, so that everything after it (test-time
augmentation, codes, thresholds) does not know of the second head. Probabilities of the two heads are combined for each
view, before views are averaged.

Sources:
    The classifier that gates the masks: several places of SIIM-ACR 2019; a two-headed net in
    https://github.com/sneddy/pneumothorax-segmentation.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from masksmith.models.segmentation import Output
from masksmith.prediction.config import PredictionConfig

Combine = Callable[[Output], Tensor]
"""From a model's output to the mask logits (b, k, h, w) that count."""

_SURE = 1e-6  # log-probabilities stay below minus this: at 0 the logit would be infinite
_NEVER = -30.0  # the logit of a gated pixel: its probability is 0 as a code


def mask_only(output: Output) -> Float[Tensor, "b k h w"]:
    """Return the mask logits as they are."""
    return output.mask_logits


def _image_logits(output: Output) -> Float[Tensor, "b k 1 1"]:
    assert output.image_logits is not None  # check_combine has refused a model without the head
    return output.image_logits[..., None, None].float()  # (b, k) -> (b, k, 1, 1)


def multiply(output: Output) -> Float[Tensor, "b k h w"]:
    """Return the logits of p(pixel) · p(image): the pixel belongs to the mask *and* the image has one."""
    both = F.logsigmoid(output.mask_logits.float()) + F.logsigmoid(_image_logits(output))
    both = both.clamp(max=-_SURE)
    return both - torch.log(-torch.expm1(both))  # log p - log(1 - p)


def gate(output: Output, *, threshold: float) -> Float[Tensor, "b k h w"]:
    """Return the mask logits where p(image) is above ``threshold`` (0…1), otherwise those of an empty mask."""
    edge = math.log(threshold / (1 - threshold))
    mask = output.mask_logits.float()
    return torch.where(_image_logits(output) > edge, mask, torch.full_like(mask, _NEVER))


def build_combine(config: PredictionConfig) -> Combine:
    """Return how the heads are combined."""
    if config.image_head == "multiply":
        return multiply
    if config.image_head == "gate":
        return partial(gate, threshold=config.image_threshold)
    return mask_only
