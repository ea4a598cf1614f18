"""What a training does with its techniques; that each is exact on resume is tested in test_resume.py."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from masksmith.core.config import validate
from masksmith.core.errors import InputError
from masksmith.models.config import ModelConfig
from masksmith.models.segmentation import build_model
from masksmith.training import (
    OptimizerConfig,
    SamplerConfig,
    ScheduleConfig,
    Stage,
    StallConfig,
    SwaConfig,
    TrainingConfig,
    loop,
)
from masksmith.training.averaging import EqualMean, batch_norms, measure_norms
from masksmith.training.data import EpochBatches
from masksmith.training.epochs import shorten
from masksmith.training.final import norm_batches
from masksmith.training.freeze import part_of, refuse_missing_parts, set_frozen
from masksmith.training.machine import make_fabric
from masksmith.training.state import TrainingState
from masksmith.training.step import batch_loss, forward, image_losses, to_device
from tests.training.tiny import TinyNet, config, events, make_data, run, same, stage

RESTARTS = ScheduleConfig(name="cosine_restarts", cycles=2, warmup_frac=0.1)


def state_of(data, settings, model=None):
    return TrainingState(make_fabric(settings), model or TinyNet(), settings, data)


def one_step(state):
    state.begin_epoch()
    state.set_lr(4)
    return loop.train_step(state, next(state.steps_ahead()))


# --- accumulation ---


def test_eight_batches_of_four_are_one_of_thirty_two(tmp_path):
    """Without batch norm and dropout the gradient is the same, so plain SGD takes the same step."""
    data = make_data(tmp_path, count=32, empty=4)
    plain = stage(optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0.0, nesterov=False))
    weights, losses = [], []
    for batch, accumulate in ((4, 8), (32, 1)):
        settings = config(plain, batch_size=batch, accumulate=accumulate, clip_norm=None)
        state = state_of(data, settings, TinyNet(norm=False, dropout=0.0))
        before = {name: weight.clone() for name, weight in state.raw.state_dict().items()}
        losses.append(one_step(state).item())
        weights.append(state.raw.state_dict())
        assert state.epochs[0].steps == 1
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert not torch.equal(weights[0]["head.weight"], before["head.weight"])
    for name, weight in weights[0].items():
        torch.testing.assert_close(weight, weights[1][name], rtol=1e-5, atol=1e-7)


def test_an_incomplete_last_batch_weighs_by_its_images(tmp_path):
    data = make_data(tmp_path, count=6, empty=0)
    plain = stage(optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0.0, nesterov=False))
    losses = []
    for batch, accumulate in ((4, 2), (8, 1)):  # 4 + 2 images, and 6
        settings = config(plain, batch_size=batch, accumulate=accumulate)
        losses.append(one_step(state_of(data, settings, TinyNet(norm=False, dropout=0.0))).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


@pytest.mark.parametrize(
    ("batch", "accumulate", "sizes"),
    [(3, 3, [3, 3]), (4, 2, [4, 3]), (7, 2, [7]), (8, 2, [7]), (1, 9, [1] * 7)],
)
def test_batch_norm_never_sees_the_last_image_alone(tmp_path, batch, accumulate, sizes):
    data = make_data(tmp_path, count=7)
    state = state_of(data, config(batch_size=batch, accumulate=accumulate))
    made = EpochBatches(state.tasks[0], data, state.epochs[0], np.arange(7)).make(0)
    assert [len(one.image) for one in made.batches] == [len(one) for one in made.indices] == sizes
    assert [index for part in made.indices for index in part] == list(range(sum(sizes)))


def test_a_rest_of_one_image_does_not_end_a_mixed_training(tmp_path):
    """5 images in batches of 4, two a step."""
    from masksmith.augment import MixingConfig

    mixing = MixingConfig.model_validate({"mixup": {"probability": 1.0}})
    settings = config(stage(1), batch_size=4, accumulate=2, mixing=mixing)
    _, facts = run(make_data(tmp_path, count=5), tmp_path / "fold", settings)
    assert facts["lengths"] == [1]


def test_a_stage_of_single_images_cannot_be_mixed(tmp_path):
    from masksmith.augment import MixingConfig

    mixing = MixingConfig.model_validate({"mixup": {"probability": 1.0}})
    with pytest.raises(InputError, match=r"training\.mixing: a batch of 1 image has no partner"):
        state_of(make_data(tmp_path), config(stage(), stage(batch_size=1), mixing=mixing))
    state_of(make_data(tmp_path), config(stage(batch_size=2), batch_size=1, mixing=mixing))


def test_the_work_of_accumulated_and_repeated_steps_is_counted(tmp_path):
    data = make_data(tmp_path, count=16)
    settings = config(stage(3), batch_size=2, accumulate=2, sampler=SamplerConfig(repeat_worst_of=2))
    state = state_of(data, settings)
    assert [epoch.steps for epoch in state.epochs] == [4 + 2] * 3
    assert state.work_ahead == 3 * 6 * 4 * 12 * 12
    done = 0
    while state.progress.epoch < 3:
        done += sum(state.step_work for _ in state.steps_ahead())
        state.end_epoch()
    assert done == 3 * 6 * 4 * 12 * 12
    assert state.work_ahead == 0


# --- batches ---


def test_mixed_masks_and_scalars_reach_the_loss(tmp_path):
    data = make_data(tmp_path, scalars={f"s{i}": (float(i),) for i in range(10)})
    settings = config()
    state = state_of(data, settings, TinyNet(norm=False, dropout=0.0))
    epoch, loss_of = state.epochs[0], state.losses[0]
    batch = EpochBatches(state.tasks[0], data, epoch, np.arange(10)).make(2).batches[0]
    assert batch.scalars.tolist() == [[4.0], [5.0]]
    mixed = replace(batch, other_mask=1 - batch.mask, share=0.25)
    on_device = to_device(mixed, torch.device("cpu"))
    output = forward(state.fabric, state.raw, on_device)
    bare = forward(state.fabric, state.raw, replace(on_device, scalars=None))
    torch.testing.assert_close(output.mask_logits, bare.mask_logits + 9)
    loss = batch_loss(loss_of, output, on_device)
    parts = loss_of(output, on_device.mask), loss_of(output, on_device.other_mask)
    torch.testing.assert_close(loss, 0.25 * parts[0] + 0.75 * parts[1])
    torch.testing.assert_close(
        image_losses(loss_of, output, on_device).mean(), loss
    )  # bce: a mean of equal sizes


def test_images_weigh_in_the_loss_as_their_weights_say(tmp_path):
    """Those that are not named weigh 1; the gradient is that of the weighted mean of each image's loss."""
    data = replace(make_data(tmp_path), weights={"s3": 0.5, "s4": 0.0})
    state = state_of(data, config(batch_size=3), TinyNet(norm=False, dropout=0.0))
    made = EpochBatches(state.tasks[0], data, state.epochs[0], np.arange(10)).make(1)
    assert made.weights == [[0.5, 0.0, 1.0]]
    batch = to_device(made.batches[0], torch.device("cpu"))
    output = forward(state.fabric, state.raw, batch)
    each = image_losses(state.losses[0], output, batch)
    loss = batch_loss(state.losses[0], output, batch, made.weights[0])
    torch.testing.assert_close(loss.detach(), (0.5 * each[0] + each[2]) / 3)
    output.mask_logits.retain_grad()
    loss.backward()
    moved = output.mask_logits.grad.flatten(1).abs().sum(1) > 0
    assert moved.tolist() == [True, False, True]
    assert (
        EpochBatches(state.tasks[0], make_data(tmp_path / "b"), state.epochs[0], np.arange(10))
        .make(0)
        .weights
        is None
    )


