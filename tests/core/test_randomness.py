import pytest

from masksmith.core.randomness import stream


def test_same_counters_same_numbers():
    assert stream(1, 2, 3).random() == stream(1, 2, 3).random()


@pytest.mark.parametrize("other", [(1, 2, 4), (1, 2), (1, 2, 3, 0), (0, 1, 2, 3)])
def test_other_counters_other_numbers(other):
    assert stream(1, 2, 3).random() != stream(*other).random()


def test_trailing_zeros_count():
    assert stream(1, 2).random() != stream(1, 2, 0).random()
