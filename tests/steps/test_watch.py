"""`masksmith watch`: a page on a terminal, lines elsewhere, and an end."""

import io
import json
import subprocess
import sys

import pytest
from rich.console import Console
from typer.testing import CliRunner

from masksmith.cli import app
from masksmith.core.errors import InputError
from masksmith.core.locks import LOCK, folder_lock
from masksmith.project.live import look
from masksmith.steps.watch import follow, last_pictures, line_of, sparkline
from tests.project.test_live import dead_pid, held_by, under_way


def console(**settings):
    return Console(file=io.StringIO(), width=120, **settings)


def test_lines_until_the_process_ends(project):
    under_way(project)
    out, looks = console(), []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            lock.__exit__(None, None, None)
            held_by(project, f"pid {dead_pid()} on {look(project).process.host}")

    lock = folder_lock(project)
    lock.__enter__()
    live = follow(project, console=out, sleep=sleep)
    lines = out.file.getvalue().splitlines()
    assert live.state == "stopped"
    assert looks == [10.0, 10.0]
    assert len(lines) == 3
    assert "training smoke-" in lines[0]
    assert "loss" in lines[0]
    assert "no process is at work" in lines[2]


def test_a_process_between_two_parts_of_its_work_is_waited_for(project):
    waits = []
    live = follow(project, console=console(), every_s=10, sleep=waits.append)  # the lock names this process
    assert live.state == "done"
    assert waits == [10, 10, 10]

    def interrupted(_seconds):
        raise KeyboardInterrupt

    assert follow(project, console=console(), sleep=interrupted).state == "done"


def test_a_page_with_curves_and_pictures(project):
    for colours, has, count in (("truecolor", "▀", 500), (None, ".png", 3)):
        out = console(force_terminal=True, color_system=colours)
        follow(project, console=out, once=True)
        page = out.file.getvalue()
        assert "out of fold: tgs_map" in page
        assert "curves of smoke-" in page
        assert page.count(has) >= count
    out = console(force_terminal=True, color_system="truecolor")
    held_by(project, f"pid {dead_pid()} on {look(project).process.host}")
    assert follow(project, console=out, sleep=pytest.fail).state == "done"
    assert "curves of" in out.file.getvalue()


def test_pictures_are_those_of_held_out_images(project):
    live = look(project)
    shown = last_pictures(live, count=2)
    assert len(shown) == 2
    assert all(len(one.panels) == 4 and one.panels[0].shape == (101, 101, 3) for one in shown)
    (project / "cache" / "target.json").unlink()
    assert last_pictures(live) == []


def test_names_do_not_command_the_terminal(project):
    named = project.rename(project.with_name("[red]\x1b[31mproject"))
    out = console(force_terminal=True, color_system=None)
    follow(named, console=out, once=True)
    assert "[red]?[31mproject" in out.file.getvalue()
    assert "\x1b[31mproject" not in out.file.getvalue()


def test_the_command(project, tmp_path):
    done = CliRunner().invoke(app, ["watch", str(project), "--once"])
    assert done.output.splitlines()[0] == line_of(look(project))
    done = CliRunner().invoke(app, ["watch", str(project), "--once", "--json"])
    assert json.loads(done.output)["state"] == "done"
    with pytest.raises(InputError, match="none: not a masksmith project"):
        follow(tmp_path / "none")
    for seconds in (0.0, float("nan")):
        with pytest.raises(InputError, match=r"--every .*expected seconds"):
            follow(project, every_s=seconds)


def test_sparklines():
    assert sparkline(tuple(enumerate([0.0, 1.0, 6.0, 8.0])), 8) == "▁▂▇█"
    assert sparkline(tuple(enumerate([5.0] * 9)), 3) == "▁▁▁"
    assert sparkline(((1, float("nan")), (2, 1.0)), 8) == " ▁"
    assert sparkline(((1, float("nan")),), 8) == " "


@pytest.mark.slow
def test_a_reader_that_goes_away(project):
    command = [sys.executable, "-m", "masksmith", "watch", str(project), "--every", "0.2", "--json"]
    with (
        folder_lock(project),
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
    ):
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr.read() == b""
    assert (project / LOCK).exists()
