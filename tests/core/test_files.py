import errno
import multiprocessing
import os
import re
import socket
from pathlib import Path

import pytest

import masksmith
from masksmith.core import files
from masksmith.core.errors import DiskFullError, InputError
from masksmith.core.files import (
    Ledger,
    append_text,
    atomic_folder,
    atomic_path,
    digest,
    file_digest,
    folder_lock,
    no_room,
    read_json,
    remove,
    sync_folder,
    write_json,
    write_text,
)


def test_a_failed_write_leaves_the_old_file_and_no_scrap(tmp_path):
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "a.txt") as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    with atomic_folder(tmp_path / "masks") as temporary:
        (temporary / "old.png").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(tmp_path / "masks") as temporary:  # noqa: PT012
        (temporary / "new.png").write_text("new")
        raise RuntimeError
    assert [path.name for path in tmp_path.rglob("*")] == ["masks", "old.png"]
    with atomic_folder(tmp_path / "masks") as temporary:
        (temporary / "old.png").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["masks", "old.png"]
    assert (tmp_path / "masks" / "old.png").read_text() == "new"


def test_what_a_replaced_folder_holds_of_others_goes_into_the_new_one(tmp_path):
    (tmp_path / "masks" / "mine").mkdir(parents=True)
    (tmp_path / "masks" / "mine" / "a.txt").write_text("mine")
    (tmp_path / "masks" / "link").symlink_to("nowhere")
    for _ in range(2):
        with atomic_folder(tmp_path / "masks") as temporary:
            (temporary / "1.png").write_text("x")
    (tmp_path / "masks").rename(tmp_path / ".masks.7.masksmith-old")  # killed before the old one was settled
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "1.png").write_text("new")
    with folder_lock(tmp_path):
        pass
    assert (tmp_path / "masks" / "mine" / "a.txt").read_text() == "mine"
    assert (tmp_path / "masks" / "link").is_symlink()
    assert (tmp_path / "masks" / "1.png").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [files.LOCK, "masks"]


def test_only_names_of_ours_are_swept(tmp_path):
    """And neither through a link, nor in a project inside, nor where somebody has put a file in the folder's place."""
    theirs = (
        "x.tmp",
        ".x.tmp",
        ".x.12.tmp",
        ".x.old",
        ".x.12.old",
        ".x.y.masksmith-tmp",
        "x.12.masksmith-tmp",
        ".lock",
    )
    kept = [*theirs, "a/.x.tmp", "inner/.x.12.masksmith-tmp", "elsewhere/.x.12.masksmith-tmp", "masks"]
    root, elsewhere = tmp_path / "p", tmp_path / "p" / "elsewhere"
    for name in (*kept, f"inner/{files.LOCK}"):
        write_text(root / name, name)
    for name in (".d.tmp", ".d.12.old"):
        write_text(root / name / "inside", "mine")
    write_text(root / ".masks.12.masksmith-old" / "1.png", "old")
    elsewhere.rename(tmp_path / "elsewhere")
    elsewhere.symlink_to(tmp_path / "elsewhere")
    with folder_lock(root):
        pass
    assert all((root / name).read_text() == name for name in kept)
    assert all((root / name / "inside").exists() for name in (".d.tmp", ".d.12.old"))
    assert (root / ".masks.12.masksmith-old" / "1.png").read_text() == "old"


def test_a_folder_or_link_in_the_place_of_a_file_of_ours_is_refused_and_kept(tmp_path):
    write_text(tmp_path / "mine" / "a", "mine")
    (tmp_path / files.LOCK).symlink_to(tmp_path / "mine" / "a")
    with pytest.raises(InputError, match=r"\.masksmith\.lock: a link, which masksmith does not"):
        folder_lock(tmp_path).__enter__()
    for work in (
        lambda: remove(tmp_path / "mine"),
        lambda: write_text(tmp_path / "mine", "x"),
        lambda: write_text(tmp_path / "mine" / "a" / "b", "x"),
    ):
        with pytest.raises(InputError, match=r"mine.*: cannot be written, something else is in its place"):
            work()
    assert (tmp_path / "mine" / "a").read_text() == "mine"


def test_matching_files_are_removed_and_folders_that_are_empty_then(tmp_path):
    for name in ("1.npy", "mine.npy", "sub/2.npy", "sub/deep/3.npy"):
        write_text(tmp_path / "a" / name, "x")
    (tmp_path / "a" / "sub" / "empty").mkdir()
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    files.remove_matching(tmp_path / "linked", re.compile(r".*"))
    files.remove_matching(tmp_path / "absent", re.compile(r".*"))
    files.remove_matching(tmp_path / "a", re.compile(r"\d\.npy"))
    left = sorted(str(path.relative_to(tmp_path / "a")) for path in (tmp_path / "a").rglob("*"))
    assert left == ["mine.npy", "sub", "sub/empty"]
    (tmp_path / "a" / "sub" / "empty").rmdir()
    (tmp_path / "a" / "sub").rmdir()
    files.remove_matching(tmp_path / "a", re.compile(r"mine\.npy"))
    assert not (tmp_path / "a").exists()


