"""Each technique, left at a step and continued, ends with the bytes of its clean twin."""

import pytest

from masksmith.core.errors import StoppedError
from masksmith.training import (
    OptimizerConfig,
    SamplerConfig,
    ScheduleConfig,
    StallConfig,
    SwaConfig,
)
from tests.training.tiny import config, content, events, leave_at, make_data, run, score_of, stage

pytestmark = pytest.mark.slow

SGD = OptimizerConfig(name="sgd", lr=0.05)
RESTARTS = ScheduleConfig(name="cosine_restarts", cycles=2, warmup_frac=0.1)
ON_LOSS = StallConfig(watch="loss", patience=1, min_delta=0.5)
ON_SCORE = StallConfig(patience=2)

TECHNIQUES = {
    "adam": config(stage(optimizer=OptimizerConfig(name="adam", lr=1e-2))),
    "sgd without momentum": config(
        stage(optimizer=OptimizerConfig(name="sgd", lr=0.1, momentum=0.0, nesterov=False))
    ),
    "rmsprop": config(stage(optimizer=OptimizerConfig(name="rmsprop", lr=1e-2, momentum=0.5))),
    "layer decay": config(stage(optimizer=OptimizerConfig(lr=1e-2, encoder_layer_decay=0.5))),
    "restarts": config(stage(schedule=RESTARTS)),
    "plateau on the score": config(stage(6, schedule=ScheduleConfig(name="plateau", patience=1))),
    "plateau on the loss": config(
        stage(6, schedule=ScheduleConfig(name="plateau", watch="loss", patience=1, min_delta=0.5))
    ),
    "accumulate": config(stage(accumulate=2)),
    "freeze, then thaw": config(
        stage(2, optimizer=SGD, freeze=["encoder", "encoder_norm"]),
        stage(2).model_copy(update={"optimizer": None, "schedule": None}),
    ),
    "no average": config(ema_decay=None),
    "swa of epochs": config(swa=SwaConfig(start=2, norm_batches=3), select="swa"),
    "swa of cycles": config(
        stage(schedule=RESTARTS), swa=SwaConfig(start=0.0, every="cycle", norm_batches=3), keep=["swa"]
    ),
    "best, last and top": config(
        stage(6), select="best", keep=["last", "best_score", "best_loss"], top_k=2, evaluate_every=2
    ),
    "metrics beside, and the best of each": config(
        stage(6),
        metrics=["val_loss", "dice_pooled", "hausdorff_95"],
        keep=["best_val_loss", "best_dice_pooled", "best_hausdorff_95"],
        evaluate_every=2,
        accumulate=2,
        batch_size=1,
    ),
    "early stop on the loss": config(stage(8), early_stop=ON_LOSS, evaluate_every=3),
    "early stop on the score": config(stage(8), early_stop=ON_SCORE),
    "plateau on the held-out loss": config(
        stage(6, schedule=ScheduleConfig(name="plateau", watch="val_loss", patience=1, min_delta=0.5)),
        select="best_val_loss",
    ),
    "early stop on the held-out loss": config(
        stage(8), early_stop=StallConfig(watch="val_loss", patience=2, min_delta=0.5)
    ),
    "start from the best": config(stage(4), stage(3, start="best"), evaluate_every=2),
    "start from the best, no average": config(
        stage(3), stage(3, start="best"), ema_decay=None, select="best"
    ),
    "until plateau": config(
        stage(6, until_plateau=ON_LOSS), stage(2).model_copy(update={"optimizer": None, "schedule": None})
    ),
    "class-aware": config(sampler=SamplerConfig(name="class_aware")),
    "non-empty": config(sampler=SamplerConfig(name="non_empty")),
    "curriculum by loss": config(sampler=SamplerConfig(name="curriculum", by="loss")),
    "worst again": config(sampler=SamplerConfig(repeat_worst_of=2)),
    "worst again, accumulated, by loss": config(
        sampler=SamplerConfig(name="curriculum", by="loss", repeat_worst_of=2), accumulate=2, batch_size=1
    ),
}


class KilledError(Exception):
    """What leaves the process at once: no checkpoint is written."""


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """Return the folder of a technique's training that was never left, and the number of its steps; made once."""
    root = tmp_path_factory.mktemp("clean")
    data, made = make_data(root), {}

    def folder_of(name):
        if name not in made:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("os.fsync", lambda _: None)
                steps = leave_at(patch, 0, None)
                run(data, root / name, TECHNIQUES.get(name) or config())
            made[name] = steps[0]
        return root / name, made[name]

    return folder_of


@pytest.mark.parametrize("name", TECHNIQUES)
def test_left_and_continued_is_the_same_bytes(clean, tmp_path, monkeypatch, name):
    """Stopped half-way, where a checkpoint is of that very step; then killed, and replayed from the last one."""
    data, settings = make_data(tmp_path), TECHNIQUES[name]
    whole, steps = clean(name)
    for number, error in ((steps // 2, StoppedError("stop", exit_code=143)), (steps // 4, KilledError())):
        with monkeypatch.context() as patch:
            leave_at(patch, number, error)
            with pytest.raises(type(error)):
                run(data, tmp_path / "left", settings)
    run(data, tmp_path / "left", settings)
    assert content(tmp_path / "left") == content(whole)


@pytest.mark.parametrize(
    ("name", "call"), [("best, last and top", 2), ("early stop on the loss", 1), ("swa of epochs", 2)]
)
def test_stopped_while_it_is_scored(clean, tmp_path, name, call):
    """The state is then the one after the last step of an epoch that is not finished."""
    data, settings, calls = make_data(tmp_path), TECHNIQUES[name], []

    def stop(model):
        calls.append(1)
        if len(calls) == call:
            raise StoppedError("stop", exit_code=143)
        return score_of(model)

    with pytest.raises(StoppedError):
        run(data, tmp_path / "stopped", settings, evaluate=stop)
    run(data, tmp_path / "stopped", settings)
    assert content(tmp_path / "stopped") == content(clean(name)[0])


def test_the_techniques_above_do_something(clean):
    """A resumed technique that never comes into force would prove nothing."""
    plain = content(clean("plain")[0])
    for name in (
        "class-aware",
        "curriculum by loss",
        "worst again",
        "accumulate",
        "no average",
        "layer decay",
        "start from the best, no average",
    ):
        other = content(clean(name)[0])
        assert other["final.safetensors"] != plain["final.safetensors"], name
    for name in ("plateau on the score", "plateau on the loss", "plateau on the held-out loss"):
        assert events(clean(name)[0], "rate_scale"), name
    for name, ended in (
        ("early stop on the loss", "training"),
        ("early stop on the score", "training"),
        ("early stop on the held-out loss", "training"),
        ("until plateau", "stage"),
    ):
        assert events(clean(name)[0], "ended") == [ended], name
