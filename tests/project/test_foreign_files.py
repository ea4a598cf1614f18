"""Foreign files are never touched: refused folders stay as they are, and so do foreign files inside a project."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.ledger import Ledger
from masksmith.core.locks import LOCK
from masksmith.project.folder import Project
from tests.test_cli import masksmith

pytestmark = pytest.mark.slow

VERBS = {
    "check": lambda data, out: ms.check(data, out),
    "compete": lambda data, out: ms.compete(data, out=out, recipe="smoke"),
    "compete with a budget": lambda data, out: ms.compete(data, out=out, budget="5m"),
    "plan": lambda data, out: ms.plan(data, budget="5m", out=out),
    "folds": lambda _data, out: ms.folds(out, recipe="smoke"),
    "train": lambda _data, out: ms.train(out, recipe="smoke"),
    "predict": lambda _data, out: ms.predict(out),
    "tune": lambda _data, out: ms.tune(out),
    "submit": lambda _data, out: ms.submit(out),
    "report": lambda _data, out: ms.report(out),
    "noise": lambda _data, out: ms.noise(out),
    "lr": lambda _data, out: ms.lr(out, recipe="smoke"),
}
NAMES = (
    *(".x.tmp", ".x.12.tmp", ".x.old", ".bashrc.12.old", ".lock", ".hidden", "notes.txt", ".masks.12.old"),
    *("cache", "masks", "runs", "ensemble", "report.html", "check.json", "data.json", "submission.csv"),
)
CONTENTS = st.one_of(
    st.binary(max_size=8), st.sampled_from([b"{}", b"[]", b"5", b'{"format": 1}', b"pid 5 on host\n"])
)
LINKS = st.sampled_from([Path("nowhere"), Path(), Path("notes.txt"), Path("../elsewhere")])
TREES = st.recursive(
    st.dictionaries(st.sampled_from(NAMES), CONTENTS | LINKS, min_size=1, max_size=4),
    lambda inner: st.dictionaries(
        st.sampled_from(NAMES), CONTENTS | LINKS | inner | st.just({}), min_size=1, max_size=4
    ),
    max_leaves=8,
)


def plant(folder, tree):
    """Make a folder: bytes are files, paths links, dictionaries folders."""
    folder.mkdir(exist_ok=True)
    for name, value in tree.items():
        if isinstance(value, dict):
            plant(folder / name, value)
        elif isinstance(value, bytes):
            (folder / name).write_bytes(value)
        else:
            (folder / name).symlink_to(value)


def look(folder):
    """Return everything below a folder: names, bytes, link targets."""
    found = {}
    for place, folders, names in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *names)):
            if path.is_symlink():
                found[str(path)] = path.readlink()
            else:
                found[str(path)] = None if path.is_dir() else path.read_bytes()
    return found


def refused_by(verb, data, out):
    with pytest.raises(InputError) as caught:
        VERBS[verb](data, out)
    return str(caught.value)


@settings(deadline=None, max_examples=12, suppress_health_check=[HealthCheck.too_slow])
@given(tree=TREES)
def test_a_refused_folder_is_as_it_was(example, tmp_path_factory, tree):
    root = tmp_path_factory.mktemp("home")
    plant(root / "elsewhere", {".x.12.masksmith-tmp": b"of another project"})
    plant(root / "out", tree)
    before = look(root)
    for verb in VERBS:
        said = refused_by(verb, example / "data", root / "out")
        assert "no masksmith project, and it holds" in said or "not a masksmith project" in said, (verb, said)
        assert look(root) == before, verb


def test_a_path_that_is_not_a_folder_is_refused_and_nothing_is_created(example, download, tmp_path):
    (tmp_path / "file").write_text("mine")
    links = {"dangling": "nowhere", "loop": "loop", "linked": "home", "to a file": "file"}
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    plant(tmp_path / "home", {"a.txt": b"mine"})
    places = {
        "file": "file: cannot be written as a folder, it is a file",
        "to a file": "to a file: cannot be written as a folder, it is a file",
        "dangling": "dangling: cannot be written as a folder, it is a link that leads nowhere",
        "loop": "loop: cannot be written as a folder, it is a link that leads nowhere",
        "linked": "linked: it is no masksmith project, and it holds 'a.txt'",
        "file/below": "below: cannot be written as a folder",
        "dangling/below": "below: cannot be written as a folder",
        "loop/below": "below: cannot be written as a folder",
    }
    before = look(tmp_path)
    for (place, message), verb in itertools.product(places.items(), ("check", "compete", "plan", "folds")):
        said = refused_by(verb, example / "data", tmp_path / place)
        assert message in said or f"{place}: not a masksmith project (no data.json)" in said, (verb, said)
        assert look(tmp_path) == before, (place, verb)
    for verb in ("check", "compete", "plan"):
        assert "the output folder lies inside the data" in refused_by(
            verb, download, download / "train" / "new"
        )
    assert look(tmp_path) == before
    done = masksmith("check", example / "data", "--out", tmp_path / "home")
    assert done.returncode == 2
    assert "home: it is no masksmith project, and it holds 'a.txt'; choose another --out" in done.stderr


def test_another_programs_data_json_is_refused(example, trained, tmp_path):
    whole = json.loads((trained / "data.json").read_text())
    plant(tmp_path / "out", {})
    for value in ({key: whole[key] for key in whole if key != "train"}, whole | {"format": "1"}, [whole]):
        (tmp_path / "out" / "data.json").write_text(json.dumps(value))
        assert "it is no masksmith project" in refused_by("check", example / "data", tmp_path / "out")
        assert "its data.json is not ours" in refused_by("folds", example / "data", tmp_path / "out")
    (tmp_path / "out" / "data.json").unlink()
    (tmp_path / "out" / "data.json").symlink_to(trained / "data.json")
    assert "it is no masksmith project" in refused_by("check", example / "data", tmp_path / "out")


def test_a_first_check_that_was_killed_anywhere_can_be_repeated(download, tmp_path):
    """At each write point until the catalogue is there, and a little later."""
    code = (
        "import os, sys, masksmith as ms\n"
        "from masksmith.core import files\n"
        "check = ms.check\n"  # imported before the forks
        "for at in range(6):\n"
        "    if not os.fork():\n"
        "        left = iter(range(at, -1, -1))\n"
        "        files.on_write = lambda path, phase: next(left) or os._exit(0)\n"
        "        check(sys.argv[1], f'{sys.argv[2]}/{at}')\n"
        "        os._exit(1)\n"
        "    assert os.wait()[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", code, download, tmp_path], check=True, timeout=120)
    left = [{path.name for path in (tmp_path / str(at)).glob("*")} for at in range(6)]
    assert {LOCK} in left
    assert any("masksmith-tmp" in name for names in left if "data.json" not in names for name in names)
    assert "data.json" in left[-1]
    for at in range(6):
        assert ms.check(download, tmp_path / str(at)).facts["training images"] == 40
    assert not list(tmp_path.rglob("*masksmith-tmp"))


def test_foreign_files_in_a_project_stay_through_every_verb(example, project):
    run = Project.open(project).run()
    names = (
        *(".x.tmp", ".x.12.tmp", ".x.12.old", ".lock", "notes.csv", "notes.npy", "notes.json"),
        *("weights_mine.txt", "epoch_0001.txt", "top_ten.txt", "best_of.json", "last.txt"),
    )
    mine = {
        **dict.fromkeys(names, b"mine"),
        **{".d.tmp": {"a": b"mine"}, ".d.12.old": {"a": b"mine"}, "empty": {}, "link": Path("nowhere")},
    }
    plant(project / "ensemble", {})
    plant(run.interim, {})
    places = [project, *(path for path in project.rglob("*") if path.is_dir())]
    for place in places:
        plant(place, mine)
    before = {
        name: value for name, value in look(project).items() if Path(name).name in mine or "/.d." in name
    }
    assert {"masks", "cache", "oof", "fold_0", "interim"} <= {Path(name).parent.name for name in before}

    run.final(0).with_suffix(".json").unlink()  # the fold is trained again
    for ledger in (Ledger(project), Ledger(project / "cache"), run.ledger):
        ledger.path.unlink()
    VERBS["compete"](example / "data", project)
    for verb in ("check", "folds", "train", "predict", "tune", "submit", "report", "lr"):
        VERBS[verb](example / "data", project)
    after = look(project)
    assert {name: after.get(name, "gone") for name in before} == before


def test_example_replaces_only_what_it_made(tmp_path):
    def make(out):
        return ms.example(out, train=10, test=1)

    trees = {
        "a folder": ({"data": {}}, "data: there already"),
        "a download": ({"data": {"train.csv": b"mine"}}, "data: there already"),
        "an answer": ({"solution.csv": b"mine"}, r"solution\.csv: there already"),
        "a link": ({"data": Path("../elsewhere")}, "data: there already"),
    }
    plant(tmp_path / "elsewhere", {})
    (tmp_path / "file").write_text("mine")
    for name, (tree, message) in trees.items():
        plant(tmp_path / name, tree)
        before = look(tmp_path)
        with pytest.raises(InputError, match=message):
            make(tmp_path / name)
        assert look(tmp_path) == before
    for name in ("file", "file/below"):
        with pytest.raises(InputError, match=rf"{name}.*: (not a folder|cannot be written)"):
            make(tmp_path / name)

    out = tmp_path / "beside"
    plant(out, {"notes.txt": b"mine"})
    make(out)
    (out / "data" / "test.zip").unlink()  # as if it had been killed
    plant(out / "data" / "more", {"notes.txt": b"mine"})
    make(out)
    assert (out / "notes.txt").read_bytes() == (out / "data" / "more" / "notes.txt").read_bytes() == b"mine"
    (out / "data" / "train.csv").write_text("edited")
    before = look(out)
    with pytest.raises(
        InputError, match=r"train\.csv: there already, and `masksmith example` did not make it so"
    ):
        make(out)
    assert look(out) == before
