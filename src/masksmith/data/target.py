"""What the masks of a data set mean: the task, its classes, and how they are written in files."""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from masksmith.core.config import look_up
from masksmith.core.errors import InputError

Task = Literal["binary", "multiclass", "multilabel", "instances"]
TASKS: tuple[Task, ...] = get_args(Task)


@dataclass(frozen=True)
class Target:
    """The task of a data set and its classes. Every later stage asks it, never the number of channels.

    Decoded masks are (h, w, channels): uint8 classes 0…k-1 and IGNORE for a class map, uint8 layers of 0, 1 and IGNORE
    for several labels, int32 objects for instances.
    """

    task: Task = "binary"
    classes: tuple[str, ...] = ("foreground",)
    """Names: of the foreground alone; of every class of a class map, the background first where there is one; of every
    label."""
    values: tuple[int, ...] = ()
    """Value of each class in the mask files, for a class map."""
    palette: tuple[tuple[int, int, int], ...] = ()
    """Colour of each class, where the mask files have a palette."""
    ignore: tuple[int, ...] = ()
    """Values of the mask files that are not judged."""

    @property
    def outputs(self) -> int:
        """Channels of the model's logits: one for each class; of objects foreground, border and distance."""
        return 3 if self.task == "instances" else len(self.classes)

    @property
    def exclusive(self) -> bool:
        """Whether each pixel has one class of several, so that probabilities are a softmax."""
        return self.task == "multiclass"

    def mirror_pairs(self, pairs: Literal["auto"] | Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return the classes that change places in a mirror image: those given, or those of the two sides by name."""
        if pairs != "auto":
            return list(pairs)
        return _mirror_pairs(self.classes) if self.task in ("multiclass", "multilabel") else []

    def mirrored(self, pairs: Literal["auto"] | Sequence[tuple[str, str]]) -> tuple[int, ...]:
        """Return the class that each class becomes in a mirror image; empty where none changes.

        A kidney on the left becomes one on the right if the image is flipped or transposed, and not if it is turned.

        Args:
            pairs: Names of classes that change places; "auto": those that differ by left and right alone.

        Raises:
            InputError: A class that there is not, or one in two pairs.
        """
        if self.task not in ("multiclass", "multilabel"):
            if pairs not in ("auto", []):
                raise InputError(
                    f"training.augment.mirror_pairs: {pairs}, but the target is {self.task}; expected auto"
                )
            return ()
        found = list(range(len(self.classes)))
        for pair in self.mirror_pairs(pairs):
            places = dict(zip(self.classes, range(len(self.classes)), strict=True))
            first, second = (look_up(places, name, where="training.augment.mirror_pairs") for name in pair)
            if found[first] != first or found[second] != second or first == second:
                raise InputError(
                    f"training.augment.mirror_pairs: {list(pair)}; expected two classes that are in no other pair"
                )
            found[first], found[second] = second, first
        return tuple(found) if found != sorted(found) else ()

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts and lists."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Target":
        """Rebuild a target.

        Raises:
            InputError: A task of a newer masksmith.
        """
        look_up(dict.fromkeys(TASKS), value["task"], where="task")
        return cls(
            value["task"],
            tuple(value["classes"]),
            tuple(value["values"]),
            tuple((int(red), int(green), int(blue)) for red, green, blue in value["palette"]),
            tuple(value["ignore"]),
        )


def _mirror_pairs(classes: Sequence[str]) -> list[tuple[str, str]]:
    """Return the classes whose names differ by left and right alone, as ``left_lung`` and ``right_lung`` do."""
    sides = {name: re.split(r"[\W_]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()) for name in classes}
    right = {"left": "right", "l": "r"}
    pairs = []
    for name, words in sides.items():
        other = [right.get(word, word) for word in words]
        if other != words:
            pairs += [(name, match) for match, found in sides.items() if found == other]
    return pairs


BINARY = Target()
OBJECTS = Target("instances", ("object",))
"""Objects of one class."""
