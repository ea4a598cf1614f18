"""Experiment trackers: each event once, whatever happens to the training or the tracker. The packages are mocks."""

import json
import sys
import types

import pytest

import masksmith as ms
from masksmith.core.errors import InputError, StoppedError
from masksmith.core.files import read_json
from masksmith.training import loggers
from masksmith.training.events import EventLog
from masksmith.training.loggers import Follower, Place, check_loggers
from tests.training import tiny


class Points:
    """Keeps what is logged, by run; the first points fail where that is asked for."""

    def __init__(self):
        self.runs, self.opened, self.fail, self.closed = {}, [], 0, 0
        self.fail_at = None
        """An epoch whose first sending fails."""

    def open(self, place):
        self.opened.append((place.run, place.id))
        tracker = types.SimpleNamespace(id=f"id of {place.run}", close=self.close)
        tracker.log = lambda step, values: self.log(place.run, step, values)
        return tracker

    def log(self, run, step, values):
        if self.fail or step == self.fail_at:
            self.fail, self.fail_at = max(0, self.fail - 1), None
            raise ConnectionError("no server")
        self.runs.setdefault(run, []).extend((step, name, value) for name, value in values.items())

    def close(self):
        self.closed += 1


@pytest.fixture
def points(monkeypatch):
    found = Points()
    monkeypatch.setitem(loggers.LOGGERS, "wandb", loggers._Kind(found.open, ("json",)))
    return found


def train(folder, data, followers, settings=None):
    """As ``tiny.run``, with followers of the log."""
    log = EventLog(folder / "metrics.jsonl", fold=0, followers=followers)
    original, tiny.EventLog = tiny.EventLog, lambda path, fold: log
    try:
        tiny.run(data, folder, settings or tiny.config(tiny.stage(4)))
    finally:
        tiny.EventLog = original
        log.close()


def follower(folder, name="wandb"):
    place = Place(folder / "loggers", "project", "run/fold_0", {"model": {"name": "unet", "widths": [1, 2]}})
    return Follower(name, folder / "metrics.jsonl", fold=0, place=place, sent=folder / "sent.json")


def numbers(folder):
    return [
        (int(e["epoch"]), f"{e['split']}/{e['name']}", e["value"])
        for e in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    ]


def test_a_resumed_training_continues_the_run_without_doubled_points(tmp_path, points, monkeypatch):
    data = tiny.make_data(tmp_path / "data")
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        tiny.leave_at(patch, 13, StoppedError("stopped", exit_code=130))  # five steps an epoch
        with pytest.raises(StoppedError):
            train(folder, data, [follower(folder)])
    assert points.runs["run/fold_0"] == numbers(folder)
    train(folder, data, [follower(folder)])
    assert points.opened == [("run/fold_0", ""), ("run/fold_0", "id of run/fold_0")]
    assert points.runs["run/fold_0"] == numbers(folder)
    assert points.closed == 2
    assert read_json(folder / "sent.json")["sent"] == len(numbers(folder))


def test_a_tracker_that_fails_stops_no_training_and_gets_the_rest_later(tmp_path, points, caplog):
    data = tiny.make_data(tmp_path / "data")
    folder, points.fail = tmp_path / "run", 1
    train(folder, data, [follower(folder)])
    assert caplog.text.count("--log wandb: ConnectionError: no server; the training goes on without it") == 1
    assert points.runs == {}
    last = follower(folder)
    last.sync()
    last.sync()
    assert points.runs["run/fold_0"] == numbers(folder)


def test_what_was_sent_before_a_failure_is_not_sent_again(tmp_path, points):
    folder = tmp_path / "run"
    folder.mkdir()
    log = EventLog(folder / "metrics.jsonl", fold=0)
    for epoch in (1, 2, 3):
        log.write(epoch, "train", loss=float(epoch))
    points.fail_at = 2
    follower(folder).sync()
    assert points.runs["run/fold_0"] == [(1, "train/loss", 1.0)]
    follower(folder).sync()
    assert points.runs["run/fold_0"] == numbers(folder)


def test_a_training_that_begins_anew_gets_a_run_of_its_own(tmp_path, points):
    folder = tmp_path / "run"
    folder.mkdir()
    log = EventLog(folder / "metrics.jsonl", fold=0)
    log.write(1, "train", loss=1.0)
    log.write(1.5, "event", rescued="mean loss 9", lr_scale=0.3)
    EventLog(log.path, fold=1).write(1, "train", loss=7.0)
    follower(folder).sync()
    assert points.runs == {"run/fold_0": [(1, "train/loss", 1.0), (1, "event/lr_scale", 0.3)]}
    log.cut_back(-1)
    for loss in (2.0, 3.0, 4.0, 5.0):
        log.write(1, "train", loss=loss)
    (folder / "sent.json").write_text((folder / "sent.json").read_text())
    follower(folder).sync()
    assert [value for _, _, value in points.runs["run/fold_0-2"]] == [5.0]  # one value a name and epoch
    (folder / "sent.json").write_text("[")
    follower(folder).sync()
    assert points.opened[-1] == ("run/fold_0", "")


