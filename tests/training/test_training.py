import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from masksmith.data.store import Store, StoreWriter
from masksmith.errors import DivergedError, InputError
from masksmith.models import ModelConfig, Output, build_model
from masksmith.training import LossTerm, OptimizerConfig, ScheduleConfig, Stage, TrainingConfig
from masksmith.training.averaging import MovingAverage
from masksmith.training.checkpoint import (
    Checkpoints,
    load_tensors,
)
from masksmith.training.data import FoldData, canvas_hw, prefetch
from masksmith.training.events import EventLog, read_events
from masksmith.training.loop import train_fold
from masksmith.training.machine import (
    keep_memory,
    make_fabric,
    settle_device,
    settle_machine,
    settle_precision,
)
from masksmith.training.optim import build_optimizer, lr_factor
from masksmith.training.pace import Pace

MODEL = ModelConfig(encoder="resnet18", encoder_weights="none", encoder_depth=3, decoder_channels=[16, 8, 8])
BCE = [LossTerm(name="bce"), LossTerm(name="dice")]


def config(*, epochs=(2, 1), lr=1e-2, **changes):
    stages = [
        Stage(
            epochs=epochs[0],
            loss=BCE,
            scale=0.75,
            optimizer=OptimizerConfig(lr=lr),
            schedule=ScheduleConfig(),
        ),
        Stage(epochs=epochs[1], loss=[LossTerm(name="lovasz_elu")]),
    ]
    settings = {"batch_size": 4, "precision": "32-true", "device": "cpu", "threads": 1, "evaluate_every": 2}
    return TrainingConfig(stages=stages, **(settings | changes))


@pytest.fixture
def data(tmp_path):
    names = [f"s{i}" for i in range(10)]
    rng = np.random.default_rng(0)
    images = StoreWriter(tmp_path / "i.npy", [(n, (20, 20, 1)) for n in names], dtype=np.uint8)
    masks = StoreWriter(tmp_path / "m.npy", [(n, (20, 20, 1)) for n in names], dtype=np.uint8)
    for at, name in enumerate(names):
        mask = np.zeros((20, 20, 1), np.uint8)
        mask[3 : 8 + at, 5:14] = 1
        images.write(name, np.clip(mask * 120 + rng.integers(0, 100, mask.shape), 0, 255).astype(np.uint8))
        masks.write(name, mask)
    images.close()
    masks.close()
    return FoldData(0, names, Store(tmp_path / "i.npy"), Store(tmp_path / "m.npy"), seed=3)


def run(data, folder, settings, *, evaluate=None, model=None):
    fabric = make_fabric(settings)
    train_fold(
        fabric,
        model or build_model(MODEL, in_channels=1, seed=0),
        settings,
        data,
        folder=folder,
        log=EventLog(folder / "metrics.jsonl", fold=0),
        evaluate=evaluate or (lambda model: 0.5),
        pace=Pace(),
    )
    return load_tensors(folder / "final.safetensors")


def same(first, second):
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_same_seed_twice_same_weights_and_log(data, tmp_path):
    first, _ = run(data, tmp_path / "a", config())
    again, _ = run(data, tmp_path / "b", config())
    same(first, again)
    logs = [
        [event for event in read_events(tmp_path / name / "metrics.jsonl") if event["split"] != "timing"]
        for name in "ab"
    ]
    assert logs[0] == logs[1]
    assert {event["name"] for event in logs[0]} == {"loss", "lr", "score", "stage"}


def test_other_seed_other_weights(data, tmp_path):
    first, _ = run(data, tmp_path / "a", config())
    other, _ = run(FoldData(0, data.ids, data.images, data.masks, seed=4), tmp_path / "b", config())
    assert any(not torch.equal(first[name], other[name]) for name in first)


