import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import masksmith as ms
from masksmith.cli import parse_shape
from masksmith.core.errors import InputError

VERBS = (
    "check",
    "folds",
    "train",
    "predict",
    "tune",
    "submit",
    "report",
    "score",
    "convert",
    "recipes",
    "compete",
    "plan",
    "noise",
    "example",
    "vocabulary",
)


def masksmith(*arguments, **options):
    command = [sys.executable, "-m", "masksmith", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def test_help_lists_every_verb():
    done = masksmith("--help")
    assert done.returncode == 0
    assert all(f"  {verb} " in done.stdout for verb in VERBS)


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments):
    code = (
        "import sys; sys.argv = ['masksmith', *sys.argv[1:]]\n"
        "from masksmith.cli import main\n"
        "try:\n    main()\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'numpy', 'cv2', 'pandas', 'plotly', 'lightning_fabric'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_imports_neither_torch_nor_numpy():
    code = "import sys, masksmith; assert not {'torch', 'numpy'} & set(sys.modules); print(dir(masksmith))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert all(repr(verb) in done.stdout for verb in VERBS)


def test_reading_recipes_imports_no_torch():
    code = (
        "import sys, masksmith\n"
        "from masksmith.recipes.recipe import load_recipe\n"
        "from masksmith.recipes.sources import list_recipes\n"
        "names = [one.name for one in list_recipes('recipe')]\n"
        "hashes = {load_recipe(name).hash for name in names}\n"
        "assert len(names) == len(hashes) > 20, names\n"
        "heavy = {'torch', 'timm', 'plotly', 'lightning_fabric'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_usage_errors_exit_with_2():
    done = masksmith("compete")
    assert done.returncode == 2
    assert "Missing argument" in done.stderr
    assert "Traceback" not in done.stderr


def test_recipes_lists_them():
    done = masksmith("recipes")
    assert done.returncode == 0
    assert "auto" in done.stdout


def test_score(example):
    done = masksmith("score", example / "solution.csv", example / "solution.csv", "--metric", "tgs_map")
    assert done.returncode == 0
    assert done.stdout.startswith("tgs_map: 1.0000 on 8 images (predicting nothing: ")
    assert "\nrun-lengths: tgs: absolute starts (otherwise " in done.stdout
    path = example / "solution.csv"
    done = masksmith("score", path, path, "--metric", "tgs_map", "--dialect", "siim")
    assert done.returncode == 2
    assert "--dialect siim: " in done.stderr


@pytest.mark.parametrize("text", ["101", "101x", "axb", "0x5", "1x2x3"])
def test_bad_shapes(text):
    with pytest.raises(InputError, match=f"--shape {text}: expected HEIGHTxWIDTH"):
        parse_shape(text)


def test_shape():
    assert parse_shape("101X64") == (101, 64)


def test_unknown_attribute():
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        ms.trian  # noqa: B018


@pytest.mark.slow
@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal(example, tmp_path, sent, code):
    from tests.conftest import TINY

    settings = [f"--set={key}={value}" for key, value in (TINY | {"training.stages.2.epochs": 400}).items()]
    command = [
        sys.executable,
        "-m",
        "masksmith",
        "compete",
        example / "data",
        "--out",
        tmp_path / "out",
        *settings,
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        for line in process.stderr:
            if "epoch 2/" in line:
                process.send_signal(sent)
                break
        deadline = time.monotonic() + 180  # two processes may share a slow core
        while process.poll() is None and time.monotonic() < deadline:
            process.stderr.readline()
        assert process.returncode == code
    kept = list((tmp_path / "out" / "runs").rglob("epoch_*.json"))
    assert kept
    assert not list((tmp_path / "out").rglob("*.masksmith-tmp"))


@pytest.mark.parametrize(("stopped", "code"), [(None, 0), (130, 130), (143, 143)])
def test_compete_hands_the_budget_on_and_exits_as_it_ended(monkeypatch, tmp_path, stopped, code):
    from typer.testing import CliRunner

    from masksmith.cli import app
    from masksmith.pipeline import Result

    calls = []

    def compete(data, **options):
        calls.append(options)
        return Result(tmp_path, "r", None, None, None, budget="1s of 20m00s", stopped=stopped)

    monkeypatch.setattr(ms, "compete", compete, raising=False)
    arguments = [
        "compete",
        str(tmp_path),
        "--out",
        "p",
        "--budget",
        "20m",
        "--device",
        "cpu",
        "--dialect",
        "dsb",
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code
    asked = {"budget": "20m", "device": "cpu", "dialect": "dsb"}
    assert calls == [{"out": Path("p"), "recipe": "auto", "overrides": (), **asked}]
    assert "budget: 1s of 20m00s" in done.output


def test_a_bad_budget_exits_with_2(example, tmp_path):
    done = masksmith("compete", example / "data", "--out", tmp_path / "p", "--budget", "soon")
    assert done.returncode == 2
    assert "--budget soon: expected a duration such as 90s, 20m" in done.stderr
    assert not (tmp_path / "p").exists()