def test_batches_made_ahead_are_those_made_between_the_steps(tmp_path):
    """With repeats too, whose choice is known only when the steps before are done."""
    data = make_data(tmp_path, count=10)
    settings = config(sampler=SamplerConfig(repeat_worst_of=2), batch_size=1, accumulate=2)
    state = state_of(data, settings)
    batches = EpochBatches(state.tasks[0], data, state.epochs[0], np.arange(10)[::-1].copy())
    drawn = [
        list(batches.steps(first=first, repeat_worst_of=2, worst=lambda _: 1, device=device))
        for first, device in ((0, "cpu"), (0, "cuda"), (3, "cuda"))
    ]
    assert [one.number for one in drawn[0]] == [0, 1, 1, 2, 3, 3, 4]
    assert [one.indices for one in drawn[0]][:3] == [[[9], [8]], [[7], [6]], [[7], [6]]]
    for ahead in (drawn[1], [*drawn[0][:3], *drawn[2]]):
        assert [one.number for one in ahead] == [one.number for one in drawn[0]]
        for one, other in zip(ahead, drawn[0], strict=True):
            np.testing.assert_array_equal(one.batches[1].image, other.batches[1].image)


@pytest.mark.parametrize("name", ["class_aware", "curriculum"])
def test_an_image_that_a_sampler_draws_again_is_augmented_again(tmp_path, name):
    from masksmith.augment import GeometryConfig

    data, turned = make_data(tmp_path, count=10), GeometryConfig(rotate_deg=45)
    state = state_of(data, config(geometry=turned, sampler=SamplerConfig(name=name), batch_size=5))
    epoch = state.epochs[0]
    order = state.sampling.order(epoch)
    assert len(set(order.tolist())) < 10
    batches = EpochBatches(state.tasks[0], data, epoch, order)
    images = [image for number in range(2) for image in batches.make(number).batches[0].image]
    assert len({image.tobytes() for image in images}) == 10
    np.testing.assert_array_equal(batches.make(1).batches[0].image[4], images[9])  # made again


