import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import masksmith as ms
from masksmith.cli import app, main, parse_shape
from masksmith.core.errors import InputError
from masksmith.pipeline import Result

VERBS = (
    *("check", "folds", "train", "predict", "tune", "submit", "report", "score", "convert", "recipes"),
    *("compete", "plan", "noise", "example", "vocabulary", "explore", "explain", "watch"),
)


def masksmith(*arguments, **options):
    command = [sys.executable, "-m", "masksmith", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def test_help_and_recipes_import_nothing_heavy():
    code = """
import sys

def none_of(*names):
    heavy = set(names) & set(sys.modules)
    assert not heavy, heavy

import masksmith
none_of("torch", "numpy")
print(dir(masksmith))
from masksmith.cli import main
for arguments in (["--help"], ["train", "--help"], ["--version"]):
    sys.argv = ["masksmith", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
none_of("torch", "numpy", "cv2", "pandas", "plotly", "lightning_fabric")
from masksmith.recipes.recipe import load_recipe
from masksmith.recipes.sources import list_recipes
names = [one.name for one in list_recipes("recipe")]
assert len({load_recipe(name).hash for name in names}) == len(names) > 20, names
none_of("torch", "timm", "plotly", "lightning_fabric")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert repr(verb) in done.stdout
        assert f"  {verb} " in done.stdout
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        ms.trian  # noqa: B018


@pytest.mark.slow
def test_what_it_prints_and_exits_with(example, tmp_path):
    path = example / "solution.csv"
    done = masksmith("recipes")
    assert (done.returncode, "auto" in done.stdout) == (0, True)
    done = masksmith("score", path, path, "--metric", "tgs_map")
    assert done.returncode == 0
    assert done.stdout.startswith("tgs_map: 1.0000 on 8 images (predicting nothing: ")
    assert "\nrun-lengths: tgs: absolute starts (otherwise " in done.stdout
    for arguments, message in (
        (["compete"], "Missing argument"),
        (["score", path, path, "--metric", "tgs_map", "--dialect", "siim"], "--dialect siim: "),
        (
            ["compete", example / "data", "--out", tmp_path / "p", "--budget", "soon"],
            "--budget soon: expected a duration such as 90s, 20m",
        ),
    ):
        done = masksmith(*arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "p").exists()


def test_what_a_published_system_cannot_be_trained_on_is_refused(
    example, trained, tmp_path, monkeypatch, capsys
):
    """Data of another form, weights that do not fit, chains without an inverse: exit code 2, why, and the way on."""
    ms.example(tmp_path / "siim", layout="siim", train=10, test=2)
    weights = next(trained.glob("runs/*/checkpoints/fold_0/final.safetensors"))
    for data, words, message in (
        (
            tmp_path / "siim/data",
            ["--recipe", "tgs-depth-unet", "--scale", "small"],
            r"model\.scalars: no column 'z'.*is made for TGS Salt's form.*masksmith example OUT --layout tgs",
        ),
        (
            example / "data",
            [
                "--recipe",
                "smoke",
                "--set",
                f"model.encoder_weights={weights}",
                "--set",
                "model.encoder=resnet18",
            ],
            r"final\.safetensors: \d+ of \d+ weights of 'resnet18' do not fit \(first '",
        ),
        (
            example / "data",
            [
                "--recipe",
                "smoke",
                "--set",
                f"training.start_from={trained}",
                "--set",
                "model.encoder=resnet18",
            ],
            r"training\.start_from: .*: \d+ of the \d+ tensors of the encoder do not fit: \d+",
        ),
        (
            example / "data",
            ["--recipe", "smoke", "--set", "size.chain=[{name: refract}, {name: crop}]"],
            r"size: chain\[1\]: a crop has no inverse.*put it first",
        ),
        (
            example / "data",
            ["--recipe", "smoke", "--set", "size.chain=[{name: pad, hw: [64, 64]}]"],
            r"size\.chain: pad to 64x64: smaller than an image, 101x101 there; give a larger one",
        ),
    ):
        command = [
            "masksmith",
            "-q",
            "compete",
            str(data),
            "--out",
            str(tmp_path / f"p-{data.parent.name}"),
            *words,
        ]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as end:
            main()
        said = capsys.readouterr().err
        assert (end.value.code, re.search(message, said) is not None) == (2, True), said
    assert not list(tmp_path.glob("*/runs/*/checkpoints/fold_0/[!.]*"))


def test_shapes():
    assert parse_shape("101X64") == (101, 64)
    for text in ("101", "101x", "axb", "0x5", "1x2x3"):
        with pytest.raises(InputError, match=f"--shape {text}: expected HEIGHTxWIDTH"):
            parse_shape(text)


def test_compete_hands_the_budget_on_and_exits_as_it_ended(monkeypatch, tmp_path):
    calls, ends = [], []

    def compete(data, **options):
        calls.append(options)
        return Result(tmp_path, "r", None, None, None, budget="1s of 20m00s", stopped=ends.pop())

    monkeypatch.setattr(ms, "compete", compete, raising=False)
    asked = {
        "budget": "20m",
        "device": "cpu",
        "dialect": "dsb",
        "task": "instances",
        "metric": "dsb_map",
        "layout": "x",
    }
    options = [f"--{key}={value}" for key, value in asked.items()]
    for stopped, code in ((None, 0), (130, 130), (143, 143)):
        ends.append(stopped)
        done = CliRunner().invoke(app, ["compete", str(tmp_path), "--out", "p", *options])
        assert done.exit_code == code
        plain = {
            "out": Path("p"),
            "recipe": "auto",
            "overrides": (),
            "ignore": (),
            "from_model": None,
            "scale": None,
            "log": (),
            "pseudo_rounds": 0,
            "engine": "local",
        }
        assert calls.pop() == plain | asked
        assert "budget: 1s of 20m00s" in done.output


def test_score_of_folders_prints_and_refuses(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("pred", "truth"):
        (tmp_path / name).mkdir()
        for at in range(4):
            mask = rng.integers(0, 3, (9, 11)).astype(np.uint8)
            mask[0] = 7
            cv2.imwrite(str(tmp_path / name / f"{at}.png"), mask)
    (tmp_path / "places.csv").write_text("id,place\n0,x\n1,x\n2,y\n3,y\n")
    options = [
        "--ignore",
        "7",
        "--groups",
        f"{tmp_path}/places.csv:place",
        "--per-image",
        f"{tmp_path}/each.csv",
    ]
    folders = [str(tmp_path / "pred"), str(tmp_path / "truth")]
    done = CliRunner().invoke(app, ["score", *folders, "--metric", "miou", *options])
    assert done.exit_code == 0, done.output
    for line in (
        r"miou: 0\.\d{4} on 4 images \(predicting class \d everywhere: 0\.\d{4}\)",
        r"± 0\.\d{4} \(standard error\), 80% interval 0\.\d{4} to 0\.\d{4}: 1000 draws of 2 groups",
        r"task: multiclass \(3 values in the true masks\)",
        r"not judged: 7 in the true masks \(11\.11% of the pixels\)",
        r"2      0\.\d{4}  0\.\d{4}  \d\d\.\d\d%",
        r"y      0\.\d{4}  2",
    ):
        assert re.search(f"^{line}$", done.output, re.MULTILINE), (line, done.output)
    assert (tmp_path / "each.csv").read_text().startswith("id,group,miou,miou: 0,miou: 1,miou: 2\n0,x,0.")
    done = CliRunner().invoke(app, ["score", *folders, "--task", "binary"])
    assert isinstance(done.exception, InputError)
