"""What else is wrong with a data set of which some files cannot be used: a person sees everything in one go."""

import re
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from masksmith.core.errors import InputError
from masksmith.core.files import digest
from masksmith.data.cache import build_cache
from masksmith.data.catalog import Catalog, Sample
from masksmith.data.checks import CheckReport, check_data
from masksmith.data.findings import Finding

_ROUNDS = 6  # images, masks, run-lengths …: each kind of problem ends a decoding
_ID = re.compile(r"training image ('[^']*'|\"[^\"]*\")")


def check_the_rest(catalog: Catalog, error: InputError) -> CheckReport:
    """Check a data set without the images that cannot be used; these are its first finding, of level "error".

    Decoding says of every image what is wrong with it, one kind of problem after the other. So the images that were
    named are left out and the rest is decoded again, in a temporary folder, until that succeeds or names no image.

    Args:
        catalog: What the data set holds.
        error: Why it was refused.
    """
    problems: list[str] = []
    bad: list[str] = []
    rest = catalog
    facts: dict[str, Any] = {}
    findings: list[Finding] = []
    for _ in range(_ROUNDS):
        problems.append(str(error))
        named = {one.image: one.id for line in _lines(error) for one in _concerned(line, rest)}
        bad += named.values()
        rest = _without(rest, named)
        if not named or not rest.train:
            break
        with tempfile.TemporaryDirectory() as folder:
            try:
                report = check_data(rest, build_cache(rest, Path(folder)), scaling="not settled")
            except InputError as further:
                error = further
                continue
        facts = {
            "images that can be used": f"{len(rest.train)} training, {len(rest.test)} test"
        } | report.facts
        findings = report.findings
        break
    first = Finding("error", "files that cannot be used", "\n".join(problems), bad)
    return CheckReport(catalog.layout, facts, [first, *findings])


def _lines(error: InputError) -> list[str]:
    """Return the problems of an error: those of refuse_all, or the one."""
    head, *lines = str(error).split("\n  ")
    return lines or [head]


def _without(catalog: Catalog, images: dict[str, str]) -> Catalog:
    train = [one for one in catalog.train if one.image not in images]
    test = [one for one in catalog.test if one.image not in images]
    key = digest(catalog.content_hash, *(one.image for one in (*train, *test)))
    return replace(catalog, train=train, test=test, content_hash=key)


def _concerned(line: str, catalog: Catalog) -> list[Sample]:
    """Return the samples that a problem is about: it begins with a file of theirs, or names their id."""
    found = _ID.search(line)
    if found:
        return [one for one in catalog.train if one.id == found[1][1:-1]]
    return [
        one
        for one in (*catalog.train, *catalog.test)
        if any(line.startswith(f"{path}: ") for path in _files(one))
    ]


def _files(sample: Sample) -> list[str]:
    masks = [*([sample.mask] if sample.mask else []), *(sample.further_masks or ())]
    return [
        sample.image,
        *(sample.bands or []),
        *masks,
        *(sample.label_masks or {}).values(),
        *(sample.objects or []),
    ]