def test_a_stage_may_have_its_own_augmentation(tmp_path):
    from masksmith.augment import GeometryConfig, IntensityConfig

    still, dark = GeometryConfig(hflip=1.0), IntensityConfig(brightness=0.5)
    settings = config(stage(geometry=still), stage(intensity=dark), geometry=GeometryConfig(vflip=1.0))
    tasks = state_of(make_data(tmp_path), settings).tasks
    assert [task.geometry for task in tasks] == [still, settings.geometry]
    assert [task.intensity for task in tasks] == [settings.intensity, dark]


# --- frozen parts ---


@pytest.mark.parametrize(
    ("freeze", "still"),
    [
        (["encoder"], {"encoder"}),
        (["decoder"], {"decoder"}),
        (["head"], {"head"}),
        (["encoder", "head"], {"encoder", "head"}),
        (["all_but_head"], {"encoder", "decoder"}),
        ([], set()),
    ],
)
def test_frozen_parts_do_not_move(tmp_path, freeze, still):
    model = TinyNet()
    before = copy.deepcopy(model.state_dict())
    run(make_data(tmp_path), tmp_path / "fold", config(stage(1, freeze=freeze)), model=model)
    weights = {name for name, _ in model.named_parameters()}
    moved = {part_of(name) for name in weights if not torch.equal(before[name], model.state_dict()[name])}
    assert moved == {"encoder", "decoder", "head"} - still
    assert not torch.equal(before["encoder.layer1.1.running_mean"], model.encoder.layer1[1].running_mean)


def test_a_frozen_norm_keeps_its_statistics(tmp_path):
    model = TinyNet()
    before = copy.deepcopy(model.encoder.layer1[1].state_dict())
    run(make_data(tmp_path), tmp_path / "fold", config(stage(1, freeze=["encoder_norm"])), model=model)
    same(before, model.encoder.layer1[1].state_dict())


def test_what_was_frozen_thaws():
    model = TinyNet()
    for freeze, count in ((["all_but_head"], 2), (["encoder_norm"], 8), ([], 10)):
        model.train()
        set_frozen(model, freeze)
        assert sum(weight.requires_grad for weight in model.parameters()) == count
        assert model.encoder.layer1[1].training == (freeze != ["encoder_norm"])


def test_freezing_what_is_not_there():
    with pytest.raises(
        InputError, match=r"freeze: 'encoder_norm' is not in this model; it has all_but_head, decod"
    ):
        refuse_missing_parts(TinyNet(norm=False), ["head", "encoder_norm"], where="freeze")
    with pytest.raises(InputError, match=r"freeze: \['head', 'all_but_head'\] leaves nothing to train"):
        validate(
            Stage, {"epochs": 1, "loss": [{"name": "bce"}], "freeze": ["head", "all_but_head"]}, where="s"
        )


