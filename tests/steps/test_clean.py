"""What takes room in a project and may go, and what a machine can do."""

import shutil

import pytest

import masksmith as ms
from masksmith import cli
from masksmith.core.errors import InputError
from masksmith.steps import doctor


def test_what_may_go_is_shown_and_goes_only_when_it_is_named(trained, tmp_path, capsys):
    out = shutil.copytree(trained, tmp_path / "project")
    idle = shutil.copytree(next(out.glob("runs/smoke-*")), out / "runs" / "smoke-00000000")
    (out / "submissions").mkdir(exist_ok=True)
    (out / "submissions" / "2026-01-01-run.csv").write_text("id,rle_mask\n")
    sizes = ms.clean(out)
    assert sizes["cache"] > 0
    assert sizes["runs"] > (idle / "recipe.yaml").stat().st_size
    assert sizes["submissions"] > 0
    cli.clean(out, remove=["runs"])
    assert "runs (removed)" in capsys.readouterr().out
    assert not idle.exists()
    assert ms.clean(out, remove=["cache", "submissions"])["runs"] == 0
    assert ms.clean(out) == {"cache": 0, "runs": 0, "submissions": 0}
    assert ms.submit(out).ids == 8  # what is left is whole
    with pytest.raises(InputError, match=r"--remove: .*cash"):
        ms.clean(out, remove=["cash"])


def test_a_project_without_a_run_has_nothing_idle(example, tmp_path):
    ms.check(example / "data", tmp_path / "project")
    assert ms.clean(tmp_path / "project")["runs"] == 0


def test_the_doctor_says_what_lacks_and_what_to_do(tmp_path, monkeypatch, capsys):
    cli.doctor(tmp_path)
    shown = capsys.readouterr().out
    for word in ("masksmith", "torch", "processor", "memory", "disk", "weights", "[readers]"):
        assert word in shown
    monkeypatch.setattr(doctor, "find_spec", lambda module: None)
    monkeypatch.setattr(doctor, "available_bytes", lambda device: 2**30)
    monkeypatch.setattr(doctor, "wheel_file", lambda encoder: None)
    monkeypatch.setattr(doctor, "_LEAST_DISK", 2**80)
    lines = {line.what: line for line in ms.doctor(tmp_path / "absent" / "project")}
    assert "masksmith[onnx]" in lines["[onnx]"].advice
    assert "small images" in lines["memory"].advice
    assert "pip install" in lines["weights"].advice
    assert str(tmp_path) in lines["disk"].found
    assert lines["disk"].advice
    monkeypatch.setattr(
        doctor.metadata,
        "version",
        lambda package: (_ for _ in ()).throw(doctor.metadata.PackageNotFoundError),
    )
    assert "not installed" in ms.doctor(tmp_path)[1].found
