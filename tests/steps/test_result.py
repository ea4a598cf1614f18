"""What `compete` says at its end."""

import pytest

from masksmith.steps.result import expected_on_new


def test_the_range_counts_both_draws():
    tuning = {"scores": {"chosen": 0.8}, "standard_error": 0.01, "images": 300}
    for new, off in ((300, 0.01 * 2**0.5), (100, 0.02), (0, 0.01 * 2**0.5)):
        words = expected_on_new(tuning, new).split()
        assert words[1] == str(new or 300)
        assert float(words[7]) == pytest.approx(0.8 - 1.2816 * off, abs=6e-5)
        assert float(words[9]) == pytest.approx(0.8 + 1.2816 * off, abs=6e-5)
