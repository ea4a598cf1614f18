"""What dataset.yaml says is obeyed or refused."""

import pytest

from masksmith.core.errors import InputError
from masksmith.data.description import Description, path_pattern, read_description


def test_a_description_is_read_from_the_folder_or_a_named_file(tmp_path):
    assert read_description(tmp_path) == Description()
    (tmp_path / "dataset.yaml").write_text(
        "task: multiclass\nclasses: [ground, crop]\nignore: [255]\ngroups: {pattern: '^(pat\\d+)_'}\n"
    )
    said = read_description(tmp_path)
    assert (said.task, said.names, said.ignore) == ("multiclass", {0: "ground", 1: "crop"}, [255])
    other = tmp_path / "other.yaml"
    other.write_text("classes: {0: ground, 7: crop}\nimages: '{id}/{band}.tif'\nbands: [B02, B03]\n")
    assert read_description(tmp_path, other).names == {0: "ground", 7: "crop"}
    with pytest.raises(InputError, match=r"absent\.yaml: no such file; expected a description"):
        read_description(tmp_path, tmp_path / "absent.yaml")
    other.write_bytes(b"task: \xff")
    with pytest.raises(InputError, match=r"not a UTF-8 text file .byte 6"):
        read_description(tmp_path, other)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("images: photos/*.jpg", "expected a pattern with {id}"),
        ("images: '{id}/{band}.tif'", "name the bands"),
        ("images: '{id}.png'\nmasks: '{id}_{band}.png'", "expected id or label"),
        ("masks: '{id}.png'", "masks and test need images"),
        ("groups: {column: patient, pattern: x}", "expected either column or pattern"),
        ("groups: {pattern: '('}", "is no regular expression"),
        ("tusk: binary", "tusk"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(tmp_path, text, message):
    (tmp_path / "dataset.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_description(tmp_path)


def test_patterns_of_paths():
    assert path_pattern("images/{id}.png").fullmatch("images/a/b.png")["id"] == "a/b"
    assert path_pattern("{label}/x_{id}.png").fullmatch("cat/x_1.png").groupdict() == {
        "label": "cat",
        "id": "1",
    }
    assert path_pattern("{id}/{id}_mask.png").fullmatch("a/b_mask.png") is None
    assert path_pattern("s*/{id}.png").fullmatch("set/a.png")["id"] == "a"
