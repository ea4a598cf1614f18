"""The search and the sweep, with folds that are scored by a formula in place of a training."""

import json
import re
import sys
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

import masksmith as ms
from masksmith.cli import app
from masksmith.core.config import read_yaml
from masksmith.core.errors import DiskFullError, InputError, StoppedError
from masksmith.core.randomness import stream
from masksmith.engines import Done
from masksmith.engines.local import LocalEngine
from masksmith.planning.space import parse_space
from masksmith.project.folder import Project
from masksmith.recipes.recipe import load_recipe
from masksmith.steps import searching
from masksmith.steps.scored import Scored, write_scored
from masksmith.steps.searched import short_names, verdict_of
from masksmith.steps.study import Study, need_optuna
from masksmith.steps.trials import Gain

LR = "training.stages.0.optimizer.lr"
BATCH = "training.batch_size"
SPACE = {LR: {"low": 1e-3, "high": 1e-1, "log": True}, BATCH: {"values": [4, 8]}}
HOW = {"recipe": "smoke", "metric": "dice_per_image"}
THREE = ["folds.train=3"]


class Trainer:
    """Scores folds by how near the rate is to 0.03, with noise of the seed and the images."""

    def __init__(self):
        self.scored: list[tuple[str, int]] = []
        self.seconds = 1.0
        self.before = lambda recipe, fold: None
        self.lock = threading.Lock()

    def __call__(self, project, member, path):
        recipe, fold = member.run.recipe, member.fold
        failed = self.before(recipe, fold)
        if failed:
            return {"failed": failed}
        with self.lock:
            self.scored.append((str(path), fold))
        rate = recipe.training.stages[0].optimizer.lr
        names = [name for name in project.folds.inside(fold) if name not in project.blank_train]
        quality = (
            0.8
            - 0.2 * abs(np.log10(rate / 0.03))
            + 0.002 * recipe.seed
            + 0.001 * (recipe.training.batch_size == 4)
        )
        spread = stream(fold).normal(0, 0.05, len(names))  # of the images, alike for all
        hits = np.clip(np.rint(100 * (quality + spread)), 0, 100).astype(np.float32)
        rows = np.stack([hits, 100 - hits, 100 - hits, 0 * hits], axis=1)
        write_scored(path, Scored(names, rows, self.seconds))
        return {"failed": ""}


@pytest.fixture
def trainer(monkeypatch):
    made = Trainer()
    monkeypatch.setattr("masksmith.steps.tasks.score_member", made)
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    out = tmp_path_factory.mktemp("tiny")
    ms.example(out, train=30, test=2)
    return out / "data"


@pytest.fixture
def search(data, tmp_path):
    def run(**changes):
        given = {"out": tmp_path / "p", "space": SPACE, "trials": 5, "overrides": THREE, **HOW} | changes
        return ms.search(data, **given)

    return run


def _values(found):
    return {row["trial"]: (row["state"], row["values"], row["score"]) for row in found.numbers["trials"]}


def test_a_search_finds_the_better_rate_and_says_what_it_is_worth(trainer, search, tmp_path):
    found = search(trials=8)
    numbers = found.numbers
    assert json.loads((tmp_path / "p" / "search.json").read_text()) == numbers
    rows = {row["trial"]: row for row in numbers["trials"]}
    assert sorted(rows, key=lambda one: one or 0) == [None, *range(1, 9)]
    assert rows[None]["values"] == {LR: 0.01, BATCH: 8}  # the recipe's own
    best = rows[numbers["best"]]
    assert best["score"] == max(row["score"] for row in rows.values() if row["state"] == "whole")
    assert best["gain"]["gain"] == pytest.approx(best["score"] - rows[None]["score"])
    given_up = [row for row in rows.values() if row["state"] == "given up"]
    assert given_up
    assert all(len(row["folds"]) < 3 for row in given_up)
    assert (
        len(trainer.scored) == len(set(trainer.scored)) == sum(len(row["folds"]) for row in rows.values()) + 2
    )
    assert list(numbers["noise"]["scores"]) == ["0", "1", "2"]
    assert numbers["noise"]["sd"] == pytest.approx(0.002, abs=0.003)
    verdict = numbers["verdict"]
    assert verdict["better"]
    assert verdict["nested"]["low"] > 0
    assert verdict["optimism"] == pytest.approx(best["gain"]["gain"] - verdict["nested"]["gain"])
    recipe = load_recipe(str(tmp_path / "p" / "best.yaml"))
    assert recipe.training.stages[0].optimizer.lr == best["values"][LR]
    assert recipe.folds.train == 3
    assert "better than the recipe itself" in (tmp_path / "p" / "best.yaml").read_text().partition("name:")[0]
    text, page = str(found), (tmp_path / "p" / "search.html").read_text()
    assert re.search(rf"trial {numbers['best']} .*best", text)
    for part in (
        f"Trial {numbers['best']} scored best of",
        "seed noise: dice_per_image sd",
        "8 trials were asked for",
    ):
        assert part in text
        assert part in page
    assert "https://" not in page.replace(page[page.index("<script>") : page.index("</script>")], "").replace(
        "https://plotly.com", ""
    )


