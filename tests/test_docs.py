"""The documentation says nothing that the program does not know: commands, options, recipes, keys, functions, links.

What the pages of docs/start, docs/how-to and docs/explanation say is also run, by `make docs-test`.
"""

import json
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
import typer
from tools import docs_test
from tools.docs_test import NOTEBOOK, blocks, missing, run_page, run_pages, shell_environment, shorten

import masksmith as ms
from masksmith.cli import app
from masksmith.recipes.recipe import load_recipe
from masksmith.recipes.sources import list_recipes

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
OTHER_PROGRAMS = {"--seconds", "--memory", "--side", "--images", "--jobs"}
"""Options of this project's tools and benchmarks."""
RECIPES = {one.name for one in list_recipes()}
CLI = typer.main.get_command(app)


@cache
def values() -> dict:
    return load_recipe("auto").model_dump(mode="json")


def knows(key: str) -> bool:
    """Whether a recipe has a dotted key; what is null, free or an item of a list may hold anything."""
    node = values()
    for part in key.split("."):
        if isinstance(node, list) and re.fullmatch(r"\d+:?", part):
            node = node[int(part[0])] if node and part.isdigit() else None
        elif isinstance(node, dict) and node:
            if part not in node:
                return False
            node = node[part]
        else:
            return node is None or isinstance(node, dict)
    return True


