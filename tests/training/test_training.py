"""The training of a fold as a whole, and the small parts that have no file of their own here."""

import math
from dataclasses import replace

import pytest
import torch

from masksmith.core.errors import DivergedError, InputError
from masksmith.models.config import ModelConfig
from masksmith.models.segmentation import Output, build_model
from masksmith.training import OptimizerConfig, ScheduleConfig, Stage, TrainingConfig
from masksmith.training.averaging import MovingAverage
from masksmith.training.checkpoint import Checkpoints
from masksmith.training.data import canvas_hw, prefetch
from masksmith.training.events import EventLog, read_events
from masksmith.training.machine import (
    keep_memory,
    make_fabric,
    settle_device,
    settle_machine,
    settle_precision,
)
from masksmith.training.optim import build_optimizer, lr_factor
from tests.training.tiny import BCE, TinyNet, config, events, leave_at, make_data, run, same, stage

pytestmark = pytest.mark.slow


class KilledError(Exception):
    pass


def continued():
    """A second stage that goes on with optimizer and schedule of the first."""
    return stage(1).model_copy(update={"optimizer": None, "schedule": None})


def test_a_seed_gives_the_same_weights_and_log_and_another_seed_others(tmp_path):
    data, settings = make_data(tmp_path), config(stage(2, scale=0.75), continued())
    first, _ = run(data, tmp_path / "a", settings)
    again, _ = run(data, tmp_path / "b", settings)
    same(first, again)
    assert events(tmp_path / "a") == events(tmp_path / "b")
    assert {event["name"] for event in events(tmp_path / "a")} == {"loss", "lr", "score", "stage"}
    other, _ = run(replace(data, seed=4), tmp_path / "c", settings)
    assert any(not torch.equal(first[name], other[name]) for name in first)


def test_it_learns(tmp_path):
    run(make_data(tmp_path), tmp_path / "fold", config(stage(16, optimizer=OptimizerConfig(lr=0.05))))
    losses = events(tmp_path / "fold", "loss")
    assert losses[-1] < 0.6 * losses[0]


def test_divergence_goes_back_once_then_stops_clearly(tmp_path):
    wild = config(stage(3, optimizer=OptimizerConfig(lr=1e30)), clip_norm=None)
    with pytest.raises(DivergedError, match=r"fold 0, epoch \d: training diverged again"):
        run(make_data(tmp_path), tmp_path / "fold", wild)
    assert events(tmp_path / "fold", "lr_scale") == [0.3]
    tensors, _ = Checkpoints(tmp_path / "fold").newest()
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_a_single_divergence_is_survived(tmp_path):
    model, calls = TinyNet(), []

    def blow_up(module, inputs):
        calls.append(module.training)
        return (inputs[0] * math.nan,) if sum(calls) == 3 and module.training else inputs

    model.register_forward_pre_hook(blow_up)
    tensors, facts = run(make_data(tmp_path), tmp_path / "fold", config(), model=model)
    assert facts["rescued"]
    assert all(torch.isfinite(value).all() for value in tensors.values())


def test_no_images(tmp_path):
    with pytest.raises(InputError, match="fold 0: no images to train on"):
        run(replace(make_data(tmp_path), ids=[]), tmp_path / "fold", config())


def test_a_checkpoint_of_other_folds_is_not_continued(tmp_path, monkeypatch, caplog):
    data, settings = make_data(tmp_path), config(stage(2))
    clean, _ = run(replace(data, key="new"), tmp_path / "clean", settings)
    with monkeypatch.context() as patch:
        leave_at(patch, 8, KilledError())
        with pytest.raises(KilledError):
            run(replace(data, key="old"), tmp_path / "left", settings)
    resumed, _ = run(replace(data, key="new"), tmp_path / "left", settings)
    assert "the checkpoint was trained on other data or folds; starting over" in caplog.text
    same(clean, resumed)


