"""The page of the review in Chromium: keyboard, mouse and fingers mend masks, two windows, a server that goes away."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.project.corrections import Correction, Corrections
from masksmith.project.folder import Project

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")
expect = playwright.expect

from masksmith.deploy.listening import bind  # noqa: E402
from masksmith.steps.review.app import make_app  # noqa: E402
from masksmith.steps.review.ranking import Ranking  # noqa: E402
from masksmith.steps.review.views import Views  # noqa: E402
from tests.looks import faults, fits  # noqa: E402

EVIL = "<img src=x onerror=alert(1)>"
HW = (40, 56)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def streets(tmp_path_factory) -> Path:
    """A project of three classes, with probabilities of another program; a name is markup."""
    root = tmp_path_factory.mktemp("streets")
    rng = np.random.default_rng(0)
    for folder in ("data/train/images", "data/train/masks", "data/test/images", "oof", "test"):
        (root / folder).mkdir(parents=True)
    for at, name in enumerate((EVIL, "b", "c", "d", "e", "f")):
        mask = np.zeros(HW, np.uint8)
        mask[12 + at :, :] = 1
        mask[8:20, 10 + at : 24] = 2
        image = np.repeat(40 + 80 * mask[..., None], 3, 2) + rng.integers(0, 30, (*HW, 3))
        probs = np.moveaxis(np.eye(3)[np.roll(mask, at, 1)] * 0.6 + 0.4 / 3, -1, 0)
        test = at > 3
        cv2.imwrite(
            str(root / f"data/{'test' if test else 'train'}/images/{name}.png"), image.astype(np.uint8)
        )
        if not test:
            cv2.imwrite(str(root / f"data/train/masks/{name}.png"), mask)
        np.save(root / ("test" if test else "oof") / f"{name}.npy", probs.astype(np.float32))
    ms.check(root / "data", root / "p")
    overrides = {"folds.count": 2}
    ms.add_member(
        root / "p", "other", oof=root / "oof", test=root / "test", metric="miou", overrides=overrides
    )
    return root / "p"


@contextmanager
def served(root: Path, patches: Path, port: int = 0, ranking: Ranking | None = None) -> Iterator[str]:
    project = Project.open(root)
    if ranking is None:
        ranking = Ranking(project)
        ranking.look()
    both = {"train": Corrections(patches / "corrections"), "test": Corrections(patches / "annotations")}
    listening = bind("127.0.0.1", port)
    app = make_app(Views(project, lambda: ranking.predicted, both), ranking, hosts=frozenset({"127.0.0.1"}))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@contextmanager
def opened(browser, url, **options) -> Iterator["playwright.Page"]:
    """Open the page; nothing may be asked of another host, nor be an error but for answers that a test provokes."""
    troubles: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on(
        "dialog",
        lambda dialog: troubles.append(dialog.message) if dialog.type == "alert" else dialog.accept(),
    )
    page.on("console", lambda said: "Content Security" in said.text and troubles.append(said.text))
    page.on(
        "request", lambda asked: asked.url.startswith((url, "blob:", "data:")) or troubles.append(asked.url)
    )
    page.goto(url)
    page.wait_for_selector(".item")
    yield page
    context.close()
    assert not troubles


def choose(page, name: str) -> None:
    page.locator(".item").filter(has=page.get_by_text(name, exact=True)).click()
    expect(page.locator("#name")).to_have_text(name, timeout=60_000)
    page.locator("#canvas").wait_for(state="visible")


def wait_saved(page, version: int) -> None:
    expect(page.locator("#judged")).to_contain_text(f"version {version}", timeout=60_000)


def wait_unsaved(page) -> None:
    expect(page.locator("#judged")).to_contain_text("not saved", timeout=60_000)


def point(page, x: float, y: float) -> tuple[float, float]:
    """Return where a point of the image is on the page while the image is fitted."""
    box = page.locator("#canvas").bounding_box()
    scale = 0.98 * min(box["width"] / HW[1], box["height"] / HW[0])
    return (
        box["x"] + (box["width"] - scale * HW[1]) / 2 + scale * x,
        box["y"] + (box["height"] - scale * HW[0]) / 2 + scale * y,
    )


def test_the_keyboard_alone_looks_judges_and_mends(browser, streets, tmp_path):
    patch = Corrections(tmp_path / "corrections")
    with served(streets, tmp_path) as url, opened(browser, url) as page:
        assert page.locator(".item b").all_text_contents().count(EVIL) == 1
        for _ in range(30):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.matches('.item')"):
                break
        name = page.locator(":focus b").text_content()
        page.keyboard.press("Enter")
        expect(page.locator("#canvas")).to_be_focused(timeout=60_000)
        truth = Project.open(streets).cache.train_masks[name][..., 0]
        page.keyboard.press("b")
        page.locator("#go_on").evaluate("box => { box.checked = false; }")
        for _ in range(9):
            page.keyboard.press("[")
        page.keyboard.press("c")  # from class 1, the first that is no background, to class 2
        page.keyboard.press("ArrowLeft")  # the cross appears in the middle, and moves
        page.keyboard.down(" ")
        for _ in range(3):
            page.keyboard.press("ArrowRight")
        page.keyboard.up(" ")
        page.keyboard.press("Shift+ArrowDown")
        page.keyboard.press(" ")
        page.keyboard.press("z")
        page.keyboard.press("z")
        page.keyboard.press("y")
        page.keyboard.press("s")
        wait_saved(page, 1)
        expected = truth.copy()
        expected[20, 27:31] = 2
        assert (expected != truth).any()
        assert np.array_equal(patch.mask(name, hw=HW, classes=3), expected)
        page.keyboard.press("f")
        page.keyboard.press(" ")  # a region of class 1 becomes 2
        page.keyboard.press("s")
        wait_saved(page, 2)
        y, x = 30, 30
        filled = cv2.connectedComponents((expected == expected[y, x]).astype(np.uint8), connectivity=4)[1]
        expected[filled == filled[y, x]] = 2
        assert np.array_equal(patch.mask(name, hw=HW, classes=3), expected)
        page.keyboard.press("d")
        wait_saved(page, 3)
        assert patch.of(name) == Correction(name, "drop", "", 3)
        page.locator("#toast button").press("Enter")  # undo
        wait_saved(page, 4)
        assert patch.of(name).action == "mend"
        for view in ("1", "3", "5", "4"):
            page.keyboard.press(view)
        page.keyboard.press("n")
        expect(page.locator("#name")).not_to_have_text(name, timeout=60_000)
        page.keyboard.press("?")
        page.wait_for_selector("#keys[open]")
        page.keyboard.press("Escape")


def test_a_list_opened_before_the_ranking_takes_its_order(browser, streets, tmp_path):
    ranking = Ranking(Project.open(streets))
    with served(streets, tmp_path, ranking=ranking) as url:
        page = browser.new_page()
        short = (
            (Path(ms.__file__).parent / "reporting/review.js")
            .read_text("utf-8")
            .replace("PAGE = 60", "PAGE = 2")
        )
        page.route(
            "**/files/review.js", lambda route: route.fulfill(body=short, content_type="text/javascript")
        )
        page.goto(url)
        page.wait_for_selector(".item")
        expect(page.locator(".item span").first).to_have_text("not ranked yet")
        page.locator(".item").nth(3).wait_for(
            state="attached"
        )  # more than a page: those below are fetched ahead
        page.locator("#items").evaluate("list => { list.scrollTop = 0; }")
        ranking.look()
        expect(page.locator(".item span").first).to_contain_text("costs", timeout=60_000)
        assert page.locator("#fresh").is_hidden()
        page.close()


def test_fingers_draw_and_pinch_and_a_mouse_erases(browser, streets, tmp_path):
    patch = Corrections(tmp_path / "annotations")
    with served(streets, tmp_path) as url, opened(browser, url, has_touch=True) as page:
        page.locator("[data-split=test]").click()
        choose(page, "e")
        page.keyboard.press("2")
        page.select_option("#value", "2")
        before = Project.open(streets).cache.test_images.shape("e")
        fingers = page.context.new_cdp_session(page)

        def touch(kind: str, *at: tuple[float, float]) -> None:
            points = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(at)]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        touch("touchStart", point(page, 5, 35))
        touch("touchMove", point(page, 50, 35))
        touch("touchEnd")
        page.wait_for_selector("#undo:not([disabled])")
        touch("touchStart", point(page, 20, 20), point(page, 30, 20))
        touch("touchMove", point(page, 10, 20), point(page, 40, 20))
        touch("touchEnd")
        page.locator("#fit").click()
        page.mouse.move(*point(page, 30, 35))
        page.mouse.down(button="right")
        page.mouse.up(button="right")
        page.keyboard.press("s")
        wait_saved(page, 1)
        mask = patch.mask("e", hw=before, classes=3)
        assert (mask[33:37, 5:24] == 2).all()  # the finger's line
        assert (mask[34:36, 29:31] == 0).all()  # what the mouse took away
        assert page.locator("#undo").is_enabled()
        page.locator(".item").nth(1).click()
        expect(page.locator("#name")).to_have_text("f", timeout=60_000)
        page.keyboard.press("k")  # the prediction is right
        page.wait_for_selector(".item .said.mend >> nth=1")
        assert patch.rows["f"].action == "mend"


def test_two_windows_and_a_server_that_goes_away_lose_nothing(browser, streets, tmp_path):
    patch, server = Corrections(tmp_path / "corrections"), ExitStack()
    url = server.enter_context(served(streets, tmp_path))
    with server, opened(browser, url) as page:
        other = page.context.new_page()
        for one in (page, other):
            one.goto(f"{url}#train/c")
            one.reload()
            one.wait_for_selector("#work:not([hidden])")
            one.locator("#go_on").set_checked(False)
            one.select_option("#value", "2")
        other.keyboard.press("w")
        wait_saved(other, 1)
        other.close()
        page.mouse.click(*point(page, 30, 30))
        page.keyboard.press("s")
        page.wait_for_selector("#conflict[open]")
        assert "mended" in page.locator("#mine").text_content()
        assert "wrong" in page.locator("#theirs").text_content()
        page.locator("#keep_mine").click()
        wait_saved(page, 2)
        assert patch.mask("c", hw=HW, classes=3)[30, 30] == 2
        page.mouse.click(*point(page, 30, 5))
        server.close()  # it is gone, with strokes that are not saved
        page.keyboard.press("s")
        page.wait_for_selector("#alert:not([hidden])")
        with served(streets, tmp_path, int(url.rpartition(":")[2])):
            page.keyboard.press("s")
            wait_saved(page, 3)
            assert patch.mask("c", hw=HW, classes=3)[5, 30] == 2
            page.mouse.click(*point(page, 50, 5))
            wait_unsaved(page)
            page.reload()  # the window goes away with strokes that are not saved
            wait_unsaved(page)
            page.keyboard.press("s")
            wait_saved(page, 4)
            assert patch.mask("c", hw=HW, classes=3)[5, 50] == 2


def test_wide_and_narrow_light_and_dark(browser, streets, tmp_path):
    with served(streets, tmp_path) as url, opened(browser, url) as page:
        for width, scheme in ((360, "dark"), (1280, "light"), (2560, "dark")):
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=scheme)
            page.goto(f"{url}#train")
            page.wait_for_selector(".item")
            assert fits(page), width
            choose(page, "c")
            assert fits(page), width
            box = page.locator("#canvas").bounding_box()
            assert min(box["width"], box["height"]) > 170, width
            if width < 2560:
                assert not faults(page), width
        page.goto(f"{url}/live")
        page.wait_for_selector(".says")
        assert fits(page)
        assert not faults(page)
