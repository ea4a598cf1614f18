"""Decode every image and mask once, into memory-mapped stores under ``cache/``.

Decoding a 101x101 PNG takes about 100 times as long as copying its pixels, and every epoch would do it
again. The stores are keyed by the hash of the data's content.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from masksmith.arrays import Image, Mask, Shaped
from masksmith.data.catalog import Catalog, Sample
from masksmith.data.images import apply_table, decode_image, is_grey, is_lossy, mask_levels, mask_table
from masksmith.data.rle import decode_rows
from masksmith.data.store import Store, StoreWriter
from masksmith.data.tree import Tree
from masksmith.errors import InputError
from masksmith.files import Ledger, digest, remove
from masksmith.progress import logger, track

VERSION = "cache 3"  # of the decoded arrays: what is prepared from them counts it in
_STORES = ("train_images", "train_masks", "test_images")


@dataclass(frozen=True)
class Cache:
    """The decoded data: images (h, w, c) of the files' own type (of TYPES), masks (h, w, 1) of uint8."""

    train_images: Store
    train_masks: Store
    test_images: Store

    @property
    def channels(self) -> int:
        """Channels of every image."""
        return self.train_images.channels


def _decode(tree: Tree, samples: Iterable[Sample]) -> Iterable[tuple[Sample, Image]]:
    for sample in samples:
        yield sample, decode_image(tree.read(sample.image), where=sample.image)


@dataclass(frozen=True)
class _Kind:
    """What all images have in common, channels and type; and each image's size."""

    channels: int
    dtype: type[np.generic]
    sizes: dict[str, tuple[int, int]]


def _survey(tree: Tree, catalog: Catalog) -> _Kind:
    samples = [*catalog.train, *catalog.test]
    coloured, dtypes, sizes = False, set(), {}
    bands: dict[int, str] = {}
    for sample, image in track(_decode(tree, samples), total=len(samples), what="looking at images"):
        sizes[sample.image] = image.shape[:2]
        dtypes.add(image.dtype.type)
        bands.setdefault(image.shape[2], sample.image)
        coloured = coloured or (image.shape[2] == 3 and not is_grey(image))
    if len(dtypes) > 1:
        names = " and ".join(sorted(np.dtype(one).name for one in dtypes))
        raise InputError(f"{tree.root}: images of types {names} mixed; convert them to one type")
    return _Kind(_common_channels(bands, coloured=coloured, where=str(tree.root)), dtypes.pop(), sizes)


def _common_channels(bands: dict[int, str], *, coloured: bool, where: str) -> int:
    """Return the channels of all images; ``bands`` is number of bands -> an image that has so many."""
    if set(bands) <= {1, 3}:  # grey images, and pictures in colours
        return 3 if coloured else 1
    if len(bands) > 1:
        found = ", ".join(f"{count} ({path})" for count, path in sorted(bands.items()))
        raise InputError(
            f"{where}: images of different numbers of bands: {found}; give all of them the same bands"
        )
    return next(iter(bands))


def _fit_channels(image: Image, channels: int) -> Shaped[np.ndarray, "h w k"]:
    if image.shape[2] == channels:
        return image
    return image[..., :1] if channels == 1 else np.repeat(image, 3, axis=2)


def _write_images(path: Path, tree: Tree, samples: list[Sample], kind: _Kind) -> None:
    shapes = [(sample.id, (*kind.sizes[sample.image], kind.channels)) for sample in samples]
    writer = StoreWriter(path, shapes, dtype=kind.dtype)
    for sample, image in track(_decode(tree, samples), total=len(samples), what=f"decoding {path.stem}"):
        writer.write(sample.id, _fit_channels(image, kind.channels))
    writer.close()


