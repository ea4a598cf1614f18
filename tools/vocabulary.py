"""Write docs/vocabulary.md: every option of a recipe, from the tables that masksmith looks names up in.

python tools/vocabulary.py
"""

from pathlib import Path

import masksmith as ms

PAGE = Path(__file__).parent.parent / "docs" / "vocabulary.md"
HEAD = """# The vocabulary of a recipe

Written by `python tools/vocabulary.py`; the same on a terminal: `masksmith vocabulary [KIND]`. Papers and formulas
are beside each function in the source. Pictures of the augmentation: [augmentation.md](augmentation.md).
"""


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for kind, options in ms.vocabulary().options.items():
        parts.append(f"## {kind.capitalize()}\n")
        parts += [
            f"- `{option.shown}`" + (f": {option.description}" if option.description else "")
            for option in options
        ]
        parts.append("")
    return "\n".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(PAGE.name)
