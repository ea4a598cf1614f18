"""The planes of foreground, border and distance: against a slow twin, and by hand."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.augment.object_planes import object_planes


def random_map(seed, *, unjudged=True):
    """Boxes over boxes on a tiny map: objects that touch, are cut by the edge, and have one pixel or several parts."""
    rng = np.random.default_rng(seed)
    labels = np.zeros((int(rng.integers(1, 22)), int(rng.integers(1, 30))), np.int32)
    for number in rng.choice([1, 2, 3, 70_000, 2_000_000_000], rng.integers(0, 9)):
        top, left = rng.integers(-4, 20, 2)
        height, width = rng.integers(1, 14, 2)
        labels[max(0, top) : max(0, top + height), max(0, left) : max(0, left + width)] = number
    if unjudged and seed % 2:
        labels[rng.random(labels.shape) < 0.05] = -1
    return labels


def around(labels, at, reach):
    (row, column), (height, width) = at, labels.shape
    return [
        (y, x)
        for y in range(max(0, row - reach), min(height, row + reach + 1))
        for x in range(max(0, column - reach), min(width, column + reach + 1))
    ]


def twin(labels):
    spots = list(np.ndindex(labels.shape))
    objects = {int(n): [at for at in spots if labels[at] == n] for n in set(labels.ravel().tolist()) if n > 0}
    found = np.zeros((*labels.shape, 3))
    edges = {
        n: [at for at in own if any(labels[near] != n for near in around(labels, at, 1))]
        for n, own in objects.items()
    }
    for number, own in objects.items():
        apart = {at: 1 + min((math.dist(at, edge) for edge in edges[number]), default=0) for at in own}
        for at in own:
            found[at] = (
                1,
                at in edges[number] and max(apart.values()) >= 3,
                254 * apart[at] / max(apart.values()),
            )
    for at in spots:
        area = len(objects.get(int(labels[at]), []))
        reach = 3 if area == 0 or area >= 2000 else 2 if area >= 300 else 1
        if len({int(labels[near]) for near in around(labels, at, reach)} - {0, -1}) > 1:
            found[at][1] = 1
        if labels[at] == -1:
            found[at] = 255
    return found


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000))
def test_equals_the_twin(seed):
    labels = random_map(seed)
    planes, expected = object_planes(labels), twin(labels)
    assert planes.dtype == np.uint8
    np.testing.assert_array_equal(planes[..., :2], expected[..., :2])
    np.testing.assert_allclose(planes[..., 2], expected[..., 2], atol=6)  # the transform is exact within 2%


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 10_000))
def test_no_number_matters(seed):
    labels = random_map(seed)
    numbers = np.unique(labels[labels > 0])
    named = labels.copy()
    for number, other in zip(numbers, np.random.default_rng(seed).permutation(len(numbers)) + 5, strict=True):
        named[labels == number] = other
    np.testing.assert_array_equal(object_planes(named), object_planes(labels))


def test_touching_cut_and_tiny_objects():
    labels = np.zeros((30, 40), np.int32)
    labels[5:15, 5:15], labels[5:15, 15:25] = 4, 9  # 100 pixels each
    labels[20, 20] = 7
    labels[22:, :8] = 3  # cut off by two edges
    foreground, border, distance = np.moveaxis(object_planes(labels), -1, 0)
    np.testing.assert_array_equal(foreground, labels > 0)
    assert border[10, 12:18].tolist() == [0, 0, 1, 1, 0, 0]  # both sides of the contact
    assert border[5, 5:25].all()  # and the edge
    assert (border[20, 20], distance[20, 20]) == (0, 254)
    for number in (3, 4, 7, 9):
        assert distance[labels == number].max() == 254
    assert distance[29, 0] == 254  # the corner of the image is the middle of what is cut off
    assert not border[23:, 0].any()
    wide = np.kron(labels, np.ones((5, 5), np.int32))  # 2500 pixels each: three on both sides
    assert object_planes(wide)[52, 70:80, 1].tolist() == [0, 0, 1, 1, 1, 1, 1, 1, 0, 0]


def test_a_gap_between_objects_is_border():
    labels = np.zeros((9, 30), np.int32)
    labels[2:7, 2:8], labels[2:7, 12:18] = 1, 2  # four pixels between
    border = object_planes(labels)[..., 1]
    assert border[4, 7:13].tolist() == [1, 0, 1, 1, 0, 1]  # the edges, and what sees both
    labels[2:7, 12] = 0
    assert object_planes(labels)[4, 8:13, 1].tolist() == [0, 0, 1, 0, 0]
    labels[2:7, 13] = 0
    assert not object_planes(labels)[4, 8:14, 1].any()


def test_empty_full_unjudged_and_seventy_thousand():
    assert not object_planes(np.zeros((5, 6), np.int32)).any()
    full = object_planes(np.full((5, 6), 3, np.int32))
    assert [full[..., at].min() for at in range(3)] == [1, 0, 254]
    assert full[..., 1].max() == 0
    assert (object_planes(np.full((5, 6), -1, np.int32)) == 255).all()
    many = object_planes(np.arange(1, 70_001, dtype=np.int32).reshape(250, 280))
    assert (many == [1, 1, 254]).all()
