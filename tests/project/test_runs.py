"""The files of a run."""

import json

from masksmith.core.files import write_text
from masksmith.project.folder import Project
from masksmith.training.events import EventLog, read_events


def test_the_log_of_an_older_project_is_read_and_taken_over(project):
    """It was one for all folds; a fold that goes on has its own from then on."""
    run = Project(project).run()
    run.events(0).unlink()
    lines = [
        {"fold": fold, "epoch": epoch, "split": "train", "name": "loss", "value": 1.0}
        for epoch in (1, 2)
        for fold in (0, 1)
    ]
    old = run.path / "metrics.jsonl"
    write_text(old, "".join(json.dumps(line) + "\n" for line in lines))
    assert run.events(0) == run.events(1) == old
    own = run.own_events(0)
    assert read_events(own) == [line for line in lines if line["fold"] == 0]
    EventLog(own, fold=0).cut_back(1)
    assert [event["epoch"] for event in read_events(run.events(0))] == [1]
    assert run.own_events(0) == own
    assert run.events(1) == old
    assert read_events(old) == lines
