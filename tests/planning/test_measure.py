import re
from itertools import count

import pytest
import torch

from masksmith.errors import InputError
from masksmith.models.config import ModelConfig
from masksmith.planning import measure as m
from masksmith.recipe import load_recipe
from masksmith.training.config import LossTerm, TrainingConfig

MODEL = ModelConfig(encoder="resnet18", encoder_weights="none", encoder_depth=3, decoder_channels=[16, 8, 8])


def _config(*overrides: str) -> TrainingConfig:
    base = ("training.precision=32-true", "training.device=cpu", "training.threads=1")
    return load_recipe("auto", base + overrides).training


CONFIG = _config()
SIZE = {"in_channels": 1, "canvas_hw": (16, 16), "batch_size": 2, "loss": CONFIG.stages[0].loss}


class _Ticking:
    """A clock that shows one second more whenever it is looked at."""

    def __init__(self) -> None:
        self._ticks = count()

    def __call__(self) -> float:
        return float(next(self._ticks))


# --- measuring ---


def test_steps_are_repeated_until_the_time_is_over_but_three_at_least():
    assert m._repeat(lambda: None, 0.0, _Ticking()) == [1.0] * 3
    assert m._repeat(lambda: None, 5.5, _Ticking()) == [1.0] * 6


def test_a_measurement_says_what_the_clock_said():
    timing = m.measure(MODEL, CONFIG, **SIZE, seconds=8.0, clock=_Ticking())
    assert timing == m.Timing(1.0, 0.0, 1.0, 1.0, (1.0, 1.0), (1.0, 1.0), 8)


def test_the_median_and_the_spread_and_the_cost_of_the_first_steps():
    """Build 4 s, two warm-up steps 10 s, steps of 1, 3 and 2 s, forward passes of 1, 1 and 4 s."""
    shown = iter([0.0, 4.0, 14.0, 14.0, 15.0, 18.0, 20.0, 20.0, 21.0, 22.0, 26.0])
    timing = m.measure(MODEL, CONFIG, **SIZE, seconds=0.0, clock=lambda: next(shown))
    assert timing == m.Timing(4.0, 6.0, 2.0, 1.0, (1.0, 3.0), (1.0, 4.0), 3)


def test_real_seconds_are_in_order_and_the_random_numbers_are_left():
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    timing = m.measure(MODEL, CONFIG, **SIZE, seconds=0.0)
    assert torch.equal(torch.rand(2), expected)
    assert timing.n == 3
    assert 0 < timing.step_spread_s[0] <= timing.step_s <= timing.step_spread_s[1]
    assert 0 < timing.forward_spread_s[0] <= timing.forward_s <= timing.forward_spread_s[1]
    assert timing.build_s > 0
    assert timing.first_step_s >= 0


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_step_is_a_training_step(precision):
    """Weights, average and moments move; a forward pass gives probabilities and moves nothing."""
    config = _config(f"training.precision={precision}")
    stepper = m.Stepper(MODEL, config, **SIZE)
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

    stepper = m.Stepper(MODEL, CONFIG, **SIZE)
    stepper.step()
    fabric, model = make_fabric(settle_machine(CONFIG)), build_model(MODEL, in_channels=1, seed=0)
    first = CONFIG.stages[0].optimizer
    assert first is not None
    wrapped, optimizer = fabric.setup(model, build_optimizer(model, first))
    loss = build_loss(CONFIG.stages[0].loss, where="x")
    model.train()
    fabric.backward(loss(model(stepper.image), stepper.mask))
    fabric.clip_gradients(wrapped, optimizer, max_norm=5.0)
    optimizer.step()
    assert torch.allclose(model.head.weight, stepper.raw.head.weight, atol=1e-6)


def test_an_unknown_loss_is_refused():
    wrong = [CONFIG.stages[0].loss[0].model_copy(update={"name": "bcee"})]
    with pytest.raises(InputError, match=r"loss\[0\]\.name: 'bcee' is unknown; did you mean 'bce'"):
        m.Stepper(MODEL, CONFIG, **SIZE | {"loss": wrong})


# --- this machine ---