class _StopError(Exception):
    pass


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("stop_after", [2, 3])
def test_a_stopped_training_goes_on_bit_for_bit(data, tmp_path, optimizer, stop_after):
    settings = config(evaluate_every=1)
    first = settings.stages[0].model_copy(update={"optimizer": OptimizerConfig(name=optimizer, lr=1e-2)})
    settings = settings.model_copy(update={"stages": [first, settings.stages[1]]})
    clean, _ = run(data, tmp_path / "clean", settings)
    calls = []

    def stop(model):
        calls.append(1)
        if len(calls) == stop_after:
            raise _StopError
        return 0.5

    with pytest.raises(_StopError):
        run(data, tmp_path / "stopped", settings, evaluate=stop)
    resumed, _ = run(data, tmp_path / "stopped", settings)
    same(clean, resumed)
    logs = [
        [event for event in read_events(tmp_path / name / "metrics.jsonl") if event["split"] != "timing"]
        for name in ("clean", "stopped")
    ]
    assert logs[0] == logs[1]


def test_it_learns(data, tmp_path):
    run(data, tmp_path, config(epochs=(12, 4)))
    events = read_events(tmp_path / "metrics.jsonl")
    losses = [e["value"] for e in events if e["name"] == "loss"]
    assert losses[11] < 0.5 * losses[0]


def test_rolling_checkpoints_are_gone_at_the_end(data, tmp_path):
    run(data, tmp_path, config())
    assert sorted(path.name for path in tmp_path.glob("*.safetensors")) == ["final.safetensors"]


def test_select_best_keeps_the_best_scored_epoch(data, tmp_path):
    scores = iter([0.2, 0.9, 0.4])
    kept = {}

    def evaluate(model):
        score = next(scores)
        kept[score] = {name: value.clone() for name, value in model.state_dict().items()}
        return score

    tensors, facts = run(data, tmp_path, config(evaluate_every=1, select="best"), evaluate=evaluate)
    assert (facts["best_epoch"], facts["epoch"], facts["best_score"]) == (2, 2, 0.9)
    same(tensors, kept[0.9])


def test_divergence_goes_back_once_then_stops_clearly(data, tmp_path):
    with pytest.raises(DivergedError, match=r"fold 0, epoch \d: training diverged again"):
        run(data, tmp_path, config(lr=1e30, clip_norm=None))
    events = read_events(tmp_path / "metrics.jsonl")
    assert [event["value"] for event in events if event["name"] == "lr_scale"] == [0.3]
    tensors, _ = Checkpoints(tmp_path).newest()
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_a_single_divergence_is_survived(data, tmp_path):
    model = build_model(MODEL, in_channels=1, seed=0)
    blown = []

    def blow_up(module, inputs):
        if len(blown) < 1 and module.training and len(calls) == 3:
            blown.append(1)
            return (inputs[0] * math.nan,)
        return inputs

    calls = []
    model.register_forward_pre_hook(lambda module, inputs: calls.append(1) if module.training else None)
    model.register_forward_pre_hook(blow_up)
    tensors, facts = run(data, tmp_path, config(), model=model)
    assert blown
    assert facts["rescued"]
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_no_images(data, tmp_path):
    with pytest.raises(InputError, match="fold 0: no images to train on"):
        run(FoldData(0, [], data.images, data.masks, seed=0), tmp_path, config())


def test_canvas(data):
    settings = config()
    assert canvas_hw(settings, settings.stages[0], data, 8) == (16, 16)
    assert canvas_hw(settings, settings.stages[1], data, 8) == (24, 24)
    cropped = settings.model_copy(update={"crop_hw": (8, 12)})
    assert canvas_hw(cropped, settings.stages[1], data, 4) == (8, 12)


@pytest.mark.parametrize("name", ["one_cycle", "cosine"])
def test_schedules(name):
    schedule = ScheduleConfig(name=name, warmup_frac=0.25, final_frac=0.01)
    values = [lr_factor(schedule, step / 100) for step in range(101)]
    assert max(values) == pytest.approx(1)
    assert values.index(max(values)) == 25
    assert values[-1] == pytest.approx(1 if name == "constant" else 0.01)
    assert values[:26] == sorted(values[:26])


