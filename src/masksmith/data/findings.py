"""What a person should know of a data set, and the refusal of many files at once."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from masksmith.core.errors import InputError

_SHOWN = 5
LEVELS = ("error", "warning", "note")
"""In the order of harm: the data are refused for an error."""


@dataclass(frozen=True)
class Finding:
    """One observation; ``level`` is one of LEVELS, ``ids`` are the samples it concerns."""

    level: str
    title: str
    detail: str
    ids: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.level}: {self.title}: {self.detail}"


def some(values: Sequence[object], *, apart: str = ", ", most: int = _SHOWN) -> str:
    """Return the first values as text, and how many there are where not all are shown."""
    shown = apart.join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown}{apart}… ({len(values)} in all)"


def refuse_all(problems: Sequence[str], *, what: str) -> None:
    """Refuse files for what is wrong with them, all in one go.

    Args:
        problems: What is wrong with each, beginning with the file's name.
        what: What the files are, in the plural.

    Raises:
        InputError: There is a problem: it alone, or all of them, each in a line of its own.
    """
    if len(problems) == 1:
        raise InputError(problems[0])
    if problems:
        raise InputError(f"{len(problems)} {what} cannot be used:\n  " + "\n  ".join(problems))
