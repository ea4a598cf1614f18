import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.core.arrays import IGNORE, UNJUDGED
from masksmith.core.errors import InputError
from masksmith.data.catalog import BACKGROUND, Catalog, Sample, Shape, SubmissionFormat
from masksmith.data.shapes import (
    check_drawings,
    class_numbers,
    draw_classes,
    draw_layers,
    draw_objects,
    drawn_target,
    ellipse_ring,
    runs_of,
    runs_of_rows,
)

HW = (20, 30)
ONE = {"a": 1, "b": 2, BACKGROUND: 0}


def box(x0, y0, x1, y1):
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def drawn(*shapes, hw=HW):
    return draw_classes(shapes, ONE, hw)


def by_points(rings, hw):
    """The even-odd rule, pixel by pixel (the twin)."""
    out = np.zeros(hw, np.uint8)
    for y in range(hw[0]):
        for x in range(hw[1]):
            inside = False
            for ring in rings:
                points = list(zip(ring[::2], ring[1::2], strict=True))
                for (x0, y0), (x1, y1) in zip(points, points[1:] + points[:1], strict=True):
                    if (y0 > y + 0.5) != (y1 > y + 0.5):
                        inside ^= x + 0.5 >= x0 + (y + 0.5 - y0) / (y1 - y0) * (x1 - x0)
            out[y, x] = inside
    return out


def test_a_box_on_whole_pixels_is_exact():
    mask = drawn(Shape("a", [box(5, 5, 15, 15)]))
    assert mask.sum() == 100
    assert mask[5:15, 5:15].all()


RING = st.lists(st.tuples(st.integers(-10, 40), st.integers(-10, 30)), min_size=3, max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(RING, min_size=1, max_size=3), st.integers(1, 4))
def test_polygons_are_filled_by_the_even_odd_rule(rings, parts):
    flat = [
        [one / parts + add for point in ring for one, add in zip(point, (0.0131415, 0.0070711), strict=True)]
        for ring in rings
    ]
    assert (drawn(Shape("a", flat)) == by_points(flat, HW)).all()


@pytest.mark.parity
@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")
@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 6.28), min_size=3, max_size=12), st.floats(5, 40))
def test_polygons_differ_from_pycocotools_at_edges_only(angles, radius):
    cv2 = pytest.importorskip("cv2")
    coco = pytest.importorskip("pycocotools.mask")
    ring = [
        value
        for angle in sorted(angles)
        for value in (50 + radius * np.cos(angle), 45 + radius * np.sin(angle))
    ]
    ours = drawn(Shape("a", [ring]), hw=(90, 100))
    theirs = coco.decode(coco.merge(coco.frPyObjects([ring], 90, 100)))
    edge = np.zeros((90, 100), np.uint8)
    points = np.round((np.array(ring).reshape(-1, 2) - 0.5) * 256).astype(np.int32)
    cv2.polylines(edge, [points], True, 1, thickness=3, shift=8)
    assert not ((ours != theirs) & (edge == 0)).any()


def test_several_rings_cut_holes_and_fractions_are_of_the_size():
    ring = drawn(Shape("a", [box(0, 0, 10, 10), box(2, 2, 8, 8)]))
    assert ring.sum() == 100 - 36
    half = drawn(Shape("a", [box(0, 0, 0.5, 1)], relative=True))
    assert half[:, :15].all()
    assert not half[:, 15:].any()


MASKS = st.tuples(st.integers(1, 9), st.integers(1, 9)).flatmap(
    lambda hw: st.lists(st.booleans(), min_size=hw[0] * hw[1], max_size=hw[0] * hw[1]).map(
        lambda bits: np.array(bits).reshape(hw)
    )
)


@settings(max_examples=80, deadline=None)
@given(MASKS, st.integers(-3, 4), st.integers(-3, 4))
def test_runs_round_trip_also_in_a_box_that_leaves_the_image(mask, top, left):
    assert (drawn(Shape("a", runs=runs_of(mask)), hw=mask.shape) == mask).all()
    rows = [len(part) for part in _parts(mask.ravel())]
    assert runs_of_rows(rows, mask.shape, where="x") == runs_of(mask)
    height, width = mask.shape
    whole = np.zeros((20, 20), np.uint8)
    whole[5 + top : 5 + top + height, 5 + left : 5 + left + width] = mask
    placed = drawn(Shape("a", runs=runs_of(mask), box=[top, left, height, width]), hw=(6, 7))
    assert (placed == whole[5:11, 5:12]).all()