def test_a_stopped_and_a_killed_search_go_on_as_if_they_had_not(trainer, search, tmp_path):
    whole = _values(search(out=tmp_path / "whole"))
    folds, trainer.scored = len(trainer.scored), []
    calls = []

    def stop(recipe, fold):
        calls.append(fold)
        if len(calls) == 9:
            raise StoppedError("stopped by Ctrl-C", exit_code=130)
        if len(calls) == 12:
            raise RuntimeError("killed")

    trainer.before = stop
    found = search()
    assert found.stopped == 130
    assert found.numbers["ended"] == "stopped"
    assert (tmp_path / "p" / "best.yaml").exists()
    with pytest.raises(RuntimeError, match="killed"):
        search()
    assert _values(search()) == whole
    assert len(trainer.scored) == len(set(trainer.scored)) == folds
    (tmp_path / "p" / "search" / "search.db").unlink()  # lost: it draws what it drew
    assert _values(search()) == whole
    assert len(trainer.scored) == folds


def test_a_stop_before_there_is_anything_to_judge(trainer, search):
    def stop(recipe, fold):
        raise StoppedError("stopped by Ctrl-C", exit_code=130)

    trainer.before = stop
    with pytest.raises(StoppedError):
        search()


def test_another_search_is_refused_with_what_differs(trainer, search, tmp_path):
    search(trials=1)
    before = (tmp_path / "p" / "search.json").read_bytes()
    other = {LR: {"low": 1e-3, "high": 0.2, "log": True}, BATCH: {"values": [4, 8]}}
    with pytest.raises(InputError) as error:
        search(space=other, overrides=[*THREE, "training.accumulate=2"], trial="1h")
    for part in (
        "another search was begun here",
        "recipe: training.accumulate: it was 1, now 2",
        f"space: {LR}: it was {{'low': 0.001, 'high': 0.1",
        "--trial: it was none, now 1h",
    ):
        assert part in str(error.value)
    assert BATCH not in str(error.value)
    assert (tmp_path / "p" / "search.json").read_bytes() == before
    (tmp_path / "p" / "search" / "asked.json").write_text("[]")
    with pytest.raises(InputError, match="search: not what masksmith writes"):
        search(trials=1)


def test_damaged_files(trainer, search, tmp_path):
    whole, folds = _values(search(trials=2)), len(trainer.scored)
    database = tmp_path / "p" / "search" / "search.db"
    database.write_bytes(b"no database at all" * 500)
    with pytest.raises(InputError, match=r"search.db: damaged or not readable .* remove it and repeat"):
        search(trials=2)
    database.unlink()
    scores = next((tmp_path / "p" / "trials").glob("*.npz"))
    scores.write_bytes(scores.read_bytes()[:40])
    assert _values(search(trials=2)) == whole
    assert len(trainer.scored) == folds + 1


def test_a_budget_ends_between_two_folds(trainer, search):
    trainer.seconds = 1000.0
    with pytest.raises(InputError) as error:
        search(trials=None, budget="110m")
    assert "too short" in str(error.value)
    assert "8 trainings of a fold of 16m40s each; about 2h13m in all" in str(error.value)
    assert len(trainer.scored) == 1

    def slow(recipe, fold):
        trainer.seconds = 1.0 if recipe.training.stages[0].optimizer.lr == 0.01 else 1e6

    trainer.before = slow
    found = search(trials=None, budget="3h")
    assert found.numbers["ended"] == "the budget is spent"
    states = {row["trial"]: (row["state"], len(row["folds"])) for row in found.numbers["trials"]}
    assert states == {None: ("whole", 3), 1: ("under way", 1)}
    assert "of 3h00m" in str(found)
    trainer.before = lambda recipe, fold: None
    later = search(trials=1)  # the same without a budget: the trial is finished
    assert _values(later)[1][0] in ("whole", "given up")