def test_other_errors_pass(tmp_path):
    with pytest.raises(OSError, match="broken"), no_room(tmp_path):
        raise OSError(errno.EIO, "broken")
    with pytest.raises(DiskFullError, match=r"x\.npy: the disk is full"), no_room(tmp_path / "x.npy"):
        raise OSError(errno.ENOSPC, "no space")


def test_json(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, None]})
    assert read_json(tmp_path / "a.json") == {"b": [1, None]}
    (tmp_path / "a.json").write_text('{"b": \n')
    with pytest.raises(InputError, match=r"a\.json: line 2 is not JSON"):
        read_json(tmp_path / "a.json")


def test_digest_counts_the_borders(tmp_path):
    assert digest("ab", "c") != digest("a", "bc")
    (tmp_path / "a").write_text("x")
    assert len(file_digest(tmp_path / "a")) == 40


def test_ledger(tmp_path):
    ledger = Ledger(tmp_path)
    assert not ledger.is_done("train", "k")
    ledger.mark_done("train", "k")
    assert Ledger(tmp_path).is_done("train", "k")
    assert not ledger.is_done("train", "other")
    assert ledger.knows("train")
    ledger.forget("train")
    ledger.forget("never")
    assert not ledger.knows("train")


def _hold(folder, ready, leave):
    with folder_lock(folder):
        ready.set()
        leave.wait(30)


def test_scrap_of_a_killed_process_is_swept(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / ".last.npy.123.masksmith-tmp").write_text("half")
    (tmp_path / ".masks.123.masksmith-tmp").mkdir()
    with folder_lock(tmp_path):
        assert sorted(path.name for path in tmp_path.rglob("*")) == [".masksmith.lock", "runs"]


def test_a_folder_that_cannot_be_one(tmp_path):
    (tmp_path / "file").write_text("x")
    with (
        pytest.raises(InputError, match=r"file: cannot be written as a folder"),
        folder_lock(tmp_path / "file"),
    ):
        pass


def test_second_process_is_refused_with_the_first_ones_pid(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, leave))
    process.start()
    assert ready.wait(60)
    try:
        with (
            pytest.raises(
                InputError,
                match=rf"another masksmith is at work here \(pid {process.pid} on {socket.gethostname()}\)",
            ),
            folder_lock(tmp_path),
        ):
            pass
    finally:
        leave.set()
        process.join()
    with folder_lock(tmp_path):
        assert f"pid {os.getpid()}" in (tmp_path / files.LOCK).read_text()


@pytest.fixture
def points(monkeypatch):
    seen = []
    monkeypatch.setattr(files, "on_write", lambda path, phase: seen.append((path.name, phase)))
    return seen


def test_every_change_on_disk_is_a_write_point(tmp_path, points):
    write_text(tmp_path / "a.txt", "x")
    append_text(tmp_path / "a.txt", "y\n")
    remove(tmp_path / "a.txt")
    remove(tmp_path / "a.txt")  # not there, so nothing changes
    for _ in range(2):
        with atomic_folder(tmp_path / "m") as temporary:
            files.write_member(temporary / "1.png", b"x")
    names = [("a.txt", phase) for phase in ("write", "written", "renamed", "append", "appended", "remove")]
    folder = [("m", "write"), ("1.png", "write"), ("m", "written")]
    assert points == [*names, *folder, ("m", "renamed"), *folder, ("m", "moved"), ("m", "renamed")]


def test_nothing_else_in_the_house_writes():
    """A write that went past files.py would be no write point, and `make faults` would not see it."""
    root = Path(masksmith.__file__).parent
    writes = re.compile(
        r"\.(write_text|write_bytes|unlink|rename|rmtree|touch|mkdir|tofile)\(|np\.save|save_file|open\([^)]*[\"'][wax]b?"
    )
    allowed = {"files.py": None, "data/store.py": None}
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in root.rglob("*.py")
        if str(path.relative_to(root)) not in allowed
        for line in path.read_text().splitlines()
        if writes.search(line)
    ]
    assert found == []


