"""tools/audit.py finds what is planted, and finds nothing in the source as it is."""

import importlib.util
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_spec = importlib.util.spec_from_file_location("audit", ROOT / "tools" / "audit.py")
audit = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(audit)
TABLE = tomllib.loads((ROOT / "tools" / "known_bad.toml").read_text())["package"]


@pytest.mark.parametrize("name", ["lightning", "lightning-fabric", "pytorch-lightning"])
@pytest.mark.parametrize(
    ("version", "refused"), [("2.6.5", True), ("2.6.6rc1", True), ("2.6.6", False), ("2.10", False)]
)
def test_lightning(name, version, refused):
    found = audit.known_holes(TABLE, {name: version}.get)
    assert len(found) == refused
    if refused:
        assert found == [
            f"{name} {version}: CVE-2026-58659 (a checkpoint that runs code); install 2.6.6 or newer"
        ]


def test_local_versions_and_other_entries():
    assert audit.known_holes(TABLE, {"torch": "2.13.0+cpu"}.get) == []
    assert "CVE-2025-32434" in audit.known_holes(TABLE, {"torch": "2.5.1+cpu"}.get)[0]
    assert "CVE-2025-27516" in audit.known_holes(TABLE, {"jinja2": "3.1.5"}.get)[0]


def test_what_is_installed_here_has_no_known_hole():
    assert audit.installed_version("lightning-fabric") is not None
    assert audit.installed_version("no-such-package-here") is None
    assert audit.known_holes(TABLE, audit.installed_version) == []


def test_the_source_has_no_risky_call():
    assert list(audit._risky_files(ROOT / "src")) == []


@pytest.mark.parametrize(
    ("code", "finding"),
    [
        ("import pickle", "imports pickle"),
        ("from pickle import loads", "imports pickle.loads"),
        ("import subprocess as s", "imports subprocess"),
        ("import joblib", "imports joblib"),
        ("eval('1')", "calls eval"),
        ("exec('1')", "calls exec"),
        ("__import__('x')", "calls __import__"),
        ("import os\nos.system('x')", "calls os.system"),
        ("from os import system as s\ns('x')", "calls os.system"),
        ("import os as o\no.execv('x', [])", "calls os.execv"),
        ("import yaml\nyaml.load('x')", "yaml.load without a safe Loader"),
        ("import yaml\nyaml.load('x', yaml.Loader)", "yaml.load without a safe Loader"),
        (
            "import yaml\nclass L(yaml.Loader):\n    pass\nyaml.load('x', Loader=L)",
            "yaml.load without a safe Loader",
        ),
        ("from yaml import unsafe_load\nunsafe_load('x')", "calls yaml.unsafe_load"),
        ("import torch\ntorch.load('x')", "torch.load without weights_only=True"),
        ("import torch\ntorch.load('x', weights_only=False)", "torch.load without weights_only=True"),
        ("import torch as t\nt.load('x', weights_only=w)", "torch.load without weights_only=True"),
        ("from torch import load\nload('x')", "torch.load without weights_only=True"),
        ("import torch\ntorch.jit.load('x')", "calls torch.jit.load"),
        ("import numpy as np\nnp.load('x', allow_pickle=True)", "numpy.load with allow_pickle"),
        ("import numpy as np\nnp.load('x', None, True)", "numpy.load with allow_pickle"),
        ("import jinja2\njinja2.Environment()", "jinja2.Environment without autoescape=True"),
        ("f('x', shell=True)", "a call with shell"),
        ("a.extractall('x')", "calls a.extractall"),
        ("f().extractall('x')", "calls extractall"),
    ],
)
def test_planted_code_is_found(code, finding):
    found = audit.risky_code(code, "x.py")
    assert any(line.startswith("x.py:") and line.endswith(finding) for line in found), found


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "import re\nre.compile('x')",
        "from pickle import UnpicklingError",
        "import yaml\nclass L(yaml.SafeLoader):\n    pass\nyaml.load('x', Loader=L)",
        "import yaml\nyaml.load('x', Loader=yaml.SafeLoader)",
        "import torch\ntorch.load('x', map_location='cpu', weights_only=True)",
        "import numpy as np\nnp.load('x', mmap_mode='r')",
        "import numpy as np\nnp.load('x', allow_pickle=False)",
        "from jinja2 import Environment\nEnvironment(autoescape=True)",
        "import os\nos.replace('a', 'b')",
        "from . import pickle_free",
        "f('x', shell=False)",
    ],
)
def test_harmless_code_is_not(code):
    assert audit.risky_code(code, "x.py") == []


HOLE = {"id": "GHSA-x", "fix_versions": ["2"], "aliases": [], "description": ""}


def answer(*entries):
    return json.dumps({"dependencies": list(entries), "fixes": []})


@pytest.mark.parametrize(
    ("output", "findings", "silent"),
    [
        (answer({"name": "a", "version": "1", "vulns": []}), 0, ""),
        (answer({"name": "a", "version": "1", "vulns": [HOLE]}), 1, ""),
        (answer({"name": "a", "skip_reason": "not found"}), 0, "judged none of 1 packages"),
        (
            answer({"name": "a", "version": "1", "vulns": []}, *[{"name": "b", "skip_reason": "x"}] * 2),
            0,
            "only 1 of 3",
        ),
        ("", 0, "came to no result (no route to host)"),
    ],
)
@pytest.mark.parametrize("must", ["0", "1"])
def test_the_answer_of_the_service(monkeypatch, capsys, output, findings, silent, must):
    """pip-audit calls a set of packages clean of which its service knew none."""
    done = subprocess.CompletedProcess([], 0, output, "trying\nno route to host\n")
    monkeypatch.setattr(audit.subprocess, "run", lambda *_arguments, **_options: done)
    monkeypatch.setenv("AUDIT_ONLINE", must)
    assert audit.main() == int(bool(findings) or (must == "1" and bool(silent)))
    said = capsys.readouterr().out
    assert ("NOT ASKED ONLINE" in said) == bool(silent)
    assert silent in said
    assert ("a 1: GHSA-x, fixed in 2" in said) == bool(findings)


def test_a_service_that_never_answers(monkeypatch, capsys):
    def hang(command, **_options):
        raise subprocess.TimeoutExpired(command, 1)

    monkeypatch.setattr(audit.subprocess, "run", hang)
    monkeypatch.delenv("AUDIT_ONLINE", raising=False)
    assert audit.main() == 0
    assert "did not end within" in capsys.readouterr().out


def test_a_finding_is_an_error(monkeypatch, capsys):
    monkeypatch.setattr(audit, "ask_service", lambda: ([], ""))
    monkeypatch.setattr(audit, "_risky_files", lambda _folder: iter(["x.py:1: calls eval"]))
    assert audit.main() == 1
    assert "x.py:1: calls eval" in capsys.readouterr().out


def test_pip_audit_is_there():
    done = subprocess.run([sys.executable, "-m", "pip_audit", "--version"], capture_output=True, check=False)
    assert done.returncode == 0
