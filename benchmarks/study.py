"""Which training is best in a given time? Variants on a fixed split of TGS Salt's training images in three.

    python benchmarks/study.py TGS RESULTS.jsonl NAME SECONDS '{"decoder": [128, 64]}' [--judge] [--seed 1]
    python benchmarks/study.py TGS RESULTS.jsonl --table BASELINE

A variant is trained on *fit* (13 of 20 images) for SECONDS of processor time on one thread, and scored on *choose* (4
of 20); with ``--judge`` on *judge* (3 of 20), which is for winners only. The split is drawn with seed 2, stratified by
coverage. Every result is one line of RESULTS.jsonl with the score of each image, so that ``--table`` can show paired
differences to a baseline, and a study can go on from where it was. Processor time, not wall-clock, ends a training:
other processes on the machine change little.

Options (their defaults are those of ``auto`` when the study began): see ``DEFAULTS``. The studies: docs/studies/.
"""

import argparse
import copy
import io
import json
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import torch

from masksmith.losses.lovasz_extension import lovasz_elu
from masksmith.losses.pixelwise import bce
from masksmith.losses.regions import dice
from masksmith.metrics import get_metric
from masksmith.models.config import ModelConfig
from masksmith.models.cpu import quicken_depthwise
from masksmith.models.encoders import settle_encoder
from masksmith.models.segmentation import build_model, to_channels_last
from masksmith.training.machine import keep_memory

DEFAULTS = {
    "encoder": "tf_efficientnet_lite0",
    "depth": 4,
    "decoder": [128, 64, 32, 16],  # fewer: the last levels are left out
    "sizes": [[0.0, 64], [0.45, 112]],  # from which share of the time on, at which size
    "batch": 32,
    "lr": 3e-3,
    "weight_decay": 1e-2,
    "warmup": 0.15,
    "lovasz_from": 0.4,  # share of the time with BCE + Dice
    "ema": 0.99,
    "rotate": 8.0,
    "scale": [0.88, 1.15],
    "shift": 0.06,
}
BORDER = cv2.BORDER_REFLECT_101
TRUE_SIDE = 101
FULL_SIDE = 112  # of the canvas at which a pixel of the image is a pixel of the canvas


def read_images(archive, folder):
    """Return id -> picture of one channel."""
    with zipfile.ZipFile(io.BytesIO(Path(archive).read_bytes())) as file:
        names = sorted(name for name in file.namelist() if folder in name and name.endswith(".png"))
        pictures = [
            cv2.imdecode(np.frombuffer(file.read(name), np.uint8), cv2.IMREAD_UNCHANGED) for name in names
        ]
    return np.stack([one[..., 0] if one.ndim == 3 else one for one in pictures])


def split(coverage):
    """Return 0 (fit), 1 (choose) or 2 (judge) for each image."""
    rng = np.random.default_rng(2)
    order = np.lexsort((np.random.default_rng(1).random(len(coverage)), np.ceil(coverage * 10)))
    parts = np.empty(len(coverage), int)
    for first in range(0, len(order), 20):
        places = order[first : first + 20]
        deal = np.array([0] * 13 + [1] * 4 + [2] * 3)[: len(places)]
        rng.shuffle(deal)
        parts[places] = deal
    return parts


def placement(side, *, angle=0.0, zoom=1.0, shift=(0.0, 0.0), flip=False):
    """Return the matrix that lays an image on the middle of a canvas of ``side`` pixels."""
    middle = (TRUE_SIDE - 1) / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), angle, zoom * side / FULL_SIDE)
    matrix[:, 2] += (side - 1) / 2 - middle + np.multiply(shift, side)
    if flip:
        matrix[0] *= -1
        matrix[0, 2] += side - 1
    return matrix


def warp(picture, matrix, side, *, nearest=False):
    mode = cv2.INTER_NEAREST if nearest else cv2.INTER_LINEAR
    return cv2.warpAffine(picture, matrix, (side, side), flags=mode, borderMode=BORDER)


