import errno
import os
import re
from pathlib import Path

import pytest

import masksmith
from masksmith.core import files
from masksmith.core.errors import DiskFullError, InputError
from masksmith.core.files import (
    append_text,
    atomic_folder,
    atomic_path,
    digest,
    file_digest,
    no_room,
    read_json,
    remove,
    sync_folder,
    write_json,
    write_text,
)
from masksmith.core.ledger import Ledger
from masksmith.core.locks import folder_lock


def names_in(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_failed_write_leaves_the_old_file_or_folder_and_nothing_else(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with atomic_folder(tmp_path / "m") as temporary:
        (temporary / "old.png").write_text("old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "m") as temporary:  # noqa: PT012
        (temporary / "new.png").write_text("new")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names_in(tmp_path) == ["a.txt", "m", "m/old.png"]
    with atomic_folder(tmp_path / "m") as temporary:
        (temporary / "old.png").write_text("new")
    assert (tmp_path / "m" / "old.png").read_text() == "new"
    assert names_in(tmp_path) == ["a.txt", "m", "m/old.png"]


def test_a_link_or_a_file_in_place_of_a_folder_is_refused_and_stays(tmp_path):
    write_text(tmp_path / "there" / "mine.txt", "mine")
    for name, target in (("m", "there"), ("n", "nowhere")):
        (tmp_path / name).symlink_to(tmp_path / target)
    write_text(tmp_path / "o", "mine")
    before = names_in(tmp_path)
    for name, what in (("m", "a link"), ("n", "a link"), ("o", "a file")):
        with (
            pytest.raises(InputError, match=f"{name}: it is {what}, expected a folder"),
            atomic_folder(tmp_path / name) as temporary,
        ):
            (temporary / "new.png").write_text("new")
    assert names_in(tmp_path) == before
    assert (tmp_path / "o").read_text() == "mine"


def test_a_folder_of_a_person_where_a_file_of_ours_has_its_name_is_kept(tmp_path):
    write_text(tmp_path / "m" / "a.png" / "mine.txt", "mine")
    with atomic_folder(tmp_path / "m") as temporary:
        (temporary / "a.png").write_text("new")
    assert (tmp_path / "m" / "a.png").read_text() == "new"
    assert [path.read_text() for path in tmp_path.rglob("mine.txt")] == ["mine"]


def test_matching_files_are_removed_with_the_folders_that_this_empties(tmp_path):
    for name in ("1.npy", "mine.npy", "sub/2.npy", "sub/deep/3.npy"):
        write_text(tmp_path / "a" / name, "x")
    (tmp_path / "a" / "sub" / "empty").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    files.remove_matching(tmp_path / "linked", re.compile(r".*"))
    files.remove_matching(tmp_path / "absent", re.compile(r".*"))
    files.remove_matching(tmp_path / "a", re.compile(r"\d\.npy"))
    assert names_in(tmp_path / "a") == ["mine.npy", "sub", "sub/empty"]
    (tmp_path / "a" / "sub" / "empty").rmdir()
    (tmp_path / "a" / "sub").rmdir()
    files.remove_matching(tmp_path / "a", re.compile(r"mine\.npy"))
    assert not (tmp_path / "a").exists()


def test_a_file_in_place_of_a_folder_or_the_other_way_round_is_refused_and_kept(tmp_path):
    write_text(tmp_path / "mine" / "a", "mine")
    for work in (
        lambda: remove(tmp_path / "mine"),
        lambda: write_text(tmp_path / "mine", "x"),
        lambda: write_text(tmp_path / "mine" / "a" / "b", "x"),
    ):
        with pytest.raises(InputError, match=r"mine.*: cannot be written, something else is in its place"):
            work()
    assert (tmp_path / "mine" / "a").read_text() == "mine"


def test_appending_ends_a_torn_line(tmp_path):
    append_text(tmp_path / "sub" / "a", "one\n")
    (tmp_path / "sub" / "a").write_text("one\ntw")
    append_text(tmp_path / "sub" / "a", "three\n")
    append_text(tmp_path / "sub" / "a", "four\n")
    assert (tmp_path / "sub" / "a").read_text() == "one\ntw\nthree\nfour\n"


def test_json_and_the_ledger(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, None]})
    assert read_json(tmp_path / "a.json") == {"b": [1, None]}
    for content, message in ((b'{"b": \n', "line 2 is not JSON"), (b'{"a": "\xff', "byte 7 is no text")):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(InputError, match=rf"a\.json: {message}"):
            read_json(tmp_path / "a.json")
    ledger = Ledger(tmp_path)
    assert not ledger.is_done("train", "k")
    ledger.mark_done("train", "k")
    assert Ledger(tmp_path).is_done("train", "k")
    assert not ledger.is_done("train", "other")
    assert ledger.knows("train")
    ledger.forget("train")
    ledger.forget("never")
    assert not ledger.knows("train")


def test_digests(tmp_path):
    assert digest("ab", "c") != digest("a", "bc")
    (tmp_path / "a").write_text("x")
    assert len(file_digest(tmp_path / "a")) == 40


def test_every_change_on_disk_is_a_write_point(tmp_path, monkeypatch):
    points = []
    monkeypatch.setattr(files, "on_write", lambda path, phase: points.append((path.name, phase)))
    write_text(tmp_path / "a.txt", "x")
    append_text(tmp_path / "a.txt", "y\n")
    remove(tmp_path / "a.txt")
    remove(tmp_path / "a.txt")  # absent, so nothing changes
    for _ in range(2):
        with atomic_folder(tmp_path / "m") as temporary:
            files.write_member(temporary / "1.png", b"x")
    names = [("a.txt", phase) for phase in ("write", "written", "renamed", "append", "appended", "remove")]
    folder = [("m", "write"), ("1.png", "write"), ("m", "written")]
    assert points == [*names, *folder, ("m", "renamed"), *folder, ("m", "moved"), ("m", "renamed")]


def test_no_other_module_writes():
    """A write outside these modules would be no write point, and `make faults` would not see it.

    What ``deploy`` writes lies in no project: each image's files are made aside and moved, and its own tests kill it.
    ``steps/outputs.py`` writes into a folder aside, which is moved whole. What ``training/loggers.py`` writes is no
    part of a training; ``steps/study.py`` makes the folder of Optuna's database; ``training/devices.py``
    writes into a temporary folder where its processes meet.
    """
    root = Path(masksmith.__file__).parent
    writes = re.compile(
        r"\.(write_text|write_bytes|unlink|rename|rmtree|touch|mkdir|tofile)\(|np\.savez?\((?!raw)|save_file|open\([^)]*[\"'][wax]b?"
    )
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        if str(path.relative_to(root))
        not in (
            *("core/files.py", "core/locks.py", "data/store.py", "steps/outputs.py"),
            *("training/devices.py", "training/loggers.py", "steps/study.py"),
        )
        if path.relative_to(root).parts[0] != "deploy"
        for line in path.read_text().splitlines()
        if writes.search(line) and "temporary.open(" not in line  # the path that atomic_path yields
        if "Path(name).unlink()" not in line  # a file without a name
    ]
    assert found == []


