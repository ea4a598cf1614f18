"""What a person looks at before training: ``explore.html`` and ``explore.json`` of a data folder."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masksmith.core.files import write_json
from masksmith.core.locks import folder_lock
from masksmith.data.checks import CheckReport, shift_of
from masksmith.data.columns import compare_columns
from masksmith.data.pairs import find_leaks
from masksmith.data.tally import tally_bands, tally_masks
from masksmith.project.folder import Project
from masksmith.reporting.advice import advise
from masksmith.reporting.explore import ExploreFacts, numbers, write_explore
from masksmith.reporting.thumbnails import Gallery
from masksmith.steps.check import check_folder


@dataclass(frozen=True)
class Explored:
    """What ``explore`` wrote."""

    page: Path
    """``explore.html``."""
    json: Path
    """``explore.json``."""
    numbers: dict[str, Any]
    """What ``explore.json`` holds."""

    def __str__(self) -> str:
        found = [
            f"{one['level']}: {one['title']}" for one in self.numbers["findings"] if one["level"] != "note"
        ]
        advice = [" --set ".join([one["text"], *one["settings"]]) for one in self.numbers["advice"]]
        return "\n".join([*found, *advice, str(self.page)])


def explore_folder(
    data: Path,
    out: Path,
    *,
    dialect: str | None = None,
    task: str | None = None,
    ignore: Sequence[int] = (),
    layout: str | Path | None = None,
) -> Explored:
    """Check a data folder, look at all of it, and write what there is to see into the project ``out``.

    Raises:
        InputError: As check_folder.
    """
    report = check_folder(data, out, dialect=dialect, task=task, ignore=ignore, layout=layout)
    project = Project.open(out)
    with folder_lock(project.root):
        facts = explore_facts(project, report)
        found = numbers(facts)
        write_json(project.explore_json, found)
        write_explore(project.explore_html, facts)
    return Explored(project.explore_html, project.explore_json, found)


def explore_facts(project: Project, report: CheckReport) -> ExploreFacts:
    """Look at a project's images and masks once, beside what ``check`` kept of them."""
    catalog, cache, alike = project.catalog, project.cache, project.likeness
    shift = shift_of(alike, cache.channels)
    masks = tally_masks(cache.train_masks, cache.target)
    bands = {"training": tally_bands(cache.train_images)}
    if len(cache.test_images):
        bands["test"] = tally_bands(cache.test_images)
    columns, many = compare_columns(catalog)
    sizes = [cache.train_images.shape(name) for name in cache.train_images]
    return ExploreFacts(
        catalog=catalog,
        target=cache.target,
        facts=report.facts,
        findings=report.findings,
        gallery=Gallery(cache.train_images, cache.train_masks, cache.test_images, cache.target),
        bands=bands,
        masks=masks,
        columns=columns,
        columns_of_many=many,
        alike=alike,
        shift=shift,
        leaks=find_leaks(alike, cache.train_masks),
        advice=advise(cache.target, sizes, masks, columns, shift, alike),
    )
