"""Run every command of the documentation: `make docs-test`, or `python tools/docs_test.py [PAGE …] [--budget 90s]`.

The pages under docs/start, docs/how-to and docs/explanation, and docs/notebook.ipynb, are run from top to bottom, each
in an empty folder of its own:

- ```console: each line after "$ " by bash; the lines below it are what it prints, compared loosely: numbers and hashes
  may differ, "…" stands for anything, lines that are not shown do not count. It must exit with 0.
- ```python: in one interpreter for the page; a ```text behind it is what it prints, compared in the same way.
- a block with title="FILE" is written to FILE.
- <!-- not run: REASON --> before a block leaves it out.

Budgets of `compete` above --budget are cut to it, so that a page may say ten minutes.
"""

import argparse
import ast
import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NOTEBOOK = DOCS / "notebook.ipynb"
LONGEST_S = 900.0  # of a command
SHOW = False  # whether what a block prints is shown
RUN_FOLDERS = ("start", "how-to", "explanation")
_FENCE = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^\n]*?) -->\n)?```(?P<kind>\w+)(?P<options>[^\n]*)\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
_BUDGET = re.compile(r"(--budget|-b)([ =])(\+?)((?:\d+[hms])+)")
_VARIES = re.compile(r"[+-]?\b[0-9a-f]{8}\b|[+-]?\d+(?:[.,:x]\d+)*(?:[hms](?:\d+[ms])*\b)?")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: Path
    line: int
    kind: str
    text: str
    title: str = ""
    reason: str = ""
    """Why it is not run; empty: it is run."""

    @property
    def where(self) -> str:
        """Page and line."""
        return f"{self.page.relative_to(ROOT) if self.page.is_relative_to(ROOT) else self.page}:{self.line}"

    def commands(self) -> Iterator[tuple[str, list[str]]]:
        """Yield (command, lines that it prints) of a console block; a backslash at its end continues a line."""
        command, printed = "", list[str]()
        for line in self.text.splitlines():
            if command.endswith("\\"):
                command = f"{command[:-1]}{line.strip()}"
            elif line.startswith("$ "):
                if command:
                    yield command, printed
                command, printed = line.removeprefix("$ "), []
            else:
                printed.append(line)
        if command:
            yield command, printed


def run_pages() -> list[Path]:
    """Return the pages whose commands are run, in the order of the navigation."""
    return [page for folder in RUN_FOLDERS for page in sorted((DOCS / folder).glob("*.md"))] + [NOTEBOOK]


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, or the code cells of a notebook."""
    text = page.read_text(encoding="utf-8")
    if page.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        return [
            Block(page, number, "cell", "".join(cell["source"]))
            for number, cell in enumerate(cells, start=1)
            if cell["cell_type"] == "code"
        ]
    found = []
    for match in _FENCE.finditer(text):
        title = re.search(r'title="([^"]*)"', match["options"])
        line = text.count("\n", 0, match.start()) + 1
        named = title[1] if title else ""
        found.append(Block(page, line, match["kind"], match["text"], named, match["reason"] or ""))
    return found


def plain(line: str) -> str:
    """Return a line without what differs from run to run."""
    return " ".join(_VARIES.sub("#", line).split())


def missing(expected: Sequence[str], printed: str) -> list[str]:
    """Return the expected lines that were not printed; "…" stands for anything."""
    lines = [plain(line) for line in printed.splitlines()]
    absent = []
    for line in expected:
        parts = [re.escape(plain(part)) for part in line.split("…")]
        pattern = re.compile(".*".join(parts))
        if line.strip(" …") and not any(pattern.search(one) for one in lines):
            absent.append(line)
    return absent


def _seconds(duration: str) -> int:
    return sum(
        int(number) * {"h": 3600, "m": 60, "s": 1}[unit]
        for number, unit in re.findall(r"(\d+)([hms])", duration)
    )


def shorten(command: str, budget: str) -> str:
    """Return a command whose training has at most ``budget``; `masksmith plan` trains nothing."""

    def cut(found: re.Match[str]) -> str:
        kept = found[4] if _seconds(found[4]) <= _seconds(budget) else budget
        return f"{found[1]}{found[2]}{found[3]}{kept}"

    return _BUDGET.sub(cut, command) if " compete " in command else command


class Failed(Exception):
    """A block did not do what its page says."""


def _run_command(command: str, folder: Path, environment: dict[str, str], budget: str) -> tuple[int, str]:
    """Return exit code and output of a command; a budget that is too small for a slow machine is doubled, thrice.

    A command that takes longer than ``LONGEST_S`` is killed: exit code 124, as of `timeout`.
    """
    for times in (1, 2, 4, 8):
        started = subprocess.Popen(
            ["bash", "-c", shorten(command, f"{times * _seconds(budget)}s")],
            cwd=folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            output, _ = started.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            os.killpg(started.pid, signal.SIGKILL)  # what bash has started, too
            output, _ = started.communicate()
            return 124, f"{output}\nstopped after {LONGEST_S} s"
        if not (started.returncode and "masksmith: --budget: " in output):
            break
    return started.returncode, output


def _run_console(block: Block, folder: Path, environment: dict[str, str], budget: str) -> None:
    for command, expected in block.commands():
        code, output = _run_command(command, folder, environment, budget)
        if code:
            raise Failed(f"{block.where}: {command}: exit code {code}\n{output}")
        if SHOW:
            print(f"$ {command}\n{output}", flush=True)
        if absent := missing(expected, output):
            raise Failed(f"{block.where}: {command}: did not print {absent}; it printed\n{output}")


def _run_python(block: Block, namespace: dict[str, Any], expected: Sequence[str]) -> None:
    """Run a block; what a notebook's cell ends with is shown as a notebook would show it."""
    body = ast.parse(block.text, filename=block.where)
    last = body.body.pop() if block.kind == "cell" and isinstance(body.body[-1], ast.Expr) else None
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(body, block.where, "exec"), namespace)
            if isinstance(last, ast.Expr):
                shown = eval(compile(ast.Expression(last.value), block.where, "eval"), namespace)
                for way in ("_repr_html_", "_repr_png_", "__repr__"):
                    getattr(shown, way, str)()
    except Exception as error:
        raise Failed(f"{block.where}: {type(error).__name__}: {error}") from error
    if SHOW:
        print(printed.getvalue(), flush=True)
    if absent := missing(expected, printed.getvalue()):
        raise Failed(f"{block.where}: did not print {absent}; it printed\n{printed.getvalue()}")


def run_page(page: Path, folder: Path, environment: dict[str, str], budget: str) -> int:
    """Run the blocks of a page in a folder; return how many were run.

    Raises:
        Failed: The first block that fails, or prints something else.
    """
    namespace: dict[str, Any] = {"__name__": "__main__"}
    count = 0
    listed = blocks(page)
    with contextlib.chdir(folder):
        for block, after in zip(listed, [*listed[1:], None], strict=True):
            if block.reason:
                continue
            if block.title:
                Path(block.title).parent.mkdir(parents=True, exist_ok=True)
                Path(block.title).write_text(block.text, encoding="utf-8")
            elif block.kind == "console":
                _run_console(block, folder, environment, budget)
            elif block.kind in ("python", "cell"):
                follows = after is not None and after.kind == "text"
                _run_python(block, namespace, after.text.splitlines() if after and follows else ())
            else:
                continue
            count += 1
    return count


def shell_environment(folder: Path) -> dict[str, str]:
    """Return an environment in which `masksmith` and `python` are those of this interpreter, with one thread."""
    folder.mkdir()
    for name, arguments in (("masksmith", "-m masksmith "), ("python", "")):
        path = folder / name
        path.write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        path.chmod(0o755)
    return {
        **os.environ,
        "PATH": f"{folder}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]).rstrip(
            os.pathsep
        ),
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "120",
    }


def main() -> int:
    """Run the pages; say which block fails, and go on with the next page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pages", nargs="*", type=Path, help="default: all")
    parser.add_argument(
        "--show", action="store_true", help="print what every block prints, to be pasted into a page"
    )
    parser.add_argument(
        "--budget", default="90s", help="most that a training of a page may take (default: 90s)"
    )
    given = parser.parse_args()
    globals()["SHOW"] = given.show
    failed = 0
    with tempfile.TemporaryDirectory(prefix="docs-test-") as work:
        environment = shell_environment(Path(work) / "bin")
        for number, page in enumerate([path.resolve() for path in given.pages] or run_pages()):
            folder = Path(work) / f"{number:02d}-{page.stem}"
            folder.mkdir()
            started = time.monotonic()
            try:
                count = run_page(page, folder, environment, given.budget)
                print(
                    f"ok      {page.relative_to(DOCS)}: {count} blocks, {time.monotonic() - started:.0f} s",
                    flush=True,
                )
            except Failed as error:
                failed += 1
                print(f"FAILED  {error}", flush=True)
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
