"""What a good practitioner writes with segmentation-models-pytorch, on the same images and folds as a project.

    python benchmarks/plain_smp.py PROJECT OUT MINUTES [--side 256] [--batch 16]

It trains without fold 0, predicts that and writes ``OUT/pred`` and ``OUT/truth`` for ``masksmith score``. A U-Net
with the EfficientNet-Lite0 that is installed with masksmith: random crops of the images as they are, flips (and turns,
except for class maps), AdamW with one cycle as long as the time, cross-entropy or BCE plus Dice, averaged weights,
bfloat16, channels last, two views, argmax or a threshold of 0.5; objects are connected components.
"""

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F

import masksmith  # noqa: F401  (its guard lets torchvision import beside a CPU build of torch)
from masksmith.data.instances import label_png
from masksmith.models.wheels import wheel_file
from masksmith.project.folder import Project

import segmentation_models_pytorch as smp  # isort: skip

IGNORE = 255
RATE = 2e-3


def read(project):
    """Return images (float32, h w c, standardised by band) and targets (uint8, h w) by id, and the ids by fold."""
    cache = project.cache
    images = {name: np.asarray(cache.train_images[name], np.float32) for name in cache.train_images}
    pixels = np.concatenate([image.reshape(-1, image.shape[-1])[::7] for image in images.values()])
    mean, std = pixels.mean(0), pixels.std(0) + 1e-6
    images = {name: (image - mean) / std for name, image in images.items()}
    objects = {name: np.asarray(cache.train_masks[name])[..., 0] for name in images}
    targets = objects
    if project.target.task == "instances":
        targets = {name: (mask > 0).astype(np.uint8) for name, mask in objects.items()}
    held = [row.id for row in project.folds.rows if row.fold == 0]
    seen = [row.id for row in project.folds.rows if row.fold > 0 and row.id not in project.blank_train]
    return images, targets, objects, seen, held


def crop(rng, image, target, side, turns):
    """Cut a random square, reflected beyond the border, flipped and turned at random."""
    h, w = target.shape
    down, right = max(side - h, 0), max(side - w, 0)
    if down or right:
        image = (
            cv2.copyMakeBorder(image, 0, down, 0, right, cv2.BORDER_REFLECT_101)
            if image.shape[-1] <= 4
            else np.pad(image, ((0, down), (0, right), (0, 0)), mode="reflect")
        )
        target = np.pad(target, ((0, down), (0, right)), mode="reflect")
    y = rng.integers(target.shape[0] - side + 1)
    x = rng.integers(target.shape[1] - side + 1)
    image, target = image[y : y + side, x : x + side], target[y : y + side, x : x + side]
    if rng.random() < 0.5:
        image, target = image[:, ::-1], target[:, ::-1]
    if turns:
        k = rng.integers(4)
        image, target = np.rot90(image, k), np.rot90(target, k)
    return image * rng.uniform(0.9, 1.1) + rng.uniform(-0.1, 0.1), target


def loss_of(logits, target, classes):
    """Cross-entropy or BCE, plus the soft Dice of the batch."""
    judged = target != IGNORE
    if classes == 1:
        truth = target.float()[:, None]
        parts, probs = (
            F.binary_cross_entropy_with_logits(logits, truth, reduction="none")[:, 0],
            logits.sigmoid(),
        )
        cross = parts[judged].mean()
    else:
        cross, probs = F.cross_entropy(logits, target, ignore_index=IGNORE), logits.softmax(1)
        truth = F.one_hot(target * judged, classes).permute(0, 3, 1, 2).float()
    probs, truth = probs * judged[:, None], truth * judged[:, None]
    both, sums = (probs * truth).sum((0, 2, 3)), (probs + truth).sum((0, 2, 3))
    there = truth.sum((0, 2, 3)) > 0
    return cross + (1 - (2 * both + 1) / (sums + 1))[there].mean()


def tensor(images):
    batch = torch.from_numpy(np.ascontiguousarray(np.stack(images).transpose(0, 3, 1, 2), dtype=np.float32))
    return batch.contiguous(memory_format=torch.channels_last)


