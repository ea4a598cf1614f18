from itertools import count

import pytest
import torch

from masksmith.core.errors import InputError
from masksmith.models.config import ModelConfig
from masksmith.planning import timings as m
from masksmith.recipes.recipe import load_recipe
from masksmith.training.config import TrainingConfig

MODEL = ModelConfig(encoder="resnet18", encoder_weights="none", encoder_depth=3, decoder_channels=[16, 8, 8])


def _config(*overrides: str) -> TrainingConfig:
    base = ("training.precision=32-true", "training.device=cpu", "training.threads=1")
    return load_recipe("auto", base + overrides).training


CONFIG = _config()
SIZE = {"in_channels": 1, "canvas_hw": (16, 16), "batch_size": 2}
LOSS = CONFIG.stages[0].loss


class _Ticking:
    """A clock that shows one second more whenever it is looked at."""

    def __init__(self) -> None:
        self._ticks = count()

    def __call__(self) -> float:
        return float(next(self._ticks))


# --- measuring ---


def test_calls_are_repeated_until_the_time_is_over_but_three_after_the_first_at_least():
    calls = []
    assert m.time_repeated(lambda: calls.append(1), 1.0, _Ticking()) == (1.0, 1.0)
    assert len(calls) == 4
    assert m.time_repeated(lambda: calls.append(1), 5.5, _Ticking()) == (1.0, 1.0)
    assert len(calls) == 4 + 6
    shown = iter([0.0, 9.0, 10.0, 13.0, 15.0])  # the first is slow, then 1, 3 and 2 seconds
    assert m.time_repeated(lambda: None, 9.0, lambda: next(shown)) == (9.0, 2.0)
    assert m.time_repeated(lambda: calls.append(1), 0.5, _Ticking()) == (1.0, 1.0)
    assert len(calls) == 11  # one call took longer than there is time


def test_a_measurement_says_what_the_clock_said():
    timing = m.measure(MODEL, CONFIG, **SIZE, seconds=8.0, clock=_Ticking())
    assert timing == m.Timing(build_s=1.0, first_step_s=0.0, step_s=1.0, forward_s=1.0)


def test_real_seconds_are_in_order_and_the_random_numbers_are_left():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    timing = m.measure(MODEL, CONFIG, **SIZE, seconds=0.01)
    assert torch.equal(torch.rand(2), expected)
    assert min(timing.build_s, timing.step_s, timing.forward_s) > 0
    assert timing.first_step_s >= 0


def test_of_several_devices_one_makes_its_part_of_the_step_and_one_predicts(monkeypatch):
    made, stepper = [], m.Stepper

    def noted(model, config, **more):
        made.append((more["batch_size"], config.threads, config.devices))
        return stepper(model, config, **more)

    monkeypatch.setattr(m, "Stepper", noted)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    two = _config("training.devices=2", "training.threads=2")
    timing = m.measure(MODEL, two, **SIZE | {"batch_size": 4}, seconds=0.01)
    assert made == [(4, 2, 1), (2, 1, 1)]
    assert min(timing.step_s, timing.forward_s) > 0


