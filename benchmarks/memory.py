"""Memory: the estimate of a training beside the truth, the peaks of submit, tune and report, and of one huge image.

    python benchmarks/memory.py [--threads 1] [--encoders mobilenet_v2 resnet18]
    python benchmarks/memory.py submit [--images 250 500 1000] [--side 1024]
    python benchmarks/memory.py large [--side 5000 10000 20000]

Estimate: every line is a process of its own. The truth is the growth of its largest resident size (VmHWM) since the
libraries were loaded: four steps with the memory kept as in training, then the tensors of a checkpoint; or four
forward passes, less the second copy of the weights that is held here.

Submit: the largest resident size of `masksmith submit`, `tune` and `report`, each a process of its own, on generated
images. The probabilities are real predictions, at the true size, of a net that works at 64x64. Where memory is flat in
the number of images, the peaks are equal. The disk holds up to 4 GB at 1,000 images of 1024x1024, deleted afterwards.
Large: the largest resident size of each verb where one test image has so many pixels a side (grey, a tiled TIFF), and
the seconds that it took. The training images have 256 pixels a side; prediction is on tiles.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SIZES = [(8, 64), (32, 64), (32, 112), (16, 224)]
MIB = 2**20
FEW = 64  # images of the set that a command does not go through; enough for a net that finds discs
TINY = [
    *("--recipe", "smoke", "--set", "size.resize_hw=[64, 64]", "--set", "size.pad_hw=[64, 64]"),
    *("--set", "training.stages.0.epochs=8", "--set", "folds.count=2", "--set", "folds.train=null"),
]


SMOKE = [
    *("--recipe", "smoke", "--set", "prediction.tile_hw=[512, 512]", "--set", "folds.count=2"),
    *("--set", "prediction.batch_size=4", "--set", "prediction.tta=[identity]"),
]


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

        from masksmith.training.checkpoint import contiguous, pack_state

        save(
            contiguous(
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


def write_images(data: Path, side: int, train: int, test: int) -> None:
    """Write a folder of images and masks: bright discs, one or none an image."""
    import cv2
    import numpy as np

    for name in ("images", "masks", "test"):
        (data / name).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for at in range(train + test):
        mask = np.zeros((side, side), np.uint8)
        if at % 4:
            spot = [int(one) for one in rng.integers(0, side, 2)]
            cv2.circle(mask, spot, int(rng.integers(side // 16, side // 4)), 255, -1)
        ramp = np.linspace(rng.integers(20, 60), rng.integers(60, 120), side, dtype=np.float32)
        image = (ramp + 0.5 * mask).astype(np.uint8)
        cv2.imwrite(str(data / ("images" if at < train else "test") / f"{at}.png"), image)
        if at < train:
            cv2.imwrite(str(data / "masks" / f"{at}.png"), mask)


def peak_mib(*arguments: object) -> float:
    """Run a command of masksmith and return its largest resident size."""
    command = [sys.executable, "-m", "masksmith", "-q", *map(str, arguments)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise SystemExit(f"masksmith {arguments[0]} ended with {os.waitstatus_to_exitcode(status)}")
    return usage.ru_maxrss / 1024


def write_large(data: Path, side: int) -> None:
    """Write small training images, and one large test image as a tiled TIFF."""
    import numpy as np
    import tifffile

    write_images(data, 256, FEW, 0)
    rng = np.random.default_rng(1)
    image = np.tile(np.linspace(30, 100, side, dtype=np.float32).astype(np.uint8), (side, 1))
    for y, x in rng.integers(0, side - 128, (side // 64, 2)):
        image[y : y + 100, x : x + 100] += 120
    tifffile.imwrite(data / "test" / "large.tif", image, tile=(512, 512), compression="zlib")


def report_large(sides: list[int]) -> None:
    print("peak in MiB (seconds)   " + " ".join(f"{side:>12d}²" for side in sides))
    found: dict[str, list[str]] = {}
    for side in sides:
        with tempfile.TemporaryDirectory() as name:
            data, project = Path(name) / "data", Path(name) / "project"
            task = json.dumps({"data": str(data), "large": side})
            subprocess.run([sys.executable, __file__, "--write", task], check=True)
            for verb in ("check", "train", "predict", "tune", "submit", "report"):
                start = time.perf_counter()
                more = {"check": (data, "--out", project), "train": (project, *SMOKE)}.get(verb, (project,))
                peak = peak_mib(verb, *more)
                found.setdefault(verb, []).append(f"{peak:6.0f} ({time.perf_counter() - start:4.0f})")
    for verb, row in found.items():
        print(f"{verb:22s}  " + " ".join(f"{cell:>13s}" for cell in row))


def peaks(side: int, train: int, test: int, verbs: list[str]) -> dict[str, float]:
    """Return the peak of each verb in MiB, in a fresh project."""
    with tempfile.TemporaryDirectory() as name:
        data, project = Path(name) / "data", Path(name) / "project"
        # a process of its own: a child's peak begins with the size of its parent
        task = json.dumps({"data": str(data), "side": side, "train": train, "test": test})
        subprocess.run([sys.executable, __file__, "--write", task], check=True)
        peak_mib("check", data, "--out", project)
        peak_mib("train", project, *TINY)
        peak_mib("predict", project)
        return {verb: peak_mib(verb, project) for verb in verbs}


def report_submit(counts: list[int], side: int) -> None:
    print(f"peak in MiB, {side}x{side}   " + " ".join(f"{count:>8d}" for count in counts) + "     last/first")
    found: dict[str, list[float]] = {"submit": [], "tune": [], "report": []}
    for count in counts:
        found["submit"].append(peaks(side, FEW, count, ["tune", "submit"])["submit"])
        for verb, peak in peaks(side, count, FEW, ["tune", "report"]).items():
            found[verb].append(peak)
    for verb, row in found.items():
        print(f"{verb:24s}  " + " ".join(f"{peak:8.0f}" for peak in row) + f"  {row[-1] / row[0]:12.2f}")


def report_estimate(encoders: list[str], threads: int) -> None:
    print("encoder       work        precision   batch  size  truth MiB  estimate MiB  ratio  seconds")
    for encoder in encoders:
        for work in ("training", "prediction"):
            for precision in ("bf16-mixed", "32-true"):
                for batch_size, side in SIZES:
                    task = {"encoder": encoder, "precision": precision, "batch_size": batch_size}
                    task |= {"side": side, "threads": threads, "work": work}
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", choices=["estimate", "submit", "large"], default="estimate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--encoders", nargs="+", default=["mobilenet_v2", "resnet18"])
    parser.add_argument("--images", nargs="+", type=int, default=[250, 500, 1000])
    parser.add_argument("--side", nargs="+", type=int, help="1024; large: 5000 10000 20000")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--write", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        task = json.loads(chosen.one)
        print(json.dumps((measure if task.pop("measure") else estimate)(**task)))
    elif chosen.write:
        task = json.loads(chosen.write)
        data = Path(task.pop("data"))
        if "large" in task:
            write_large(data, task["large"])
        else:
            write_images(data, **task)
    elif chosen.part == "large":
        report_large(chosen.side or [5000, 10000, 20000])
    elif chosen.part == "submit":
        report_submit(chosen.images, (chosen.side or [1024])[0])
    else:
        report_estimate(chosen.encoders, chosen.threads)


if __name__ == "__main__":
    main()
