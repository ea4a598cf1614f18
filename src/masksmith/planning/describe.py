"""A resolved recipe as a file for people: the reason of each choice as a comment above its key."""

from collections.abc import Sequence

from masksmith.planning.choose import Choice
from masksmith.recipes.recipe import Recipe


def explain(recipe: Recipe, choices: Sequence[Choice], *, title: str) -> str:
    """Return the recipe as YAML with a comment above each chosen key."""
    reasons: dict[str, list[Choice]] = {}
    for choice in choices:
        reasons.setdefault(choice.key, []).append(choice)
    lines = [f"# {title}"]
    path: list[tuple[int, str]] = []
    for line in recipe.to_yaml().splitlines():
        indent = len(line) - len(line.lstrip())
        key, colon, _ = line.strip().partition(":")
        if colon and not key.startswith("-"):
            path = [part for part in path if part[0] < indent] + [(indent, key)]
            dotted = ".".join(part for _, part in path)
            for choice in reasons.pop(dotted, []):
                lines.append(f"{' ' * indent}# {choice.value}: {choice.reason}")
        lines.append(line)
    return "\n".join(lines) + "\n"
