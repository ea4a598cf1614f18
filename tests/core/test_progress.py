from masksmith.core.progress import clock, error_text, gain_text, track


def test_durations_as_text():
    for seconds, text in ((-1, "0s"), (48.4, "48s"), (750, "12m30s"), (3600, "1h00m"), (7500, "2h05m")):
        assert clock(seconds) == text


def test_of_one_group_there_is_no_interval():
    assert error_text(0.0104) == "± 0.0104"
    assert error_text(0.0) == "(no interval: one group, or all alike)"
    assert gain_text(0.02, 0.01, 0.03) == "+0.0200 (+0.0100 … +0.0300)"
    assert gain_text(0.02, 0.02, 0.02) == "+0.0200 (no interval: one group, or all alike)"
    assert gain_text(0.0, 0.0, 0.0) == "+0.0000 (+0.0000 … +0.0000)"  # compared with itself


def test_track_passes_items_through():
    assert list(track(iter("abc"), total=3, what="x")) == ["a", "b", "c"]
