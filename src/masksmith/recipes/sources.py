"""Where recipes and ensembles come from: the bundled YAML files with their headers, and files of the user."""

import re
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from masksmith.core.config import read_yaml, suggest
from masksmith.core.errors import InputError

HEADER_KEYS = ("source", "published", "ours", "cost", "differences")
Kind = Literal["recipe", "ensemble"]
NAME = r"^[a-z0-9][a-z0-9-]*$"
"""What a recipe, a run or a member may be called."""


AUTO_OF = {
    "binary": "auto",
    "multiclass": "auto-classes",
    "multilabel": "auto-labels",
    "instances": "auto-objects",
}
"""Task -> the bundled recipe that `auto` takes for it."""

_LOSS = "training.stages.0.loss"
SMOKE_OF = {
    "multiclass": (
        "metric=miou",
        f"{_LOSS}=[{{name: cross_entropy}}, {{name: dice, params: {{skip_empty: true}}}}]",
    ),
    "multilabel": ("metric=dice_per_image",),
    "instances": ("metric=dsb_map", f"{_LOSS}=[{{name: objects}}]"),
}
"""Task -> what the recipe `smoke` changes for it; as it is written, it is for binary masks."""


def is_auto(name: str) -> bool:
    """Whether a recipe is one of the defaults, whose model, batch, views and runtime a budget chooses."""
    return name in AUTO_OF.values()


@dataclass(frozen=True)
class Listing:
    """A bundled recipe or ensemble in the list of `masksmith recipes`."""

    name: str
    header: dict[str, str]
    text: str
    kind: Kind = "recipe"
    """An ensemble names recipes as its ``members``."""


def _bundled() -> dict[str, str]:
    folder = resources.files("masksmith") / "recipes"
    return {
        entry.name.removesuffix(".yaml"): entry.read_text()
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name.removesuffix(".yaml"))
        if entry.name.endswith(".yaml")
    }


def parse_header(text: str) -> dict[str, str]:
    """Return the header (comment lines at the top) as key -> text; a line without a key continues the one above."""
    header: dict[str, str] = {}
    last = ""
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        content = line.removeprefix("#").strip()
        key, colon, rest = content.partition(":")
        if colon and key in HEADER_KEYS:
            last = key
            header[key] = rest.strip()
        elif last:
            header[last] += " " + content
    return header


def list_recipes(kind: Kind | None = None) -> list[Listing]:
    """Return the bundled recipes and ensembles by name, or those of one kind."""
    listed = [Listing(name, parse_header(text), text, _kind_of(text)) for name, text in _bundled().items()]
    return [one for one in listed if kind in (None, one.kind)]


def _kind_of(text: str) -> Kind:
    """Return the kind of a bundled file; its top-level keys begin at the margin (see tools/format_recipes.py)."""
    return "ensemble" if re.search(r"^members:", text, re.MULTILINE) else "recipe"


def recipe_source(name: str) -> tuple[str, str]:
    """Return (text, where) of a bundled recipe's name or a YAML file's path.

    Raises:
        InputError: Neither, or not a text file; the message suggests the nearest bundled recipe.
    """
    bundled = _bundled()
    if name in bundled:
        return bundled[name], f"recipe {name}"
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise InputError(f"recipe {name}: no such file")
        try:
            return path.read_text(encoding="utf-8"), name
        except UnicodeDecodeError as error:
            raise InputError(f"recipe {name}: not a UTF-8 text file (byte {error.start})") from error
    raise InputError(f"recipe: {name!r} is neither a file nor a bundled recipe; {suggest(name, bundled)}")


def parse_table_of(text: str, *, where: str) -> dict[str, Any]:
    """Parse the YAML of a recipe or an ensemble into a table of keys.

    Raises:
        InputError: Not YAML, or not a table.
    """
    value = _parsed(text, where)
    if not isinstance(value, dict):
        raise InputError(f"{where}: a recipe is a table of keys, this is {type(value).__name__}")
    return value


@lru_cache(maxsize=64)
def _parsed(text: str, where: str) -> Any:  # noqa: ANN401
    """Return parsed YAML, which nobody changes; cached because reading a recipe takes 30 ms."""
    return read_yaml(text, where=where)
