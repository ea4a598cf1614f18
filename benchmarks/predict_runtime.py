"""Images a second of prediction: torch against OpenVINO.

    python benchmarks/predict_runtime.py [--threads 2] [--rounds 5] [--cpu-time]

The network is that of `auto`, with random weights. "forward" is the runtime alone on a batch of numpy planes,
"predict_probs" the whole path: reading the images, padding 101 to 112, two views, sigmoid, mean. Each runtime works
in a process of its own, the runtimes in turn, so that a drifting machine hits all alike. Printed: median images/s over
the rounds with minimum and maximum, the ratio to torch's, and the seconds until the first batch is done.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RUNTIMES = {
    "torch, float32": ["torch", "32-true"],
    "torch, bfloat16": ["torch", "bf16-mixed"],
    "openvino, float32": ["openvino", "32-true"],
    "openvino, bfloat16": ["openvino", "bf16-mixed"],
}
BASE = "torch, bfloat16"
BATCH, SIDE, IMAGES = 32, 101, 192


def measure(encoder: str, threads: int, cpu_time: bool, runtime: str, precision: str) -> dict[str, float]:
    import numpy as np
    import torch
    from lightning_fabric import Fabric

    import masksmith  # noqa: F401  (its guard, before segmentation-models-pytorch)
    from masksmith.data.store import Store, StoreWriter
    from masksmith.models.config import ModelConfig
    from masksmith.models.cpu import quicken_depthwise
    from masksmith.models.segmentation import build_model, to_channels_last
    from masksmith.prediction.predict import predict_probs
    from masksmith.prediction.runtimes import RUNTIMES as BUILDERS
    from masksmith.training.machine import keep_memory

    clock = time.process_time if cpu_time else time.perf_counter
    torch.set_num_threads(threads)
    keep_memory()
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    model = build_model(ModelConfig(encoder=encoder, encoder_weights="none"), in_channels=1, seed=0)
    quicken_depthwise(to_channels_last(model).eval())
    rng = np.random.default_rng(0)
    planes = rng.random((BATCH, 1, 112, 112), np.float32)
    start = clock()
    forward = BUILDERS[runtime](fabric, model)
    forward(planes)
    found = {"first": clock() - start}
    times = []
    for _ in range(8):
        start = clock()
        forward(planes)
        times.append(clock() - start)
    found["forward"] = BATCH / statistics.median(times)
    with tempfile.TemporaryDirectory() as folder:
        names = [str(i) for i in range(IMAGES)]
        writer = StoreWriter(
            Path(folder) / "i.npy", [(name, (SIDE, SIDE, 1)) for name in names], dtype=np.uint8
        )
        for name in names:
            writer.write(name, rng.integers(0, 255, (SIDE, SIDE, 1)).astype(np.uint8))
        writer.close()
        images = Store(Path(folder) / "i.npy")
        start = clock()
        for _ in predict_probs(
            fabric, model, images, names, tta=["identity", "hflip"], batch_size=BATCH, runtime=forward
        ):
            pass
        found["predict_probs"] = IMAGES / (clock() - start)
    return found


def main() -> None:
    from masksmith.training.machine import usable_cores

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--encoders", nargs="+", default=["mobilenet_v2", "resnet18"])
    parser.add_argument("--cpu-time", action="store_true", help="count processor seconds: for a busy machine")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        print(json.dumps(measure(**json.loads(chosen.one))))
        return
    timed = ", processor seconds" if chosen.cpu_time else ""
    for encoder in chosen.encoders:
        print(f"{encoder}, 112x112, batch {BATCH}, {chosen.threads} threads, {chosen.rounds} rounds{timed}")
        found: dict[str, list[dict[str, float]]] = {name: [] for name in RUNTIMES}
        for _ in range(chosen.rounds):
            for name, (runtime, precision) in RUNTIMES.items():
                task = {
                    "encoder": encoder,
                    "threads": chosen.threads,
                    "cpu_time": chosen.cpu_time,
                    "runtime": runtime,
                    "precision": precision,
                }
                command = [sys.executable, __file__, "--one", json.dumps(task)]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
        for path in ("forward", "predict_probs"):
            base = statistics.median(one[path] for one in found[BASE])
            for name, rounds in found.items():
                values = [one[path] for one in rounds]
                middle = statistics.median(values)
                spread = f"{min(values):.0f} to {max(values):.0f}"
                print(
                    f"  {path:14s} {name:20s} {middle:6.0f} images/s ({spread}), {middle / base:.2f}x {BASE}"
                )
        for name, rounds in found.items():
            firsts = [one["first"] for one in rounds]
            print(
                f"  until the first batch is done, {name:20s} {statistics.median(firsts):5.2f} s "
                f"({min(firsts):.2f} to {max(firsts):.2f})"
            )


if __name__ == "__main__":
    main()
