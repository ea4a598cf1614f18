"""The diary of the public board."""

import numpy as np
import pytest

import masksmith as ms
from masksmith.core.errors import InputError
from masksmith.core.files import read_json, write_json
from masksmith.project.folder import Project
from masksmith.steps.board import show_board


def add_others(project, *others):
    """Add entries to the diary that there is: (public, cv), all with the same standard error."""
    path = project / "board/board.json"
    value = read_json(path)
    first = value["entries"][0]
    value["entries"] += [
        first | {"digest": f"{at}", "score": public, "cv": cv, "rows": "", "note": f"other {at}"}
        for at, (public, cv) in enumerate(others)
    ]
    write_json(path, value)


def test_diary(project):
    cv = read_json(project / "submission.json")["score"]
    with pytest.raises(InputError, match=r"no public score yet; `masksmith board add"):
        ms.board(project)
    near = round(min(1.0, cv + 0.001), 5)
    found = ms.add_board_score(project, near, note="first", public_share=0.5)
    assert (found.board_images, found.guessed, found.remarks) == (4, False, ())
    assert "within the draw" in found.lines[0]
    assert found.lines[0].endswith(": first")
    entry = found.entries[0]
    rows = np.load(project / "board" / entry.rows)
    tuning = read_json(project / "tuning.json")
    assert len(rows["ids"]) == entry.images == tuning["images"]
    opened = Project.open(project)
    metric = opened.metric(opened.run().recipe)
    assert metric.score(rows["rows"]) == pytest.approx(
        tuning["scores"]["tuned" if tuning["kept"] else "plain"]
    )
    assert len(ms.add_board_score(project, near, note="again").entries) == 1
    assert ms.board(project).entries[0].note == "again"
    with pytest.raises(InputError, match=rf"it has the score {near:g} already"):
        ms.add_board_score(project, near / 2)


def test_shake_up(project):
    cv = read_json(project / "submission.json")["score"]
    error = read_json(project / "submission.json")["standard_error"]
    ms.add_board_score(project, 0.5)
    add_others(project, (0.5 + error / 50, cv - error / 9), (0.5 - error / 90, cv + error / 9))
    text = str(ms.board(project))
    assert text.splitlines()[1].endswith("other 0")
    assert "other 1" in text
    assert "the first on the board is not the first of cross-validation" in text
    assert "3 of 3 submissions cannot be told apart on 8 images" in text
    assert "the best of 3 unrelated, equally good submissions would look" in text
    path = project / "board/board.json"
    value = read_json(path)
    first = value["entries"][0] | {"cv": 0.9, "standard_error": 0.001, "rows": ""}
    value["entries"] = [
        first | {"digest": f"{at}", "score": 0.3 + 0.1 * at, "cv": 0.9 - 0.01 * at} for at in range(4)
    ]
    write_json(path, value)
    text = str(ms.board(project))
    assert "in unlike orders (Spearman -1.00)" in text
    assert "every public score lies below cross-validation by more than the draw" in text
    assert "more than noise" in text
    assert "cannot be told apart" not in text


def test_two_of_whom_the_rows_are_known(project):
    found = ms.add_board_score(project, 0.5)
    path, first = project / "board/board.json", found.entries[0]
    value = read_json(path)
    rows = dict(np.load(project / "board" / first.rows))
    np.savez(project / "board/rows-same.npz", **rows)
    value["entries"].append(value["entries"][0] | {"digest": "x", "score": 0.49, "rows": "rows-same.npz"})
    write_json(path, value)
    assert "behind the first by 0.01000 (± 0.00000: more than noise)" in str(
        show_board(Project.open(project))
    )


def test_earlier_and_foreign_files(project, tmp_path):
    ms.add_board_score(project, 0.5)
    other = tmp_path / "other.csv"
    lines = (project / "submission.csv").read_text().splitlines()
    other.write_text("\n".join([lines[0], *(f"{line.partition(',')[0]}," for line in lines[1:])]) + "\n")
    found = ms.add_board_score(project, 0.2, file=other)
    assert (found.entries[1].run, found.entries[1].cv) == ("another program", None)
    assert "no cross-validation" in found.lines[1]
    (tmp_path / "broken.csv").write_text("id,rle_mask\nx,\n")
    for match, changes in (
        (
            r"(?s)broken\.csv: 2 problems:.*the id 'x' is not among the 8 ids",
            {"file": tmp_path / "broken.csv"},
        ),
        (
            r"--metric miou: this project is scored by tgs_map; the score of another contest",
            {"metric": "miou"},
        ),
        (r"--public-share 2: expected the part", {"public_share": 2}),
        (r"87\.3: no tgs_map, which lies from 0 to 1", {"score": 87.3}),
        (r"nan: no tgs_map", {"score": float("nan")}),
    ):
        with pytest.raises(InputError, match=match):
            ms.add_board_score(project, **({"score": 0.3} | changes))
    (project / "board/board.json").write_text('{"entries": [{}]}')
    with pytest.raises(InputError, match=r"board\.json: not what masksmith writes"):
        ms.board(project)
