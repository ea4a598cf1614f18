import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

import masksmith as ms  # first: its guard lets torchvision import beside a CPU build of torch

if TYPE_CHECKING:
    from playwright.sync_api import Browser

settings.register_profile("untimed", deadline=None)  # speed belongs in benchmarks
settings.load_profile("untimed")

SHARED = os.environ.get("MASKSMITH_SHARED")


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The real data; absent data fails where MASKSMITH_SHARED is set and skips where it is not."""
    if SHARED is None:
        pytest.skip("MASKSMITH_SHARED is not set: no real data")
    path = Path(SHARED)
    assert path.is_dir(), f"MASKSMITH_SHARED={SHARED}: no such folder"
    return path


@pytest.fixture(scope="session")
def example(tmp_path_factory) -> Path:
    """A generated data set (read only): ``data/`` and ``solution.csv``."""
    out = tmp_path_factory.mktemp("example")
    ms.example(out, train=40, test=8)
    return out


@pytest.fixture(scope="session")
def trained(example, tmp_path_factory) -> Path:
    """A project that went the whole way once (read only)."""
    out = tmp_path_factory.mktemp("trained") / "project"
    ms.compete(example / "data", out=out, recipe="smoke")
    return out


@pytest.fixture
def project(trained, tmp_path) -> Path:
    """A copy of the trained project that a test may change."""
    return Path(shutil.copytree(trained, tmp_path / "project"))


@pytest.fixture
def download(example, tmp_path) -> Path:
    """An unpacked copy of the generated data set that a test may damage."""
    data = tmp_path / "download"
    shutil.copytree(example / "data", data)
    for name in ("train", "test"):
        shutil.unpack_archive(data / f"{name}.zip", data / name)
        (data / f"{name}.zip").unlink()
    return data


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """The machine's Chromium; without one a test fails where MASKSMITH_SHARED is set and is skipped where it is not."""
    sync_api = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        if SHARED:
            pytest.fail("no Chromium on this machine; install it, as .ci/run does")
        pytest.skip("no Chromium on this machine")
    options = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
    ]
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=options)
        yield chromium
        chromium.close()
