from masksmith.core.randomness import stream


def test_a_draw_depends_on_all_counters_and_their_number():
    first = stream(1, 2, 3).random()
    assert stream(1, 2, 3).random() == first
    others = [(1, 2, 4), (1, 2), (1, 2, 3, 0), (0, 1, 2, 3), (1, 2, 0)]
    assert len({first, *(stream(*other).random() for other in others)}) == 6
