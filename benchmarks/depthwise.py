"""Forward and backward of depthwise convolutions in bfloat16: as they are, without stride and sliced, and quick.

    python benchmarks/depthwise.py [--threads 2]

The shapes are those of EfficientNet-Lite0 and MobileNetV2 at 112x112, batch 32, channels-last. Printed: median
milliseconds of processor time of 15 (minimum to maximum), the variants in turn.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from masksmith.models.cpu import QuickDepthwise
from masksmith.training.machine import keep_memory, usable_cores

SHAPES = (
    *((96, 56, 3, 2), (144, 28, 5, 2), (144, 28, 3, 2), (240, 14, 3, 2)),
    *((240, 14, 5, 1), (480, 7, 5, 1), (672, 7, 5, 1)),
)
ROUNDS = 18


class Sliced(nn.Conv2d):
    """The same numbers without a stride, and rows and columns left out: what masksmith did before."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution."""
        dense = nn.functional.conv2d(input, self.weight, None, 1, self.padding, 1, self.groups)
        rows, columns = self.stride
        return dense[..., ::rows, ::columns].contiguous(memory_format=torch.channels_last)


def step_of(layer: nn.Module, image: Tensor) -> Callable[[], None]:
    def step() -> None:
        layer(image).sum().backward()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=usable_cores())
    torch.set_num_threads(parser.parse_args().threads)
    keep_memory()
    for channels, side, kernel, stride in SHAPES:
        image = torch.rand(32, channels, side, side, dtype=torch.bfloat16)
        image = image.contiguous(memory_format=torch.channels_last).requires_grad_()
        steps = {}
        for name, kind in (("as it is", nn.Conv2d), ("sliced", Sliced), ("quick", QuickDepthwise)):
            layer = kind(channels, channels, kernel, stride, kernel // 2, groups=channels, bias=False)
            steps[name] = step_of(layer.to(torch.bfloat16), image)
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(ROUNDS):
            for name, step in steps.items():
                start = time.process_time()
                step()
                times[name].append((time.process_time() - start) * 1e3)
        print(f"{channels} channels, {side}x{side}, kernel {kernel}, stride {stride}")
        for name, found in times.items():
            kept = found[3:]
            print(f"    {name:10} {statistics.median(kept):6.1f} ({min(kept):.1f} to {max(kept):.1f}) ms")


if __name__ == "__main__":
    main()
