"""Forward and backward of MobileNetV2's strided depthwise convolutions: with their stride, and sliced.

    python benchmarks/strided_depthwise.py [--threads 2]

Printed: median milliseconds of 15 (minimum to maximum), bfloat16, channels-last, batch 32.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from masksmith.models.cpu import SlicedDepthwise
from masksmith.training.machine import usable_cores

SHAPES = ((96, 56), (144, 28), (192, 14))


def timed(step: Callable[[], None]) -> str:
    times = []
    for _ in range(18):
        start = time.perf_counter()
        step()
        times.append((time.perf_counter() - start) * 1e3)
    kept = times[3:]
    return f"{statistics.median(kept):6.1f} ({min(kept):.1f} to {max(kept):.1f})"


def step_of(layer: nn.Module, image: Tensor) -> Callable[[], None]:
    def step() -> None:
        layer(image).sum().backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=usable_cores())
    torch.set_num_threads(parser.parse_args().threads)
    for channels, size in SHAPES:
        image = torch.randn(32, channels, size, size, dtype=torch.bfloat16)
        image = image.contiguous(memory_format=torch.channels_last).requires_grad_()
        for name, kind in (("strided", nn.Conv2d), ("sliced", SlicedDepthwise)):
            layer = kind(channels, channels, 3, stride=2, padding=1, groups=channels, bias=False)
            layer = layer.to(torch.bfloat16)
            print(f"{channels} channels, {size}x{size}, {name:8s} {timed(step_of(layer, image))} ms")


if __name__ == "__main__":
    main()
