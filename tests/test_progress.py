import pytest

from masksmith import progress
from masksmith.progress import Remaining, clock, track


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (48.4, "48s"), (750, "12m30s"), (3600, "1h00m"), (7500, "2h05m")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_time_left_follows_the_pace_after_the_warm_up(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    remaining = Remaining(1000, warm_up=1)
    assert remaining.seconds == 0
    now[0] += 50  # the first step claims memory
    remaining.advance(100)
    assert remaining.seconds == 0
    for _ in range(2):
        now[0] += 10
        remaining.advance(200)
    assert remaining.seconds == pytest.approx(500 * 20 / 400)


def test_track_passes_items_through():
    assert list(track(iter("abc"), total=3, what="x")) == ["a", "b", "c"]
