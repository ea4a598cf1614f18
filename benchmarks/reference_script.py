"""The usual script of a notebook, to compare with: images/s, and a submission in a given time.

    python benchmarks/reference_script.py DATA --out submission.csv --minutes 20 [--encoder tu-tf_efficientnet_lite0]
    python benchmarks/reference_script.py DATA --pace 20        # images/s of training and prediction, as JSON

``DATA`` has the form of TGS Salt (``masksmith example OUT --layout tgs`` makes one). The U-Net of segmentation-
models-pytorch as it comes, albumentations, a DataLoader, Adam at 1e-3, float32, BCE and Dice, images padded to
128x128 by reflection; after each epoch the IoU of the first of five folds, of which the best epoch is kept; two
views, a threshold of 0.5, and the run-lengths of the public kernels. Needs albumentations (``--albumentations
FOLDER``: the site-packages that has it). EfficientNet-Lite0 gets the ImageNet weights that are installed with
masksmith, any other net random ones.
"""

import argparse
import json
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, Dataset

import masksmith  # noqa: F401  (its guard lets torchvision import beside a CPU build of torch)
from masksmith.models.wheels import wheel_file

import segmentation_models_pytorch as smp  # isort: skip

SIDE, BATCH = 128, 32


def transforms(train):
    import albumentations as A

    pad = A.PadIfNeeded(SIDE, SIDE, border_mode=cv2.BORDER_REFLECT_101)
    if not train:
        return A.Compose([pad])
    moved = A.Affine(
        scale=(0.88, 1.15),
        rotate=(-8, 8),
        translate_percent=(-0.06, 0.06),
        border_mode=cv2.BORDER_REFLECT_101,
    )
    return A.Compose([A.HorizontalFlip(p=0.5), moved, A.RandomBrightnessContrast(0.1, 0.1), pad])


class Images(Dataset):
    """Images, and masks where there are any, read from their files as they are asked for."""

    def __init__(self, images, masks=None, *, train=False):
        self.images, self.masks, self.transform = images, masks, transforms(train)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        image = cv2.imread(str(self.images[index]))
        if self.masks is None:
            return self.tensor(self.transform(image=image)["image"])
        mask = (cv2.imread(str(self.masks[index]), cv2.IMREAD_UNCHANGED) > 0).astype(np.float32)
        found = self.transform(image=image, mask=mask[..., 0] if mask.ndim == 3 else mask)
        return self.tensor(found["image"]), torch.from_numpy(found["mask"])[None]

    @staticmethod
    def tensor(image):
        """Return the image as the net takes it: RGB or grey in three channels, -1 … 1."""
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)) / 127.5 - 1


