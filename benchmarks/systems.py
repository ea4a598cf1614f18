"""Ten minutes for each published system, on the same fold and machine: score, seconds an epoch, memory.

    python benchmarks/systems.py DATA OUT RECIPE [RECIPE …] [--budget 10m] [--set KEY=VALUE …]

Each recipe is a fresh project in ``OUT`` with one fold; the budget shortens its stages in proportion, so that schedules
end. The score is the recipe's metric out of fold, plain (threshold 0.5) and as the report shows it, beside predicting
nothing. Memory is the largest resident set of the whole command.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path


def measured(data, project, recipe, budget, settings):
    """Run one command; return its facts."""
    words = [word for setting in ("folds.train=1", *settings) for word in ("--set", setting)]
    command = [sys.executable, "-m", "masksmith", "-q", "compete", data, "--out", project, "--recipe", recipe]
    started = time.monotonic()
    child = subprocess.Popen([*map(str, command), "--budget", budget, *words], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    wall_s = time.monotonic() - started
    if status:
        raise SystemExit(f"{recipe}: the command ended with {os.waitstatus_to_exitcode(status)}")
    events = [json.loads(line) for path in project.glob("runs/*/metrics*.jsonl") for line in path.open()]
    seconds = [event["value"] for event in events if event["name"] == "seconds"]
    tuning = json.loads((project / "tuning.json").read_text())
    plan = json.loads((project / "plan.json").read_text())
    return {
        "recipe": recipe,
        "minutes": wall_s / 60,
        "units": " + ".join(
            f"{unit['kind']} of {unit['epochs']}" for unit in plan["units"] if unit["joined"]
        ),
        "epoch_s": (statistics.median(seconds), min(seconds), max(seconds)),
        "memory_gib": usage.ru_maxrss / 2**20,
        "plain": tuning["scores"]["plain"],
        "chosen": tuning["scores"]["chosen"],
        "error": tuning["standard_error"],
        "nothing": tuning["scores"]["nothing"],
        "metric": tuning["metric"],
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipes", nargs="+")
    parser.add_argument("--budget", default="10m")
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    for recipe in options.recipes:
        project = options.out / re.sub(r"\W+", "-", Path(recipe).stem)
        facts = measured(options.data, project, recipe, options.budget, options.set)
        median, least, most = facts["epoch_s"]
        print(
            f"{recipe:24s} {facts['minutes']:5.1f} min  {facts['metric']} {facts['chosen']:.4f} ± {facts['error']:.4f} "
            f"(plain {facts['plain']:.4f}, nothing {facts['nothing']:.4f})  {facts['units']}  "
            f"{median:.1f} s an epoch ({least:.1f} to {most:.1f})  {facts['memory_gib']:.1f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    main()
