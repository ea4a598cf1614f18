"""The estimate of memory beside the truth: real training steps with a checkpoint, and real forward passes.

    python benchmarks/memory.py [--threads 1] [--encoders mobilenet_v2 resnet18]

Every line is a process of its own. The truth is what its largest resident size (VmHWM) has grown by since the
libraries were loaded: four steps with the memory kept as in training, then the tensors of a checkpoint; or four
forward passes, less the second copy of the weights that is held here.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

SIZES = [(8, 64), (32, 64), (32, 112), (16, 224)]
MIB = 2**20


def measure(
    encoder: str, precision: str, batch_size: int, side: int, threads: int, work: str
) -> dict[str, float]:
    import torch

    import masksmith  # noqa: F401  (its guard, before torch)
    from masksmith.models.config import ModelConfig
    from masksmith.models.segmentation import build_model
    from masksmith.planning.timings import Stepper
    from masksmith.recipes.recipe import load_recipe

    torch.set_num_threads(threads)
    recipe = load_recipe(
        "auto",
        (f"training.precision={precision}", f"training.threads={threads}", "training.device=cpu"),
    )
    model_config = ModelConfig(encoder=encoder, encoder_weights="none")
    build_model(model_config, in_channels=1, seed=0)
    gc.collect()
    before = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    loss = recipe.training.stages[-1].loss
    stepper = Stepper(
        model_config,
        recipe.training,
        in_channels=1,
        canvas_hw=(side, side),
        batch_size=batch_size,
        loss=loss,
    )
    for _ in range(4):
        (stepper.step if work == "training" else stepper.forward)()
    if work == "training":
        from safetensors.torch import save

        from masksmith.training.checkpoint import _contiguous, pack_state

        save(
            _contiguous(
                pack_state(stepper.raw, {"average": stepper.average.model}, stepper.optimizer.optimizer)
            )
        )
    # not ru_maxrss: a child begins with the one of its parent
    status = Path("/proc/self/status").read_text()
    peak = int(status.split("VmHWM:")[1].split()[0]) * 1024
    twice = 0  # the stepper holds the trained weights beside the averaged ones; prediction has one copy
    if work == "prediction":
        twice = sum(value.numel() * value.element_size() for value in stepper.raw.state_dict().values())
    return {"truth": (peak - before - twice) / MIB}


def estimate(
    encoder: str, precision: str, batch_size: int, side: int, threads: int, work: str
) -> dict[str, float]:
    import torch

    import masksmith  # noqa: F401  (its guard, before torch)
    from masksmith.models.config import ModelConfig
    from masksmith.models.segmentation import build_model
    from masksmith.recipes.recipe import load_recipe
    from masksmith.training.footprint import prediction_footprint, training_footprint

    torch.set_num_threads(threads)
    config = load_recipe("auto", (f"training.precision={precision}", "training.device=cpu")).training
    model = build_model(ModelConfig(encoder=encoder, encoder_weights="none"), in_channels=1, seed=0)
    start = time.perf_counter()
    measured = training_footprint if work == "training" else prediction_footprint
    found = measured(model, config).bytes_at((side, side), batch_size)
    return {"estimate": found / MIB, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--encoders", nargs="+", default=["mobilenet_v2", "resnet18"])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        task = json.loads(chosen.one)
        print(json.dumps((measure if task.pop("measure") else estimate)(**task)))
        return
    print("encoder       work        precision   batch  size  truth MiB  estimate MiB  ratio  seconds")
    for encoder in chosen.encoders:
        for work in ("training", "prediction"):
            for precision in ("bf16-mixed", "32-true"):
                for batch_size, side in SIZES:
                    task = {"encoder": encoder, "precision": precision, "batch_size": batch_size}
                    task |= {"side": side, "threads": chosen.threads, "work": work}
                    found: dict[str, float] = {}
                    for half in (True, False):
                        one = json.dumps(task | {"measure": half})
                        command = [sys.executable, __file__, "--one", one]
                        done = subprocess.run(command, capture_output=True, text=True, check=True)
                        found |= json.loads(done.stdout.splitlines()[-1])
                    print(
                        f"{encoder:13s} {work:11s} {precision:10s} {batch_size:6d} {side:5d} {found['truth']:10.0f} "
                        f"{found['estimate']:13.0f} {found['estimate'] / found['truth']:6.2f} {found['seconds']:8.2f}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