def loaders(files, workers, most=None):
    """Return the loaders of the training, held-out and ``most`` test images, and the names of the test images."""
    train, test = (
        sorted((files / "train" / "images").iterdir()),
        sorted((files / "test" / "images").iterdir())[:most],
    )
    masks = [files / "train" / "masks" / path.name for path in train]
    order = np.random.default_rng(0).permutation(len(train))
    held, seen = order[: len(order) // 5], order[len(order) // 5 :]

    def of(which, **how):
        data = Images([train[i] for i in which], [masks[i] for i in which], train=bool(how))
        return DataLoader(data, BATCH, num_workers=workers, **how)

    predicted = DataLoader(Images(test), BATCH, num_workers=workers)
    return of(seen, shuffle=True, drop_last=True), of(held), predicted, [path.stem for path in test]


def network(encoder):
    net = smp.Unet(encoder, encoder_weights=None, in_channels=3, classes=1)
    if encoder == "tu-tf_efficientnet_lite0":
        given = torch.load(wheel_file("tf_efficientnet_lite0"), weights_only=True)
        own = net.encoder.state_dict()
        for (name, old), value in zip(own.items(), given.values(), strict=False):
            assert old.shape == value.shape, name
            own[name] = value.clone()
        net.encoder.load_state_dict(own)
    return net


def step(net, optimizer, image, mask):
    logits = net(image)
    probs = logits.sigmoid()
    dice = 1 - (2 * (probs * mask).sum() + 1) / (probs.sum() + mask.sum() + 1)
    loss = F.binary_cross_entropy_with_logits(logits, mask) + dice
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@torch.no_grad()
def iou(net, loader):
    net.eval()
    both = either = 0
    for image, mask in loader:
        found = net(image) > 0
        both += (found & (mask > 0)).sum().item()
        either += (found | (mask > 0)).sum().item()
    return both / max(1, either)


@torch.no_grad()
def predict(net, loader, side=101):
    """Yield the mask of each test image."""
    net.eval()
    low = (SIDE - side) // 2
    for image in loader:
        probs = (net(image).sigmoid() + net(image.flip(-1)).sigmoid().flip(-1)) / 2
        yield from (probs[:, 0, low : low + side, low : low + side] > 0.5).numpy()


def run_lengths(mask):
    pixels = np.concatenate([[0], mask.T.flatten(), [0]])
    runs = np.where(pixels[1:] != pixels[:-1])[0] + 1
    runs[1::2] -= runs[::2]
    return " ".join(str(x) for x in runs)


def write(net, loader, names, out):
    rows = [f"{name},{run_lengths(mask)}\n" for name, mask in zip(names, predict(net, loader), strict=True)]
    out.write_text("id,rle_mask\n" + "".join(rows))


def train(net, seen, held, seconds):
    """Train until the time is over, and go back to the best epoch; return how many were whole."""
    started, optimizer, epochs = time.time(), torch.optim.Adam(net.parameters(), 1e-3), 0
    best, kept = -1.0, {}
    while time.time() - started < seconds:
        net.train()
        for image, mask in seen:
            step(net, optimizer, image, mask)
            if time.time() - started > seconds:
                break
        else:
            epochs += 1
        score = iou(net, held)
        print(f"{time.time() - started:.0f} s, epoch {epochs}: IoU {score:.4f}", file=sys.stderr, flush=True)
        if score > best:
            best, kept = score, {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(kept)
    return epochs


def pace(net, seen, test, names, seconds, out, clock):
    """Return images/s of training, after two steps to warm up, and of prediction down to run-lengths."""
    optimizer, started, steps = torch.optim.Adam(net.parameters(), 1e-3), 0.0, -2
    net.train()
    while steps < 1 or clock() - started < seconds:
        for image, mask in seen:
            step(net, optimizer, image, mask)
            steps += 1
            if steps == 0:
                started = clock()
            if steps > 0 and clock() - started >= seconds:
                break
    trained = steps * BATCH / (clock() - started)
    started = clock()
    write(net, test, names, out)
    return {"train": trained, "predict": len(names) / (clock() - started)}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--out", type=Path, default=Path("submission.csv"))
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--encoder", default="tu-tf_efficientnet_lite0")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument(
        "--pace", type=float, help="seconds to measure images/s in, in place of a whole training"
    )
    parser.add_argument("--most", type=int, help="test images, at most")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor seconds, with --pace and --workers 0"
    )
    parser.add_argument("--albumentations", help="site-packages folder that has it")
    options = parser.parse_args()
    if options.albumentations:
        sys.path.append(options.albumentations)
    started = time.time()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        for part in ("train", "test"):
            zipfile.ZipFile(options.data / f"{part}.zip").extractall(Path(folder) / part)
        seen, held, test, names = loaders(Path(folder), options.workers, options.most)
        net = network(options.encoder)
        if options.pace:
            clock = time.process_time if options.cpu_time else time.perf_counter
            print(json.dumps(pace(net, seen, test, names, options.pace, Path(folder) / "out.csv", clock)))
            return
        left = options.minutes * 60 - (time.time() - started)
        epochs = train(net, seen, held, left * 0.97)  # prediction takes about 3%
        write(net, test, names, options.out)
    print(f"{epochs} whole epochs, {(time.time() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
