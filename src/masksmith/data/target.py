"""What the masks of a data set mean: the task, its classes, and how they are written in files."""

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from masksmith.core.config import look_up

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


BINARY = Target()
OBJECTS = Target("instances", ("object",))
"""Objects of one class."""