def test_one_fold_cannot_tell(trainer, search, tmp_path):
    found = search(overrides=["folds.train=1"], trials=3, space={LR: {"values": [0.01, 0.02, 0.03]}})
    assert found.numbers["best"] is not None
    assert not found.numbers["verdict"]["better"]
    assert "only one fold is trained" in (tmp_path / "p" / "best.yaml").read_text()


def test_trials_that_fail_are_left_out_and_ten_in_a_row_end_it(trainer, search):
    def fail(recipe, fold):
        return "it diverged" if recipe.training.stages[0].optimizer.lr != 0.01 else ""

    trainer.before = fail
    found = search(trials=30)
    rows = [row for row in found.numbers["trials"] if row["trial"] is not None]
    assert {(row["state"], row["why"]) for row in rows} == {("failed", "it diverged")}
    assert len(rows) == 10
    assert "10 trials in a row could not be trained, the last one: it diverged" in str(found)
    assert "None of 1 scored above the recipe itself" in str(found)


def test_the_recipe_itself_must_be_trainable(trainer, search):
    trainer.before = lambda recipe, fold: "no memory"
    with pytest.raises(InputError, match="the recipe itself cannot be trained: no memory"):
        search()

    def full(recipe, fold):
        raise DiskFullError("the disk is full")

    trainer.before = full
    with pytest.raises(DiskFullError):
        search()


def test_a_small_space_is_tried_to_its_end(trainer, search):
    space = {BATCH: {"values": [4, 8]}, LR: {"values": [0.01, 0.02]}}
    found = search(space=space, trials=None)
    assert found.numbers["ended"] == "everything in the space was tried"
    tried = [tuple(row["values"].values()) for row in found.numbers["trials"]]
    assert sorted(tried) == [(4, 0.01), (4, 0.02), (8, 0.01), (8, 0.02)]  # the recipe itself is one of them


def test_what_cannot_be_searched(trainer, search, tmp_path, monkeypatch):
    for space, words in (
        (
            {"training.batch_sise": {"low": 1, "high": 2}},
            r"space: training.batch_sise: no key .* did you mean 'batch_size'",
        ),
        ({BATCH: {"low": 3, "high": 1}}, "space: training.batch_size: .*low 3 and high 1"),
        (
            {"model.encoder": {"values": ["tu-test_resnet", "resnet1800"]}},
            "space: model.encoder: 'resnet1800' is refused",
        ),
        ({"training.metrics": {"values": [[], []]}}, "its values make no difference to the recipe"),
    ):
        with pytest.raises(InputError, match=words):
            search(space=space)
    with pytest.raises(InputError, match=r"no end; give --budget \(such as 8h\) or --trials"):
        search(trials=None)
    with pytest.raises(InputError, match="--trials 0: expected 1 or more"):
        search(trials=0)
    with pytest.raises(InputError, match="--trial x: expected a duration"):
        search(trial="x")
    with pytest.raises(InputError, match=r"--trial \+5m: expected a duration such as 10m, without a sign"):
        search(trial="+5m")
    assert not (tmp_path / "p" / "search").exists()
    assert not trainer.scored
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with pytest.raises(InputError, match=r"pip install masksmith\[search\]"):
        search(out=tmp_path / "none")
    assert not (tmp_path / "none").exists()


class Several(LocalEngine):
    """Three tasks at once, the last one finished first."""

    name = "several"

    def run(self, tasks):
        waiting, under_way = iter(tasks), []
        while True:
            while len(under_way) < 3 and (task := next(waiting, None)) is not None:
                runs = [one.arguments["member"]["run"] for one in under_way]
                assert task.name not in [one.name for one in under_way]
                self.shared = getattr(self, "shared", 0) + (task.arguments["member"]["run"] in runs)
                under_way.append(task)
            if not under_way:
                return
            task = under_way.pop()
            yield Done(task, task(), 1.0, "worker")

    def slots(self):
        return [SimpleNamespace(cores=3)]