def test_parts_of_the_real_models():
    model = build_model(ModelConfig(encoder="resnet18", encoder_weights="none"), in_channels=1, seed=0)
    assert {part_of(name) for name, _ in model.named_parameters()} == {"encoder", "decoder", "head"}


def test_small_batches_are_warned_of(tmp_path, caplog):
    data = make_data(tmp_path)
    state_of(data, config(batch_size=7, accumulate=8))
    assert "batch norm sees 7 images at once" in caplog.text
    caplog.clear()
    state_of(data, config(batch_size=8))
    state_of(data, config(batch_size=2), TinyNet(norm=False))
    assert not caplog.text


# --- averages ---


def test_the_equal_mean_is_the_mean():
    models = [TinyNet(seed=seed) for seed in range(3)]
    mean = EqualMean(models[0])
    for at, model in enumerate(models):
        model.encoder.layer1[1].num_batches_tracked.fill_(at)
        mean.add(model)
    for name, value in mean.model.state_dict().items():
        if value.is_floating_point():
            expected = torch.stack([model.state_dict()[name] for model in models]).mean(0)
            torch.testing.assert_close(value, expected)
    assert mean.model.encoder.layer1[1].num_batches_tracked == 2
    assert not any(weight.requires_grad for weight in mean.model.parameters())


def test_norms_are_measured_as_the_mean_over_the_batches():
    model = TinyNet(dropout=0.5).eval()
    norm = model.encoder.layer1[1]
    norm.running_mean.fill_(99)
    batches = [torch.rand(4, 1, 8, 8) for _ in range(3)]
    measure_norms(model, batch_norms(model), batches, model)
    maps = [model.encoder.layer1[0]((batch - 0.5) / 0.25) for batch in batches]
    means = torch.stack([one.mean((0, 2, 3)) for one in maps]).mean(0)
    torch.testing.assert_close(norm.running_mean, means)
    variances = torch.stack([one.var((0, 2, 3), unbiased=True) for one in maps]).mean(0)
    torch.testing.assert_close(norm.running_var, variances)
    assert norm.momentum == 0.1
    assert not model.training
    measure_norms(TinyNet(norm=False), [], batches, model)  # nothing to do


def test_swa_is_the_mean_of_the_epochs_from_its_start_on(tmp_path):
    """Of 4 epochs the last two; batch norm's statistics are not those of any of them."""
    data, seen = make_data(tmp_path), []
    model = TinyNet()

    def evaluate(kept):
        seen.append(copy.deepcopy(model.state_dict()))
        return 0.5

    settings = config(swa=SwaConfig(start=0.5, norm_batches=3), select="swa", keep=["last"])
    tensors, facts = run(data, tmp_path / "fold", settings, evaluate=evaluate, model=model)
    assert (facts["swa_count"], facts["swa_score"], facts["epoch"]) == (2, 0.5, 4)
    assert len(seen) == 5  # four epochs, and the mean
    for name, _ in model.named_parameters():
        torch.testing.assert_close(tensors[name], (seen[2][name] + seen[3][name]) / 2, msg=name)
    name = "encoder.layer1.1.running_mean"
    mean = (seen[2][name] + seen[3][name]) / 2
    assert not torch.allclose(tensors[name], mean, rtol=1e-3)
    assert torch.allclose(tensors[name], mean, atol=0.2)
    assert not torch.equal(
        load_file(tmp_path / "fold" / "last.safetensors")["head.weight"], tensors["head.weight"]
    )


def test_swa_of_cycles_averages_the_snapshots(tmp_path):
    settings = config(
        stage(schedule=RESTARTS),
        ema_decay=None,
        swa=SwaConfig(start=0.0, every="cycle", norm_batches=2),
        select="swa",
    )
    tensors, facts = run(make_data(tmp_path), tmp_path / "fold", settings)
    assert facts["snapshots"] == ["snapshot_1.safetensors", "snapshot_2.safetensors"]
    snapshots = [load_file(tmp_path / "fold" / name) for name in facts["snapshots"]]
    for name in ("head.weight", "encoder.layer1.0.weight"):
        torch.testing.assert_close(tensors[name], (snapshots[0][name] + snapshots[1][name]) / 2)


