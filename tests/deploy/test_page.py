"""The page of the server, driven in Chromium: overlay, slider, keyboard, narrow and wide screens."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
import numpy as np
import pytest

from masksmith.data.target import BINARY, Target
from masksmith.deploy.segmenter import Segmenter
from tests.deploy.tiny import noise, tiny_bundle

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
playwright = pytest.importorskip("playwright.sync_api")

from masksmith.deploy.serve import Limits, bind, make_app  # noqa: E402

CLASSES = Target("multiclass", ("background", "road", "tree"), (0, 1, 2))
pytestmark = pytest.mark.slow


@contextmanager
def served(model: Segmenter) -> Iterator[str]:
    listening: socket.socket = bind("127.0.0.1", 0)
    app = make_app(model, Limits(), hosts=frozenset({"127.0.0.1"}))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@contextmanager
def opened(browser, model) -> Iterator["playwright.Page"]:
    """Open the page; nothing may be asked of another host, nor be an error."""
    troubles: list[str] = []
    with served(model) as url:
        page = browser.new_page()
        page.set_default_timeout(60_000)
        page.on("console", lambda told: told.type in ("error", "warning") and troubles.append(told.text))
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on(
            "request",
            lambda asked: asked.url.startswith((url, "blob:", "data:")) or troubles.append(asked.url),
        )
        page.goto(url)
        yield page
        page.close()
    assert not troubles


def pixels(page) -> np.ndarray:
    """Return what the canvas shows, (h, w, 4)."""
    flat, height, width = page.evaluate(
        "(() => { const c = document.getElementById('canvas');"
        "return [Array.from(c.getContext('2d').getImageData(0, 0, c.width, c.height).data), c.height, c.width]; })()"
    )
    return np.array(flat, np.uint8).reshape(height, width, 4)


def fits(page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


@pytest.fixture
def photograph(tmp_path):
    image = noise(60, 90, seed=3)
    assert cv2.imwrite(str(tmp_path / "a photograph.png"), image)
    return tmp_path / "a photograph.png", image


@pytest.mark.parametrize("target", [BINARY, CLASSES], ids=lambda target: target.task)
def test_an_image_gets_its_overlay_and_the_slider_changes_it(target, browser, photograph, tmp_path):
    path, image = photograph
    model = Segmenter(tiny_bundle(tmp_path / "m.msk", target))
    with opened(browser, model) as page:
        page.set_input_files("#file", path)
        page.wait_for_selector("#view", state="visible")
        first = pixels(page)
        slider = page.locator("#planes input[type=range]").first
        slider.press("End")  # a probability above 1: nothing
        plain = pixels(page)
        assert np.array_equal(plain[..., :3], np.repeat(image[..., None], 3, 2))
        mask = model.segment(image).mask
        assert len(np.unique(mask)) > 1
        assert np.array_equal((first != plain).any(2), mask > 0)
        slider.press("Home")
        assert (pixels(page) != plain).any(2).sum() >= (mask > 0).sum()
        shares = page.locator("#planes .share").all_text_contents()
        assert len(shares) == len(model.classes)
        for width in (360, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert fits(page), width


def test_the_keyboard_alone_does(browser, photograph, tmp_path):
    path, _ = photograph
    with opened(browser, Segmenter(tiny_bundle(tmp_path / "m.msk", BINARY))) as page:

        def tab_to(selector: str) -> None:
            for _ in range(20):
                page.keyboard.press("Tab")
                if page.evaluate(f"document.activeElement.matches('{selector}')"):
                    return
            raise AssertionError(f"{selector} is not reached by Tab")

        tab_to("#file")
        with page.expect_file_chooser() as chooser:
            page.keyboard.press("Space")
        chooser.value.set_files(path)
        page.wait_for_selector("#view", state="visible")
        before = pixels(page)
        tab_to("#planes input[type=range]")
        page.keyboard.press("End")
        assert (pixels(page) != before).any()
        tab_to("[data-answer=png]")
        with page.expect_download() as saved:
            page.keyboard.press("Enter")
        assert saved.value.suggested_filename == "a photograph-png.png"
        mask = cv2.imread(str(saved.value.path()), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (60, 90)


def test_what_cannot_be_read_is_said_on_narrow_screens_too(browser, tmp_path):
    (tmp_path / "no-image-and-a-very-long-name-that-has-no-place-to-break-anywhere.png").write_bytes(
        b"no image"
    )
    with served(Segmenter(tiny_bundle(tmp_path / "m.msk", BINARY))) as url:
        page = browser.new_page(viewport={"width": 360, "height": 640})
        page.goto(url)
        assert fits(page)
        page.set_input_files("#file", next(tmp_path.glob("no-image*")))
        page.wait_for_selector("#message.bad", state="visible")
        assert page.locator("#view").is_hidden()
        assert fits(page)
        page.goto(f"{url}/docs")
        assert fits(page)
        page.close()
