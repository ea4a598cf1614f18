"""U-Net's decoder blocks as the library has them and folded: images/s of processor time on one thread.

    python benchmarks/folded.py [--encoders tf_efficientnet_lite0 resnet34] [--size 112]

Both forms in turn, batch 32, channels-last, bfloat16; median of 5 (minimum to maximum).
"""

import argparse
import statistics
import time

import torch

from masksmith.losses.pixelwise import bce
from masksmith.models.config import ModelConfig
from masksmith.models.cpu import quicken_depthwise
from masksmith.models.folded import FoldedUnetBlock
from masksmith.models.segmentation import SegmentationModel, build_model, to_channels_last
from masksmith.training.machine import keep_memory

ROUNDS = 6


def build(encoder: str, *, folded: bool) -> SegmentationModel:
    config = ModelConfig(encoder=encoder, encoder_weights="none")
    model = to_channels_last(build_model(config, in_channels=1, seed=0))
    quicken_depthwise(model)
    for module in () if folded else model.modules():
        if type(module) is FoldedUnetBlock:
            module.__class__ = FoldedUnetBlock.__bases__[0]  # the library's own
    return model


def step(model: SegmentationModel, image: torch.Tensor, target: torch.Tensor, *, training: bool) -> float:
    model.train(training)
    start = time.process_time()
    with torch.set_grad_enabled(training), torch.autocast("cpu", torch.bfloat16):
        logits = model(image).mask_logits
    if training:
        bce(logits, target).backward()
        model.zero_grad()
    return len(image) / (time.process_time() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", nargs="+", default=["tf_efficientnet_lite0", "resnet34"])
    parser.add_argument("--size", type=int, default=112)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    keep_memory()
    image = torch.rand(32, 1, chosen.size, chosen.size).contiguous(memory_format=torch.channels_last)
    target = (torch.rand(32, chosen.size, chosen.size) < 0.3).to(torch.uint8)
    for encoder in chosen.encoders:
        models = {name: build(encoder, folded=name == "folded") for name in ("as it is", "folded")}
        for training in (True, False):
            rates: dict[str, list[float]] = {name: [] for name in models}
            for _ in range(ROUNDS):
                for name, model in models.items():
                    rates[name].append(step(model, image, target, training=training))
            for name, found in rates.items():
                kept = found[1:]
                what = "training" if training else "prediction"
                middle = statistics.median(kept)
                print(
                    f"{encoder}, {what}, {name}: {middle:.1f} images/s ({min(kept):.1f} to {max(kept):.1f})"
                )


if __name__ == "__main__":
    main()
