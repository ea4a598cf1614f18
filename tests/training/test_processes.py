"""One training over two processes (gloo, on the CPU) beside one: the same batches, the same weights within rounding."""

import os
import signal
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from masksmith.core.errors import InputError, LostProcessError, StoppedError
from masksmith.data.store import Store
from masksmith.metrics import get_metric
from masksmith.training import LossTerm, OptimizerConfig, SamplerConfig, TrainingConfig, follow
from masksmith.training.checkpoint import load_tensors
from masksmith.training.data import own_rows
from masksmith.training.devices import following, leading, refuse_devices
from masksmith.training.epochs import shorten
from masksmith.training.events import EventLog
from masksmith.training.loop import train_fold
from masksmith.training.machine import make_fabric, settle_devices
from masksmith.training.pace import Pace
from masksmith.training.state import TrainingState
from tests.training.tiny import TinyNet, config, events, make_data, score_of, stage

ROOT = Path(__file__).parents[2]
SGD = OptimizerConfig(name="sgd", lr=0.05)
POOLED = [
    LossTerm(name="bce"),
    LossTerm(name="dice", params={"per_image": False}),  # neither is a mean over images
    LossTerm(name="lovasz", weight=0.5, params={"per_image": False}),
]
WORST_AGAIN = SamplerConfig(name="curriculum", by="loss", repeat_worst_of=2)
SETTINGS = config(
    stage(4, optimizer=SGD, freeze=["encoder"], sampler=WORST_AGAIN),
    stage(3, optimizer=SGD, accumulate=3, start="best"),  # 11 images in batches of 4, 4 and 3
    batch_size=4,
    metrics=["dice_pooled"],
)
SETTINGS = SETTINGS.model_copy(
    update={"stages": [one.model_copy(update={"loss": POOLED}) for one in SETTINGS.stages]}
)


class WithHead(TinyNet):
    """Group norm, and an image head that no loss trains: DDP must neither wait for it nor move it."""

    def __init__(self):
        super().__init__(norm=False, dropout=0.0)
        self.encoder.layer1[1] = nn.GroupNorm(2, 4)
        self.image_head = nn.Linear(1, 1)

    def forward(self, image, scalars=None):
        output = super().forward(image, scalars)
        return output._replace(image_logits=self.image_head(output.mask_logits.mean((2, 3))))


def group_norm_net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return WithHead()


class Scripted(Pace):
    """Shortens what lies ahead after the fourth step of all, and stops after so many of this process."""

    def __init__(self, stop_after=None):
        super().__init__()
        self.made, self.stop_after = 0, stop_after

    def step(self, work):
        super().step(work)
        self.made += 1

    def adjusted_epochs(self, state):
        if self.made == self.stop_after:
            raise StoppedError("stopped", exit_code=143)
        now = state.progress.epoch, state.progress.step
        return shorten(state.epochs, *now, 0.8) if now == (1, 1) else None