def test_unknown_and_absent_trackers_are_refused_before_anything_is_done(tmp_path, project):
    with pytest.raises(InputError, match="--log: 'wandd' is unknown; did you mean 'wandb'") as caught:
        check_loggers(["wandd", "mlflow", "mlflow"] if not _there("mlflow") else ["wandd"])
    if not _there("mlflow"):
        assert "--log mlflow: mlflow is not installed; install it, or masksmith[mlflow]" in str(caught.value)
    with pytest.raises(InputError, match="--log: 'neptune' is unknown"):
        ms.train(project, recipe="smoke", log="neptune")
    with pytest.raises(InputError, match="--log: 'neptune' is unknown"):
        ms.compete(tmp_path / "none", out=tmp_path / "p", log=["neptune"])
    assert not (tmp_path / "p").exists()


def _there(name):
    return loggers.importlib.util.find_spec(name) is not None


# --- what each package is told ----------------------------------------------------------------------------


def false_package(monkeypatch, **modules):
    for name, content in modules.items():
        module = types.ModuleType(name.replace("__", "."))
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def test_tensorboard(tmp_path, monkeypatch):
    said = []

    class SummaryWriter:
        def __init__(self, folder):
            said.append(folder)

        def add_text(self, name, text):
            said.append(text)

        def add_scalar(self, *point):
            said.append(point)

        def flush(self):
            said.append("flushed")

        def close(self):
            said.append("closed")

    false_package(monkeypatch, torch__utils__tensorboard={"SummaryWriter": SummaryWriter})
    one = loggers._Tensorboard(Place(tmp_path, "p", "run/fold_0", {"model": {"widths": [8, 16]}}))
    one.log(3, {"train/loss": 0.5})
    one.close()
    text = "    model.widths.0: 8\n    model.widths.1: 16"
    assert said == [
        str(tmp_path / "tensorboard/run/fold_0"),
        text,
        ("train/loss", 0.5, 3),
        "flushed",
        "closed",
    ]


def test_mlflow(tmp_path, monkeypatch):
    said = []

    class Client:
        def __init__(self, uri):
            said.append(uri)

        def get_experiment_by_name(self, name):
            return None

        def create_experiment(self, name):
            return f"experiment {name}"

        def create_run(self, experiment, run_name):
            said.append((experiment, run_name))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="7"))

        def log_batch(self, run, **what):
            said.append((run, what))

        def update_run(self, run, status):
            said.append((run, status))

        def set_terminated(self, run):
            said.append((run, "ended"))

    entities = {"Metric": lambda *metric: metric, "Param": lambda *param: param}
    false_package(
        monkeypatch, mlflow={}, mlflow__entities=entities, mlflow__tracking={"MlflowClient": Client}
    )
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # so that it is taken back
    monkeypatch.setattr(loggers.time, "time", lambda: 2.0)
    place = Place(tmp_path, "p", "run/fold_0", {"seed": 1})
    one = loggers._Mlflow(place)
    one.log(3, {"train/loss": 0.5})
    one.close()
    again = loggers._Mlflow(Place(tmp_path, "p", "run/fold_0", {}, one.id))
    assert again.id == "7"
    uri = (tmp_path / "mlflow").as_uri()
    assert said == [
        uri, ("experiment p", "run/fold_0"), ("7", {"params": [("seed", "1")]}),
        ("7", {"metrics": [("train/loss", 0.5, 2000, 3)]}), ("7", "ended"), uri, ("7", "RUNNING"),
    ]  # fmt: skip


def test_wandb(tmp_path, monkeypatch):
    said = []
    run = types.SimpleNamespace(
        log=lambda values, step: said.append((step, values)), finish=lambda: said.append("finished")
    )
    false_package(monkeypatch, wandb={"init": lambda **how: said.append(how) or run, "Settings": dict})
    monkeypatch.delenv("WANDB_MODE", raising=False)
    place = Place(tmp_path / "loggers", "p", "run/fold_0", {"seed": 1})
    one = loggers._Wandb(place)
    one.log(3, {"train/loss": 0.5})
    one.close()
    how = said[0]
    assert (how["mode"], how["resume"], how["config"]) == ("offline", "allow", {"seed": 1})
    assert said[1:] == [(3, {"train/loss": 0.5}), "finished"]
    assert loggers._Wandb(place).id == one.id == how["id"]  # the same run again
