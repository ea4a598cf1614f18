from masksmith.core.progress import clock, track


def test_durations_as_text():
    for seconds, text in ((-1, "0s"), (48.4, "48s"), (750, "12m30s"), (3600, "1h00m"), (7500, "2h05m")):
        assert clock(seconds) == text


def test_track_passes_items_through():
    assert list(track(iter("abc"), total=3, what="x")) == ["a", "b", "c"]
