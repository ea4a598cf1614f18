"""Build the documentation's site, without network: `make docs`, or `python tools/docs_site.py`.

Beside the pages of docs/ it has pages that are made from the code, so that they cannot lie:

reference/commands.md from the command line, reference/recipe-keys.md and recipe.schema.json from the schema of recipes,
reference/python.md (mkdocstrings fills it in) from `masksmith.__all__`, start/notebook.md from docs/notebook.ipynb,
explanation/decisions.md from docs/decisions. Pages of docs/ that the navigation of mkdocs.yml does not name are added
to its How-to. All is written to build/docs, from where
Zensical (which reads MkDocs' configuration) makes the site.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer
import yaml

import masksmith
from masksmith import pipeline
from masksmith.cli import app

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
WORK, SITE = ROOT / "build" / "docs", ROOT / "site"
HOW_TO = "How-to"
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))
DECISION_INDEX = "explanation/decisions.md"
_FETCHES = re.compile(
    r"""(<(?:script|img|iframe|source|link(?![^>]*rel="?(?:canonical|next|prev)))\b"""
    r"""[^>]*(?:src|href)=["']?(?:https?:)?//[^>]*"""
    r"""|(?:url\(|@import\s)["']?(?:https?:)?//[^)]*)"""
)
_GROUPS = {
    "Data": ("read", "check", "layout", "explore", "example"),
    "The whole way": ("compete", "plan", "folds", "train", "predict", "tune", "submit", "report"),
    "A model to use": ("bundle", "load", "apply", "export", "serve", "pack"),
    "Recipes": ("recipes", "recipe_schema", "vocabulary", "verify", "lr", "noise"),
}
_REST = "More"


def _code(text: object) -> str:
    return f"`{text}`"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _default(param: Any) -> str:  # noqa: ANN401
    if param.required:
        return "required"
    if param.default in (None, False, (), [], "") or callable(param.default):
        return ""
    return _code(param.default)


def _command(name: str, command: Any, level: int) -> list[str]:  # noqa: ANN401
    """Return the lines about a command, or about a group and its commands."""
    lines = [f"{'#' * level} {name}", "", command.help or "", ""]
    if hasattr(command, "commands"):
        for sub, own in command.commands.items():
            lines += _command(f"{name} {sub}", own, level + 1)
        return lines
    context = command.make_context(name, [], resilient_parsing=True)
    arguments = [one for one in command.params if one.param_type_name == "argument"]
    options = [one for one in command.params if one.param_type_name == "option" and not one.hidden]
    usage = [
        f"{'' if one.required else '['}{one.name.upper()}{' …' if one.nargs == -1 else ''}{'' if one.required else ']'}"
        for one in arguments
    ]
    lines += ["```text", " ".join([name, *usage, *(["[OPTIONS]"] if options else [])]), "```", ""]
    if arguments or options:
        lines += ["| argument or option | meaning | default |", "|---|---|---|"]
    for one in arguments:
        lines.append(f"| {_code(one.name.upper())} | {_cell(one.help or '')} | {_default(one)} |")
    for one in options:
        spelled = ", ".join(
            _code(opt) for opt in (*sorted(one.opts, key=len, reverse=True), *one.secondary_opts)
        )
        record = one.get_help_record(context)
        value = record[0].split()[-1] if record and not one.is_flag else ""
        repeated = " May be repeated." if one.multiple and "repeat" not in (one.help or "") else ""
        shown = f" {_code(value)}" if value and not value.startswith("-") else ""
        lines.append(f"| {spelled}{shown} | {_cell(one.help or '')}{repeated} | {_default(one)} |")
    return [*lines, ""]


def command_page() -> str:
    """Return the reference of the command line."""
    root = typer.main.get_command(app)
    lines = [
        "# Commands",
        "",
        "Made from the command line itself; `masksmith COMMAND --help` says the same. `-q` before a command prints "
        "only the result and warnings. Exit codes: 0 done or budget reached, 2 refused input, 3 done but for some "
        "inputs that were refused, 130 Ctrl-C, 143 SIGTERM, 1 anything else.",
        "",
    ]
    for name, command in getattr(root, "commands", {}).items():
        lines += _command(f"masksmith {name}", command, 2)
    return "\n".join(lines)


def _type(schema: dict[str, Any], field: dict[str, Any]) -> tuple[str, list[str]]:
    """Return how a field is written (its type and range), and the configurations that it holds."""
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[1]
        return "table", [name]
    for key in ("allOf", "anyOf", "oneOf"):
        if key in field:
            parts = [_type(schema, one) for one in field[key]]
            kinds = list(dict.fromkeys(kind for kind, _ in parts))
            return " or ".join(kinds), [name for _, names in parts for name in names]
    if "enum" in field:
        return " · ".join(_code(value) for value in field["enum"]), []
    if "const" in field:
        return _code(field["const"]), []
    kind = field.get("type", "any")
    if kind == "array":
        items = field.get("items", {})
        if isinstance(items, list):
            return f"[{', '.join(_type(schema, one)[0] for one in items)}]", []
        inner, names = _type(schema, items)
        return f"list of {inner}", names
    word = {"integer": "whole number", "string": "text", "boolean": "true or false", "object": "table"}.get(
        kind, kind
    )
    bounds = [
        f"{sign} {field[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in field
    ]
    return f"{word} {', '.join(bounds)}".strip(), []


def _keys(schema: dict[str, Any], name: str, path: str, lines: list[str], seen: dict[str, str]) -> None:
    """Add the table of a configuration's keys, then those of the configurations in it."""
    part = schema["$defs"][name]
    anchor = path or name
    described = _cell(part.get("description", "").replace("``", "`"))
    lines += [
        f"{'###' if path else '##'} {anchor}",
        "",
        described,
        "",
        "| key | meaning | value | default |",
        "|---|---|---|---|",
    ]
    required, nested = part.get("required", []), list[tuple[str, str]]()
    for key, field in part["properties"].items():
        kind, names = _type(schema, field)
        where = f"{path}.{key}".lstrip(".") + ("[]" if "list of" in kind else "")
        text = [_cell(field.get("description", ""))]
        for one in names:
            if one not in seen:
                seen[one] = f"{where} ({one})" if len(names) > 1 else where
                nested.append((one, seen[one]))
            named = one if len(names) > 1 else seen[one]
            text.append(f"[{named}](#{_anchor(seen[one])})")
        default = "required" if key in required else _written(field.get("default", schema))
        lines.append(f"| {_code(key)} | {' '.join(text).strip()} | {_cell(kind)} | {default} |")
    lines.append("")
    for one, where in nested:
        _keys(schema, one, where, lines, seen)


def _written(value: Any) -> str:  # noqa: ANN401
    """Return a default as it stands in a recipe; nothing for a table, whose keys have their own."""
    return "" if isinstance(value, dict) else _code(json.dumps(value, ensure_ascii=False))


def _anchor(heading: str) -> str:
    return re.sub(r"[^\w-]+", "", heading.lower().replace(" ", "-"))


def recipe_page() -> str:
    """Return the reference of a recipe's keys."""
    schema = masksmith.recipe_schema()
    lines = [
        "# Recipe keys",
        "",
        "Made from the schema of recipes: every key, what it means, which values it takes, and its default. A key "
        "that is not here is refused. `--set training.stages.0.epochs=3` changes one. The same for editors: "
        "[recipe.schema.json](recipe.schema.json), see "
        "[Write a recipe](../how-to/recipe.md#an-editor-that-knows-the-keys). Names of models, losses, metrics "
        "and schedules: [Names in a recipe](../vocabulary.md).",
        "",
    ]
    seen: dict[str, str] = {}
    _keys(schema, "Recipe", "", lines, seen)
    _keys(schema, "Ensemble", "", lines, seen)
    return "\n".join(lines)


def python_page() -> str:
    """Return the reference of Python's functions, for mkdocstrings."""
    verbs = [name for name in masksmith.__all__ if hasattr(pipeline, name)]
    grouped = [name for names in _GROUPS.values() for name in names]
    groups = {**_GROUPS, _REST: tuple(name for name in verbs if name not in grouped)}
    lines = [
        "# Python",
        "",
        "`import masksmith as ms`; each is `ms.NAME`. Wrong input raises `ms.InputError` with what came, what was "
        "expected and what to do.",
        "",
    ]
    for title, names in groups.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += [f"::: masksmith.pipeline.{name}", ""]
    lines += ["## What a loaded model gives", "", "::: masksmith.deploy.segmenter.Segmenter", ""]
    lines += ["::: masksmith.deploy.segmenter.Segmentation", ""]
    return "\n".join(lines)


def notebook_page() -> str:
    """Return docs/notebook.ipynb as a page."""
    cells = json.loads((DOCS / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    texts = ["".join(cell["source"]).strip() for cell in cells]
    kinds = [cell["cell_type"] for cell in cells]
    return "\n\n".join(
        text if kind == "markdown" else f"```python\n{text}\n```"
        for kind, text in zip(kinds, texts, strict=True)
    )


def decision_page() -> str:
    """Return the list of docs/decisions."""
    lines = [
        "# Decisions",
        "",
        "A choice that may surprise has a page: what was decided, what was tried, what was measured.",
        "",
    ]
    for page in DECISIONS:
        title = page.read_text(encoding="utf-8").partition("\n")[0].lstrip("# ")
        lines.append(f"- [{title}](../decisions/{page.name})")
    return "\n".join(lines)


def _fill(nav: Any) -> None:  # noqa: ANN401
    """Put the pages of docs/decisions behind their list, wherever it is in the navigation."""
    for item in nav if isinstance(nav, list) else nav.values() if isinstance(nav, dict) else ():
        _fill(item)
    if isinstance(nav, list) and DECISION_INDEX in nav:
        nav.extend(f"decisions/{page.name}" for page in DECISIONS)


def navigation(config: dict[str, Any]) -> list[Any]:
    """Return the navigation of the configuration, with the pages that it does not name."""
    nav: list[Any] = config["nav"]
    named = json.dumps(nav)
    new = [page.name for page in sorted(DOCS.glob("*.md")) if f'"{page.name}"' not in named]
    for section in nav:
        section.get(HOW_TO, []).extend(new)
    _fill(nav)
    return nav


def made_pages() -> dict[str, str]:
    """Return the pages that are made from the code: name -> text."""
    return {
        "reference/commands.md": command_page(),
        "reference/recipe-keys.md": recipe_page(),
        "reference/recipe.schema.json": json.dumps(masksmith.recipe_schema(), indent=1, ensure_ascii=False),
        "reference/python.md": python_page(),
        "start/notebook.md": notebook_page(),
        DECISION_INDEX: decision_page(),
    }


def write_source(work: Path) -> Path:
    """Write docs/ and the made pages to a folder; return the configuration beside them."""
    if work.exists():
        shutil.rmtree(work)
    shutil.copytree(DOCS, work / "docs")
    for name, text in made_pages().items():
        path = work / "docs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    config |= {"nav": navigation(config), "docs_dir": "docs", "site_dir": "site"}
    written = work / "mkdocs.yml"
    written.write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return written


def fetched_from_outside(site: Path) -> list[str]:
    """Return what the pages of a site would fetch from another host: scripts, styles, fonts, pictures."""
    found = []
    for page in sorted([*site.rglob("*.html"), *site.rglob("*.css")]):
        for tag in _FETCHES.findall(page.read_text(encoding="utf-8")):
            found.append(f"{page.relative_to(site)}: {tag}")
    return found


def build(work: Path) -> Path:
    """Build the site in a folder and return where it is.

    Raises:
        SystemExit: A link or heading is not there, or a page would fetch something from another host.
    """
    config = write_source(work)
    command = [sys.executable, "-m", "zensical", "build", "--clean", "--strict", "--config-file", str(config)]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "dumb"}
    if failed := subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode:
        raise SystemExit(failed)
    site = work / "site"
    if outside := fetched_from_outside(site):
        raise SystemExit("\n".join(["the site would fetch from outside:", *outside]))
    return site


def main() -> None:
    """Build the site in site/."""
    site = build(WORK)
    shutil.rmtree(SITE, ignore_errors=True)
    shutil.move(site, SITE)
    print(f"{SITE}/index.html")


if __name__ == "__main__":
    main()