def test_without_an_average_the_weights_themselves_are_kept(tmp_path):
    model = TinyNet()
    tensors, _ = run(make_data(tmp_path), tmp_path / "fold", config(ema_decay=None), model=model)
    same(tensors, model.state_dict())


@pytest.mark.parametrize(("start", "first"), [(0.58, 30), (0.5, 26), (0.0, 1), (0.99, 50), (7, 7)])
def test_the_first_averaged_epoch(tmp_path, start, first):
    settings = config(stage(50), swa=SwaConfig(start=start), select="swa")
    state = state_of(make_data(tmp_path), settings)
    counted = []
    for state.progress.epoch in range(50):
        state.add_to_swa("epoch")
        counted.append(state.swa.count)
    assert counted.index(1) + 1 == first


@pytest.mark.parametrize("flips", [False, True])
def test_norms_are_measured_on_images_of_the_last_sampler_each_augmented_again(tmp_path, flips):
    """Ten images, of which three are empty and never drawn; and their mirrored copies."""
    from masksmith.augment import AugmentConfig, GeometryConfig

    sampler = SamplerConfig(name="non_empty", non_empty_frac=(1.0, 1.0))
    settings = config(
        stage(1, sampler=sampler),
        geometry=GeometryConfig(rotate_deg=45),
        augment=AugmentConfig(append_flips=flips),
        swa=SwaConfig(norm_batches=20),
        select="swa",
    )
    state = state_of(make_data(tmp_path), settings)
    made = list(norm_batches(state, 20))
    indices = [index for one in made for index in one.indices[0]]
    assert len(indices) == 40
    assert {index % 10 for index in indices} == set(range(3, 10))
    assert (max(indices) >= 10) == flips
    assert len({image.tobytes() for one in made for image in one.batches[0].image}) == 40


# --- kept weights ---


def scores(*values):
    """Score the epochs in turn, and remember what was scored."""
    given, seen = iter(values), []

    def evaluate(model):
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return next(given)

    return evaluate, seen


def test_best_top_and_last_lie_beside_the_final_weights(tmp_path):
    evaluate, seen = scores(0.3, 0.9, 0.5, 0.9, 0.1)
    settings = config(stage(5), keep=["last", "best_score", "best_loss"], top_k=3)
    tensors, facts = run(make_data(tmp_path), tmp_path / "fold", settings, evaluate=evaluate)
    files = {path.stem: load_file(path) for path in (tmp_path / "fold").glob("*.safetensors")}
    assert set(files) == {"final", "last", "best_score", "best_loss", "top_1", "top_2", "top_3"}
    assert facts["top_k"] == [f"top_{place}.safetensors" for place in (1, 2, 3)]
    assert facts["kept"] == {name: f"{name}.safetensors" for name in ("best_loss", "best_score", "last")}
    same(tensors, seen[4])
    same(files["last"], seen[4])
    same(files["best_score"], seen[1])  # the first of equal ones
    for name, epoch in (("top_1", 2), ("top_2", 4), ("top_3", 3)):
        same(files[name], seen[epoch - 1])
        told = json.loads((tmp_path / "fold" / f"{name}.json").read_text())
        assert (told["epoch"], told["key"]) == (epoch, "k")
    losses = events(tmp_path / "fold", "loss")
    same(files["best_loss"], seen[int(np.argmin(losses))])


def test_the_best_loss_is_of_the_last_stage(tmp_path):
    """The loss of another stage may be of another size."""
    evaluate, seen = scores(0.1, 0.2, 0.3, 0.4)
    dear = stage(2).model_copy(update={"loss": [stage().loss[0].model_copy(update={"weight": 50.0})]})
    settings = config(stage(2), dear, keep=["best_loss"])
    run(make_data(tmp_path), tmp_path / "fold", settings, evaluate=evaluate)
    losses = events(tmp_path / "fold", "loss")
    assert min(losses[2:]) > max(losses[:2])
    same(load_file(tmp_path / "fold" / "best_loss.safetensors"), seen[2 + int(np.argmin(losses[2:]))])


