"""The documentation's site in Chromium, as `make docs` builds it: narrow, wide, light, dark, nothing from outside."""

import functools
import http.server
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.looks import faults, fits

pytest.importorskip("zensical", reason="the extra docs is not installed")
playwright = pytest.importorskip("playwright.sync_api")

pytestmark = [pytest.mark.slow, pytest.mark.heavy]
LOOKS = ((360, "light"), (360, "dark"), (1280, "dark"), (2560, "light"))
PAGES = {  # page -> looks that axe judges, too
    "start/photographs": ((360, "light"), (1280, "dark")),
    "reference/commands": ((360, "dark"),),
    "reference/recipe-keys": ((360, "light"),),
}


class Quiet(http.server.SimpleHTTPRequestHandler):
    """It writes no log."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    from tools.docs_site import build

    return build(tmp_path_factory.mktemp("docs"))


@pytest.fixture(scope="module")
def address(site) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=site)
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_the_site_is_whole_readable_and_asks_nobody(browser, address):
    page, troubles = browser.new_page(), list[str]()
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("request", lambda asked: asked.url.startswith((address, "data:")) or troubles.append(asked.url))
    page.on(
        "response", lambda answer: answer.status < 400 or troubles.append(f"{answer.status} {answer.url}")
    )
    for name, judged in PAGES.items():
        for width, scheme in LOOKS:
            page.set_viewport_size({"width": width, "height": 800})
            page.emulate_media(color_scheme=scheme)
            page.goto(f"{address}/{name}.html")
            colours = page.evaluate("document.body.dataset.mdColorScheme")
            assert colours == {"light": "default", "dark": "slate"}[scheme]
            assert fits(page), (name, width)
            if (width, scheme) in judged:
                # the tables of a reference are alike, and axe takes seconds for all their cells
                page.evaluate(
                    "document.querySelectorAll('article > :nth-child(n+16)').forEach(one => one.remove())"
                )
                assert not faults(page, impacts=("serious", "critical")), (name, width)
    page.keyboard.press("/")
    page.keyboard.type("bootstrap")
    page.get_by_text(re.compile(r"^\d+ results$")).wait_for()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("#"), wait_until="commit")  # of the first heading that is found
    page.close()
    assert not troubles


def test_every_link_of_the_site_leads_somewhere(site):
    texts = {path: path.read_text("utf-8") for path in site.rglob("*.html")}
    names = {path: set(re.findall(r'\bid="?([^\s">]+)', text)) for path, text in texts.items()}
    broken = []
    for path, text in texts.items():
        for target, _, name in re.findall(r'<a\s[^>]*href="?([^\s"#>]*)(#([^\s">]*))?', text):
            to = (path.parent / target).resolve() if target else path
            if re.match(r"[a-z]+:", target) or path.name == "404.html":
                continue
            if not to.exists() or (name and to in names and name not in names[to]):
                broken.append((path.name, target, name))
    assert len(texts) > 40
    assert not broken
