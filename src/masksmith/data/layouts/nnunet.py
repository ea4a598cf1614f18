"""The raw folder of nnU-Net: imagesTr/CASE_0000.nii.gz, one file a channel, labelsTr/CASE.nii.gz and dataset.json.

Sources:
    https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md (version 2, and 1 with its labels
    turned round). The Medical Segmentation Decathlon (http://medicaldecathlon.com) keeps channels in one file.
"""

import json
import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from masksmith.core.errors import InputError
from masksmith.data.catalog import AskedTarget, Catalog, Sample, SubmissionFormat
from masksmith.data.decode.pictures import IMAGE_SUFFIXES
from masksmith.data.decode.reader import ending
from masksmith.data.description import NOTHING_SAID, Description
from masksmith.data.findings import refuse_all, some
from masksmith.data.ids import check_id
from masksmith.data.layouts.volumes import ARRAYS, NIFTI_SUFFIXES, Slices, slice_up
from masksmith.data.tree import Tree

_CHANNEL = re.compile(r"(.+)_(\d{4})")


def nnunet(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """A folder with imagesTr, labelsTr and (for the names of labels) dataset.json; imagesTs is to be segmented.

    Raises:
        InputError: A case lacks its label or a channel, dataset.json is damaged, or files of a case differ in place.
    """
    homes = [one.removesuffix("imagesTr") for one in tree.folders if PurePosixPath(one).name == "imagesTr"]
    if not homes or f"{homes[0]}labelsTr" not in tree.folders:
        return None
    home = homes[0]
    told = _read_json(tree, f"{home}dataset.json")
    train = _cases(tree, f"{home}imagesTr")
    test = _cases(tree, f"{home}imagesTs")
    labels = {case: own[""] for case, own in _by_case(tree, f"{home}labelsTr", channels=False).items()}
    channels = sorted({channel for own in (*train.values(), *test.values()) for channel in own})
    refuse_all(_problems(home, train, test, labels, channels), what="cases")
    names, ignore = _labels(told, where=f"{tree.root}/{home}dataset.json")
    catalog = Catalog(
        root=str(tree.root.resolve()),
        layout="nnunet",
        content_hash=tree.content_hash,
        train=[_sample(case, own, labels[case]) for case, own in sorted(train.items())],
        test=[_sample(case, own, None) for case, own in sorted(test.items())],
        submission=SubmissionFormat.assumed(test, asked.dialect),
        notes=[],
        asked=AskedTarget(names=names if len(names) > 2 else {}, ignore=ignore),
        why=[
            f"{home}imagesTr and {home}labelsTr hold {len(train)} cases of {len(channels)} channels, "
            f"{home}imagesTs {len(test)}",
            f"labels of dataset.json: {some([f'{value} {name}' for value, name in names.items()], most=20)}",
        ],
        left_out=[
            f"{len(set(labels) - set(train))} labels without an image: {some(sorted(set(labels) - set(train)))}"
        ]
        if set(labels) - set(train)
        else [],
    )
    return slice_up(catalog, Slices(tree))


def _by_case(tree: Tree, folder: str, *, channels: bool) -> dict[str, dict[str, str]]:
    """Return case -> channel ("" without one) -> file of a folder."""
    found: dict[str, dict[str, str]] = {}
    for path in tree.files(folder):
        kind = ending(path)
        if kind not in (*IMAGE_SUFFIXES, *NIFTI_SUFFIXES, *ARRAYS):
            continue
        stem = PurePosixPath(path).name[: -len(kind)]
        match = _CHANNEL.fullmatch(stem) if channels else None
        found.setdefault(match[1] if match else stem, {})[match[2] if match else ""] = path
    return found


def _cases(tree: Tree, folder: str) -> dict[str, dict[str, str]]:
    """Return the images of a folder; names end in a channel if all do."""
    found = _by_case(tree, folder, channels=True)
    return _by_case(tree, folder, channels=False) if any("" in own for own in found.values()) else found


def _problems(
    home: str,
    train: Mapping[str, Mapping[str, str]],
    test: Mapping[str, Mapping[str, str]],
    labels: Mapping[str, str],
    channels: list[str],
) -> list[str]:
    found = [
        f"{home}imagesTr: the case {case!r} has no file in labelsTr; add it or take the case out"
        for case in sorted(train)
        if case not in labels
    ]
    for folder, cases in (("imagesTr", train), ("imagesTs", test)):
        for case, own in sorted(cases.items()):
            if absent := [channel for channel in channels if channel not in own]:
                found.append(
                    f"{home}{folder}: the case {case!r} lacks the channels {some(absent)}; add them or take it out"
                )
    return found


def _sample(case: str, own: Mapping[str, str], label: str | None) -> Sample:
    files = [own[channel] for channel in sorted(own)]
    bands = files if len(files) > 1 else None
    return Sample(check_id(case, where=repr(files[0])), files[0], label, bands=bands)


def _read_json(tree: Tree, path: str) -> dict[str, Any]:
    if path not in tree:
        return {}
    try:
        told = json.loads(tree.read(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{tree.root / path}: no valid JSON ({error}); correct it") from error
    if not isinstance(told, dict):
        raise InputError(f"{tree.root / path}: expected an object with labels, as nnU-Net writes it")
    return told


def _labels(told: Mapping[str, Any], *, where: str) -> tuple[dict[int, str], list[int]]:
    """Return value -> name of the labels, and the value that is not judged; regions of several values are left out."""
    labels = told.get("labels", {})
    if not isinstance(labels, dict):
        raise InputError(f"{where}: labels: {str(labels)[:80]}; expected names with their values")
    found: dict[int, str] = {}
    for key, value in labels.items():
        if str(key).isdecimal() and isinstance(value, str):
            found[int(key)] = value
        elif isinstance(value, (int, str)) and str(value).isdecimal():
            found[int(value)] = str(key)
        elif not isinstance(value, list):
            raise InputError(f"{where}: labels: {key!r}: {str(value)[:80]}; expected a whole number")
    ignore = [value for value, name in found.items() if name.lower() == "ignore"]
    return {value: name for value, name in sorted(found.items()) if value not in ignore}, ignore