def test_optimizer_spares_biases_and_slows_the_encoder():
    model = build_model(MODEL, in_channels=1, seed=0)
    optimizer = build_optimizer(model, OptimizerConfig(lr=1.0, weight_decay=0.1, encoder_lr_frac=0.5))
    groups = {(group["peak_lr"], group["weight_decay"]): group["params"] for group in optimizer.param_groups}
    assert set(groups) == {(0.5, 0.1), (0.5, 0.0), (1.0, 0.1), (1.0, 0.0)}
    assert all(weight.ndim == 1 for key in ((0.5, 0.0), (1.0, 0.0)) for weight in groups[key])
    assert sum(len(weights) for weights in groups.values()) == len(list(model.parameters()))


def test_moving_average_follows_the_formula():
    model = torch.nn.BatchNorm1d(2)
    average = MovingAverage(model, decay=0.5)
    expected = model.weight.detach().clone()
    for step in range(6):
        with torch.no_grad():
            model.weight.fill_(float(step))
            model.num_batches_tracked.fill_(step)
        average.update(model)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        torch.testing.assert_close(average.model.weight, expected)
        assert average.model.num_batches_tracked == step


def test_prefetch_keeps_the_order_and_passes_errors():
    assert list(prefetch(lambda step: step * step, range(20), threads=3)) == [
        step * step for step in range(20)
    ]

    def fail(step):
        raise KeyError(step)

    with pytest.raises(KeyError):
        list(prefetch(fail, range(3)))


def test_first_stage_must_say_how():
    with pytest.raises(ValueError, match=r"stages\[0\] must have an optimizer and a schedule"):
        TrainingConfig(stages=[Stage(epochs=1, loss=BCE)])


def test_machine_is_settled():
    settled = settle_machine(config(device="auto", precision="auto", threads="auto"))
    assert settled.device == settle_device("auto")
    assert settled.precision in ("32-true", "bf16-mixed", "16-mixed")
    assert settled.threads >= 1
    assert settle_precision("16-mixed", "cuda") == "16-mixed"
    with pytest.raises(InputError, match=r"training\.precision: '16-mixed' needs a GPU"):
        settle_precision("16-mixed", "cpu")
    missing = "mps" if torch.cuda.is_available() or not torch.backends.mps.is_available() else "cuda"
    with pytest.raises(InputError, match=f"training.device: '{missing}' is not there"):
        settle_device(missing)


def test_torn_last_line_of_the_log(tmp_path):
    log = EventLog(tmp_path / "m.jsonl", fold=0)
    log.write(1, "train", loss=1.0)
    with (tmp_path / "m.jsonl").open("a") as file:
        file.write('{"fold": 0, "epo')
    assert len(read_events(tmp_path / "m.jsonl")) == 1
    other = EventLog(tmp_path / "m.jsonl", fold=1)
    other.cut_back(0)  # every training begins with this
    other.write(1, "train", loss=2.0)
    assert [event["value"] for event in read_events(tmp_path / "m.jsonl")] == [1.0, 2.0]


def test_a_checkpoint_of_other_folds_is_not_continued(data, tmp_path, caplog):
    clean, _ = run(replace(data, key="new"), tmp_path / "clean", config())

    def stop(model):
        raise _StopError

    with pytest.raises(_StopError):
        run(replace(data, key="old"), tmp_path / "stopped", config(evaluate_every=1), evaluate=stop)
    resumed, _ = run(replace(data, key="new"), tmp_path / "stopped", config())
    assert "the checkpoint was trained on other data or folds; starting over" in caplog.text
    same(clean, resumed)


