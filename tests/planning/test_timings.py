import json
import logging

import pytest
import torch

from masksmith.planning import timings as m

TIMING = m.Timing(1.0, 0.5, 0.25, 0.125, (0.2, 0.3), (0.1, 0.2), 7)


def test_the_processor_is_the_first_one_and_only_flags_that_matter_count():
    text = (
        "processor\t: 0\nmodel name\t: Fast CPU @ 2:1\nflags\t\t: fpu amx_bf16 sse\n\n"
        "processor\t: 1\nmodel name\t: Slow CPU\nflags\t\t: fpu\n"
    )
    assert m._processor(text) == ("Fast CPU @ 2:1", ("amx_bf16",))
    assert m._processor("") == ("", ())


def test_the_machine_is_the_same_until_a_fact_changes(monkeypatch):
    before, facts = m.machine_id(), m.machine_facts()
    assert before == m.machine_id()
    assert len(before) == 16
    assert facts["torch"] == torch.__version__
    assert facts["processor"]
    for name in facts:
        monkeypatch.setattr(m, "machine_facts", lambda name=name: facts | {name: "another"})
        assert m.machine_id() != before


def test_the_file_lies_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.delenv("MASKSMITH_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert m.Memory().path == tmp_path / "home/.cache/masksmith/measurements.json"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert m.measurements_json() == tmp_path / "xdg/masksmith/measurements.json"
    monkeypatch.setenv("MASKSMITH_CACHE", str(tmp_path / "own"))
    assert m.measurements_json() == tmp_path / "own/measurements.json"


def test_what_another_process_wrote_meanwhile_stays(tmp_path):
    one, other = m.Memory(tmp_path / "m.json"), m.Memory(tmp_path / "m.json")
    one.put("a", TIMING)
    other.put("b", TIMING)
    one.put("c", TIMING)
    assert [one.get(key) for key in "abc"] == [TIMING] * 3


def test_another_machine_remembers_its_own(tmp_path, monkeypatch):
    memory = m.Memory(tmp_path / "m.json")
    memory.put("a", TIMING)
    here = m.machine_id()
    monkeypatch.setattr(m, "machine_id", lambda: "elsewhere")
    assert memory.get("a") is None
    memory.put("b", TIMING)
    monkeypatch.setattr(m, "machine_id", lambda: here)
    assert memory.get("a") == TIMING
    assert memory.get("b") is None


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("{", "is not JSON"),
        ("\udc80", "is no text"),
        ('{"format": 99, "machines": {}}', "of format 99, this masksmith reads 1"),
        ("[]", "of format None"),
        ('{"format": 1, "machines": []}', "another form"),
        ('{"format": 1, "machines": {"x": {}}}', "another form"),
        ('{"format": 1, "machines": {"x": {"timings": {"k": {"step_s": 1}}}}}', "another form"),
    ],
)
def test_a_damaged_or_foreign_file_is_set_aside(tmp_path, caplog, content, why):
    path = tmp_path / "m.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    with caplog.at_level(logging.WARNING, logger="masksmith"):
        assert m.Memory(path).get("k") is None
    assert why in caplog.text
    assert "set aside as m.json.aside" in caplog.text
    assert (tmp_path / "m.json.aside").read_bytes() == content.encode(errors="surrogateescape")
    m.Memory(path).put("k", TIMING)
    assert m.Memory(path).get("k") == TIMING


def test_a_timing_with_a_spread_of_three_is_of_another_form(tmp_path, caplog):
    path = tmp_path / "m.json"
    m.Memory(path).put("k", TIMING)
    value = json.loads(path.read_text())
    value["machines"][m.machine_id()]["timings"]["k"]["step_spread_s"] = [1, 2, 3]
    path.write_text(json.dumps(value))
    with caplog.at_level(logging.WARNING, logger="masksmith"):
        assert m.Memory(path).get("k") is None
    assert "expected two numbers each" in caplog.text


def test_a_folder_that_cannot_be_written_costs_only_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("in the way")
    memory = m.Memory(tmp_path / "file" / "m.json")
    with caplog.at_level(logging.WARNING, logger="masksmith"):
        memory.put("k", TIMING)
    assert memory.get("k") is None
    assert "cannot be written" in caplog.text


def test_a_file_that_cannot_be_read_costs_only_a_warning(tmp_path, caplog):
    (tmp_path / "m.json").mkdir()
    with caplog.at_level(logging.WARNING, logger="masksmith"):
        assert m.Memory(tmp_path / "m.json").get("k") is None
    assert "cannot be read" in caplog.text


def test_forgetting_is_for_this_machine_only(tmp_path, monkeypatch):
    memory = m.Memory(tmp_path / "m.json")
    memory.put("k", TIMING)
    with monkeypatch.context() as patch:
        patch.setattr(m, "machine_id", lambda: "another")
        memory.put("k", TIMING)
    memory.forget()
    memory.forget()  # nothing left to forget
    assert memory.get("k") is None
    monkeypatch.setattr(m, "machine_id", lambda: "another")
    assert memory.get("k") == TIMING
