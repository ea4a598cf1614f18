import pytest


@pytest.fixture(autouse=True)
def _no_flushing(monkeypatch):
    """A test's process is not killed, so what the system has taken is not lost; flushing took half the time."""
    monkeypatch.setattr("os.fsync", lambda _: None)