def test_dropout_is_drawn_by_counter(data, tmp_path):
    """A model with dropout: the global generator's state does not matter, and is left alone."""
    weights = []
    for at, start in enumerate((1, 2)):
        model = build_model(MODEL, in_channels=1, seed=0)
        model.decoder.blocks[0].register_forward_hook(lambda module, inputs, output: F.dropout(output, 0.5))
        torch.manual_seed(start)
        tensors, _ = run(data, tmp_path / str(at), config(), model=model)
        weights.append(tensors)
        state = torch.rand(1)
        torch.manual_seed(start)
        assert torch.rand(1) == state
    same(*weights)


def test_bfloat16_with_sliced_depthwise_is_reproducible_and_resumes(data, tmp_path):
    """The way the default recipe is trained on a CPU."""
    model = ModelConfig(
        encoder="mobilenet_v2", encoder_weights="none", encoder_depth=3, decoder_channels=[16, 8, 8]
    )

    def make():
        return build_model(model, in_channels=1, seed=0)

    settings = config(precision="bf16-mixed", evaluate_every=1)
    clean, _ = run(data, tmp_path / "clean", settings, model=make())
    calls = []

    def stop(_model):
        calls.append(1)
        if len(calls) == 2:
            raise _StopError
        return 0.5

    with pytest.raises(_StopError):
        run(data, tmp_path / "stopped", settings, evaluate=stop, model=make())
    resumed, _ = run(data, tmp_path / "stopped", settings, model=make())
    same(clean, resumed)


def test_keeping_memory_is_taken_or_told():
    assert isinstance(keep_memory(), bool)


def test_death_after_the_last_weights_were_written(data, tmp_path, monkeypatch):
    """final.safetensors is whole, the rolling checkpoints and the best are half removed: nothing is trained again."""
    keyed, settings = replace(data, key="k"), config(evaluate_every=1, select="best")
    clean, _ = run(keyed, tmp_path / "clean", settings)
    for number in (0, 3):  # before the first checkpoint is removed, and before the last
        folder, seen = tmp_path / str(number), []

        def die(path, phase, seen=seen, number=number):
            if phase == "remove" and (seen or path.parent.joinpath("final.json").exists()):
                seen.append(path)
                if len(seen) == number + 1:
                    raise _StopError

        monkeypatch.setattr("masksmith.files.on_write", die)
        with pytest.raises(_StopError):
            run(keyed, folder, settings)
        monkeypatch.setattr("masksmith.files.on_write", None)

        def never(model):
            raise AssertionError

        again, _ = run(keyed, folder, settings, evaluate=never)
        same(clean, again)
        assert sorted(path.name for path in folder.glob("*.*")) == [
            "final.json",
            "final.safetensors",
            "metrics.jsonl",
        ]


def test_mixed_precision_leaves_the_image_and_all_outputs_in_float32():
    """Lightning's own precision would round the image to bfloat16 on its way through the wrapper."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Conv2d(1, 2, 1)

        def forward(self, image, scalars=None):
            assert image.dtype == scalars.dtype == torch.float32
            features = self.layer(image)
            assert features.dtype == torch.bfloat16
            return Output(features.float(), None, (features.float()[:, :1],))

    wrapped = make_fabric(config(precision="bf16-mixed")).setup_module(Net())
    output = wrapped(torch.rand(2, 1, 4, 4), torch.rand(2, 3))
    assert isinstance(output, Output)
    assert output.image_logits is None
    assert [tuple(one.shape) for one in (output.mask_logits, *output.aux)] == [(2, 2, 4, 4), (2, 1, 4, 4)]
    assert output.mask_logits.dtype == output.aux[0].dtype == torch.float32


def test_an_event_after_a_torn_line(tmp_path):
    log = EventLog(tmp_path / "m.jsonl", fold=0)
    log.write(1, "train", loss=1.0)
    with (tmp_path / "m.jsonl").open("ab") as file:
        file.write(b'{"fold": 0, "epo\xff')
    log.write(2, "train", loss=2.0)
    assert [event["value"] for event in read_events(tmp_path / "m.jsonl")] == [1.0, 2.0]
