"""Ids become names of files and cells of CSV files: those that would leave their place are refused."""

from masksmith.core.errors import InputError

_MAX_BYTES = 255 - len(".png")  # the longest file name of the usual file systems, with the ending of a mask
_TEXT_LIMIT = 80  # characters of an id in a message


def check_name(name: str, *, where: str) -> str:
    """Return a name, as of a label, that can be the name of one folder.

    Raises:
        InputError: It has a slash, or as check_id.
    """
    if "/" in name:
        raise InputError(f"{where}: the name {name!r} cannot be that of a folder: it holds '/'; rename it")
    return check_id(name, where=where)


def check_id(name: str, *, where: str) -> str:
    """Return an id that can be a file name and a CSV cell as it is; "/" in it stands for sub-folders.

    Names that only Windows cannot hold ("a:1", "con") are taken: masksmith runs on POSIX systems.

    Raises:
        InputError: A part of the id between slashes is empty, "." or "..", or longer than 251 bytes; the id is no valid
            UTF-8, or holds a backslash or a control character (a line break would tear a CSV file).
    """
    shown = repr(name if len(name) <= _TEXT_LIMIT else name[:_TEXT_LIMIT] + "…")
    if {"", ".", ".."} & set(name.split("/")):
        raise InputError(f"{where}: the id {shown} cannot be a file name; expected a name")
    bad = next((sign for sign in name if sign == "\\" or ord(sign) < 32 or ord(sign) == 127), None)
    if bad is not None:
        raise InputError(
            f"{where}: the id {shown} cannot be a file name; expected a name without backslashes and control "
            f"characters, it holds {bad!r}"
        )
    try:
        size = max(len(part.encode()) for part in name.split("/"))
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: the id {shown} is not valid UTF-8; rename the file") from error
    if size > _MAX_BYTES:
        raise InputError(
            f"{where}: the id {shown} is {size} bytes long and cannot be a file name; expected at most {_MAX_BYTES}"
        )
    return name
