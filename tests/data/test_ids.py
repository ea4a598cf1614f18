import pytest

from masksmith.core.errors import InputError
from masksmith.data.ids import check_id, check_name


def test_ids_that_are_taken_and_refused():
    for name in ("0012", "76e1428103", "a b", "ä", "con", "a:1", "..a", "=1+1", "x" * 251, "siteA/1"):
        assert check_id(name, where="x") == name
    for name, message in (
        ("", "the id '' cannot be a file name"),
        (".", r"the id '\.' cannot be a file name"),
        ("..", r"the id '\.\.' cannot be a file name"),
        ("../../evil", r"the id '\.\./\.\./evil' cannot be a file name"),
        ("/etc", "the id '/etc' cannot be a file name"),
        ("a//b", "the id 'a//b' cannot be a file name"),
        ("C:\\x", r"it holds '\\\\'"),
        ("a\0b", r"it holds '\\x00'"),
        ("a\nb", r"it holds '\\n'"),
        ("a\x7fb", r"it holds '\\x7f'"),
        ("a\udcffb", "is not valid UTF-8"),
        ("x" * 252, "is 252 bytes long and cannot be a file name; expected at most 251"),
        ("ä" * 126, "is 252 bytes long"),
    ):
        with pytest.raises(InputError, match="train.csv: .*" + message):
            check_id(name, where="train.csv")
    with pytest.raises(InputError, match=r"train\.csv: the name 'a/b' cannot be that of a folder"):
        check_name("a/b", where="train.csv")
    assert check_name("a", where="train.csv") == "a"
