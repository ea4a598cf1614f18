"""The review: order and causes, what is shown and written, who is refused, projects without predictions."""

import csv
import errno
import io
import time
from dataclasses import replace

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core import files
from masksmith.core.errors import InputError
from masksmith.core.locks import folder_lock
from masksmith.data.target import BINARY, OBJECTS, Target
from masksmith.metrics import get_metric
from masksmith.prediction.store import to_codes
from masksmith.project.corrections import Correction, Corrections
from masksmith.project.folder import Project
from masksmith.project.members import read_members
from masksmith.reporting.causes import CAUSES
from masksmith.reporting.pictures import to_rgb
from masksmith.steps.report import report_facts

pytest.importorskip("fastapi")
pytest.importorskip("httpx")

from fastapi.testclient import TestClient

from masksmith.steps.review.app import make_app
from masksmith.steps.review.doubt import doubt_of
from masksmith.steps.review.predictions import find_predictions, version_of
from masksmith.steps.review.queue import Query, listed
from masksmith.steps.review.ranking import CAUSE_NAMES, Ranked, Ranking
from masksmith.steps.review.views import Views

HOSTS = frozenset({"127.0.0.1", "localhost"})


def client_of(root, patches, *, look=True):
    """Return a client of a project's review, with its ranking done, whose patches lie elsewhere."""
    project = Project.open(root)
    ranking = Ranking(project)
    if look:
        ranking.look()
    both = {"train": Corrections(patches / "corrections"), "test": Corrections(patches / "annotations")}
    app = make_app(Views(project, lambda: ranking.predicted, both), ranking, hosts=HOSTS)
    return TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False), ranking


@pytest.fixture
def review(trained, tmp_path):
    return (*client_of(trained, tmp_path), Project.open(trained))


def test_the_costliest_come_first_with_the_costs_and_causes_of_the_report(review):
    client, _, project = review
    facts = report_facts(project, read_members(project, None))
    found = client.get("/api/list?split=train&limit=200").json()
    assert found["total"] == len(project.catalog.train)
    items = {item["id"]: item for item in found["items"]}
    known = {name: item["cost"] for name, item in items.items() if item["cost"] is not None}
    assert known == pytest.approx(facts.costs)
    costs = [item["cost"] for item in found["items"]]
    assert costs[: len(known)] == sorted(known.values(), reverse=True)
    assert all(cost is None for cost in costs[len(known) :])
    assert {name: items[name]["score"] for name in known} == pytest.approx(facts.scores)
    assert sum(found["causes"].values()) == len(known)
    for cause, count in found["causes"].items():
        part = client.get("/api/list", params={"split": "train", "cause": cause}).json()
        assert part["total"] == count
        assert {item["cause"] for item in part["items"]} == {cause}
    pages = [
        client.get(f"/api/list?split=train&offset={at}&limit=7").json()["items"] for at in range(0, 42, 7)
    ]
    assert [item["id"] for page in pages for item in page] == [item["id"] for item in found["items"]]
    one = found["items"][3]["id"]
    assert [x["id"] for x in client.get(f"/api/list?split=train&find={one[1:].upper()}").json()["items"]] == [
        one
    ]
    doubts = [item["doubt"] for item in client.get("/api/list?split=test&order=doubt").json()["items"]]
    assert doubts == sorted(doubts, reverse=True)
    assert len(doubts) == len(project.catalog.test)
    names = [item["id"] for item in client.get("/api/list?split=train&order=name").json()["items"]]
    assert names == [sample.id for sample in project.catalog.train]


