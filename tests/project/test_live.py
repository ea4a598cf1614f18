"""What a project is doing, read from its files alone."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import masksmith as ms
from masksmith.core.files import read_json, write_json
from masksmith.core.locks import LOCK, folder_lock
from masksmith.project.folder import Project
from masksmith.project.live import look
from masksmith.training.events import EventLog, read_events


def stamps(root):
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in root.rglob("*")}


def held_by(root, text):
    (root / LOCK).write_text(text)


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def under_way(project):
    """Let the project's one training be unfinished."""
    run = Project(project).run()
    for entry in ("fold_0/train", "fold_0/oof"):
        run.ledger.forget(entry)
    return run


def test_a_finished_project(trained):
    live, tuning = ms.watch(trained), read_json(trained / "tuning.json")
    assert (live.state, live.done, live.says) == ("done", 1, "done: 1 training makes the submission")
    assert (live.metric, live.score) == ("tgs_map", tuning["scores"]["chosen"])
    assert set(live.baselines) == set(tuning["baselines"])
    (one,) = live.trainings
    run = Project(trained).run()
    losses = [e["value"] for e in read_events(run.events(0)) if (e["split"], e["name"]) == ("train", "loss")]
    assert [value for _, value in one.curves["loss"]] == losses
    assert (one.run, one.fold, one.state, one.epoch) == (run.path.name, 0, "done", len(losses))
    assert one.epochs == len(losses)
    assert one.peak_gib > 0
    assert live.left_s is None
    assert live.submission == trained / "submission.csv"
    assert {path.parent for path in live.pictures} == {trained / "masks"}
    value = json.loads(json.dumps(live.to_json()))
    assert value["trainings"][0]["curves"]["loss"][0] == [1, losses[0]]


def test_at_work_and_nothing_is_touched(project):
    run = under_way(project)
    EventLog(run.events(0), fold=0).write(1, "timing", left_s=1000.0)
    EventLog(run.events(0), fold=0).write(1.5, "event", replanned=0.5)
    with folder_lock(project):
        before = stamps(project)
        live = look(project)
        assert stamps(project) == before
    assert live.state == "working"
    assert (live.process.pid, live.process.alive, live.process.works) == (os.getpid(), True, True)
    one = live.under_way
    assert one.state == "training"
    assert 900 < one.left_s <= 1000
    assert live.left_s == one.left_s
    assert one.note == "epoch 1.5: 50% of the steps ahead will be made, for the time left"
    assert live.says == f"training {one.name}: epoch {one.epoch + 1} of {one.epochs}"
    rests = look(project)  # this process lives, and holds the lock no more
    assert (rests.state, rests.process.alive, rests.process.works) == ("stopped", True, False)
    assert rests.left_s is None


def test_the_states_of_a_process(project, tmp_path):
    pid, host = dead_pid(), socket.gethostname()
    for text, alive, works in (
        (f"pid {pid} on {host}\n", False, False),
        (f"pid {os.getpid()} on {host}\n", True, False),  # another process got its number
        ("pid 12 on elsewhere\n", None, True),  # files changed a moment ago
    ):
        held_by(project, text)
        process = look(project).process
        assert (process.alive, process.works) == (alive, works), text
    held_by(project, f"pid {pid} on {host}\n")
    under_way(project)
    live = look(project)
    assert live.state == "stopped"
    assert (
        live.says == "no process is at work; 0 of 1 trainings are done. The same command goes on from there"
    )
    held_by(project, "rubbish")
    assert look(project).process is None
    assert look(tmp_path / "none").state == "absent"
    (tmp_path / "fresh").mkdir()
    with folder_lock(tmp_path / "fresh"):
        assert look(tmp_path / "fresh").says == "reading the data"


def test_units_of_a_budget(project):
    run = under_way(project)
    unit = {"kind": "fold", "fold": 0, "run": run.path.name, "epochs": 9, "joined": None, "reason": "x"}
    out = unit | {"kind": "seed", "joined": False, "score_before": 0.5, "score_after": 0.25}
    failed = unit | {"kind": "seed", "joined": False, "reason": "seed 1; it failed: no room"}
    write_json(project / "plan.json", {"units": [unit, out, failed, {"run": "gone"}, 3]})
    write_json(project / "budget.json", {"spent_s": 60.0, "total_s": 600.0})
    with folder_lock(project):
        live = look(project)
    assert [one.state for one in live.trainings] == ["left out", "left out", "training"]
    assert [one.note for one in live.trainings[:2]] == [
        "left out: 0.2500 with it, 0.5000 without",
        "left out: it failed: no room",
    ]
    assert (live.spent_s, live.budget_s) == (60.0, 600.0)
    assert 530 < live.left_s <= 540


def test_files_that_are_torn_or_not_ours(project):
    run = under_way(project)
    for name in ("plan.json", "budget.json", "tuning.json"):
        (project / name).write_text("[1, ")
    run.events(0).write_text(
        '{"fold": 0, "epoch": 1, "split": "train", "name": "loss", "value": NaN}\n7\n{"fo'
    )
    (run.path / "stage.json").write_text("{")
    live = look(project)
    assert live.state == "stopped"
    assert json.loads(json.dumps(live.to_json(), allow_nan=False))["trainings"][0]["curves"] == {
        "loss": [[1, None]]
    }
    Path(run.path / "recipe.yaml").write_text("name: [")
    assert look(project).trainings == ()
