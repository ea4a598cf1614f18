"""Images a second of a training step: plain PyTorch, and each thing that masksmith adds.

    python benchmarks/train_step.py [--threads 2] [--rounds 3]

Every variant runs in a process of its own, the variants in turn, so that a drifting machine hits all alike.
Printed: median images/s over the rounds with minimum and maximum, and the ratio to the first.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

VARIANTS = {
    "float32, plain layout, unfused": {},
    "+ bfloat16 autocast": {"bf16": 1},
    "+ channels-last, fused AdamW": {"bf16": 1, "layout": 1},
    "+ quick depthwise gradients": {"bf16": 1, "layout": 1, "quick": 1},
    "+ kept memory": {"bf16": 1, "layout": 1, "quick": 1, "memory": 1},
}


def measure(encoder: str, size: int, threads: int, options: dict[str, int]) -> float:
    import torch

    import masksmith  # noqa: F401  (its guard, before torch)
    from masksmith.losses.pixelwise import bce
    from masksmith.losses.regions import dice
    from masksmith.models.config import ModelConfig
    from masksmith.models.cpu import quicken_depthwise
    from masksmith.models.segmentation import build_model, to_channels_last
    from masksmith.training.machine import keep_memory

    torch.set_num_threads(threads)
    if options.get("memory"):
        keep_memory()
    model = build_model(ModelConfig(encoder=encoder, encoder_weights="none"), in_channels=1, seed=0)
    image = torch.rand(32, 1, size, size)
    target = (torch.rand(32, size, size) < 0.3).to(torch.uint8)
    if options.get("layout"):
        to_channels_last(model)
        image = image.contiguous(memory_format=torch.channels_last)
    if options.get("quick"):
        quicken_depthwise(model)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=bool(options.get("layout")))
    times = []
    for _ in range(9):
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(options.get("bf16"))):
            logits = model(image).mask_logits
        (bce(logits, target) + dice(logits, target)).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    return 32 / statistics.median(times[3:])


def main() -> None:
    from masksmith.training.machine import usable_cores

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--encoders", nargs="+", default=["tf_efficientnet_lite0", "mobilenet_v2", "resnet18"]
    )
    parser.add_argument("--sizes", nargs="+", type=int, default=[64, 112])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(measure(**json.loads(chosen.one)))
        return
    for encoder in chosen.encoders:
        for size in chosen.sizes:
            print(f"{encoder}, {size}x{size}, batch 32, {chosen.threads} threads")
            found: dict[str, list[float]] = {name: [] for name in VARIANTS}
            for _ in range(chosen.rounds):
                for name, options in VARIANTS.items():
                    task = {"encoder": encoder, "size": size, "threads": chosen.threads, "options": options}
                    command = [sys.executable, __file__, "--one", json.dumps(task)]
                    done = subprocess.run(command, capture_output=True, text=True, check=True)
                    found[name].append(float(done.stdout.split()[-1]))
            base = statistics.median(found[next(iter(VARIANTS))])
            for name, values in found.items():
                middle = statistics.median(values)
                spread = f"{min(values):.1f} to {max(values):.1f}"
                print(f"  {name:32s} {middle:6.1f} images/s ({spread}), {middle / base:.2f}x")


if __name__ == "__main__":
    main()
