import errno
import multiprocessing
import os

import pytest

from masksmith.errors import DiskFullError, InputError
from masksmith.files import (
    Ledger,
    atomic_folder,
    atomic_path,
    digest,
    file_digest,
    folder_lock,
    no_room,
    read_json,
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
        (temporary / "new.png").write_text("new")
    assert [path.name for path in tmp_path.rglob("*")] == ["masks", "new.png"]


def test_other_errors_pass(tmp_path):
    with pytest.raises(PermissionError), no_room(tmp_path):
        raise PermissionError(errno.EACCES, "no")
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
    (tmp_path / "runs" / ".last.npy.123.tmp").write_text("half")
    (tmp_path / ".masks.123.tmp").mkdir()
    with folder_lock(tmp_path):
        assert sorted(path.name for path in tmp_path.rglob("*")) == [".lock", "runs"]


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
            pytest.raises(InputError, match=rf"another masksmith is at work here \(pid {process.pid} on "),
            folder_lock(tmp_path),
        ):
            pass
    finally:
        leave.set()
        process.join()
    with folder_lock(tmp_path):
        assert f"pid {os.getpid()}" in (tmp_path / ".lock").read_text()


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
    (tmp_path / "project" / ".masks.1.tmp").symlink_to(tmp_path / "elsewhere")
    with folder_lock(tmp_path / "project"):
        assert [path.name for path in (tmp_path / "project").iterdir()] == [".lock"]
    assert (tmp_path / "elsewhere" / "mine.txt").read_text() == "mine"