def test_an_image_is_shown_as_it_is_stored_and_predicted(review):
    client, ranking, project = review
    predicted = ranking.predicted
    name = next(iter(predicted.oof))
    at = {"split": "train", "id": name}
    facts = client.get("/api/image", params=at).json()
    height, width = facts["hw"]
    assert (facts["predicted"], facts["truth"], facts["why"], facts["version"]) == (True, True, "", 0)
    truth = client.get("/api/mask", params={**at, "kind": "truth"}).content
    assert truth == project.cache.train_masks[name].tobytes()
    codes = predicted.oof[name][name]
    pred = np.frombuffer(client.get("/api/mask", params={**at, "kind": "prediction"}).content, np.uint8)
    assert np.array_equal(pred.reshape(height, width), predicted.rule.apply(codes))
    probs = np.frombuffer(client.get("/api/probabilities", params=at).content, "<u2")
    assert np.array_equal(probs.reshape(height, width), codes[..., 0])
    assert facts["threshold"] == predicted.rule.bottom / 65535
    raw = np.frombuffer(client.get("/api/picture", params=at).content, np.uint8)
    assert np.array_equal(
        cv2.imdecode(raw, cv2.IMREAD_COLOR)[..., ::-1], to_rgb(project.cache.train_images[name])
    )
    for split, other in (
        ("train", name),
        ("train", project.catalog.train[-1].id),
        ("test", project.catalog.test[0].id),
    ):
        thumb = client.get("/api/thumb", params={"split": split, "id": other})
        assert cv2.imdecode(np.frombuffer(thumb.content, np.uint8), cv2.IMREAD_COLOR) is not None
    for path, params in (
        ("mask", {**at, "kind": "mended"}),
        ("mask", {"split": "test", "id": project.catalog.test[0].id, "kind": "truth"}),
        ("probabilities", {**at, "layer": 1}),
        ("mask", {**at, "kind": "else"}),
        ("picture", {**at, "kind": "else"}),
        ("picture", {"split": "test", "id": name}),
    ):
        answer = client.get(f"/api/{path}", params=params)
        assert (answer.status_code, list(answer.json())) == (404, ["error"]), path


def test_of_a_very_large_image_every_few_rows_are_shown_and_it_is_judged_only(review, monkeypatch):
    client, ranking, project = review
    monkeypatch.setattr("masksmith.steps.review.views.MOST_PIXELS", 3000)
    name = next(iter(ranking.predicted.oof))
    at = {"split": "train", "id": name}
    facts = client.get("/api/image", params=at).json()
    assert (facts["hw"], facts["shown"]) == ([101, 101], [51, 51])
    assert "every 2th row" not in facts["why"]
    assert "cannot be mended here" in facts["why"]
    truth = client.get("/api/mask", params={**at, "kind": "truth"}).content
    assert truth == project.cache.train_masks[name][::2, ::2].tobytes()
    assert len(client.get("/api/probabilities", params=at).content) == 2 * 51 * 51
    for kind in ("image", "truth", "prediction", "difference"):
        raw = np.frombuffer(client.get("/api/picture", params={**at, "kind": kind}).content, np.uint8)
        assert cv2.imdecode(raw, cv2.IMREAD_COLOR).shape == (51, 51, 3), kind
    answer = client.put("/api/mask", params={**at, "version": 0}, content=bytes(101 * 101))
    assert (answer.status_code, facts["why"] in answer.json()["error"]) == (422, True)


