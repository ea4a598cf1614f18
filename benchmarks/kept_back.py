"""Does more time score better on labels that nobody saw? A fifth of the training images plays the hidden test set.

    python benchmarks/kept_back.py TGS OUT --budgets 5m 10m 20m [--more 20m] [--set KEY=VALUE ...]
    python benchmarks/kept_back.py TGS OUT --budgets 5m --splits 0 1 2 3 4

``TGS`` is a folder in Kaggle's layout of TGS Salt (``train.zip``, ``train.csv``, ``depths.csv``). A copy is made in
``OUT/data`` in which a fifth of the training pairs, drawn with seed 0, is the test set; their masks go to
``OUT/solution.csv`` and are read only to score. Each budget is a fresh project; ``--more`` continues the last one.
``--splits`` draws the hidden images with these seeds, each in a folder of its own. Beside each hidden score is the one
out of fold, and the difference in standard errors: those of the held-out and of the hidden images together.
"""

import argparse
import csv
import io
import json
import math
import random
import statistics
import subprocess
import sys
import time
import zipfile
from pathlib import Path


def read_rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_rows(path, rows):
    with path.open("x", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def keep_back(source, out, share=0.2, seed=0):
    """Write the reduced copy and the solution; returns the numbers of training and test images."""
    data = out / "data"
    data.mkdir(parents=True)
    rows = read_rows(source / "train.csv")
    hidden = {row["id"] for row in random.Random(seed).sample(rows, round(share * len(rows)))}
    kept = [row for row in rows if row["id"] not in hidden]
    solution = [row for row in rows if row["id"] in hidden]
    write_rows(data / "train.csv", kept)
    write_rows(out / "solution.csv", solution)
    write_rows(data / "sample_submission.csv", [{"id": row["id"], "rle_mask": "1 1"} for row in solution])
    depths = read_rows(source / "depths.csv")
    known = {row["id"] for row in rows}
    write_rows(data / "depths.csv", [row for row in depths if row["id"] in known])
    with (
        zipfile.ZipFile(io.BytesIO((source / "train.zip").read_bytes())) as archive,
        zipfile.ZipFile(data / "train.zip", "w") as train,
        zipfile.ZipFile(data / "test.zip", "w") as test,
    ):
        for name in archive.namelist():
            folder, stem = Path(name).parent.name, Path(name).stem
            if not stem or name.endswith("/"):
                continue
            if stem not in hidden:
                train.writestr(name, archive.read(name))
            elif folder == "images":
                test.writestr(name, archive.read(name))
    return len(kept), len(solution)


def masksmith(*arguments):
    command = [sys.executable, "-m", "masksmith", "-q", *map(str, arguments)]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def promise(project, scores):
    """Return what out of fold promised, and how far off the hidden labels' scores are."""
    tuning = json.loads((project / "tuning.json").read_text())
    said, error = tuning["scores"]["chosen"], tuning["standard_error"]
    hidden = sum(scores) / len(scores)
    own = statistics.stdev(scores) / math.sqrt(len(scores))
    off = (hidden - said) / math.hypot(error, own)
    return (
        f"hidden {hidden:.4f} ± {own:.4f}, out of fold {said:.4f} ± {error:.4f}: {off:+.2f} standard errors"
    )


def compete(options, out, words):
    for number, budget in enumerate([*options.budgets, *options.more]):
        project = out / (budget if number < len(options.budgets) else options.budgets[-1])
        started = time.monotonic()
        amount = f"+{budget}" if number >= len(options.budgets) else budget
        masksmith("compete", out / "data", "--out", project, "--budget", amount, *words)
        minutes = (time.monotonic() - started) / 60
        table = out / "scores.csv"
        masksmith("score", project / "submission.csv", out / "solution.csv", "--per-image", table)
        scores = [float(row["tgs_map"]) for row in read_rows(table)]
        print(f"{amount:>6s}  {minutes:5.1f} min  {promise(project, scores)}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tgs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budgets", nargs="+", default=["5m", "10m", "20m"])
    parser.add_argument("--more", nargs="*", default=[])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--recipe")
    parser.add_argument("--splits", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    words = [word for setting in options.set for word in ("--set", setting)]
    if options.recipe:
        words += ["--recipe", options.recipe]
    for seed in options.splits:
        out = options.out if options.splits == [0] else options.out / f"split{seed}"
        if not (out / "data").exists():
            kept, hidden = keep_back(options.tgs, out, seed=seed)
            print(f"split {seed}: {kept} training and {hidden} hidden images", flush=True)
        compete(options, out, words)


if __name__ == "__main__":
    main()
