import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.data.layouts import read_catalog
from tests.data.layouts.drawn_sets import HW, pictures, said

META = (
    "<meta><job><labels><label><name>road</name></label><label><name>car</name></label></labels></job></meta>"
)


def polygon(label, x0, y0, x1, y1, **more):
    points = f"{x0},{y0};{x1},{y0};{x1},{y1};{x0},{y1}"
    extra = "".join(f' {key}="{value}"' for key, value in more.items())
    return f'<polygon label="{label}" source="manual" occluded="0" points="{points}"{extra}></polygon>'


def image(name, *shapes, **more):
    extra = "".join(f' {key}="{value}"' for key, value in more.items())
    return f'<image id="0" name="{name}" width="{HW[1]}" height="{HW[0]}"{extra}>{"".join(shapes)}</image>'


def cvat_file(path, *images, meta=META):
    head = '<?xml version="1.0" encoding="utf-8"?>\n'
    text = f"{head}<annotations><version>1.1</version>{meta}{''.join(images)}</annotations>"
    path.write_text(text, encoding="utf-8")


def test_shapes_in_the_order_of_z(tmp_path):
    pictures(tmp_path, "images/a.png", "images/b.png")
    mask = '<mask label="car" rle="1, 2, 2, 3" left="10" top="30" width="4" height="2" z_order="3"></mask>'
    ellipse = '<ellipse label="car" cx="45" cy="10" rx="8" ry="3" rotation="90" z_order="0"></ellipse>'
    cvat_file(
        tmp_path / "annotations.xml",
        image(
            "a.png",
            polygon("car", 5, 5, 15, 15, z_order=1),
            polygon("road", 0, 0, 30, 20, z_order=0),
            polygon("background", 7, 7, 9, 9, z_order=2),
            mask,
            ellipse,
            '<box label="car" xtl="1" ytl="1" xbr="5" ybr="5"></box>',
            '<tag label="car"></tag>',
            '<polygon label="car" points="1,2;3,4"></polygon>',
        ),
        image("b.png"),
    )
    data = ms.read(tmp_path)
    assert (data.layout, data.task, data.classes) == ("cvat", "multiclass", ("background", "road", "car"))
    target = data.train[0].target
    assert target[[1, 6, 8, 4], [1, 6, 8, 45]].tolist() == [1, 2, 0, 2]
    assert target[30:32, 10:14].tolist() == [[0, 2, 2, 0], [0, 2, 2, 2]]
    text = said(read_catalog(tmp_path))
    assert "1 box: only what has an area" in text
    assert "1 have fewer than 3 points" in text
    assert not data.train[1].target.any()


def test_subsets_are_splits_and_groups_are_objects(tmp_path):
    pictures(tmp_path, *(f"images/{name}.png" for name in "abcd"))
    parts = [polygon("car", x, 5, x + 5, 10, group_id=3) for x in (5, 20)]
    cvat_file(
        tmp_path / "x.xml",
        image("a.png", *parts, subset="Train"),
        image("b.png", polygon("car", 0, 0, 5, 5), subset="Validation"),
        image("c.png", subset="Test"),
    )
    catalog = read_catalog(tmp_path)
    assert [(one.id, one.held_out) for one in catalog.train] == [("a", False), ("b", True)]
    assert [one.id for one in catalog.test] == ["c"]
    assert "images without annotations" in said(catalog)
    labels = ms.read(tmp_path, task="instances").train[0].target
    assert labels[6, 6] == labels[6, 21] == 1


def refused(root, *texts):
    with pytest.raises(InputError) as caught:
        read_catalog(root)
    for text in texts:
        assert text in str(caught.value)


def test_wrong_files_are_refused_with_all_that_is_wrong(tmp_path):
    pictures(tmp_path, "images/a.png", "p/b.png", "q/b.png")
    cvat_file(
        tmp_path / "a.xml",
        image(
            "a.png",
            polygon("", 1, 1, 5, 5),
            '<polygon label="car" points="1,2;3,x;4,5"></polygon>',
            '<polygon label="car" points="1,2;3;4,5"></polygon>',
            '<mask label="car" rle="1, 2" left="1" top="1" width="9" height="9"></mask>',
            '<mask label="car" rle="1, x" left="1" top="1" width="9" height="9"></mask>',
            '<mask label="car" rle="1, 2" left="1" top="1" width="3"></mask>',
            '<ellipse label="car" cx="1"></ellipse>',
        ),
        image("gone.png"),
        image("b.png"),
        image("a.png"),
    )
    cvat_file(tmp_path / "video.xml", "<track><polygon/></track>")
    (tmp_path / "cut.xml").write_text("<annotations><image ")
    bomb = '<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><annotations>&b;</annotations>'
    (tmp_path / "bomb.xml").write_text(bomb)
    (tmp_path / "wide.xml").write_bytes("<annotations></annotations>".encode("utf-16"))
    (tmp_path / "odd.xml").write_text('<?xml version="1.0" encoding="klingon"?><annotations></annotations>')
    (tmp_path / "other.xml").write_text("<annotation><annotations/></annotation>")
    refused(
        tmp_path,
        "1 images are not in the folder: gone.png",
        "1 images fit several files: b.png",
        "1 images are listed twice: a.png",
        "a polygon on 'a.png': no label",
        "the coordinate None",
        "a point that is no pair",
        "run-lengths of 3 pixels; expected 9x9",
        "run-lengths that are no whole numbers",
        "no number 'height'",
        "no number 'cy'",
        "video.xml: tracks of a video",
        "cut.xml: no valid XML",
        "bomb.xml: <!DOCTYPE in it",
        "wide.xml: XML that is not in UTF-8",
        "odd.xml: ",
    )