def test_what_is_said_is_written_beside_the_data(review, tmp_path):
    client, _, project = review
    before = {path: path.stat().st_mtime_ns for path in project.root.rglob("*") if path.is_file()}
    name, other = (sample.id for sample in project.catalog.train[:2])
    hw = project.cache.train_images.shape(name)
    drawn = np.zeros(hw, np.uint8)
    drawn[3:9, 4:] = 1
    drawn[0] = 255

    def put(path, version, content, *, id=name, split="train", **more):
        return client.put(
            f"/api/{path}", params={"split": split, "id": id, "version": version, **more}, content=content
        )

    assert put("mask", 0, drawn.tobytes(), note="the top").json() == {
        "id": name, "action": "mend", "note": "the top", "version": 1,
    }  # fmt: skip
    file = cv2.imread(str(tmp_path / "corrections" / f"{name}.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(file, drawn)
    assert (
        client.get("/api/mask", params={"split": "train", "id": name, "kind": "mended"}).content
        == drawn.tobytes()
    )
    late = put("judgement", 0, '{"action": "drop", "note": ""}')
    assert (late.status_code, late.json()["now"]["action"], late.json()["now"]["version"]) == (409, "mend", 1)
    assert put("judgement", 0, '{"action": "drop", "note": "blurred"}', id=other).status_code == 200
    text = (tmp_path / "corrections" / "corrections.csv").read_text()
    assert list(csv.reader(io.StringIO(text)))[1:] == [
        [name, "mend", "the top", "1"],
        [other, "drop", "blurred", "1"],
    ]
    for state, ids in (("done", {name, other}), ("drop", {other}), ("mend", {name}), ("wrong", set())):
        found = client.get(f"/api/list?split=train&state={state}").json()
        assert {item["id"] for item in found["items"]} == ids
    assert client.get("/api/list?split=train&state=open").json()["total"] == len(project.catalog.train) - 2
    test = project.catalog.test[0].id
    assert put("mask", 0, bytes(hw[0] * hw[1]), id=test, split="test").status_code == 200
    assert (tmp_path / "annotations" / f"{test}.png").exists()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_writes_that_make_no_sense_are_refused_and_write_nothing(review, tmp_path, monkeypatch):
    client, _, project = review
    name = project.catalog.train[0].id
    size = int(np.prod(project.cache.train_images.shape(name)))
    at = {"split": "train", "id": name, "version": 0}
    said = b'{"action": "keep", "note": ""}'
    for path, params, content, status, text in (
        ("mask", at, bytes(size - 1), 422, f"a mask of {size - 1} bytes; expected 101 x 101"),
        ("mask", at, bytes(size + 1), 413, "larger than"),
        ("mask", at, b"\x02" * size, 422, "values 2; expected 0 to 1, and 255"),
        ("mask", at | {"note": "a\tb"}, bytes(size), 422, "without control characters"),
        ("judgement", at, b'{"action": "keep"}', 422, 'expected {"action": text, "note": text}'),
        ("judgement", at, b"[" * 9999, 422, "expected {"),
        ("judgement", at, b'{"action": "kep", "note": ""}', 422, "'kep'; expected keep"),
        ("judgement", at, b" " * 2**17, 413, "larger than"),
        ("judgement", at | {"id": "../x"}, said, 404, "no image '../x'"),
        ("judgement", at | {"split": "val"}, said, 422, "split"),
        ("judgement", {"split": "train", "id": name}, said, 422, "version"),
    ):
        answer = client.put(f"/api/{path}", params=params, content=content)
        assert answer.status_code == status, (path, answer.text)
        assert text in answer.json()["error"]

    def full(path, phase):
        if phase == "written":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "on_write", full)
    answer = client.put("/api/mask", params=at, content=bytes(size))
    assert (answer.status_code, "the disk is full" in answer.json()["error"]) == (507, True)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    for wrong in ("order=best", "state=x", "cause=x", "offset=-1", "limit=0", "limit=1000"):
        assert client.get(f"/api/list?split=train&{wrong}").status_code == 422


def test_who_may_not_ask(review):
    client, _, project = review
    evil = {"Origin": "http://evil.example"}
    name = project.catalog.train[0].id
    for method, path in (
        ("PUT", "/api/judgement"),
        ("PUT", "/nowhere"),
        ("POST", "/"),
        ("GET", "/api/state"),
    ):
        assert client.request(method, path, headers=evil, content=b"x" * 10**6).status_code == 403
    assert (
        client.put("/api/mask", headers=evil | {"Host": "evil.example:1"}).status_code == 403
    )  # before Host
    rebound = {"Host": "evil.example", "Origin": "http://evil.example"}
    assert client.put("/api/judgement", headers=rebound).status_code == 421
    assert client.get("/", headers={"Host": "evil.example"}).status_code == 421
    own = {"Host": "localhost:8766", "Origin": "http://localhost:8766"}
    answer = client.put(
        "/api/judgement", params={"split": "train", "id": name, "version": 0}, headers=own,
        content='{"action": "keep", "note": ""}',
    )  # fmt: skip
    assert answer.status_code == 200
    for path in (
        "/files/../app.py",
        "/files/%2e%2e%2fapp.py",
        "/files/..%2f..%2fcore%2ffiles.py",
        "/etc/passwd",
        "/files/x",
    ):
        answer = client.get(path)
        assert (answer.status_code, list(answer.json())) == (404, ["error"]), path
    headers = client.get("/").headers
    assert "script-src 'self'" in headers["Content-Security-Policy"]
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"


def test_a_project_without_a_run_is_shown_without_predictions(example, tmp_path):
    ms.check(example / "data", tmp_path / "p")
    client, ranking = client_of(tmp_path / "p", tmp_path / "patches")
    state = client.get("/api/state").json()
    assert "no run yet; run `masksmith train" in state["said"]
    assert state["splits"]["train"] == {"done": 0, "todo": 0, "edition": 2, "total": 40}
    items = client.get("/api/list?split=train").json()["items"]
    assert {(item["cost"], item["doubt"], item["cause"]) for item in items} == {(None, None, "")}
    at = {"split": "train", "id": items[0]["id"]}
    assert client.get("/api/image", params=at).json()["predicted"] is False
    assert client.get("/api/mask", params={**at, "kind": "truth"}).status_code == 200
    assert client.get("/api/mask", params={**at, "kind": "prediction"}).status_code == 404
    assert client.get("/api/thumb", params=at).status_code == 200
    assert ranking.predicted.number == 1


def test_how_much_is_to_be_ranked_is_known_before_the_first_image(project, monkeypatch):
    ranking, seen = Ranking(Project.open(project)), []
    monkeypatch.setattr(Ranking, "_look_at", lambda self, *rest: seen.append(
        (self.predicted.number, {split: one.todo for split, one in self.ranked.items()})
    ) or iter(()))  # fmt: skip
    ranking.look()
    assert seen[0] == (1, {split: one.todo for split, one in ranking.ranked.items()})
    assert all(seen[0][1].values())


def test_new_and_damaged_predictions_are_noticed(project):
    version = version_of(project, None)
    ranking = Ranking(Project.open(project))
    ranking.look()
    done = ranking.ranked["train"].done
    member = read_members(Project.open(project), None)[0]
    assert version_of(project, None) == version
    member.codes("oof").unlink()
    assert version_of(project, None) != version
    found = find_predictions(Project.open(project), None)
    assert "no image is predicted yet: wait for the training" in found.said
    member.codes("oof").write_bytes(b"\x93NUMPY")
    ranking.look()
    assert done > 0 == ranking.ranked["train"].done
    assert "cut off or changed" in ranking.predicted.said


def test_costs_of_a_mean_over_groups_are_those_within_the_groups(trained, monkeypatch):
    from masksmith.steps.review import ranking as module

    real = find_predictions
    metric = get_metric("iou_by_group")
    monkeypatch.setattr(module, "find_predictions", lambda *args: replace(real(*args), metric=metric))
    ranking = Ranking(Project.open(trained))
    ranking.look()
    ranked = ranking.ranked["train"]
    assert np.isfinite(ranked.cost).sum() == ranked.done > 0


def test_a_list_of_100_000_images_is_answered_at_once():
    num = 100_000
    rng = np.random.default_rng(0)
    ids = [f"<i>{at:06}" for at in range(num)]
    cause = rng.integers(-1, len(CAUSE_NAMES), num)
    ranked = Ranked(ids, rng.random(num), rng.random(num), rng.random(num), cause, num, num)
    said = {name: Correction(name, "keep", "", 1) for name in ids[::3]}
    start = time.process_time()
    found = listed(ranked, said, Query(state="open", cause="missed", find="9", offset=1000))
    assert time.process_time() - start < 2
    wanted = [
        at for at in range(num) if at % 3 and cause[at] == CAUSE_NAMES.index("missed") and "9" in ids[at]
    ]
    wanted.sort(key=lambda at: -ranked.cost[at])
    assert found["total"] == len(wanted)
    assert [item["id"] for item in found["items"]] == [ids[at] for at in wanted[1000:1060]]
    assert sum(found["causes"].values()) <= num
    assert set(found["causes"]) == set(CAUSES)


def test_doubt_is_the_mean_entropy():
    rng = np.random.default_rng(0)
    one = rng.random((5, 6, 1))
    several = rng.dirichlet(np.ones(4), (5, 6))

    def entropy(probs):
        return -sum(p * np.log2(p) for p in probs)

    binary = np.mean([entropy((p, 1 - p)) for p in one.ravel()])
    assert doubt_of(to_codes(one), BINARY) == pytest.approx(binary, abs=1e-3)
    classes = np.mean([entropy(pixel) for pixel in several.reshape(-1, 4)]) / 2
    assert doubt_of(to_codes(several), Target("multiclass", tuple("abcd"))) == pytest.approx(
        classes, abs=1e-3
    )
    labels = np.mean([entropy((p, 1 - p)) for p in several.ravel()])
    assert doubt_of(to_codes(several), Target("multilabel", tuple("abcd"))) == pytest.approx(labels, abs=1e-3)
    objects = np.mean([entropy((p, 1 - p)) for p in several[..., 0].ravel()])
    assert doubt_of(to_codes(several[..., :3]), OBJECTS) == pytest.approx(objects, abs=1e-3)
    assert doubt_of(np.zeros((3, 3, 1), np.uint16), BINARY) == pytest.approx(0, abs=1e-6)


def test_one_review_is_open_at_a_time_beside_a_training(project, monkeypatch):
    answered = []

    def run(server, sockets):
        client = TestClient(server.config.app, base_url="http://127.0.0.1")
        answered.append(client.get("/api/state").status_code)
        with pytest.raises(InputError, match=r"corrections: another masksmith is at work here \(pid"):
            ms.review(project, port=0)

    monkeypatch.setattr("uvicorn.Server.run", run)
    with folder_lock(project):  # a training
        ms.review(project, port=0)
        ms.review(project, port=0)
        (project / "cache" / "stage.json").unlink()
        with pytest.raises(InputError, match="the data is not decoded yet"):
            ms.review(project, port=0)
    ms.review(project, port=0)
    assert answered == [200] * 3
    assert Project.open(project).cache.train_images.ids


def test_what_cannot_be_opened(tmp_path, project):
    with pytest.raises(InputError, match="not a masksmith project"):
        ms.review(tmp_path / "nothing")
    with pytest.raises(InputError, match="no run 'nope'"):
        ms.review(project, run="nope")
    (project / "corrections").mkdir()
    (project / "corrections" / "corrections.csv").write_text("id,action\na,kep\n")
    with pytest.raises(InputError, match="row 2: 'a': action 'kep'"):
        ms.review(project, port=0)


def test_the_live_page_shows_what_watch_shows(review):
    client, _, project = review
    page = client.get("/live")
    assert page.status_code == 200
    assert "script-src 'self'" in page.headers["Content-Security-Policy"]
    part = client.get("/live/part").text
    assert part.strip() in page.text
    live = ms.watch(project.root)
    assert live.says[:1].upper() + live.says[1:] in part
    for one in live.trainings:
        assert f'<th scope="row">{one.name}</th>' in part
    assert f"{live.metric} {live.score:.4f}" in part
    assert "<polyline points=" in part
    shown = client.get("/live/0.jpg")
    height, width = cv2.imdecode(np.frombuffer(shown.content, np.uint8), cv2.IMREAD_COLOR).shape[:2]
    assert width == 4 * height
    assert client.get("/live/99.jpg").status_code == 404
    assert client.get("/live", headers={"Origin": "http://evil.example"}).status_code == 403
