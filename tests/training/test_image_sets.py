"""Stages that are trained on labelled images, on pseudo-labelled ones, or on both."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from masksmith.augment import AugmentConfig, GeometryConfig, IntensityConfig
from masksmith.core.errors import InputError, StoppedError
from masksmith.data.store import JoinedStore, Store, StoreWriter
from masksmith.training.config import LossTerm, SamplerConfig, ScheduleConfig, Stage, TrainingConfig
from masksmith.training.data import EpochBatches, canvas_hw
from masksmith.training.epochs import build_epochs
from masksmith.training.held_out import HeldOut
from masksmith.training.machine import make_fabric
from masksmith.training.sampling import Sampling
from masksmith.training.state import TrainingState
from masksmith.training.step import losses_of
from tests.training.tiny import TinyNet, config, events, leave_at, make_data, run, stage

pytestmark = pytest.mark.slow

SETS = ("pseudo", "both", "labelled")


@pytest.fixture
def data(tmp_path):
    """Ten labelled images, and four others with pseudo-labels, which have the ids of the first four."""
    own, other = make_data(tmp_path / "own"), make_data(tmp_path / "other", count=4, empty=1)
    return replace(own, pseudo=other)


def state_of(settings, data):
    return TrainingState(make_fabric(settings), TinyNet(), settings, data)


def in_turn(**fields):
    return config(*(stage(2, data=one, **fields) for one in SETS))


def test_a_stage_has_its_images(data):
    settings = in_turn()
    ids = {one.data: data.of(one).ids for one in settings.stages}
    assert (len(ids["labelled"]), len(ids["pseudo"])) == (10, 4)
    assert ids["both"] == [f"labelled/s{i}" for i in range(10)] + [f"pseudo/s{i}" for i in range(4)]
    assert data.counts(settings) == [4, 14, 10]
    assert data.of(settings.stages[2]) is data


def test_a_subset_is_drawn_once_and_a_larger_one_contains_it(data):
    few, share, most = (stage(2, subset=count) for count in (3, 0.5, 9))
    sets = [set(data.of(one).ids) for one in (few, share, most)]
    assert [len(one) for one in sets] == [3, 5, 9]
    assert sets[0] < sets[1] < sets[2] < set(data.ids)
    other = set(replace(data, seed=data.seed + 1).of(few).ids), set(replace(data, fold=1).of(few).ids)
    assert sets[0] not in other
    assert data.counts(config(few, stage(1))) == [3, 10]
    both = stage(data="both", subset=0.5)
    assert len(data.of(both).ids) == 7
    with pytest.raises(
        InputError, match=r"subset: 11 images, but fold 0 has 10 \(labelled\); expected at most"
    ):
        data.of(stage(subset=11))
    with pytest.raises(ValueError, match="greater than 0"):
        stage(subset=0.0)


def test_a_frozen_encoder_is_trained_on_its_subset_alone(data, tmp_path):
    """Losses are remembered at the places of the whole set, and a continued training is the same."""
    frozen = stage(2, subset=4, freeze=["encoder"], sampler=SamplerConfig(name="curriculum", by="loss"))
    settings = config(frozen, stage(1))
    state = state_of(settings, data)
    chosen = {data.ids.index(name) for name in data.of(frozen).ids}
    assert len(state.sampling.order(state.epochs[0])) == 4
    state.sampling.note(state.epochs[0], [0, 1, 2, 3], torch.ones(4))
    noted = torch.isfinite(state.sampling._seen).nonzero().ravel().tolist()
    assert set(noted) == chosen
    whole, _ = run(data, tmp_path / "whole", settings)
    with pytest.MonkeyPatch.context() as patch:
        leave_at(patch, 3, StoppedError("stopped", exit_code=130))
        with pytest.raises(StoppedError):
            run(data, tmp_path / "parts", settings)
    again, _ = run(data, tmp_path / "parts", settings)
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_both_are_read_from_where_they_lie(data):
    both = data.of(stage(data="both"))
    for key, part in (("labelled", data), ("pseudo", data.pseudo)):
        for name in part.ids:
            np.testing.assert_array_equal(both.images.checked(f"{key}/{name}"), part.images[name])
            np.testing.assert_array_equal(both.masks[f"{key}/{name}"], part.masks[name])
    assert (both.masks["labelled/s1"] != both.masks["pseudo/s1"]).any()  # one id, two images
    assert (list(both.images), both.images.channels, both.images.dtype) == (both.ids, 1, np.uint8)
    assert both.images.shape("pseudo/s0") == (12, 12)


def test_a_soft_mask_is_foreground_as_often_as_it_is_probable(data, tmp_path):
    """Of pixels in one draw those of a higher probability are foreground first; own masks stay as they are."""
    ramp = np.tile(np.linspace(0, 255, 12).round().astype(np.uint8), (12, 1))
    writer = StoreWriter(tmp_path / "s.npy", [(f"s{i}", (12, 12, 1)) for i in range(4)], dtype=np.uint8)
    for i in range(4):
        writer.write(f"s{i}", ramp[..., None])
    writer.close()
    soft = replace(data, pseudo=replace(data.pseudo, soft=Store(tmp_path / "s.npy")))
    for kind, at in (("both", 10), ("pseudo", 0)):
        plain = {"geometry": GeometryConfig(), "intensity": IntensityConfig(), "batch_size": 14}
        state = state_of(config(stage(300, data=kind), **plain), soft)
        used, order = soft.of(state.config.stages[0]), np.arange(at + 4)
        made = [
            EpochBatches(state.tasks[0], used, epoch, order).make(0).batches[0].mask for epoch in state.epochs
        ]
        drawn = np.stack([masks[at] for masks in made])
        np.testing.assert_allclose(drawn.mean(0), ramp / 255, atol=0.1)
        assert (np.diff(drawn.astype(int), axis=2) >= 0).all()
        assert (drawn[:, :, 0].max(), drawn[:, :, -1].min()) == (0, 1)
        again = EpochBatches(state.tasks[0], used, state.epochs[7], order).make(0).batches[0].mask
        np.testing.assert_array_equal(again, made[7])
        for i in range(at):
            assert all((masks[i] == data.masks[f"s{i}"][..., 0]).all() for masks in made[:3])


def test_an_image_is_trained_with_its_own_mask_whatever_its_id(data):
    """A batch of both sets, by hand: no geometry, so that a sample's mask is the mask in the store."""
    plain = {"geometry": GeometryConfig(), "intensity": IntensityConfig(), "batch_size": 14}
    state = state_of(config(stage(1, data="both"), **plain), data)
    used = data.of(state.config.stages[0])
    (batch,) = EpochBatches(state.tasks[0], used, state.epochs[0], np.arange(14)).make(0).batches
    drawn = [(data, f"s{i}") for i in range(10)] + [(data.pseudo, f"s{i}") for i in range(4)]
    for at, (part, name) in enumerate(drawn):
        np.testing.assert_array_equal(batch.mask[at], part.masks[name][..., 0])
        np.testing.assert_allclose(batch.image[at, 0] * 255, part.images[name][..., 0], atol=1e-3)