def raising(code):
    def fail(*_arguments, **_options):
        raise OSError(code, os.strerror(code))

    return fail


def test_a_full_disk_at_every_write_point_is_a_clear_refusal(tmp_path, monkeypatch):
    (tmp_path / "old").write_text("x")
    monkeypatch.setattr(files, "on_write", raising(errno.ENOSPC))
    for work in (
        lambda: write_text(tmp_path / "a", "x"),
        lambda: append_text(tmp_path / "a", "x"),
        lambda: remove(tmp_path / "old"),
        lambda: folder_lock(tmp_path).__enter__(),
        lambda: atomic_folder(tmp_path / "m").__enter__(),
    ):
        with pytest.raises(DiskFullError, match="the disk is full"):
            work()


def test_a_read_only_folder(tmp_path, monkeypatch):
    for code in (errno.EROFS, errno.EACCES, errno.EPERM):
        text = re.escape(os.strerror(code))
        with monkeypatch.context() as patch:
            patch.setattr(Path, "touch", raising(code))
            with pytest.raises(InputError, match=rf"p: cannot be written as a folder \({text}\); choose"):
                folder_lock(tmp_path / "p").__enter__()
            for name in ("write_bytes", "unlink", "mkdir", "rename"):
                patch.setattr(Path, name, raising(code))
            with pytest.raises(InputError, match=r"m: cannot be written"):
                atomic_folder(tmp_path / "m").__enter__()
            with pytest.raises(InputError, match=rf"a\.txt: cannot be written \({text}\); what was"):
                write_text(tmp_path / "a.txt", "x")


def test_other_errors_pass(tmp_path, monkeypatch):
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), no_room(tmp_path):
        raising(errno.EIO)()
    with pytest.raises(DiskFullError, match=r"x\.npy: the disk is full"), no_room(tmp_path / "x.npy"):
        raising(errno.ENOSPC)()
    monkeypatch.setattr(Path, "touch", raising(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        folder_lock(tmp_path).__enter__()


def test_names_are_flushed_where_the_file_system_can(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", raising(errno.EINVAL))
    sync_folder(tmp_path)
    monkeypatch.setattr(os, "fsync", raising(errno.EIO))
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync_folder(tmp_path)


def test_folders_in_a_folder_are_replaced_again_and_again(tmp_path):
    for text in "abc":
        with atomic_folder(tmp_path / "m") as temporary:
            (temporary / "car").mkdir()
            (temporary / "car" / "1.png").write_text(text)
        (tmp_path / "m" / "car" / "note.txt").write_text("a person's")
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert {path.name: path.read_text() for path in (tmp_path / "m" / "car").iterdir()} == {
        "1.png": "c",
        "note.txt": "a person's",
    }
    with atomic_folder(tmp_path / "m") as temporary:
        (temporary / "car").write_text("a file now")
    (left,) = tmp_path.glob(".m.*")
    assert (left / "car" / "note.txt").read_text() == "a person's"
