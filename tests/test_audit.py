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


def test_lightning():
    for name in ("lightning", "lightning-fabric", "pytorch-lightning"):
        for version, refused in (("2.6.5", True), ("2.6.6rc1", True), ("2.6.6", False), ("2.10", False)):
            hole = f"{name} {version}: CVE-2026-58659 (a checkpoint that runs code); install 2.6.6 or newer"
            assert audit.known_holes(TABLE, {name: version}.get) == [hole] * refused


def test_local_versions_and_other_entries():
    assert audit.known_holes(TABLE, {"torch": "2.13.0+cpu"}.get) == []
    assert "CVE-2025-32434" in audit.known_holes(TABLE, {"torch": "2.5.1+cpu"}.get)[0]
    assert "CVE-2025-27516" in audit.known_holes(TABLE, {"jinja2": "3.1.5"}.get)[0]


def test_what_is_installed_here_has_no_known_hole():
    assert audit.installed_version("lightning-fabric") is not None
    assert audit.installed_version("no-such-package-here") is None
    assert audit.known_holes(TABLE, audit.installed_version) == []


PLANTED = (
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
)
HARMLESS = (
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
)


def test_planted_code_is_found_and_harmless_code_is_not():
    for code, finding in PLANTED:
        found = audit.risky_code(code, "x.py")
        assert any(line.startswith("x.py:") and line.endswith(finding) for line in found), (code, found)
    for code in HARMLESS:
        assert audit.risky_code(code, "x.py") == [], code
    for path in (ROOT / "src").rglob("*.py"):
        assert audit.risky_code(path.read_text(), str(path.relative_to(ROOT))) == []


HOLE = {"id": "GHSA-x", "fix_versions": ["2"], "aliases": [], "description": ""}


def answer(*entries):
    return json.dumps({"dependencies": list(entries), "fixes": []})


@pytest.mark.slow
def test_the_answer_of_the_service(monkeypatch, capsys):
    """pip-audit calls a set of packages clean of which its service knew none."""
    known, unknown = {"name": "a", "version": "1"}, {"name": "b", "skip_reason": "not found"}
    clean, holed = answer(known | {"vulns": []}), answer(known | {"vulns": [HOLE]})

    def answered(output):
        def run(command, **_options):
            if output is None:
                raise subprocess.TimeoutExpired(command, 1)
            return subprocess.CompletedProcess([], 0, output, "trying\nno route to host\n")

        monkeypatch.setattr(subprocess, "run", run)

    for output, findings, silent in (
        (clean, [], ""),
        (holed, ["a 1: GHSA-x, fixed in 2"], ""),
        (answer(unknown), [], "judged none of 1 packages"),
        (answer(known | {"vulns": []}, unknown, unknown), [], "only 1 of 3"),
        ("", [], "came to no result (no route to host)"),
        (None, [], "did not end within"),
    ):
        answered(output)
        found, said = audit.ask_service()
        assert found == findings
        assert silent in said
        assert bool(said) == bool(silent)
    for output, must, code in ((holed, "0", 1), ("", "0", 0), ("", "1", 1)):
        answered(output)
        capsys.readouterr()
        monkeypatch.setenv("AUDIT_ONLINE", must)
        assert audit.main() == code
        said = capsys.readouterr().out
        assert ("NOT ASKED ONLINE" in said) == (output == "")
        assert ("a 1: GHSA-x, fixed in 2" in said) == (output == holed)


@pytest.mark.slow
def test_pip_audit_is_there():
    done = subprocess.run([sys.executable, "-m", "pip_audit", "--version"], capture_output=True, check=False)
    assert done.returncode == 0