def test_snapshots_are_taken_at_the_end_of_each_cycle(tmp_path):
    evaluate, seen = scores(*[0.5] * 4)
    tensors, facts = run(
        make_data(tmp_path), tmp_path / "fold", config(stage(schedule=RESTARTS)), evaluate=evaluate
    )
    first, second = (load_file(tmp_path / "fold" / name) for name in facts["snapshots"])
    same(first, seen[1])
    same(second, seen[3])
    same(second, tensors)
    assert [json.loads((tmp_path / "fold" / f"snapshot_{n}.json").read_text())["epoch"] for n in (1, 2)] == [
        2,
        4,
    ]


def test_what_a_training_of_another_key_left_is_removed(tmp_path):
    data, settings = make_data(tmp_path), config(stage(schedule=RESTARTS), top_k=3)
    run(data, tmp_path / "fold", settings)
    _, facts = run(replace(data, key="new"), tmp_path / "fold", config(stage(1)))
    assert (facts["snapshots"], facts["top_k"], facts["kept"]) == ([], [], {})
    assert [path.stem for path in (tmp_path / "fold").glob("*.safetensors")] == ["final"]


# --- a shortened training ---


def test_a_stage_goes_on_with_the_optimizer_and_the_rate_of_one_that_was_dropped(tmp_path):
    """As it does after a resume, where the optimizer is the last one named."""
    data, sgd = make_data(tmp_path), OptimizerConfig(name="sgd", lr=0.05)
    settings = config(
        stage(20, schedule=ScheduleConfig(name="plateau")),
        stage(1, optimizer=sgd, schedule=ScheduleConfig(name="constant", warmup_frac=0.0)),
        stage(10).model_copy(update={"optimizer": None, "schedule": None}),
    )
    state = state_of(data, settings)
    state.progress.epoch, state.progress.step = 19, 2
    state.progress.rate_scale, state.progress.stalls = 0.25, {"rate": {"best": 0.5, "stale": 1}}
    state.begin_epoch()
    assert (state.progress.rate_scale, len(state.progress.stalls)) == (0.25, 1)
    state.epochs = shorten(state.epochs, 19, 2, 0.15)
    assert [epoch.stage for epoch in state.epochs[19:]] == [0, 2, 2]
    state.end_epoch()
    state.begin_epoch()
    assert state.optimizer.optimizer.param_groups[0]["momentum"] == 0.9
    assert (state.progress.rate_scale, state.progress.stalls) == (1.0, {})
    assert state.set_lr(0) == pytest.approx(0.05)


# --- ends ---


def test_an_early_stop_ends_the_training_and_is_told(tmp_path):
    evaluate, _ = scores(0.5, 0.6, 0.6, 0.55, 0.9)
    settings = config(stage(9), early_stop=StallConfig(patience=2), select="best")
    _, facts = run(make_data(tmp_path), tmp_path / "fold", settings, evaluate=evaluate)
    assert (facts["best_epoch"], facts["best_score"], facts["lengths"]) == (2, 0.6, [2])
    assert len(events(tmp_path / "fold", "loss")) == 4
    assert events(tmp_path / "fold", "ended") == ["training"]


def test_the_last_epoch_is_scored_wherever_it_comes(tmp_path):
    evaluate, seen = scores(0.5)
    stop = StallConfig(watch="loss", patience=1, min_delta=9.0)
    run(
        make_data(tmp_path),
        tmp_path / "fold",
        config(stage(9), early_stop=stop, evaluate_every=5),
        evaluate=evaluate,
    )
    assert len(seen) == 1
    assert len(events(tmp_path / "fold", "loss")) == 2


def test_stages_follow_each_other_at_plateaus(tmp_path):
    """No augmentation until the score stalls, then some: the second stage begins where the first has stalled."""
    evaluate, _ = scores(0.5, 0.4, 0.6, 0.7)
    stages = (stage(9, until_plateau=StallConfig(patience=1)), stage(2))
    settings = config(*stages)
    _, facts = run(make_data(tmp_path), tmp_path / "fold", settings, evaluate=evaluate)
    assert facts["lengths"] == [2, 2]
    rates = events(tmp_path / "fold", "lr")
    assert len(rates) == 4


