import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksmith.preprocess import Pad, round_up


def test_101_to_128_is_13_and_14():
    assert Pad.to_divisor((101, 101), 32) == Pad(13, 14, 13, 14)
    assert Pad.to_divisor((101, 101), 16) == Pad(5, 6, 5, 6)


@pytest.mark.parametrize("channels", [1, 3, 7])
@given(h=st.integers(8, 40), w=st.integers(8, 40), divisor=st.sampled_from([1, 2, 8]))
def test_undo_is_exact(channels, h, w, divisor):
    image = np.random.default_rng(0).integers(0, 255, (h, w, channels)).astype(np.uint8)
    pad = Pad.to_divisor((h, w), divisor)
    padded = pad.apply(image)
    assert padded.shape == (round_up(h, divisor), round_up(w, divisor), channels)
    np.testing.assert_array_equal(pad.undo(padded), image)
    borders = ((pad.top, pad.bottom), (pad.left, pad.right), (0, 0))
    np.testing.assert_array_equal(padded, np.pad(image, borders, mode="reflect"))
