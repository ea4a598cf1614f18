"""Parts of a model that a stage leaves as they are, and the trap of batch norm on small batches.

Every weight belongs to one part, told by the first word of its name: ``encoder``, ``head`` (any word with "head" in
it: an image head too), and ``decoder`` (all the rest).
"""

from collections.abc import Collection

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from masksmith.core.errors import InputError
from masksmith.training.averaging import batch_norms

FEWEST_FOR_NORM = 8
"""Images of a batch below which batch norm's statistics are unreliable: Wu and He 2018, figure 1,
https://arxiv.org/abs/1803.08494."""


def part_of(name: str) -> str:
    """Return the part of a weight: "encoder", "decoder" or "head"."""
    first = name.split(".", 1)[0]
    if first == "encoder":
        return "encoder"
    return "head" if "head" in first else "decoder"


def encoder_norms(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of the encoder."""
    return [
        norm for name, child in model.named_children() if name == "encoder" for norm in batch_norms(child)
    ]


def refuse_missing_parts(model: nn.Module, freeze: Collection[str], *, where: str) -> None:
    """Refuse to freeze what the model does not have.

    Raises:
        InputError: No weights belong to a part, or the encoder has no batch norm.
    """
    parts = {"all_but_head", *(part_of(name) for name, _ in model.named_parameters())}
    if encoder_norms(model):
        parts.add("encoder_norm")
    for part in freeze:
        if part not in parts:
            raise InputError(f"{where}: {part!r} is not in this model; it has {', '.join(sorted(parts))}")


def set_frozen(model: nn.Module, freeze: Collection[str]) -> None:
    """Let the weights outside of ``freeze`` be trained, the others not; call it after ``model.train()``.

    A frozen encoder still updates batch norm's statistics; with "encoder_norm" it keeps them.
    """
    for name, weight in model.named_parameters():
        part = part_of(name)
        weight.requires_grad_(part not in freeze and not ("all_but_head" in freeze and part != "head"))
    if "encoder_norm" in freeze:
        for norm in encoder_norms(model):
            norm.eval()
            norm.requires_grad_(False)


def small_batch_warning(model: nn.Module, batch_size: int) -> str | None:
    """Return what to say where batch norm sees fewer than 8 images at once; None where all is well."""
    if batch_size >= FEWEST_FOR_NORM or not batch_norms(model):
        return None
    return (
        f"batch norm sees {batch_size} images at once, and below {FEWEST_FOR_NORM} its statistics are unreliable "
        "(accumulate does not help); take a larger batch_size, or model.norm=group and model.encoder_norm=group"
    )
