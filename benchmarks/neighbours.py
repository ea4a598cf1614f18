"""How much slower is a training step beside busy processes, and what do waiting threads have to do with it?

    python benchmarks/neighbours.py [--neighbours 0 1 2] [--seconds 15] [--rounds 2]

Each figure is a process of its own that trains the recipe `auto` (ResNet-18, random weights) on random images at
112x112 with two threads, under one policy of OpenMP for threads that wait for each other: its default (they spin),
passive (they sleep; ``OMP_WAIT_POLICY=PASSIVE``), or a short spin (``GOMP_SPINCOUNT=1000``); the last policy is a
single thread. A neighbour multiplies matrices without end on one thread. Policies take turns.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time

POLICIES = {
    "default": {},
    "passive": {"OMP_WAIT_POLICY": "PASSIVE"},
    "short spin": {"GOMP_SPINCOUNT": "1000"},
    "one thread": {},
}


def busy():
    """Use one core without end."""
    import numpy as np

    matrix = np.ones((512, 512), np.float32)
    while True:
        matrix @ matrix


def measure(seconds, threads):
    """Print images a second: median of the steps that begin within ``seconds``."""
    import masksmith  # noqa: F401  (its guard, before torch)
    from masksmith.planning.measure import Stepper
    from masksmith.recipe import load_recipe
    from masksmith.training.machine import settle_machine

    recipe = load_recipe(
        "auto", (f"training.threads={threads}", "model.encoder=resnet18", "model.encoder_weights=none")
    )
    config = settle_machine(recipe.training)
    loss = config.stages[-1].loss
    stepper = Stepper(recipe.model, config, in_channels=1, canvas_hw=(112, 112), batch_size=32, loss=loss)
    stepper.step()
    times, begun = [], time.perf_counter()
    while not times or time.perf_counter() - begun < seconds:
        started = time.perf_counter()
        stepper.step()
        times.append(time.perf_counter() - started)
    print(json.dumps(32 / statistics.median(times)))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neighbours", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2, help=argparse.SUPPRESS)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.seconds, options.threads)
        return
    os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of a neighbour
    print(f"{'neighbours':>10s} {'policy':>10s}  images/s")
    for count in options.neighbours:
        processes = [multiprocessing.Process(target=busy, daemon=True) for _ in range(count)]
        for process in processes:
            process.start()
        rates = {name: [] for name in POLICIES}
        for _ in range(options.rounds):
            for name, words in POLICIES.items():
                threads = 1 if name == "one thread" else 2
                words_of = ["--seconds", str(options.seconds), "--threads", str(threads)]
                command = [sys.executable, __file__, "--one", *words_of]
                done = subprocess.run(
                    command, env=os.environ | words, capture_output=True, text=True, check=True
                )
                rates[name].append(json.loads(done.stdout.splitlines()[-1]))
        for process in processes:
            process.kill()
        for name, values in rates.items():
            shown = ", ".join(f"{value:.1f}" for value in values)
            print(f"{count:10d} {name:>10s}  {shown}", flush=True)


if __name__ == "__main__":
    main()
