"""Does more time score better on labels that nobody saw? A fifth of the training images plays the hidden test set.

    python benchmarks/kept_back.py DATA OUT --budgets 5m 10m 20m [--more 20m] [--set KEY=VALUE ...]
    python benchmarks/kept_back.py DATA OUT --budgets 5m --splits 0 1 2 3 4 [--metric iou_pooled]

``DATA`` is TGS Salt (``train.zip``, ``train.csv``, ``depths.csv``), a folder an image with a mask an object
(``stage1_train``), two folders of pairs (``images``, ``labels``), or CamVid's (``train``, ``trainannot``, ``val``,
``valannot``: there the given second part is hidden, as the frames are neighbours). A copy is made in ``OUT/data`` in
which a fifth of the training images, drawn with seed 0, is the test set; their masks go to ``OUT/truth`` (of TGS to
``OUT/solution.csv``) and are read only to score. Each budget is a fresh project; ``--more`` continues the last one.
``--splits`` draws the hidden images with these seeds, each in a folder of its own. Beside each hidden score is the one
out of fold, and the difference in standard errors: those of the held-out and of the hidden images together. Below are
the hidden scores of the submissions that the project kept on its way, with their members: what each unit was worth.
"""

import argparse
import csv
import io
import json
import math
import random
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np

from masksmith.core.files import file_digest
from masksmith.submission.score import score_files


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


def keep_back_folders(source, out, share=0.2, seed=0):
    """The same of two folders of pairs, or of a folder an image; the masks of objects become one label map."""
    data, truth = out / "data", out / "truth"
    truth.mkdir(parents=True)
    objects, video = (source / "stage1_train").is_dir(), (source / "valannot").is_dir()
    images, masks = ("train", "trainannot") if video else ("images", "labels")
    if objects:
        folders = {path.name: path for path in sorted((source / "stage1_train").iterdir())}
    else:
        folders = {path.stem: path for path in sorted((source / images).iterdir())}
    hidden = set() if video else set(random.Random(seed).sample(sorted(folders), round(share * len(folders))))
    for name, path in folders.items():
        if objects:
            if name in hidden:
                shutil.copytree(path / "images", data / "stage1_test" / name / "images")
                cv2.imwrite(str(truth / f"{name}.png"), label_map(path / "masks"))
            else:
                shutil.copytree(path, data / "stage1_train" / name)
            continue
        mask = source / masks / f"{name}.png"
        place = data / "test_images" if name in hidden else data / images
        copy(path, place)
        copy(mask, truth if name in hidden else data / masks)
    if video:
        for path in sorted((source / "val").iterdir()):
            hidden.add(path.stem)
            copy(path, data / "test")
            copy(source / "valannot" / path.name, truth)
    return len(folders) - len(hidden & set(folders)), len(hidden)


def copy(path, folder):
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(path, folder)


def label_map(folder):
    planes = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in sorted(folder.iterdir())]
    labels = np.zeros(planes[0].shape[:2], np.uint16)
    for number, plane in enumerate(planes, 1):
        labels[(plane if plane.ndim == 2 else plane[..., 0]) > 0] = number
    return labels


def masksmith(*arguments):
    command = [sys.executable, "-m", "masksmith", "-q", *map(str, arguments)]
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout


def promise(project, hidden):
    """Return what out of fold promised, and how far off the hidden labels' score is."""
    tuning = json.loads((project / "tuning.json").read_text())
    said, error = tuning["scores"]["chosen"], tuning["standard_error"]
    off = (hidden.score - said) / math.hypot(error, hidden.standard_error)
    return (
        f"hidden {hidden.score:.4f} ± {hidden.standard_error:.4f} (nothing {hidden.nothing:.4f}), "
        f"out of fold {said:.4f} ± {error:.4f}: {off:+.2f} standard errors"
    )


def on_the_way(project, score):
    """Yield the hidden score of each submission that was kept, and its members."""
    facts_of = project / "board" / "submissions.json"
    known = json.loads(facts_of.read_text()) if facts_of.exists() else {}
    for file in sorted((project / "submissions").glob("*.csv")):
        facts = known.get(file_digest(file), {})
        yield f"{score(file).score:.4f}  {file.stem}: {', '.join(facts.get('members', []))}"


def compete(options, out, words):
    truth = out / "truth" if (out / "truth").exists() else out / "solution.csv"

    def score(file):
        return score_files(file, truth, metric=options.metric, task=options.task, ignore=options.ignore)

    last = "masks" if options.masks else "submission.csv"
    for number, budget in enumerate([*options.budgets, *options.more]):
        project = out / (budget if number < len(options.budgets) else options.budgets[-1])
        started = time.monotonic()
        amount = f"+{budget}" if number >= len(options.budgets) else budget
        masksmith("compete", out / "data", "--out", project, "--budget", amount, *words)
        minutes = (time.monotonic() - started) / 60
        print(
            f"{amount:>6s}  {minutes:5.1f} min  {promise(project, score(project / last))}",
            flush=True,
        )
        for line in () if options.masks else on_the_way(project, score):
            print(f"        {line}", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--budgets", nargs="+", default=["5m", "10m", "20m"])
    parser.add_argument("--more", nargs="*", default=[])
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--recipe")
    parser.add_argument("--metric")
    parser.add_argument("--task")
    parser.add_argument("--masks", action="store_true", help="score the masks, not the table: of class maps")
    parser.add_argument("--ignore", action="append", default=[])
    parser.add_argument("--splits", nargs="+", type=int, default=[0])
    options = parser.parse_args()
    words = [word for setting in options.set for word in ("--set", setting)]
    for name in ("recipe", "metric", "task"):
        if getattr(options, name):
            words += [f"--{name}", getattr(options, name)]
    words += [word for value in options.ignore for word in ("--ignore", value)]
    for seed in options.splits:
        out = options.out if options.splits == [0] else options.out / f"split{seed}"
        if not (out / "data").exists():
            draw = keep_back if (options.data / "train.csv").exists() else keep_back_folders
            kept, hidden = draw(options.data, out, seed=seed)
            print(f"split {seed}: {kept} training and {hidden} hidden images", flush=True)
        compete(options, out, words)


if __name__ == "__main__":
    main()