def test_several_trials_side_by_side(trainer, search, data, tmp_path, monkeypatch):
    engine = Several()
    monkeypatch.setattr("masksmith.steps.work.open_engine", lambda address: engine)
    monkeypatch.setattr("masksmith.steps.tasks.where_of", lambda project, engine: _here(project))
    monkeypatch.setattr("masksmith.steps.tasks._memory_mb", lambda project, member: 0)
    space = {LR: {"values": [0.01, 0.02, 0.03]}, "prediction.batch_size": {"values": [16, 32]}}
    found = search(space=space, trials=None)
    assert engine.shared  # folds of the recipe itself
    rows = found.numbers["trials"]
    assert len(rows) == 6
    assert len(trainer.scored) == len(set(trainer.scored))
    assert {row["state"] for row in rows} <= {"whole", "given up"}
    assert found.numbers["verdict"]["better"]


def _here(project):
    return {"project": str(project.root.resolve()), "remote": False, "driver": "", "loggers": []}


def test_a_sweep_compares_combinations_seed_by_seed(trainer, data, tmp_path):
    out = tmp_path / "p"
    given = {"out": out, "seeds": 2, **HOW}
    grid = ["folds.train=2", f"{LR}=0.003,0.01,0.03", f"{BATCH}=4,8"]
    found = ms.sweep(data, grid, **given)
    numbers = found.numbers
    assert len(trainer.scored) == 6 * 2 * 2
    assert numbers["reference"] == {LR: 0.01, BATCH: 8}  # the recipe's own
    assert numbers["best"] == {LR: 0.03, BATCH: 4}
    best, reference = (
        next(one for one in numbers["combinations"] if one["values"] == numbers[key])
        for key in ("best", "reference")
    )
    assert best["mean"] == pytest.approx(np.mean(best["scores"]))
    assert best["sd"] == pytest.approx(np.std(best["scores"], ddof=1))
    assert best["gain"]["gain"] == pytest.approx(best["mean"] - reference["mean"])
    assert numbers["verdict"]["better"]
    assert load_recipe(str(out / "sweep.yaml")).training.batch_size == 4
    assert "lr=0.03, batch_size=4 scored best of 6" in str(found)
    assert "mean over seeds" in (out / "sweep.html").read_text()
    ms.sweep(data, {LR: [0.03, 0.06], "folds.train": [2]}, **given)  # shares two cells' folds of batch 8
    assert len(trainer.scored) == 6 * 2 * 2 + 2 * 2