@pytest.mark.slow
def test_each_model_and_size_is_measured_once():
    timings, hw = m.Timings(1, clock=_Ticking()), (16, 16)
    first = timings.of_model(MODEL, CONFIG, hw, 2)
    spent = timings.spent_s
    longer = CONFIG.stages[0].model_copy(update={"epochs": 99})
    again = CONFIG.model_copy(update={"stages": [longer, *CONFIG.stages[1:]]})
    assert timings.of_model(MODEL, again, hw, 2) is first
    assert timings.spent_s == spent > 0
    for model, config, size, batch in (
        (MODEL.model_copy(update={"norm": "group"}), CONFIG, hw, 2),
        (MODEL, _config("training.ema_decay=null"), hw, 2),
        (MODEL, CONFIG, (16, 32), 2),
        (MODEL, CONFIG, hw, 3),
    ):
        assert timings.of_model(model, config, size, batch) is not first
    assert timings.of_runtime("torch", MODEL, CONFIG, hw, 2).step_s == 0
    spent = timings.spent_s
    assert timings.of_runtime("tpu", MODEL, CONFIG, hw, 2) is None  # it cannot work here
    assert timings.of_runtime("tpu", MODEL, CONFIG, hw, 2) is None


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_is_a_training_step(precision):
    """Weights, average and moments move; a forward pass gives probabilities and moves nothing."""
    config = _config(f"training.precision={precision}")
    stepper = m.Stepper(MODEL, config, **SIZE, loss=LOSS)
    head = stepper.raw.head.weight.clone()
    averaged = stepper.average.model.head.weight.clone()
    stepper.step()
    assert not torch.equal(stepper.raw.head.weight, head)
    assert not torch.equal(stepper.average.model.head.weight, averaged)
    assert stepper.average.steps == 1
    after = {name: value.clone() for name, value in stepper.average.model.state_dict().items()}
    probs = stepper.forward()
    assert probs.shape == (2, 1, 16, 16)
    assert 0 <= probs.min() <= probs.max() <= 1
    assert all(torch.equal(value, after[name]) for name, value in stepper.average.model.state_dict().items())


def test_a_step_written_out_comes_to_the_same_weights():
    """In the plain layout, from the same seed and the same images."""
    from masksmith.losses.build import build_loss
    from masksmith.models.segmentation import build_model
    from masksmith.training.machine import make_fabric, settle_machine
    from masksmith.training.optim import build_optimizer

    stepper = m.Stepper(MODEL, CONFIG, **SIZE, loss=LOSS)
    stepper.step()
    fabric, model = make_fabric(settle_machine(CONFIG)), build_model(MODEL, in_channels=1, seed=0)
    first = CONFIG.stages[0].optimizer
    assert first is not None
    wrapped, optimizer = fabric.setup(model, build_optimizer(model, first))
    loss = build_loss(LOSS, where="x")
    model.train()
    fabric.backward(loss(model(stepper.image), stepper.mask))
    fabric.clip_gradients(wrapped, optimizer, max_norm=5.0)
    optimizer.step()
    assert torch.allclose(model.head.weight, stepper.raw.head.weight, atol=1e-6)


def test_an_unknown_loss_is_refused():
    wrong = [LOSS[0].model_copy(update={"name": "bcee"})]
    with pytest.raises(InputError, match=r"loss\[0\]\.name: 'bcee' is unknown; did you mean 'bce'"):
        m.Stepper(MODEL, CONFIG, **SIZE, loss=wrong)


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_runtime_is_timed_with_its_conversion(runtime):
    timing = m.measure_runtime(MODEL, CONFIG, runtime=runtime, **SIZE, seconds=1.0, clock=_Ticking())
    assert timing == m.Timing(build_s=2.0, first_step_s=0.0, step_s=0.0, forward_s=1.0)


def test_a_model_that_takes_scalars_is_measured():
    model, options = MODEL.model_copy(update={"scalars": ["depth", "year"]}), SIZE | {"seconds": 1.0}
    assert m.measure(model, CONFIG, **options, clock=_Ticking()).step_s == 1.0
    assert m.measure_runtime(model, CONFIG, runtime="torch", **options, clock=_Ticking()).forward_s == 1.0
    with pytest.raises(
        InputError, match=r"'openvino' has no form for a model that takes scalars \(depth, year\)"
    ):
        m.measure_runtime(model, CONFIG, runtime="openvino", **options)


def test_an_unknown_runtime_is_refused():
    with pytest.raises(InputError, match=r"prediction\.runtime: 'tpu' is unknown"):
        m.measure_runtime(MODEL, CONFIG, runtime="tpu", **SIZE, seconds=1.0)
