"""Format the bundled recipes: every field named, in the order of the configuration, none twice.

    python tools/format_recipes.py [--check]

The comment lines at the top are kept. A table that fits on a line is written on one. ``--check`` changes nothing and
fails if a file is not formatted.
"""

import argparse
import json
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from masksmith.core.config import validate
from masksmith.recipes.ensemble import Ensemble
from masksmith.recipes.recipe import Recipe
from masksmith.recipes.sources import parse_table_of

WIDTH = 118


def scalar(value: object) -> str:
    """Return a value without parts as YAML, quoted where it has to be within a list on one line."""
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)
    text = yaml.safe_dump([value], default_flow_style=True, width=10_000, allow_unicode=True)
    return text.strip().removeprefix("[").removesuffix("]")


def inline(value: object) -> str:
    """Return a value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{scalar(key)}: {inline(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(inline, value)) + "]"
    return scalar(value)


def wrapped(items: list[Any], prefix: str, indent: int) -> list[str]:
    """Return a list of values without parts over several lines."""
    lines, line = [], f"{prefix}["
    for number, item in enumerate(items):
        piece = scalar(item) + ("," if number + 1 < len(items) else "]")
        if len(line) + 1 + len(piece) > WIDTH:
            lines.append(line.rstrip())
            line = " " * (indent + 2)
        line += piece if line.endswith("[") or not line.strip() else f" {piece}"
    return [*lines, line]


def block(value: dict[str, Any], indent: int = 0) -> list[str]:
    """Return the lines of a table."""
    lines = []
    for key, one in value.items():
        prefix = " " * indent + f"{key}: "
        if len(prefix + inline(one)) <= WIDTH and not (indent == 0 and isinstance(one, dict) and one):
            lines.append(prefix + inline(one))
        elif isinstance(one, dict):
            lines += [prefix.rstrip(), *block(one, indent + 2)]
        elif any(isinstance(item, dict) for item in one):
            lines += [prefix.rstrip(), *listed(one, indent + 2)]
        else:
            lines += wrapped(one, prefix, indent)
    return lines


def listed(items: list[dict[str, Any]], indent: int) -> list[str]:
    """Return the lines of a list of tables."""
    lines = []
    for item in items:
        if len(inline(item)) + indent + 2 <= WIDTH and not any(
            isinstance(one, dict) for one in item.values()
        ):
            lines.append(" " * indent + f"- {inline(item)}")
            continue
        if set(item) == {"name", "weight", "params"} and len(inline(item)) + indent + 2 <= WIDTH:
            lines.append(" " * indent + f"- {inline(item)}")
            continue
        first, *rest = block(item, indent + 2)
        lines += [" " * indent + "- " + first.lstrip(), *rest]
    return lines


def formatted(text: str, *, where: str) -> str:
    """Return a recipe's formatted text."""
    header = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        header.append(line.rstrip())
    table = parse_table_of(text, where=where)
    written = validate(Ensemble if "members" in table else Recipe, table, where=where)
    return "\n".join([*header, *block(written.model_dump(mode="json"))]) + "\n"


def main() -> None:
    """Format the bundled recipes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    folder = Path(str(resources.files("masksmith") / "recipes"))
    changed = []
    for path in sorted(folder.glob("*.yaml")):
        text = path.read_text()
        wanted = formatted(text, where=path.name)
        if text != wanted:
            changed.append(path.name)
            if not options.check:
                path.write_text(wanted)
    if changed:
        print("not formatted:" if options.check else "formatted:", ", ".join(changed))
    sys.exit(bool(changed and options.check))


if __name__ == "__main__":
    main()
