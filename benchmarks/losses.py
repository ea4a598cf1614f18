"""Forward and backward of every loss, and ways to compute the Lovász hinge.

    python benchmarks/losses.py [--threads 1] [--rounds 15] [--batch 32] [--size 128]

Logits (b, 1, h, w) of float32 with binary targets; cross_entropy has two channels. Variants take turns, so that a
drifting machine hits all alike. Printed: median milliseconds of processor time over the rounds (all threads together;
busy neighbours move it less than the clock's), with minimum and maximum, and the ratio to the first line of the table
(BCE of PyTorch; the Lovász loss of segmentation-models-pytorch).

The Lovász hinge is measured with random logits, and where 95% of the pixels are right by a margin.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from masksmith.losses.build import IMAGE_LOSSES, LOSSES
from masksmith.losses.lovasz_extension import lovasz, lovasz_elu

Loss = Callable[[Tensor, Tensor], Tensor]


def blobs(batch: int, size: int) -> Tensor:
    """Smooth masks, about half foreground."""
    noise = torch.randn(batch, 1, size // 16, size // 16, generator=torch.Generator().manual_seed(0))
    smooth = torch.nn.functional.interpolate(noise, size=(size, size), mode="bicubic")
    return (smooth[:, 0] > 0).to(torch.uint8)


def mostly_right(target: Tensor, share: float) -> Tensor:
    """Logits of which this share is right by a margin of 1 or more, the others wrong by as much."""
    draw = torch.Generator().manual_seed(1)
    sign = torch.where(torch.rand(target.shape, generator=draw) < share, 1.0, -1.0)
    size = 1 + torch.randn(target.shape, generator=draw).abs()
    return (size * sign * (2 * target.float() - 1))[:, None]


def sorted_hinge(logits: Tensor, target: Tensor) -> Tensor:
    """The hinge over all errors of all images at once: what ``lovasz`` does without its choice of positive ones."""
    truth = target.flatten(1).float()
    errors, order = (1 - logits.flatten(1) * (2 * truth - 1)).sort(dim=1, descending=True)
    chosen = truth.gather(1, order)
    total = truth.sum(1, keepdim=True)
    jaccard = 1 - (total - chosen.cumsum(1)) / (total + (1 - chosen).cumsum(1))
    growth = jaccard.diff(dim=1, prepend=torch.zeros_like(jaccard[:, :1]))
    return (errors.relu() * growth).sum(1).mean()


def theirs(logits: Tensor, target: Tensor) -> Tensor:
    from segmentation_models_pytorch.losses import LovaszLoss  # after masksmith's guard

    return LovaszLoss("binary", per_image=True)(logits, target[:, None].float())


def torch_bce(logits: Tensor, target: Tensor) -> Tensor:
    return binary_cross_entropy_with_logits(logits, target[:, None].float())


def milliseconds(loss: Loss, logits: Tensor, target: Tensor) -> float:
    leaf = logits.detach().requires_grad_()
    start = time.process_time()
    loss(leaf, target).backward()
    return 1000 * (time.process_time() - start)


def table(title: str, losses: dict[str, Loss], inputs: dict[str, tuple[Tensor, Tensor]], rounds: int) -> None:
    found: dict[str, list[float]] = {name: [] for name in losses}
    for number in range(rounds + 2):
        for name, loss in losses.items():
            taken = milliseconds(loss, *inputs.get(name, inputs[""]))
            if number >= 2:  # the first two warm up
                found[name].append(taken)
    base = statistics.median(next(iter(found.values())))
    print(title)
    for name, values in found.items():
        middle = statistics.median(values)
        spread = f"{min(values):.2f} to {max(values):.2f}"
        print(f"  {name:28s} {middle:7.2f} ms ({spread}), {middle / base:.2f}x")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=128)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    target = blobs(chosen.batch, chosen.size)
    draw = torch.Generator().manual_seed(2)
    logits = torch.randn(chosen.batch, 1, chosen.size, chosen.size, generator=draw)
    of_image = (torch.randn(chosen.batch, 1, generator=draw), target)
    inputs = {"": (logits, target), "cross_entropy": (torch.cat([-logits, logits], 1), target)}
    inputs |= dict.fromkeys(IMAGE_LOSSES, of_image)
    shape = f"{chosen.batch}x1x{chosen.size}x{chosen.size}, {chosen.threads} threads, n = {chosen.rounds}"
    table(f"all losses, {shape}", {"BCE of PyTorch, no ignore": torch_bce} | LOSSES, inputs, chosen.rounds)
    ways: dict[str, Loss] = {
        "smp, a loop over images": theirs,
        "sort of all errors, batched": sorted_hinge,
        "lovasz (positive errors)": lovasz,
        "lovasz_elu (all errors)": lovasz_elu,
    }
    for state, given in {"random": logits, "95% right": mostly_right(target, 0.95)}.items():
        table(f"Lovász hinge, {state}, {shape}", ways, {"": (given, target)}, chosen.rounds)


if __name__ == "__main__":
    main()