def snippets(text: str) -> list[str]:
    """Every command line of masksmith that a page shows, in code blocks and between backquotes, without its comment."""
    text = text.replace("\\\n", " ")
    fenced = "\n".join(re.findall(r"^```\w*[^\n]*\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    outside = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = re.findall(r"^(?:\$ )?(masksmith\s.*)$", fenced, re.MULTILINE)
    lines += re.findall(r"^ {4,}(masksmith\s.*)$", outside, re.MULTILINE)
    inline = re.findall(r"(?<!`)`(masksmith\s[^`]*)`(?!`)", outside)
    shown = [one for one in [*lines, *inline] if "|| echo" not in one]  # else it is meant to be refused
    return [re.split(r"\s+#|\s[|>&;]+\s|\s&$", one)[0] for one in shown]


def wrong_words(snippet: str) -> list[str]:
    """What the command line does not know of a snippet; capitals and dots stand for what a person fills in."""
    words = [word.strip("[]()") for word in shlex.split(snippet.replace("\n", " "))[1:]]
    command, wrong = CLI, []
    while words and words[0].startswith("-"):
        wrong += [] if words[0] in options(command) else [words[0]]
        words.pop(0)
    while words and hasattr(command, "commands"):
        name = words.pop(0)
        if not name.islower():
            return wrong
        if name not in command.commands:
            return [*wrong, name]
        command = command.commands[name]
    for word, after in zip(words, [*words[1:], ""], strict=False):
        option, _, value = word.partition("=")
        if not re.fullmatch(r"--?[a-zA-Z][a-z-]*", option):
            continue
        value = value or after
        if option not in options(command):
            wrong.append(word)
        else:
            unknown_recipe = (
                option == "--recipe" and re.fullmatch(r"[a-z0-9-]+", value) and value not in RECIPES
            )
            unknown_key = option == "--set" and "=" in value and not knows(value.partition("=")[0])
            wrong += [f"{option} {value}"] if unknown_recipe or unknown_key else []
    return wrong


def options(command) -> set[str]:
    return {"--help", *(name for one in command.params for name in (*one.opts, *one.secondary_opts))}


def every_option(command) -> set[str]:
    return options(command).union(*(every_option(one) for one in getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_exists(page):
    text = page.read_text()
    wrong = {snippet: found for snippet in snippets(text) if (found := wrong_words(snippet))}
    mentioned = set(re.findall(r"(?<!`)`(--[a-z][a-z-]+)", text))
    assert not wrong
    assert not mentioned - every_option(CLI) - OTHER_PROGRAMS
    functions = set(re.findall(r"\bms\.([a-z_]+)\(", text))
    assert functions <= set(ms.__all__)


def test_a_wrong_word_is_seen():
    text = "`masksmith trian P`\n\n    masksmith compete D --outt P  # so\n\n"
    text += "```console\n$ masksmith tune P --recipe x\n```\n"
    found = [wrong_words(one) for one in snippets(text)]
    assert found == [["--recipe"], ["--outt"], ["trian"]]
    assert wrong_words("masksmith train P --recipe uato --set training.epochs=3") == [
        "--recipe uato",
        "--set training.epochs=3",
    ]
    assert not wrong_words(
        "masksmith -q train P --recipe my.yaml --set training.stages.0.epochs=3 [--scale small]"
    )


@pytest.mark.parametrize(
    "page", [page for page in run_pages() if page != NOTEBOOK], ids=lambda page: page.stem
)
def test_commands_of_pages_that_are_run_are_whole(page):
    for block in blocks(page):
        for command, _ in block.commands() if block.kind == "console" else ():
            for one in snippets(f"```console\n$ {command}\n```"):
                words, parser = shlex.split(one)[1:], CLI
                while words and words[0].startswith("-"):
                    words.pop(0)
                while hasattr(parser, "commands"):
                    parser = parser.commands[words.pop(0)]
                parser.make_context(parser.name, words)  # raises what the command line would say


def test_links_and_pictures_of_pages_exist():
    broken = []
    for page in [page for page in PAGES if page.parent.name not in ("systems", "decisions")]:
        for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text()):
            made = {"commands.md", "recipe-keys.md", "python.md", "notebook.md", "recipe.schema.json"}
            if not (page.parent / target).exists() and Path(target).name not in made:
                broken.append(f"{page.relative_to(ROOT)}: {target}")
    assert not broken


def test_the_notebook_is_stripped_and_its_cells_are_python():
    notebook = json.loads(NOTEBOOK.read_text())
    assert notebook["nbformat"] == 4
    for number, cell in enumerate(notebook["cells"], start=1):
        assert cell["cell_type"] in ("code", "markdown"), number
        if cell["cell_type"] == "code":
            assert (cell["outputs"], cell["execution_count"]) == ([], None), number
            compile("".join(cell["source"]), f"cell {number}", "exec")


def test_a_command_that_does_not_end_is_named_and_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(docs_test, "LONGEST_S", 0.2)
    (tmp_path / "page.md").write_text("```console\n$ echo a; sleep 60 | cat\n```\n")
    says = r"page.md:1: echo a; sleep 60 \| cat: exit code 124\na\n\nstopped after 0.2 s$"
    with pytest.raises(
        docs_test.Failed, match=says
    ):  # at once: what bash has started would keep its output open
        run_page(tmp_path / "page.md", tmp_path, shell_environment(tmp_path / "bin"), "1s")


def test_the_runner_runs_writes_compares_and_fails(tmp_path):
    page = tmp_path / "page.md"
    shell = shell_environment(tmp_path / "bin")
    good = (
        '```yaml title="sub/a.yaml"\nname: x\n```\n```console\n$ cat \\\n    sub/a.yaml; echo "took 12s for ab12cd34"\n'
        "name: x\ntook 7s … 0badcafe\n```\n<!-- not run: it fails -->\n```console\n$ false\n```\n"
        '```python\nx = 20\nprint("x =", x + 1)\n```\n```text\nx = 5\n```\n'
    )
    page.write_text(good)
    assert run_page(page, tmp_path, shell, "1s") == 3
    for bad, message in (
        ("```console\n$ true\n$ false\n```\n", "page.md:1: false: exit code 1"),
        ("\n```console\n$ echo a\nb\n```\n", r"page.md:2: echo a: did not print \['b'\]; it printed\na"),
        ("```python\n1 / 0\n```\n", "page.md:1: ZeroDivisionError"),
        ("```python\nprint(1)\n```\n```text\none\n```\n", r"page.md:1: did not print \['one'\]"),
    ):
        page.write_text(bad)
        with pytest.raises(Exception, match=message) as error:
            run_page(page, tmp_path, shell, "1s")
        assert type(error.value).__name__ == "Failed"
    slow = 'echo "masksmith: --budget: give more"; echo masksmith compete D --budget 9m | grep 4s'  # of 1, 2, 4, 8 s
    page.write_text(f"```console\n$ {slow}\nmasksmith compete D --budget 4s\n```\n")
    assert run_page(page, tmp_path, shell, "1s") == 1
    assert shorten("masksmith compete d -o p --budget 1h30m", "40s").endswith("--budget 40s")
    assert shorten("masksmith compete d -o p --budget +10s", "40s").endswith("--budget +10s")
    assert missing(["score 0.81 ± 0.02"], "score 0.7 ± 0.1\n") == []
    assert missing(["takes 14m33s, 4 GB"], "takes 41s, 12 GB\n") == []
    assert missing(["auto-1aebe5c2/fold 0"], "auto-c7539d45/fold 1\n") == []


def test_the_reference_has_every_command_key_and_function():
    from tools.docs_site import command_page, notebook_page, python_page, recipe_page

    commands = command_page()
    for name in CLI.commands:
        assert f"## masksmith {name}" in commands
    assert "`--budget`, `-b`" in commands
    assert "### masksmith member add" in commands
    keys = recipe_page()
    for text in (
        "### training.stages[]",
        "`stratify`",
        "spread evenly: the 11 coverage classes",
        "## Ensemble",
    ):
        assert text in keys, text
    python = python_page()
    assert all(
        f"::: masksmith.pipeline.{name}" in python for name in ms.__all__ if hasattr(ms.pipeline, name)
    )
    assert "```python" in notebook_page()


def test_what_a_site_would_fetch_from_outside_is_seen(tmp_path):
    from tools.docs_site import fetched_from_outside

    (tmp_path / "good.html").write_text(
        '<link rel="canonical" href="https://x.org/a"><a href="https://x.org">x</a><script src="a.js"></script>'
    )
    assert not fetched_from_outside(tmp_path)
    (tmp_path / "bad.html").write_text(
        '<script defer src="https://cdn.org/a.js"></script><img src=//cdn.org/a.png>'
    )
    (tmp_path / "bad.css").write_text("@font-face { src: url(https://fonts.org/a.woff) }")
    assert [line.partition(":")[0] for line in fetched_from_outside(tmp_path)] == [
        "bad.css",
        "bad.html",
        "bad.html",
    ]
