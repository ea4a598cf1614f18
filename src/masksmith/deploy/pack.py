"""A pack for code competitions: weights, code and one script that writes the submission, without network.

submission.zip
model.msk           the bundle
masksmith/          this package, as it is installed here
run.py              python run.py IMAGES --out submission.csv [--sample sample_submission.csv]
requirements.txt    the other packages with their versions, to be attached as wheels
README.md           how to run it, and how long it takes
"""

import argparse
import re
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path, PurePosixPath

import numpy as np
from packaging.requirements import Requirement

from masksmith.core.arrays import AnyMask, Image
from masksmith.core.errors import EXIT_REFUSED, InputError
from masksmith.core.files import atomic_path
from masksmith.core.progress import logger
from masksmith.data.array_store import ArrayStore
from masksmith.data.catalog import LabelRow, SubmissionFormat
from masksmith.data.table import need_column, parse_table
from masksmith.deploy.apply import read_scalars
from masksmith.deploy.chunks import CHUNK_BYTES, CHUNK_IMAGES
from masksmith.deploy.listing import Item, list_items
from masksmith.deploy.segmenter import Segmenter
from masksmith.postprocess.rules import Beside, mask_of
from masksmith.submission.formats import write_outputs
from masksmith.training.machine import usable_cores

_TRIAL_S = 10.0
_TRIAL_IMAGES = 8
_SCRIPT = '''"""Segment a folder of images and write the submission: python run.py IMAGES --out submission.csv"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from masksmith.deploy.pack import main

if __name__ == "__main__":
    main(model=Path(__file__).resolve().parent / "model.msk")
'''


@dataclass(frozen=True)
class Packed:
    """A pack that was written."""

    path: Path
    bytes: int
    seconds_an_image: float
    cores: int

    def __str__(self) -> str:
        hour = int(3600 / self.seconds_an_image)
        return (
            f"{self.path}: {self.bytes / 2**20:.1f} MiB; {self.seconds_an_image:.2f} s an image on {self.cores} cores, "
            f"about {hour} images an hour (measured here)"
        )


