import pytest

from masksmith.core.errors import InputError
from masksmith.data.target import BINARY, Target


@pytest.mark.parametrize(
    ("classes", "pairs", "expected"),
    [
        (("background", "left_lung", "heart", "right_lung"), "auto", (0, 3, 2, 1)),
        (("LeftKidney", "RightKidney", "eye.L", "eye.R", "Right Hand", "left hand"), "auto", (1, 0, 3, 2, 5, 4)),
        (("left lung", "heart"), "auto", ()),  # alone it has nothing to become
        (("leftover", "rightover", "hill", "hirr"), "auto", ()),
        (("a", "b", "c"), [("a", "c")], (2, 1, 0)),
        (("left", "right"), [], ()),
    ],
)  # fmt: skip
def test_classes_that_a_mirror_image_swaps(classes, pairs, expected):
    assert Target("multiclass", classes).mirrored(pairs) == expected
    assert Target("multilabel", classes).mirrored(pairs) == expected


def test_mirror_pairs_that_cannot_be():
    target = Target("multilabel", ("left", "right", "middle"))
    for pairs, message in (
        ([("left", "right_")], r"training\.augment\.mirror_pairs: 'right_' is unknown; did you mean 'right'"),
        (
            [("left", "right"), ("middle", "left")],
            r"\['middle', 'left'\]; expected two classes .* in no other pair",
        ),
        ([("left", "left")], "expected two classes"),
    ):
        with pytest.raises(InputError, match=message):
            target.mirrored(pairs)
    with pytest.raises(InputError, match=r"but the target is binary; expected auto"):
        BINARY.mirrored([("left", "right")])
    assert BINARY.mirrored("auto") == Target("instances", ("object",)).mirrored("auto") == ()