def network(bands, classes):
    """Return the U-Net with the installed ImageNet weights; the stem is spread over other than three bands."""
    net = smp.Unet("tu-tf_efficientnet_lite0", encoder_weights=None, in_channels=bands, classes=classes)
    own = net.encoder.state_dict()
    given = torch.load(wheel_file("tf_efficientnet_lite0"), weights_only=True)
    for (name, old), value in zip(own.items(), given.values(), strict=False):
        if "conv_stem" in name and bands != 3:
            value = value.mean(1, keepdim=True).expand(-1, bands, -1, -1) * 3 / bands
        assert old.shape == value.shape, (name, old.shape, value.shape)
        own[name] = value.clone()
    net.encoder.load_state_dict(own)
    return net.to(memory_format=torch.channels_last)


def train(net, draw, classes, seconds):
    """Train for some seconds on batches of ``draw()``; return the steps. The net has the averaged weights then."""
    started, step, share = time.time(), 0, 0.0
    average = {name: value.clone() for name, value in net.state_dict().items()}
    optimizer = torch.optim.AdamW(net.parameters(), lr=RATE, weight_decay=1e-2, fused=True)
    net.train()
    while share < 1:
        share = min(1, (time.time() - started) / seconds)
        falling = 0.5 * (1 + np.cos(np.pi * (share - 0.15) / 0.85))
        for group in optimizer.param_groups:
            group["lr"] = RATE * (share / 0.15 if share < 0.15 else falling) + 1e-6
        pairs = draw()
        truth = torch.from_numpy(np.stack([target for _, target in pairs]).astype(np.int64))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = net(tensor([image for image, _ in pairs]))
        loss = loss_of(logits.float(), truth, classes)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5)
        optimizer.step()
        step += 1
        keep = min(0.99, (1 + step) / (10 + step))
        for name, value in net.state_dict().items():
            if value.dtype.is_floating_point:
                average[name].mul_(keep).add_(value, alpha=1 - keep)
            else:
                average[name].copy_(value)
        if step % 50 == 0:
            print(f"{time.time() - started:.0f} s, {step} steps, loss {loss.item():.3f}", flush=True)
    net.load_state_dict(average)
    return step


@torch.no_grad()
def predict(net, image, classes):
    """Return the mask of a whole image, the mean of two views."""
    net.eval()
    h, w = image.shape[:2]
    padded = np.pad(image, ((0, -h % 32), (0, -w % 32), (0, 0)), mode="reflect")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        views = [net(tensor([padded])).float(), net(tensor([padded[:, ::-1]])).float().flip(-1)]
    probs = torch.stack([view.sigmoid() if classes == 1 else view.softmax(1) for view in views]).mean(0)
    probs = probs[0, :, :h, :w].numpy()
    return ((probs[0] > 0.5) if classes == 1 else probs.argmax(0)).astype(np.uint8)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("project", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("minutes", type=float)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    options = parser.parse_args()
    started = time.time()
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    cv2.setNumThreads(1)
    project = Project.open(options.project)
    images, targets, objects, seen, held = read(project)
    exclusive, instances = project.target.exclusive, project.target.task == "instances"
    classes = len(project.target.classes) if exclusive else 1
    net = network(images[held[0]].shape[-1], classes)

    def draw():
        names = rng.choice(seen, options.batch)
        return [crop(rng, images[name], targets[name], options.side, not exclusive) for name in names]

    steps = train(net, draw, classes, options.minutes * 60 - 30 - (time.time() - started))
    for folder in ("pred", "truth"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    for name in held:
        mask, truth = predict(net, images[name], classes), objects[name]
        if instances:
            mask = cv2.connectedComponents(mask)[1].astype(np.int32)
        for folder, value in (("pred", mask), ("truth", truth)):
            png = label_png(value, where=name) if instances else cv2.imencode(".png", value)[1].tobytes()
            (options.out / folder / f"{name}.png").write_bytes(png)
    print(f"{steps} steps of {options.batch}, {time.time() - started:.0f} s")


if __name__ == "__main__":
    main()
