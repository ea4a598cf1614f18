"""The masks of a submission in other forms: GeoTIFF, COCO, DICOM SEG and the others of ``masksmith apply``."""

import errno
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from masksmith.core import interrupt
from masksmith.core.config import look_up
from masksmith.core.errors import DiskFullError, InputError
from masksmith.core.files import atomic_folder, no_room
from masksmith.core.progress import track
from masksmith.data.catalog import Sample
from masksmith.data.decode.reader import ImageReader, ending
from masksmith.data.rle import DIALECTS
from masksmith.data.tree import Tree
from masksmith.deploy.listing import Item
from masksmith.deploy.outputs import KINDS, Masks, OfImage, OfSeveral, check_kinds
from masksmith.deploy.picture import Picture, Segmented
from masksmith.prediction.store import MeanCodes
from masksmith.project.folder import Project
from masksmith.project.members import Member
from masksmith.steps.predict import test_of


def write_forms(
    project: Project, members: Sequence[Member], kinds: Sequence[str], *, dialect: str | None = None
) -> tuple[list[Path], list[str]]:
    """Write the submission's masks in other forms, each in its folder ``outputs/KIND``, which is replaced as a whole.

    Args:
        project: With its submission written.
        members: What the submission is made of: their probabilities are among the forms.
        kinds: Of KINDS, see deploy.outputs.
        dialect: Of run-lengths; None: that of the submission.

    Returns:
        The folders, and what could not be written, a line each kind.

    Raises:
        InputError: An unknown kind or dialect, or a package that it needs is missing; the data are no longer there.
    """
    wanted = check_kinds(kinds)
    dialect = dialect or project.catalog.submission.dialect
    look_up(DIALECTS, dialect, where="--dialect")
    pictures = _pictures(project)
    masks = Masks(project.masks_dir, project.target, dialect)
    codes = test_of(project, members).first(project.target.outputs)
    folders, refused = [], []
    for kind in wanted:
        how, folder = KINDS[kind], project.outputs_dir / kind
        with atomic_folder(folder) as temporary:
            if isinstance(how, OfImage):
                found = list(_write_each(project, kind, how, pictures, masks, codes, temporary))
            else:
                found = list(_write_groups(kind, how, list(pictures.values()), masks, temporary))
        folders.append(folder)
        if found:
            refused.append(f"{len(found)} of {len(pictures)} images are not written as {kind}: {found[0]}")
    return folders, refused


def _pictures(project: Project) -> dict[str, Picture]:
    """Return the test images with the files that they lie in."""
    tree = Tree(Path(project.catalog.root))
    reader = ImageReader(tree)
    items: dict[str, Item] = {}

    def picture(sample: Sample) -> Picture:
        file = sample.image if sample.image in tree else sample.image.rpartition("#")[0]
        if file not in tree:
            raise InputError(f"{project.catalog.root}: {file} is no longer there; put the data back")
        name = file[: len(file) - len(ending(file))] if sample.image != file else sample.id
        items.setdefault(file, Item(name, file, reader, tree.version(file)))
        return Picture(sample.id, items[file], sample.image)

    return {sample.id: picture(sample) for sample in project.catalog.test}


def _write_each(
    project: Project,
    kind: str,
    how: OfImage,
    pictures: Mapping[str, Picture],
    masks: Masks,
    codes: MeanCodes,
    folder: Path,
) -> Iterator[str]:
    """Write a file for each image, and yield what cannot be."""
    images = project.cache.test_images
    for name, picture in track(pictures.items(), total=len(pictures), what=f"writing {kind}"):
        interrupt.check_stop()
        path = folder / f"{name}{how.ending}"
        try:
            with no_room(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                how.write(path, Segmented(picture, images, codes, masks[name], project.target))
        except DiskFullError:
            raise
        except InputError as error:
            path.unlink(missing_ok=True)
            yield str(error)
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            yield f"{picture.path}: its name is too long for {kind}; shorten it"


def _write_groups(
    kind: str, how: OfSeveral, pictures: Sequence[Picture], masks: Masks, folder: Path
) -> Iterator[str]:
    """Write a file for each group of images, and yield what cannot be for each of them."""
    grouped: set[str] = set()
    for name, own in how.groups(pictures).items():
        interrupt.check_stop()
        grouped |= {one.id for one in own}
        path = folder / name.removeprefix(f"{kind}/")
        try:
            with no_room(path):
                path.parent.mkdir(parents=True, exist_ok=True)
                how.write(path, own, masks)
        except DiskFullError:
            raise
        except InputError as error:
            path.unlink(missing_ok=True)
            yield from [str(error)] * len(own)
    yield from (f"{one.path}: expected {how.expects}" for one in pictures if one.id not in grouped)
