"""A net of a few hundred weights, ten images of 12 pixels, and a fold trained on them in a moment."""

import numpy as np
import torch
from torch import nn

from masksmith.data.store import Store, StoreWriter
from masksmith.metrics import get_metric
from masksmith.models.segmentation import Output, SegmentationModel
from masksmith.training import LossTerm, OptimizerConfig, ScheduleConfig, Stage, TrainingConfig, loop
from masksmith.training.checkpoint import load_tensors
from masksmith.training.data import FoldData
from masksmith.training.events import EventLog, read_events
from masksmith.training.loop import train_fold
from masksmith.training.machine import make_fabric
from masksmith.training.pace import Pace

BCE = [LossTerm(name="bce")]
SIDE = 12


class TinyNet(SegmentationModel):
    """An encoder of two convolutions with batch norm, a decoder of one with dropout, and a head."""

    def __init__(self, *, norm=True, dropout=0.1, seed=0):
        nn.Module.__init__(self)
        self.divisor = 4
        self.in_channels = 1
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            first = [nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU()]
            self.encoder = nn.Sequential()
            self.encoder.add_module("layer1", nn.Sequential(*first))
            self.encoder.add_module("layer2", nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()))
            self.decoder = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Dropout(dropout))
            self.head = nn.Conv2d(4, 1, 1)
        self.scalar_join = self.image_head = self.aux_heads = None
        self.register_buffer("mean", torch.full((1, 1, 1, 1), 0.5))
        self.register_buffer("std", torch.full((1, 1, 1, 1), 0.25))

    def forward(self, image, scalars=None):
        shift = 0 if scalars is None else scalars.sum()
        return Output(self.head(self.decoder(self.encoder((image - self.mean) / self.std))) + shift)


def make_data(folder, *, count=10, empty=3, **fields):
    """Images with a bright rectangle that grows from image to image; the first ``empty`` have none."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"s{i}" for i in range(count)]
    rng = np.random.default_rng(0)
    shapes = [(name, (SIDE, SIDE, 1)) for name in names]
    images = StoreWriter(folder / "i.npy", shapes, dtype=np.uint8)
    masks = StoreWriter(folder / "m.npy", shapes, dtype=np.uint8)
    for at, name in enumerate(names):
        mask = np.zeros((SIDE, SIDE, 1), np.uint8)
        if at >= empty:
            mask[1 : 2 + at, 2:9] = 1
        images.write(name, np.clip(mask * 120 + rng.integers(0, 100, mask.shape), 0, 255).astype(np.uint8))
        masks.write(name, mask)
    images.close()
    masks.close()
    stores = Store(folder / "i.npy"), Store(folder / "m.npy")
    own = {"seed": 3, "key": "k", "held_out": names[-3:]}  # the net sees them in training; no test minds
    return FoldData(0, names, *stores, **own | fields)


def stage(epochs=4, *, optimizer=None, schedule=None, **fields):
    return Stage(
        epochs=epochs,
        loss=BCE,
        optimizer=optimizer or OptimizerConfig(lr=1e-2),
        schedule=schedule or ScheduleConfig(),
        **fields,
    )


def config(*stages, **changes):
    settings = {"batch_size": 2, "precision": "32-true", "device": "cpu", "threads": 1, "evaluate_every": 1}
    return TrainingConfig(stages=list(stages) or [stage()], **(settings | changes))


def score_of(model):
    """A number that hangs on the weights, and falls and rises from epoch to epoch."""
    return float(abs(sum(weight.sum() for weight in model.state_dict().values()).item()) % 1)


def run(data, folder, settings, *, evaluate=score_of, model=None, pace=None):
    """Train a fold; return the tensors and the facts of final.safetensors."""
    metrics = [get_metric(name) for name in settings.metrics if name != "val_loss"]

    def scored(net):
        found = evaluate(net)
        if isinstance(found, dict):
            return found
        return {"score": found} | {metric.name: found * (3 + at) % 1 for at, metric in enumerate(metrics)}

    train_fold(
        make_fabric(settings),
        model or TinyNet(),
        settings,
        data,
        folder=folder,
        log=EventLog(folder / "metrics.jsonl", fold=0),
        evaluate=None if evaluate is None else scored,
        pace=pace or Pace(),
        metrics=metrics,
    )
    return load_tensors(folder / "final.safetensors")


def events(folder, name=None):
    found = [event for event in read_events(folder / "metrics.jsonl") if event["split"] != "timing"]
    return found if name is None else [event["value"] for event in found if event["name"] == name]


def content(folder):
    """All that a training leaves, as bytes; of the log only what does not hang on the clock."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "metrics.jsonl"}
    return files | {"log": events(folder)}


def same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def leave_at(patch, number, error):
    """Raise in the place of the ``number``-th step of this process; return the steps so far, as a list of one."""
    made, inner = [0], loop.train_step

    def step(*args, **kwargs):
        made[0] += 1
        if made[0] == number:
            raise error
        return inner(*args, **kwargs)

    patch.setattr(loop, "train_step", step)
    return made
