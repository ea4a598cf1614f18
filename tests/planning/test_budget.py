import json
import math

import pytest

from masksmith.core.errors import InputError
from masksmith.planning.budget import Budget, Duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds", "more"),
    [
        ("90s", 90, False),
        ("20m", 1200, False),
        ("1h30m", 5400, False),
        ("+20m", 1200, True),
        ("1.5h", 5400, False),
        ("2d", 172800, False),
        (" 5M ", 300, False),
    ],
)
def test_durations(text, seconds, more):
    assert parse_duration(text) == Duration(seconds, more)


@pytest.mark.parametrize("text", ["", "20", "20 minutes", "-5m", "m", "+", "5m+", "1h 30m", "nan s", "1e3s"])
def test_other_forms_are_refused(text):
    with pytest.raises(InputError, match="expected a duration such as 90s, 20m, 1h30m"):
        parse_duration(text)


def test_no_time_is_refused():
    with pytest.raises(InputError, match="no time at all"):
        parse_duration("0m")


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_spent_seconds_survive_a_kill(tmp_path, clock):
    path = tmp_path / "budget.json"
    budget = Budget(path, Duration(100, False), clock=clock, started=clock.now - 3)
    assert budget.spent == 3
    clock.now += 10
    budget.beat()
    clock.now += 1
    budget.beat()  # within two seconds of the last: not written
    assert json.loads(path.read_text()) == {"format": 1, "total_s": 100, "spent_s": 13}
    again = Budget(path, Duration(100, False), clock=clock)  # as after a kill
    assert again.spent == 13
    clock.now += 7
    assert again.left == 80
    assert str(again) == "20s of 1m40s"
    more = Budget(path, Duration(100, True), clock=clock, started=clock.now - 5000)
    assert more.total == 113
    assert more.left == 100 - 5000  # reading the data may take long


def test_without_a_budget_nothing_is_written(tmp_path, clock):
    budget = Budget(tmp_path / "budget.json", None, clock=clock)
    clock.now += 5
    budget.beat()
    budget.write()
    assert budget.left == math.inf
    assert str(budget) == "no budget"
    assert not list(tmp_path.iterdir())


def test_clocks_that_jump(tmp_path, clock, caplog):
    budget = Budget(tmp_path / "budget.json", Duration(1e6, False), clock=clock)
    clock.now -= 50  # backwards: nothing is given back
    assert budget.spent == 0
    budget.beat()
    clock.now += 50
    assert budget.spent == 50
    budget.beat()
    clock.now += 2 * 3600  # the machine slept
    assert budget.spent == 50
    budget.beat()
    assert "2h00m went by in one go" in caplog.text
    clock.now += 10
    assert budget.spent == 60


def test_the_date_of_the_machine_moves_nothing(tmp_path, monkeypatch):
    import time

    budget = Budget(tmp_path / "budget.json", Duration(1000, False))
    before = budget.spent
    monkeypatch.setattr(time, "time", lambda: 4e9)
    assert budget.spent - before < 5


@pytest.mark.parametrize(
    "content",
    [
        {"spent_s": -1, "total_s": 5},
        {"spent_s": "3", "total_s": 5},
        {"spent_s": 1},
        {"spent_s": 1, "total_s": None},
    ],
)
def test_edited_into_nonsense(tmp_path, content):
    path = tmp_path / "budget.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match="expected seconds of 0 and more"):
        Budget(path, None)


@pytest.mark.parametrize("content", ['{"format": 9, "spent_s": 1, "total_s": 1}', "[1]"])
def test_of_a_newer_version(tmp_path, content):
    path = tmp_path / "budget.json"
    path.write_text(content)
    with pytest.raises(InputError, match="made by a newer masksmith"):
        Budget(path, None)