def test_dropout_is_drawn_by_counter(tmp_path):
    """The global generator's state does not matter, and is left alone."""
    data, weights = make_data(tmp_path), []
    for start in (1, 2):
        torch.manual_seed(start)
        weights.append(run(data, tmp_path / str(start), config(), model=TinyNet(dropout=0.5))[0])
        state = torch.rand(1)
        torch.manual_seed(start)
        assert torch.rand(1) == state
    same(*weights)


def test_bfloat16_with_quick_depthwise_is_reproducible_and_resumes(tmp_path, monkeypatch):
    """The way the default recipe is trained on a CPU."""
    net = {"encoder": "mobilenet_v2", "encoder_depth": 3, "decoder_channels": [16, 8, 8]}
    model = ModelConfig(encoder_weights="none", **net)
    data, settings = make_data(tmp_path), config(stage(2), precision="bf16-mixed", batch_size=4)
    clean, _ = run(data, tmp_path / "clean", settings, model=build_model(model, in_channels=1, seed=0))
    with monkeypatch.context() as patch:
        leave_at(patch, 4, KilledError())
        with pytest.raises(KilledError):
            run(data, tmp_path / "left", settings, model=build_model(model, in_channels=1, seed=0))
    resumed, _ = run(data, tmp_path / "left", settings, model=build_model(model, in_channels=1, seed=0))
    same(clean, resumed)


def test_death_after_the_last_weights_were_written(tmp_path, monkeypatch):
    """final.safetensors is whole, the rolling checkpoints and the best are half removed: nothing is trained again."""
    data, settings = make_data(tmp_path), config(stage(3), select="best")
    clean, _ = run(data, tmp_path / "clean", settings)
    for number in (1, 4):  # before the first checkpoint is removed, and before the last
        folder, removed = tmp_path / str(number), []

        def die(path, phase, removed=removed, number=number):
            if phase == "remove" and path.parent.joinpath("final.json").exists():
                removed.append(path)
                if len(removed) == number:
                    raise KilledError

        with monkeypatch.context() as patch:
            patch.setattr("masksmith.core.files.on_write", die)
            with pytest.raises(KilledError):
                run(data, folder, settings)
            patch.setattr("masksmith.core.files.on_write", None)
            leave_at(patch, 1, AssertionError("trained again"))
            again, _ = run(data, folder, settings)
        same(clean, again)
        left = ["final.json", "final.safetensors", "metrics.jsonl"]
        assert sorted(path.name for path in folder.glob("*.*")) == left


def test_canvas(tmp_path):
    data, settings = make_data(tmp_path), config(stage(scale=0.6), stage())
    assert [canvas_hw(settings, one, data, 8) for one in settings.stages] == [(8, 8), (16, 16)]
    cropped = settings.model_copy(update={"crop_hw": (8, 12)})
    assert canvas_hw(cropped, settings.stages[1], data, 4) == (8, 12)


def test_schedules():
    for name, last in (("one_cycle", 0.01), ("cosine", 0.01)):
        schedule = ScheduleConfig(name=name, warmup_frac=0.25, final_frac=0.01)
        values = [lr_factor(schedule, step / 100) for step in range(101)]
        assert max(values) == pytest.approx(1)
        assert values.index(max(values)) == 25
        assert values[-1] == pytest.approx(last)
        assert values[:26] == sorted(values[:26])


def test_optimizer_spares_biases_and_slows_the_encoder():
    model = TinyNet()
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
    with pytest.raises(KeyError):
        list(prefetch({}.__getitem__, range(3)))


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
    assert isinstance(keep_memory(), bool)


def test_torn_lines_of_the_log(tmp_path):
    path = tmp_path / "m.jsonl"
    log, other = EventLog(path, fold=0), EventLog(path, fold=1)
    log.write(1, "train", loss=1.0)
    with path.open("ab") as file:
        file.write(b'{"fold": 0, "epo\xff')
    assert len(read_events(path)) == 1
    log.write(2, "train", loss=2.0)
    with path.open("ab") as file:
        file.write(b'{"fold": 0, "epo')
    other.cut_back(0)  # every training begins with this
    other.write(1, "train", loss=3.0)
    assert [event["value"] for event in read_events(path)] == [1.0, 2.0, 3.0]


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