def train(folder, data, settings, *, stop_after=None, dies_after=0):
    """Train on one or two processes; the second one may die after so many steps."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {__name__} as own; own.main(*sys.argv[1:])"
    command = [
        *(sys.executable, "-c", code, str(folder), str(folder.parent / "data")),
        *(settings.model_dump_json(), str(dies_after)),
    ]
    several = settings.devices > 1
    with leading(settings, command) if several else nullcontext(make_fabric(settings)) as fabric:
        train_fold(
            fabric,
            group_norm_net(),
            settings,
            data,
            folder=folder,
            log=EventLog(folder / "metrics.jsonl", fold=0),
            evaluate=lambda net: {"score": score_of(net), "dice_pooled": 0.5},
            pace=Scripted(stop_after),
            metrics=[get_metric("dice_pooled")],
        )


def main(folder, data, settings, dies_after, meeting, rank):
    """Be the second process."""
    inner, left = follow.train_step, [int(dies_after)]

    def step(*args):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return inner(*args)

    follow.train_step = step
    settings = TrainingConfig.model_validate_json(settings)
    with following(settings, Path(meeting), int(rank)) as fabric:
        follow.follow_fold(fabric, group_norm_net(), settings, data_in(Path(data)), folder=Path(folder))


def data_in(folder):
    data = make_data(folder / "other", count=1)  # the stores are read, not written again
    names = [f"s{i}" for i in range(11)]
    return replace(
        data, ids=names, images=Store(folder / "i.npy"), masks=Store(folder / "m.npy"), held_out=names[-3:]
    )


@pytest.mark.slow
def test_two_processes_one_and_two_again_end_like_one_alone(tmp_path):
    data = make_data(tmp_path / "data", count=11)
    two = SETTINGS.model_copy(update={"devices": 2})
    train(tmp_path / "one", data, SETTINGS)
    folder = tmp_path / "several"
    with pytest.raises(StoppedError):
        train(folder, data, two, stop_after=5)
    assert list(folder.glob("epoch_0001_step_000002.safetensors"))
    with pytest.raises(StoppedError):
        train(folder, data, SETTINGS, stop_after=2)
    with pytest.raises(LostProcessError, match=r"process 2 of 2 was killed \(signal 9\)"):
        train(folder, data, two, dies_after=4)
    assert not torch.distributed.is_initialized()
    train(folder, data, SETTINGS)

    names = ("loss", "score", "dice_pooled", "replanned")
    assert len(events(folder, "loss")) == len(events(tmp_path / "one", "loss")) > 4
    for name in names:
        np.testing.assert_allclose(events(folder, name), events(tmp_path / "one", name), rtol=1e-4)
    (alone, facts), (several, other) = (
        load_tensors(tmp_path / name / "final.safetensors") for name in ("one", "several")
    )
    assert facts["lengths"] == other["lengths"]
    for name, value in alone.items():
        torch.testing.assert_close(several[name], value, rtol=1e-4, atol=1e-5)


def state_of(data, settings=SETTINGS, **patched):
    state = TrainingState(make_fabric(settings), group_norm_net(), settings, data)
    return replace(state.batches(state.draw_order()), **patched)


def test_the_parts_of_a_batch_are_the_batch_whatever_the_number_of_processes(tmp_path):
    data = make_data(tmp_path / "data", count=11)
    mixing = SETTINGS.mixing.model_copy(
        update={"mixup": SETTINGS.mixing.mixup.model_copy(update={"probability": 1.0})}
    )
    for settings in (SETTINGS, SETTINGS.model_copy(update={"mixing": mixing})):
        whole = state_of(data, settings)
        epoch = replace(whole.epoch, accumulate=3)
        (asked,) = (replace(whole, epoch=epoch).make(0),)
        assert [len(one) for one in asked.indices] == [4, 4, 3]
        for size in (2, 4):
            parts = [replace(whole, epoch=epoch, place=(rank, size)).make(0) for rank in range(size)]
            assert all((one.indices, one.number) == (asked.indices, 0) for one in parts)
            for at, batch in enumerate(asked.batches):
                for key in ("image", "mask", "other_mask"):
                    value, own = getattr(batch, key), [getattr(one.batches[at], key) for one in parts]
                    if value is None:
                        assert own == [None] * size
                    else:  # what comes again stands at the end
                        np.testing.assert_array_equal(np.concatenate(own)[: len(value)], value)


def test_parts_have_one_length_and_come_in_turn():
    assert [own_rows(4, rank, 2) for rank in (0, 1)] == [[0, 1], [2, 3]]
    assert [own_rows(3, rank, 2) for rank in (0, 1)] == [[0, 1], [2, 2]]
    assert [own_rows(1, rank, 3) for rank in (0, 1, 2)] == [[0], [0], [0]]


def test_devices_that_cannot_train_together_are_refused(monkeypatch):
    with pytest.raises(
        ValueError, match=r"devices: 3 cannot share batches of 4 images \(batch_size\); expected 3 or 6"
    ):
        config(batch_size=4, devices=3)
    with pytest.raises(ValueError, match=r"stages\[1\].batch_size\); expected 2 images, or one of 1 devices"):
        config(stage(), stage(batch_size=1), batch_size=4, devices=2)
    two = SETTINGS.model_copy(update={"devices": 2})
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(
        InputError, match=r"training.devices: 3, and this machine has 2 cores; expected 1 to 2"
    ):
        settle_devices(3, "cpu")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    assert settle_devices(4, "cuda") == 4
    with pytest.raises(
        InputError, match=r"training.devices: 5, and this machine has 4 GPUs; expected 1 to 4"
    ):
        settle_devices(5, "cuda")
    with pytest.raises(InputError, match=r"training.devices: 2, and this machine has one GPU; expected 1"):
        settle_devices(2, "mps")
    refuse_devices(two, group_norm_net())
    with pytest.raises(
        InputError, match=r"2 on 'cpu', and the net has 1 batch norms \(first 'encoder.layer1.1'"
    ):
        refuse_devices(two, TinyNet())
    with pytest.raises(InputError, match=r"training.devices: 2 with training.augment.custom"):
        refuse_devices(two, group_norm_net(), custom=print)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    with pytest.raises(InputError, match=r"training.devices: 3 cannot share batches of 4"):
        refuse_devices(SETTINGS.model_copy(update={"devices": 3}), group_norm_net())


def test_a_process_that_ends_before_it_joins_is_named_and_leaves_none_behind():
    two = SETTINGS.model_copy(update={"devices": 2})
    says = "import sys; open(sys.argv[1] + '/refused_1', 'w').write('x.png: damaged'); sys.exit(2)"
    cases = {
        says: (InputError, r"^x.png: damaged$"),
        "import sys; sys.exit('no memory')": (
            LostProcessError,
            "process 2 of 2 ended: no memory. What was trained",
        ),
    }
    for code, (error, message) in cases.items():
        with pytest.raises(error, match=message), leading(two, [sys.executable, "-S", "-c", code]):
            pass
    assert not torch.distributed.is_initialized()


def test_batch_norm_of_gpus_keeps_its_names_and_its_activations():
    """What several GPUs are given, looked at on the CPU, where it cannot be run."""
    from timm.layers import convert_sync_batchnorm

    from masksmith.models.config import ModelConfig
    from masksmith.models.segmentation import build_model

    options = {
        "architecture": "unet",
        "encoder": "tu-test_resnet",
        "encoder_weights": "none",
        "encoder_depth": 3,
    }
    net = build_model(ModelConfig(**options, decoder_channels=[16, 16, 16]), in_channels=1, seed=0)
    names, image = list(net.state_dict()), torch.rand(2, 1, 32, 32)
    before = net.eval()(image).mask_logits
    shared = convert_sync_batchnorm(net)
    assert sum(isinstance(one, nn.SyncBatchNorm) for one in shared.modules()) > 5
    assert list(shared.state_dict()) == names
    torch.testing.assert_close(shared.eval()(image).mask_logits, before)
