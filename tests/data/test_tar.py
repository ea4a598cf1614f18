"""Tar archives are read in place as zip archives are, and refused where they would do harm."""

import io
import random
import tarfile
import zipfile
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksmith.core.errors import InputError
from masksmith.data import tar
from masksmith.data.layouts import read_catalog
from masksmith.data.tar import TarArchive
from masksmith.data.tree import Tree
from tests.data.test_catalog import paired

MODES = {
    ".tar": "w",
    ".tar.gz": "w:gz",
    ".tgz": "w:gz",
    ".tar.bz2": "w:bz2",
    ".tbz2": "w:bz2",
    ".tar.xz": "w:xz",
    ".txz": "w:xz",
}


def packed(path, members, mode="w"):
    """Write an archive of (name or TarInfo, bytes)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:
        for name, raw in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(raw)
            archive.addfile(info, io.BytesIO(raw))
    return path


def special(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


@pytest.mark.parametrize("suffix", MODES)
def test_every_kind_is_seen_as_if_unpacked(tmp_path, suffix):
    paired(tmp_path / "plain")
    members = [
        (f"./{path.relative_to(tmp_path / 'plain')}", path.read_bytes())
        for path in (tmp_path / "plain").glob("*/*")
    ]
    packed(tmp_path / "data" / f"all{suffix.upper()}", members, MODES[suffix])
    tree = Tree(tmp_path / "data")
    assert tree.folders == ["all/images", "all/masks"]
    assert tree.read("all/images/a.png") == (tmp_path / "plain" / "images" / "a.png").read_bytes()
    catalog = read_catalog(tmp_path / "data")
    assert [sample.image for sample in catalog.train] == [f"all/images/{name}.png" for name in "abc"]
    packed(tmp_path / "data" / f"all{suffix.upper()}", members[:-1], MODES[suffix])
    assert Tree(tmp_path / "data").content_hash != catalog.content_hash


def test_an_outer_folder_is_one_level_and_what_is_unpacked_wins(tmp_path):
    packed(
        tmp_path / "train.tar.gz",
        [("train/a.txt", b"packed"), ("train/b.txt", b"b"), ("train/._a.txt", b"")],
        "w:gz",
    )
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "a.txt").write_bytes(b"unpacked")
    tree = Tree(tmp_path)
    assert tree.files("train") == ["train/a.txt", "train/b.txt"]
    assert tree.read("train/a.txt") == b"unpacked"
    assert tree.has("train")
    (tmp_path / "scan.nii.gz").write_bytes(b"a format of its own")
    assert "scan.nii.gz" in Tree(tmp_path)


def test_links_within_an_archive_are_followed(tmp_path):
    packed(
        tmp_path / "a.tar",
        [
            special("x/soft.txt", tarfile.SYMTYPE, "../y/real.txt"),
            ("y/real.txt", b"real"),
            special("x/hard.txt", tarfile.LNKTYPE, "y/real.txt"),
            special("x/both.txt", tarfile.SYMTYPE, "soft.txt"),
            special("x/nowhere.txt", tarfile.SYMTYPE, "nothing"),
            special("x/loop.txt", tarfile.SYMTYPE, "loop.txt"),
        ],
    )
    tree = Tree(tmp_path)
    assert tree.files("a/x") == ["a/x/both.txt", "a/x/hard.txt", "a/x/soft.txt"]
    assert {tree.read(path) for path in tree.files("a/x")} == {b"real"}


def test_archives_that_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "a.tar"
    sparse = tarfile.TarInfo("s.csv")
    sparse.type = tarfile.GNUTYPE_SPARSE
    climbs = r"climbs out of the archive; do not trust"
    leads = r"is a link that leads out of the archive"
    for members, message in (
        ([("../a.csv", b"x")], rf"the member '\.\./a\.csv' {climbs}"),
        ([("/etc/a.csv", b"x")], rf"the member '/etc/a\.csv' {climbs}"),
        ([("c:/a.csv", b"x")], climbs),
        (
            [("gr\udcf6n.csv", b"x")],
            r"the member 'gr\\udcf6n\.csv' has a name that is not valid UTF-8; unpack",
        ),
        ([("a/b.csv", b"x"), ("a//b.csv", b"y")], r"the member 'a//b\.csv' appears twice"),
        ([special("a.csv", tarfile.SYMTYPE, "../../secret")], rf"the member 'a\.csv' {leads}"),
        ([special("a.csv", tarfile.SYMTYPE, "/etc/passwd")], leads),
        ([special("a.csv", tarfile.LNKTYPE, "../secret")], leads),
        ([special("null", tarfile.CHRTYPE)], r"the member 'null' is no plain file; unpack"),
        ([special("pipe", tarfile.FIFOTYPE)], r"the member 'pipe' is no plain file"),
        ([(sparse, b"")], r"the member 's\.csv' is no plain file"),
    ):
        packed(path, members)
        with pytest.raises(InputError, match=rf"a\.tar: .*{message}"):
            Tree(tmp_path)
    packed(path, [("a.csv", bytes(1000))])
    with pytest.raises(InputError, match=r"the member 'a\.csv' claims 1,000 bytes; at most 999 are read"):
        TarArchive(path, most=999)
    info = tarfile.TarInfo("a.csv")
    info.size = 10**9
    path.write_bytes(info.tobuf() + bytes(1024))
    with pytest.raises(InputError, match=r"a\.tar: .*(more than the archive holds|not a whole tar archive)"):
        Tree(tmp_path)
    path.unlink()
    monkeypatch.setattr(tar, "_RATIO_FROM_BYTES", 1000)
    monkeypatch.setattr(tar, "MAX_RATIO", 10)
    for mode, suffix in (("w:gz", ".tgz"), ("w:bz2", ".tar.bz2"), ("w:xz", ".tar.xz")):
        bomb = packed(tmp_path / f"bomb{suffix}", [("zero.csv", bytes(5_000_000))], mode)
        with pytest.raises(InputError, match=rf"bomb{suffix}: unpacks to more than [\d,]+ bytes from"):
            Tree(tmp_path)
        bomb.unlink()


def test_damaged_archives(tmp_path):
    members = [(f"{name}.txt", random.Random(name).randbytes(3000)) for name in "abc"]
    for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz"), (".tar.xz", "w:xz"), (".tar.bz2", "w:bz2")):
        path = packed(tmp_path / f"a{suffix}", members, mode)
        raw = path.read_bytes()
        for damaged in (b"", b"no archive at all", raw[: len(raw) // 2]):
            path.write_bytes(damaged)
            with pytest.raises(InputError, match=rf"a{suffix}: .* download it again"):
                Tree(tmp_path)
        path.unlink()
    path = packed(tmp_path / "a.tar", members)
    raw = bytearray(path.read_bytes())
    raw[512 + 3072 + 150] ^= 1  # the checksum of the second header
    path.write_bytes(raw)
    with pytest.raises(InputError, match=r"not a whole tar archive \(a damaged header at byte 3,584\)"):
        Tree(tmp_path)
    path = packed(path, members)
    tree = Tree(tmp_path)
    with path.open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(
        InputError, match=r"a/a\.txt: cannot be read \(the archive ends 2,512 bytes too early\)"
    ):
        tree.read("a/a.txt")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.bz2", ".tar.xz", ".zip"])
def test_mutated_archives_are_read_or_refused(tmp_path_factory, suffix):
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / f"a{suffix}"
    members = [("x/a.csv", b"id,z\n1,2\n" * 20), ("b" * 120, b"long"), ("x/c.txt", b"")]
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in members:
                archive.writestr(name, content)
    else:
        packed(path, [*members, special("x/l", tarfile.SYMTYPE, "a.csv")], MODES[suffix])
    raw = path.read_bytes()

    @settings(max_examples=150, deadline=None, database=None)
    @given(
        st.lists(st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 255)), max_size=6),
        st.integers(0, len(raw)),
    )
    def check(changes, kept):
        mutated = bytearray(raw)
        for at, value in changes:
            mutated[at] = value
        path.write_bytes(mutated[:kept] if kept % 3 == 0 else mutated)
        try:
            tree = Tree(folder)
        except InputError:
            return
        for inner in tree.folders:
            for name in tree.files(inner):
                with suppress(InputError):
                    tree.read(name)

    check()