def _levels(tree: Tree, sample: Sample, size: tuple[int, int]) -> Shaped[np.ndarray, "h w"]:
    assert sample.mask is not None
    mask = mask_levels(decode_image(tree.read(sample.mask), where=sample.mask), where=sample.mask)
    if mask.shape != size:
        raise InputError(
            f"{sample.mask}: the mask is {mask.shape[0]}x{mask.shape[1]} but its image {sample.image} is "
            f"{size[0]}x{size[1]}; expected equal sizes"
        )
    return mask


def _value_table(tree: Tree, samples: list[Sample], kind: _Kind) -> dict[int, int]:
    values: set[int] = set()
    with_file = [sample for sample in samples if sample.mask]
    for sample in track(with_file, total=len(with_file), what="looking at masks"):
        values.update(np.unique(_levels(tree, sample, kind.sizes[sample.image])).tolist())
    if not with_file:
        return {0: 0, 1: 1}
    lossy = any(is_lossy(sample.mask or "") for sample in with_file)
    return mask_table(values, lossy=lossy, where=f"{tree.root} (masks)")


def _mask(tree: Tree, sample: Sample, table: dict[int, int], kind: _Kind, dialect: str) -> Mask:
    size = kind.sizes[sample.image]
    drawn = apply_table(_levels(tree, sample, size), table) if sample.mask else None
    if sample.rle is None:
        assert drawn is not None
        return drawn
    told = decode_rows(
        sample.rle, shape=size, dialect=dialect, where=f"run-lengths of training image {sample.id!r}"
    )
    if drawn is not None and not np.array_equal(drawn == 1, told == 1):
        differing = int((drawn != told).sum())
        raise InputError(
            f"training image {sample.id!r}: its mask file {sample.mask} and its run-lengths differ in {differing} "
            "pixels; correct one of them or remove it"
        )
    return told if drawn is None else drawn


def _write_masks(path: Path, tree: Tree, catalog: Catalog, kind: _Kind) -> None:
    table = _value_table(tree, catalog.train, kind)
    shapes = [(sample.id, (*kind.sizes[sample.image], 1)) for sample in catalog.train]
    writer = StoreWriter(path, shapes, dtype=np.uint8)
    foreground = 0
    for sample in track(catalog.train, total=len(catalog.train), what="decoding masks"):
        mask = _mask(tree, sample, table, kind, catalog.submission.dialect)
        foreground += int((mask == 1).sum())
        writer.write(sample.id, mask[..., None])
    writer.close()
    if not foreground:
        raise InputError(f"{tree.root} (masks): every mask is empty; there is nothing to learn")


def build_cache(catalog: Catalog, folder: Path) -> Cache:
    """Decode the data into ``folder`` unless that was done, and open it.

    Raises:
        InputError: An image or mask is damaged, sizes differ, mask values or run-lengths make no sense.
    """
    ledger = Ledger(folder)
    key = digest(catalog.content_hash, catalog.submission.dialect)
    if ledger.is_done(VERSION, key):
        try:
            return open_cache(folder)
        except InputError as error:
            logger.warning("%s", error)
    logger.info("reading %d training and %d test images", len(catalog.train), len(catalog.test))
    tree = Tree(Path(catalog.root))
    forget_cache(folder)
    for old in (*folder.glob("*.npy"), *folder.glob("*.csv")):
        remove(old)
    kind = _survey(tree, catalog)
    _write_images(folder / "train_images.npy", tree, catalog.train, kind)
    _write_masks(folder / "train_masks.npy", tree, catalog, kind)
    _write_images(folder / "test_images.npy", tree, catalog.test, kind)
    ledger.mark_done(VERSION, key)
    return open_cache(folder)


def open_cache(folder: Path) -> Cache:
    """Open stores that build_cache has made; one that proves damaged is made again by the next command."""
    return Cache(*(Store(folder / f"{name}.npy", on_damage=lambda: forget_cache(folder)) for name in _STORES))


def forget_cache(folder: Path) -> None:
    """Record that the cache is not made: the next build_cache decodes the data again."""
    remove(Ledger(folder).path)
