import pytest

from masksmith.core.errors import InputError
from masksmith.data.ids import check_id


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "the id '' cannot be a file name"),
        (".", "the id '.' cannot be a file name"),
        ("..", "the id '..' cannot be a file name"),
        ("../../evil", "the id '../../evil' cannot be a file name; .* it holds '/'"),
        ("/etc/x", "it holds '/'"),
        ("a/../b", "it holds '/'"),
        ("C:\\x", r"it holds '\\\\\\\\'"),
        ("a\0b", r"it holds '\\\\x00'"),
        ("a\nb", r"it holds '\\\\n'"),
        ("a\rb", r"it holds '\\\\r'"),
        ("a\x7fb", r"it holds '\\\\x7f'"),
        ("a\udcffb", "is not valid UTF-8"),
        ("x" * 252, "is 252 bytes long and cannot be a file name; expected at most 251"),
        ("ä" * 126, "is 252 bytes long"),
    ],
)
def test_refused(name, message):
    with pytest.raises(InputError, match="train.csv: .*" + message.replace("\\\\\\\\", "\\\\")):
        check_id(name, where="train.csv")


@pytest.mark.parametrize("name", ["0012", "76e1428103", "a b", "ä", "con", "a:1", "..a", "=1+1", "x" * 251])
def test_taken(name):
    assert check_id(name, where="x") == name