def pack_model(model: Path, out: Path) -> Packed:
    """Write a pack.

    Args:
        model: The bundle.
        out: The zip file.

    Raises:
        InputError: As Bundle; a name that does not end in ``.zip``.
    """
    if out.suffix != ".zip":
        raise InputError(f"--out: {out}; expected a name that ends in .zip")
    seconds = seconds_an_image(Segmenter(model))
    cores = usable_cores()
    with atomic_path(out) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(model, "model.msk", zipfile.ZIP_STORED)
        root = Path(__file__).resolve().parents[1]
        for path in sorted(root.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                archive.write(path, f"masksmith/{path.relative_to(root).as_posix()}")
        archive.writestr("run.py", _SCRIPT)
        archive.writestr("requirements.txt", "".join(f"{line}\n" for line in requirements()))
        archive.writestr("README.md", _readme(seconds, cores))
    return Packed(out, out.stat().st_size, seconds, cores)


def requirements() -> list[str]:
    """Return the packages that masksmith needs, with the versions that are installed here."""
    found = []
    for text in metadata.requires("masksmith") or []:
        needed = Requirement(text)
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            found.append(f"{needed.name}=={metadata.version(needed.name).partition('+')[0]}")
    return sorted(found, key=str.lower)


def seconds_an_image(model: Segmenter) -> float:
    """Measure how long an image of the training set's size takes, in batches, on this machine."""
    facts = model.bundle.facts
    height, width = (int(facts.ranges[side][1]) for side in ("height", "width"))
    rng = np.random.default_rng(0)
    noise = rng.random((_TRIAL_IMAGES, height, width, facts.channels))
    images = {str(at): (255 * image).astype(facts.dtype) for at, image in enumerate(noise)}
    numbers = {name: dict.fromkeys(model.scalars, 0.0) for name in images}
    model.predict(ArrayStore(images), list(images), scalars=numbers)  # compiles
    start, count = time.perf_counter(), 0
    while not count or time.perf_counter() - start < _TRIAL_S / 4:
        model.predict(ArrayStore(images), list(images), scalars=numbers)
        count += len(images)
    return (time.perf_counter() - start) / count


def _readme(seconds: float, cores: int) -> str:
    return (
        "# Submission without network\n\n"
        "1. Attach wheels of `requirements.txt` (`pip download -r requirements.txt -d wheels`) and install them:\n"
        "   `pip install --no-index --find-links wheels -r requirements.txt`\n"
        "2. `python run.py IMAGES --out submission.csv --sample sample_submission.csv`\n\n"
        f"It took {seconds:.2f} s an image of the training set's size on {cores} cores where it was packed: "
        f"{1000 * seconds / 60:.1f} minutes for 1,000 images.\n"
    )


# --- what run.py does -----------------------------------------------------------------------------------------


def main(model: Path, arguments: Sequence[str] | None = None) -> None:
    """Segment images and write the submission; see write_submission."""
    parser = argparse.ArgumentParser(description="Segment images and write the submission.")
    parser.add_argument("images", nargs="+", help="files, folders or archives")
    parser.add_argument("--out", default="submission.csv", help="the submission")
    parser.add_argument("--sample", help="sample submission with the ids in the judge's order")
    parser.add_argument("--table", help="CSV with the numbers that the model takes beside each image")
    given = parser.parse_args(arguments)
    sample, table = (None if one is None else Path(one) for one in (given.sample, given.table))
    try:
        count = write_submission(model, given.images, Path(given.out), sample=sample, table=table)
    except InputError as error:
        print(f"masksmith: {error}", file=sys.stderr)
        sys.exit(EXIT_REFUSED)
    print(f"{given.out}: {count} images")


def write_submission(
    model: Path, inputs: Sequence[str], out: Path, *, sample: Path | None = None, table: Path | None = None
) -> int:
    """Segment images and write masks (``OUT-masks/``) and the submission in the form that the model's project had.

    Args:
        model: The bundle.
        inputs: See list_items.
        out: The CSV file.
        sample: A sample submission, whose ids are taken in their order; None: the images by name.
        table: Numbers that the model takes beside each image.

    Returns:
        The number of images.

    Raises:
        InputError: The sample names an image that is not there, two images have one id, an archive is broken, or as
            Segmenter and list_items.
    """
    segmenter = Segmenter(model)
    facts = segmenter.bundle.facts
    if facts.submission is None:
        raise InputError(f"{model}: it does not say what the judge expects; make the bundle again")
    form = SubmissionFormat.from_json(facts.submission)
    items, twice = dict[str, Item](), dict[str, Item]()
    for item in list_items(inputs):
        if item.error:
            raise InputError(item.error)
        name = PurePosixPath(item.id).name
        (twice if name in items else items)[name] = item
    names = sorted(items) if sample is None else _ids_of(sample, form, items)
    for name in filter(twice.__contains__, names):
        raise InputError(
            f"{twice[name].place}: the id {name!r} is also that of {items[name].place}; give one of the two"
        )
    numbers = read_scalars(table, segmenter.scalars) if table else {}

    def masks() -> Iterator[AnyMask]:
        for images in _decoded(segmenter, names, items):
            store = ArrayStore(images)
            codes, beside = segmenter.predict(store, list(images), scalars=numbers), Beside(store, numbers)
            logger.info("%d images segmented", len(images))
            for name in images:
                yield mask_of(segmenter.rule, codes, name, beside)

    form = _filled(form, names, segmenter.target.classes)
    write_outputs(out.with_name(f"{out.stem}-masks"), out, form, masks(), segmenter.target)
    return len(names)


def _decoded(model: Segmenter, names: Sequence[str], items: Mapping[str, Item]) -> Iterator[dict[str, Image]]:
    """Yield the images in chunks that fit into memory, in their order."""
    images: dict[str, Image] = {}
    for name in names:
        image = model.fit(items[name].reader.image(items[name].path), where=items[name].path)
        size = image.nbytes + sum(one.nbytes for one in images.values())
        if images and (size > CHUNK_BYTES or len(images) == CHUNK_IMAGES):
            yield images
            images = {}
        images[name] = image
    if images:
        yield images


def _ids_of(sample: Path, form: SubmissionFormat, items: Mapping[str, Item]) -> list[str]:
    table = parse_table(sample.read_bytes(), where=str(sample))
    need_column(table, form.id_column)
    cells = dict.fromkeys(row[form.id_column] for row in table.rows)
    pattern = _cell_pattern(form.spelled.get("", "{id}"))
    ids = dict.fromkeys(match["id"] if (match := pattern.fullmatch(cell)) else cell for cell in cells)
    absent = [name for name in ids if name not in items]
    if absent:
        raise InputError(f"{sample}: no image for the id {absent[0]!r}; {len(items)} images were given")
    return list(ids)


def _cell_pattern(cell: str) -> re.Pattern[str]:
    parts = re.split(r"(\{id\}|\{label\})", cell)
    forms = {"{id}": "(?P<id>.+)", "{label}": "(?P<label>.+)"}
    return re.compile("".join(forms.get(part, re.escape(part)) for part in parts))


def form_for_others(form: SubmissionFormat) -> SubmissionFormat:
    """Return the form of a submission without its ids; how a cell spells an id is kept as ``spelled[""]``."""
    cell = "{id}"
    if form.label_rows:
        row = form.label_rows[0]
        cell = row.cell.replace(row.id, "{id}", 1)
        if not form.class_column and cell.endswith(row.label):
            cell = cell[: -len(row.label)] + "{label}"
    elif form.spelled:
        name, spelled = next(iter(form.spelled.items()))
        cell = spelled.replace(name, "{id}", 1)
    return replace(form, ids=[], label_rows=[], spelled={"": cell})


def _filled(form: SubmissionFormat, names: Sequence[str], labels: Sequence[str]) -> SubmissionFormat:
    cell = form.spelled.get("", "{id}")
    spelled = {name: cell.replace("{id}", name) for name in names}
    filled = replace(
        form, ids=list(names), spelled={name: text for name, text in spelled.items() if text != name}
    )
    if form.class_column or "{label}" in cell:
        rows = [
            LabelRow(name, label, spelled[name].replace("{label}", label))
            for name in names
            for label in labels
        ]
        filled = replace(filled, label_rows=rows)
    return filled
