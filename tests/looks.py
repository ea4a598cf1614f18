"""What is asked of a page in the browser: nothing sticks out, and axe finds no fault."""

from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Page


def fits(page: "Page") -> bool:
    """Whether nothing sticks out at the sides."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth"))


def faults(page: "Page", *, impacts: tuple[str, ...] = ()) -> list[tuple[str, list[Any]]]:
    """Return (rule, places) of what axe finds: contrast, labels, roles; with ``impacts`` only faults of these.

    Without the package (one of ``[dev]``) nothing is found.
    """
    try:
        source = resources.files("axe_playwright_python").joinpath("axe.min.js").read_text()
    except ModuleNotFoundError:
        return []
    page.evaluate(source)
    found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    return [
        (one["id"], [node["target"] for node in one["nodes"]])
        for one in found
        if not impacts or one["impact"] in impacts
    ]
