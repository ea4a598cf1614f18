"""Data made to do harm: bombs, names that leave their folder, links. Each is refused by name, with exit code 2."""

import struct
import zipfile

import cv2
import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.data import tree
from masksmith.data.layouts import read_catalog
from masksmith.data.table import MAX_CELL, parse_table
from masksmith.data.tree import Tree
from masksmith.project.folder import Project
from tests.data.test_catalog import paired


def packed(path, members, method=zipfile.ZIP_DEFLATED):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, raw in members:
            archive.writestr(name, raw)
    return path


def patch(path, *, central=None, local=None, value, form="<I"):
    """Overwrite a field of the first central or local header."""
    raw = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\x01\x02", central), (b"PK\x03\x04", local)):
        if offset is not None:
            struct.pack_into(form, raw, raw.index(mark) + offset, value)
    path.write_bytes(raw)


SIZE = {"central": 24, "local": 22}
FLAGS = {"central": 8, "local": 6}


def png(value=0, shape=(20, 20)):
    return cv2.imencode(".png", np.full(shape, value, np.uint8))[1].tobytes()


def test_archives_that_claim_too_much(tmp_path, monkeypatch):
    path = packed(tmp_path / "a.zip", [("a.csv", b"x" * 1000)])
    patch(path, **SIZE, value=2**32 - 2)
    with pytest.raises(
        InputError, match=r"a\.zip: the member 'a\.csv' claims 4,294,967,294 bytes from \d+, more than 1000"
    ):
        Tree(tmp_path)
    packed(path, [("black.tif", bytes(60 << 20))])
    assert len(Tree(tmp_path).read("a/black.tif")) == 60 << 20
    packed(path, [("black.tif", bytes(100 << 20))])
    with pytest.raises(InputError, match=r"'black\.tif' claims 104,857,600 bytes from"):
        Tree(tmp_path)
    packed(path, [("a.csv", b"x" * 1000)], zipfile.ZIP_STORED)
    monkeypatch.setattr(tree, "MAX_MEMBER_BYTES", 999)
    with pytest.raises(InputError, match=r"the member 'a\.csv' claims 1,000 bytes; at most 999 are read"):
        Tree(tmp_path)


def test_an_honest_large_table_passes(tmp_path):
    rng = np.random.default_rng(0)
    row = " ".join(map(str, rng.integers(1, 10201, 300)))
    text = "id,rle_mask\n" + "".join(f"{i:010x},{row}\n" for i in range(60_000))
    assert len(text) > 2**26
    packed(tmp_path / "a.zip", [("train.csv", text)])
    assert len(Tree(tmp_path).read("a/train.csv")) == len(text)


def test_a_member_of_another_size_than_the_archive_says(tmp_path):
    for claimed, message in (
        (999, "claims 999 bytes, there are more"),
        (1001, "claims 1,001 bytes, there are only 1,000"),
    ):
        for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED):
            path = packed(tmp_path / "a.zip", [("a.csv", b"x" * 1000)], method)
            patch(path, **SIZE, value=claimed)
            with pytest.raises(InputError, match=rf"a/a\.csv: cannot be read \(the archive {message}"):
                Tree(tmp_path).read("a/a.csv")


def test_reading_stops_where_the_archives_word_ends(tmp_path, monkeypatch):
    path = packed(tmp_path / "a.zip", [("a.csv", bytes(50 << 20))])
    patch(path, **SIZE, value=1000)
    given = []
    plain = zipfile.ZipExtFile.read
    monkeypatch.setattr(zipfile.ZipExtFile, "read", lambda self, n: given.append(n) or plain(self, n))
    with pytest.raises(InputError, match=r"a/a\.csv: cannot be read \(Bad CRC-32"):
        Tree(tmp_path).read("a/a.csv")
    assert given == [1001]


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_are_refused(tmp_path):
    path = tmp_path / "a.zip"

    def is_refused(message):
        with pytest.raises(InputError, match=rf"a\.zip: {message}"):
            Tree(tmp_path)

    patch(packed(path, [("a.csv", b"x")]), **FLAGS, value=1, form="<H")
    is_refused(r"the member 'a\.csv' is encrypted; unpack the archive with its")
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        packed(path, [("a.csv", b"x")], method)
        is_refused(rf"the member 'a\.csv' is packed by method {method}; expected stored or defl")
    for second in ("a/b.csv", "a\\b.csv", "a//b.csv"):
        packed(path, [("a/b.csv", b"x"), (second, b"y")])
        is_refused(r".* appears twice; pack the archive again")
    for version in (255, 80):
        patch(packed(path, [("a.csv", b"x")]), central=6, value=version, form="<B")
        is_refused(r"not a whole zip archive \(zip file version")
    packed(path, [("a.csv", bytes(500)), ("b.csv", bytes(500))], zipfile.ZIP_STORED)
    raw = bytearray(path.read_bytes())
    second = raw.index(b"PK\x01\x02", raw.index(b"PK\x01\x02") + 1)
    struct.pack_into("<I", raw, second + 42, 10)  # its data begin inside the first member
    path.write_bytes(raw)
    is_refused(r"the members 'a\.csv' and 'b\.csv' share their bytes; do not trust")