def batch_of(images, masks, chosen, side, options, rng):
    """Return augmented images (b, 1, side, side) and masks (b, side, side)."""
    planes, targets = [], []
    for at in chosen:
        matrix = placement(
            side,
            angle=rng.uniform(-options["rotate"], options["rotate"]),
            zoom=rng.uniform(*options["scale"]),
            shift=rng.uniform(-options["shift"], options["shift"], 2),
            flip=rng.random() < 0.5,
        )
        plane = warp(images[at], matrix, side).astype(np.float32) / 255
        planes.append(plane * rng.uniform(0.9, 1.1) + rng.uniform(-0.06, 0.06))
        targets.append(warp(masks[at], matrix, side, nearest=True))
    image = torch.from_numpy(np.stack(planes).astype(np.float32))[:, None]
    return image.contiguous(memory_format=torch.channels_last), torch.from_numpy(np.stack(targets))


def build(options, seed):
    settled = settle_encoder(options["encoder"], "auto")
    config = ModelConfig(
        encoder=settled.encoder,
        encoder_weights=settled.weights,
        encoder_depth=options["depth"],
        decoder_channels=options["decoder"],
    )
    model = to_channels_last(build_model(config, in_channels=1, seed=seed))
    quicken_depthwise(model)
    return model


def train(model, images, masks, options, seconds, seed):
    """Train for ``seconds`` of processor time; return the averaged model and the number of steps."""
    rng, average = np.random.default_rng(seed), copy.deepcopy(model)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=options["weight_decay"], fused=True)
    started, steps, left = time.process_time(), 0, np.empty(0, int)
    while (share := (time.process_time() - started) / seconds) < 1:
        warmup = options["warmup"]
        after = (share - warmup) / (1 - warmup)
        rate = share / warmup if share < warmup else 0.5 * (1 + np.cos(np.pi * after))
        optimizer.param_groups[0]["lr"] = options["lr"] * max(rate, 1e-3)
        if len(left) < options["batch"]:
            left = rng.permutation(len(images))
        chosen, left = left[: options["batch"]], left[options["batch"] :]
        side = [side for since, side in options["sizes"] if share >= since][-1]
        image, target = batch_of(images, masks, chosen, side, options, rng)
        model.train()
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(image).mask_logits
        if share < options["lovasz_from"]:
            loss = bce(logits, target) + dice(logits, target)
        else:
            loss = lovasz_elu(logits, target) + 0.1 * bce(logits, target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        steps += 1
        decay = min(options["ema"], (1 + steps) / (10 + steps))
        with torch.no_grad():
            for mean, value in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
                if mean.dtype.is_floating_point:
                    mean.lerp_(value, 1 - decay)
    return average, steps


@torch.no_grad()
def predict(model, images, side):
    """Return probabilities at the true size, as a mean over the image and its mirror image."""
    matrix, found = placement(side), []
    back = cv2.invertAffineTransform(matrix)
    model.eval()
    for first in range(0, len(images), 32):
        planes = (
            np.stack([warp(one, matrix, side) for one in images[first : first + 32]]).astype(np.float32) / 255
        )
        image = torch.from_numpy(planes)[:, None].contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            probs = [model(view).mask_logits.sigmoid()[:, 0] for view in (image, image.flip(-1))]
        mean = ((probs[0] + probs[1].flip(-1)) / 2).numpy()
        found += [
            cv2.warpAffine(one, back, (TRUE_SIDE,) * 2, flags=cv2.INTER_LINEAR, borderMode=BORDER)
            for one in mean
        ]
    return np.stack(found)


def read_data(folder):
    """Return images, masks and the part of each image; those of one value are left out."""
    images, masks = (read_images(Path(folder) / "train.zip", name) for name in ("images/", "masks/"))
    seen = images.std(axis=(1, 2)) > 0
    images, masks = images[seen], (masks[seen] > 0).astype(np.uint8)
    return images, masks, split(masks.mean(axis=(1, 2)))


def scores(probs, masks):
    """Return the score of each image."""
    metric = get_metric("tgs_map")
    rows = [
        metric.stats((one > 0.5).astype(np.uint8)[..., None], mask[..., None])
        for one, mask in zip(probs, masks, strict=True)
    ]
    return [metric.score(np.stack([row])) for row in rows]


def mean_of(arguments):
    """Print the score of the mean of kept probabilities, and of each of them."""
    _, masks, parts = read_data(arguments.data)
    held = masks[parts == (2 if arguments.judge else 1)]
    kept = [np.load(file).astype(np.float32) for file in arguments.mean]
    each = [np.mean(scores(probs, held)) for probs in kept]
    both = np.mean(scores(np.mean(kept, axis=0), held))
    print(f"mean {both:.4f}; alone " + ", ".join(f"{one:.4f}" for one in each))


def run(arguments, options):
    images, masks, parts = read_data(arguments.data)
    fit, held = parts == 0, parts == (2 if arguments.judge else 1)
    started = time.perf_counter()
    if arguments.keep and arguments.keep.exists():
        raise SystemExit(f"{arguments.keep} is there already; name another file")
    model, steps = train(
        build(options, arguments.seed), images[fit], masks[fit], options, arguments.seconds, arguments.seed
    )
    probs = predict(model, images[held], options["sizes"][-1][1])
    if arguments.keep:
        np.save(arguments.keep, probs.astype(np.float16))
    each = scores(probs, masks[held])
    line = {
        "name": arguments.name,
        "seconds": arguments.seconds,
        "options": json.loads(arguments.options),
        "part": "judge" if arguments.judge else "choose",
        "seed": arguments.seed,
        "score": float(np.mean(each)),
        "steps": steps,
        "epochs": steps * options["batch"] / int(fit.sum()),
        "wall_s": time.perf_counter() - started,
        "each": [round(float(one), 2) for one in each],
    }
    with Path(arguments.results).open("a") as file:
        file.write(json.dumps(line) + "\n")
    print({key: value for key, value in line.items() if key != "each"})


def table(results, baseline):
    """Print each result beside a baseline: the paired difference and its standard error."""
    lines = [json.loads(line) for line in Path(results).read_text().splitlines()]
    base = next(line for line in lines if line["name"] == baseline)
    print(f"| variant | seconds | score | less {baseline} | epochs |\n|---|---|---|---|---|")
    for line in sorted(lines, key=lambda one: (one["seconds"], -one["score"])):
        if len(line["each"]) != len(base["each"]):
            continue
        gain = np.subtract(line["each"], base["each"])
        error = gain.std() / np.sqrt(len(gain))
        print(
            f"| {line['name']} `{json.dumps(line['options'])}` seed {line['seed']} | {line['seconds']:g} | "
            f"{line['score']:.4f} | {gain.mean():+.4f} ± {error:.4f} | {line['epochs']:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("results")
    parser.add_argument("name", nargs="?")
    parser.add_argument("seconds", nargs="?", type=float)
    parser.add_argument("options", nargs="?", default="{}")
    parser.add_argument("--judge", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", metavar="BASELINE")
    parser.add_argument(
        "--keep", type=Path, metavar="FILE.npy", help="keep the probabilities, to average nets"
    )
    parser.add_argument(
        "--mean", type=Path, nargs="+", metavar="FILE.npy", help="score the mean of kept ones"
    )
    arguments = parser.parse_args()
    if arguments.table:
        table(arguments.results, arguments.table)
        return
    if arguments.mean:
        mean_of(arguments)
        return
    given = json.loads(arguments.options)
    if unknown := set(given) - set(DEFAULTS):
        parser.error(f"unknown options: {', '.join(sorted(unknown))}; expected some of {', '.join(DEFAULTS)}")
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    torch.manual_seed(arguments.seed)
    keep_memory()
    run(arguments, DEFAULTS | given)


if __name__ == "__main__":
    main()
