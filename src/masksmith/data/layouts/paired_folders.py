"""Images and masks as files, paired by their names, whatever folders and files are called (see pairing.py)."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from masksmith.core.errors import InputError
from masksmith.data.catalog import AskedTarget, Catalog, SubmissionFormat
from masksmith.data.colour_tables import find_class_list, find_colour_table, find_value_names
from masksmith.data.colours import pack_colours
from masksmith.data.decode.pictures import IMAGE_SUFFIXES, decode_image
from masksmith.data.decode.reader import ImageReader
from masksmith.data.description import FILE_NAME, NOTHING_SAID, Description
from masksmith.data.findings import Finding, some
from masksmith.data.ids import check_name
from masksmith.data.layouts.dicom_series import dicom_files
from masksmith.data.layouts.file_names import File, file_of
from masksmith.data.layouts.folders import find_test_images, make_samples, some_ids
from masksmith.data.layouts.pairing import is_mask_role, pair
from masksmith.data.layouts.pairs import Pairing, SameIdError, shared_folders
from masksmith.data.masks import is_lossy
from masksmith.data.run_tables import natural
from masksmith.data.side_tables import collect_facts, read_tables
from masksmith.data.tree import Tree

_LOOKED_AT = 5
_MOST_COLOURS = 256


def paired_folders(tree: Tree, asked: Description = NOTHING_SAID) -> Catalog | None:
    """Images and masks in two folders or side by side, with equal names or affixes; train, val and test are optional.

    The folder of masks may hold a folder for each of several labels (``masks/LABEL/ID.png``).
    """
    files = [file_of(path) for path in image_files(tree)]
    reader = ImageReader(tree)
    try:
        found = pair(
            files,
            are_masks=lambda images, masks: _are_masks(reader, images, masks),
            bands_of=lambda file: reader.image(file.path).shape[2],
            values_of=lambda masks: _num_values(reader, masks),
        )
        return None if found is None else catalog_of(tree, asked, "paired_folders", found)
    except SameIdError as error:
        first, second, name = error.args
        raise InputError(
            f"{tree.root}: {first!r} and {second!r} both have the id {name!r}; keep one file an id"
        ) from error


def image_files(tree: Tree) -> list[str]:
    """Return the paths of all image files of a tree; DICOM needs no ending."""
    named = [path for folder in tree.folders for path in tree.files(folder, suffixes=IMAGE_SUFFIXES)]
    return sorted({*named, *dicom_files(tree)}) if named else named


def catalog_of(
    tree: Tree,
    asked: Description,
    layout: str,
    found: Pairing,
    *,
    known: AskedTarget | None = None,
    bare_is_left_out: bool = False,
    groups: Mapping[str, str] | None = None,
) -> Catalog:
    """Return the catalogue of images with masks.

    Args:
        tree: The data folder.
        asked: What is said of it.
        layout: Name of the layout.
        found: The images and their masks. Those in ``test``, and in a split without any mask, are test images.
        known: What the layout knows of the values of masks.
        bare_is_left_out: Whether a training image without a mask is left out, and not refused.
        groups: Id -> group.

    Raises:
        InputError: Training images have no mask.
    """
    images, test = _train_and_test(found)
    masked = found.masks.keys() | {name for own in found.labels.values() for name in own}
    bare = images.keys() - masked
    if bare and not bare_is_left_out:
        raise InputError(
            f"{tree.root}: no mask for the image {some_ids(bare)} {_of_folder(images, bare, found)}(paired: "
            f"{found.rule}); add masks{', empty ones where there is nothing,' if found.labels else ''} or take the "
            "images out"
        )
    images = {name: file for name, file in images.items() if name not in bare}
    paths = {name: file.path for name, file in images.items()}
    test_paths = {name: file.path for name, file in test.items()}
    if not test_paths:
        known_paths = {*paths.values(), *(file.path for file in found.masks.values())}
        test_paths = {name: path for name, path in find_test_images(tree).items() if path not in known_paths}
        test_paths = test_paths or _other_test_images(tree, known_paths, set(paths))
    tables, errors = read_tables(tree)
    colours, colour_file = find_colour_table(tree)
    names, names_file = find_value_names(tree) if known is None and not colours else ({}, "")
    listed, list_file = find_class_list(tree) if known is None and not colours and not names else ([], "")
    facts = collect_facts(
        (table for path, table in tables.items() if path not in (colour_file, names_file)),
        {"train": paths, "test": test_paths},
    )
    labels = sorted(found.labels, key=natural)
    form = SubmissionFormat.assumed(test_paths, asked.dialect)
    samples = make_samples(
        "train",
        paths,
        facts,
        masks={name: file.path for name, file in found.masks.items()},
        held_out=[name for name, file in images.items() if file.split == "val"],
        label_masks={
            name: {label: found.labels[label][name] for label in labels if name in found.labels[label]}
            for name in images
        }
        if labels
        else None,
    )
    samples = [replace(one, further_masks=found.further.get(one.id)) for one in samples]
    used = {*paths.values(), *test_paths.values(), *(file.path for file in found.masks.values())}
    used |= {path for own in found.labels.values() for path in own.values()}
    stray = [file.path for file in found.stray if file.path not in used]
    said = {
        *stray,
        *found.derived,
        *(path for own in found.further.values() for path in own),
        *found.elsewhere,
        *(file.path for file in found.images.values()),
    }
    said |= used
    unread = [path for path in image_files(tree) if path not in said] if known is None else []
    return Catalog(
        root=str(tree.root.resolve()),
        layout=layout,
        content_hash=tree.content_hash,
        train=[replace(one, group=groups[one.id]) for one in samples] if groups else samples,
        test=make_samples("test", test_paths, facts),
        submission=form.with_labels(labels) if labels else form,
        notes=_stray_note(stray) + [str(error) for error in errors.values()] + facts.notes,
        asked=known
        or (_CAMVID if _is_camvid(tree) else AskedTarget(names=names, colours=colours, listed=listed)),
        labels=[check_name(label, where=f"{tree.root} (labels)") for label in labels],
        why=[
            _why(found),
            *([f"{colour_file} has the colours of {len(colours)} classes"] if colour_file else []),
            *([f"{names_file} names {len(names)} values"] if names_file else []),
            *([f"{list_file} lists {len(listed)} classes"] if list_file else []),
        ],
        left_out=[
            *([f"{len(bare)} images without a mask: {some(sorted(bare))}"] if bare else []),
            *(_unread(unread)),
        ],
        findings=_findings(found, images, test, bare) + _unread_findings(unread),
    )


def _other_test_images(tree: Tree, known: set[str], ids: set[str]) -> dict[str, str]:
    """Return id -> path of the images in folders that are called as a test set and not as masks, wherever they lie."""
    every = [file_of(path) for path in image_files(tree)]
    common = shared_folders([file.folders for file in every])
    files = [
        file
        for file in every
        if file.split == "test"
        and file.path not in known
        and not any(map(is_mask_role, file.folders[common:]))
    ]
    found = {file.stem: file.path for file in files}
    return found if len(found) == len(files) and not found.keys() & ids else {}


def _unread(paths: Sequence[str]) -> list[str]:
    """Return which folders hold images that are not read, in words."""
    folders = Counter(str(PurePosixPath(path).parent) for path in paths)
    return [
        f"{count} images in {folder}/: neither images of the set nor their masks"
        for folder, count in folders.items()
    ]


def _unread_findings(paths: Sequence[str]) -> list[Finding]:
    if not paths:
        return []
    folders = sorted({f"{PurePosixPath(path).parent}/" for path in paths})
    detail = (
        f"{len(paths)} image files in {len(folders)} folders are neither images of the set nor their masks: "
        f"{some(folders)}; if they are the masks you mean, write images: and masks: into {FILE_NAME}"
    )
    return [Finding("note", "image files that are not read", detail)]


def _train_and_test(found: Pairing) -> tuple[dict[str, File], dict[str, File]]:
    """Return the images to learn from, and those to be segmented: of ``test``, or of a split without any mask."""
    masked = {*found.masks, *(name for own in found.labels.values() for name in own)}
    with_masks = {found.images[name].split for name in masked}
    if with_masks == {"test"}:
        return found.images, {}
    learnt = with_masks - {"test"} | {""}
    images = {name: file for name, file in found.images.items() if file.split in learnt}
    return images, {name: file for name, file in found.images.items() if file.split not in learnt}


def _of_folder(images: Mapping[str, File], bare: set[str], found: Pairing) -> str:
    if found.labels:
        return f"in any folder of a label ({', '.join(sorted(found.labels, key=natural))}) "
    folders = {str(PurePosixPath(images[name].path).parent) for name in bare}
    return f"of {folders.pop()}/ " if len(folders) == 1 else ""


def _why(found: Pairing) -> str:
    first = next(iter(found.masks.items()), None)
    if first is None:
        label, own = next(iter(found.labels.items()))
        name, mask = next(iter(own.items()))
        return f"{found.rule}: {found.images[name].path} with {mask} ({label})"
    return f"{found.rule}: {found.images[first[0]].path} with {first[1].path}"


def _stray_note(stray: Sequence[str]) -> list[str]:
    if not stray:
        return []
    names = some_ids(PurePosixPath(path).stem for path in stray)
    return [f"{len(stray)} mask files have no image and are left out: {names}"]


def _findings(
    found: Pairing, images: Mapping[str, File], test: Mapping[str, File], bare: set[str]
) -> list[Finding]:
    findings = []
    held = [name for name, file in images.items() if file.split == "val"]
    if held:
        detail = (
            f"{len(images) - len(held)} images to train on, {len(held)} in val, which the data set holds out: they are "
            "fold 0"
        )
        findings.append(Finding("note", "the split of the data set", detail, held))
    if others := [name for name, file in test.items() if file.split not in ("test", "")]:
        detail = (
            f"{len(others)} images of {test[others[0]].split} have no masks: they are read as test images"
        )
        findings.append(Finding("warning", "a split without masks", detail, others))
    answered = [name for name in test if name in found.masks]
    if answered:
        detail = (
            f"{len(answered)} test images have masks, which are not read: they stay unseen until you score"
        )
        findings.append(Finding("note", "masks of test images", detail, answered))
    if found.others:
        detail = (
            f"{found.rule}, was taken; left out: {'; '.join(found.others)}; what is in brackets names them in "
            f"{FILE_NAME}, beside the line of the others"
        )
        findings.append(Finding("warning", "several folders would pair", detail))
    if "a mask for each label" in found.rule:
        detail = (
            f"{found.rule}: they are read as {len(found.labels)} labels that may overlap; if they are of several "
            f"people, or kinds of one mask, name the one that counts in {FILE_NAME}: images: and masks:"
        )
        findings.append(Finding("warning", "labels by the names of masks", detail))
    if found.derived:
        detail = (
            f"{len(found.derived)} pictures are called as an image with a word behind: {some(found.derived)}; they are "
            "left out"
        )
        findings.append(Finding("warning", "pictures made of images", detail))
    if found.further:
        paths = [path for own in found.further.values() for path in own]
        detail = (
            f"{len(found.further)} images have {len(paths)} further masks, called as the mask with a number behind: "
            f"{some(paths)}; what one of the masks of an image has is foreground; if they are of other people, or each "
            f"is an object, name images: and masks: in {FILE_NAME}"
        )
        findings.append(Finding("warning", "further masks of images", detail, list(found.further)))
    if found.elsewhere:
        folders = sorted({str(PurePosixPath(path).parent) for path in found.elsewhere})
        detail = (
            f"{len(found.elsewhere)} images in {len(folders)} folders for which there is no mask at all are left out: "
            f"{some(folders)}"
        )
        findings.append(Finding("warning", "folders without masks", detail))
    if bare:
        detail = f"{len(bare)} images have no mask and are left out, {len(images)} have one"
        findings.append(Finding("note", "images without a mask", detail, sorted(bare)))
    return findings


_CAMVID_CLASSES = "sky building pole road pavement tree sign fence car pedestrian cyclist void"
_CAMVID = AskedTarget(ignore=[11], names=dict(enumerate(_CAMVID_CLASSES.split())))
"""CamVid with the eleven classes of SegNet (arXiv 1511.00561), which calls its folders so; 11 is not judged."""


def _is_camvid(tree: Tree) -> bool:
    return tree.has("trainannot") and tree.has("valannot")


def _are_masks(reader: ImageReader, images: Sequence[File], masks: Sequence[File]) -> bool:
    """Whether some files hold far fewer different colours than others, as masks do."""
    many, few = (_median_colours(reader, files) for files in (images, masks))
    return few <= _MOST_COLOURS and 2 * few < many


def _num_values(reader: ImageReader, files: Sequence[File]) -> int:
    """Return how many different values or colours some mask files hold; 0 where they are lossy or no pictures."""
    found: set[int] = set()
    step = max(1, len(files) // _LOOKED_AT)
    for file in files[::step][:_LOOKED_AT]:
        try:
            raw = reader.raw(file.path)
            if is_lossy(raw):
                return 0
            mask = decode_image(raw, where=file.path)
        except InputError:
            return 0
        levels = pack_colours(mask) if mask.dtype == np.uint8 else mask[..., 0]
        found.update(np.unique(levels)[: _MOST_COLOURS + 1].tolist())
    return len(found)


def _median_colours(reader: ImageReader, files: Sequence[File]) -> float:
    step = max(1, len(files) // _LOOKED_AT)
    found = []
    for file in files[::step][:_LOOKED_AT]:
        image = decode_image(reader.raw(file.path), where=file.path)
        found.append(
            len(np.unique(pack_colours(image)) if image.dtype == np.uint8 else np.unique(image[..., 0]))
        )
    return float(np.median(found))
