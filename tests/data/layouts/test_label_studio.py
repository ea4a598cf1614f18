import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.layouts import read_catalog
from masksmith.data.layouts.label_studio import decode_brush
from tests.data.layouts.drawn_sets import HW, brush_code, pictures, points, said, write_json


def result(kind, label, value, **more):
    row = {"type": kind, "original_width": HW[1], "original_height": HW[0], "image_rotation": 0}
    return row | {"id": label, "value": value | {kind: [label]}} | more


def polygon(label, x0, y0, x1, y1, **more):
    return result("polygonlabels", label, {"points": points(x0, y0, x1, y1)}, **more)


def task(name, *results, **more):
    return {"data": {"image": name}, "annotations": [{"result": list(results)}]} | more


MASKS = st.tuples(st.integers(1, 6), st.integers(1, 6)).flatmap(
    lambda hw: st.lists(st.booleans(), min_size=hw[0] * hw[1], max_size=hw[0] * hw[1]).map(
        lambda bits: np.array(bits).reshape(hw)
    )
)


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_brush_masks_are_decoded(mask):
    assert ((decode_brush(brush_code(mask), mask.shape) != 0) == mask).all()


def test_shapes_of_all_kinds(tmp_path):
    pictures(tmp_path, "ab12cd34-a.png", "x/b c.png", "c.png")
    brush = np.zeros(HW, bool)
    brush[30:35, 30:40] = True
    write_json(
        tmp_path / "project-1.json",
        [
            task(
                "/data/upload/1/ab12cd34-a.png",
                polygon("road", 0, 0, 50, 50),
                result("brushlabels", "car", {"format": "rle", "rle": brush_code(brush)}),
                result(
                    "ellipselabels", "car", {"x": 75, "y": 25, "radiusX": 10, "radiusY": 10, "rotation": 0}
                ),
                result("rectanglelabels", "car", {"x": 1}),
                polygon("background", 0, 0, 10, 10),
                result("polygonlabels", "road", {"points": [[1, 1], [2, 2]]}),
                {"type": "choices", "value": {}},
            ),
            task("/data/local-files/?d=x/b%20c.png", polygon("road", 0, 0, 50, 50)),
            {
                "data": {"image": "s3://bucket/11112222-c.png"},
                "annotations": [{"was_cancelled": True, "result": []}],
            },
        ],
    )
    data = ms.read(tmp_path)
    assert (data.task, data.classes) == ("multiclass", ("background", "road", "car"))
    target = data.train[0].target
    assert target[[1, 10, 32, 10], [1, 10, 35, 45]].tolist() == [0, 1, 2, 2]
    catalog = read_catalog(tmp_path)
    assert "1 rectanglelabels: only what has an area" in said(catalog)
    assert "1 have fewer than 3 points" in said(catalog)
    assert any("1 tasks without an annotation" in text for text in catalog.left_out)


def test_of_several_annotations_one_counts(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    several = task("a.png", polygon("x", 0, 0, 50, 50))
    several["annotations"].append({"result": [polygon("y", 0, 0, 50, 50)], "ground_truth": True})
    write_json(tmp_path / "p.json", [several, task("b.png", polygon("x", 0, 0, 50, 50))])
    catalog = read_catalog(tmp_path)
    assert [one.shapes[0].label for one in catalog.train] == ["y", "x"]
    assert "1 tasks of p.json have several annotations" in said(catalog)


def test_wrong_files_are_refused_with_all_that_is_wrong(tmp_path):
    pictures(tmp_path, "a.png", "p/b.png", "q/b.png")
    brush = brush_code(np.zeros(HW, bool))
    bad = [
        polygon("turned", 0, 0, 5, 5, image_rotation=90),
        result("polygonlabels", "labels", {"points": []})
        | {"value": {"points": [], "polygonlabels": ["a", "b"]}},
        result("polygonlabels", "odd", {"points": [[1]]}),
        result("brushlabels", "format", {"format": "png"}),
        result("brushlabels", "cut", {"rle": brush[:7]}),
        result("brushlabels", "size", {"rle": brush_code(np.zeros((3, 3), bool))}),
        result("brushlabels", "bytes", {"rle": [256, 1]}),
        result("brushlabels", "none", {"rle": brush}, original_width=None),
        result("ellipselabels", "turn", {"x": 1, "y": 1, "radiusX": 1, "radiusY": 1, "rotation": 9}),
    ]
    write_json(
        tmp_path / "p.json", [task("a.png", *bad), task("gone.png"), task("b.png"), task("a.png"), task(None)]
    )
    (tmp_path / "q.json").write_text('[{"data": {"image": "a.png"}, "annotations": ')
    with pytest.raises(InputError) as caught:
        read_catalog(tmp_path)
    for text in (
        "'turned' on a.png: no value, or an image that was turned",
        "expected one label",
        "a point that is no pair",
        "not in format rle",
        "a brush mask that is cut off",
        "a brush mask of 36 values, not 4x40x60",
        "brush run-lengths that are no bytes",
        "without original_height",
        "a turned one",
        "2 images are not in the folder: gone.png, task None",
        "1 images fit several files: b.png",
        "two tasks with the image a.png",
        "q.json: no valid JSON",
    ):
        assert text in str(caught.value)


def test_a_brush_mask_with_too_many_values():
    code = brush_code(np.zeros((1, 1), bool))
    bits = "".join(f"{one:08b}" for one in code)
    longer = bits[:53] + "101" + "1111" + bits[60:] + "0" * 8
    codes = [int(longer[at : at + 8], 2) for at in range(0, len(longer) // 8 * 8, 8)]
    with pytest.raises(ValueError, match="more values than it says"):
        decode_brush(codes, (1, 1))
