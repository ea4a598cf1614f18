"""Throughput of a bundle beside a plain loop with segmentation-models-pytorch: the same net on the same files.

    python benchmarks/deploy.py model.msk IMAGES… [--rounds 5]

The plain loop is what one writes by hand: cv2.imread, a batch of 16, standardisation, reflected borders up to the
divisor, the U-Net of the bundle's first member in float32, a sigmoid, a threshold (or argmax), cv2.imwrite. All ways
read the files, and all but ``segment_batch`` and the exports write masks. The bundle must have one member and one view.
Ways take turns, one thread each. Counted are processor seconds, of the server those of its process; printed are images
a processor second, the median over the rounds with least and most, and the ratio to the plain loop of the same round.
"""

import argparse
import os
import signal
import statistics
import tempfile
import time
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import httpx
import numpy as np
import torch
from serve import start

import masksmith as ms
from masksmith.deploy.segmenter import Segmenter

import segmentation_models_pytorch as smp  # isort: skip

BATCH = 16


def plain(model: Segmenter):
    """Return a loop over files that is written by hand."""
    recipe, channels = model.bundle.recipes[0].model, model.bundle.facts.channels
    own = model.members[0].model
    name = recipe.encoder if recipe.encoder.startswith("tu-") else f"tu-{recipe.encoder}"
    net = smp.Unet(
        name,
        encoder_depth=recipe.encoder_depth,
        encoder_weights=None,
        decoder_channels=recipe.decoder_channels,
        in_channels=channels,
        classes=model.target.outputs,
    )
    net = net.eval().to(memory_format=torch.channels_last)

    def run(files, out):
        for at in range(0, len(files), BATCH):
            flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB
            images = [cv2.imread(str(file), flag) for file in files[at : at + BATCH]]
            batch = np.stack(images).reshape(len(images), *images[0].shape[:2], channels)
            height, width = batch.shape[1:3]
            pads = ((0, 0), (0, -height % own.divisor), (0, -width % own.divisor), (0, 0))
            planes = torch.from_numpy((np.pad(batch, pads, mode="reflect") / 255).astype(np.float32))
            with torch.inference_mode():
                logits = net(((planes - 0.5) / 0.2).permute(0, 3, 1, 2))[..., :height, :width]
                masks = logits.argmax(1) if model.target.exclusive else logits.sigmoid()[:, 0] > 0.5
            for file, mask in zip(files[at : at + BATCH], masks, strict=True):
                cv2.imwrite(str(out / f"{file.stem}.png"), mask.to(torch.uint8).numpy() * 255)

    return run, sum(one.numel() for one in net.parameters()), sum(one.numel() for one in own.parameters())


def ways(path: str, model: Segmenter, exports: Path):
    """Return name -> what segments files into a folder."""
    channels = model.bundle.facts.channels
    flag = cv2.IMREAD_GRAYSCALE if channels == 1 else cv2.IMREAD_COLOR_RGB

    def batches(files, _):
        for at in range(0, len(files), BATCH):
            model.segment_batch([cv2.imread(str(file), flag) for file in files[at : at + BATCH]])

    found = {
        "apply": lambda files, out: ms.apply(path, files, out / "apply"),
        "segment_batch, 16": batches,
    }
    for format, suffix in (("onnx", ".onnx"), ("openvino", ".xml"), ("torch", ".pt2")):
        print(ms.export(path, exports / f"m{suffix}", format=format))
        exported = ms.load(exports / f"m{suffix}")
        found[f"export {format}, one by one"] = lambda files, _, exported=exported: [
            exported.segment(cv2.imread(str(file), flag)) for file in files
        ]
    return found


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("images", nargs="+", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    model, files = ms.load(options.model), options.images
    by_hand, weights, own = plain(model)
    assert abs(weights - own) < own / 1000, (weights, own)  # biases beside a norm
    rates: dict[str, list[float]] = {}
    process, url = start(options.model, 8)
    try:
        with tempfile.TemporaryDirectory() as folder, httpx.Client(base_url=url, timeout=60) as client:
            run = {"plain loop": by_hand} | ways(options.model, model, Path(folder))
            raws = [file.read_bytes() for file in files]
            client.post("/segment", content=raws[0]).raise_for_status()
            for turn in range(options.rounds + 1):  # the first warms up
                for name, way in run.items():
                    out = Path(folder) / f"{turn}-{len(rates)}"
                    out.mkdir(exist_ok=True)
                    began = time.process_time()
                    way(files, out)
                    if turn:
                        rates.setdefault(name, []).append(len(files) / (time.process_time() - began))
                began = cpu_s(process.pid)
                for raw in raws:
                    client.post("/segment", content=raw).raise_for_status()
                if turn:
                    rates.setdefault("server, one by one", []).append(
                        len(files) / (cpu_s(process.pid) - began)
                    )
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
    print(f"{options.model}: {len(files)} images, {own:,} weights, {options.rounds} rounds, one thread")
    base = rates["plain loop"]
    for name, each in rates.items():
        ratios = [one / other for one, other in zip(each, base, strict=True)]
        print(
            f"| {name} | {statistics.median(each):.1f} ({min(each):.1f} to {max(each):.1f}) "
            f"| {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) |"
        )


if __name__ == "__main__":
    main()