def _parts(flat):
    """Alternating runs, of the background first."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flat, [False]])))
    return np.split(flat, [edge for edge in edges if edge < len(flat)] if len(edges) else [])


def test_runs_of_rows_refuses_another_size():
    with pytest.raises(InputError, match="run-lengths of 5 pixels; expected 2x3"):
        runs_of_rows([2, 3], (2, 3), where="x")


def test_later_shapes_lie_over_earlier_ones():
    mask = drawn(
        Shape("a", [box(0, 0, 10, 10)]),
        Shape("b", [box(5, 0, 10, 10)]),
        Shape(BACKGROUND, [box(8, 0, 10, 10)]),
        Shape("", [box(0, 8, 10, 10)], unjudged=True),
    )
    assert (mask[0, :10] == [1] * 5 + [2] * 3 + [0] * 2).all()
    assert (mask[8:10, :10] == IGNORE).all()


def test_layers_overlap():
    layers = draw_layers(
        [
            Shape("a", [box(0, 0, 10, 10)]),
            Shape("b", [box(5, 0, 10, 10)]),
            Shape("a", [box(0, 5, 10, 10)], unjudged=True),
            Shape("", [box(0, 9, 10, 10)], unjudged=True),
            Shape(BACKGROUND, [box(0, 0, 1, 1)]),
        ],
        ["a", "b"],
        HW,
    )
    assert layers[2, 7].tolist() == [1, 1]
    assert layers[7, 7].tolist() == [IGNORE, 1]
    assert layers[9, 7].tolist() == [IGNORE, IGNORE]
    assert layers[0, 0].tolist() == [0, 0]


def test_objects():
    objects = draw_objects(
        [
            Shape("a", [box(0, 0, 10, 10)]),
            Shape("b", [box(12, 0, 14, 2)], object=7),
            Shape("b", [box(12, 4, 14, 6)], object=7),
            Shape(BACKGROUND, [box(2, 2, 4, 4)]),
            Shape("a", [box(5, 5, 7, 7)]),
            Shape("a", [box(20, 0, 20, 5)]),
            Shape("", [box(0, 9, 12, 10)], unjudged=True),
        ],
        HW,
    )
    labels = objects.labels
    assert objects.count == 3
    assert labels[0, 12] == labels[5, 12] != labels[0, 0]
    assert labels[3, 3] == 0
    assert labels[6, 6] not in (0, labels[0, 0])
    assert labels[9, 0] == labels[9, 11] == UNJUDGED
    assert objects.empty == ["shape 6 ('a')"]


def test_an_ellipse():
    ring = ellipse_ring(15, 10, 8, 4, degrees=90)
    mask = drawn(Shape("a", [ring]))
    assert abs(mask.sum() - np.pi * 32) < 5
    assert mask[3, 15] == 1
    assert mask[10, 8] == 0


def test_targets():
    assert drawn_target("multiclass", ["a"], where="x").classes == (BACKGROUND, "a")
    assert drawn_target("multilabel", ["a", "b"], where="x").classes == ("a", "b")
    assert drawn_target("binary", ["a", "b"], where="x").task == "binary"
    assert drawn_target(None, ["a", "b"], where="x").task == "instances"
    binary = drawn_target("binary", ["a", "b"], where="x")
    assert class_numbers(binary, ["a", "b"]) == {"a": 1, "b": 1}
    with pytest.raises(InputError, match="300 classes; a class map holds at most 254"):
        drawn_target("multiclass", [str(at) for at in range(300)], where="x")


def sample(*shapes, **more):
    return Sample("i", "i.png", shapes=list(shapes), **more)


def test_what_leaves_its_image_is_said_or_refused():
    sizes = {"i.png": HW}
    inside = sample(Shape("a", [box(-0.5, 0, 30.9, 20)]), drawn_hw=[20, 30])
    assert check_drawings([inside], sizes) == []
    (finding,) = check_drawings([sample(Shape("a", [box(-2, 0, 5, 5)]))], sizes)
    assert "1 shapes leave their image" in finding.detail
    away = [
        sample(Shape("a", [box(30, 0, 35, 5)])),
        sample(Shape("b", [box(0, -9, 5, 0)])),
        sample(Shape("a", runs=[4, 5])),
        sample(drawn_hw=[30, 20]),
        sample(drawn_hw=[40, 60]),
    ]
    with pytest.raises(InputError, match="5 drawings cannot be used") as caught:
        check_drawings(away, sizes)
    for text in ("x 30, y 0", "y -9", "run-lengths of 9 pixels", "says 30x20", "says 40x60"):
        assert text in str(caught.value)


def test_shapes_are_kept_in_data_json():
    shapes = [Shape("a", [[1, 2, 3, 4, 5, 6.5]], object=0), Shape("b", runs=[1, 2], box=[0, 1, 1, 3])]
    one = sample(*shapes, drawn_hw=[20, 30])
    form = SubmissionFormat("id", "rle_mask", "tgs", [], "x")
    catalog = Catalog("r", "coco", "h", [one], [], form, [], classes=["a", "b"])
    assert Catalog.from_json(catalog.to_json()) == catalog
