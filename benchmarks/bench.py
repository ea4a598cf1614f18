"""Ours against the usual script, in turn: the ratios of ``benchmarks/results/latest.json``.

    python benchmarks/bench.py [--only whole augment pieces] [--rounds 3] [--threads 2] [--cpu-time]

``train/E`` and ``predict/E`` (E an encoder): images/s of ``masksmith train`` (checkpoints and log included) and of
``masksmith predict``, ``tune`` and ``submit`` (two views, down to run-lengths), over those of ``reference_script.py``
on the same generated images of 101x101 at the same canvas of 128x128. Ours is the recipe ``auto`` as it trains coarse
masks (logits at a quarter of the size); the script's net is segmentation-models-pytorch's as it comes. The rest are
pieces: augmentation against albumentations, the search of thresholds and areas, metric, components and run-lengths
against the loops of notebooks.

Each ratio is the median of the rounds; each round measures both, each training and prediction in a process of its own.
``--cpu-time`` counts processor seconds of one thread, for a machine that does other things too.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

ENCODERS = ["resnet18", "resnet34", "mobilenet_v2", "efficientnet_lite0"]
OURS = {"efficientnet_lite0": "tf_efficientnet_lite0"}
THEIRS = {"efficientnet_lite0": "tu-tf_efficientnet_lite0"}
RESULTS = Path(__file__).parent / "results" / "latest.json"
TRAIN, TEST, THEIR_TEST, EPOCHS = 400, 1500, 160, 3


def clock_of(options):
    return time.process_time if options.cpu_time else time.perf_counter


def ours(data, folder, encoder, options):
    """Return images/s of training and of prediction, in this process."""
    import torch

    import masksmith as ms
    from masksmith.recipes.recipe import load_recipe

    torch.set_num_threads(options.threads)
    clock, stage = clock_of(options), load_recipe("auto").training.stages[0]
    changes = {
        "folds.count": 5,
        "folds.train": 1,
        "size.pad_hw": [128, 128],
        "model.encoder": OURS.get(encoder, encoder),
        "model.encoder_weights": "none",
        "model.decoder_channels": [128, 64],
        "training.threads": options.threads,
    }

    def trained(epochs):
        one = stage.model_copy(update={"epochs": epochs, "scale": 1.0}).model_dump(mode="json")
        started = clock()
        ms.train(
            folder, overrides=changes | {"training.stages": [one], "training.evaluate_every": EPOCHS + 2}
        )
        return clock() - started

    ms.check(data, out=folder)
    ms.folds(folder, overrides=changes)
    trained(1)  # what is loaded and compiled once
    first = trained(2)
    longer = trained(2 + EPOCHS)
    seen = sum(row.fold != 0 for row in ms.folds(folder, overrides=changes).rows)
    started = clock()
    ms.predict(folder)
    ms.tune(folder)
    ms.submit(folder)
    return {"train": EPOCHS * seen / (longer - first), "predict": (TEST + TRAIN - seen) / (clock() - started)}


def theirs(data, encoder, options):
    """Return the same of the reference script."""
    words = [
        "--pace",
        str(options.seconds),
        "--encoder",
        THEIRS.get(encoder, encoder),
        "--most",
        str(THEIR_TEST),
    ]
    if options.cpu_time:
        words += ["--workers", "0", "--cpu-time"]
    return child("reference_script.py", data, *words, *albumentations(options), threads=options.threads)


def albumentations(options):
    return ["--albumentations", options.albumentations] if options.albumentations else []


def child(script, *words, threads):
    """Run a benchmark in a process of its own and return the JSON of its last line."""
    command = [sys.executable, str(Path(__file__).parent / script), *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    return json.loads(done.stdout.splitlines()[-1])


def whole(options):
    """Yield key, images/s of ours and images/s of the script for training and prediction, each round of it."""
    with tempfile.TemporaryDirectory() as folder:
        made = [sys.executable, "-m", "masksmith", "-q", "example", f"{folder}/set", "--layout", "tgs"]
        sizes = ["--side", "101", "--train", str(TRAIN), "--test", str(TEST)]
        subprocess.run([*made, *sizes], check=True, stdout=subprocess.DEVNULL)
        data = Path(folder) / "set" / "data"
        for encoder in options.encoders:
            for number in range(options.rounds):
                words = ["--one", data, f"{folder}/{encoder}{number}", encoder, "--threads", options.threads]
                own = child(
                    "bench.py", *words, *(["--cpu-time"] if options.cpu_time else []), threads=options.threads
                )
                other = theirs(data, encoder, options)
                for part in ("train", "predict"):
                    yield f"{part}/{encoder}", own[part], other[part]


def augmentation(options):
    """Yield the same of augmentation, on one core."""
    import cv2

    import augment

    cv2.setNumThreads(1)
    sys.path.extend(albumentations(options)[1:])
    engines = {"ours": augment.ours, "albumentations": lambda *one: augment.theirs(*one, as_float=True)}
    for key, size, canvas, distort in (
        ("101", 101, 128, False), ("512", 512, 512, False), ("512-distort", 512, 512, True),
    ):  # fmt: skip
        found = augment.measure(engines, size, canvas, 3, distort, options.rounds)
        for own, other in zip(found["ours"], found["albumentations"], strict=True):
            yield f"augment/{key}", own, other


def pieces(options):
    """Yield calls a second of the searches, the metric, components and run-lengths, of ours and of the loops."""
    import cv2
    import loops

    cv2.setNumThreads(1)
    for key, own, other, share in loops.pairs():
        for _ in range(options.rounds):
            yield key, loops.rate(own), loops.rate(other) * share


PARTS = {"whole": whole, "augment": augmentation, "pieces": pieces}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--encoders", nargs="+", default=ENCODERS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=15.0, help="of the script's training")
    parser.add_argument("--cpu-time", action="store_true", help="processor seconds of one thread")
    parser.add_argument("--albumentations", help="site-packages folder that has it")
    parser.add_argument("--one", nargs=3, metavar=("DATA", "PROJECT", "ENCODER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.cpu_time:
        options.threads = 1
    if options.one:
        print(json.dumps(ours(*options.one, options)))
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    clock = (
        "processor seconds of one thread" if options.cpu_time else f"wall-clock, {options.threads} threads"
    )
    for part in options.only:
        found = {}
        for key, own, other in PARTS[part](options):
            found.setdefault(key, []).append((own, other))
        for key, rounds in found.items():
            ratios = sorted(own / other for own, other in rounds)
            results[key] = {
                "ratio": round(statistics.median(ratios), 2),
                "n": len(ratios),
                "spread": [round(ratios[0], 2), round(ratios[-1], 2)],
                "ours_per_s": round(statistics.median(own for own, _ in rounds), 2),
                "theirs_per_s": round(statistics.median(other for _, other in rounds), 2),
                "clock": clock if part == "whole" else "processor seconds of one thread",
                "machine": hardware(),
                "date": date.today().isoformat(),
            }
            print(f"{key:28s} {results[key]['ratio']:8.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})", flush=True)
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")


def hardware():
    from masksmith.core.processor import processor_name

    return f"{processor_name()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
