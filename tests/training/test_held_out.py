"""The loss of held-out images, and what follows from it; stages that start from the best epoch."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from masksmith.core.config import validate
from masksmith.core.errors import InputError
from masksmith.training import ScheduleConfig, StallConfig, TrainingConfig
from masksmith.training.epochs import build_epochs
from masksmith.training.held_out import HeldOut
from masksmith.training.machine import make_fabric
from masksmith.training.state import TrainingState
from masksmith.training.step import losses_of
from tests.training.test_techniques import scores
from tests.training.tiny import TinyNet, config, events, make_data, run, stage

HEAVY = {"geometry": "heavy", "intensity": "heavy", "augment": {"append_flips": True}}


def held_out_loss(model, data, settings):
    held_out = HeldOut.of(settings, data, model.divisor)
    epoch = build_epochs(settings, len(data.ids))[0]
    return held_out.loss(make_fabric(settings), model, epoch, losses_of(model, settings)[0])


@pytest.mark.parametrize("batch_size", [2, 3, 10])
def test_it_is_the_mean_over_all_images_without_augmentation_and_dropout(tmp_path, batch_size):
    data = make_data(tmp_path, held_out=["s1", "s9", "s5", "s2", "s4"])
    model = TinyNet(dropout=0.9)
    settings = config(stage(geometry="heavy", intensity="heavy"), batch_size=batch_size, **HEAVY)
    found = held_out_loss(model, data, settings)
    with torch.no_grad():
        images = np.stack([data.images[name][..., 0] for name in data.held_out])[:, None]
        masks = np.stack([data.masks[name][..., 0] for name in data.held_out])[:, None]
        logits = model.eval()(torch.from_numpy(images.astype(np.float32) / 255)).mask_logits
        expected = F.binary_cross_entropy_with_logits(logits, torch.from_numpy(masks.astype(np.float32)))
    assert found == pytest.approx(expected.item(), rel=1e-5)
    assert found == held_out_loss(model, data, settings)


def test_scalars_come_along(tmp_path):
    numbers = {f"s{at}": (float(at),) for at in range(10)}
    data = make_data(tmp_path, scalars=numbers)
    one, other = (held_out_loss(TinyNet(), replace(data, held_out=[name]), config()) for name in ("s0", "s9"))
    assert one != other


def test_nothing_is_held_out(tmp_path):
    data = make_data(tmp_path, held_out=[])
    settings = config(stage(), early_stop=StallConfig(watch="val_loss"))
    with pytest.raises(InputError, match=r"fold 0: 'val_loss' is watched, but no image is held out"):
        run(data, tmp_path / "fold", settings)


def planted(monkeypatch, *losses):
    left = list(losses)
    monkeypatch.setattr(HeldOut, "loss", lambda *_: left.pop(0))
    return left


def test_the_lowest_held_out_loss_is_chosen(tmp_path, monkeypatch):
    planted(monkeypatch, 0.5, 0.3, 0.4)
    kept, inner = {}, TrainingState.end_epoch

    def end_epoch(state):
        inner(state)
        kept[state.progress.epoch] = copy.deepcopy(state.kept.state_dict())

    monkeypatch.setattr(TrainingState, "end_epoch", end_epoch)
    tensors, facts = run(make_data(tmp_path), tmp_path / "fold", config(stage(3), select="best_val_loss"))
    assert (facts["epoch"], facts["lengths"]) == (2, [2])
    assert all(torch.equal(tensors[name], kept[2][name]) for name in tensors)
    assert not torch.equal(tensors["head.weight"], kept[3]["head.weight"])
    assert events(tmp_path / "fold", "val_loss") == [0.5, 0.3, 0.4]


def test_losses_of_two_stages_are_not_compared(tmp_path, monkeypatch):
    planted(monkeypatch, 0.1, 0.2, 0.9, 0.8)
    settings = config(stage(2), stage(2), select="best_val_loss")
    assert run(make_data(tmp_path), tmp_path / "fold", settings)[1]["epoch"] == 4


def test_a_held_out_loss_that_stalls_lowers_the_rate_and_ends_the_training(tmp_path, monkeypatch):
    left = planted(monkeypatch, 0.5, 0.6, 0.6, 0.6, 0.6, 0.6)
    schedule = ScheduleConfig(name="plateau", warmup_frac=0, watch="val_loss", patience=2)
    stop = StallConfig(watch="val_loss", patience=3)
    run(make_data(tmp_path), tmp_path / "fold", config(stage(6, schedule=schedule), early_stop=stop))
    assert events(tmp_path / "fold", "lr") == pytest.approx([1e-2, 1e-2, 1e-2, 5e-3])
    assert (len(left), events(tmp_path / "fold", "ended")) == (2, ["training"])


def test_it_is_not_measured_where_nobody_looks(tmp_path, monkeypatch):
    left = planted(monkeypatch, 1.0)
    run(make_data(tmp_path), tmp_path / "fold", config(stage(2)))
    assert left == [1.0]
    assert events(tmp_path / "fold", "val_loss") == []


# stages that start from the best epoch


def begun_with(monkeypatch):
    """Return stage -> the weights of net and average at its first step, and those kept after each epoch."""
    first, after = {}, {}
    inner, end = TrainingState.begin_epoch, TrainingState.end_epoch

    def begin_epoch(state):
        if state.progress.step == 0 and state.epoch.number == 0:
            nets = [copy.deepcopy(net.state_dict()) for net in (state.raw, state.kept)]
            first[state.epoch.stage] = [*nets, state.average.steps if state.average else None]
        inner(state)

    def end_epoch(state):
        end(state)
        after[state.progress.epoch] = copy.deepcopy(state.kept.state_dict())

    monkeypatch.setattr(TrainingState, "begin_epoch", begin_epoch)
    monkeypatch.setattr(TrainingState, "end_epoch", end_epoch)
    return first, after


@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize(("start", "epoch"), [("best", 2), ("previous", 3)])
def test_a_stage_starts_where_it_was_told(tmp_path, monkeypatch, ema_decay, start, epoch):
    evaluate, _ = scores(0.5, 0.7, 0.6, 0.1, 0.2)
    first, after = begun_with(monkeypatch)
    settings = config(stage(3), stage(2, start=start), ema_decay=ema_decay)
    run(make_data(tmp_path), tmp_path / "fold", settings, evaluate=evaluate)
    raw, kept, steps = first[1]
    assert all(torch.equal(kept[name], after[epoch][name]) for name in kept)
    if start == "best":
        assert all(torch.equal(raw[name], after[epoch][name]) for name in raw)
        assert not steps  # the average starts over
    assert not list((tmp_path / "fold").glob("best*"))


def test_the_end_of_the_stage_before_is_scored_in_any_case(tmp_path):
    evaluate, seen = scores(0.5, 0.5)
    settings = config(stage(2), stage(2, start="best"), evaluate_every=5)
    run(make_data(tmp_path), tmp_path / "fold", settings, evaluate=evaluate)
    assert len(seen) == 2  # after epochs 2 and 4


def test_so_it_is_where_a_stage_stalls_by_its_loss(tmp_path):
    evaluate, seen = scores(0.5, 0.5)
    stall = StallConfig(watch="loss", patience=1, min_delta=9.0)
    settings = config(stage(5, until_plateau=stall), stage(1, start="best"), evaluate_every=9)
    _, facts = run(make_data(tmp_path), tmp_path / "fold", settings, evaluate=evaluate)
    assert (facts["lengths"], len(seen)) == ([2, 1], 2)


@pytest.mark.parametrize(
    ("at", "changes", "message"),
    [
        (0, {"start": "best"}, r"stages\[0\]: start: 'best', but no epoch comes before it"),
        (
            1,
            {"start": "best", "optimizer": None},
            r"stages\[1\]: start: 'best', but it continues the optimizer",
        ),
        (1, {"start": "snapshot"}, r"stages\[1\]\.start: 'snapshot'"),
    ],
)
def test_starts_that_cannot_be(at, changes, message):
    value = config(stage(2), stage(2)).model_dump(mode="json")
    value["stages"][at] |= changes
    with pytest.raises(InputError, match=message):
        validate(TrainingConfig, value, where="training")