def test_a_timing_is_measured_once_and_then_remembered(tmp_path):
    options = {**SIZE, "seconds": 0.0}
    first, known = m.timing_of(
        MODEL, CONFIG, **options, memory=m.Memory(tmp_path / "m.json"), clock=_Ticking()
    )
    assert not known
    again, known = m.timing_of(
        MODEL, CONFIG, **options, memory=m.Memory(tmp_path / "m.json"), clock=lambda: pytest.fail("measured")
    )
    assert known
    assert again == first
    text = (tmp_path / "m.json").read_text()
    assert "unet/resnet18, depth 3, decoder 16-8-8, 1 channels, 2x16x16, bce+dice, adamw, 32-true" in text


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ((), {"canvas_hw": (16, 32)}),
        ((), {"batch_size": 3}),
        ((), {"in_channels": 3}),
        ((), {"loss": CONFIG.stages[1].loss}),
        (("training.threads=2",), {}),
        (("training.precision=bf16-mixed",), {}),
        (("training.channels_last=false",), {}),
        (("training.stages.0.optimizer.name=sgd",), {}),
        (("training.ema_decay=null",), {}),
        (
            (),
            {"loss": [term.model_copy(update={"params": {"smooth": 2.0}}) for term in CONFIG.stages[0].loss]},
        ),
    ],
)
def test_what_changes_the_seconds_changes_the_key(overrides, size):
    assert m.timing_key(MODEL, _config(*overrides), **SIZE | size) != m.timing_key(MODEL, CONFIG, **SIZE)


def test_another_encoder_or_decoder_has_another_key():
    key = m.timing_key(MODEL, CONFIG, **SIZE)
    for change in (
        {"encoder": "resnet34"},
        {"decoder_channels": [16, 8, 4]},
        {"architecture": "unetplusplus"},
        {"attention": "scse"},
        {"gradient_checkpointing": True},
        {"scalars": ["depth"]},
    ):
        assert m.timing_key(MODEL.model_copy(update=change), CONFIG, **SIZE) != key


def test_what_is_at_its_defaults_stays_out_of_the_key():
    """Measurements of earlier versions stay good, and weights take no time."""
    key = m.timing_key(MODEL, CONFIG, **SIZE)
    assert key == (
        "unet/resnet18, depth 3, decoder 16-8-8, 1 channels, 2x16x16, bce+dice, adamw, 32-true, channels-last, cpu, "
        "1 threads"
    )
    weights = {"encoder_weights": "imagenet", "encoder_weights_hash": "0" * 64}
    assert m.timing_key(MODEL.model_copy(update=weights), CONFIG, **SIZE) == key
    assert m.timing_key(MODEL, _config("training.ema_decay=0.5"), **SIZE) == key
    off = m.timing_key(MODEL.model_copy(update={"norm": "group"}), CONFIG, **SIZE)
    assert re.fullmatch(re.escape(key) + ", options [0-9a-f]{8}", off)


def test_the_order_of_terms_leaves_the_key():
    dice, bce = (
        LossTerm(name="dice", params={"smooth": 2.0}),
        LossTerm(name="bce", params={"pos_weight": 2.0}),
    )
    keys = {m.timing_key(MODEL, CONFIG, **SIZE | {"loss": loss}) for loss in ([dice, bce], [bce, dice])}
    assert len(keys) == 1


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_a_runtime_is_timed_with_its_conversion(runtime):
    timing = m.measure_runtime(
        MODEL,
        _config(),
        runtime=runtime,
        in_channels=1,
        canvas_hw=(16, 16),
        batch_size=2,
        seconds=0.0,
        clock=_Ticking(),
    )
    assert timing.build_s == 1.0
    assert (timing.step_s, timing.first_step_s) == (0.0, 0.0)
    assert timing.forward_s == 1.0
    assert timing.n == 3


def test_a_model_that_takes_scalars_is_measured():
    model = MODEL.model_copy(update={"scalars": ["depth", "year"]})
    assert m.measure(model, CONFIG, **SIZE, seconds=0.0, clock=_Ticking()).n == 3
    options = {"in_channels": 1, "canvas_hw": (16, 16), "batch_size": 2, "seconds": 0.0}
    assert m.measure_runtime(model, CONFIG, runtime="torch", **options, clock=_Ticking()).n == 3
    with pytest.raises(
        InputError, match=r"'openvino' has no form for a model that takes scalars \(depth, year\)"
    ):
        m.measure_runtime(model, CONFIG, runtime="openvino", **options)


def test_an_unknown_runtime_is_refused():
    with pytest.raises(InputError, match=r"prediction\.runtime: 'tpu' is unknown"):
        m.measure_runtime(
            MODEL, _config(), runtime="tpu", in_channels=1, canvas_hw=(16, 16), batch_size=2, seconds=0.0
        )
