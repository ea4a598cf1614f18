"""Images and masks by the patterns that a description gives (``images``, ``masks``, ``test`` in dataset.yaml)."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from masksmith.core.errors import InputError
from masksmith.data.catalog import AskedTarget, Catalog, Sample, SubmissionFormat
from masksmith.data.colour_tables import find_colour_table
from masksmith.data.description import FILE_NAME, NOTHING_SAID, Description, path_pattern
from masksmith.data.findings import Finding, refuse_all, some
from masksmith.data.ids import check_name
from masksmith.data.layouts.folders import make_samples
from masksmith.data.run_tables import natural
from masksmith.data.side_tables import collect_facts, read_tables
from masksmith.data.tree import Tree

Bands = dict[str, dict[str, str]]
"""Id -> band, "" without bands -> path."""


def described(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """Images, masks and test images by patterns; {label} is a mask a label, several masks of an id are its objects."""
    if asked.images is None:
        return None
    where = f"{tree.root}: dataset.yaml"
    paths = [path for folder in tree.folders for path in tree.files(folder) if path != FILE_NAME]
    images = _found(paths, asked.images, "images", where=where)
    said = {str(split): pattern for split, pattern in (asked.splits or {}).items()}
    splits = {name: _split(own, said, where=where) for name, own in images.items()}
    test = {name: own for name, own in images.items() if splits[name] == "test"}
    images = {name: own for name, own in images.items() if name not in test}
    if asked.test is not None:
        test |= _found(paths, asked.test, "test", where=where)
    first, first_test = _whole(images, asked, where=where), _whole(test, asked, where=where)
    if asked.masks is None:
        raise InputError(
            f"{where}: images without masks; say their pattern too, as in masks: masks/{{id}}.png"
        )
    masks, stray = _masks(paths, asked.masks, images.keys(), where=where)
    labelled = "{label}" in asked.masks
    objects = not labelled and any(len(own) > 1 for own in masks.values())
    bare = sorted(images.keys() - masks.keys())
    if bare and not objects:
        raise InputError(
            f"{where}: masks: {asked.masks!r} matches no file for {len(bare)} of {len(images)} images: {some(bare)}; "
            "correct the pattern, add masks or take the images out"
        )
    labels = sorted({label for own in masks.values() for label, _ in own}, key=natural) if labelled else []
    plain, plain_test = ({name: own[0] for name, own in one.items()} for one in (first, first_test))
    tables, errors = read_tables(tree)
    colours, colour_file = find_colour_table(tree) if not asked.colours else ({}, "")
    facts = collect_facts(
        (table for path, table in tables.items() if path != colour_file), {"train": plain, "test": plain_test}
    )
    train = make_samples(
        "train",
        plain,
        facts,
        masks=None if labelled or objects else {name: own[0][1] for name, own in masks.items()},
        held_out=[name for name, split in splits.items() if split == "val"],
        objects={name: [path for _, path in masks.get(name, ())] for name in images} if objects else None,
        label_masks={name: dict(own) for name, own in masks.items()} if labelled else None,
    )
    form = SubmissionFormat.assumed(plain_test, asked.dialect)
    return Catalog(
        root=str(tree.root.resolve()),
        layout="described",
        content_hash=tree.content_hash,
        train=_with_bands(train, first),
        test=_with_bands(make_samples("test", plain_test, facts), first_test),
        submission=form.with_labels(labels) if labels else form,
        notes=[str(error) for error in errors.values()] + facts.notes,
        asked=AskedTarget(colours=colours),
        labels=[check_name(label, where=f"{where} (labels)") for label in labels],
        why=[
            f"dataset.yaml: images: {asked.images} matches {len(images)} files",
            f"dataset.yaml: masks: {asked.masks} matches {sum(map(len, masks.values()))} files of these images",
        ],
        left_out=[f"{len(stray)} files that masks: matches, of no image, for example {stray[0]}"]
        if stray
        else [],
        findings=_findings(splits, bare if objects else []),
    )


def _found(paths: Sequence[str], pattern: str, key: str, *, where: str) -> Bands:
    """Return the files that a pattern of images matches.

    Raises:
        InputError: None does, or two files are the same image (and band).
    """
    form = path_pattern(pattern)
    found: Bands = defaultdict(dict)
    problems = []
    for path in paths:
        if (match := form.fullmatch(path)) is None:
            continue
        name = unicodedata.normalize("NFC", match["id"])
        band = match.groupdict().get("band") or ""
        if band in found[name]:
            problems.append(
                f"{where}: {key}: {found[name][band]!r} and {path!r} both have the id {name!r}; narrow the pattern"
            )
        found[name][band] = path
    refuse_all(problems, what="files")
    if not found:
        example = f", for example {paths[0]!r}" if paths else ""
        raise InputError(
            f"{where}: {key}: {pattern!r} matches none of the {len(paths)} files{example}; correct the pattern, "
            "which is relative to the folder"
        )
    return dict(found)


def _masks(
    paths: Sequence[str], pattern: str, ids: Collection[str], *, where: str
) -> tuple[dict[str, list[tuple[str, str]]], list[str]]:
    """Return id -> label ("" without labels) and path of its masks, and the files that belong to no image.

    Raises:
        InputError: Two files are the mask of one label of an image.
    """
    known = set(ids)
    forms = [path_pattern(pattern)]
    forms.append(
        re.compile(forms[0].pattern.replace("(?P<id>.+)", "(?P<id>.+?)"))
    )  # {id}_* may be cut in two ways
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    stray, problems = [], []
    for path in paths:
        matches = [match for form in forms if (match := form.fullmatch(path))]
        if not matches:
            continue
        names = [unicodedata.normalize("NFC", match["id"]) for match in matches]
        at = next((at for at, name in enumerate(names) if name in known), None)
        if at is None:
            stray.append(path)
            continue
        label = matches[at].groupdict().get("label") or ""
        twin = next((other for one, other in found[names[at]] if one == label), None)
        if label and twin is not None:
            problems.append(
                f"{where}: masks: {twin!r} and {path!r} are both of {names[at]!r}, label {label!r}; keep one"
            )
        found[names[at]].append((label, path))
    refuse_all(problems, what="files")
    return dict(found), stray


def _split(files: Mapping[str, str], splits: Mapping[str, str], *, where: str) -> str:
    path = next(iter(files.values()))
    found = [split for split, pattern in splits.items() if _search(pattern, path, where=where)]
    if len(found) > 1 or (splits.keys() >= {"train"} and not found):
        raise InputError(
            f"{where}: splits: {path!r} is in {' and '.join(found) or 'none'}; expected one split"
        )
    return found[0] if found else "train"


def _search(pattern: str, path: str, *, where: str) -> bool:
    try:
        return re.search(pattern, path) is not None
    except re.error as error:
        raise InputError(
            f"{where}: splits: {pattern!r} is no regular expression ({error}); correct it"
        ) from error


def _whole(images: Bands, asked: Description, *, where: str) -> dict[str, list[str]]:
    """Return the files of each image, its bands in their order.

    Raises:
        InputError: Images lack a band; all are named.
    """
    found, problems = {}, []
    for name, own in images.items():
        wanted = asked.bands or [] if "" not in own else [""]
        if absent := [band for band in wanted if band not in own]:
            problems.append(
                f"{where}: the image {name!r} has no file of the band {some(absent)}; add it, or correct bands:"
            )
            continue
        found[name] = [own[band] for band in wanted]
    refuse_all(problems, what="images")
    return found


def _with_bands(samples: Sequence[Sample], files: Mapping[str, list[str]]) -> list[Sample]:
    return [replace(one, bands=files[one.id]) if len(files[one.id]) > 1 else one for one in samples]


def _findings(splits: Mapping[str, str], bare: Sequence[str]) -> list[Finding]:
    found = []
    if held := [name for name, split in splits.items() if split == "val"]:
        detail = f"{len(held)} images are in val, by dataset.yaml: they are held out, as fold 0"
        found.append(Finding("note", "the split of the data set", detail, held))
    if bare:
        detail = (
            f"{len(bare)} images have no object file: {some(bare)}; they are read as images without objects"
        )
        found.append(Finding("warning", "images without objects", detail, list(bare)))
    return found
