"""Is a budget kept? Wall-clock time of whole commands, on a quiet machine and beside busy processes.

    python benchmarks/budget.py [--budgets 90s 3m] [--neighbours 0 2] [--train 600]

Each row is a fresh project on generated images. A neighbour is a process that multiplies matrices on one thread, from
20 seconds after the command on. The time is that of the whole command, imports and report included. Allowed: 5% and 30
seconds more than the budget. "replanned" counts how often the training was shortened or lengthened.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from masksmith.planning.budget import parse_duration
from masksmith.training.events import read_events


def busy(wait_s):
    """Use one core without end, from ``wait_s`` seconds on."""
    import numpy as np

    time.sleep(wait_s)
    matrix = np.ones((512, 512), np.float32)
    while True:
        matrix @ matrix


def masksmith(*arguments):
    command = [sys.executable, "-m", "masksmith", "-q", *map(str, arguments)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budgets", nargs="+", default=["90s", "3m"])
    parser.add_argument("--neighbours", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--train", type=int, default=600)
    options = parser.parse_args()
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of a neighbour
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        masksmith("example", folder, "--train", options.train, "--test", 100)
        heads = {
            "budget": 8,
            "neighbours": 10,
            "wall": 8,
            "allowed": 8,
            "units": 6,
            "replanned": 9,
            "score": 7,
        }
        print(" ".join(f"{head:>{width}s}" for head, width in heads.items()))
        for text in options.budgets:
            for count in options.neighbours:
                row(folder, text, count)


def row(folder, text, count):
    out = folder / f"{text}-{count}"
    processes = [multiprocessing.Process(target=busy, args=(20.0,), daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    started = time.monotonic()
    weights = ("--set", "model.encoder_weights=none")
    masksmith("compete", folder / "data", "--out", out, "--budget", text, *weights)
    wall = time.monotonic() - started
    for process in processes:
        process.kill()
    asked = parse_duration(text).seconds
    units = json.loads((out / "plan.json").read_text())["units"]
    events = [event for log in out.glob("runs/*/metrics*.jsonl") for event in read_events(log)]
    replanned = sum(event["name"] == "replanned" for event in events)
    score = json.loads((out / "tuning.json").read_text())["scores"]["chosen"]
    print(
        f"{text:>8s} {count:10d} {wall:7.0f}s {1.05 * asked + 30:7.0f}s {len(units):6d} {replanned:9d} {score:7.4f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