def test_a_full_disk_at_every_write_point_is_a_clear_refusal(tmp_path, monkeypatch):
    def full(path, phase):
        raise OSError(errno.ENOSPC, "no space")

    (tmp_path / "old").write_text("x")
    monkeypatch.setattr(files, "on_write", full)
    for work in (
        lambda: write_text(tmp_path / "a", "x"),
        lambda: append_text(tmp_path / "a", "x"),
        lambda: remove(tmp_path / "old"),
        lambda: folder_lock(tmp_path).__enter__(),
        lambda: atomic_folder(tmp_path / "m").__enter__(),
    ):
        with pytest.raises(DiskFullError, match="the disk is full"):
            work()


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_read_only_folder(tmp_path, monkeypatch, code):
    def refuse(*_arguments, **_options):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "touch", refuse)
        with (
            pytest.raises(
                InputError, match=rf"p: cannot be written as a folder \({os.strerror(code)}\); choose"
            ),
            folder_lock(tmp_path / "p"),
        ):
            pass
    for name in ("write_bytes", "unlink", "mkdir", "rename"):
        monkeypatch.setattr(Path, name, refuse)
    with pytest.raises(InputError, match=r"m: cannot be written"), atomic_folder(tmp_path / "m"):
        pass
    with pytest.raises(InputError, match=rf"a\.txt: cannot be written \({os.strerror(code)}\); what was"):
        write_text(tmp_path / "a.txt", "x")


def test_an_old_folder_that_cannot_be_put_back_stays(tmp_path, monkeypatch):
    """The disk becomes read-only between the two renames: the next command that can write puts the old folder back."""
    with atomic_folder(tmp_path / "m") as temporary:
        (temporary / "old").write_text("x")
    rename, calls = Path.rename, []

    def only_once(path, target):
        calls.append(target)
        if len(calls) > 1:
            raise OSError(errno.EROFS, "read-only")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", only_once)
        patch.setattr(files, "rename", only_once)
        with pytest.raises(InputError, match="m: cannot be written"), atomic_folder(tmp_path / "m"):
            pass
    assert not (tmp_path / "m").exists()
    with folder_lock(tmp_path):
        assert (tmp_path / "m" / "old").exists()


def test_other_errors_of_a_folder_pass(tmp_path, monkeypatch):
    def broken(*_arguments, **_options):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(Path, "touch", broken)
    with pytest.raises(OSError, match="broken"), folder_lock(tmp_path):
        pass


def test_appending_ends_a_torn_line(tmp_path):
    append_text(tmp_path / "sub" / "a", "one\n")
    (tmp_path / "sub" / "a").write_text("one\ntw")
    append_text(tmp_path / "sub" / "a", "three\n")
    append_text(tmp_path / "sub" / "a", "four\n")
    assert (tmp_path / "sub" / "a").read_text() == "one\ntw\nthree\nfour\n"


def test_names_are_flushed_where_the_file_system_can(tmp_path, monkeypatch):
    calls = []

    def fsync(descriptor):
        calls.append(descriptor)
        raise OSError(code, "no")

    monkeypatch.setattr(os, "fsync", fsync)
    code = errno.EINVAL
    sync_folder(tmp_path)
    code = errno.EIO
    with pytest.raises(OSError, match="no"):
        sync_folder(tmp_path)
    assert len(calls) == 2


def test_a_folder_that_was_moved_away_is_put_back(tmp_path):
    for name, content in (
        (".masks.12.masksmith-old", "old"),
        (".cards.12.masksmith-old", "old"),
        ("cards", "new"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_text(content)
    with folder_lock(tmp_path):
        assert sorted(path.name for path in tmp_path.iterdir()) == [".masksmith.lock", "cards", "masks"]
    assert (tmp_path / "masks" / "1.png").read_text() == "old"
    assert (tmp_path / "cards" / "1.png").read_text() == "new"


def test_json_that_is_no_text(tmp_path):
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff')
    with pytest.raises(InputError, match=r"a\.json: byte 7 is no text"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_in_place_of_a_folder_is_replaced_and_what_it_leads_to_is_kept(tmp_path, dangling):
    if not dangling:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "elsewhere" / "mine.txt").write_text("mine")
    (tmp_path / "masks").symlink_to(tmp_path / "elsewhere")
    with atomic_folder(tmp_path / "masks") as temporary:
        (temporary / "new.png").write_text("new")
    assert not (tmp_path / "masks").is_symlink()
    assert [path.name for path in (tmp_path / "masks").iterdir()] == ["new.png"]
    if not dangling:
        assert [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["mine.txt"]
    expected = ["masks"] if dangling else ["elsewhere", "masks"]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected  # no scrap


def test_a_linked_scrap_is_removed_and_what_it_leads_to_is_kept(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.txt").write_text("mine")
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / ".masks.1.masksmith-tmp").symlink_to(tmp_path / "elsewhere")
    with folder_lock(tmp_path / "project"):
        assert [path.name for path in (tmp_path / "project").iterdir()] == [".masksmith.lock"]
    assert (tmp_path / "elsewhere" / "mine.txt").read_text() == "mine"