def test_damage_in_a_joined_store_is_named(data):
    path = data.pseudo.images.path
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)
    joined = JoinedStore({"labelled": data.images, "pseudo": Store(path)})
    joined.checked("labelled/s3")
    with pytest.raises(InputError, match=r"other/i\.npy: 's3' in it was damaged"):
        joined.checked("pseudo/s3")
    path.write_bytes(raw[:-20])
    with pytest.raises(InputError, match="the file is cut off"):
        joined["pseudo/s3"]


def test_scalars_are_those_of_both(data):
    pseudo = replace(data.pseudo, scalars=dict.fromkeys(data.pseudo.ids, (2.0,)))
    whole = replace(data, scalars=dict.fromkeys(data.ids, (1.0,)), pseudo=pseudo)
    both = whole.of(stage(data="both"))
    assert [both.scalars[name] for name in both.ids] == [(1.0,)] * 10 + [(2.0,)] * 4


def test_epochs_are_as_long_as_their_images(data):
    settings = in_turn()
    state = state_of(settings, data)
    assert [epoch.steps for epoch in state.epochs] == [2, 2, 7, 7, 5, 5]
    assert state.work_ahead == 12 * 12 * 2 * sum([2, 2, 7, 7, 5, 5])
    for epoch in state.epochs:
        order = state.sampling.order(epoch)
        assert sorted(order) == list(range(data.counts(settings)[epoch.stage]))


def test_a_stage_is_as_large_as_its_largest_image(data, tmp_path):
    shapes = [("big", (20, 16, 1))]
    for name in ("i", "m"):
        writer = StoreWriter(tmp_path / f"big_{name}.npy", shapes, dtype=np.uint8)
        writer.write("big", np.ones(shapes[0][1], np.uint8))
        writer.close()
    stores = Store(tmp_path / "big_i.npy"), Store(tmp_path / "big_m.npy")
    large = replace(data, pseudo=replace(data.pseudo, ids=["big"], images=stores[0], masks=stores[1]))
    settings = in_turn()
    assert [canvas_hw(settings, one, large, 4) for one in settings.stages] == [(20, 16), (20, 16), (12, 12)]


