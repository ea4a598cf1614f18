import pytest

from masksmith.progress import Remaining, clock, track


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0s"), (48.4, "48s"), (750, "12m30s"), (3600, "1h00m"), (7500, "2h05m")]
)
def test_clock(seconds, text):
    assert clock(seconds) == text


def test_time_left_follows_the_pace_after_the_warm_up():
    now = [100.0]
    remaining = Remaining(1000, warm_up=1, memory_s=1e9, clock=lambda: now[0])
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


def test_the_pace_forgets_and_skips():
    now = [0.0]
    remaining = Remaining(1000, warm_up=0, memory_s=10.0, clock=lambda: now[0])
    for seconds in [1.0] * 20 + [5.0] * 20:  # a neighbour begins to work
        now[0] += seconds
        remaining.advance(1)
    assert remaining.pace == pytest.approx(5, rel=0.01)
    before = remaining.pace
    now[0] += 100
    remaining.skip(10)  # work of another kind: done, but no pace
    assert remaining.pace == before
    assert remaining.done == 50
    now[0] += 5
    remaining.advance(1)
    assert remaining.pace == pytest.approx(5, rel=0.01)
    remaining.forget()
    assert remaining.pace == 0
    now[0] += 2
    remaining.advance(1)
    assert remaining.pace == 2


@pytest.mark.parametrize("believe", [True, False])
def test_a_trial_is_believed_or_forgotten(believe):
    now = [0.0]
    remaining = Remaining(1000, warm_up=0, memory_s=10.0, recent_s=1.0, clock=lambda: now[0])

    def steps(seconds):
        for _ in range(20):
            now[0] += seconds
            remaining.advance(1)

    steps(2.0)
    remaining.end_trial(believe=True)  # there is none
    assert (remaining.pace, remaining.recent, remaining.recent_s) == pytest.approx((2, 2, 40))
    remaining.try_out()
    assert (remaining.recent, remaining.recent_s) == (0, 0)
    steps(1.0)
    assert (remaining.pace, remaining.recent, remaining.recent_s) == pytest.approx((2, 1, 20))
    remaining.end_trial(believe=believe)
    assert remaining.pace == pytest.approx(1 if believe else 2)
    assert (remaining.recent == 0) != believe
    assert remaining.done == 40
    steps(1.0)
    assert remaining.pace == pytest.approx(1, rel=0.2)
