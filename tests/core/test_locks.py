"""The lock of a folder, and the leftovers of killed processes, which whoever takes it removes."""

import errno
import multiprocessing
import os
import socket
import threading
from pathlib import Path

import pytest

from masksmith.core import files
from masksmith.core.errors import InputError
from masksmith.core.files import atomic_folder, read_json, write_text
from masksmith.core.locks import LOCK, folder_lock, update_json
from tests.core.test_files import names_in


def _hold(folder, ready, leave):
    with folder_lock(folder):
        ready.set()
        leave.wait(30)


def test_a_second_process_is_refused_with_the_pid_of_the_first(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, leave))
    process.start()
    assert ready.wait(60)
    message = rf"another masksmith is at work here \(pid {process.pid} on {socket.gethostname()}\)"
    try:
        with pytest.raises(InputError, match=message):
            folder_lock(tmp_path).__enter__()
        with pytest.raises(InputError, match=r"wait for it, stop it, or look on$"):
            folder_lock(tmp_path, instead="or look on").__enter__()
    finally:
        leave.set()
        process.join()
    with folder_lock(tmp_path):
        assert f"pid {os.getpid()}" in (tmp_path / LOCK).read_text()


def test_a_file_or_a_linked_lock_is_refused(tmp_path):
    write_text(tmp_path / "file", "mine")
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / LOCK).symlink_to(tmp_path / "file")
    with pytest.raises(InputError, match=r"file: cannot be written as a folder"):
        folder_lock(tmp_path / "file").__enter__()
    with pytest.raises(InputError, match=r"\.masksmith\.lock: a link, which masksmith does not"):
        folder_lock(tmp_path / "p").__enter__()
    assert (tmp_path / "file").read_text() == "mine"


def test_leftovers_of_killed_processes_are_removed_or_put_back(tmp_path):
    p = tmp_path / "p"
    write_text(p / "runs" / ".last.npy.123.masksmith-tmp", "half")
    (p / ".masks.123.masksmith-tmp").mkdir()
    write_text(p / ".masks.12.masksmith-old" / "1.png", "old")  # its successor is missing
    write_text(p / ".plots.12.masksmith-old" / "1.png", "old")
    write_text(p / "plots" / "1.png", "new")
    write_text(tmp_path / "there" / "mine.txt", "mine")
    (p / ".linked.1.masksmith-tmp").symlink_to(tmp_path / "there")
    with folder_lock(p):
        assert names_in(p) == [LOCK, "masks", "masks/1.png", "plots", "plots/1.png", "runs"]
    assert (p / "masks" / "1.png").read_text() == "old"
    assert (p / "plots" / "1.png").read_text() == "new"
    assert names_in(tmp_path / "there") == ["mine.txt"]


def test_foreign_entries_of_a_replaced_folder_move_into_the_new_one(tmp_path):
    write_text(tmp_path / "masks" / "mine" / "a.txt", "mine")
    (tmp_path / "masks" / "link").symlink_to("nowhere")
    for _ in range(2):
        with atomic_folder(tmp_path / "masks") as temporary:
            (temporary / "1.png").write_text("x")
    (tmp_path / "masks").rename(tmp_path / ".masks.7.masksmith-old")  # killed before the entries moved
    write_text(tmp_path / "masks" / "1.png", "new")
    with folder_lock(tmp_path):
        pass
    assert (tmp_path / "masks" / "mine" / "a.txt").read_text() == "mine"
    assert (tmp_path / "masks" / "link").is_symlink()
    assert (tmp_path / "masks" / "1.png").read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == [LOCK, "masks"]


def test_only_our_own_names_are_removed(tmp_path):
    """And neither behind a link, nor in a project inside, nor where somebody put a file in the folder's place."""
    theirs = ("x.tmp", ".x.tmp", ".x.12.tmp", ".x.old", ".x.12.old", ".x.y.masksmith-tmp", ".lock")
    kept = [
        *theirs, "x.12.masksmith-tmp", "a/.x.tmp", "inner/.x.12.masksmith-tmp",
        "elsewhere/.x.12.masksmith-tmp", "masks",
    ]  # fmt: skip
    root, elsewhere = tmp_path / "p", tmp_path / "p" / "elsewhere"
    for name in (*kept, f"inner/{LOCK}"):
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


def _count(path, times):
    for at in range(times):
        update_json(path, lambda known: known | {f"{os.getpid()} {at}": at})  # noqa: B023 (called at once)


def test_several_writers_of_a_small_file_lose_nothing(tmp_path):
    context, path = multiprocessing.get_context("fork"), tmp_path / "stage.json"
    writers = [context.Process(target=_count, args=(path, 20)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert len(read_json(path)) == 60
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / ".updates.lock").symlink_to(path)
    with pytest.raises(InputError, match=r"\.updates\.lock: cannot be written"):
        update_json(tmp_path / "other" / "stage.json", dict)


def test_a_folder_is_waited_for(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready, leave = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready, leave))
    process.start()
    assert ready.wait(60)
    waiting = threading.Thread(target=folder_lock(tmp_path, wait=True).__enter__)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive()
    leave.set()
    process.join()
    waiting.join(10)
    assert not waiting.is_alive()
