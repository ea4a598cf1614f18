"""One training by two processes beside one: processor time of a step, and how far the weights are apart.

    python benchmarks/devices.py [--encoder tu-resnet18] [--rounds 3]

A step's time is the slope between a short and a longer training, so that starting (imports, processes) is left out.
Processor time counts all processes of a training; where the machine is busy the seconds on the clock mean little.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import masksmith as ms  # first: its guard lets torchvision import beside a CPU build of torch
from masksmith.training.machine import describe_machine

IMAGES, BATCH, SHORT, LONG = 96, 16, 1, 5  # images, and epochs of both trainings
HOW = {"1 process, 1 thread": (1, 1), "1 process, 2 threads": (1, 2), "2 processes, 1 thread each": (2, 2)}


def seconds(project, sets):
    """Train a fold in a process of its own; return its processor seconds and those on the clock."""
    command = [sys.executable, "-m", "masksmith", "-q", "train", str(project), "--recipe", "smoke"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    subprocess.run([*command, *(f"--set={one}" for one in sets)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return spent, time.monotonic() - began


def trained(folder, encoder, devices, threads, epochs):
    """Train from new; return the seconds and the weights."""
    from safetensors.numpy import load_file

    with tempfile.TemporaryDirectory(dir=folder) as name:
        project = Path(name) / "p"
        ms.check(folder / "data", out=project)
        ms.folds(project, recipe="smoke")
        sets = [
            f"model.encoder={encoder}", "model.norm=group", "model.encoder_norm=group", "training.device=cpu",
            "training.stages.0.optimizer.name=sgd", "training.stages.0.optimizer.weight_decay=0.0",
            f"training.batch_size={BATCH}", f"training.devices={devices}", f"training.threads={threads}",
            f"training.stages.0.epochs={epochs}", "training.evaluate_every=100",
        ]  # fmt: skip
        spent = seconds(project, sets)
        (final,) = project.glob("runs/*/checkpoints/fold_0/final.safetensors")
        return spent, load_file(final)


def apart(one, two):
    """Return the distance of all weights, as a share of their length."""
    length, distance = (
        sum((part.astype(float) ** 2).sum() for part in parts) ** 0.5
        for parts in (one.values(), [one[key].astype(float) - two[key] for key in one])
    )
    return distance / length


def main():
    """Print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--encoder", default="tu-resnet18")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ms.example(folder, train=IMAGES, test=2)
        slopes = {how: [] for how in HOW}
        ends = {}
        for _ in range(options.rounds):
            for how, (devices, threads) in HOW.items():
                (short, _), (long, ends[how]) = (
                    trained(folder, options.encoder, devices, threads, epochs) for epochs in (SHORT, LONG)
                )
                steps = (LONG - SHORT) * (IMAGES * 2 // 3 // BATCH)
                slopes[how].append([(b - a) / steps for a, b in zip(short, long, strict=True)])
        print(describe_machine())
        for how, found in slopes.items():
            for kind, values in zip(("processor", "clock"), zip(*found, strict=True), strict=True):
                print(
                    f"{how}: {statistics.median(values):.3f} s of the {kind} a step "
                    f"({min(values):.3f} to {max(values):.3f})"
                )
        first, *others = HOW
        for how in others:
            print(
                f"{how}: weights {apart(ends[first], ends[how]):.1e} from those of {first} after {LONG} epochs"
            )


if __name__ == "__main__":
    main()