def test_members_without_a_name_or_with_one_that_is_no_utf8(tmp_path):
    path = packed(tmp_path / "a.zip", [("ü.csv", b"x")])
    raw = path.read_bytes()
    path.write_bytes(raw.replace("ü".encode(), b"\xff\xff", 1))  # in the local header alone
    with pytest.raises(InputError, match=r"a/ü\.csv: cannot be read \('utf-8' codec can't decode byte 0xff"):
        Tree(tmp_path).read("a/ü.csv")
    path.write_bytes(raw.replace(b"\xc3\xbc.csv", b"\0i.csv"))
    with pytest.raises(InputError, match=r"a\.zip: the member '' climbs out of the archive"):
        Tree(tmp_path)


def test_an_archive_in_an_archive_stays_closed(tmp_path):
    inner = packed(tmp_path / "inner.zip", [("images/a.png", png())])
    packed(tmp_path / "data" / "outer.zip", [("inner.zip", inner.read_bytes())])
    assert Tree(tmp_path / "data").folders == ["outer"]
    with pytest.raises(
        InputError, match=r"1 archives that are not opened: outer/inner\.zip; unpack them first"
    ):
        read_catalog(tmp_path / "data")
    paired(tmp_path / "data")
    (tmp_path / "data" / "more.7z").write_bytes(b"7z")
    found = read_catalog(tmp_path / "data").left_out
    assert found == ["2 archives that are not opened: more.7z, outer/inner.zip; unpack them"]


def test_a_link_in_an_archive_is_a_text(tmp_path):
    link = zipfile.ZipInfo("images/a.png")
    link.external_attr = 0o120777 << 16
    packed(tmp_path / "data" / "a.zip", [(link, b"/etc/hostname")])
    assert Tree(tmp_path / "data").read("a/images/a.png") == b"/etc/hostname"


def test_links_that_lead_in_circles(download):
    (download / "loop").symlink_to(download / "loop")
    (download / "train" / "up").symlink_to(download)
    (download / "nowhere.png").symlink_to(download / "nothing")
    assert len(read_catalog(download).train) == 40


def test_a_linked_archive_that_leads_out(tmp_path):
    outside = packed(tmp_path / "secret.zip", [("a.csv", b"x")])
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.zip").symlink_to(outside)
    with pytest.raises(InputError, match=r"train\.zip: the link leads out of"):
        Tree(tmp_path / "data")


def test_ids_that_cannot_be_file_names(tmp_path):
    for stem in ("a\nb", "x" * 252, "\x1b[31m"):
        for folder in ("images", "masks"):
            packed(tmp_path / f"{folder}.zip", [("a.png", png(255)), (f"{stem}.png", png())])
        with pytest.raises(InputError, match=r"images/.*: the id .* cannot be a file name"):
            ms.check(tmp_path)


def test_a_name_that_is_no_utf8(download):
    source = sorted((download / "test" / "images").iterdir())[0]
    target = download / "test" / "images" / "a\udcff.png"
    target.write_bytes(source.read_bytes())
    with pytest.raises(InputError, match=r"the name 'test/images/a\\udcff\.png' is not valid UTF-8; rename"):
        read_catalog(download)


