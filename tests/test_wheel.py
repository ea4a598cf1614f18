"""A wheel holds all that the package needs, and works where only the wheel is."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_a_wheel_has_every_file_and_works_elsewhere(tmp_path):
    source = tmp_path / "source"
    hidden = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", source / "src", ignore=hidden)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source / name)
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path]
    subprocess.run([*map(str, build), str(source)], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("masksmith-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if name.startswith("masksmith/")}
        archive.extractall(tmp_path / "there")
    package = source / "src" / "masksmith"
    wanted = {
        f"masksmith/{path.relative_to(package).as_posix()}" for path in package.rglob("*") if path.is_file()
    }
    assert packed == wanted
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import masksmith as ms; from pathlib import Path;"
        "assert Path(ms.__file__).is_relative_to(sys.argv[1]), ms.__file__; print(len(ms.recipes()))"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(tmp_path / "there")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20
