"""The check of a data folder: its project is begun, everything is decoded once, findings are written."""

import csv
import io
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from masksmith.core.errors import InputError
from masksmith.core.files import write_json, write_text
from masksmith.core.locks import folder_lock
from masksmith.data.checks import CheckReport, check_data
from masksmith.data.damage import check_the_rest
from masksmith.data.groups import Likeness
from masksmith.data.layouts import read_catalog
from masksmith.preprocess.inputs import InputConfig, beyond_limits, scaling_text
from masksmith.project.folder import Project, refuse_foreign, refuse_inside


def check_folder(
    data: Path,
    out: Path | None,
    *,
    dialect: str | None,
    task: str | None = None,
    ignore: Sequence[int] = (),
    layout: str | Path | None = None,
) -> CheckReport:
    """Check a data folder; ``check.json`` and the cache stay in ``out``, and nothing stays where it is None.

    Where files cannot be used, all of them are named, and what else was found in the rest.

    Raises:
        InputError: The data cannot be used, or ``out`` holds files of others.
    """
    if out is None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "project"
            return check_folder(data, root, dialect=dialect, task=task, ignore=ignore, layout=layout)
    refuse_foreign(out)  # before the data are read, which can take minutes
    before = Project.asked_target(out)
    catalog = read_catalog(
        data,
        dialect=dialect or Project.asked_dialect(out),
        task=task or before.task,
        ignore=ignore or before.ignore,
        layout=layout,
    )
    refuse_inside(out, catalog)
    refuse_foreign(out)
    with folder_lock(out):
        project = Project.create(out, catalog)
        try:
            project.cache  # noqa: B018  (decodes the data)
        except InputError as error:
            report = check_the_rest(catalog, error)
            write_json(project.check_json, report.to_json())
            first, more = report.findings[0], report.findings[1:]
            if more or first.detail != str(error):
                found = "\n  ".join(map(str, more)) or "nothing"
                raise InputError(f"{first.detail}\nWhat else was found, without them:\n  {found}") from error
            raise
        scaling = project.settled_input(InputConfig())
        report = check_data(
            catalog,
            project.cache,
            scaling=scaling_text(scaling, project.cache.train_images.dtype),
            beyond=beyond_limits(scaling, project.cache.test_images),
        )
        write_json(project.check_json, report.to_json())
        duplicates = duplicates_text(project.likeness)
        if not project.duplicates_csv.exists() or project.duplicates_csv.read_text() != duplicates:
            write_text(project.duplicates_csv, duplicates)
    return report


def duplicates_text(alike: Likeness) -> str:
    """Return a CSV table of the images that are like others: id, split, number of the group, identical or similar."""
    groups = alike.groups
    together = np.bincount(groups, minlength=len(groups) or 1)
    same = Counter(alike.seen.pixels.tolist())
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["group", "id", "split", "like"])
    for at in sorted(range(len(groups)), key=lambda at: (int(groups[at]), at)):
        if together[groups[at]] > 1:
            split = "train" if at < alike.num_train else "test"
            like = "identical" if same[alike.seen.pixels[at]] > 1 else "similar"
            writer.writerow([int(groups[at]), alike.id(at), split, like])
    return text.getvalue()
