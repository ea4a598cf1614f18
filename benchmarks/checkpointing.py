"""Gradient checkpointing: what activations take in memory, and a training step in time, with and without it.

    OMP_NUM_THREADS=1 python benchmarks/checkpointing.py [--rounds 9] [--size 112] [--batch 4]

Memory: bytes that the forward pass saves for the backward pass (saved-tensor hooks, each storage once). Time:
processor time of forward and backward on one thread, the two in turn; median, minimum and maximum.
"""

import argparse
import statistics
import time


def saved_mib(model, image):
    import torch

    seen = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        seen[storage._cdata] = storage.nbytes()
        return tensor

    own = {one.untyped_storage()._cdata for one in (*model.parameters(), *model.buffers())}
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(image).mask_logits.mean().backward()
    return sum(size for key, size in seen.items() if key not in own) / 2**20


def step_s(model, image):
    start = time.process_time()
    model(image).mask_logits.mean().backward()
    model.zero_grad()
    return time.process_time() - start


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=4)
    options = parser.parse_args()
    import torch

    import masksmith  # noqa: F401  (its guard, before torch)
    from masksmith.models.config import ModelConfig
    from masksmith.models.segmentation import build_model

    torch.set_num_threads(1)
    image = torch.rand(options.batch, 3, options.size, options.size)
    for encoder in ("resnet18", "mobilenet_v2"):
        models = {}
        for name, on in (("plain", False), ("checkpointed", True)):
            config = ModelConfig(encoder=encoder, encoder_weights="none", gradient_checkpointing=on)
            models[name] = build_model(config, in_channels=3, seed=0).train()
        times = {name: [] for name in models}
        for model in models.values():
            step_s(model, image)  # warms up
        for _ in range(options.rounds):
            for name, model in models.items():
                times[name].append(step_s(model, image))
        base = statistics.median(times["plain"])
        for name, model in models.items():
            middle = statistics.median(times[name])
            spread = f"{1000 * min(times[name]):.0f} to {1000 * max(times[name]):.0f}"
            memory = f"{saved_mib(model, image):7.1f} MiB"
            print(
                f"{encoder:13s} {name:13s} {memory}  {1000 * middle:6.0f} ms ({spread})  {middle / base:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
