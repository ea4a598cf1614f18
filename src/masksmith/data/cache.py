"""Decode every image and mask once, into memory-mapped stores under ``cache/``.

Decoding a 101x101 PNG takes about 100 times as long as copying its pixels, and every epoch would do it
again. The stores are keyed by the hash of the data's content.
"""

from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

from masksmith.core.errors import InputError
from masksmith.core.files import digest, read_json, remove, write_json
from masksmith.core.ledger import Ledger
from masksmith.core.progress import logger
from masksmith.data.catalog import Catalog
from masksmith.data.decode.reader import ImageReader
from masksmith.data.decoded_images import image_findings, survey, turn_findings, write_images
from masksmith.data.decoded_masks import write_masks
from masksmith.data.findings import Finding
from masksmith.data.store import Store
from masksmith.data.target import BINARY, Target
from masksmith.data.tree import Tree

VERSION = "cache 7"  # of the decoded arrays: what is prepared from them counts it in
_STORES = ("train_images", "train_masks", "test_images")
_FINDINGS = "masks.json"
_TARGET = "target.json"
_NO_DATA = "no_data.json"


@dataclass(frozen=True)
class Cache:
    """The decoded data: images (h, w, c) of the files' own type (of TYPES), masks of uint8 or int32 (see Target)."""

    train_images: Store
    train_masks: Store
    test_images: Store
    mask_findings: list[Finding]
    """What the values of the mask files were found to mean, where that was not plain."""
    target: Target = BINARY
    """The task and its classes."""
    no_data: float | None = None
    """What the files of images of whole numbers declare to mean "no data"; None where they declare nothing, or more
    than one value. In decoded images of decimal numbers no data is NaN."""

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.train_images.channels


def build_cache(catalog: Catalog, folder: Path) -> Cache:
    """Decode the data into ``folder`` unless that was done, and open it.

    Raises:
        InputError: An image or mask is damaged, sizes differ, mask values or run-lengths make no sense.
    """
    ledger, key = Ledger(folder), _key(catalog)
    if is_built(catalog, folder):
        try:
            return open_cache(folder)
        except InputError as error:
            logger.warning("%s", error)
    logger.info("reading %d training and %d test images", len(catalog.train), len(catalog.test))
    reader = ImageReader(Tree(Path(catalog.root)))
    forget_cache(folder)
    for name, suffix in product(_STORES, (".npy", ".csv")):
        remove(folder / f"{name}{suffix}")
    kind = survey(reader, catalog)
    write_images(folder / "train_images.npy", reader, catalog.train, kind)
    convention = write_masks(folder / "train_masks.npy", reader, catalog, kind)
    found = [*convention.findings, *turn_findings(kind), *image_findings(catalog, kind)]
    convention = replace(convention, findings=found)
    for finding in convention.findings:
        logger.info("%s: %s: %s", finding.level, finding.title, finding.detail)
    write_json(folder / _FINDINGS, [asdict(finding) for finding in convention.findings])
    write_json(folder / _TARGET, convention.target.to_json())
    remove(folder / _NO_DATA)
    if kind.no_data is not None:
        write_json(folder / _NO_DATA, kind.no_data)
    write_images(folder / "test_images.npy", reader, catalog.test, kind)
    ledger.mark_done(VERSION, key)
    return open_cache(folder)


def is_built(catalog: Catalog, folder: Path) -> bool:
    """Whether the data was decoded into ``folder``, so that build_cache only opens it."""
    return Ledger(folder).is_done(VERSION, _key(catalog))


def _key(catalog: Catalog) -> str:
    return digest(catalog.content_hash, catalog.submission.dialect, str(catalog.asked), *catalog.labels)


def open_cache(folder: Path, *, forget: bool = True) -> Cache:
    """Open stores that build_cache has made; one that proves damaged is made again by the next command.

    Args:
        folder: Where they lie.
        forget: Whether damage is recorded; False only reads.
    """
    on_damage = (lambda: forget_cache(folder)) if forget else None
    train, masks, test = (Store(folder / f"{name}.npy", on_damage=on_damage) for name in _STORES)
    findings, target = folder / _FINDINGS, folder / _TARGET
    for path in (findings, target):
        if not path.exists():
            raise InputError(f"{path}: it is not there; the next command decodes the data again")
    found = [Finding(**one) for one in read_json(findings)]
    no_data = read_json(folder / _NO_DATA) if (folder / _NO_DATA).exists() else None
    return Cache(train, masks, test, found, Target.from_json(read_json(target)), no_data)


def forget_cache(folder: Path) -> None:
    """Record that the cache is not made: the next build_cache decodes the data again."""
    remove(Ledger(folder).path)
