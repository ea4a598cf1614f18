"""Combine the image head ("does the image have a mask?") with the mask head ("where is it?").

Each function turns a model's output into mask logits, so test-time augmentation, codes and thresholds handle a single
head. The heads are combined for each view, before views are averaged.

Sources:
    A classifier that gates the masks: several solutions of SIIM-ACR 2019, among them the two-headed net of
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
"""From a model's output to mask logits (b, k, h, w)."""

_LOG_PROB_EPS = 1e-6  # log-probabilities are at most minus this: at 0 the logit would be infinite
_EMPTY_LOGIT = -30.0  # of a gated pixel: its code is 0


def mask_only(output: Output) -> Float[Tensor, "b k h w"]:
    """Return the mask logits as they are."""
    return output.mask_logits


def _image_logits(output: Output) -> Float[Tensor, "b k 1 1"]:
    assert output.image_logits is not None  # check_combine has refused a model without the head
    return output.image_logits[..., None, None].float()  # (b, k) -> (b, k, 1, 1)


def multiply(output: Output) -> Float[Tensor, "b k h w"]:
    """Return the logits of p(pixel) · p(image)."""
    both = F.logsigmoid(output.mask_logits.float()) + F.logsigmoid(_image_logits(output))
    both = both.clamp(max=-_LOG_PROB_EPS)
    return both - torch.log(-torch.expm1(both))  # log p - log(1 - p)


def gate(output: Output, *, threshold: float) -> Float[Tensor, "b k h w"]:
    """Return the mask logits if p(image) is above ``threshold`` (0…1), else those of an empty mask."""
    edge = math.log(threshold / (1 - threshold))
    mask = output.mask_logits.float()
    return torch.where(_image_logits(output) > edge, mask, torch.full_like(mask, _EMPTY_LOGIT))


def with_plane(output: Output) -> Float[Tensor, "b planes h w"]:
    """Return the mask logits, and behind them the image's as planes of one value."""
    mask = output.mask_logits.float()
    return torch.cat([mask, _image_logits(output).expand_as(mask)], 1)


def build_combine(config: PredictionConfig) -> Combine:
    """Return the function that ``config.image_head`` names."""
    if config.image_head == "multiply":
        return multiply
    if config.image_head == "plane":
        return with_plane
    if config.image_head == "gate":
        return partial(gate, threshold=config.image_threshold)
    return mask_only