def test_a_sweep_that_is_cut_short_or_wrong(trainer, data, tmp_path):
    given = {"out": tmp_path / "p", **HOW}
    grid = ["folds.train=2", f"{LR}=0.003,0.03"]
    with pytest.raises(InputError, match="--set: seed cannot be searched"):
        ms.sweep(data, ["seed=1,2"], **given)
    with pytest.raises(InputError, match=r"--set: training\.batch_size: 0 is refused"):
        ms.sweep(data, [f"{BATCH}=0,4"], **given)
    with pytest.raises(InputError, match="--seeds 0: expected 1 or more"):
        ms.sweep(data, grid, seeds=0, **given)
    with pytest.raises(InputError, match="sweep: 10,201 combinations"):
        ms.sweep(data, [f"{key}={','.join(map(str, range(101)))}" for key in "ab"], **given)
    trainer.before = lambda recipe, fold: "no memory"
    with pytest.raises(InputError, match="no combination could be trained: no memory"):
        ms.sweep(data, grid, **given)
    trainer.before, trainer.seconds = lambda recipe, fold: None, 1e6
    with pytest.raises(InputError, match=r"--budget: .*: no combination is trained"):
        ms.sweep(data, grid, budget="1h", **given)
    calls = []

    def stop(recipe, fold):
        calls.append(fold)
        if len(calls) == 3:
            raise StoppedError("stopped by SIGTERM", exit_code=143)

    trainer.before, trainer.seconds = stop, 1.0
    found = ms.sweep(data, grid, seeds=1, **given)
    assert found.stopped == 143
    assert "1 trainings are missing" in str(found)
    assert "--seeds 3 measures it" in str(found)
    done = CliRunner().invoke(
        app,
        [
            "sweep",
            str(data),
            "--out",
            str(tmp_path / "p"),
            "--recipe",
            "smoke",
            "--metric",
            "dice_per_image",
            "--seeds",
            "1",
            "--json",
            *(f"--set={one}" for one in grid),
        ],
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["seeds"] == 1


def test_the_verdict():
    def said(gain, nested, noise, folds=3):
        found = verdict_of(
            "Trial 1", gain, "the recipe", nested, folds=folds, tried=4, noise=noise, metric="m"
        )
        return found.is_better, found.says[-1]

    good, weak = Gain(0.9, 0.1, 0.05, 0.15), Gain(0.82, 0.02, -0.01, 0.05)
    assert said(good, Gain(0.88, 0.08, 0.03, 0.1), 0.02) == (
        True, "So it is better than the recipe, beyond draws of images and seeds (below 0.0200).",
    )  # fmt: skip
    assert said(good, Gain(0.88, 0.08, 0.03, 0.1), 0.09)[0] is False
    assert "seeds alone may" in said(good, Gain(0.88, 0.08, 0.03, 0.1), 0.09)[1]
    assert said(good, weak, 0.0) == (False, "So it cannot be told apart from the recipe.")
    assert said(good, None, 0.0, folds=1)[0] is False
    assert "only one fold is trained" in said(good, None, 0.0, folds=1)[1]
    assert "before all of its trainings" in said(good, None, 0.0, folds=3)[1]


def test_a_question_mark_in_the_path_is_refused(tmp_path):
    with pytest.raises(InputError, match="a path with a question mark; give another --out"):
        Study(tmp_path / "why?" / "search.db", parse_space("seed: {values: [1, 2]}", where="space"), seed=0)
    assert not list(tmp_path.iterdir())


def test_a_search_without_optuna(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(InputError, match=r"search: trials are drawn by Optuna.*or try a grid with"):
        need_optuna()


def test_steps_that_are_equal_in_four_digits_end_the_search(tmp_path):
    space = parse_space("training.ema_decay: {low: 0.5, high: 0.5001, step: 0.00002}", where="space")
    study = Study(tmp_path / "search.db", space, seed=0)
    found = []
    while (one := study.next()) is not None:
        study.finish(one[0], 0.0)
        found.append(one[1]["training.ema_decay"])
    study.close()
    assert sorted(found) == [0.5, 0.5001]


def test_names_in_the_table():
    assert short_names([LR, LR.replace("0", "1"), BATCH]) == {
        LR: "stages.0.optimizer.lr",
        LR.replace("0", "1"): "stages.1.optimizer.lr",
        BATCH: "batch_size",
    }


@pytest.mark.slow
def test_a_search_of_real_trainings_ends_in_a_recipe_that_competes(data, tmp_path):
    space = tmp_path / "space.yaml"
    space.write_text(f"{LR}: {{values: [0.01, 0.05]}}\n")
    out, cheap = tmp_path / "p", ["--set=folds.train=2", "--set=training.stages.0.epochs=1", "--recipe=smoke"]
    done = CliRunner().invoke(app, ["search", str(data), f"--out={out}", f"--space={space}", *cheap])
    assert done.exit_code == 0, done.output
    numbers = json.loads((out / "search.json").read_text())
    assert [row["trial"] for row in sorted(numbers["trials"], key=lambda row: row["trial"] or 0)] == [None, 1]
    weights = {path: path.read_bytes() for path in out.glob("runs/*/checkpoints/*/final.safetensors")}
    assert len(weights) == 2 + 2 + 2  # the recipe, two seeds of a fold, a trial
    result = ms.compete(data, out=out, recipe=str(out / "best.yaml"))
    assert {path: path.read_bytes() for path in out.glob("runs/*/checkpoints/*/final.safetensors")} == weights
    best = next(row for row in numbers["trials"] if row["trial"] == numbers["best"])
    assert result.tuning["scores"]["plain"] == pytest.approx(best["score"])
    assert Project.open(out).run().path.name == best["run"] == result.run
    assert read_yaml((out / "search" / "base.yaml").read_text(), where="base")["folds"]["train"] == 2
    assert searching.search is ms.search
