import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.layouts import read_catalog
from tests.data.layouts.drawn_sets import pictures, said, write_json


def region(kind="polygon", label=None, **form):
    if kind == "polygon" and not form:
        form = {"all_points_x": [5, 15, 15, 5], "all_points_y": [5, 5, 15, 15]}
    attributes = {} if label is None else {"type": label, "note": f"n{id(form)}"}
    return {"shape_attributes": {"name": kind} | form, "region_attributes": attributes}


def entry(name, *regions, table=False):
    return {
        "filename": name,
        "size": 1,
        "regions": {str(at): one for at, one in enumerate(regions)} if table else list(regions),
        "file_attributes": {},
    }


def via_file(path, *entries, project=False):
    value = {f"{one['filename']}{at}": one for at, one in enumerate(entries)}
    return write_json(path, {"_via_settings": {}, "_via_img_metadata": value} if project else value)


def test_splits_and_regions_without_a_class(tmp_path):
    pictures(tmp_path, "train/a.png", "train/b.png", "val/c.png")
    via_file(tmp_path / "train/via_region_data.json", entry("a.png", region(), table=True), entry("b.png"))
    via_file(tmp_path / "val/via_region_data.json", entry("c.png", region()))
    data = ms.read(tmp_path)
    assert (data.layout, data.task) == ("via", "instances")
    assert data.train[0].target.sum() == 100
    catalog = read_catalog(tmp_path)
    assert [one.held_out for one in catalog.train] == [False, False, True]
    assert catalog.classes == ["object"]


def test_a_project_with_classes(tmp_path):
    pictures(tmp_path, "a.png", "b.png")
    circle = region("circle", "cat", cx=40, cy=20, r=5)
    ellipse = region("ellipse", "dog", cx=50, cy=30, rx=5, ry=3)
    rect = region("rect", "dog", x=1, y=1, width=3, height=3)
    short = region("polygon", "dog", all_points_x=[1, 2], all_points_y=[1, 2])
    via_file(
        tmp_path / "p.json",
        entry("a.png", region(label="cat"), circle, ellipse, rect, short),
        entry("b.png", region(label="dog")),
        project=True,
    )
    data = ms.read(tmp_path, task="multiclass")
    assert data.classes == ("background", "cat", "dog")
    assert data.train[0].target[[6, 20, 30], [6, 40, 50]].tolist() == [1, 1, 2]
    text = said(read_catalog(tmp_path))
    assert "1 rect: only what has an area" in text
    assert "1 have fewer than 3 points" in text


def test_wrong_files_are_refused_with_all_that_is_wrong(tmp_path):
    pictures(tmp_path, "a.png")
    bad = [
        region("circle", cx=1),
        region("star", x=1),
        region(all_points_x=[1, 2, 3], all_points_y=[1]),
        region(all_points_x=[1, 2, None], all_points_y=[1, 2, 3]),
        {"region_attributes": {}},
    ]
    via_file(tmp_path / "v.json", entry("a.png", *bad), entry("gone.png"), entry("a.png"))
    with pytest.raises(InputError) as caught:
        read_catalog(tmp_path)
    for text in (
        "region 1 of a.png: a circle without its numbers",
        "region 2 of a.png: a 'star' without as many x as y",
        "region 3 of a.png: a 'polygon' without",
        "region 4 of a.png: the coordinate None",
        "region 5 of a.png: no shape_attributes",
        "1 images are not in the folder, or fit several files: gone.png",
        "1 images are listed twice: a.png",
    ):
        assert text in str(caught.value)
