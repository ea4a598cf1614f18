from importlib import metadata

import pytest

from masksmith.core.errors import InputError
from masksmith.training import machine
from tests.training.test_training import config


@pytest.mark.parametrize("name", ["lightning-fabric", "lightning", "pytorch-lightning"])
@pytest.mark.parametrize("version", ["2.6.5", "2.6.6rc1", "1.9"])
def test_a_lightning_with_a_hole_is_refused(monkeypatch, name, version):
    plain = metadata.version
    monkeypatch.setattr(machine.metadata, "version", lambda asked: version if asked == name else plain(asked))
    with pytest.raises(
        InputError, match=rf"{name} {version} is installed, .*CVE-2026-58659.*install 2\.6\.6 or newer"
    ):
        machine.make_fabric(config())


@pytest.mark.parametrize("version", ["2.6.6", "2.6.6.post0", "2.10.0", "3.0"])
def test_later_ones_are_taken(monkeypatch, version):
    monkeypatch.setattr(machine.metadata, "version", lambda _name: version)
    machine.check_lightning()


def test_those_that_are_not_installed_are_passed_over(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(machine.metadata, "version", absent)
    machine.check_lightning()
