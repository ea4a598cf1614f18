"""Patches: what is read back, two writers, a full disk at any moment, and tables that a person has edited."""

import csv
import errno
import threading

import numpy as np
import pytest

from masksmith.core import files
from masksmith.core.errors import DiskFullError, InputError
from masksmith.project.corrections import ConflictError, Correction, Corrections, wrong_values

MASK = np.array([[0, 1, 2], [255, 0, 1]], np.uint8)
NAMES = ("0001", "0", "a/b c", "<b>&\"'x", "=1+1", " spaced", 'ü, "quoted"')


def test_what_is_said_is_read_back_whatever_the_names(tmp_path):
    patch = Corrections(tmp_path / "corrections")
    assert patch.rows == {}
    for name in NAMES:
        patch.mend(name, MASK, note='a, "b"', version=0)
        patch.say(name, "wrong", version=1)
    patch.say(NAMES[0], "mend", version=2)
    patch.say(NAMES[1], "", version=2)
    other = Corrections(tmp_path / "corrections")
    assert other.rows == patch.rows
    assert set(other.rows) == {*NAMES} - {NAMES[1]}
    assert other.rows[NAMES[0]] == Correction(NAMES[0], "mend", "", 3)
    for name in NAMES:
        assert np.array_equal(other.mask(name, hw=(2, 3), classes=3), MASK)
        assert (tmp_path / "corrections" / f"{name}.png").exists()
    with patch.table.open(newline="") as file:
        assert next(csv.reader(file)) == ["id", "action", "note", "version"]
    assert patch.of(NAMES[1]).version == 3  # taken back: the next one is not taken for the first


def test_the_second_of_two_writers_is_told_what_is_there(tmp_path):
    patch = Corrections(tmp_path / "corrections")
    patch.mend("a", MASK, note="first", version=0)
    for write in (lambda: patch.say("a", "drop", version=0), lambda: patch.mend("a", 0 * MASK, version=0)):
        with pytest.raises(ConflictError) as told:
            write()
        assert told.value.now == Correction("a", "mend", "first", 1)
    assert np.array_equal(patch.mask("a", hw=(2, 3), classes=3), MASK)


def test_of_many_threads_each_version_has_one_winner(tmp_path):
    patch, won = Corrections(tmp_path / "corrections"), []

    def work(number):
        for version in range(5):
            try:
                won.append((patch.say("a", "keep", note=str(number), version=version).version, number))
            except ConflictError:
                continue

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(version for version, _ in won) == list(range(1, len(won) + 1))
    assert Corrections(patch.folder).rows == patch.rows


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    patch = Corrections(tmp_path / "corrections")
    patch.mend("a", MASK, version=0)
    before = patch.table.read_bytes()
    for name, phase in (("a.png", "write"), ("a.png", "written"), ("corrections.csv", "written")):

        def full(path, now, name=name, phase=phase):
            if (path.name, now) == (name, phase):
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(files, "on_write", full)
        with pytest.raises(DiskFullError, match="the disk is full"):
            patch.mend("a", 1 - np.minimum(MASK, 1), version=1)
        assert patch.of("a") == Correction("a", "mend", "", 1)
        assert patch.table.read_bytes() == before
        assert sorted(path.name for path in patch.folder.iterdir()) == ["a.png", "corrections.csv"]
    monkeypatch.setattr(files, "on_write", None)
    assert patch.mend("a", 0 * MASK, version=1).version == 2


def test_a_table_that_a_person_edits_meanwhile_is_taken_over(tmp_path):
    patch = Corrections(tmp_path / "corrections")
    patch.say("a", "keep", version=0)
    patch.say("b", "keep", version=0)
    patch.table.write_text("\ufeffid,action,note\na,drop,by hand\nc,wrong,\n", encoding="utf-8")
    assert patch.rows == {"a": Correction("a", "drop", "by hand", 2), "c": Correction("c", "wrong", "", 1)}
    with pytest.raises(ConflictError):  # a window has version 1
        patch.say("a", "keep", version=1)
    patch.say("c", "keep", version=1)
    assert set(Corrections(patch.folder).rows) == {"a", "c"}


def test_all_that_is_wrong_with_a_table_is_named(tmp_path):
    folder = tmp_path / "corrections"
    folder.mkdir()
    table = folder / "corrections.csv"
    table.write_text(
        "id,action,note,version\na,kep,,1\nb,,,1\n../c,keep,,1\nd,keep,,x\ne,keep,,1\ne,drop,,1\n"
    )
    with pytest.raises(InputError) as told:
        Corrections(folder)
    text = str(told.value)
    for part in (
        "row 2: 'a': action 'kep'",
        "row 3: 'b': no action",
        "row 4",
        "'../c'",
        "version 'x'",
        "'e' is there twice",
    ):
        assert part in text
    table.write_text("name;action\n")
    with pytest.raises(InputError, match="no column action, id; expected id, action, note, version"):
        Corrections(folder)
    table.write_bytes(b"id,action\n\xff\xfe,keep\n")
    with pytest.raises(InputError, match="cannot be read as a table"):
        Corrections(folder)


def test_words_and_masks_that_cannot_be(tmp_path):
    patch = Corrections(tmp_path / "corrections")
    for action, note, said in (
        ("kep", "", "action 'kep'; expected keep, drop"),
        ("keep", "x" * 1001, "1001 characters; expected one line"),
        ("keep", "a\nb", "without control characters"),
        ("mend", "", "'mend' without a mended mask"),
    ):
        with pytest.raises(InputError, match=said):
            patch.say("a", action, note=note, version=0)
    assert not patch.table.exists()
    with pytest.raises(InputError, match="not there; expected the mended mask"):
        patch.mask("a", hw=(2, 3), classes=3)
    patch.mend("a", MASK, version=0)
    with pytest.raises(InputError, match=r"values 2; expected one channel of 8 bits, 2x3, of 0 to 1 and 255"):
        patch.mask("a", hw=(2, 3), classes=2)
    with pytest.raises(InputError, match=r"uint8 of shape \(2, 3\); expected one channel of 8 bits, 3x2"):
        patch.mask("a", hw=(3, 2), classes=3)
    patch.path("a").write_bytes(b"no PNG")
    with pytest.raises(InputError, match="cannot be read as a PNG"):
        patch.mask("a", hw=(2, 3), classes=3)
    with pytest.raises(InputError, match="cannot be a file name"):
        patch.path("../a")
    assert wrong_values(np.arange(9, dtype=np.uint8)[None], 2) == "values 2, 3, 4, 5, 6 …"