def test_strange_names_beside_the_data_are_left_alone(download):
    for name in ("Icon\r", "a\u00a0b.txt", "\u3000.md"):
        (download / name).write_text("x")
    assert len(read_catalog(download).train) == 40


def test_a_path_for_an_id_in_a_table(download):
    for name, expected in (
        ("train.csv", "unknown id"),
        ("sample_submission.csv", "no test image for the id"),
    ):
        text = (download / name).read_text()
        (download / name).write_text(text + "../../evil,1 1\n")
        with pytest.raises(InputError, match=rf"{name}: {expected} '\.\./\.\./evil'"):
            read_catalog(download)
        (download / name).write_text(text)


def test_ids_of_a_tampered_project_do_not_leave_masks(project):
    """data.json came from somebody else."""
    value = read_json(project / "data.json")
    evil = "../evil"
    old = value["submission"]["ids"][0]
    value["submission"]["ids"][0] = evil
    write_json(project / "data.json", value)
    for path in (*project.glob("cache/test_images.csv"), *project.glob("runs/*/test/*.csv")):
        path.write_text(path.read_text().replace(f"{old},", f"{evil},"))
    (project / "submission.csv").unlink()
    with pytest.raises(InputError, match=r"the id '\.\./evil' cannot be a file name"):
        ms.submit(project)
    assert not (project / "evil.png").exists()


def test_a_cell_of_a_hundred_megabytes(download):
    row = (download / "sample_submission.csv").read_text().splitlines()[1].split(",")[0]
    (download / "sample_submission.csv").write_text(f"id,rle_mask\n{row},{'1 1 ' * 25_000_000}\n")
    with pytest.raises(
        InputError, match=r"sample_submission\.csv: line 2: field larger than field limit \(67108864\)"
    ):
        read_catalog(download)


def test_large_honest_cells_pass():
    runs = "1 2 " * 200_000  # six times Python's own limit
    table = parse_table(f"id,rle\na,{runs}\n".encode(), where="x.csv")
    assert table.rows[0]["rle"] == runs
    assert MAX_CELL == 2**26


def test_side_values_that_are_no_numbers_are_passed_over(download):
    ids = [path.stem for path in sorted((download / "train" / "images").iterdir())]
    (download / "depths.csv").write_text(
        "id,z,w\n" + "".join(f"{name},{i},nan\n" for i, name in enumerate(ids))
    )
    sample = read_catalog(download).train[3]
    assert sample.values == {"z": 3.0}


@pytest.mark.parametrize("name", ["../../x", "/etc", "..", ".", "a/../b", ["a"], {"a": 1}])
def test_run_names_do_not_leave_runs(project, name):
    (project / ".." / "x").resolve().mkdir()
    recipe = next(project.glob("runs/*/recipe.yaml"))
    (project / ".." / "x" / "recipe.yaml").resolve().write_text(recipe.read_text())
    if isinstance(name, str):
        with pytest.raises(InputError, match="no run '"):
            ms.tune(project, run=name)
    write_json(project / "runs" / "current.json", name)
    with pytest.raises(InputError, match=r"no run ['\[{]"):
        ms.tune(project)


def test_a_requested_run_outside_runs_is_not_touched(project):
    outside = project.parent / "x"
    outside.mkdir()
    opened = Project.open(project)
    recipe = opened.run().recipe
    (outside / "recipe.yaml").write_text("mine")
    requests = project / "runs" / "requests.json"
    write_json(requests, dict.fromkeys([recipe.hash], "../../x"))
    with pytest.raises(InputError, match=r"no run '\.\./\.\./x'"):
        opened.run_of(recipe)
    assert (outside / "recipe.yaml").read_text() == "mine"
    write_json(requests, dict.fromkeys([recipe.hash], 5))
    assert opened.run_of(recipe) is None


def test_a_linked_masks_folder_is_not_written_through(project, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine.png").write_text("mine")
    for path in (project / "masks").iterdir():
        path.unlink()
    (project / "masks").rmdir()
    (project / "masks").symlink_to(outside)
    with pytest.raises(InputError, match="masks: it is a link, expected a folder"):
        ms.submit(project)
    assert [path.name for path in outside.iterdir()] == ["mine.png"]
    assert (project / "masks").is_symlink()
