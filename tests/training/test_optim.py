import itertools
import math

import pytest
import torch

from masksmith.core.config import validate
from masksmith.core.errors import InputError
from masksmith.training import OptimizerConfig, ScheduleConfig
from masksmith.training.footprint import training_footprint
from masksmith.training.optim import (
    OPTIMIZERS,
    SCHEDULES,
    build_optimizer,
    encoder_depths,
    finished_cycles,
    lr_factor,
    num_moments,
)
from tests.training.tiny import TinyNet, config, stage

STEPS = 200


def curve(**fields):
    return [lr_factor(ScheduleConfig(**fields), step / STEPS) for step in range(STEPS + 1)]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_rises_to_its_peak_in_the_warm_up(name):
    values = curve(name=name, warmup_frac=0.25)
    rising = values[: STEPS // 4 + 1]
    assert rising == sorted(rising)
    assert 0 <= min(values) <= max(values) <= 1 + 1e-12
    if name != "cyclic":  # it rises to its lower bound
        assert values[STEPS // 4] == pytest.approx(1)
    assert values[0] == pytest.approx(1 / 25 if name == "one_cycle" else 0)


@pytest.mark.parametrize("name", ["cosine", "one_cycle", "polynomial", "cosine_restarts"])
def test_falling_schedules_end_at_their_last_value(name):
    values = curve(name=name, warmup_frac=0.25, final_frac=0.01)
    falling = values[STEPS // 4 :]
    assert falling == sorted(falling, reverse=True)
    assert values[-1] == pytest.approx(0.01)


def test_cosine_by_hand():
    assert curve(name="cosine", warmup_frac=0, final_frac=0.1)[STEPS // 2] == pytest.approx(0.55)
    assert curve(name="cosine", warmup_frac=0, final_frac=0.0)[STEPS // 4] == pytest.approx(
        (1 + math.cos(math.pi / 4)) / 2
    )


def test_polynomial_by_hand():
    values = curve(name="polynomial", warmup_frac=0, final_frac=0.0, power=2.0)
    assert values[STEPS // 2] == pytest.approx(0.25)


def test_step_falls_at_its_milestones():
    values = curve(name="step", warmup_frac=0, milestones=[0.5, 0.75], gamma=0.1)
    expected = [1.0] * 100 + [0.1] * 50 + [0.01] * 51
    assert values == pytest.approx(expected)


def test_restarts_jump_to_the_peak_and_share_the_warm_up_with_the_first_cycle():
    values = curve(name="cosine_restarts", cycles=4, warmup_frac=0.1, final_frac=0.01)
    jumps = [
        at for at, (before, after) in enumerate(itertools.pairwise(values), start=1) if after > before + 0.5
    ]
    assert jumps == [50, 100, 150]
    assert [values[at] for at in (20, 50, 100, 150)] == pytest.approx([1] * 4)
    assert all(values[at - 1] < 0.02 for at in (50, 100, 150))
    assert values[200] == pytest.approx(0.01)


def test_cycles_end_where_sums_of_steps_fall_short_by_rounding():
    assert finished_cycles(1 / 3 - 1e-12, 3) == 1
    assert finished_cycles(9 / 30, 3) == 0
    assert finished_cycles(1.0, 3) == 3


def test_cyclic_is_a_triangle_between_two_bounds():
    values = curve(name="cyclic", cycles=2, warmup_frac=0, final_frac=0.2)
    assert [values[at] for at in (0, 25, 50, 75, 100, 150, 200)] == pytest.approx(
        [0.2, 0.6, 1, 0.6, 0.2, 1, 0.2]
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "constant", "power": 2.0}, r"power: 2.0, but the schedule 'constant' has no use for it"),
        ({"name": "cosine", "cycles": 3}, r"cycles: 3, but the schedule 'cosine'"),
        ({"name": "step", "milestones": [0.8, 0.2]}, r"milestones: \[0.8, 0.2\]; expected rising"),
        ({"name": "cosine_restarts", "cycles": 10}, r"warmup_frac: 0.15 .* the first of 10 cycles; .* 0.1$"),
    ],
)
def test_schedules_refuse_what_they_have_no_use_for(fields, message):
    with pytest.raises(InputError, match=message):
        validate(ScheduleConfig, fields, where="schedule")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "adam", "momentum": 0.5}, r"momentum: 0.5, but the optimizer 'adam' has no use for it"),
        ({"name": "rmsprop", "nesterov": False}, r"nesterov: False, but the optimizer 'rmsprop'"),
        ({"name": "sgd", "momentum": 0.0}, r"nesterov: True with momentum 0"),
    ],
)
def test_optimizers_refuse_what_they_have_no_use_for(fields, message):
    with pytest.raises(InputError, match=message):
        validate(OptimizerConfig, fields, where="optimizer")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers_are_those_of_torch_and_keep_the_moments_that_memory_is_reckoned_with(name):
    made = OptimizerConfig(name=name, lr=0.1)
    model = TinyNet()
    optimizer = build_optimizer(model, made)
    assert type(optimizer).__name__.lower() == name
    model(torch.rand(2, 1, 8, 8)).mask_logits.sum().backward()
    optimizer.step()
    weight = model.head.weight
    kept = [
        value
        for value in optimizer.state[weight].values()
        if value is not None and value.shape == weight.shape
    ]
    assert len(kept) == num_moments(made)


def test_momentum_and_nesterov_reach_torch():
    group = build_optimizer(
        TinyNet(), OptimizerConfig(name="sgd", momentum=0.5, nesterov=False)
    ).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.5, False)
    group = build_optimizer(TinyNet(), OptimizerConfig(name="sgd")).param_groups[0]
    assert (group["momentum"], group["nesterov"]) == (0.9, True)
    assert (
        build_optimizer(TinyNet(), OptimizerConfig(name="rmsprop", momentum=0.3)).param_groups[0]["momentum"]
        == 0.3
    )


def test_early_layers_move_less():
    model = TinyNet()
    made = OptimizerConfig(lr=1.0, encoder_lr_frac=0.5, encoder_layer_decay=0.1)
    rates = {}
    for group in build_optimizer(model, made).param_groups:
        rates |= {id(weight): group["peak_lr"] for weight in group["params"]}
    named = {name: rates[id(weight)] for name, weight in model.named_parameters()}
    assert named["encoder.layer2.0.weight"] == pytest.approx(0.5)
    assert named["encoder.layer1.0.weight"] == named["encoder.layer1.1.bias"] == pytest.approx(0.05)
    assert named["decoder.0.weight"] == named["head.bias"] == 1.0


def test_blocks_of_an_encoder_are_told_by_their_names():
    names = [
        "conv1.weight",
        "bn1.bias",
        "layer1.0.conv.weight",
        "layer1.1.conv.weight",
        "layer2.0.conv.weight",
    ]
    depths = encoder_depths([f"encoder.{name}" for name in names] + ["decoder.0.weight"])
    assert list(depths.values()) == [2, 2, 1, 1, 0]
    flat = encoder_depths(["encoder.features.0.0.weight", "encoder.features.1.conv.0.weight"])
    assert list(flat.values()) == [1, 0]


def test_memory_follows_averages_and_gathered_gradients():
    def state(**changes):
        return training_footprint(TinyNet(), config(stage(), **changes)).state

    from masksmith.training import SwaConfig

    plain = state()
    weights = plain - state(ema_decay=None)
    assert weights > 0
    assert state(swa=SwaConfig(), select="swa") - plain == weights
    assert 0 < state(accumulate=2) - plain < weights  # gradients: without the buffers