def test_a_plateau_lowers_the_rate_down_to_its_bound(tmp_path):
    evaluate, _ = scores(0.5, 0.5, 0.5, 0.5, 0.6)
    schedule = ScheduleConfig(name="plateau", warmup_frac=0, patience=1, factor=0.1, final_frac=0.05)
    made = OptimizerConfig(name="sgd", lr=1e-2)
    run(
        make_data(tmp_path),
        tmp_path / "fold",
        config(stage(5, optimizer=made, schedule=schedule)),
        evaluate=evaluate,
    )
    assert events(tmp_path / "fold", "lr") == pytest.approx([1e-2, 1e-2, 1e-3, 5e-4, 5e-4])
    assert events(tmp_path / "fold", "rate_scale") == pytest.approx([0.1, 0.05, 0.05])


def test_the_worst_step_is_made_again(tmp_path, monkeypatch):
    data, settings = make_data(tmp_path, count=8), config(stage(1), sampler=SamplerConfig(repeat_worst_of=3))
    made, inner = [], loop.train_step

    def step(state, drawn):
        loss = inner(state, drawn)
        made.append((drawn, loss.item()))
        return loss

    monkeypatch.setattr(loop, "train_step", step)
    run(data, tmp_path / "fold", settings)
    assert [drawn.number for drawn, _ in made][:3] == [0, 1, 2]
    worst = int(np.argmax([loss for _, loss in made[:3]]))
    again = made[3][0]
    assert again.number == worst
    np.testing.assert_array_equal(again.batches[0].image, made[worst][0].batches[0].image)
    assert made[4][0].number == 3


def test_nothing_held_out(tmp_path):
    """A refit on all images: nothing is scored, and what needs a score is refused."""
    data = make_data(tmp_path)
    _, facts = run(data, tmp_path / "fold", config(keep=["best_loss"]), evaluate=None)
    assert facts["lengths"] == [4]
    assert not events(tmp_path / "fold", "score")
    with pytest.raises(InputError, match=r"training.top_k: 2 needs a score, but no image is held out"):
        run(data, tmp_path / "other", config(top_k=2), evaluate=None)


# --- configuration ---


def test_configurations_that_contradict_themselves():
    """Averages that nobody asked for, cycles that do not divide the epochs, and cycles over unequal stages."""

    def refused(value, message):
        with pytest.raises(InputError, match=message):
            validate(TrainingConfig, value, where="training")

    def cycles(number, *more):
        value = config(stage(6), *more).model_dump(mode="json")
        value["stages"][0]["schedule"] |= {"name": "cosine_restarts", "cycles": number, "warmup_frac": 0.0}
        if more:
            value["stages"][1]["schedule"] = None
        return value

    one = config(stage(6)).model_dump(mode="json")
    for changes, message in (
        ({"select": "swa"}, r"select: 'swa', but swa is not set"),
        ({"keep": ["swa"]}, r"keep: \['swa'\], but swa is not set"),
        ({"swa": {}}, r"swa is set, but select is 'last' and keep is \[\]"),
        ({"swa": {"start": 7}, "select": "swa"}, r"swa: start: 7 is after the last of 6 epochs"),
        ({"swa": {"every": "cycle"}, "select": "swa"}, r"every: 'cycle', but no stage has a cosine_restarts"),
    ):
        refused(one | changes, message)
    for number, fitting in (
        (4, "3 or 6 cycles, or 4 or 8"),
        (5, "3 or 6 cycles, or 5 or 10"),
        (9, "6 cycles, or 9"),
    ):
        refused(cycles(number), f"cycles: {number} does not divide its 6 epochs; expected {fitting} epochs")
    refused(cycles(2, stage(2, batch_size=4)), r"stages\[1\]: batch_size 4 and accumulate 1 differ")
    validate(TrainingConfig, cycles(2, stage(2)), where="training")
    repeat, early = {"sampler": {"repeat_worst_of": 3}}, {"until_plateau": {}}
    for at, changes, message in (
        (1, repeat, r"stages\[1\]: sampler\.repeat_worst_of 3 differs from the None of st"),
        (0, repeat, r"stages\[1\]: sampler\.repeat_worst_of None differs from the 3 of st"),
        (1, early, r"stages\[1\]: until_plateau may end it within a cycle of stages\[0\]\.schedule"),
        (0, early, r"stages\[0\]: until_plateau may end it within a cycle of stages\[0\]\.schedule"),
    ):
        value = cycles(2, stage(2))
        value["stages"][at] |= changes
        refused(value, message)