def test_a_stage_on_labelled_images_draws_as_without_others(data, tmp_path):
    settings = config(stage(2), stage(1))
    alone, _ = run(replace(data, pseudo=None), tmp_path / "a", settings)
    beside, _ = run(data, tmp_path / "b", settings)
    assert all(torch.equal(alone[name], beside[name]) for name in alone)


@pytest.mark.parametrize("kind", SETS)
def test_the_held_out_loss_is_that_of_labelled_images(data, tmp_path, kind):
    """They are looked at as they are in any stage: its loss does not hang on what the stage is trained on."""
    found = HeldOut.of(config(stage(1, data=kind)), data, 4)
    model, settings = TinyNet(), config(stage(1))
    epoch, losses = build_epochs(settings, [10])[0], losses_of(model, settings)[0]
    fabric = make_fabric(settings)
    plain = HeldOut.of(settings, replace(data, pseudo=None), 4)
    assert found.loss(fabric, model, epoch, losses) == plain.loss(fabric, model, epoch, losses)
    run(data, tmp_path / kind, config(stage(2, data=kind), select="best_val_loss"))
    assert len(events(tmp_path / kind, "val_loss")) == 2


BY_LOSS = SamplerConfig(name="curriculum", by="loss", start_frac=0.5, repeat_worst_of=2)


@pytest.mark.parametrize("sampler", [SamplerConfig(), BY_LOSS], ids=["plain", "by loss"])
@pytest.mark.parametrize("at", [3, 9, 20])
def test_a_stopped_training_ends_the_same(data, tmp_path, monkeypatch, sampler, at):
    settings = in_turn(sampler=sampler)
    whole, facts = run(data, tmp_path / "whole", settings)
    with monkeypatch.context() as patch:
        leave_at(patch, at, StoppedError("stop", exit_code=143))
        with pytest.raises(StoppedError):
            run(data, tmp_path / "parts", settings)
    again, after = run(data, tmp_path / "parts", settings)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert after["lengths"] == facts["lengths"] == [2, 2, 2]


def test_losses_are_remembered_by_image_whatever_the_stage(data):
    settings = in_turn(sampler=SamplerConfig(name="curriculum", by="loss", start_frac=0.2))
    state = state_of(settings, data)
    first_pseudo, first_both, first_labelled = (state.epochs[at] for at in (0, 2, 4))
    state.sampling.note(first_pseudo, [1, 3], torch.tensor([0.5, 0.1]))
    state.sampling.note(first_labelled, [0, 9], torch.tensor([0.2, 0.3]))
    state.sampling.end_epoch()
    assert state.sampling.tensors()["sampling/before"].tolist()[:1] == pytest.approx([0.2])
    easiest = state.sampling.order(first_both)[:3]  # of fourteen the easiest three
    assert set(easiest) == {10 + 3, 0, 9}


def test_samplers_look_at_the_masks_of_their_stage(data):
    sampling = Sampling(in_turn(), data, torch.device("cpu"))
    classes = {one: sampling.facts_of(stage(data=one)).classes for one in SETS}
    assert [int((classes[one] == 0).sum()) for one in SETS] == [1, 4, 3]
    whole = config(
        stage(1, data="pseudo", sampler=SamplerConfig(name="non_empty", non_empty_frac=(1.0, 1.0)))
    )
    order = Sampling(whole, data, torch.device("cpu")).order(state_of(whole, data).epochs[0])
    assert 0 not in order  # the empty one of the four


def test_mirrored_copies_of_each_set(data, tmp_path):
    settings = in_turn().model_copy(update={"augment": AugmentConfig(append_flips=True)})
    state = state_of(settings, data)
    assert [epoch.steps for epoch in state.epochs[::2]] == [4, 14, 10]
    assert [task.mirrored_from for task in state.tasks] == [4, 14, 10]
    run(data, tmp_path / "r", settings)


def test_cycles_need_epochs_of_one_length():
    restarts = ScheduleConfig(name="cosine_restarts", cycles=2, warmup_frac=0.0)
    first = stage(2, data="pseudo", schedule=restarts)
    with pytest.raises(
        ValueError,
        match=r"stages\[1\]: data 'labelled' is not that of stages\[0\] \('pseudo'\)",
    ):
        TrainingConfig(stages=[first, Stage(epochs=2, loss=[LossTerm(name="bce")])])
